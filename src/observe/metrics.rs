//! What is counted: one typed struct a room, filled by plain atomics without locks or look-ups.
//!
//! Labels come from lists that are closed at compile time, such as [`Reason`], and never from
//! outside: the number of figures is the same whatever visitors and agents do. What can be read
//! off at any time (open connections, tunnels) is not counted here but asked for, see
//! [`Now`](super::Now).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Reason;

/// How many reasons there are.
const REASONS: usize = Reason::ALL.len();
/// Upper bounds of a histogram's buckets, in seconds; one more has no bound.
pub(super) const BOUNDS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 10.0];

/// Everything that is counted. Rooms touch only their own part, which lies on cache lines of its
/// own.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections as such.
    pub net: NetMetrics,
    /// What connections turned out to be.
    pub edge: EdgeMetrics,
    /// Visitors' requests.
    pub http: HttpMetrics,
    /// Agents' sessions.
    pub ssh: SshMetrics,
    /// Logins.
    pub access: AccessMetrics,
}

/// Connections as such.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct NetMetrics {
    /// Connections accepted by a listener, those included that are refused then.
    pub accepted: Counter,
    /// Connections that ended before it was known what they carry, or for want of a slot.
    pub refused: ByReason,
    /// Visitors' connections that have ended.
    pub ended: ByReason,
}

/// What connections turned out to be.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EdgeMetrics {
    /// Finished handshakes of TLS 1.2.
    pub tls12: Counter,
    /// Finished handshakes of TLS 1.3.
    pub tls13: Counter,
    /// Connections that carry HTTP, over TLS or on a plain listener.
    pub http: Counter,
    /// Connections that carry SSH.
    pub ssh: Counter,
    /// Connections with plain HTTP where HTTPS is spoken.
    pub plain_http: Counter,
    /// Probes of certificate authorities that were answered.
    pub probes: Counter,
    /// Time from accept until it was known what a connection to the single port carries.
    pub identified: Histogram,
}

/// Visitors' requests.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct HttpMetrics {
    /// Requests begun.
    pub begun: Counter,
    /// Requests ended.
    pub ended: Requests,
    /// Octets of bodies and switched streams from visitors.
    pub received: Counter,
    /// Octets of bodies and switched streams to visitors.
    pub sent: Counter,
    /// Streams that have switched protocols.
    pub upgraded: Counter,
    /// Those of them that have ended.
    pub upgraded_ended: Counter,
    /// Connections opened to services.
    pub upstream_opened: Counter,
    /// Times that a kept connection to a service was used again.
    pub upstream_reused: Counter,
}

/// Agents' sessions.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct SshMetrics {
    /// Sessions begun.
    pub begun: Counter,
    /// Sessions ended.
    pub ended: ByReason,
    /// Keys refused.
    pub keys_refused: Counter,
    /// Tunnels opened.
    pub tunnels: Counter,
    /// Forward requests refused.
    pub forwards_refused: ByReason,
    /// Channels opened towards agents.
    pub channels: Counter,
    /// Channels that this side had to close first, because the agent did not.
    pub closed_first: Counter,
    /// Octets that came over agents' uplinks while their visitors took nothing, and went to disk.
    pub spilled: Counter,
    /// Streams cut for what was unread of them.
    pub cut: ByReason,
}

/// Logins.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct AccessMetrics {
    /// Sessions that showed keys, and none that may connect.
    pub failed_ssh: Counter,
    /// Requests that showed a token which does not hold.
    pub failed_http: Counter,
    /// Times that an address was refused from then on.
    pub locked_out: Counter,
}

/// Only goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter for each reason.
#[derive(Debug)]
pub struct ByReason([Counter; REASONS]);

impl Default for ByReason {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl ByReason {
    /// One more for this reason.
    pub fn one(&self, reason: Reason) {
        self.0[reason as usize].one();
    }

    /// The reasons that have occurred, and how often.
    pub fn counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        let all = Reason::ALL.iter().zip(&self.0);
        all.map(|(reason, counter)| (*reason, counter.count())).filter(|(_, count)| *count > 0)
    }
}

/// What an answer's status says in general (RFC 9110, section 15).
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// A counter for each reason and class of status.
#[derive(Debug)]
pub struct Requests([[Counter; CLASSES.len()]; REASONS]);

impl Default for Requests {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Default::default()))
    }
}

impl Requests {
    /// One more request that ended with this status and for this reason.
    pub fn one(&self, reason: Reason, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.0[reason as usize][class].one();
    }

    /// The reasons and classes that have occurred together, and how often.
    pub fn counts(&self) -> impl Iterator<Item = (Reason, &'static str, u64)> {
        let all = Reason::ALL.iter().zip(&self.0).flat_map(|(reason, classes)| {
            CLASSES.iter().zip(classes).map(|(class, counter)| (*reason, *class, counter.count()))
        });
        all.filter(|(_, _, count)| *count > 0)
    }

    /// How many in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().flatten().map(Counter::count).sum()
    }
}

/// How long something took, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    micros: Counter,
}

impl Histogram {
    /// One more that took so long.
    pub fn note(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].one();
        self.micros.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// All times together, in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        Duration::from_micros(self.micros.count()).as_secs_f64()
    }

    /// How many fell into each bucket: its upper bound in seconds, and the count.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
        bounds.zip(&self.buckets).map(|(bound, counter)| (bound, counter.count())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        let by_reason = ByReason::default();
        by_reason.one(Reason::Panic);
        by_reason.one(Reason::Panic);
        assert_eq!(by_reason.counts().collect::<Vec<_>>(), [(Reason::Panic, 2)]);
    }

    #[test]
    fn odd_statuses_have_a_class_too() {
        let requests = Requests::default();
        for status in [100, 101, 204, 499, 500, 599, 600, 999] {
            requests.one(Reason::Answered, http::StatusCode::from_u16(status).expect("a status"));
        }
        let counts: Vec<_> = requests.counts().map(|(_, class, count)| (class, count)).collect();
        assert_eq!(counts, [("1xx", 2), ("2xx", 1), ("4xx", 1), ("5xx", 4)]);
        assert_eq!(requests.total(), 8);
    }

    #[test]
    fn a_time_falls_into_one_bucket() {
        let histogram = Histogram::default();
        for millis in [1, 2, 60_000] {
            histogram.note(Duration::from_millis(millis));
        }
        let full: Vec<_> = histogram.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(full, [(0.001, 1), (0.005, 1), (f64::INFINITY, 1)]);
        assert!((histogram.sum() - 60.003).abs() < 1e-9);
    }
}
