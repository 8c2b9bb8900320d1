//! How much of each channel an agent may send ahead.
//!
//! What is on its way on one channel stands in front of all others on that connection: too large a
//! window makes small requests wait behind a bulk download, too small a one leaves a long way
//! empty. So a session's window is twice what its way holds (its throughput times its round trip),
//! shared by the channels that move much, between two bounds. When nobody has asked the agent for
//! anything for a while, nobody waits behind it, and it is as large as can be.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use russh::ChannelId;

/// The window of a new channel, and the least that a session's busy channels share, in octets.
pub const FIRST: u32 = 256 * 1024;
/// The least for one channel: two of the largest packets.
const LEAST: u64 = 64 * 1024;
/// The most for one channel: what OpenSSH itself gives.
const MOST: u64 = 2 * 1024 * 1024;
/// What all busy channels share while the library may be about to change keys: it ends a session
/// that has more than twice [`FIRST`] on its way when it asks for new keys first.
const NEAR_REKEY: u64 = 3 * FIRST as u64 / 2;
/// The least for one channel then.
const LEAST_NEAR_REKEY: u64 = 8 * 1024;
/// Octets before that in which windows shrink, so that those given before are used up; or a quarter
/// of the way, if that is less.
const REKEY_ZONE: u64 = 64 * 1024 * 1024;
/// Time over which throughput is measured, and channels count as busy.
const SPAN: Duration = Duration::from_millis(100);

/// Spans in which nobody asked for anything, before a bulk download counts as alone.
const ALONE: u32 = 5;

/// The shortest time that an agent took to answer, in microseconds.
#[derive(Debug)]
pub struct RoundTrip(AtomicU64);

impl Default for RoundTrip {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl RoundTrip {
    /// Notes how long an answer took.
    pub fn note(&self, took: Duration) {
        self.0.fetch_min(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The shortest so far; zero before there is one.
    fn shortest(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            u64::MAX => Duration::ZERO,
            micros => Duration::from_micros(micros),
        }
    }
}

/// How far a session is from new keys.
#[derive(Debug)]
pub struct Rekey {
    after: u64,
    /// Octets received since the last ones, as the library counts them.
    received: u64,
}

impl Rekey {
    /// New keys come after so many octets in one direction.
    pub fn new(after: u64) -> Self {
        Self { after, received: 0 }
    }

    /// Counts a packet of channel data.
    pub fn count(&mut self, data: usize) {
        // The head of such a packet (RFC 4254, section 5.2).
        self.received += data as u64 + 9;
        // Twice the bound on what may be on its way meanwhile: by then the keys are new.
        if self.received > self.after.saturating_add(4 * u64::from(FIRST)) {
            self.received = 0;
        }
    }

    /// Whether they may come soon. `sent` counts the octets of the whole session so far.
    fn is_near(&self, sent: u64) -> bool {
        let zone = REKEY_ZONE.min(self.after / 4);
        self.received + zone > self.after || sent % self.after + zone > self.after
    }
}

/// The window of one session's channels.
#[derive(Debug)]
pub struct Window {
    since: Instant,
    received: u64,
    /// How often visitors had sent something when the last span ended.
    asked: u64,
    /// Spans since then in which nobody did.
    alone: u32,
    busy: HashSet<ChannelId>,
    size: u32,
}

impl Window {
    /// Begins now, with nothing received.
    pub fn new() -> Self {
        Self { since: Instant::now(), received: 0, asked: 0, alone: 0, busy: HashSet::new(), size: FIRST }
    }

    /// The window from now on, when `channel` has used up much of its own. `counts` are the octets
    /// of the whole session so far, received and sent, and `asked` how often visitors have sent
    /// something.
    pub fn next(
        &mut self,
        channel: ChannelId,
        counts: (u64, u64),
        asked: u64,
        round_trip: &RoundTrip,
        rekey: &Rekey,
    ) -> u32 {
        let (received, sent) = counts;
        self.busy.insert(channel);
        if rekey.is_near(sent) {
            // Those that were busy in the last span as well; the next one begins when this is over.
            let each = (NEAR_REKEY / self.busy.len().max(1) as u64).max(LEAST_NEAR_REKEY);
            self.alone = 0;
            return u32::try_from(each).unwrap_or(FIRST);
        }
        if asked != self.asked {
            // From the first request on, whoever asks has to wait for what is on its way already.
            if self.alone >= ALONE {
                self.size = FIRST;
            }
            (self.asked, self.alone) = (asked, 0);
        }
        let span = self.since.elapsed();
        if span >= SPAN {
            let octets = received.saturating_sub(self.received);
            self.alone = self.alone.saturating_add(1);
            self.size = if self.alone > ALONE {
                share(MOST, self.busy.len())
            } else {
                size(octets, span, round_trip.shortest(), self.busy.len())
            };
            (self.since, self.received) = (Instant::now(), received);
            self.busy.clear();
        }
        self.size
    }
}

/// The window of each of `busy` channels when `octets` came in `span`.
fn size(octets: u64, span: Duration, round_trip: Duration, busy: usize) -> u32 {
    let on_the_way = u128::from(octets) * round_trip.as_micros() / span.as_micros().max(1);
    let all = u64::try_from(on_the_way * 2).unwrap_or(u64::MAX).max(u64::from(FIRST));
    share(all, busy)
}

/// The part of one channel of `busy`.
fn share(all: u64, busy: usize) -> u32 {
    let each = (all / busy.max(1) as u64).clamp(LEAST, MOST);
    u32::try_from(each).unwrap_or(FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_long_way_has_a_large_window_and_a_short_one_a_small() {
        // 200 MB/s over half a millisecond.
        assert_eq!(size(200_000_000, SECOND, Duration::from_micros(500), 1), FIRST);
        // 10 MB/s over 50 ms: 500 KB are on their way.
        assert_eq!(size(10_000_000, SECOND, Duration::from_millis(50), 1), 1_000_000);
        assert_eq!(size(1_000_000_000, SECOND, SECOND, 1), 2 << 20);
        assert_eq!(size(0, Duration::ZERO, Duration::ZERO, 0), FIRST);
    }

    #[test]
    fn new_keys_are_near_before_they_come_and_for_a_while_after() {
        let mut rekey = Rekey::new(1 << 30);
        let mut receive = |mib: u64| {
            (0..mib * 32).for_each(|_| rekey.count(32 * 1024 - 9));
            (rekey.is_near(0), rekey.is_near((1 << 30) - 1), rekey.is_near(1 << 30))
        };
        assert_eq!(receive(0), (false, true, false));
        assert_eq!(receive(960), (false, true, false));
        assert_eq!(receive(1), (true, true, true));
        assert_eq!(receive(64), (true, true, true));
        assert_eq!(receive(1), (false, true, false));
    }

    #[test]
    fn busy_channels_share_it() {
        assert_eq!(size(0, SECOND, Duration::ZERO, 2), FIRST / 2);
        assert_eq!(u64::from(size(0, SECOND, Duration::ZERO, 200)), LEAST);
        assert_eq!(size(10_000_000, SECOND, Duration::from_millis(50), 4), 250_000);
    }

    #[test]
    fn the_shortest_round_trip_counts() {
        let round_trip = RoundTrip::default();
        assert_eq!(round_trip.shortest(), Duration::ZERO);
        round_trip.note(Duration::from_millis(7));
        round_trip.note(Duration::from_millis(9));
        assert_eq!(round_trip.shortest(), Duration::from_millis(7));
    }
}
