//! The sessions that run, for whoever asks how the gateway is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::session::Session;
use crate::access::Identity;
use crate::net::{ConnId, PeerAddr};
use crate::observe::SshNow;
use crate::registry::Tunnel;

/// All sessions that run, and what those that have ended carried.
#[derive(Default)]
pub struct Sessions(Mutex<State>);

#[derive(Default)]
struct State {
    running: HashMap<ConnId, Arc<Session>>,
    received: u64,
    sent: u64,
}

/// What is known of one session.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    /// The connection that it runs on.
    pub conn: ConnId,
    /// The other end.
    pub peer: PeerAddr,
    /// The user's name (the environment), once authenticated.
    pub user: Option<Arc<str>>,
    /// The agent's key, once authenticated.
    pub identity: Option<Identity>,
    /// The software in the agent's version line; empty until it came. The agent's words.
    pub software: String,
    /// How long it has run.
    pub age: Duration,
    /// Channels open towards the agent.
    pub channels: usize,
    /// Octets received, SSH's own included.
    pub received: u64,
    /// Octets sent, SSH's own included.
    pub sent: u64,
    /// What it offers.
    pub tunnels: Vec<Arc<Tunnel>>,
}

impl Sessions {
    /// Takes a session in.
    pub fn enter(&self, session: Arc<Session>) {
        self.0.lock().running.insert(session.conn, session);
    }

    /// Lets a session go; what it has carried is kept in the sums.
    pub fn leave(&self, session: &Session) {
        let mut state = self.0.lock();
        if state.running.remove(&session.conn).is_some() {
            // Under the lock, so that nobody who adds up counts it twice or not at all.
            let (received, sent) = session.link.counts();
            state.received += received;
            state.sent += sent;
        }
    }

    /// The sessions of a key that hold a place among those it may have, the oldest first. Looks at
    /// each session.
    pub fn of_key(&self, fingerprint: &str) -> Vec<Arc<Session>> {
        let is_its = |session: &&Arc<Session>| {
            session.place.is_held() && session.identity().is_some_and(|own| &*own.fingerprint == fingerprint)
        };
        let mut all: Vec<_> = self.0.lock().running.values().filter(is_its).cloned().collect();
        all.sort_by_key(|session| session.started);
        all
    }

    /// The figures of all.
    pub fn now(&self) -> SshNow {
        let state = self.0.lock();
        let mut now = SshNow {
            sessions: state.running.len() as u64,
            received: state.received,
            sent: state.sent,
            ..SshNow::default()
        };
        for session in state.running.values() {
            let (received, sent) = session.link.counts();
            now.received += received;
            now.sent += sent;
            now.channels += session.channels_open() as u64;
        }
        now
    }

    /// What is known of each, the oldest first.
    pub fn facts(&self) -> Vec<SessionFacts> {
        let mut running: Vec<Arc<Session>> = self.0.lock().running.values().cloned().collect();
        running.sort_by_key(|session| session.started);
        running.iter().map(|session| SessionFacts::of(session)).collect()
    }
}

impl SessionFacts {
    fn of(session: &Session) -> Self {
        let (received, sent) = session.link.counts();
        Self {
            conn: session.conn,
            peer: session.peer,
            user: session.user().cloned(),
            identity: session.identity().cloned(),
            software: session.link.software(),
            age: session.started.elapsed(),
            channels: session.channels_open(),
            received,
            sent,
            tunnels: session.tunnels(),
        }
    }
}
