//! Failed logins of addresses: after some, refusals take longer; after more, the address is refused
//! for a while. Showing nothing is no failure, showing something wrong is.
//!
//! Each kind of login counts by itself, and is slowed and refused by itself: what web pages have
//! browsers send shuts out neither tools nor agents. An address from which an agent is connected is not
//! counted: others who share it must not be able to lock that agent out. Remembers so many at most, and
//! forgets none that is locked before its time.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::TokenFault;
use crate::config::FailureSettings;
use crate::net::address_group;
use crate::observe::Metrics;

/// Addresses that are remembered, those with two kinds of failed logins twice.
const MOST: usize = 65_536;
/// How many of these are looked at for one that can be forgotten.
const TRIES: usize = 8;
/// The first pause before a refusal; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Whether a token that does not hold may be a guess. It is none if whom it names has signed it, which
/// is looked at before most of these; if there were no keys yet to look with; or if nobody here has
/// anything to do with it, as with those that a service gives its own visitors. What names no issuer
/// can only be one of these, unless it `is_for_us`: shown where only the gateway looks.
#[must_use]
pub const fn is_guess(fault: &TokenFault, is_for_us: bool) -> bool {
    match fault {
        TokenFault::Expired(_)
        | TokenFault::NotYet(_)
        | TokenFault::NoTime(_)
        | TokenFault::NoExpiry
        | TokenFault::WrongAudience
        | TokenFault::NoKeysYet(_)
        | TokenFault::UnknownIssuer(_) => false,
        TokenFault::TooLong | TokenFault::Malformed | TokenFault::Critical | TokenFault::NoIssuer => {
            is_for_us
        }
        TokenFault::WrongAlgorithm(_)
        | TokenFault::OtherKey
        | TokenFault::NoAgent
        | TokenFault::UnusableKey
        | TokenFault::UnknownKey(_)
        | TokenFault::BadSignature => true,
    }
}

/// How somebody tried to log in. Each way counts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Login {
    /// As an agent, with a key.
    Ssh,
    /// As a visitor, with a token: a tool, or a person.
    Token,
    /// As a visitor, with a token in a request that a page of a browser made, which nobody at this
    /// browser need know of.
    Page,
}

impl Login {
    const ALL: [Self; 3] = [Self::Ssh, Self::Token, Self::Page];

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Token => "token",
            Self::Page => "page",
        }
    }
}

/// Whose failed logins count together: those of one kind from one address, of an IPv6 /64 together.
type Key = (IpAddr, Login);

/// The failed logins. Clones share them.
#[derive(Clone, Debug)]
pub struct Failures(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: FailureSettings,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// All of them, in the order in which they are looked at for one to forget.
    order: VecDeque<Key>,
    /// How many agents are connected from an address.
    agents: HashMap<IpAddr, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    count: u32,
    since: Instant,
    /// When it is refused no longer.
    locked_until: Option<Instant>,
}

/// An address is refused for its failed logins of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many logins from the address {from} have failed; nobody can log in so (`{}`) from there for {} s", .how.word(), .left.as_secs() + 1)]
pub struct LockedOut {
    /// The address.
    pub from: IpAddr,
    /// The kind.
    pub how: Login,
    /// For how long.
    pub left: Duration,
}

/// An agent is connected from an address; dropping it says that it is no longer.
#[derive(Debug)]
pub struct AgentThere {
    failures: Failures,
    key: IpAddr,
}

impl Failures {
    /// None so far.
    #[must_use]
    pub fn new(settings: FailureSettings, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner { settings, metrics, state: Mutex::default() }))
    }

    /// Looks whether the address may try to log in so now.
    ///
    /// # Errors
    /// When it is refused.
    pub fn check(&self, from: IpAddr, how: Login) -> Result<(), LockedOut> {
        self.check_at(from, how, Instant::now())
    }

    /// Counts a failed login, and says how long to wait before it is answered.
    ///
    /// # Errors
    /// When the address is refused from now on, or was already.
    pub fn failed(&self, from: IpAddr, how: Login) -> Result<Duration, LockedOut> {
        self.failed_at(from, how, Instant::now())
    }

    /// How long to wait before a refusal that does not count by itself.
    #[must_use]
    pub fn pause(&self, from: IpAddr, how: Login) -> Duration {
        let state = self.0.state.lock();
        let entry = state.entries.get(&(address_group(from), how));
        entry.map_or(Duration::ZERO, |entry| self.pause_after(entry.count))
    }

    /// Notes that an agent has logged in from there. What was counted before is forgotten.
    #[must_use]
    pub fn agent_there(&self, from: IpAddr) -> AgentThere {
        let key = address_group(from);
        let mut state = self.0.state.lock();
        *state.agents.entry(key).or_insert(0) += 1;
        if Login::ALL.map(|how| state.entries.remove(&(key, how))).iter().any(Option::is_some) {
            state.order.retain(|(known, _)| *known != key);
        }
        drop(state);
        AgentThere { failures: self.clone(), key }
    }

    fn check_at(&self, from: IpAddr, how: Login, now: Instant) -> Result<(), LockedOut> {
        let state = self.0.state.lock();
        let until = state.entries.get(&(address_group(from), how)).and_then(|entry| entry.locked_until);
        match until.map(|until| until.saturating_duration_since(now)) {
            Some(left) if !left.is_zero() => Err(LockedOut { from, how, left }),
            _ => Ok(()),
        }
    }

    fn failed_at(&self, from: IpAddr, how: Login, now: Instant) -> Result<Duration, LockedOut> {
        let FailureSettings { most, window, lockout, .. } = self.0.settings;
        match how {
            Login::Ssh => self.0.metrics.access.failed_ssh.one(),
            Login::Token | Login::Page => self.0.metrics.access.failed_http.one(),
        }
        if most == 0 {
            return Ok(Duration::ZERO);
        }
        let key = address_group(from);
        let mut state = self.0.state.lock();
        if state.agents.contains_key(&key) {
            return Ok(Duration::ZERO);
        }
        let Some(entry) = state.entry((key, how), now, window) else { return Ok(LONGEST_PAUSE) };
        if let Some(left) = entry.locked_until.map(|until| until.saturating_duration_since(now)) {
            return Err(LockedOut { from, how, left });
        }
        entry.count = entry.count.saturating_add(1);
        if entry.count < most {
            let count = entry.count;
            return Ok(self.pause_after(count));
        }
        entry.locked_until = Some(now + lockout);
        drop(state);
        self.0.metrics.access.locked_out.one();
        tracing::info!(address = %key, by = how.word(), seconds = lockout.as_secs(), "an address is refused for its failed logins");
        Err(LockedOut { from, how, left: lockout })
    }

    fn pause_after(&self, count: u32) -> Duration {
        match count.checked_sub(self.0.settings.slow_after) {
            None | Some(0) => Duration::ZERO,
            // Past sixteen doublings it is the longest anyhow.
            Some(more) => (FIRST_PAUSE * 2_u32.pow((more - 1).min(16))).min(LONGEST_PAUSE),
        }
    }
}

impl State {
    /// What is known of an address; anew where it no longer counts. `None` where there is no room.
    fn entry(&mut self, key: Key, now: Instant, window: Duration) -> Option<&mut Entry> {
        let fresh = Entry { count: 0, since: now, locked_until: None };
        if !self.entries.contains_key(&key) {
            if self.entries.len() >= MOST && !self.forget_one(now) {
                return None;
            }
            self.entries.insert(key, fresh);
            self.order.push_back(key);
        }
        let entry = self.entries.get_mut(&key)?;
        let is_over = match entry.locked_until {
            Some(until) => until <= now,
            None => now.saturating_duration_since(entry.since) >= window,
        };
        if is_over {
            *entry = fresh;
        }
        Some(entry)
    }

    fn forget_one(&mut self, now: Instant) -> bool {
        for _ in 0..TRIES {
            let Some(key) = self.order.pop_front() else { return false };
            let is_locked = |entry: &Entry| entry.locked_until.is_some_and(|until| until > now);
            if !self.entries.get(&key).is_some_and(is_locked) {
                self.entries.remove(&key);
                return true;
            }
            self.order.push_back(key);
        }
        false
    }
}

impl Drop for AgentThere {
    fn drop(&mut self) {
        let mut state = self.failures.0.state.lock();
        if let Some(agents) = state.agents.get_mut(&self.key) {
            *agents -= 1;
            if *agents == 0 {
                state.agents.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn failures() -> Failures {
        let settings = FailureSettings { slow_after: 2, most: 5, window: 10 * MINUTE, lockout: 20 * MINUTE };
        Failures::new(settings, Arc::default())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn first_slowed_then_refused_for_a_while() {
        let (failures, here, now) = (failures(), address("192.0.2.1"), Instant::now());
        let fail = |at| failures.failed_at(here, Login::Token, at);
        let millis = Duration::from_millis;
        assert_eq!((fail(now), fail(now)), (Ok(millis(0)), Ok(millis(0))));
        assert_eq!((fail(now), fail(now)), (Ok(millis(100)), Ok(millis(200))));
        assert_eq!(failures.pause(here, Login::Token), millis(200));
        assert!(failures.check_at(here, Login::Token, now).is_ok());
        assert_eq!(fail(now), Err(LockedOut { from: here, how: Login::Token, left: 20 * MINUTE }));
        assert_eq!(
            failures.check_at(here, Login::Token, now + MINUTE).map_err(|locked| locked.left),
            Err(19 * MINUTE)
        );
        assert!(failures.check_at(address("192.0.2.2"), Login::Token, now).is_ok());
        // A failure while it is refused does not make it longer.
        assert!(fail(now + 19 * MINUTE).is_err());
        assert!(failures.check_at(here, Login::Token, now + 20 * MINUTE).is_ok());
        assert_eq!(fail(now + 20 * MINUTE), Ok(millis(0)), "it does not begin anew");
    }

    #[test]
    fn each_kind_counts_by_itself() {
        let (here, now) = (address("192.0.2.1"), Instant::now());
        for locked in Login::ALL {
            let failures = failures();
            let tries: Vec<_> = (0..5).map(|_| failures.failed_at(here, locked, now)).collect();
            assert_eq!(tries.last(), Some(&Err(LockedOut { from: here, how: locked, left: 20 * MINUTE })));
            for how in Login::ALL {
                assert_eq!(failures.check_at(here, how, now).is_err(), how == locked, "{locked:?}, {how:?}");
                assert_eq!(failures.pause(here, how).is_zero(), how != locked, "{locked:?}, {how:?}");
            }
            // An agent there ends them all.
            let others = Login::ALL.into_iter().filter(|how| *how != locked);
            others.for_each(|how| assert_eq!(failures.failed_at(here, how, now), Ok(Duration::ZERO)));
            let _there = failures.agent_there(here);
            assert!(failures.check_at(here, locked, now).is_ok());
            let state = failures.0.state.lock();
            assert!(state.entries.is_empty() && state.order.is_empty(), "{state:?}");
        }
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let (failures, here, now) = (failures(), address("192.0.2.1"), Instant::now());
        for _ in 0..4 {
            assert!(failures.failed_at(here, Login::Ssh, now).is_ok());
        }
        assert_eq!(failures.failed_at(here, Login::Ssh, now + 10 * MINUTE), Ok(Duration::ZERO));
    }

    #[test]
    fn an_address_with_an_agent_is_never_refused() {
        let (failures, now) = (failures(), Instant::now());
        let (one, other) = (address("2001:db8::1"), address("2001:db8::2"));
        let fail = || (0..20).map(|_| failures.failed_at(other, Login::Token, now)).filter(Result::is_err);
        let there = failures.agent_there(one);
        assert_eq!(fail().count(), 0);
        drop(there);
        assert!(failures.check_at(one, Login::Token, now).is_ok());
        assert_eq!(fail().count(), 16);
        assert!(failures.check_at(one, Login::Token, now).is_err(), "a /64 is one address");
    }

    #[test]
    fn nobody_gets_free_by_filling_the_memory() {
        let (failures, here, now) = (failures(), address("192.0.2.1"), Instant::now());
        for _ in 0..5 {
            let _ = failures.failed_at(here, Login::Token, now);
        }
        for number in 0..200_000_u128 {
            let address = IpAddr::from(((0x2001_0db8 << 96) | (number << 64)).to_be_bytes());
            let how = Login::ALL[usize::try_from(number % 3).expect("small")];
            assert!(failures.failed_at(address, how, now).is_ok());
        }
        assert!(failures.check_at(here, Login::Token, now).is_err(), "it was forgotten");
        let state = failures.0.state.lock();
        assert!(state.entries.len() <= MOST && state.order.len() == state.entries.len());
    }
}
