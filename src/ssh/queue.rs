//! What waits to be sent to agents: the queue of one session, and the sum of all, which has a bound.
//! Past it the session ends whose agent has left most.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use parking_lot::Mutex;

use super::transport::Link;
use crate::observe::Reason;

/// What waits to be sent on one connection.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: BytesMut,
    /// Octets taken from `waiting` that the peer has not taken yet.
    pub(super) in_flight: usize,
    /// Nothing more comes.
    pub(super) finished: bool,
    /// Octets that count for the sum.
    counted: usize,
    /// It counts no more: its connection was cut, and what is left goes in a moment.
    written_off: bool,
}

impl Queue {
    /// Octets in all.
    pub(super) fn length(&self) -> usize {
        self.waiting.len() + self.in_flight
    }

    /// Drops what is not on its way, and counts nothing more.
    pub(super) fn write_off(&mut self, sum: &Queues) {
        self.waiting = BytesMut::new();
        self.written_off = true;
        sum.count(self);
    }
}

/// The queues of all sessions.
#[derive(Debug)]
pub struct Queues {
    most: usize,
    used: AtomicUsize,
    next: AtomicU64,
    links: Mutex<HashMap<u64, Weak<Link>>>,
}

impl Default for Queues {
    /// Without a bound.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl Queues {
    /// At most so many octets wait.
    #[must_use]
    pub fn new(most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self { most, used: AtomicUsize::new(0), next: AtomicU64::new(0), links: Mutex::default() }
    }

    /// Octets that wait, of all.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes a connection in; the value is its number here.
    pub(super) fn enter(&self, link: &Arc<Link>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.links.lock().insert(number, Arc::downgrade(link));
        number
    }

    /// Lets a connection go.
    pub(super) fn leave(&self, number: u64) {
        self.links.lock().remove(&number);
    }

    /// Counts a queue as it is now.
    pub(super) fn count(&self, queue: &mut Queue) {
        let before = queue.counted;
        queue.counted = if queue.written_off { 0 } else { queue.length() };
        if queue.counted >= before {
            self.used.fetch_add(queue.counted - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - queue.counted, Ordering::Relaxed);
        }
    }

    /// Cuts the connections with the longest queues until all together have no more than they may.
    /// Not to be called with a queue locked.
    pub(super) fn keep_bound(&self) {
        while self.used.load(Ordering::Relaxed) > self.most {
            let links: Vec<_> = self.links.lock().values().filter_map(Weak::upgrade).collect();
            let longest = links.into_iter().filter(|link| !link.is_dead()).max_by_key(|link| link.queued());
            let Some(longest) = longest.filter(|link| link.queued() > 0) else { return };
            tracing::info!(
                queued = longest.queued(),
                "too much waits to be sent to agents; a session is cut"
            );
            longest.give_up(Reason::AgentStalled);
        }
    }
}
