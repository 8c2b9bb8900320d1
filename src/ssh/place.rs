//! A session's place: among those of its key, and at its address. It is taken with the login and given
//! back when the session ends.

use parking_lot::Mutex;

use super::quota::{Full, Of, Share};
use super::session::Session;
use crate::access::AgentThere;
use crate::observe::Reason;
use crate::registry::Holder as _;

/// How many of a key's sessions are asked for a sign of life when it has as many as it may.
const ASKED: usize = 16;

/// The place of one session.
#[derive(Debug, Default)]
pub struct Place(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// Nobody has logged in yet.
    #[default]
    Before,
    Held {
        _share: Option<Share>,
        _there: AgentThere,
    },
    /// Given back, for good.
    After,
}

impl Place {
    /// Takes it; false when the key has as many as it may, or the session has ended. Sessions of the
    /// key that are dead give way: waits 5 s for their sign of life at most.
    pub async fn take(&self, session: &Session) -> bool {
        let Some(identity) = session.identity() else { return false };
        let take = || session.shared.quotas.take(Of::Sessions, &identity.fingerprint);
        let share = match take() {
            Err(Full(_)) => {
                session.while_deciding(end_dead(session, &identity.fingerprint)).await;
                take()
            }
            taken => taken,
        };
        let Ok(share) = share else { return false };
        let there = session.shared.admission.failures().agent_there(session.peer.ip());
        let mut state = self.0.lock();
        if matches!(*state, State::Before) {
            *state = State::Held { _share: share, _there: there };
        }
        matches!(*state, State::Held { .. })
    }

    /// Gives it back. It cannot be taken after it.
    pub fn give_back(&self) {
        let held = std::mem::replace(&mut *self.0.lock(), State::After);
        drop(held);
    }

    /// Whether it is held.
    pub fn is_held(&self) -> bool {
        matches!(*self.0.lock(), State::Held { .. })
    }
}

async fn end_dead(session: &Session, fingerprint: &str) {
    let mut others = session.shared.sessions.of_key(fingerprint);
    others.truncate(ASKED);
    let alive = futures_util::future::join_all(others.iter().map(|other| other.is_alive())).await;
    for (other, _) in others.iter().zip(alive).filter(|(_, alive)| !alive) {
        tracing::info!(conn = %session.conn, dead = %other.conn, "a session of the same key does not answer and gives way");
        other.end(Reason::TakenOver);
    }
}
