//! One agent's session, as all of its parts see it: who it is, what it exposes, how it ends.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use russh::Disconnect;
use russh::server::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::forward::ForwardError;
use super::goodbye::goodbye;
use super::place::Place;
use super::quota::{Full, Of, Share};
use super::server::Shared;
use super::transport::Link;
use super::window::RoundTrip;
use crate::access::{AccessLevel, Bounds, Identity};
use crate::name::TunnelName;
use crate::net::{ConnId, PeerAddr, Slots};
use crate::observe::Reason;
use crate::registry::{BoxFuture, Holder, Lease, Opener, Script, Taken, TargetId, Tunnel, Visit, Watched};

/// Refusals that are kept for the next screen.
const REFUSALS_KEPT: usize = 64;
/// Within this, an agent that lives answers.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);
/// How long the peer has to read why the session ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// One agent's session.
pub struct Session {
    /// The connection that it runs on.
    pub conn: ConnId,
    /// The other end.
    pub peer: PeerAddr,
    /// When it began.
    pub started: Instant,
    /// What all sessions share.
    pub shared: Arc<Shared>,
    /// The connection under it.
    pub link: Arc<Link>,
    /// The channels that the gateway may open.
    pub channels: Arc<Semaphore>,
    /// The channels that visitors may use, as they are shared among these.
    pub in_use: Slots,
    /// The channels that may wait to be closed by the agent.
    pub closing: Arc<Semaphore>,
    /// How long the agent takes to answer.
    pub round_trip: RoundTrip,
    /// Cancelled when the agent has shown its key.
    pub authenticated: CancellationToken,
    /// Its place among the sessions of its key.
    pub place: Place,
    /// What visitors ask for.
    pub visits: Watched<Visit>,
    /// What a person at the agent should know.
    pub notices: Watched<Arc<str>>,
    handle: OnceLock<Handle>,
    attempts: AtomicUsize,
    has_refused_key: AtomicBool,
    /// Whether a claim is being decided: meanwhile this session's loop answers nobody.
    claiming: Arc<AtomicBool>,
    user: OnceLock<(Arc<str>, Identity)>,
    /// `None` once the session has ended.
    forwards: Mutex<Option<Vec<Forward>>>,
    end_reason: Mutex<Option<Reason>>,
    /// Refusals from before a screen was there to show them.
    refusals: Mutex<Vec<Arc<str>>>,
}

/// What the agent asked for, to find it again when it is cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardKey {
    /// The socket path of a streamlocal forward.
    Path(Arc<str>),
    /// The bind address and port of a TCP forward.
    Tcp(Arc<str>, u32),
}

struct Forward {
    key: ForwardKey,
    lease: Lease,
    _share: Option<Share>,
}

/// A name to claim, and what comes with it.
pub struct Claim {
    /// To find it again.
    pub key: ForwardKey,
    /// The raw name.
    pub raw_name: String,
    /// What `hello` calls it.
    pub request_id: Arc<str>,
    /// Who may visit.
    pub access: AccessLevel,
    /// Free data.
    pub meta: serde_json::Map<String, serde_json::Value>,
    /// Scripts to inject.
    pub inject: Vec<Script>,
    /// What visitors are held to.
    pub bounds: Bounds,
    /// The way to it.
    pub opener: Arc<dyn Opener>,
}

impl Session {
    /// A session that nobody has authenticated on yet.
    pub fn new(conn: ConnId, peer: PeerAddr, shared: Arc<Shared>, link: Arc<Link>) -> Arc<Self> {
        let max_channels = shared.settings.ssh.max_channels.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            conn,
            peer,
            started: Instant::now(),
            shared,
            link,
            channels: Arc::new(Semaphore::new(max_channels)),
            in_use: Slots::fair(max_channels),
            closing: Arc::new(Semaphore::new(max_channels)),
            round_trip: RoundTrip::default(),
            authenticated: CancellationToken::new(),
            place: Place::default(),
            visits: Watched::default(),
            notices: Watched::default(),
            handle: OnceLock::new(),
            attempts: AtomicUsize::new(0),
            has_refused_key: AtomicBool::new(false),
            claiming: Arc::default(),
            user: OnceLock::new(),
            forwards: Mutex::new(Some(Vec::new())),
            end_reason: Mutex::default(),
            refusals: Mutex::default(),
        })
    }

    /// Notes the library's handle, once.
    pub fn set_handle(&self, handle: Handle) {
        let _ = self.handle.set(handle);
    }

    /// The library's handle; `None` only before the session runs.
    pub fn handle(&self) -> Option<&Handle> {
        self.handle.get()
    }

    /// Notes who the agent is.
    pub fn authenticate(&self, user: &str, identity: Identity) {
        let _ = self.link.agent.set(identity.fingerprint.clone());
        let _ = self.user.set((user.into(), identity));
        self.authenticated.cancel();
    }

    /// Counts a key that was refused.
    pub fn refuse_key(&self) {
        self.has_refused_key.store(true, Ordering::Relaxed);
        self.refuse_attempt();
    }

    /// Whether keys were shown, and none that may connect.
    pub fn has_failed_login(&self) -> bool {
        self.user.get().is_none() && self.has_refused_key.load(Ordering::Relaxed)
    }

    /// Counts an attempt to authenticate that was refused.
    pub fn refuse_attempt(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// How many attempts to authenticate were refused.
    pub fn refused_attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }

    /// The user's name (the environment), once authenticated.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.user.get().map(|(user, _)| user)
    }

    /// The agent's key, once authenticated.
    pub fn identity(&self) -> Option<&Identity> {
        self.user.get().map(|(_, identity)| identity)
    }

    /// Claims a name. A dead holder of the same key gives way; a live one does not.
    ///
    /// Waits for the holder's sign of life, at most [`ALIVE_WITHIN`].
    ///
    /// # Errors
    /// Why the claim is refused.
    pub async fn claim(self: &Arc<Self>, claim: Claim) -> Result<Arc<Tunnel>, ForwardError> {
        self.check_claim(&claim)?;
        self.while_deciding(self.claim_in_turn(claim)).await
    }

    /// Does something within this session's own loop, which therefore answers nobody meanwhile, and
    /// yet is not dead.
    pub async fn while_deciding<T>(&self, work: impl Future<Output = T>) -> T {
        self.claiming.store(true, Ordering::Release);
        let result = work.await;
        self.claiming.store(false, Ordering::Release);
        result
    }

    async fn claim_in_turn(self: &Arc<Self>, claim: Claim) -> Result<Arc<Tunnel>, ForwardError> {
        let (user, identity) = self.user.get().ok_or(ForwardError::Ending)?;
        let mut tunnel = Tunnel {
            id: TargetId::next(),
            name: TunnelName::derive(&claim.raw_name, &identity.client_id),
            request_id: claim.request_id,
            env_id: user.clone(),
            owner: identity.clone(),
            access: claim.access,
            bounds: claim.bounds,
            meta: claim.meta,
            inject: claim.inject.into(),
            opener: claim.opener,
            holder: self.clone(),
            visits: self.visits.clone(),
            gone: CancellationToken::new(),
        };
        loop {
            let taken = match self.shared.registry.claim(tunnel) {
                Ok(lease) => return self.keep(claim.key, lease),
                Err(taken) => taken,
            };
            let Taken { by, claim: again } = taken;
            let ours =
                self.forwards.lock().iter().flatten().any(|forward| forward.lease.tunnel().id == by.id);
            if ours {
                return Err(ForwardError::Duplicate(again.request_id.to_string()));
            }
            if by.owner.fingerprint != identity.fingerprint || by.holder.is_alive().await {
                return Err(ForwardError::Taken(by.name.to_string()));
            }
            tracing::info!(conn = %self.conn, tunnel = %by.name, "the name's holder does not answer and gives way");
            by.holder.end(Reason::TakenOver);
            self.shared.registry.evict(&by);
            tunnel = *again;
        }
    }

    fn check_claim(&self, claim: &Claim) -> Result<(), ForwardError> {
        let max = self.shared.settings.ssh.max_forwards;
        let forwards = self.forwards.lock();
        let forwards = forwards.as_ref().ok_or(ForwardError::Ending)?;
        if forwards.iter().any(|forward| forward.key == claim.key) {
            return Err(ForwardError::Duplicate(claim.request_id.to_string()));
        }
        if forwards.len() >= max {
            return Err(ForwardError::TooMany(max));
        }
        Ok(())
    }

    fn keep(&self, key: ForwardKey, lease: Lease) -> Result<Arc<Tunnel>, ForwardError> {
        let tunnel = lease.tunnel().clone();
        // Only now, because a dead holder of the name has given its share back.
        let share = self.shared.quotas.take(Of::Tunnels, &tunnel.owner.fingerprint);
        let _share = share.map_err(|Full(most)| ForwardError::TooManyOfKey(most))?;
        let mut forwards = self.forwards.lock();
        forwards.as_mut().ok_or(ForwardError::Ending)?.push(Forward { key, lease, _share });
        drop(forwards);
        self.shared.metrics.ssh.tunnels.one();
        let url = self.shared.settings.base.tunnel_url(&tunnel.name);
        tracing::info!(conn = %self.conn, tunnel = %tunnel.name, access = %tunnel.access, %url, "tunnel opened");
        self.notice(format!("{url}  ({})", tunnel.access));
        Ok(tunnel)
    }

    /// Gives a name back; false when it was not held.
    pub fn cancel(&self, key: &ForwardKey) -> bool {
        let mut forwards = self.forwards.lock();
        let Some(forwards) = forwards.as_mut() else { return false };
        let Some(index) = forwards.iter().position(|forward| forward.key == *key) else { return false };
        let forward = forwards.remove(index);
        self.notice(format!("{} is no longer exposed", forward.lease.tunnel().request_id));
        tracing::info!(conn = %self.conn, tunnel = %forward.lease.tunnel().name, "tunnel closed");
        true
    }

    /// What is exposed now, in the order of the claims.
    pub fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        self.forwards.lock().iter().flatten().map(|forward| forward.lease.tunnel().clone()).collect()
    }

    /// How many channels are open towards the agent.
    pub fn channels_open(&self) -> usize {
        let max = self.shared.settings.ssh.max_channels.min(Semaphore::MAX_PERMITS);
        max.saturating_sub(self.channels.available_permits())
    }

    /// Tells whoever watches; dropped when nobody does.
    pub fn notice(&self, text: String) {
        self.notices.tell(|| text.into());
    }

    /// Tells a person at the agent that something was refused; kept for the next screen when
    /// none is open.
    pub fn tell_refusal(&self, text: &str) {
        let text: Arc<str> = format!("refused: {text}").into();
        if !self.notices.tell(|| text.clone()) {
            let mut refusals = self.refusals.lock();
            if refusals.len() < REFUSALS_KEPT {
                refusals.push(text);
            }
        }
    }

    /// Takes the refusals that no screen has shown yet.
    pub fn take_refusals(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.refusals.lock())
    }

    /// Why it ended, as far as the gateway ended it.
    pub fn end_reason(&self) -> Option<Reason> {
        self.end_reason.lock().or_else(|| self.link.cut_reason())
    }

    /// Ends a session whose peer has just been told why; it has a moment to go itself.
    pub fn end_soon(&self, reason: Reason) {
        self.release_all();
        let link = self.link.clone();
        self.shared.tasks.spawn("ssh goodbye", async move {
            let _ = tokio::time::timeout(GOODBYE, link.closed()).await;
            link.cut(reason);
        });
    }

    /// Gives every name back, and the session's place. Nothing can be claimed after it.
    pub fn release_all(&self) {
        drop(self.forwards.lock().take());
        self.place.give_back();
    }
}

impl Holder for Session {
    fn is_alive(&self) -> BoxFuture<'static, bool> {
        let (handle, link) = (self.handle.get().cloned(), self.link.clone());
        // It has just asked for a name, and waits within its own loop for a rival's sign of life.
        let claiming = self.claiming.clone();
        let claiming = move || claiming.load(Ordering::Acquire);
        Box::pin(async move {
            let Some(handle) = handle else { return false };
            if claiming() {
                return !link.is_dead();
            }
            // The library has no ping from outside a callback. Any answer to a global request
            // will do, and a client refuses this one (RFC 4254, section 4).
            let ping = handle.cancel_forward_tcpip("keepalive@oneport".to_owned(), 0);
            // So does anything else that arrives: the ping may stand in a long queue.
            let sign = async {
                tokio::select! {
                    _ = ping => {}
                    () = link.received_more() => {}
                }
            };
            let seen = tokio::time::timeout(ALIVE_WITHIN, sign).await.is_ok();
            // It may have begun a claim of its own while the ping was on its way.
            (seen || claiming()) && !link.is_dead()
        })
    }

    fn end(&self, reason: Reason) {
        {
            let mut ended = self.end_reason.lock();
            if ended.is_some() {
                return;
            }
            *ended = Some(reason);
        }
        self.link.note_ending(reason);
        self.notice(format!("{} ({reason})", goodbye(reason)));
        // Nobody is led here any more, and who comes again finds the names free.
        self.release_all();
        let (handle, link) = (self.handle.get().cloned(), self.link.clone());
        self.shared.tasks.spawn("ssh goodbye", async move {
            if let Some(handle) = handle {
                let words = format!("{} ({reason})", goodbye(reason));
                let told = handle.disconnect(Disconnect::ByApplication, words, String::new());
                let _ = tokio::time::timeout(GOODBYE, told).await;
                let _ = tokio::time::timeout(GOODBYE, link.closed()).await;
            }
            link.cut(reason);
        });
    }
}
