//! A registry with any number of tunnels, and a visitor of one of them, all within this process:
//! what a look-up, a claim and a request cost with few tunnels and with many. The tunnels share
//! one service, which answers over a stream in memory; agents, sockets and TLS have no part in it.
//!
//! `benches/registry.rs` uses this file as well, and takes the time.

use std::sync::Arc;

use oneport::access::{AccessLevel, Admission, Bounds, Identity, Issuers, Sessions};
use oneport::certs::Challenges;
use oneport::config::{Secret, Settings};
use oneport::http::{Connection, Doors, Http, TlsFacts};
use oneport::name::TunnelName;
use oneport::net::{ByteStream, ConnId, PeerAddr, Tasks, VisitorAddr};
use oneport::observe::{Metrics, Reason};
use oneport::registry::{
    BoxFuture, Holder, Lease, OpenError, Opener, Registry, TargetId, Tunnel, Visit, Watched,
};
use russh::keys::PublicKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// An agent's public key, of the vectors.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMo/TgcRr/VcqjjPluqe+bl2Iyg96b7zMu5bh6bV5OrY";
/// That of an agent who offers one tunnel only.
const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
const REQUEST: &[u8] = b"GET /small HTTP/1.1\r\nHost: t0-crowd.localhost\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nsmall";
/// Octets that a stream in memory holds.
const ROOM: usize = 16 * 1024;

/// Tunnels, and a visitor of the first.
pub struct Crowd {
    registry: Registry,
    names: Vec<TunnelName>,
    leases: Vec<Lease>,
    /// Which name is looked up next, and claimed next.
    turn: usize,
    owner: Identity,
    /// Whose profile has one tunnel.
    other: Identity,
    opener: Arc<dyn Opener>,
    holder: Arc<dyn Holder>,
    visits: Watched<Visit>,
    runtime: Runtime,
    visitor: DuplexStream,
}

impl Crowd {
    /// So many tunnels, at least one.
    pub fn of(count: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (registry, tasks) = (Registry::new(), Tasks::new());
        let mut settings = Settings::dev(443, "unused".as_ref());
        settings.access.secrets = vec![Secret::new("sixteen or more.")];
        let issuers = Issuers::open(&settings.access).expect("no file to read");
        let sessions =
            Sessions::open(&settings.access, &issuers, "unused", "unused".as_ref()).expect("no file to read");
        let metrics = Arc::<Metrics>::default();
        let admission = Admission::open(&settings, &metrics).expect("no file to read");
        let http = Http::new(
            Arc::new(settings),
            registry.clone(),
            Doors { issuers, sessions, admission },
            Challenges::default(),
            tasks.clone(),
            metrics,
        );
        let (visitor, served) = duplex(ROOM);
        let connection = Connection {
            id: ConnId::next(),
            peer: PeerAddr(([127, 0, 0, 1], 1).into()),
            local_port: 443,
            tls: Some(TlsFacts { names: Arc::new(["*.localhost".to_owned()]), h2: false, missing: None }),
        };
        runtime.block_on(async {
            tasks.spawn("visitor", async move {
                http.serve(served, connection).await;
            });
        });
        let mut crowd = Self {
            registry,
            names: Vec::new(),
            leases: Vec::new(),
            turn: 0,
            owner: Identity::of(&PublicKey::from_openssh(KEY).expect("a key")),
            other: Identity::of(&PublicKey::from_openssh(OTHER).expect("a key")),
            opener: Arc::new(Service(tasks)),
            holder: Arc::new(Nobody),
            visits: Watched::default(),
            runtime,
            visitor,
        };
        let name = TunnelName::from_label("lone-other").expect("a label");
        let lone = Tunnel { owner: crowd.other.clone(), ..crowd.tunnel(name) };
        crowd.leases.push(crowd.registry.claim(lone).expect("it is free"));
        crowd.grow_to(count);
        crowd.request();
        crowd
    }

    /// More tunnels, up to so many.
    pub fn grow_to(&mut self, count: usize) {
        for number in self.names.len()..count {
            let name = TunnelName::from_label(&format!("t{number}-crowd")).expect("a label");
            self.names.push(name.clone());
            self.leases.push(self.registry.claim(self.tunnel(name)).expect("it is free"));
        }
    }

    /// Looks a tunnel up, each time another.
    pub fn look_up(&mut self) -> Arc<Tunnel> {
        self.turn = (self.turn + 7919) % self.names.len();
        self.registry.look_up(&self.names[self.turn]).expect("it is there")
    }

    /// Lists the tunnels of a profile that has one.
    pub fn list(&self) -> Vec<Arc<Tunnel>> {
        let profile = self.other.thumbprint.as_ref().expect("its kind has one");
        let list = self.registry.of_profile(profile.as_str());
        assert_eq!(list.len(), 1);
        list
    }

    /// Claims a name more, each time another, and gives it back.
    pub fn claim(&mut self) {
        self.turn += 1;
        let name = TunnelName::from_label(&format!("u{}-crowd", self.turn % 1_000_000)).expect("a label");
        drop(self.registry.claim(self.tunnel(name)).expect("it is free"));
    }

    /// Asks over the kept connection, and reads the answer.
    pub fn request(&mut self) {
        let visitor = &mut self.visitor;
        self.runtime.block_on(async {
            visitor.write_all(REQUEST).await.expect("it is served");
            let (mut answer, mut filled) = ([0; 2048], 0);
            while !answer[..filled].ends_with(b"small") {
                let count = visitor.read(&mut answer[filled..]).await.expect("it is served");
                assert!(count > 0, "ended after {:?}", String::from_utf8_lossy(&answer[..filled]));
                filled += count;
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&answer[..filled]));
        });
    }

    fn tunnel(&self, name: TunnelName) -> Tunnel {
        Tunnel {
            id: TargetId::next(),
            name,
            request_id: "/web".into(),
            env_id: "me".into(),
            owner: self.owner.clone(),
            access: AccessLevel::Public,
            bounds: Bounds::default(),
            meta: serde_json::Map::new(),
            inject: Arc::new([]),
            opener: self.opener.clone(),
            holder: self.holder.clone(),
            visits: self.visits.clone(),
            gone: CancellationToken::new(),
        }
    }
}

/// Answers whatever is asked.
struct Service(Tasks);

impl Opener for Service {
    fn open(&self, _: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        let tasks = self.0.clone();
        Box::pin(async move {
            let (near, mut far) = duplex(ROOM);
            tasks.spawn("service", async move {
                let (mut head, mut filled) = ([0; 4096], 0);
                while let Ok(count @ 1..) = far.read(&mut head[filled..]).await {
                    filled += count;
                    if head[..filled].ends_with(b"\r\n\r\n") {
                        filled = 0;
                        far.write_all(ANSWER).await.expect("it is read");
                    }
                }
            });
            Ok(Box::new(near) as ByteStream)
        })
    }
}

/// Nobody asks for a name that is held.
struct Nobody;

impl Holder for Nobody {
    fn is_alive(&self) -> BoxFuture<'static, bool> {
        Box::pin(async { true })
    }

    fn end(&self, _: Reason) {}
}
