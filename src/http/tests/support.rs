//! A gateway's HTTP room behind a real listener, services behind real sockets, raw visitors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::access::{AccessLevel, Admission, Bounds, Identity, Issuers, Sessions};
use crate::certs::Challenges;
use crate::config::*;
use crate::http::{Connection, Doors, Http, TlsFacts};
use crate::name::{HostName, TunnelName};
use crate::net::{ByteStream, ConnId, PeerAddr, Tasks, VisitorAddr};
use crate::observe::{LogFormat, Metrics, Reason};
use crate::registry::*;

/// Longest that anything in a test may take.
pub const LIMIT: Duration = Duration::from_secs(20);
/// The tunnel that most tests visit.
pub const HOST: &str = "web-abc.example.test";

#[derive(Clone, Copy, PartialEq)]
pub enum Port {
    Plain,
    /// As if TLS had settled on HTTP/1.1.
    H1,
    /// As if TLS had settled on HTTP/2.
    H2,
    /// Plain HTTP where TLS is expected.
    OnlyHttps,
}

pub struct Gateway {
    pub addr: SocketAddr,
    pub registry: Registry,
    pub tasks: Tasks,
    pub metrics: Arc<Metrics>,
    pub ends: mpsc::UnboundedReceiver<Reason>,
}

pub fn settings() -> Settings {
    Settings {
        file: None,
        listen: vec![],
        plain_http: vec![],
        plain_ssh: vec![],
        dns: DnsSettings { way: None, resolver: Vec::new(), servers: Vec::new(), timeout: LIMIT },
        base: BaseUrl { https: true, host: HostName::parse("example.test").unwrap(), port: Some(8443) },
        state_dir: "unused".into(),
        routes: vec![],
        drain_timeout: LIMIT,
        tls: TlsSettings::default(),
        ssh: SshSettings {
            hostnames: vec![],
            host_key: PemSource::Inline(String::new()),
            authorized_keys: None,
            any_key: AnyKey::No,
            raw: false,
            keepalive_interval: LIMIT,
            login_timeout: LIMIT,
            open_timeout: LIMIT,
            close_timeout: LIMIT,
            max_forwards: 8,
            max_channels: 8,
            rekey_after: 32 << 30,
            networks: NetworkSettings::default(),
            max_sessions_per_key: 0,
            max_tunnels_per_key: 0,
        },
        http: HttpSettings {
            trusted_proxies: vec![],
            idle_timeout: LIMIT,
            send_timeout: LIMIT,
            upstream_idle_timeout: LIMIT,
            upstream_idle_max: 4,
            upstream_max: 64,
            upgrade_idle_timeout: LIMIT,
        },
        limits: Limits {
            handshake_timeout: Duration::from_secs(5),
            silence_timeout: LIMIT,
            connections: 100,
            connections_per_address: 100,
            header_bytes: 16 * 1024,
            buffer_memory: 1 << 20,
            buffer_memory_all: 1 << 24,
            queue_memory_all: 1 << 24,
            buffer_disk_per_stream: 1 << 20,
            buffer_disk: 1 << 20,
            requests: RequestLimits::default(),
        },
        networks: NetworkSettings::default(),
        access: AccessSettings {
            secrets: vec![Secret::new("sixteen or more.")],
            ..AccessSettings::default()
        },
        acme: None,
        admin: None,
        log: LogSettings { format: LogFormat::Text, filter: "info".into() },
    }
}

impl Gateway {
    pub async fn start(port: Port) -> Self {
        Self::with(port, settings()).await
    }

    pub async fn with(port: Port, settings: Settings) -> Self {
        let (registry, tasks) = (Registry::new(), Tasks::new());
        let metrics = Arc::<Metrics>::default();
        let issuers = Issuers::open(&settings.access).unwrap();
        let sessions = Sessions::open(&settings.access, &issuers, "unused", "unused".as_ref()).unwrap();
        let admission = Admission::open(&settings, &metrics).unwrap();
        let http = Http::new(
            Arc::new(settings),
            registry.clone(),
            Doors { issuers, sessions, admission },
            Challenges::default(),
            tasks.clone(),
            metrics.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (ended, ends) = mpsc::unbounded_channel();
        let accepting = tasks.clone();
        let names: Arc<[String]> = ["example.test".to_owned(), "*.example.test".to_owned()].into();
        tasks.spawn("accept", async move {
            while let Ok((stream, peer)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let tls = matches!(port, Port::H1 | Port::H2).then(|| TlsFacts {
                    names: names.clone(),
                    h2: port == Port::H2,
                    missing: None,
                });
                let conn =
                    Connection { id: ConnId::next(), peer: PeerAddr(peer), local_port: addr.port(), tls };
                let (http, ended) = (http.clone(), ended.clone());
                accepting.spawn("connection", async move {
                    let reason = match port {
                        Port::OnlyHttps => http.serve_plain_on_tls_port(stream, conn).await,
                        _ => http.serve(stream, conn).await,
                    };
                    let _ = ended.send(reason);
                });
            }
        });
        Self { addr, registry, tasks, metrics, ends }
    }

    /// Claims the tunnel `web-abc` for a service.
    pub fn offer(&self, service: SocketAddr) -> Lease {
        self.offer_with(Arc::new(ToTcp(service)), |_| {})
    }

    pub fn offer_with(&self, opener: Arc<dyn Opener>, adjust: impl FnOnce(&mut Tunnel)) -> Lease {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/tunnel-protocol.json")).unwrap();
        let key = vectors["keys"][0]["openssh_public_key"].as_str().unwrap();
        let mut tunnel = Tunnel {
            id: TargetId::next(),
            name: TunnelName::from_label("web-abc").unwrap(),
            request_id: "/web".into(),
            env_id: "me".into(),
            owner: Identity::of(&russh::keys::PublicKey::from_openssh(key).unwrap()),
            access: AccessLevel::Public,
            bounds: Bounds::default(),
            meta: serde_json::Map::new(),
            inject: Arc::new([]),
            opener,
            holder: Arc::new(Nobody),
            visits: Watched::default(),
            gone: tokio_util::sync::CancellationToken::new(),
        };
        adjust(&mut tunnel);
        self.registry.claim(tunnel).unwrap()
    }

    /// Waits until so many requests have ended for this reason.
    pub async fn ended(&self, reason: Reason, count: u64) {
        let ended = || {
            let of_reason = self.metrics.http.ended.counts().filter(|(which, ..)| *which == reason);
            of_reason.map(|(.., count)| count).sum::<u64>()
        };
        let poll = async {
            while ended() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = || self.metrics.http.ended.counts().collect::<Vec<_>>();
        tokio::time::timeout(LIMIT, poll).await.unwrap_or_else(|_| panic!("no {reason}: {:?}", seen()));
    }

    pub async fn visitor(&self) -> Visitor {
        Visitor(TcpStream::connect(self.addr).await.unwrap())
    }

    /// Sends a request's text and reads until the gateway closes.
    pub async fn ask(&self, request: &str) -> String {
        let mut visitor = self.visitor().await;
        visitor.send(request).await;
        visitor.rest().await
    }

    /// A GET of the tunnel on a connection of its own.
    pub async fn get(&self, path: &str, fields: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{fields}\r\n")).await
    }
}

/// Opens a TCP connection: a static backend.
pub struct ToTcp(pub SocketAddr);

impl Opener for ToTcp {
    fn open(&self, _: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        let addr = self.0;
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await.map_err(|_| OpenError::Refused)?;
            stream.set_nodelay(true).unwrap();
            Ok(Box::new(stream) as ByteStream)
        })
    }
}

/// Opens nothing.
pub struct Fails(pub OpenError);

impl Opener for Fails {
    fn open(&self, _: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        let error = self.0;
        Box::pin(async move { Err(error) })
    }
}

struct Nobody;

impl Holder for Nobody {
    fn is_alive(&self) -> BoxFuture<'static, bool> {
        Box::pin(async { true })
    }
    fn end(&self, _: Reason) {}
}

/// A raw client, or a service's end of a connection.
pub struct Visitor(pub TcpStream);

impl Visitor {
    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.write_all(text.as_ref()).await.unwrap();
    }

    /// Reads until what was read ends in `end`; gives all of it. Panics at the stream's end.
    pub async fn until(&mut self, end: &str) -> String {
        self.try_until(end).await.unwrap_or_else(|seen| panic!("no {end:?} in {seen:?}"))
    }

    pub async fn try_until(&mut self, end: &str) -> Result<String, String> {
        let mut seen = Vec::new();
        let read = async {
            while !seen.ends_with(end.as_bytes()) {
                match self.0.read_u8().await {
                    Ok(byte) => seen.push(byte),
                    Err(_) => return false,
                }
            }
            true
        };
        let found = tokio::time::timeout(LIMIT, read).await;
        let seen = String::from_utf8_lossy(&seen).into_owned();
        if matches!(found, Ok(true)) { Ok(seen) } else { Err(seen) }
    }

    pub async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Reads to the end of the stream.
    pub async fn rest(&mut self) -> String {
        let mut seen = Vec::new();
        tokio::time::timeout(LIMIT, self.0.read_to_end(&mut seen)).await.expect("never closed").unwrap();
        String::from_utf8_lossy(&seen).into_owned()
    }
}

/// A service made of a function that handles each connection.
pub struct Service {
    pub addr: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

impl Service {
    /// Answers `ok`, of which the `k` comes only when it is told to go on.
    pub async fn in_two_parts() -> (Self, tokio::sync::watch::Sender<bool>) {
        let (go, wait) = tokio::sync::watch::channel(false);
        let service = Self::start(move |mut peer, _| {
            let mut wait = wait.clone();
            async move {
                peer.head().await;
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await;
                wait.wait_for(|go| *go).await.unwrap();
                peer.send("k").await;
            }
        });
        (service.await, go)
    }

    /// Never answers; tells of each connection when it is `asked`, and when the gateway has `left`.
    pub async fn that_tells() -> (Self, tokio::sync::mpsc::UnboundedReceiver<&'static str>) {
        let (left, has_left) = tokio::sync::mpsc::unbounded_channel();
        let service = Self::start(move |mut peer, _| {
            let left = left.clone();
            async move {
                peer.head().await;
                left.send("asked").unwrap();
                let _ = peer.try_until("never").await;
                left.send("left").unwrap();
            }
        });
        (service.await, has_left)
    }

    pub async fn start<F, Fut>(handle: F) -> Self
    where
        F: Fn(Visitor, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, tasks) = (connections.clone(), Tasks::new());
        tasks.clone().spawn("service", async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                tasks.spawn("service's connection", handle(Visitor(stream), number));
            }
        });
        Self { addr, connections }
    }

    /// Answers each request with the head that it got, and keeps the connection.
    pub async fn echo_head() -> Self {
        Self::start(|mut peer, _| async move {
            while let Ok(head) = peer.try_until("\r\n\r\n").await {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
                peer.send(answer).await;
            }
        })
        .await
    }

    /// Answers each bodiless request with this text, and keeps the connection.
    pub async fn says(text: impl Into<Vec<u8>>) -> Self {
        let text: Arc<[u8]> = text.into().into();
        Self::start(move |mut peer, _| {
            let text = text.clone();
            async move {
                while peer.try_until("\r\n\r\n").await.is_ok() {
                    peer.send(&text).await;
                }
            }
        })
        .await
    }

    pub fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
