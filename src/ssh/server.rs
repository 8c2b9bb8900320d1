//! What all sessions share, and the life of one: version, key, forwards, end.

use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;
use russh::server::{Config, RunningSession};
use russh::{Limits, MethodKind, MethodSet, Preferred, SshId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::greeting::{Greeting, VERSION, VERSION_LINE, greet};
use super::handler::Callbacks;
use super::host_key;
use super::queue::Queues;
use super::quota::Quotas;
use super::refusal::{NOT_FROM_THERE, NOT_NOW, turn_away};
use super::session::Session;
use super::sessions::{SessionFacts, Sessions};
use super::transport::{Link, Transport, transport};
use super::watch::watch_on;
use super::window;
use crate::access::{Admission, AgentKeys, Login, Refusal, Shares};
use crate::config::Settings;
use crate::net::{ConnId, Duplex, PeerAddr, Replay, Tasks};
use crate::observe::{Metrics, Reason, Sparse, SshNow};
use crate::registry::Registry;

/// Messages that a channel may hold before its reader takes them. The readers here always take,
/// so it is only a bound.
const CHANNEL_MESSAGES: usize = 4096;
/// Messages from channels that wait for the session's loop; small, so that channels take turns.
const EVENTS: usize = 16;
/// Unanswered keep-alives that end a session.
const KEEPALIVES: usize = 3;
/// Authentication attempts that a client has.
const ATTEMPTS: usize = 6;
/// When keys are changed for the time alone: never, as in OpenSSH.
const REKEY_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Octets after which the library asks OpenSSH for new keys: OpenSSH asks for them itself, after
/// 64 GiB with AES-GCM, and after one with ChaCha20 (RFC 4344, section 3.2). The library ends a
/// session that has more on its way than it likes when it asks first.
const NEVER: u64 = u64::MAX;

/// What all sessions share.
pub struct Shared {
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Where names are claimed.
    pub registry: Registry,
    /// Whose keys may connect.
    pub keys: AgentKeys,
    /// The guest links.
    pub shares: Shares,
    /// Who may come at all.
    pub admission: Admission,
    /// How much each key has.
    pub quotas: Quotas,
    /// Who owns the sessions' tasks.
    pub tasks: Tasks,
    /// Cancelled when the gateway begins to shut down: sessions go on, for the visitors they
    /// carry, until their own tasks are told to drain.
    pub closing: CancellationToken,
    /// Space for what visitors have not taken yet.
    pub budget: Arc<Budget>,
    /// What waits to be sent to agents.
    pub queues: Arc<Queues>,
    /// The sessions that run.
    pub sessions: Sessions,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// How the library serves each kind of client.
struct Configs {
    /// All but OpenSSH.
    any: Arc<Config>,
    openssh: Arc<Config>,
    /// Has AES-GCM, but would ask for another cipher.
    openssh_aes_gcm: Arc<Config>,
}

/// Serves agents.
pub struct Ssh {
    shared: Arc<Shared>,
    configs: Configs,
    /// Which of the agents are told of that are turned away.
    denials: Sparse,
}

/// What agents meet here.
pub struct Trust {
    /// What the gateway shows of itself.
    pub host_key: PrivateKey,
    /// Whose keys may connect.
    pub keys: AgentKeys,
    /// The guest links that they may have made.
    pub shares: Shares,
    /// From where they may come.
    pub admission: Admission,
}

/// What is known of a connection by the time that it carries SSH.
#[derive(Clone, Copy, Debug)]
pub struct AgentConnection {
    /// Names it in records.
    pub id: ConnId,
    /// The other end.
    pub peer: PeerAddr,
    /// Whether it came within TLS.
    pub tls: bool,
}

impl Ssh {
    /// Prepares to serve. `tasks` owns the sessions; `closing` tells them ahead of the end.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        registry: Registry,
        trust: Trust,
        tasks: Tasks,
        closing: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let Trust { host_key, keys, shares, admission } = trust;
        let patience = settings.http.send_timeout;
        let budget = Budget::new(&settings.limits, patience, settings.state_dir.clone(), metrics.clone());
        let config_with = |algorithms, rekey_after| {
            Arc::new(library_config(&settings, host_key.clone(), algorithms, rekey_after))
        };
        let configs = Configs {
            any: config_with(host_key::algorithms(), settings.ssh.rekey_after),
            openssh: config_with(host_key::algorithms(), NEVER),
            openssh_aes_gcm: config_with(host_key::aes_gcm_only(), NEVER),
        };
        let (queues, sessions) =
            (Arc::new(Queues::new(settings.limits.queue_memory_all)), Sessions::default());
        let quotas = Quotas::new(&settings.ssh);
        let shared = Arc::new(Shared {
            settings,
            registry,
            keys,
            shares,
            admission,
            quotas,
            tasks,
            closing,
            budget,
            queues,
            sessions,
            metrics,
        });
        Arc::new(Self { shared, configs, denials: Sparse::default() })
    }

    /// Serves one connection to its end, which is the value.
    pub async fn serve(self: Arc<Self>, io: impl Duplex + 'static, conn: AgentConnection) -> Reason {
        if let Err(refusal) = self.shared.admission.new_agent(conn.peer.ip()) {
            return Box::pin(self.turn_away(io, conn, &refusal)).await;
        }
        let started = Instant::now();
        let (io, link) = transport(io, &self.shared.tasks, &self.shared.queues);
        let session = Session::new(conn.id, conn.peer, self.shared.clone(), link.clone());
        let _guard = EndGuard::enter(session.clone());
        let login = started + self.shared.settings.ssh.login_timeout;
        let result = tokio::select! {
            result = self.run(io, &session, login) => result,
            never = watch_on(&session, login) => match never {},
        };
        session.release_all();
        if session.has_failed_login() {
            // Whether that was one too many is told to whoever comes next.
            let _ = self.shared.admission.login_failed(conn.peer.ip(), Login::Ssh);
        }
        let reason = session.end_reason().unwrap_or_else(|| reason_of(&result, &session));
        self.shared.metrics.ssh.ended.one(reason);
        record(&session, conn, reason, started, &link, result.err());
        reason
    }

    /// Runs the session to its end.
    async fn run<S: Duplex + 'static>(
        &self,
        io: Transport<S>,
        session: &Arc<Session>,
        login: Instant,
    ) -> Result<(), russh::Error> {
        // Boxed, so that its room is given back when the session runs.
        let begun = Box::pin(self.begin(io, session.clone()));
        // Until the client's version line came there is no session to end, only a future to drop.
        match tokio::time::timeout_at(login, begun).await {
            Ok(Ok(running)) => {
                session.set_handle(running.handle());
                running.await
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                session.link.cut(Reason::LoginTimeout);
                Ok(())
            }
        }
    }

    /// Tells an agent why it may not come, before it is asked who it is.
    async fn turn_away(&self, io: impl Duplex, conn: AgentConnection, refusal: &Refusal) -> Reason {
        let (reason, code, rule) = match refusal {
            Refusal::Network(denial) => (Reason::NetworkDenied, NOT_FROM_THERE, Some(denial.by.to_string())),
            Refusal::LockedOut(_) => (Reason::TooManyFailures, NOT_NOW, None),
        };
        let ssh = &self.shared.metrics.ssh;
        ssh.begun.one();
        if let Some(left_out) = self.denials.next() {
            tracing::info!(conn = %conn.id, peer = %conn.peer, %reason, rule, left_out, "agent turned away");
        }
        turn_away(io, code, &format!("{refusal} ({reason})")).await;
        ssh.ended.one(reason);
        reason
    }

    /// Reads how the client begins, and has the library go on from there.
    async fn begin<S: Duplex + 'static>(
        &self,
        mut io: Transport<S>,
        session: Arc<Session>,
    ) -> Result<RunningSession<Callbacks>, russh::Error> {
        let greeting = greet(&mut io).await?;
        io.have_said(VERSION_LINE);
        let (config, rekey_after) = match greeting {
            Greeting { has_aes_gcm: true, .. } => (&self.configs.openssh_aes_gcm, NEVER),
            Greeting { is_openssh: true, .. } => (&self.configs.openssh, NEVER),
            _ => (&self.configs.any, self.shared.settings.ssh.rekey_after),
        };
        // Boxed, because the library's task holds it four times.
        let io = Box::new(Replay::new(greeting.head, io));
        russh::server::run_stream(config.clone(), io, Callbacks::new(session, rekey_after)).await
    }

    /// Figures of all sessions as they are now. Looks at each session: not for every request.
    #[must_use]
    pub fn now(&self) -> SshNow {
        SshNow { disk: self.shared.budget.disk_used(), ..self.shared.sessions.now() }
    }

    /// What is known of each session that runs.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionFacts> {
        self.shared.sessions.facts()
    }
}

/// Ends whatever belongs to a session when its task goes, a panic included.
struct EndGuard(Arc<Session>);

impl EndGuard {
    fn enter(session: Arc<Session>) -> Self {
        session.shared.metrics.ssh.begun.one();
        session.shared.sessions.enter(session.clone());
        Self(session)
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.shared.sessions.leave(&self.0);
        self.0.link.cut(Reason::Finished);
        self.0.release_all();
    }
}

fn library_config(
    settings: &Settings,
    host_key: PrivateKey,
    preferred: Preferred,
    rekey_after: u64,
) -> Config {
    Config {
        server_id: SshId::Standard(VERSION.into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_millis(200),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        window_size: window::FIRST,
        channel_buffer_size: CHANNEL_MESSAGES,
        event_buffer_size: EVENTS,
        preferred,
        limits: limits(rekey_after),
        max_auth_attempts: ATTEMPTS,
        inactivity_timeout: None,
        keepalive_interval: Some(settings.ssh.keepalive_interval),
        keepalive_max: KEEPALIVES,
        nodelay: true,
        ..Config::default()
    }
}

/// New keys after so many octets in one direction, and not for the time alone. Not made by the
/// library's own function, whose bound is that for ciphers of 64-bit blocks (RFC 4344, section
/// 3.2); of ours, AES is good for 64 GiB, and ChaCha20 for as many packets as 32 GiB can be.
fn limits(rekey_after: u64) -> Limits {
    let octets = usize::try_from(rekey_after).unwrap_or(usize::MAX);
    Limits { rekey_write_limit: octets, rekey_read_limit: octets, rekey_time_limit: REKEY_TIME }
}

fn reason_of(result: &Result<(), russh::Error>, session: &Session) -> Reason {
    // The client may be gone before it is told, and then the connection just breaks.
    if session.identity().is_none() && session.refused_attempts() >= ATTEMPTS {
        return Reason::TooManyAttempts;
    }
    match result {
        Ok(()) => Reason::Finished,
        Err(russh::Error::KeepaliveTimeout) => Reason::AgentSilent,
        Err(russh::Error::HUP | russh::Error::Disconnect) => Reason::Finished,
        Err(russh::Error::IO(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            if session.identity().is_some() { Reason::ConnectionLost } else { Reason::ClosedEarly }
        }
        Err(russh::Error::IO(_)) => Reason::ConnectionLost,
        Err(russh::Error::Join(_)) => Reason::Panic,
        Err(_) => Reason::SshFailed,
    }
}

fn record(
    session: &Session,
    conn: AgentConnection,
    reason: Reason,
    started: Instant,
    link: &Link,
    error: Option<russh::Error>,
) {
    let (received, sent) = link.counts();
    let identity = session.identity();
    tracing::info!(
        conn = %conn.id,
        peer = %conn.peer,
        tls = conn.tls,
        user = session.user().map(|user| &**user),
        key = identity.map(|identity| &*identity.fingerprint),
        client_id = identity.map(|identity| identity.client_id.as_str()),
        software = link.software(),
        %reason,
        detail = error.map(|error| error.to_string()),
        seconds = started.elapsed().as_secs_f64(),
        received,
        sent,
        "session ended"
    );
}
