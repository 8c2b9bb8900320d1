//! HTTP/2 with a real client: curl, which the test command installs (`apt-get install curl`).

use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;

use super::support::*;

async fn curl(gateway: &Gateway, args: &[&str], input: &[u8]) -> (Vec<u8>, String) {
    let port = gateway.addr.port();
    let mut child = tokio::process::Command::new("curl")
        .args(["-sS", "--http2-prior-knowledge", "--max-time", "20", "--connect-to"])
        .arg(format!("::127.0.0.1:{port}"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl is needed: apt-get install curl");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = async move {
        let _ = stdin.write_all(&input).await;
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.unwrap();
    (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn requests_over_h2_reach_an_h1_service() {
    let gateway = Gateway::start(Port::H2).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    let url = format!("http://{HOST}:8443//a?b");
    let (out, error) =
        curl(&gateway, &["-i", "-H", "TE: trailers", "-H", "Cookie: a=1", "-H", "Expect:", &url], b"").await;
    let out = String::from_utf8(out).unwrap();
    assert!(out.starts_with("HTTP/2 200"), "{out}{error}");
    assert!(out.contains("GET //a?b HTTP/1.1\r\n"), "{out}");
    assert!(out.contains(&format!("host: {HOST}:8443\r\n")), "{out}");
    assert!(out.contains("x-forwarded-proto: https\r\n") && out.contains("te: trailers\r\n"), "{out}");
    let (out, _) = curl(&gateway, &["-i", "http://none.example.test/"], b"").await;
    assert!(String::from_utf8_lossy(&out).contains("No active tunnel found"));
    let (out, error) = curl(&gateway, &["-I", "http://none.example.test/"], b"").await;
    assert!(out.starts_with(b"HTTP/2 502") && error.is_empty(), "{error}");
    let (out, _) = curl(&gateway, &["-i", "http://other.net/"], b"").await;
    assert!(out.starts_with(b"HTTP/2 421"));
}

#[tokio::test]
async fn bodies_of_many_megabytes_pass_whole_over_h2() {
    let gateway = Gateway::start(Port::H2).await;
    let service = Service::start(|mut peer, _| async move {
        let head = peer.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let length: u64 = length.parse().unwrap();
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
        let (read, mut write) = peer.0.split();
        tokio::io::copy(&mut tokio::io::AsyncReadExt::take(read, length), &mut write).await.unwrap();
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let body: Vec<u8> = (0..10_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let url = format!("http://{HOST}/");
    let (out, error) = curl(&gateway, &["-T", "-", "-H", "Content-Length: 10000000", &url], &body).await;
    assert!(out == body, "{} octets came back; {error}", out.len());
}

#[tokio::test]
async fn an_early_answer_reaches_an_h2_visitor() {
    let gateway = Gateway::start(Port::H2).await;
    let service = Service::start(|mut peer, _| async move {
        peer.head().await;
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
        let _ = peer.try_until("never").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let url = format!("http://{HOST}/");
    let (out, error) = curl(&gateway, &["-i", "-T", "-", &url], &vec![b'x'; 5_000_000]).await;
    assert!(
        out.starts_with(b"HTTP/2 413") && out.ends_with(b"big"),
        "{error}{}",
        String::from_utf8_lossy(&out)
    );
}

#[tokio::test]
async fn an_authority_that_differs_from_host_gets_400_over_h2() {
    let gateway = Gateway::start(Port::H2).await;
    let mut client = client(&gateway).await;
    let request = http::Request::builder()
        .uri("https://web-abc.example.test/")
        .header("host", "other.example.test")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 400);
}

#[tokio::test]
async fn draining_lets_h2_requests_finish() {
    let mut gateway = Gateway::start(Port::H2).await;
    let (service, go) = Service::in_two_parts().await;
    let _lease = gateway.offer(service.addr);
    let mut client = client(&gateway).await;
    let request = http::Request::builder()
        .uri(format!("https://{HOST}/"))
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    gateway.tasks.begin_drain();
    go.send(true).unwrap();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, "ok");
    assert_eq!(gateway.ends.recv().await, Some(crate::observe::Reason::Draining));
}

pub type Client = hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>;

pub async fn client(gateway: &Gateway) -> Client {
    client_with_window(gateway, 1 << 20).await
}

/// A client that takes so many octets of an answer before it is asked for them.
pub async fn client_with_window(gateway: &Gateway, window: u32) -> Client {
    let stream = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    let tasks = crate::net::Tasks::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let mut builder = hyper::client::conn::http2::Builder::new(tasks.clone());
    let (sender, connection) = builder.initial_stream_window_size(window).handshake(io).await.unwrap();
    tasks.spawn("h2 client", async move {
        let _ = connection.await;
    });
    sender
}

#[tokio::test]
async fn an_idle_h2_connection_is_closed_in_time() {
    let mut settings = settings();
    settings.http.idle_timeout = std::time::Duration::from_millis(50);
    let mut gateway = Gateway::with(Port::H2, settings).await;
    let mut client = client(&gateway).await;
    let request = http::Request::builder()
        .uri("https://api.example.test/healthz")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    let end = tokio::time::timeout(LIMIT, gateway.ends.recv()).await;
    assert_eq!(end, Ok(Some(crate::observe::Reason::Idle)));
}

#[tokio::test]
async fn an_offer_of_h2_without_tls_is_left_alone() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    let url = format!("http://{HOST}/");
    let (out, error) = curl(&gateway, &["--http2", &url, &url], b"").await;
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.matches("GET / HTTP/1.1\r\n").count(), 2, "{out}{error}");
    assert!(!out.contains("upgrade") && !out.contains("http2-settings"), "{out}");
}
