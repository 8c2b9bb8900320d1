//! Uploads that stall, and those that only wait.

use tokio::io::AsyncWriteExt as _;

use super::support::*;

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
