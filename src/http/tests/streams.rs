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
    let (service, mut has_left) = Service::that_tells().await;
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
