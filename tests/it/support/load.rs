//! Visitors who load the gateway: some who take little or nothing, and one who measures how long
//! small requests take meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use super::gateway::Gateway;
use super::machine::{Machine, TOO_BUSY};
use super::process::Process;
use super::visitor::{Curl, Tls, read_until, tls, tls_async_from, tls_config};
use super::{SOON, hex, poll};

/// Octets.
pub const MIB: u64 = 1 << 20;

/// What the socket of a visitor who takes little holds, so that the kernel takes little for them.
const SMALL_BUFFER: usize = 8 * 1024;
/// How long a visitor waits for octets that should come.
const READ_LIMIT: Duration = Duration::from_secs(60);
/// How often requests are measured again because the machine was too busy with something else.
const AGAIN: usize = 4;

/// Visitors of one tunnel that share what TLS needs.
#[derive(Clone)]
pub struct Visitors {
    address: SocketAddr,
    buffer: Option<usize>,
    host: String,
    tls: Arc<ClientConfig>,
}

/// A download that goes on only when it is told to.
pub struct Download {
    stream: Tls,
    /// What was read with the head, and not looked at yet.
    length: usize,
    context: aws_lc_rs::digest::Context,
    got: usize,
}

/// A connection for one request after another.
pub struct Kept {
    stream: Tls,
    host: String,
}

/// A visitor with one connection of HTTP/2.
pub struct H2 {
    host: String,
    sender: http2::SendRequest<Full<Bytes>>,
    runtime: tokio::runtime::Runtime,
}

/// An upload that has begun.
pub struct Upload(tokio::task::JoinHandle<hyper::Result<Bytes>>);

impl Upload {
    /// Whether its answer has come.
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

/// What small requests took.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub count: usize,
    pub p50: Duration,
    pub p99: Duration,
    /// The part of the machine that others took meanwhile, from 0 to 1.
    pub others: f64,
}

impl Visitors {
    /// Of the tunnel at `host`.
    pub fn of(gateway: &Gateway, host: &str) -> Self {
        let tls = Arc::new(tls_config(gateway.ca(), &["http/1.1"]));
        Self { address: gateway.address(), buffer: Some(SMALL_BUFFER), host: host.to_owned(), tls }
    }

    /// With buffers as large as the kernel likes.
    pub fn eager(mut self) -> Self {
        self.buffer = None;
        self
    }

    fn connect(&self, from: IpAddr) -> std::io::Result<Tls> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if let Some(buffer) = self.buffer {
            socket.set_recv_buffer_size(buffer)?;
        }
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect(&self.address.into())?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        stream.set_write_timeout(Some(READ_LIMIT))?;
        let name = ServerName::try_from(self.host.clone()).expect("a host name");
        let client = ClientConnection::new(self.tls.clone(), name).expect("a client");
        let mut stream = StreamOwned::new(client, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    /// Begins a download over a connection with a tiny buffer, and reads only the answer's head.
    ///
    /// # Errors
    /// When the gateway does not let the visitor in.
    pub fn download_from(&self, from: IpAddr, path: &str) -> std::io::Result<Download> {
        let mut stream = self.connect(from)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host)?;
        let head = read_until(&mut stream, "\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = content_length(&head);
        let context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        Ok(Download { stream, length, context, got: 0 })
    }

    /// Begins an upload of so many octets; the value takes them.
    #[track_caller]
    pub fn upload(&self, path: &str, octets: usize) -> Tls {
        let mut stream = self.connect(Ipv4Addr::LOCALHOST.into()).expect("the gateway lets visitors in");
        let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {octets}\r\n\r\n", self.host);
        stream.write_all(head.as_bytes()).expect("open");
        stream
    }

    /// The same as [`Visitors::download_from`], from this machine's usual address.
    #[track_caller]
    pub fn download(&self, path: &str) -> Download {
        self.download_from(Ipv4Addr::LOCALHOST.into(), path).expect("the gateway lets visitors in")
    }
}

/// Moves octets one way as fast as they go, until the value is dropped.
pub struct Bulk {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// More than any test moves.
const ENDLESS_MB: usize = 1 << 20;

impl Bulk {
    /// A download that is read as fast as it comes.
    pub fn down(visitors: &Visitors) -> Self {
        let mut download = visitors.clone().eager().download(&format!("/big?mb={ENDLESS_MB}"));
        download.take(1 << 20).expect("it comes");
        Self::run(move || download.take(64 * 1024).is_ok())
    }

    /// An upload.
    pub fn up(visitors: &Visitors) -> Self {
        let mut upload = visitors.clone().eager().upload("/upload", ENDLESS_MB << 20);
        let piece = vec![b'u'; 64 * 1024];
        for _ in 0..16 {
            upload.write_all(&piece).expect("it is taken");
        }
        Self::run(move || upload.write_all(&piece).is_ok())
    }

    fn run(mut step: impl FnMut() -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                assert!(step(), "the bulk transfer broke off");
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the bulk transfer broke off");
        }
    }
}

fn content_length(head: &str) -> usize {
    head.lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or_else(|| panic!("no length in {head}"))
}

impl Download {
    /// Whether all of it was.
    pub fn is_whole(&self) -> bool {
        self.got == self.length
    }

    /// Reads about this much, or to the end.
    ///
    /// # Errors
    /// When it breaks off.
    pub fn take(&mut self, octets: usize) -> std::io::Result<()> {
        let end = (self.got + octets).min(self.length);
        let mut piece = vec![0; 32 * 1024];
        while self.got < end {
            let most = piece.len().min(end - self.got);
            match self.stream.read(&mut piece[..most])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => {
                    self.context.update(&piece[..count]);
                    self.got += count;
                }
            }
        }
        Ok(())
    }

    /// Reads at `rate` octets a second, or as fast as it comes, to the end; the value is the
    /// SHA-256 of all.
    #[track_caller]
    pub fn finish(mut self, rate: Option<usize>) -> String {
        let (start, before) = (Instant::now(), self.got);
        while !self.is_whole() {
            if let Err(error) = self.take(64 * 1024) {
                panic!("{error} after {} of {} octets", self.got, self.length);
            }
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64((self.got - before) as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        hex(self.context.finish().as_ref())
    }
}

/// Downloads 64 MiB in so many parts at once, each through a connection of its own.
#[track_caller]
pub fn download_many(gateway: &Gateway, host: &str, count: usize) {
    let megabytes = 64 / count.clamp(1, 64) as u64;
    let url = format!("https://{host}/big?mb={megabytes}");
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let mut curl = Curl::new(gateway).http1().build(&url);
            Process::start(curl.args(["-o", "/dev/null", "-w", "%{http_code} %{size_download}"]))
        })
        .collect();
    for mut call in calls {
        let expected = format!("200 {}", megabytes * MIB);
        assert_eq!(call.finish(Duration::from_secs(60)).stdout, expected, "{count} at once");
    }
}

impl H2 {
    /// Connects to the tunnel at `host`; each stream may hold `window` octets that were not taken.
    #[track_caller]
    pub fn connect(gateway: &Gateway, host: &str, window: Option<u32>) -> Self {
        Self::connect_from(Ipv4Addr::LOCALHOST.into(), gateway, host, window)
    }

    /// The same from another address.
    #[track_caller]
    pub fn connect_from(from: IpAddr, gateway: &Gateway, host: &str, window: Option<u32>) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let sender = runtime.block_on(async {
            let stream = TokioIo::new(tls_async_from(from, gateway, host, &["h2"]).await);
            let mut builder = http2::Builder::new(TokioExecutor::new());
            let (sender, connection) =
                builder.initial_stream_window_size(window).handshake(stream).await.expect("h2");
            tokio::spawn(connection);
            sender
        });
        Self { host: host.to_owned(), sender, runtime }
    }

    /// Asks, and waits for the head of the answer only.
    #[track_caller]
    pub fn get(&self, path: &str) -> Incoming {
        self.get_many(path, 1).remove(0)
    }

    /// Asks so many times at once, and leaves before the answers' end; how many had this status.
    #[track_caller]
    pub fn statuses(&self, path: &str, count: usize, status: u16) -> u64 {
        self.ask(path, count).iter().filter(|answer| answer.status() == status).count() as u64
    }

    /// Asks so many times at once.
    #[track_caller]
    pub fn get_many(&self, path: &str, count: usize) -> Vec<Incoming> {
        self.ask(path, count).into_iter().map(http::Response::into_body).collect()
    }

    /// Asks so many times at once, and waits for the heads of the answers only.
    #[track_caller]
    pub fn ask(&self, path: &str, count: usize) -> Vec<http::Response<Incoming>> {
        let url = format!("https://{}{path}", self.host);
        let ask = || {
            let request = http::Request::get(&url).body(Full::default()).expect("a request");
            self.sender.clone().send_request(request)
        };
        let answers = futures_util::future::try_join_all((0..count).map(|_| ask()));
        let answers = self.runtime.block_on(async { tokio::time::timeout(SOON, answers).await });
        answers.expect("answers in time").expect("answers")
    }

    /// Begins an upload to `host`, which need not be the one connected to; the value is its answer.
    pub fn upload(&self, host: &str, body: Bytes) -> Upload {
        let request = http::Request::post(format!("https://{host}/upload")).body(Full::new(body));
        let answer = self.sender.clone().send_request(request.expect("a request"));
        Upload(self.runtime.spawn(async move { answer.await?.collect().await.map(|all| all.to_bytes()) }))
    }

    /// Waits for the answer to an upload.
    #[track_caller]
    pub fn uploaded(&self, upload: Upload) -> hyper::Result<Bytes> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(SOON, upload.0).await });
        answer.expect("an answer in time").expect("no panic")
    }

    /// Takes an answer to its end.
    ///
    /// # Errors
    /// When it breaks off.
    pub fn rest(&self, answer: Incoming) -> hyper::Result<Bytes> {
        self.runtime.block_on(answer.collect()).map(|whole| whole.to_bytes())
    }
}

impl Kept {
    /// Connects as a visitor of `host`.
    #[track_caller]
    pub fn new(gateway: &Gateway, host: &str) -> Self {
        let stream = tls(gateway, Some(host), &["http/1.1"]).expect("connects");
        Self { stream, host: host.to_owned() }
    }

    /// Asks for `/small`, and says how long it took.
    #[track_caller]
    pub fn small(&mut self) -> Duration {
        let before = Instant::now();
        let request = format!("GET /small HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.stream.write_all(request.as_bytes()).expect("open");
        let mut answer = Vec::new();
        let mut piece = [0; 1024];
        while !answer.ends_with(b"small") {
            match self.stream.read(&mut piece).expect("an answer") {
                0 => panic!("ended after {:?}", String::from_utf8_lossy(&answer)),
                count => answer.extend_from_slice(&piece[..count]),
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&answer));
        before.elapsed()
    }

    /// What `count` requests took.
    #[track_caller]
    pub fn latency(&mut self, count: usize) -> Latency {
        let machine = Machine::look();
        Latency::of((0..count).map(|_| self.small()).collect(), &machine)
    }

    /// What `count` requests took when the machine was not too busy to tell; where it always is, when
    /// it was least.
    #[track_caller]
    pub fn calm_latency(&mut self, count: usize) -> Latency {
        let mut calmest = self.latency(count);
        for _ in 0..AGAIN {
            if calmest.is_telling() {
                break;
            }
            let next = self.latency(count);
            calmest = if next.others < calmest.others { next } else { calmest };
        }
        calmest
    }

    /// What requests took while `goes_on` held, of which there must be some hundreds for it to say
    /// anything.
    #[track_caller]
    pub fn latency_while(&mut self, goes_on: impl Fn() -> bool) -> Latency {
        let (mut took, machine) = (Vec::new(), Machine::look());
        while goes_on() {
            took.push(self.small());
        }
        Latency::of(took, &machine)
    }
}

impl Latency {
    /// Of these, since a look at the machine.
    pub fn of(mut took: Vec<Duration>, since: &Machine) -> Self {
        took.sort_unstable();
        let count = took.len();
        assert!(count > 0, "nothing was measured");
        Self {
            count,
            p50: took[count / 2],
            p99: took[(count * 99 / 100).min(count - 1)],
            others: since.others(),
        }
    }

    /// Whether the machine had enough time for this to say anything.
    pub fn is_telling(&self) -> bool {
        self.others <= TOO_BUSY
    }

    /// The part of the machine that was left: everything takes as many times longer as that is less,
    /// but never more than twice as long, or nothing would ever be too long.
    pub fn left(&self) -> f64 {
        1.0 - self.others.min(TOO_BUSY)
    }

    /// Small requests may take this much longer beside others' stalled downloads; and as many times
    /// longer as the machine had less time for them.
    #[track_caller]
    pub fn assert_hardly_more_than(&self, before: &Self) {
        assert!(before.count >= 500 && self.count >= 500, "too few to tell: {before:?}, {self:?}");
        let most = |before: Duration| (before.mul_f64(1.5) + Duration::from_millis(20)).div_f64(self.left());
        let is_little = self.p99 <= most(before.p99) && self.p50 <= most(before.p50);
        let verdict = if self.is_telling() { "too long" } else { "the machine is too busy to tell" };
        assert!(is_little, "{verdict}: before {before:?}, now {self:?}");
    }
}

/// Waits until what the gateway keeps on disk has grown to `least`, and no further for a while.
#[track_caller]
pub fn settled(gateway: &Gateway, least: u64) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    poll("files that no longer grow", 5 * SOON, || {
        let (_, octets) = gateway.unnamed_files();
        if octets != last {
            (last, since) = (octets, Instant::now());
        }
        (octets >= least && since.elapsed() > Duration::from_millis(300)).then_some(octets)
    })
}

/// The middle one of several measures.
pub fn median(mut of: Vec<Duration>) -> Duration {
    of.sort_unstable();
    of[of.len() / 2]
}
