//! One session carries any number of channels, one after the other, and a channel that goes wrong
//! ends nothing but itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use russh::client::{self, ChannelOpenHandle, Handle, Msg, Session};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, decode_secret_key};
use russh::{Channel, ChannelOpenFailure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::agent::{Agent, OpenSsh, host, vector_key};
use crate::support::backend::{Backend, raw};
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::{Kept, Visitors};
use crate::support::visitor::{Curl, tls_async};
use crate::support::{SOON, poll};

/// An agent made of the SSH library's client, over TLS as our own agents come.
struct Library {
    handle: Handle<Answers>,
    runtime: tokio::runtime::Runtime,
    ended: Arc<AtomicUsize>,
}

/// Who closes a channel first.
#[derive(Clone, Copy)]
enum First {
    Agent,
    Gateway,
    /// The agent refuses every other channel, closes every third one unanswered, and writes after
    /// its own close and after the gateway's.
    Odd,
}

struct Answers {
    first: First,
    opened: usize,
    ended: Arc<AtomicUsize>,
}

impl client::Handler for Answers {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let (number, first, ended) = (self.opened, self.first, self.ended.clone());
        self.opened += 1;
        tokio::spawn(async move {
            match first {
                First::Odd if number % 3 == 0 => {
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
                First::Odd if number % 3 == 1 => {
                    reply.accept().await;
                    let _ = channel.close().await;
                    // After the close nothing of it counts any more.
                    let _ = channel.data(&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"[..]).await;
                    let _ = channel.eof().await;
                }
                _ => {
                    reply.accept().await;
                    answer(channel, !matches!(first, First::Gateway)).await;
                }
            }
            ended.fetch_add(1, Ordering::Relaxed);
        });
        Ok(())
    }
}

/// Answers one request as `/small` does, and closes, or waits for the gateway to.
async fn answer(channel: Channel<Msg>, close: bool) {
    let mut stream = channel.into_stream();
    let mut head = vec![0; 4096];
    let _ = stream.read(&mut head).await;
    let connection = if close { "Connection: close\r\n" } else { "" };
    let answer = format!("HTTP/1.1 200 OK\r\n{connection}Content-Length: 5\r\n\r\nsmall");
    let _ = stream.write_all(answer.as_bytes()).await;
    if close {
        let _ = stream.shutdown().await;
    }
    while matches!(stream.read(&mut head).await, Ok(1..)) {}
}

async fn log_in(gateway: &Gateway, answers: Answers) -> Handle<Answers> {
    let key = vector_key("ed25519a");
    let key = decode_secret_key(key["openssh_private_key"].as_str().expect("a key"), None).expect("a key");
    let stream = tls_async(gateway, "gw.test", &["ssh"]).await;
    let config = client::Config { channel_buffer_size: 4096, ..client::Config::default() };
    let mut handle = client::connect_stream(Arc::new(config), stream, answers).await.expect("SSH");
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(handle.authenticate_publickey("me", key).await.expect("answers").success());
    handle.streamlocal_forward("/web").await.expect("forwards");
    handle
}

impl Library {
    fn start(gateway: &Gateway, first: First) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let ended = Arc::<AtomicUsize>::default();
        let answers = Answers { first, opened: 0, ended: ended.clone() };
        let handle = runtime.block_on(log_in(gateway, answers));
        Self { handle, runtime, ended }
    }

    /// Channels that came and went.
    fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn assert_lives(&self, gateway: &Gateway) {
        self.runtime.block_on(self.handle.streamlocal_forward("/again")).expect("the session lives on");
        let ended = |record: &serde_json::Value| record["message"] == "session ended";
        assert!(!gateway.log().iter().any(ended), "{}", gateway.stderr());
    }
}

/// Opens and closes channels one after the other, and looks at memory when the first of them are
/// through and in the end.
fn many_channels(first: First, warm_up: usize, count: usize) {
    let mut setup = Setup::new();
    setup.set("http.upstream_idle_max", 0).set("log.filter", "info,oneport::http=warn");
    let gateway = setup.start();
    let agent = Library::start(&gateway, first);
    let mut kept = Kept::new(&gateway, &host("web"));
    let mut through = |count: usize| {
        while agent.ended() < count {
            kept.small();
        }
        gateway.memory()
    };
    let before = through(warm_up);
    let after = through(count);
    agent.assert_lives(&gateway);
    // The SSH library loses 3.5 KB of each channel that is closed in the wrong order.
    let most = (count - warm_up) as u64 * 512;
    let grown = after.saturating_sub(before);
    assert!(grown <= most.max(1 << 20), "grown by {grown} octets over {} channels", count - warm_up);
}

#[test]
fn memory_is_flat_over_channels_that_the_agent_closes_first() {
    many_channels(First::Agent, 500, 2000);
}

#[test]
fn memory_is_flat_over_channels_that_the_gateway_closes_first() {
    many_channels(First::Gateway, 500, 2000);
}

#[test]
fn long_memory_is_flat_over_10000_channels_that_the_agent_closes_first() {
    many_channels(First::Agent, 2000, 10_000);
}

#[test]
fn long_memory_is_flat_over_10000_channels_that_the_gateway_closes_first() {
    many_channels(First::Gateway, 2000, 10_000);
}

#[test]
fn refused_and_closed_channels_hang_nobody_and_end_nothing() {
    let gateway = Gateway::start();
    let agent = Library::start(&gateway, First::Odd);
    let url = format!("https://{}/small", host("web"));
    let mut answered = 0;
    for _ in 0..30 {
        let before = Instant::now();
        let response = Curl::new(&gateway).args(&["--max-time", "20"]).get(&url);
        assert!(matches!(response.status, 200 | 502), "{response:?}");
        assert!(response.status == 502 || response.text() == "small", "{response:?}");
        assert!(before.elapsed() < Duration::from_secs(5), "took {:?}", before.elapsed());
        answered += usize::from(response.status == 200);
    }
    assert!(answered >= 10, "{answered} of 30 were answered");
    poll("channels ended", SOON, || (agent.ended() >= 30).then_some(()));
    agent.assert_lives(&gateway);
}

/// How much of an upload is sent at most to see it stall.
const UPLOAD: usize = 64 << 20;

#[test]
fn an_upload_that_nobody_reads_stalls_only_itself() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    // Takes connections, and reads nothing from them.
    let deaf = raw(|stream, _| {
        std::thread::sleep(Duration::from_secs(600));
        drop(stream);
    });
    let _agent: Agent =
        OpenSsh::new(&gateway).forward("/web", backend.address()).forward("/deaf", deaf).start();
    let mut kept = Kept::new(&gateway, &host("web"));
    let before = kept.latency(200);
    let memory = gateway.memory();
    gateway.forget_peak();
    let visitors = Visitors::of(&gateway, &host("deaf")).eager();
    let mut uploads = Vec::new();
    for _ in 0..3 {
        let mut stream = visitors.upload("/", UPLOAD);
        // TLS looks for something to read as well when it cannot write.
        for limit in [std::net::TcpStream::set_read_timeout, std::net::TcpStream::set_write_timeout] {
            limit(&stream.sock, Some(Duration::from_millis(150))).expect("a socket");
        }
        let piece = vec![0; 64 * 1024];
        let mut sent = 0;
        while std::io::Write::write_all(&mut stream, &piece).is_ok() {
            sent += piece.len();
            assert!(sent < UPLOAD, "nobody reads, and yet all of it was taken");
        }
        uploads.push(stream);
    }
    let beside = kept.latency(200);
    let most = before.p99.mul_f64(1.5) + Duration::from_millis(20);
    assert!(beside.p99 <= most, "before {before:?}, beside {beside:?}");
    // Another upload through the same agent goes on.
    let file = gateway.path("upload");
    crate::support::backend::big_file(&file, 8);
    let data = format!("@{}", file.display());
    let url = format!("https://{}/upload", host("web"));
    let response = Curl::new(&gateway).args(&["--max-time", "20", "--data-binary", &data]).get(&url);
    assert_eq!(response.json()["sha256"], crate::support::backend::big_sha256(8));
    let grown = gateway.memory_peak().saturating_sub(memory);
    assert!(grown <= 16 << 20, "grown by {grown} octets");
}
