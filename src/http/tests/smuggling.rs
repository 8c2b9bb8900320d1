//! What could be read in two ways gets 400, and the connection closes.

use super::support::*;

#[tokio::test]
async fn requests_that_smuggle_are_refused_and_the_connection_closes() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    for head in [
        "Host: web-abc.example.test\r\nHost: web-abc.example.test",
        "X: y",
        "Host: web-abc.example.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        "Host: web-abc.example.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 4",
        "Host: web-abc.example.test\r\nTransfer-Encoding: gzip, chunked",
        "Host: web-abc.example.test\r\nTransfer-Encoding: xchunked",
        "Host: web-abc.example.test\r\nTransfer-Encoding: chunked, identity",
        "Host: web-abc.example.test\r\nContent-Length: 4\r\nContent-Length: 5",
        "Host: web-abc.example.test\r\nContent-Length: -4",
        "Host: web-abc.example.test\r\nX: y\n z: 1",
        "Host: web-abc.example.test\nX: y",
        "Host: web-abc.example.test\r\nX: y\r\n\tz",
        "Host: web-abc.example.test\r\nContent-Length : 4",
        "Host: a b",
        "Host: user@web-abc.example.test",
    ] {
        let request = format!("POST / HTTP/1.1\r\n{head}\r\n\r\nGET /next HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let answer = gateway.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head:?}: {answer}");
        assert!(answer.contains("reason: bad-request\n"), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?} was read on: {answer}");
    }
    let request =
        format!("GET http://other.example.test/ HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    assert!(gateway.ask(&request).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(service.count(), 0);
}

#[tokio::test]
async fn a_refused_head_is_answered_in_its_turn() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    let request = format!("GET /good HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET / HTTP/1.1\nHost: {HOST}\r\n\r\n");
    let answer = gateway.ask(&request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("GET /good"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
}

#[tokio::test]
async fn bad_chunking_gets_400() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, _| async move {
        // Reads the body as long as there is one.
        let _ = peer.try_until("never").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    for body in ["zz\r\n", "5\nhello\r\n0\r\n\r\n", "3\r\nabcd\r\n", "0\r\nA : b\r\n\r\n"] {
        let request = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let answer = gateway.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{body:?}: {answer}");
    }
}

#[tokio::test]
async fn heads_have_a_size_and_a_time() {
    let mut settings = settings();
    settings.limits.handshake_timeout = std::time::Duration::from_millis(50);
    let gateway = Gateway::with(Port::Plain, settings).await;
    let big = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    assert!(gateway.ask(&big).await.starts_with("HTTP/1.1 431 "));
    let slow = gateway.ask("GET / HTTP/1.1\r\nHos").await;
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
}
