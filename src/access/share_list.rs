//! Which previews are shared, as it is kept: so many of one key, of one address and in all. Each look-up
//! and change is quick, however many there are, because each guest's request waits for it.
//!
//! With [`AgentKeys`](super::AgentKeys) that let anybody in, keys cost nothing; so what is made at one
//! address is bounded, too. The address is in the file as well: links outlive a restart, and so must the
//! bound, or some would last to use up what there is for all.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::keep::{hex, unhex};
use super::shares::ShareFault;
use crate::name::TunnelName;
use crate::observe::shown_time;

/// Most shares that one key may have at a time.
pub const OF_KEY_MAX: usize = 64;
/// Most that were made at one address (of IPv6, one /64), by whatever keys.
pub const FROM_ADDRESS_MAX: usize = 640;
/// Most shares of all keys.
pub const ALL_MAX: usize = 20_000;

/// What names a share. Not a secret: the link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShareId(pub(super) [u8; 8]);

/// Whose key it is, by the hash of its fingerprint.
pub type Owner = [u8; 16];

/// One preview, shared until a time.
#[derive(Clone, Debug)]
pub struct Share {
    /// Names it.
    pub id: ShareId,
    /// The preview.
    pub name: TunnelName,
    pub(super) owner: Owner,
    /// Unix time.
    pub(super) until: i64,
    /// Where it was made; of an IPv6 /64, its first address. `None`: by an older version.
    pub(super) from: Option<IpAddr>,
}

/// All that is shared.
#[derive(Debug, Default)]
pub struct List {
    all: HashMap<ShareId, Arc<Share>>,
    /// In the order of their ends.
    ends: BTreeSet<(i64, ShareId)>,
    of_key: HashMap<Owner, Vec<ShareId>>,
    from: HashMap<IpAddr, usize>,
    /// How often it has changed.
    changes: u64,
}

impl std::fmt::Display for ShareId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl ShareId {
    /// Reads what `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }
}

impl Share {
    /// When it ends by itself (RFC 3339).
    #[must_use]
    pub fn until(&self) -> String {
        shown(self.until)
    }

    pub(super) fn is_over(&self, now: i64) -> bool {
        self.until <= now
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.id.0[..], &self.owner, &self.until.to_be_bytes()].concat()
    }

    /// `ID OWNER UNTIL NAME ADDRESS`, of which the last may be missing.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (id, owner) = (ShareId::parse(words.next()?)?, unhex(words.next()?)?);
        let (until, name) = (words.next()?.parse().ok()?, TunnelName::from_label(words.next()?)?);
        let from = match words.next() {
            None => None,
            Some(address) => Some(address.parse().ok()?),
        };
        words.next().is_none().then_some(Self { id, name, owner, until, from })
    }

    /// What [`List::read`] reads.
    pub(super) fn line(&self) -> String {
        let Self { id, name, owner, until, from } = self;
        let from = from.map_or(String::new(), |from| format!(" {from}"));
        format!("{id} {} {until} {name}{from}\n", hex(owner))
    }
}

impl List {
    /// What lines say that are not over `now`, each for at most `max` from then on: whether that cut any,
    /// is the second value. Lines that are none are left out.
    pub(super) fn read(text: &str, max: Duration, now: i64) -> (Self, bool) {
        let (mut list, mut is_cut) = (Self::default(), false);
        let latest = now.saturating_add_unsigned(max.as_secs());
        let living = text.lines().filter_map(Share::parse).filter(|share| !share.is_over(now));
        for share in living.take(ALL_MAX) {
            is_cut |= share.until > latest;
            let share = Share { until: share.until.min(latest), ..share };
            if !share.is_over(now) {
                list.insert(share);
            }
        }
        (list, is_cut)
    }

    /// The value is the number of this change.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub(super) fn add(&mut self, share: Share, now: i64) -> Result<u64, ShareFault> {
        self.forget_over(now);
        if self.of_key.get(&share.owner).is_some_and(|own| own.len() >= OF_KEY_MAX) {
            return Err(ShareFault::TooMany);
        }
        if share.from.and_then(|from| self.from.get(&from)).is_some_and(|count| *count >= FROM_ADDRESS_MAX) {
            return Err(ShareFault::TooManyHere);
        }
        if self.all.len() >= ALL_MAX {
            return Err(ShareFault::Full);
        }
        self.insert(share);
        self.changes += 1;
        Ok(self.changes)
    }

    /// The value is the number of this change.
    pub(super) fn remove(&mut self, ids: &[ShareId]) -> u64 {
        ids.iter().for_each(|id| self.take(id));
        self.changes += 1;
        self.changes
    }

    /// The one of this name, which may be over.
    pub(super) fn get(&self, id: &ShareId) -> Option<Arc<Share>> {
        self.all.get(id).cloned()
    }

    /// Those of one key, of which some may be over.
    pub(super) fn of(&self, owner: &Owner) -> Vec<Arc<Share>> {
        let own = self.of_key.get(owner).into_iter().flatten();
        own.filter_map(|id| self.get(id)).collect()
    }

    /// All of them, and the number of the last change.
    pub(super) fn copy(&self) -> (Vec<Arc<Share>>, u64) {
        (self.all.values().cloned().collect(), self.changes)
    }

    fn forget_over(&mut self, now: i64) {
        while let Some((until, id)) = self.ends.first().copied()
            && until <= now
        {
            self.take(&id);
        }
    }

    fn insert(&mut self, share: Share) {
        self.take(&share.id);
        self.ends.insert((share.until, share.id));
        self.of_key.entry(share.owner).or_default().push(share.id);
        if let Some(from) = share.from {
            *self.from.entry(from).or_default() += 1;
        }
        self.all.insert(share.id, Arc::new(share));
    }

    fn take(&mut self, id: &ShareId) {
        let Some(share) = self.all.remove(id) else { return };
        self.ends.remove(&(share.until, *id));
        if let Some(own) = self.of_key.get_mut(&share.owner) {
            own.retain(|known| known != id);
            if own.is_empty() {
                self.of_key.remove(&share.owner);
            }
        }
        if let Some(from) = share.from
            && let Some(count) = self.from.get_mut(&from)
        {
            *count -= 1;
            if *count == 0 {
                self.from.remove(&from);
            }
        }
    }
}

/// A time as people read it (RFC 3339).
pub(super) fn shown(time: i64) -> String {
    OffsetDateTime::from_unix_timestamp(time).map(shown_time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1_000_000);

    /// One of very many, of this key and address.
    fn share(number: usize, key: usize, from: &str, until: i64) -> Share {
        let id = ShareId((number as u64).to_be_bytes());
        let name = TunnelName::from_label("a").expect("a label");
        let from = (!from.is_empty()).then(|| from.parse().expect("an address"));
        Share { id, name, owner: (key as u128).to_be_bytes(), until, from }
    }

    fn is_empty(list: &List) -> bool {
        list.all.is_empty() && list.ends.is_empty() && list.of_key.is_empty() && list.from.is_empty()
    }

    #[test]
    fn nobody_uses_up_what_there_is_for_all_with_many_keys() {
        let mut list = List::default();
        for number in 0..FROM_ADDRESS_MAX {
            list.add(share(number, number / 10, "192.0.2.1", 100), 0).expect("room");
        }
        let more = share(FROM_ADDRESS_MAX, 9_999, "192.0.2.1", 100);
        assert!(matches!(list.add(more.clone(), 0), Err(ShareFault::TooManyHere)));
        // After a restart as well.
        let text: String = list.copy().0.iter().map(|share| share.line()).collect();
        let (mut again, is_cut) = List::read(&text, LONG, 0);
        assert!(!is_cut && matches!(again.add(more.clone(), 0), Err(ShareFault::TooManyHere)));
        // Others, and a key of theirs elsewhere, are not concerned; what is taken back or over makes room.
        again.add(share(700, 9_999, "2001:db8::", 100), 0).expect("room");
        again.add(share(701, 0, "192.0.2.2", 100), 0).expect("room");
        again.remove(&[ShareId(0_u64.to_be_bytes())]);
        again.add(more.clone(), 0).expect("room");
        assert!(matches!(again.add(share(702, 0, "192.0.2.1", 200), 99), Err(ShareFault::TooManyHere)));
        again.add(share(702, 0, "192.0.2.1", 200), 100).expect("room");
        again.remove(&[ShareId(702_u64.to_be_bytes())]);
        assert!(is_empty(&again), "{again:?}");
    }

    #[test]
    fn a_key_and_all_keys_have_so_many() {
        let mut list = List::default();
        for number in 0..ALL_MAX {
            let (key, from) = (number / OF_KEY_MAX, format!("10.0.{}.{}", number / 2560, number / 10 % 256));
            list.add(share(number, key, &from, 100), 0).expect("room");
        }
        assert_eq!(list.of(&0_u128.to_be_bytes()).len(), OF_KEY_MAX);
        assert!(matches!(list.add(share(ALL_MAX, 0, "::", 100), 0), Err(ShareFault::TooMany)));
        assert!(matches!(list.add(share(ALL_MAX, ALL_MAX, "::", 100), 0), Err(ShareFault::Full)));
        let text: String = list.copy().0.iter().map(|share| share.line()).collect();
        assert_eq!(List::read(&format!("{text}{text}"), LONG, 0).0.copy().0.len(), ALL_MAX);
        list.forget_over(100);
        assert!(is_empty(&list));
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        let good = format!("{} {} 99 web-abc", "0a".repeat(8), "ff".repeat(16));
        for from in ["", " 192.0.2.1", " 2001:db8::"] {
            let line = format!("{good}{from}");
            assert_eq!(Share::parse(&line).expect("a share").line(), format!("{line}\n"));
        }
        for bad in ["", "a b 1 c", &good[1..], &format!("{good} x"), &good.replace("99", "x")] {
            assert!(Share::parse(bad).is_none(), "{bad}");
        }
        assert!(Share::parse(&format!("{good} 192.0.2.1 x")).is_none());
    }

    #[test]
    fn what_was_read_is_cut() {
        let text: String = [50, 100, 200].map(|until| share(until as usize, 0, "", until).line()).concat();
        let ends = |max, now| {
            let (list, is_cut) = List::read(&text, Duration::from_secs(max), now);
            (list.ends.into_iter().map(|(until, _)| until).collect::<Vec<_>>(), is_cut)
        };
        assert_eq!(ends(150, 50), (vec![100, 200], false));
        assert_eq!(ends(20, 40), (vec![50, 60, 60], true));
        assert_eq!(ends(0, 40), (vec![], true));
        assert_eq!(ends(0, 300), (vec![], false));
        assert_eq!(ends(u64::MAX, 0), (vec![50, 100, 200], false));
    }
}
