//! Bodies stream both ways, and nothing waits for their end.

use tokio::io::AsyncWriteExt as _;

use super::support::*;

#[tokio::test]
async fn events_pass_one_by_one() {
    let gateway = Gateway::start(Port::Plain).await;
    let (go, wait) = tokio::sync::watch::channel(0);
    let service = Service::start(move |mut peer, _| {
        let mut wait = wait.clone();
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
            for number in 1..4 {
                wait.wait_for(|go| *go >= number).await.unwrap();
                peer.send(format!("data: {number}\n\n")).await;
            }
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    visitor.head().await;
    for number in 1..4 {
        go.send(number).unwrap();
        visitor.until(&format!("data: {number}\n\n\r\n")).await;
    }
    visitor.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn uploads_pass_chunk_by_chunk_with_their_trailers() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, _| async move {
        let head = peer.head().await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: sum\r\n\r\n").await;
        peer.until("one\r\n").await;
        peer.send("3\r\nOne\r\n").await;
        let rest = peer.until("\r\n\r\n").await;
        assert!(rest.ends_with("3\r\ntwo\r\n0\r\nsum: 2\r\n\r\n"), "{rest}");
        peer.send("3\r\nTwo\r\n0\r\nSum: 2\r\n\r\n").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor
        .send(format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nConnection: te\r\nTrailer: sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
        ))
        .await;
    visitor.until("3\r\nOne\r\n").await;
    visitor.send("3\r\ntwo\r\n0\r\nSum: 2\r\n\r\n").await;
    let rest = visitor.until("\r\n\r\n").await;
    assert!(rest.ends_with("3\r\nTwo\r\n0\r\nsum: 2\r\n\r\n"), "{rest}");
}

#[tokio::test]
async fn trailers_that_were_not_named_are_left_out_and_the_message_stays_whole() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, _| async move {
        peer.head().await;
        let body = peer.until("\r\n\r\n").await;
        assert_eq!(body, "2\r\nup\r\n0\r\n\r\n");
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndown\r\n0\r\nSum: 2\r\n\r\n")
            .await;
        let _ = peer.try_until("never").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor
        .send(format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nConnection: te\r\n\
             Transfer-Encoding: chunked\r\n\r\n2\r\nup\r\n0\r\nSum: 2\r\n\r\n"
        ))
        .await;
    visitor.head().await;
    assert_eq!(visitor.until("\r\n\r\n").await, "4\r\ndown\r\n0\r\n\r\n");
}

#[tokio::test]
async fn a_hundred_is_sent_when_the_service_takes_the_body() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, _| async move {
        peer.head().await;
        peer.until("body").await;
        peer.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    let head =
        |host| format!("PUT / HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    visitor.send(head(HOST)).await;
    assert_eq!(visitor.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    visitor.send("body").await;
    assert!(visitor.head().await.starts_with("HTTP/1.1 201 Created\r\n"));
    // No tunnel: the answer comes at once, and nobody asks for the body.
    let answer = gateway.ask(&head("none.example.test")).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::says("HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n").await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    for _ in 0..2 {
        visitor.send(format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert!(visitor.head().await.contains("content-length: 77\r\n"));
    }
    assert_eq!(service.count(), 1);
}

#[tokio::test]
async fn an_early_answer_to_an_upload_reaches_the_visitor_and_ends_reuse() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, number| async move {
        let head = peer.head().await;
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
        assert!(number > 0 || head.starts_with("POST"), "{head}");
        // Takes nothing more; stays open until the gateway ends it.
        let _ = peer.try_until("never").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000000\r\n\r\n")).await;
    visitor.send(vec![b'x'; 100_000]).await;
    let answer = visitor.until("big").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(visitor.rest().await, "");
    gateway.get("/", "").await;
    assert_eq!(service.count(), 2);
}

#[tokio::test]
async fn a_cut_answer_is_seen_as_cut() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, _| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let answer = gateway.get("/", "").await;
    assert!(answer.ends_with("4\r\nhalf\r\n"), "an end was made up: {answer}");
}

#[tokio::test]
async fn a_visitor_who_leaves_ends_the_request_to_the_service() {
    let gateway = Gateway::start(Port::Plain).await;
    let (left, mut has_left) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let left = left.clone();
        async move {
            peer.head().await;
            left.send("asked").unwrap();
            let _ = peer.try_until("never").await;
            left.send("left").unwrap();
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("GET /poll HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(has_left.recv().await, Some("asked"));
    drop(visitor);
    let end = tokio::time::timeout(std::time::Duration::from_secs(5), has_left.recv()).await;
    assert_eq!(end.unwrap(), Some("left"));
}

#[tokio::test]
async fn an_answer_counts_even_when_the_service_closes_on_the_upload() {
    for _ in 0..10 {
        let gateway = Gateway::start(Port::Plain).await;
        let service = Service::start(|mut peer, _| async move {
            peer.head().await;
            peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
            peer.0.shutdown().await.unwrap();
        })
        .await;
        let _lease = gateway.offer(service.addr);
        let mut visitor = gateway.visitor().await;
        visitor.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n")).await;
        visitor.send(vec![b'x'; 1_000_000]).await;
        let answer = visitor.until("big").await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
}

#[tokio::test]
async fn a_visitor_who_stops_reading_stops_the_service() {
    const LENGTH: u64 = 200_000_000;
    let gateway = Gateway::start(Port::Plain).await;
    let (stalled, mut stalls) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let stalled = stalled.clone();
        async move {
            peer.head().await;
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
            let (piece, mut sent) = (vec![b'x'; 50_000], 0);
            while sent < LENGTH {
                let mut write = std::pin::pin!(peer.0.write_all(&piece));
                if tokio::time::timeout(std::time::Duration::from_millis(300), &mut write).await.is_err() {
                    let _ = stalled.send(sent);
                    if write.await.is_err() {
                        return;
                    }
                }
                sent += piece.len() as u64;
            }
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    visitor.head().await;
    let sent = stalls.recv().await.expect("the service was never stopped");
    assert!(sent < LENGTH / 4, "{sent} octets were taken for a visitor who reads none");
    drop(visitor);
}

#[tokio::test]
async fn kept_connections_end_with_their_tunnel() {
    let gateway = Gateway::start(Port::Plain).await;
    let (closed, mut closings) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let closed = closed.clone();
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            let _ = peer.try_until("never").await;
            closed.send(()).unwrap();
        }
    })
    .await;
    let lease = gateway.offer(service.addr);
    gateway.get("/", "").await;
    assert!(closings.try_recv().is_err(), "the connection was not kept");
    drop(lease);
    let end = tokio::time::timeout(std::time::Duration::from_secs(5), closings.recv()).await;
    assert_eq!(end, Ok(Some(())));
}

/// A gateway that ends stalled uploads soon; what its service was asked is told, and so is when
/// a visitor stops. The service answers `/later` when it is told to go on.
async fn impatient(
    port: Port,
) -> (
    Gateway,
    crate::registry::Lease,
    Service,
    tokio::sync::watch::Sender<bool>,
    tokio::sync::mpsc::UnboundedReceiver<&'static str>,
) {
    let mut settings = settings();
    settings.http.idle_timeout = std::time::Duration::from_millis(300);
    let gateway = Gateway::with(port, settings).await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let (told, tells) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let (mut wait, told) = (wait.clone(), told.clone());
        async move {
            let head = peer.head().await;
            told.send("asked").unwrap();
            if head.starts_with("POST /begun ") {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
                wait.wait_for(|go| *go).await.unwrap();
                peer.send("0\r\n\r\n").await;
            } else if head.starts_with("POST /later ") {
                wait.wait_for(|go| *go).await.unwrap();
                read_to_end_mark(&mut peer).await;
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            } else {
                let _ = peer.try_until("never").await;
                told.send("left").unwrap();
            }
        }
    })
    .await;
    let lease = gateway.offer(service.addr);
    (gateway, lease, service, go, tells)
}

async fn stall(gateway: &Gateway) -> String {
    gateway.ask(&format!("POST /stall HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500\r\n\r\nabc")).await
}

#[tokio::test]
async fn a_stalled_upload_ends_in_time_and_lets_go_of_the_service() {
    let (gateway, _lease, _service, _go, mut tells) = impatient(Port::Plain).await;
    let answer = stall(&gateway).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("upload-stalled"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(tells.recv().await, Some("asked"));
    let end = tokio::time::timeout(LIMIT, tells.recv()).await;
    assert_eq!(end, Ok(Some("left")));
}

#[tokio::test]
async fn a_stalled_upload_over_h2_ends_in_time() {
    use futures_util::StreamExt as _;
    let (gateway, _lease, _service, _go, mut tells) = impatient(Port::H2).await;
    let stream = tokio::net::TcpStream::connect(gateway.addr).await.unwrap();
    let tasks = crate::net::Tasks::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(tasks.clone(), io).await.unwrap();
    tasks.spawn("h2 client", async move {
        let _ = connection.await;
    });
    let first = http_body::Frame::data(bytes::Bytes::from_static(b"abc"));
    let frames =
        futures_util::stream::iter([Ok::<_, std::io::Error>(first)]).chain(futures_util::stream::pending());
    let request = http::Request::post(format!("https://{HOST}/stall"))
        .body(http_body_util::StreamBody::new(frames))
        .unwrap();
    let answer = tokio::time::timeout(LIMIT, sender.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.status(), 408);
    assert_eq!(tells.recv().await, Some("asked"));
    let end = tokio::time::timeout(LIMIT, tells.recv()).await;
    assert_eq!(end, Ok(Some("left")));
}

/// Reads in large pieces, for large bodies, up to `END`.
async fn read_to_end_mark(peer: &mut Visitor) {
    let mut piece = vec![0; 256 * 1024];
    let mut tail = Vec::new();
    while !tail.ends_with(b"END") {
        let length = tokio::io::AsyncReadExt::read(&mut peer.0, &mut piece).await.unwrap();
        assert!(length > 0, "ended before its mark");
        tail.extend_from_slice(&piece[length.saturating_sub(3)..length]);
        tail.drain(..tail.len() - tail.len().min(3));
    }
}

#[tokio::test]
async fn slow_services_and_long_polls_are_not_taken_for_stalled_uploads() {
    let (gateway, _lease, _service, go, mut tells) = impatient(Port::Plain).await;
    // Sent whole; the service takes its time.
    let mut poll = gateway.visitor().await;
    poll.send(format!("POST /later HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\n\r\nEND")).await;
    // Answered already, while the upload is open.
    let mut begun = gateway.visitor().await;
    begun.send(format!("POST /begun HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500\r\n\r\nabc")).await;
    begun.until("begun\r\n").await;
    // More than fits on the way, and the service takes nothing of it.
    let mut large = gateway.visitor().await;
    let length = 40_000_000;
    large.send(format!("POST /later HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n")).await;
    let (mut read, mut write) = large.0.into_split();
    let upload = async {
        write.write_all(&vec![b'x'; length - 3]).await.unwrap();
        write.write_all(b"END").await.unwrap();
    };
    let others = async {
        for _ in 0..3 {
            assert_eq!(tells.recv().await, Some("asked"));
        }
        for _ in 0..2 {
            assert!(stall(&gateway).await.starts_with("HTTP/1.1 408 "));
        }
        go.send(true).unwrap();
        poll.until("ok").await;
        begun.until("0\r\n\r\n").await;
    };
    tokio::join!(upload, others);
    let mut seen = [0; 15];
    tokio::io::AsyncReadExt::read_exact(&mut read, &mut seen).await.unwrap();
    assert_eq!(&seen, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_kept_connection_that_its_service_closes_is_let_go_at_once() {
    let gateway = Gateway::start(Port::Plain).await;
    let (close, closing) = tokio::sync::watch::channel(false);
    let (told, mut is_closed) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let (mut closing, told) = (closing.clone(), told.clone());
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            closing.wait_for(|now| *now).await.unwrap();
            peer.0.shutdown().await.unwrap();
            told.send(peer.rest().await).unwrap();
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    // Stays, so that the end is not the visitor's.
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(visitor.until("ok").await.starts_with("HTTP/1.1 200 "));
    close.send(true).unwrap();
    let soon = tokio::time::timeout(LIMIT / 4, is_closed.recv()).await;
    assert_eq!(soon.expect("it lies about until its idle time is over").as_deref(), Some(""));
}

#[tokio::test]
async fn an_upload_goes_on_while_the_visitor_takes_nothing_of_an_early_answer() {
    const UP: usize = 8 << 20;
    const DOWN: usize = 32 << 20;
    let gateway = Gateway::start(Port::Plain).await;
    let (told, mut is_up) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let told = told.clone();
        async move {
            peer.head().await;
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {DOWN}\r\n\r\n")).await;
            let (mut read, mut write) = peer.0.split();
            let down = async { write.write_all(&vec![b'd'; DOWN]).await.unwrap() };
            let up = async {
                let mut rest = tokio::io::AsyncReadExt::take(&mut read, UP as u64);
                let count = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.unwrap();
                told.send(count).unwrap();
            };
            tokio::join!(down, up);
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {UP}\r\n\r\nxx")).await;
    visitor.head().await;
    // More than all buffers on the way hold, and not one octet of the answer's body is read.
    let sent = tokio::time::timeout(LIMIT, visitor.send(vec![b'u'; UP - 2]));
    sent.await.expect("the upload waits for the answer to be read");
    assert_eq!(is_up.recv().await, Some(UP as u64));
    assert_eq!(visitor.rest().await.len(), DOWN);
}
