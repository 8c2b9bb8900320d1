//! One connection from accept to hand-over, under one deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::server::Accepted;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::classify::{Opening, TlsClass, by_alpn};
use super::hello;
use super::tls::Tls;
use crate::access::Admission;
use crate::certs::acme::OnDemand;
use crate::certs::{CertStore, Challenges, Served};
use crate::config::Settings;
use crate::http::{Connection, Http, TlsFacts};
use crate::name::HostName;
use crate::net::{ConnId, Duplex, PeerAddr, Replay, Slot, Tasks};
use crate::observe::{Metrics, Reason, Sparse};
use crate::ssh::{AgentConnection, Ssh};

/// What is left of a connection's time when a certificate is no longer waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where certificates come from.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Those that are there.
    pub store: CertStore,
    /// Answers to a certificate authority's probes.
    pub challenges: Challenges,
    /// Those that can be had. `None`: none are ordered.
    pub on_demand: Option<OnDemand>,
}

/// The gateway's listeners, and where what they accept goes.
pub struct Edge {
    settings: Arc<Settings>,
    admission: Admission,
    /// Which of the connections are told of that nobody may make.
    denials: Sparse,
    certs: Certificates,
    tls: Tls,
    http: Arc<Http>,
    ssh: Arc<Ssh>,
    visitors: Tasks,
    agents: Tasks,
    metrics: Arc<Metrics>,
}

/// What became of a connection by the time it is handed over.
enum Handed {
    Http(Box<dyn Duplex>, Connection),
    Ssh(Box<dyn Duplex>, AgentConnection),
    PlainHttp(Box<dyn Duplex>, Connection),
    /// A certificate authority's probe for this name, which has its answer.
    Probe(String),
}

/// What is known of a connection from the start.
#[derive(Clone, Copy)]
struct Accept {
    id: ConnId,
    peer: PeerAddr,
    port: u16,
    at: Instant,
    deadline: Instant,
}

/// Why a connection was ended before it was handed over.
struct Refusal {
    reason: Reason,
    detail: Option<String>,
    sni: Option<String>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: None, sni: None }
    }
}

impl Edge {
    /// Prepares to serve. `visitors` owns the connections until they turn out to be agents'.
    ///
    /// # Errors
    /// When the TLS library cannot make session tickets: the system has no randomness.
    pub fn new(
        settings: Arc<Settings>,
        certs: Certificates,
        http: Arc<Http>,
        ssh: Arc<Ssh>,
        visitors: Tasks,
        agents: Tasks,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, rustls::Error> {
        let tls = Tls::new()?;
        let (admission, denials) = (http.admission().clone(), Sparse::default());
        Ok(Arc::new(Self { settings, admission, denials, certs, tls, http, ssh, visitors, agents, metrics }))
    }

    /// Whether somebody may connect from there. Whoever may not is not answered: the caller just
    /// closes.
    #[must_use]
    pub fn admits(&self, peer: PeerAddr, id: ConnId) -> bool {
        let Err(denial) = self.admission.connection(peer.ip()) else { return true };
        let reason = Reason::NetworkDenied;
        self.metrics.net.refused.one(reason);
        if let Some(left_out) = self.denials.next() {
            tracing::info!(conn = %id, %peer, %reason, rule = %denial.by, left_out, "connection refused");
        }
        false
    }

    /// Serves a connection to the single port, in tasks of its own.
    pub fn serve_tls(self: &Arc<Self>, stream: TcpStream, peer: PeerAddr, id: ConnId, slot: Slot, port: u16) {
        let edge = self.clone();
        let accept = self.accept(peer, id, port);
        self.visitors.spawn("connection", async move {
            let deadline = accept.deadline;
            // Boxed, so that its room is given back when it is known what the connection is.
            let identified = Box::pin(edge.identify(stream, accept));
            let handed = tokio::time::timeout_at(deadline, identified).await;
            match handed.unwrap_or_else(|_| Err(Reason::HandshakeTimeout.into())) {
                Ok(handed) => {
                    edge.metrics.edge.identified.note(accept.at.elapsed());
                    edge.hand_over(handed, slot).await;
                }
                Err(refusal) => {
                    let Refusal { reason, detail, sni } = refusal;
                    edge.metrics.net.refused.one(reason);
                    tracing::info!(conn = %id, %peer, sni, %reason, detail, "connection refused");
                }
            }
        });
    }

    /// Serves a connection to a plain HTTP listener.
    pub fn serve_plain_http(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: PeerAddr,
        id: ConnId,
        slot: Slot,
        port: u16,
    ) {
        let edge = self.clone();
        let conn = Connection { id, peer, local_port: port, tls: None };
        self.visitors.spawn("connection", async move {
            edge.hand_over(Handed::Http(Box::new(stream), conn), slot).await;
        });
    }

    /// Serves a connection to a plain SSH listener.
    pub fn serve_plain_ssh(self: &Arc<Self>, stream: TcpStream, peer: PeerAddr, id: ConnId, slot: Slot) {
        let conn = AgentConnection { id, peer, tls: false };
        self.spawn_agent(Box::new(stream), conn, slot);
    }

    fn accept(&self, peer: PeerAddr, id: ConnId, port: u16) -> Accept {
        let at = Instant::now();
        Accept { id, peer, port, at, deadline: at + self.settings.limits.handshake_timeout }
    }

    async fn hand_over(self: Arc<Self>, handed: Handed, slot: Slot) {
        let started = Instant::now();
        let (conn, reason) = match handed {
            Handed::Ssh(io, conn) => return self.spawn_agent(io, conn, slot),
            Handed::Http(io, conn) => {
                self.metrics.edge.http.one();
                let reason = self.http.clone().serve(io, conn.clone()).await;
                (conn, reason)
            }
            Handed::PlainHttp(io, conn) => {
                self.metrics.edge.plain_http.one();
                let served = self.http.clone().serve_plain_on_tls_port(io, conn.clone());
                (conn, served.await)
            }
            Handed::Probe(name) => {
                self.metrics.edge.probes.one();
                tracing::info!(%name, "a certificate authority's probe was answered");
                return;
            }
        };
        drop(slot);
        self.metrics.net.ended.one(reason);
        let (tls, h2) = (conn.tls.is_some(), conn.tls.is_some_and(|tls| tls.h2));
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(conn = %conn.id, peer = %conn.peer, tls, h2, seconds, %reason, "connection ended");
    }

    /// Agents outlive visitors when the gateway drains, because they carry the visitors' bytes;
    /// so their sessions belong to another owner.
    fn spawn_agent(&self, io: Box<dyn Duplex>, conn: AgentConnection, slot: Slot) {
        let ssh = self.ssh.clone();
        self.metrics.edge.ssh.one();
        self.agents.spawn("ssh session", async move {
            ssh.serve(io, conn).await;
            drop(slot);
        });
    }

    async fn identify(&self, mut stream: TcpStream, accept: Accept) -> Result<Handed, Refusal> {
        let mut seen = BytesMut::new();
        match hello::read_opening(&mut stream, &mut seen).await? {
            Opening::Tls => self.identify_tls(stream, seen, accept).await,
            Opening::Ssh if self.settings.ssh.raw => {
                let conn = AgentConnection { id: accept.id, peer: accept.peer, tls: false };
                Ok(Handed::Ssh(Box::new(Replay::new(seen.freeze(), stream)), conn))
            }
            Opening::Ssh => Err(Reason::PlainSsh.into()),
            Opening::Http => {
                let conn =
                    Connection { id: accept.id, peer: accept.peer, local_port: accept.port, tls: None };
                Ok(Handed::PlainHttp(Box::new(Replay::new(seen.freeze(), stream)), conn))
            }
            Opening::Unknown | Opening::NeedMore => Err(Reason::UnknownProtocol.into()),
        }
    }

    async fn identify_tls(
        &self,
        mut stream: TcpStream,
        seen: BytesMut,
        accept: Accept,
    ) -> Result<Handed, Refusal> {
        let accepted = hello::read_hello(&mut stream, seen).await.map_err(|(reason, error)| Refusal {
            reason,
            detail: error.map(|error| error.to_string()),
            sni: None,
        })?;
        let hello = accepted.client_hello();
        let sni = hello.server_name().and_then(|name| HostName::parse(name).ok());
        let class = by_alpn(hello.alpn());
        let refuse = |reason: Reason, detail: Option<String>| Refusal {
            reason,
            detail,
            sni: sni.as_ref().map(ToString::to_string),
        };
        match class {
            TlsClass::AcmeChallenge => {
                let answered = self.answer_probe(accepted, stream, sni.as_ref()).await;
                return answered.map_err(|(reason, detail)| refuse(reason, detail));
            }
            TlsClass::NothingCommon => {
                hello::refuse_protocol(&mut stream).await;
                return Err(refuse(Reason::NoCommonProtocol, None));
            }
            TlsClass::Ssh | TlsClass::Http | TlsClass::Unsaid => {}
        }
        let (served, missing) = match self.certificate(sni.as_ref(), accept.deadline).await {
            Ok(served) => (served, None),
            Err(what) => match self.certs.store.stand_in() {
                Some(served) => (served, Some(what.into())),
                None => {
                    hello::refuse_name(&mut stream).await;
                    return Err(refuse(Reason::NoCertificate, Some(what)));
                }
            },
        };
        let stream = self
            .handshake(accepted, stream, &served)
            .await
            .map_err(|error| refuse(Reason::TlsFailed, Some(error.to_string())))?;
        match stream.get_ref().1.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => self.metrics.edge.tls12.one(),
            _ => self.metrics.edge.tls13.one(),
        }
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let facts = TlsFacts { names: served.names.clone(), h2, missing };
        match class {
            TlsClass::Ssh => Ok(agent(stream, accept)),
            TlsClass::Http => Ok(visitor(stream, accept, facts)),
            _ => self.identify_within_tls(stream, sni.as_ref(), accept, facts).await,
        }
    }

    /// The certificate to show. Where there is none yet and one can be had, it is waited for, as
    /// long as the connection has time.
    ///
    /// # Errors
    /// Why there is none, in words.
    async fn certificate(&self, sni: Option<&HostName>, deadline: Instant) -> Result<Arc<Served>, String> {
        let shown = self.certs.store.select(sni);
        if let Some(served) = shown.as_ref().filter(|served| !served.has_ended()) {
            return Ok(served.clone());
        }
        let (Some(host), Some(on_demand)) = (sni, &self.certs.on_demand) else {
            return shown.ok_or_else(|| "no certificate here covers the name asked for".to_owned());
        };
        let obtained = match tokio::time::timeout_at(deadline - LAST_WORDS, on_demand.obtain(host)).await {
            Ok(obtained) => obtained.map_err(|not_now| not_now.to_string()),
            Err(_) => {
                Err("a certificate for the name asked for is being ordered; connect again in a moment"
                    .to_owned())
            }
        };
        // One that has ended says more to whoever looks than none.
        obtained.or_else(|why| shown.ok_or(why))
    }

    fn handshake(
        &self,
        accepted: Accepted,
        stream: TcpStream,
        served: &Served,
    ) -> impl Future<Output = std::io::Result<TlsStream<TcpStream>>> + use<> {
        let config = self.tls.config_for(&accepted.client_hello(), served.key.clone());
        StartHandshake::from_parts(accepted, stream).into_stream(config)
    }

    /// The whole of a probe is the handshake (RFC 8737, section 3). Only names that are being
    /// proved now have an answer.
    async fn answer_probe(
        &self,
        accepted: Accepted,
        mut stream: TcpStream,
        name: Option<&HostName>,
    ) -> Result<Handed, (Reason, Option<String>)> {
        let Some((name, key)) = name.and_then(|name| Some((name, self.certs.challenges.certificate(name)?)))
        else {
            hello::refuse_protocol(&mut stream).await;
            return Err((Reason::NoSuchChallenge, None));
        };
        let config = self.tls.config_for_probe(key);
        let answered = async {
            StartHandshake::from_parts(accepted, stream).into_stream(config).await?.shutdown().await
        };
        answered.await.map_err(|error| (Reason::TlsFailed, Some(error.to_string())))?;
        Ok(Handed::Probe(name.to_string()))
    }

    /// Without ALPN, the first bytes after the handshake decide; and where SSH is expected, so
    /// does silence, because in SSH the server may speak first.
    async fn identify_within_tls(
        &self,
        mut stream: TlsStream<TcpStream>,
        sni: Option<&HostName>,
        accept: Accept,
        facts: TlsFacts,
    ) -> Result<Handed, Refusal> {
        let mut seen = BytesMut::new();
        let expects_ssh = sni.is_some_and(|sni| self.settings.ssh.hostnames.contains(sni));
        let patience = if expects_ssh { self.settings.limits.silence_timeout } else { Duration::MAX };
        let opening = match tokio::time::timeout(patience, hello::read_opening(&mut stream, &mut seen)).await
        {
            Ok(opening) => opening?,
            Err(_) if seen.is_empty() => return Ok(agent(stream, accept)),
            Err(_) => hello::read_opening(&mut stream, &mut seen).await?,
        };
        let stream = Replay::new(seen.freeze(), stream);
        match opening {
            Opening::Ssh => Ok(agent(stream, accept)),
            // Whatever it is, it has come to where HTTPS is served, and gets HTTP's answer.
            _ => Ok(visitor(stream, accept, facts)),
        }
    }
}

fn agent(io: impl Duplex + 'static, accept: Accept) -> Handed {
    Handed::Ssh(Box::new(io), AgentConnection { id: accept.id, peer: accept.peer, tls: true })
}

fn visitor(io: impl Duplex + 'static, accept: Accept, facts: TlsFacts) -> Handed {
    let Accept { id, peer, port, .. } = accept;
    Handed::Http(Box::new(io), Connection { id, peer, local_port: port, tls: Some(facts) })
}
