//! What agents' sessions are counted by, for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of all sessions. They only grow, but for what is open now.
#[derive(Debug, Default)]
pub struct Counters {
    spilled: AtomicU64,
    streams_cut: AtomicU64,
    closed_first: AtomicU64,
    channels: AtomicU64,
    sessions: AtomicU64,
}

/// What was counted, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Octets that visitors had not taken when they came over agents' uplinks, and that went to
    /// disk for it; in all.
    pub spilled: u64,
    /// Octets on disk now.
    pub disk_used: u64,
    /// Streams that were cut because too much of them was unread; in all.
    pub streams_cut: u64,
    /// Channels that the gateway had to close first, because the agent did not; in all. The SSH
    /// library keeps some 3.5 KB of each until its session ends.
    pub closed_first: u64,
    /// Channels for visitors that are open now.
    pub channels: u64,
    /// Sessions that are open now.
    pub sessions: u64,
}

/// Counts something as open while it lives.
#[derive(Debug)]
pub struct OpenCount(Arc<Counters>, fn(&Counters) -> &AtomicU64);

impl Counters {
    /// Notes octets that went to disk.
    pub fn note_spilled(&self, octets: u64) {
        self.spilled.fetch_add(octets, Ordering::Relaxed);
    }

    /// Notes a stream that was cut.
    pub fn note_cut(&self) {
        self.streams_cut.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a channel that the agent left open.
    pub fn note_closed_first(&self) {
        self.closed_first.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a channel.
    #[must_use]
    pub fn channel(self: &Arc<Self>) -> OpenCount {
        OpenCount::new(self, |counters| &counters.channels)
    }

    /// Counts a session.
    #[must_use]
    pub fn session(self: &Arc<Self>) -> OpenCount {
        OpenCount::new(self, |counters| &counters.sessions)
    }

    /// What was counted so far; `disk_used` is the caller's to know.
    #[must_use]
    pub fn read(&self, disk_used: u64) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            spilled: of(&self.spilled),
            disk_used,
            streams_cut: of(&self.streams_cut),
            closed_first: of(&self.closed_first),
            channels: of(&self.channels),
            sessions: of(&self.sessions),
        }
    }
}

impl OpenCount {
    fn new(counters: &Arc<Counters>, pick: fn(&Counters) -> &AtomicU64) -> Self {
        pick(counters).fetch_add(1, Ordering::Relaxed);
        Self(counters.clone(), pick)
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_counts_while_it_lives() {
        let counters = Arc::<Counters>::default();
        let (session, channel) = (counters.session(), counters.channel());
        counters.note_cut();
        counters.note_spilled(7);
        let counts = Counts { spilled: 7, disk_used: 3, streams_cut: 1, ..Counts::default() };
        assert_eq!(counters.read(3), Counts { channels: 1, sessions: 1, ..counts });
        drop((session, channel));
        assert_eq!(counters.read(3), counts);
    }
}
