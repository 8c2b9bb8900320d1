//! How long a visit stays allowed: until its time is over, or what it rests on ends before. Who
//! serves a visit waits for that together with the visit itself, and ends it then.

use std::collections::HashMap;
use std::future::pending;
use std::hash::Hash;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::observe::Reason;

/// How often the clock is looked at: it may be set while somebody waits for a time.
const LOOK: Duration = Duration::from_secs(60);

/// Something that permits rest on and that may end: an issuer's key, a login, a link. Clones share
/// it.
#[derive(Clone, Debug, Default)]
pub struct Basis(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    over: CancellationToken,
    why: OnceLock<Reason>,
    /// What this rests on in turn.
    under: Option<Basis>,
}

impl Basis {
    /// One that ends with `under`, if not before.
    #[must_use]
    pub fn on(under: &Self) -> Self {
        let (over, under) = (under.0.over.child_token(), Some(under.clone()));
        Self(Arc::new(Inner { over, why: OnceLock::new(), under }))
    }

    /// Ends it, and all that rests on it. The first reason stays.
    pub fn end(&self, why: Reason) {
        let _ = self.0.why.set(why);
        self.0.over.cancel();
    }

    /// Why it has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Reason> {
        let under = || self.0.under.as_ref().and_then(Self::ended);
        self.0.why.get().copied().or_else(under)
    }
}

/// Bases by name, each for as long as somebody rests on it: there are never many more than that.
#[derive(Debug)]
pub struct Bases<K>(Mutex<Known<K>>);

#[derive(Debug)]
struct Known<K> {
    all: HashMap<K, Weak<Inner>>,
    /// At how many the dead ones are taken out.
    full_at: usize,
}

/// Below this many, dead ones stay.
const FEW: usize = 64;

impl<K> Default for Bases<K> {
    fn default() -> Self {
        Self(Mutex::new(Known { all: HashMap::new(), full_at: FEW }))
    }
}

impl<K: Eq + Hash> Bases<K> {
    /// The basis of this name: the one that others rest on already, or a new one on `under`. Whether
    /// it may be rested on is to be asked afterwards, so that no end is missed.
    pub fn of(&self, name: K, under: Option<&Basis>) -> Basis {
        let mut known = self.0.lock();
        if let Some(inner) = known.all.get(&name).and_then(Weak::upgrade) {
            return Basis(inner);
        }
        if known.all.len() >= known.full_at {
            known.all.retain(|_, inner| inner.strong_count() > 0);
            known.full_at = (known.all.len() * 2).max(FEW);
        }
        let basis = under.map_or_else(Basis::default, Basis::on);
        known.all.insert(name, Arc::downgrade(&basis.0));
        basis
    }

    /// Ends those of these names.
    pub fn end(&self, why: Reason, is_meant: impl Fn(&K) -> bool) {
        let meant: Vec<_> = {
            let known = self.0.lock();
            let meant = known.all.iter().filter(|(name, _)| is_meant(name));
            meant.filter_map(|(_, inner)| inner.upgrade()).map(Basis).collect()
        };
        meant.iter().for_each(|basis| basis.end(why));
    }
}

/// How long a permit holds. Clones hold as long.
#[derive(Clone, Debug, Default)]
pub struct Hold {
    until: Option<OffsetDateTime>,
    basis: Option<Basis>,
    other: Option<Basis>,
}

impl Hold {
    /// Until this time (`None`: for ever), and for as long as `basis` has not ended.
    #[must_use]
    pub const fn new(until: Option<OffsetDateTime>, basis: Option<Basis>) -> Self {
        Self { until, basis, other: None }
    }

    /// The same, and for as long as `other` has not ended either.
    #[must_use]
    pub fn and(self, other: Option<Basis>) -> Self {
        Self { other, ..self }
    }

    /// Whether nothing can end it.
    #[must_use]
    pub fn is_endless(&self) -> bool {
        self.until.is_none() && self.bases().next().is_none()
    }

    /// Why it is over at this time, if it is.
    #[must_use]
    pub fn over_at(&self, now: OffsetDateTime) -> Option<Reason> {
        let expired = self.until.is_some_and(|until| until <= now).then_some(Reason::PermitExpired);
        expired.or_else(|| self.bases().find_map(Basis::ended))
    }

    /// Waits until it is over; the value is why. Cancel safe.
    pub async fn over(&self) -> Reason {
        loop {
            let now = OffsetDateTime::now_utc();
            if let Some(why) = self.over_at(now) {
                return why;
            }
            tokio::select! {
                () = self.time_over(now) => {}
                () = basis_over(self.basis.as_ref()) => {}
                () = basis_over(self.other.as_ref()) => {}
            }
        }
    }

    async fn time_over(&self, now: OffsetDateTime) {
        match self.until {
            Some(until) => {
                let left = Duration::try_from(until - now).unwrap_or_default();
                tokio::time::sleep(left.min(LOOK)).await;
            }
            None => pending().await,
        }
    }

    fn bases(&self) -> impl Iterator<Item = &Basis> {
        self.basis.iter().chain(&self.other)
    }
}

async fn basis_over(basis: Option<&Basis>) {
    match basis {
        Some(basis) => basis.0.over.cancelled().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(seconds)
    }

    #[tokio::test]
    async fn whatever_ends_first_is_why() {
        let (key, login) = (Basis::default(), Basis::default());
        let hold = Hold::new(Some(soon(600)), Some(Basis::on(&key)));
        assert_eq!(hold.over_at(soon(0)), None);
        assert_eq!(hold.over_at(soon(601)), Some(Reason::PermitExpired));
        let waiting = hold.clone();
        let (why, ()) = tokio::join!(waiting.over(), async {
            tokio::task::yield_now().await;
            key.end(Reason::IssuerKeyRemoved);
            key.end(Reason::Panic);
        });
        assert_eq!(why, Reason::IssuerKeyRemoved);
        assert_eq!(hold.over_at(soon(0)), Some(Reason::IssuerKeyRemoved));
        assert_eq!(login.ended(), None);
        let both = Hold::new(None, Some(login.clone())).and(Some(key));
        assert_eq!((both.is_endless(), both.over().await), (false, Reason::IssuerKeyRemoved));
        assert_eq!(Hold::new(Some(soon(-1)), None).over().await, Reason::PermitExpired);
        let short = Hold::new(Some(OffsetDateTime::now_utc() + Duration::from_millis(50)), Some(login));
        assert_eq!(short.over().await, Reason::PermitExpired);
    }

    #[test]
    fn a_named_basis_is_known_while_somebody_rests_on_it() {
        let bases = Bases::default();
        let (key, first, second) = (Basis::default(), bases.of(1, None), bases.of(2, None));
        bases.end(Reason::LoginEnded, |name| *name == 1);
        assert_eq!((first.ended(), second.ended()), (Some(Reason::LoginEnded), None));
        assert_eq!(bases.of(1, None).ended(), Some(Reason::LoginEnded));
        drop(first);
        assert_eq!(bases.of(1, None).ended(), None);
        let third = bases.of(3, Some(&key));
        key.end(Reason::IssuerKeyRemoved);
        assert_eq!(third.ended(), Some(Reason::IssuerKeyRemoved));
        (4..100_000).for_each(|name| drop(bases.of(name, None)));
        assert!(bases.0.lock().all.len() <= FEW);
        assert_eq!(bases.of(2, None).ended(), second.ended());
        second.end(Reason::Finished);
        assert_eq!(bases.of(2, None).ended(), Some(Reason::Finished));
    }

    #[tokio::test]
    async fn what_rests_on_another_ends_alone_as_well() {
        let key = Basis::default();
        let (first, second) = (Basis::on(&key), Basis::on(&key));
        first.end(Reason::Finished);
        assert_eq!((first.ended(), second.ended(), key.ended()), (Some(Reason::Finished), None, None));
        key.end(Reason::IssuerKeyRemoved);
        assert_eq!(second.ended(), Some(Reason::IssuerKeyRemoved));
        assert_eq!(Basis::on(&key).ended(), Some(Reason::IssuerKeyRemoved));
    }
}
