//! How much of each channel the gateway sends ahead of what the agent has taken.
//!
//! Agents give windows of megabytes, and all of a full one would stand in front of every other
//! stream. So an upload waits at a smaller limit of its own until the agent says that it has taken
//! something. Agents say so at different times, some only when half of their window is used up, and
//! ways are of different length: when no word comes for a while, the limit grows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The limit until the agent has said for the first time that it has taken something, in octets.
/// OpenSSH says so after 96 KiB.
const FIRST: u64 = 128 * 1024;
/// The least limit after that.
const LEAST: u64 = 256 * 1024;
/// The largest limit: past it the agent's own window is what counts.
const MOST: u64 = 4 << 20;
/// How long an upload waits at its limit before the limit grows, at the least and at the most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What is on its way up on one channel.
#[derive(Debug)]
pub struct Ahead {
    octets: u64,
    /// The largest window that the agent has left so far: then nothing was on its way.
    largest: u64,
    limit: u64,
    /// Whether the limit grew since the agent's last word.
    grown: bool,
    said: Option<Instant>,
    pause: Duration,
}

/// What the channels of one session have learned of their agent.
#[derive(Debug)]
pub struct Learned(AtomicU64);

impl Default for Learned {
    fn default() -> Self {
        Self(AtomicU64::new(FIRST))
    }
}

impl Ahead {
    /// Nothing is on its way.
    pub fn new() -> Self {
        Self { octets: 0, largest: 0, limit: FIRST, grown: false, said: None, pause: Duration::ZERO }
    }

    /// Whether an upload should wait.
    pub fn is_full(&self, learned: &Learned) -> bool {
        self.octets >= self.limit.max(learned.0.load(Ordering::Relaxed))
    }

    /// Notes octets that were handed over.
    pub fn note_sent(&mut self, octets: usize) {
        self.octets += octets as u64;
    }

    /// Notes that the agent has taken something, after which its window is `window`.
    pub fn note_taken(&mut self, window: u32, learned: &Learned) {
        let (before, window) = (self.octets, u64::from(window));
        self.largest = self.largest.max(window);
        self.octets = self.largest - window;
        self.limit = self.limit.max(LEAST);
        if self.grown && before.saturating_sub(self.octets) > LEAST {
            // It says nothing before it has taken as much.
            learned.0.fetch_max(self.limit, Ordering::Relaxed);
        }
        self.grown = false;
        self.pause = self.said.map_or(Duration::ZERO, |said| said.elapsed());
        self.said = Some(Instant::now());
    }

    /// How long to wait at the limit: an agent at the end of a slow way is silent for longer.
    pub fn patience(&self) -> Duration {
        (self.pause * 2).clamp(PATIENCE.0, PATIENCE.1)
    }

    /// No word came.
    pub fn grow(&mut self, learned: &Learned) {
        let limit = self.limit.max(learned.0.load(Ordering::Relaxed)).max(self.octets);
        // At the largest, only the agent's window holds an upload back.
        self.limit = if limit >= MOST { u64::MAX } else { limit * 2 };
        self.grown = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_waits_until_something_of_it_was_taken() {
        let (mut ahead, learned) = (Ahead::new(), Learned::default());
        ahead.note_sent(128 * 1024 - 1);
        assert!(!ahead.is_full(&learned));
        ahead.note_sent(1);
        assert!(ahead.is_full(&learned));
        ahead.note_taken(2 << 20, &learned);
        assert!(!ahead.is_full(&learned));
        ahead.note_sent(256 * 1024);
        assert!(ahead.is_full(&learned));
        ahead.note_taken((2 << 20) - 200 * 1024, &learned);
        assert!(!ahead.is_full(&learned));
        ahead.note_sent(56 * 1024);
        assert!(ahead.is_full(&learned));
        assert!(Ahead::new().patience() >= PATIENCE.0);
    }

    #[test]
    fn an_agent_that_says_little_is_sent_more_from_then_on() {
        let (mut ahead, learned) = (Ahead::new(), Learned::default());
        while ahead.octets < 1 << 20 {
            if ahead.is_full(&learned) {
                ahead.grow(&learned);
            }
            ahead.note_sent(32 * 1024);
        }
        ahead.note_taken(2 << 20, &learned);
        let mut next = Ahead::new();
        next.note_sent((1 << 20) - 1);
        assert!(!next.is_full(&learned));
    }

    #[test]
    fn who_never_says_anything_has_only_its_window_in_the_end() {
        let (mut ahead, learned) = (Ahead::new(), Learned::default());
        for _ in 0..10 {
            ahead.grow(&learned);
        }
        ahead.note_sent(1 << 30);
        assert!(!ahead.is_full(&learned));
    }
}
