//! Protocol switches, over HTTP/1.1 and HTTP/2.

use http::{Method, Request, Version};
use http_body_util::Empty;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::*;
use crate::net::Tasks;

/// Switches to whatever is asked for, then answers in capitals until the visitor stops, and says
/// `bye` after that.
async fn switching_service() -> Service {
    Service::start(|mut peer, _| async move {
        let head = peer.head().await;
        let field = |name: &str| {
            head.lines().find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
        };
        let protocol = field("upgrade:").unwrap();
        let accept = field("sec-websocket-key:").map(|key| {
            assert!(head.starts_with("GET "), "{head}");
            let mut text = key.into_bytes();
            text.extend_from_slice(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
            use base64::Engine as _;
            format!("Sec-WebSocket-Accept: {}\r\n", base64::engine::general_purpose::STANDARD.encode(hash))
        });
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nX-Mine: 1\r\n{}\r\n",
            accept.unwrap_or_default()
        );
        peer.send(answer).await;
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = peer.0.read(&mut buffer).await {
            peer.send(buffer[..count].to_ascii_uppercase()).await;
        }
        peer.send("bye").await;
    })
    .await
}

#[tokio::test]
async fn any_token_switches_and_half_close_is_kept() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = switching_service().await;
    let _lease = gateway.offer(service.addr);
    for token in ["tcp", "websocket"] {
        let mut visitor = gateway.visitor().await;
        // What follows the head at once is for the other protocol already.
        let ask = format!(
            "GET /s HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {token}\r\n\r\nearly\n"
        );
        visitor.send(ask).await;
        let head = visitor.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains(&format!("upgrade: {token}\r\n")) && head.contains("x-mine: 1\r\n"), "{head}");
        visitor.until("EARLY\n").await;
        visitor.send("late \0 : \n").await;
        visitor.until("LATE \0 : \n").await;
        visitor.0.shutdown().await.unwrap();
        assert_eq!(visitor.rest().await, "bye");
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_a_proper_answer_and_the_connection_goes_on() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::says("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    for _ in 0..2 {
        let ask =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        visitor.send(ask).await;
        let answer = visitor.until("no").await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    }
    // No tunnel at all: an HTTP answer too.
    let ask = "GET / HTTP/1.1\r\nHost: x.example.test\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    visitor.send(ask).await;
    assert!(visitor.head().await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn the_connection_slot_is_held_until_the_switched_stream_ends() {
    let mut gateway = Gateway::start(Port::Plain).await;
    let service = switching_service().await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor
        .send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"))
        .await;
    visitor.head().await;
    visitor.send("a").await;
    visitor.until("A").await;
    assert!(gateway.ends.try_recv().is_err(), "serve() returned while the stream was in use");
    drop(visitor);
    assert!(gateway.ends.recv().await.is_some());
}

async fn h2_connect(gateway: &Gateway, protocol: &'static str) -> http::Response<hyper::body::Incoming> {
    let stream = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    let tasks = Tasks::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(tasks.clone(), TokioIo::new(stream)).await.unwrap();
    tasks.spawn("h2 client", async move { connection.await.unwrap() });
    let request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(format!("https://{HOST}/socket?x=1"))
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static(protocol))
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    // The server's settings must have arrived before an extended CONNECT may be sent.
    sender.ready().await.unwrap();
    let get = Request::builder().uri("https://api.example.test/healthz").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(get).await.unwrap().status(), 200);
    sender.send_request(request).await.unwrap()
}

#[tokio::test]
async fn websocket_over_h2_reaches_an_h1_service() {
    let gateway = Gateway::start(Port::H2).await;
    let service = switching_service().await;
    let _lease = gateway.offer(service.addr);
    let response = h2_connect(&gateway, "websocket").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-mine"], "1");
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut seen = [0; 5];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"HELLO");
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");
}

#[tokio::test]
async fn a_refusal_over_h2_is_an_answer_and_never_taken_for_consent() {
    for (says, status) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", 502),
        (
            "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n",
            502,
        ),
    ] {
        let gateway = Gateway::start(Port::H2).await;
        let service = Service::says(says).await;
        let _lease = gateway.offer(service.addr);
        assert_eq!(h2_connect(&gateway, "websocket").await.status(), status, "{says}");
    }
}

#[tokio::test]
async fn a_visitor_who_leaves_before_the_switch_is_noticed_whatever_it_sent() {
    let mut settings = settings();
    settings.limits.handshake_timeout = std::time::Duration::from_millis(200);
    let gateway = Gateway::with(Port::Plain, settings).await;
    let (service, mut has_left) = Service::that_tells().await;
    let _lease = gateway.offer(service.addr);
    for rest in [0, 1, 5000, 20_000] {
        let mut visitor = gateway.visitor().await;
        let ask =
            format!("GET /hang HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
        visitor.send(ask + &"x".repeat(rest)).await;
        assert_eq!(has_left.recv().await, Some("asked"));
        drop(visitor);
        let end = tokio::time::timeout(std::time::Duration::from_secs(5), has_left.recv()).await;
        assert_eq!(end, Ok(Some("left")), "{rest} octets were sent too");
    }
}

#[tokio::test]
async fn a_late_answer_to_an_upgrade_takes_what_was_sent_before_the_end_along() {
    let gateway = Gateway::start(Port::Plain).await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let service = Service::start(move |mut peer, _| {
        let mut wait = wait.clone();
        async move {
            peer.head().await;
            wait.wait_for(|go| *go).await.unwrap();
            peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                .await;
            let said = peer.rest().await;
            peer.send(said.to_uppercase()).await;
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nall");
    visitor.send(ask).await;
    visitor.0.shutdown().await.unwrap();
    go.send(true).unwrap();
    assert!(visitor.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(visitor.rest().await, "ALL");
}
