//! Visitors who take nothing: what was held for them is let go, and nobody else loses anything.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::h2::{Client, client_with_window};
use super::support::*;
use crate::net::{ByteStream, VisitorAddr};
use crate::observe::Reason;
use crate::registry::{BoxFuture, Cut, OpenError, Opener};

/// How long a visitor may take nothing, where that matters.
const SOON: Duration = Duration::from_millis(300);

/// A gateway that lets visitors take nothing for [`SOON`].
async fn impatient(port: Port) -> Gateway {
    let mut settings = settings();
    settings.http.send_timeout = SOON;
    Gateway::with(port, settings).await
}

async fn get(client: &mut Client, path: &str) -> http::Response<Incoming> {
    let request = http::Request::get(format!("https://{HOST}{path}")).body(Empty::<Bytes>::new()).unwrap();
    tokio::time::timeout(LIMIT, client.send_request(request)).await.unwrap().unwrap()
}

/// Answers `/sized` and `/chunked` with 5000 octets, `/large` with more than may wait, and
/// everything else with none; tells when a connection ends.
async fn service() -> (Service, mpsc::UnboundedReceiver<()>) {
    let (left, has_left) = mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let left = left.clone();
        async move {
            while let Ok(head) = peer.try_until("\r\n\r\n").await {
                let body = "x".repeat(5000);
                let answer = if head.starts_with("GET /sized ") {
                    format!("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{body}")
                } else if head.starts_with("GET /chunked ") {
                    format!(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{body}\r\n0\r\n\r\n"
                    )
                } else if head.starts_with("GET /large ") {
                    let body = "x".repeat(4_000_000);
                    format!("HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n{body}")
                } else {
                    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
                };
                if peer.0.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
            let _ = left.send(());
        }
    })
    .await;
    (service, has_left)
}

#[tokio::test]
async fn streams_with_no_window_are_ended_in_time_and_their_connection_goes_on() {
    let gateway = impatient(Port::H2).await;
    let (service, mut has_left) = service().await;
    let _lease = gateway.offer(service.addr);
    let mut client = client_with_window(&gateway, 0).await;
    let mut stalled = Vec::new();
    for _ in 0..5 {
        stalled.push(get(&mut client, "/chunked").await);
    }
    let own = http::Request::get("https://none.example.test/").body(Empty::new()).unwrap();
    stalled.push(client.send_request(own).await.unwrap());
    for _ in 0..5 {
        tokio::time::timeout(LIMIT, has_left.recv()).await.expect("a connection is still held").unwrap();
    }
    gateway.ended(Reason::VisitorTooSlow, 6).await;
    for answer in stalled {
        assert!(answer.into_body().collect().await.is_err(), "an answer was passed off as whole");
    }
    assert_eq!(get(&mut client, "/none").await.status(), 200);
}

#[tokio::test]
async fn an_answer_that_was_read_whole_holds_no_connection_to_its_service() {
    let gateway = Gateway::start(Port::H2).await;
    let (service, _has_left) = service().await;
    let _lease = gateway.offer(service.addr);
    let mut client = client_with_window(&gateway, 0).await;
    let mut stalled = Vec::new();
    for _ in 0..5 {
        stalled.push(get(&mut client, "/sized").await);
        // What goes back to be used again does so when the answer's task has had its turn.
        get(&mut client, "/none").await;
    }
    assert!(service.count() < 4, "{} connections", service.count());
    drop(stalled);
}

#[tokio::test]
async fn a_visitor_who_takes_an_answer_slowly_gets_all_of_it() {
    let gateway = impatient(Port::H2).await;
    let (service, _has_left) = service().await;
    let _lease = gateway.offer(service.addr);
    let mut client = client_with_window(&gateway, 65_535).await;
    let mut body = get(&mut client, "/large").await.into_body();
    let (mut length, mut paused) = (0, 0);
    while let Some(frame) = body.frame().await {
        length += frame.expect("a visitor who reads is not cut").into_data().unwrap().len();
        // A pause that is shorter than the limit, now and then: together they are longer.
        if length / 500_000 > paused {
            paused = length / 500_000;
            tokio::time::sleep(SOON / 3).await;
        }
    }
    assert_eq!(length, 4_000_000);
    gateway.ended(Reason::Answered, 1).await;
}

/// Opens TCP connections, and keeps what tells of their being cut.
struct Cuttable(std::net::SocketAddr, Arc<Mutex<Vec<Cut>>>);

impl Opener for Cuttable {
    fn open(&self, visitor: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        ToTcp(self.0).open(visitor)
    }

    fn open_with(&self, visitor: VisitorAddr, cut: Cut) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        self.1.lock().push(cut);
        self.open(visitor)
    }
}

#[tokio::test]
async fn a_cut_stream_leaves_those_that_are_on_their_way() {
    let gateway = Gateway::start(Port::H2).await;
    let (service, _has_left) = service().await;
    let cuts = Arc::<Mutex<Vec<Cut>>>::default();
    let _lease = gateway.offer_with(Arc::new(Cuttable(service.addr, cuts.clone())), |_| {});
    let mut client = client_with_window(&gateway, 1000).await;
    // Handed over whole, while most of it is still to be taken.
    let sized = get(&mut client, "/sized").await;
    gateway.ended(Reason::Answered, 1).await;
    let large = get(&mut client, "/large").await;
    for cut in cuts.lock().iter() {
        cut.tell(Reason::NoSpace);
    }
    gateway.ended(Reason::NoSpace, 1).await;
    assert!(large.into_body().collect().await.is_err(), "the answer was passed off as whole");
    let sized = sized.into_body().collect().await.expect("another's answer is not lost");
    assert_eq!(sized.to_bytes().len(), 5000);
}

#[tokio::test]
async fn a_connection_whose_answer_was_cut_ends_for_the_same_reason() {
    for why in [Reason::NoSpace, Reason::VisitorTooSlow] {
        let mut gateway = Gateway::start(Port::Plain).await;
        let (service, _has_left) = service().await;
        let cuts = Arc::<Mutex<Vec<Cut>>>::default();
        let _lease = gateway.offer_with(Arc::new(Cuttable(service.addr, cuts.clone())), |_| {});
        let mut visitor = gateway.visitor().await;
        visitor.send(format!("GET /large HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert!(visitor.head().await.starts_with("HTTP/1.1 200 "));
        for cut in cuts.lock().iter() {
            cut.tell(why);
        }
        gateway.ended(why, 1).await;
        assert_eq!(tokio::time::timeout(LIMIT, gateway.ends.recv()).await.expect("in time"), Some(why));
    }
}

#[tokio::test]
async fn a_switched_stream_that_is_cut_ends_on_both_sides() {
    let gateway = Gateway::start(Port::Plain).await;
    let (left, mut has_left) = mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let left = left.clone();
        async move {
            peer.head().await;
            peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n")
                .await;
            // More than the visitor takes.
            while peer.0.write_all(&[b'x'; 65_536]).await.is_ok() {}
            let _ = left.send(());
        }
    })
    .await;
    let cuts = Arc::<Mutex<Vec<Cut>>>::default();
    let _lease = gateway.offer_with(Arc::new(Cuttable(service.addr, cuts.clone())), |_| {});
    let mut visitor = gateway.visitor().await;
    visitor
        .send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n"))
        .await;
    assert!(visitor.head().await.starts_with("HTTP/1.1 101 "));
    for cut in cuts.lock().iter() {
        cut.tell(Reason::NoSpace);
    }
    gateway.ended(Reason::NoSpace, 1).await;
    tokio::time::timeout(LIMIT, has_left.recv()).await.expect("the service's side is still open");
    let mut sink = vec![0; 65_536];
    let end =
        async { while matches!(tokio::io::AsyncReadExt::read(&mut visitor.0, &mut sink).await, Ok(1..)) {} };
    tokio::time::timeout(LIMIT, end).await.expect("the visitor's side is still open");
}

/// Opens TCP connections whose end means that what was to come could not be kept.
struct FullDisk(std::net::SocketAddr);

struct EndIsFullDisk(tokio::net::tcp::OwnedReadHalf);

impl AsyncRead for EndIsFullDisk {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.0).poll_read(cx, buf);
        match result {
            Poll::Ready(Ok(())) if buf.filled().len() == before => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full")))
            }
            other => other,
        }
    }
}

impl Opener for FullDisk {
    fn open(&self, _: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        let addr = self.0;
        Box::pin(async move {
            let (read, write) = TcpStream::connect(addr).await.unwrap().into_split();
            Ok(Box::new(tokio::io::join(EndIsFullDisk(read), write)) as ByteStream)
        })
    }
}

#[tokio::test]
async fn an_answer_that_could_not_be_kept_says_so() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, _| async move {
        let head = peer.head().await;
        let answer = match head.contains("Upgrade: tcp") || head.contains("upgrade: tcp") {
            true => "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n",
            false => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        };
        peer.send(answer).await;
    })
    .await;
    let _lease = gateway.offer_with(Arc::new(FullDisk(service.addr)), |_| {});
    gateway.get("/", "").await;
    gateway.ended(Reason::NoSpace, 1).await;
    gateway
        .ask(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n"))
        .await;
    gateway.ended(Reason::NoSpace, 2).await;
}
