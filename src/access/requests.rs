//! How many requests there may be: in a second, and at the same time; to one target, or from one
//! address. Keeps nothing of an address that has no limits, and of no more addresses than it may.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use crate::config::RateSettings;
use crate::net::address_group;

/// Parts of the map of addresses, so that requests rarely wait for each other.
const SHARDS: usize = 16;
/// Addresses that are remembered in each: 65,536 in all.
const SHARD_MAX: usize = 4096;
/// Addresses that are looked at for one that can be forgotten.
const TRIES: usize = 8;

type Rate = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<std::time::Instant>>;

/// The requests to one target, or from one address.
#[derive(Debug)]
pub struct Requests {
    rate: Option<Rate>,
    running: AtomicUsize,
    most: usize,
}

/// A request that runs; dropping it says that it has ended.
#[derive(Debug)]
pub struct Running(Arc<Requests>);

/// There are too many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// In this time.
    #[error("more requests in a second than may be")]
    InASecond {
        /// Until one more may be.
        wait: Duration,
    },
    /// At the same time.
    #[error("{0} requests run at the same time, which is all that may be")]
    AtOnce(usize),
}

impl Requests {
    /// Counts from now. `None` where there is no limit.
    #[must_use]
    pub fn limited(settings: RateSettings) -> Option<Arc<Self>> {
        (!settings.is_none()).then(|| Arc::new(Self::of(settings)))
    }

    fn of(settings: RateSettings) -> Self {
        let rate = NonZeroU32::new(settings.per_second).map(|rate| {
            let burst = NonZeroU32::new(settings.burst()).unwrap_or(rate);
            RateLimiter::direct_with_clock(Quota::per_second(rate).allow_burst(burst), MonotonicClock)
        });
        Self { rate, running: AtomicUsize::new(0), most: settings.running }
    }

    /// Counts one more.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin(self: &Arc<Self>) -> Result<Running, TooMany> {
        let before = self.running.fetch_add(1, Ordering::AcqRel);
        // From here on, dropping it takes it off again.
        let running = Running(self.clone());
        if self.most > 0 && before >= self.most {
            return Err(TooMany::AtOnce(self.most));
        }
        if let Some(rate) = &self.rate {
            let wait = |until: governor::NotUntil<_>| until.wait_time_from(MonotonicClock.now());
            rate.check().map_err(|until| TooMany::InASecond { wait: wait(until) })?;
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl TooMany {
    /// When it is worth another try, in whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> u64 {
        match self {
            Self::InASecond { wait } => wait.as_secs() + u64::from(wait.subsec_nanos() > 0),
            Self::AtOnce(_) => 1,
        }
        .max(1)
    }
}

/// The requests of each address; of an IPv6 /64 together.
///
/// Of 65,536 addresses at most. For one more, another is forgotten that has no request running;
/// whoever has so many addresses gains nothing by it.
#[derive(Debug)]
pub struct Visitors {
    settings: RateSettings,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Debug, Default)]
struct Shard {
    by_address: HashMap<IpAddr, Arc<Requests>>,
    /// All of them, in the order in which they are looked at for one to forget.
    order: VecDeque<IpAddr>,
}

impl Visitors {
    /// Counts from now. `None` where there is no limit.
    #[must_use]
    pub fn limited(settings: RateSettings) -> Option<Arc<Self>> {
        let shards = || (0..SHARDS).map(|_| Mutex::default()).collect();
        (!settings.is_none())
            .then(|| Arc::new(Self { settings, hasher: RandomState::new(), shards: shards() }))
    }

    /// Counts one more of this address. `None` where so many addresses have requests running that
    /// this one cannot be remembered.
    ///
    /// # Errors
    /// When it has too many.
    pub fn begin(&self, address: IpAddr) -> Result<Option<Running>, TooMany> {
        let key = address_group(address);
        // A hash is no index; the remainder is below the count of shards.
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        let mut shard = self.shards[index].lock();
        // Under the lock, or it might be forgotten before it runs.
        shard.of(key, self.settings).map(|requests| requests.begin()).transpose()
    }
}

impl Shard {
    fn of(&mut self, key: IpAddr, settings: RateSettings) -> Option<Arc<Requests>> {
        if let Some(known) = self.by_address.get(&key) {
            return Some(known.clone());
        }
        if self.by_address.len() >= SHARD_MAX && !self.forget_one() {
            return None;
        }
        let requests = Arc::new(Requests::of(settings));
        self.by_address.insert(key, requests.clone());
        self.order.push_back(key);
        Some(requests)
    }

    fn forget_one(&mut self) -> bool {
        for _ in 0..TRIES {
            let Some(key) = self.order.pop_front() else { return false };
            let is_idle = |requests: &Arc<Requests>| requests.running.load(Ordering::Acquire) == 0;
            if self.by_address.get(&key).is_none_or(is_idle) {
                self.by_address.remove(&key);
                return true;
            }
            self.order.push_back(key);
        }
        false
    }
}

/// There are too many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManyRequests {
    /// To what was asked for.
    #[error("{0}, to this host")]
    Target(TooMany),
    /// From where they come.
    #[error("{0}, from your address")]
    Visitor(TooMany),
}

impl TooManyRequests {
    /// When it is worth another try, in whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> u64 {
        match self {
            Self::Target(many) | Self::Visitor(many) => many.retry_after(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32, burst: u32, running: usize) -> RateSettings {
        RateSettings { per_second, burst, running }
    }

    #[test]
    fn so_many_in_a_second_and_so_many_at_once() {
        assert!(Requests::limited(RateSettings::default()).is_none());
        let requests = Requests::limited(rate(1, 3, 0)).expect("limited");
        for _ in 0..3 {
            requests.begin().expect("within the burst");
        }
        let refused = requests.begin().expect_err("past the burst");
        assert!(matches!(refused, TooMany::InASecond { wait } if wait <= Duration::from_secs(1)));
        assert_eq!(refused.retry_after(), 1);
        assert_eq!(requests.running.load(Ordering::Relaxed), 0, "the refused one was left counted");

        let requests = Requests::limited(rate(0, 0, 2)).expect("limited");
        let held = [requests.begin().expect("free"), requests.begin().expect("free")];
        assert_eq!(requests.begin().map(drop), Err(TooMany::AtOnce(2)));
        drop(held);
        assert!(requests.begin().is_ok());
        assert_eq!(TooMany::InASecond { wait: Duration::from_millis(1001) }.retry_after(), 2);
    }

    #[test]
    fn each_address_has_its_own_and_no_more_are_kept_than_may_be() {
        let visitors = Visitors::limited(rate(0, 0, 1)).expect("limited");
        let held = visitors.begin("192.0.2.1".parse().expect("literal")).expect("free").expect("room");
        assert!(visitors.begin("192.0.2.1".parse().expect("literal")).is_err());
        for number in 0..200_000_u128 {
            let address = IpAddr::from(((0x2001_0db8 << 96) | (number << 64)).to_be_bytes());
            visitors.begin(address).expect("its first");
        }
        let kept: usize = visitors.shards.iter().map(|shard| shard.lock().by_address.len()).sum();
        assert!(kept <= SHARDS * SHARD_MAX, "{kept} addresses are kept");
        let ordered: usize = visitors.shards.iter().map(|shard| shard.lock().order.len()).sum();
        assert_eq!(kept, ordered);
        // Who has a request running is not forgotten, and gets no second one by it.
        assert!(visitors.begin("192.0.2.1".parse().expect("literal")).is_err());
        drop(held);
        assert!(visitors.begin("192.0.2.1".parse().expect("literal")).is_ok());
    }
}
