//! Slots: how many connections or streams may be open, in all and from one address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts what is open. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Slots {
    state: Arc<Mutex<State>>,
    total: usize,
    per_address: PerAddress,
}

/// How many of the slots one address may hold.
#[derive(Clone, Copy, Debug)]
enum PerAddress {
    /// So many.
    Fixed(usize),
    /// As many as are left for all others.
    Fair,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotsFull {
    /// All are taken.
    #[error("all {0} connection slots are taken")]
    Total(usize),
    /// This address holds its share.
    #[error("the address holds all of its {0} connection slots")]
    Address(usize),
}

/// The right to one open connection or stream; dropping it gives the slot back.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    key: IpAddr,
}

impl Slots {
    /// Allows `total` connections, `per_address` of them from one address.
    #[must_use]
    pub fn new(total: usize, per_address: usize) -> Self {
        Self { state: Arc::default(), total, per_address: PerAddress::Fixed(per_address) }
    }

    /// Allows `total`, of which no address holds more than it leaves for all others: one alone half
    /// of them, each of two a third.
    #[must_use]
    pub fn fair(total: usize) -> Self {
        Self { state: Arc::default(), total, per_address: PerAddress::Fair }
    }

    /// Takes a slot for one more of `address`.
    ///
    /// # Errors
    /// When all slots, or all of this address's, are taken.
    pub fn take(&self, address: IpAddr) -> Result<Slot, SlotsFull> {
        let key = address_group(address);
        let mut state = self.state.lock();
        if state.open >= self.total {
            return Err(SlotsFull::Total(self.total));
        }
        let left = self.total - state.open;
        let most = match self.per_address {
            PerAddress::Fixed(most) => most,
            PerAddress::Fair => left,
        };
        match state.by_address.entry(key) {
            Entry::Occupied(held) if *held.get() >= most => return Err(SlotsFull::Address(most)),
            Entry::Vacant(_) if most == 0 => return Err(SlotsFull::Address(most)),
            entry => *entry.or_insert(0) += 1,
        }
        state.open += 1;
        Ok(Slot { slots: self.clone(), key })
    }

    /// How many slots are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.state.lock().open
    }

    /// How many slots there are, in all and for one address that is alone.
    #[must_use]
    pub fn limits(&self) -> (usize, usize) {
        let per_address = match self.per_address {
            PerAddress::Fixed(most) => most,
            PerAddress::Fair => self.total.div_ceil(2),
        };
        (self.total, per_address)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state.lock();
        state.open -= 1;
        if let Entry::Occupied(mut held) = state.by_address.entry(self.key) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// What counts as one address: one IPv6 customer usually holds a whole /64. An IPv6 address that stands
/// for an IPv4 one is that one.
#[must_use]
pub fn address_group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let prefix = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(prefix.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_when_dropped() {
        let slots = Slots::new(3, 2);
        let here: IpAddr = "192.0.2.1".parse().expect("literal");
        let first = slots.take(here).expect("free");
        let _second = slots.take(here).expect("free");
        assert_eq!(slots.take(here).map(drop), Err(SlotsFull::Address(2)));
        let _other = slots.take("2001:db8::1".parse().expect("literal")).expect("free");
        assert_eq!((slots.taken(), slots.limits()), (3, (3, 2)));
        assert_eq!(slots.take("192.0.2.9".parse().expect("literal")).map(drop), Err(SlotsFull::Total(3)));
        drop(first);
        assert!(slots.take(here).is_ok());
    }

    #[test]
    fn nobody_holds_more_than_is_left_for_all_others() {
        let slots = Slots::fair(9);
        let take = |address: &str| slots.take(address.parse().expect("literal"));
        let all = |address| std::iter::from_fn(|| take(address).ok()).collect::<Vec<_>>();
        let greedy = all("192.0.2.1");
        assert_eq!((greedy.len(), slots.limits()), (5, (9, 5)));
        assert_eq!(take("192.0.2.1").map(drop), Err(SlotsFull::Address(4)));
        let too = all("2001:db8::1");
        assert_eq!(too.len(), 2);
        assert!(take("2001:db8::2").is_err(), "the same customer");
        // Whoever holds nothing finds one.
        let modest = take("192.0.2.3").expect("one is free");
        assert_eq!(take("192.0.2.3").map(drop), Err(SlotsFull::Address(1)));
        let last = take("192.0.2.4").expect("one is free");
        assert_eq!(take("192.0.2.5").map(drop), Err(SlotsFull::Total(9)));
        drop((greedy, too, modest, last));
        assert!(slots.state.lock().by_address.is_empty());
    }

    #[test]
    fn a_v6_customer_is_one_address() {
        let slots = Slots::new(9, 1);
        let _held = slots.take("2001:db8::1".parse().expect("literal")).expect("free");
        assert!(slots.take("2001:db8::2".parse().expect("literal")).is_err());
        assert!(slots.take("2001:db8:0:1::2".parse().expect("literal")).is_ok());
    }
}
