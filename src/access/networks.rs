//! May somebody come from this address? Pure: the longest network that holds the address decides.
//!
//! An address without a network is refused where something is allowed by name, and may come
//! otherwise. An IPv6 address or network that stands for an IPv4 one (`::ffff:0:0/96`) is that one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

/// Bits in front of the IPv4 address that an IPv6 address stands for (RFC 4291, section 2.5.5.2).
const MAPPED: u8 = 96;

/// Two lists of networks, for quick decisions: each costs as many look-ups as there are different
/// lengths of networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkTable {
    rules: HashMap<IpNet, Rule>,
    /// Lengths that occur, the longest first.
    v4: Vec<u8>,
    v6: Vec<u8>,
    allow: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    denies: bool,
    place: Place,
}

/// Where a network is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The list, such as `networks.deny`.
    pub list: Arc<str>,
    /// The file and the line, if it is in one.
    pub line: Option<(Arc<str>, usize)>,
}

/// What decided, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// A network of a list.
    Network(IpNet, Place),
    /// That no network has the address; with the list of those that may come, if there is one.
    Nothing(Option<Arc<str>>),
}

/// Somebody may not come from where they are. Says to them no more than that; [`Self::by`] is for
/// the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address {from} may not come here; ask the operator of this gateway")]
pub struct NetworkDenial {
    /// Where they are.
    pub from: IpAddr,
    /// What decided.
    pub by: DecidedBy,
}

impl NetworkTable {
    /// Has everybody refused whom no network allows; `list` says where that is written.
    pub fn allow_only(&mut self, list: &Arc<str>) {
        self.allow = Some(list.clone());
    }

    /// Adds a network. Of the same network in both lists, that which denies counts.
    pub fn add(&mut self, network: IpNet, denies: bool, place: Place) {
        let network = canonical(network);
        let lengths = if network.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let length = network.prefix_len();
        if let Err(index) = lengths.binary_search_by(|known| length.cmp(known)) {
            lengths.insert(index, length);
        }
        match self.rules.entry(network) {
            Entry::Vacant(entry) => drop(entry.insert(Rule { denies, place })),
            Entry::Occupied(mut entry) if denies && !entry.get().denies => {
                entry.insert(Rule { denies, place });
            }
            Entry::Occupied(_) => {}
        }
    }

    /// How many networks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Decides; the value says what did.
    ///
    /// # Errors
    /// When nobody may come from there.
    pub fn check(&self, from: IpAddr) -> Result<DecidedBy, NetworkDenial> {
        let from = from.to_canonical();
        let lengths = if from.is_ipv4() { &self.v4 } else { &self.v6 };
        let found = lengths.iter().find_map(|length| {
            let network = IpNet::new(from, *length).ok()?.trunc();
            self.rules.get(&network).map(|rule| (network, rule))
        });
        let (denies, by) = match found {
            Some((network, rule)) => (rule.denies, DecidedBy::Network(network, rule.place.clone())),
            None => (self.allow.is_some(), DecidedBy::Nothing(self.allow.clone())),
        };
        if denies { Err(NetworkDenial { from, by }) } else { Ok(by) }
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network, place) => write!(f, "{network} in {place}"),
            Self::Nothing(Some(list)) => write!(f, "no network of {list} has it"),
            Self::Nothing(None) => f.write_str("no network has it"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.line {
            Some((file, line)) => write!(f, "{} ({file}:{line})", self.list),
            None => f.write_str(&self.list),
        }
    }
}

/// The network without bits behind its length, and as IPv4 where it stands for that.
fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    if let IpNet::V6(v6) = network
        && let Some(length) = v6.prefix_len().checked_sub(MAPPED)
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return v4.into();
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(list: &str) -> Place {
        Place { list: list.into(), line: None }
    }

    fn table(allow: &[&str], deny: &[&str]) -> NetworkTable {
        let mut table = NetworkTable::default();
        if !allow.is_empty() {
            table.allow_only(&"allow".into());
        }
        let parse = |text: &str| text.parse::<IpNet>().expect("a network");
        for text in allow {
            table.add(parse(text), false, place("allow"));
        }
        for text in deny {
            table.add(parse(text), true, place("deny"));
        }
        table
    }

    fn says(table: &NetworkTable, from: &str) -> String {
        match table.check(from.parse().expect("an address")) {
            Ok(by) => format!("+ {by}"),
            Err(denial) => format!("- {}", denial.by),
        }
    }

    #[test]
    fn the_longest_network_wins_and_of_two_alike_the_denial() {
        let both = table(
            &["10.0.0.0/8", "10.1.2.0/24", "2001:db8::/32", "192.0.2.0/24"],
            &["10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "2001:db8:bad::/48"],
        );
        for (from, wanted) in [
            ("10.9.9.9", "+ 10.0.0.0/8 in allow"),
            ("10.1.9.9", "- 10.1.0.0/16 in deny"),
            ("10.1.2.9", "+ 10.1.2.0/24 in allow"),
            ("10.1.2.3", "- 10.1.2.3/32 in deny"),
            ("192.0.2.7", "- 192.0.2.0/24 in deny"),
            ("198.51.100.1", "- no network of allow has it"),
            ("2001:db8::1", "+ 2001:db8::/32 in allow"),
            ("2001:db8:bad::1", "- 2001:db8:bad::/48 in deny"),
            ("::1", "- no network of allow has it"),
        ] {
            assert_eq!(says(&both, from), wanted, "{from}");
        }
        let only_deny = table(&[], &["0.0.0.0/0"]);
        assert_eq!(says(&only_deny, "192.0.2.1"), "- 0.0.0.0/0 in deny");
        assert_eq!(says(&only_deny, "::1"), "+ no network has it");
        assert_eq!(says(&NetworkTable::default(), "192.0.2.1"), "+ no network has it");
        // The order in which they are added does not matter.
        let mut turned = table(&[], &["192.0.2.0/24"]);
        turned.add("192.0.2.0/24".parse().expect("a network"), false, place("allow"));
        assert_eq!(says(&turned, "192.0.2.1"), "- 192.0.2.0/24 in deny");
    }

    #[test]
    fn addresses_and_networks_that_stand_for_ipv4_are_ipv4() {
        let table = table(&["::ffff:10.0.0.0/104", "192.0.2.77/24"], &["::ffff:10.1.0.0/112"]);
        assert_eq!(says(&table, "10.2.0.1"), "+ 10.0.0.0/8 in allow");
        assert_eq!(says(&table, "::ffff:10.1.0.1"), "- 10.1.0.0/16 in deny");
        assert_eq!(says(&table, "::ffff:192.0.2.1"), "+ 192.0.2.0/24 in allow");
        assert_eq!(canonical("::ffff:0:0/96".parse().expect("a network")).to_string(), "0.0.0.0/0");
        // Wider than that is IPv6, and has no IPv4 address in it.
        assert_eq!(canonical("::/0".parse().expect("a network")).to_string(), "::/0");
    }

    /// As the table does, but by looking at every network.
    fn naive(allow: &[IpNet], deny: &[IpNet], from: IpAddr) -> bool {
        let longest = |list: &[IpNet]| {
            let nets = list.iter().map(|net| canonical(*net)).filter(|net| net.contains(&from));
            nets.map(|net| net.prefix_len()).max()
        };
        match (longest(allow), longest(deny)) {
            (None, None) => allow.is_empty(),
            (allowed, denied) => allowed > denied,
        }
    }

    #[test]
    fn it_decides_as_looking_at_every_network_would() {
        // A fixed sequence: a fault is found again.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut address = {
            let mut next = next;
            move || -> IpAddr {
                // Few bits differ, so that networks lie within each other.
                let bits = next();
                let low = u32::try_from(bits & 0x0303_0303).expect("small");
                match bits >> 62 {
                    0 => IpAddr::from(low.to_be_bytes()),
                    1 => IpAddr::from((0xffff_0000_0000_u128 | u128::from(low)).to_be_bytes()),
                    _ => IpAddr::from((u128::from(low) << 96 | u128::from(bits & 0xf)).to_be_bytes()),
                }
            }
        };
        let mut denied = 0;
        for _ in 0..2000 {
            let mut list = |most: u64| -> Vec<IpNet> {
                let count = next() % most;
                let one = |_| {
                    let address = address();
                    let most = if address.is_ipv4() { 33 } else { 129 };
                    IpNet::new(address, u8::try_from(next() % most).expect("small")).expect("it fits")
                };
                (0..count).map(one).collect()
            };
            let (allow, deny) = (list(4), list(5));
            let mut made = NetworkTable::default();
            if !allow.is_empty() {
                made.allow_only(&"allow".into());
            }
            allow.iter().for_each(|net| made.add(*net, false, place("allow")));
            deny.iter().for_each(|net| made.add(*net, true, place("deny")));
            for _ in 0..20 {
                let from = address();
                let wanted = naive(&allow, &deny, from.to_canonical());
                assert_eq!(made.check(from).is_ok(), wanted, "{from}: {allow:?} {deny:?}");
                denied += usize::from(!wanted);
            }
        }
        assert!((4_000..36_000).contains(&denied), "{denied} of 40000 say little");
    }
}
