//! Where a record belongs: what its name is another name for, in which zone that lies, and which
//! servers are that zone's own.
//!
//! Asks the system's resolvers, or those of the settings, for zones and their servers. Never asks them
//! for the record itself, before it is there: what they do not know, they remember not to know.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::DnsError;
use super::ask::ask;
use crate::config::DnsSettings;

/// Where the system says who its resolvers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How many of them are asked, as the system's own library does.
const RESOLVERS_MAX: usize = 3;
/// How many CNAME records are followed.
const CNAMES_MAX: usize = 8;
/// How many delegations are followed from the zone above a name.
const DELEGATIONS_MAX: usize = 4;
/// How many name servers of a zone are looked at, and addresses of each.
const SERVERS_MAX: usize = 16;
/// The port of the DNS.
const PORT: u16 = 53;

/// A server of a zone.
#[derive(Clone, Debug)]
pub(super) struct ZoneServer {
    /// What the NS record calls it.
    pub(super) name: String,
    /// Where it is. Not empty.
    pub(super) addresses: Vec<SocketAddr>,
}

/// Where a record belongs.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// What its name leads to by CNAME records; the name itself where there is none.
    pub(super) name: Name,
    /// The servers to ask what stands there. Not empty.
    pub(super) servers: Vec<ZoneServer>,
}

/// Asks where things are.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    resolvers: Vec<SocketAddr>,
    servers: Vec<SocketAddr>,
    /// Where a zone's servers listen.
    port: u16,
}

impl Lookup {
    pub(super) fn new(settings: &DnsSettings) -> Self {
        Self { resolvers: settings.resolver.clone(), servers: settings.servers.clone(), port: PORT }
    }

    #[cfg(test)]
    pub(super) fn with_port(mut self, port: u16) -> Self {
        self.set_port(port);
        self
    }

    #[cfg(test)]
    pub(super) fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Where a zone's servers listen.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Where the record called `name` belongs. Resolvers are asked for the names above it only, and the
    /// zones' own servers for the rest. Cancel safe.
    pub(super) async fn home_of(&self, name: &Name) -> Result<Home, DnsError> {
        let mut at = name.clone();
        for _ in 0..=CNAMES_MAX {
            let (servers, answer) = self.ask_own(&at).await?;
            match alias_in(&answer, &at) {
                Some(next) if !is_of_wildcard(&servers, &at, &next).await? => at = next,
                _ => return Ok(Home { name: at, servers }),
            }
        }
        Err(DnsError::Circle(show(name)))
    }

    /// Who holds `name`, and what they say of its CNAME record.
    async fn ask_own(&self, name: &Name) -> Result<(Vec<ZoneServer>, Message), DnsError> {
        let mut servers = self.servers_above(name).await?;
        let mut zone = None;
        for _ in 0..DELEGATIONS_MAX {
            let answer = first_answer(&servers, name, RecordType::CNAME).await?;
            // A server may hold both zones, and answer for the lower one.
            match zone_below(&answer, name).filter(|below| zone.as_ref() != Some(below)) {
                Some(below) if self.servers.is_empty() => {
                    servers = self.servers_of(&below).await?;
                    zone = Some(below);
                }
                _ => return Ok((servers, answer)),
            }
        }
        Err(DnsError::NoZone(show(name)))
    }

    /// The servers of the zone that what is above `name` lies in.
    pub(super) async fn servers_above(&self, name: &Name) -> Result<Vec<ZoneServer>, DnsError> {
        if !self.servers.is_empty() {
            return self.servers_of(name).await;
        }
        self.servers_of(&self.zone_of(&name.base_name()).await?).await
    }

    /// The zone that holds `name`.
    pub(super) async fn zone_of(&self, name: &Name) -> Result<Name, DnsError> {
        let mut at = name.clone();
        while !at.is_root() {
            let answer = self.resolve(&at, RecordType::SOA).await?;
            if let Some(zone) = soa_above(&answer, name) {
                return Ok(zone);
            }
            at = at.base_name();
        }
        Err(DnsError::NoZone(show(name)))
    }

    /// The servers to ask what stands in the zone.
    pub(super) async fn servers_of(&self, zone: &Name) -> Result<Vec<ZoneServer>, DnsError> {
        if !self.servers.is_empty() {
            let given =
                self.servers.iter().map(|at| ZoneServer { name: at.to_string(), addresses: vec![*at] });
            return Ok(given.collect());
        }
        let names: Vec<Name> = self.name_servers(zone).await?.into_iter().take(SERVERS_MAX).collect();
        let found = join_all(names.iter().map(|name| self.addresses_of(name))).await;
        let (mut servers, mut fault) = (Vec::new(), DnsError::NoServers(show(zone)));
        for (name, addresses) in names.iter().zip(found) {
            match addresses {
                Ok(addresses) if addresses.is_empty() => {}
                Ok(addresses) => {
                    let at = addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port));
                    servers.push(ZoneServer { name: show(name), addresses: at.collect() });
                }
                // Nobody else finds it either, and asks the others.
                Err(error) => {
                    tracing::debug!(server = %show(name), %error, "a name server is passed over");
                    fault = error;
                }
            }
        }
        if servers.is_empty() { Err(fault) } else { Ok(servers) }
    }

    /// The names in the NS records of `name`.
    pub(super) async fn name_servers(&self, name: &Name) -> Result<Vec<Name>, DnsError> {
        let answer = self.resolve(name, RecordType::NS).await?;
        let names = answer.answers.iter().filter_map(|record| match &record.data {
            RData::NS(server) => Some(server.0.clone()),
            _ => None,
        });
        Ok(names.collect())
    }

    /// The addresses of a host. Those of one kind will do where the others cannot be found out.
    pub(super) async fn addresses_of(&self, name: &Name) -> Result<Vec<IpAddr>, DnsError> {
        let (mut addresses, mut fault) = (Vec::new(), None);
        for answer in join_all([RecordType::A, RecordType::AAAA].map(|kind| self.resolve(name, kind))).await {
            match answer {
                Ok(answer) => {
                    addresses.extend(answer.answers.iter().filter_map(|record| record.data.ip_addr()));
                }
                Err(error) => fault = Some(error),
            }
        }
        addresses.truncate(SERVERS_MAX);
        fault.filter(|_| addresses.is_empty()).map_or(Ok(addresses), Err)
    }

    /// What the first resolver says that knows. That there is nothing is an answer.
    pub(super) async fn resolve(&self, name: &Name, kind: RecordType) -> Result<Message, DnsError> {
        let system;
        let resolvers = if self.resolvers.is_empty() {
            // Read anew each time: it changes with the network.
            system = system_resolvers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default());
            &system
        } else {
            &self.resolvers
        };
        let mut causes = Vec::new();
        for resolver in resolvers.iter().take(RESOLVERS_MAX) {
            match ask(*resolver, name, kind, true).await {
                Ok(answer) => match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Ok(answer),
                    code => causes.push(format!("{resolver}: {code}")),
                },
                Err(error) => causes.push(format!("{resolver}: {error}")),
            }
        }
        let (name, kind) = (show(name), kind.to_string());
        let advice = if self.resolvers.is_empty() {
            "check /etc/resolv.conf, or name others in `dns.resolver`"
        } else {
            "check `dns.resolver`"
        };
        Err(DnsError::Resolver { name, kind, cause: causes.join(", "), advice })
    }
}

/// What the first of these servers says that knows; all are asked at once.
async fn first_answer(servers: &[ZoneServer], name: &Name, kind: RecordType) -> Result<Message, DnsError> {
    let addresses = servers.iter().flat_map(|server| &server.addresses);
    let mut asked: FuturesUnordered<_> = addresses
        .map(async |address| {
            let answer = ask(*address, name, kind, false).await.map_err(|error| error.to_string());
            let code = answer.as_ref().map(|answer| answer.metadata.response_code);
            match code {
                Ok(ResponseCode::NoError | ResponseCode::NXDomain) | Err(_) => answer,
                Ok(code) => Err(code.to_string()),
            }
            .map_err(|cause| format!("{address}: {cause}"))
        })
        .collect();
    let mut causes = Vec::new();
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(answer) => return Ok(answer),
            Err(cause) => causes.push(cause),
        }
    }
    Err(DnsError::Servers { name: show(name), cause: causes.join(", ") })
}

/// Whether `name` is another name for `target` only because a wildcard is, such as `*.preview CNAME
/// preview`: it is a name of its own as soon as something stands there. Asks for a name beside it that
/// nobody has.
pub(super) async fn is_of_wildcard(
    servers: &[ZoneServer],
    name: &Name,
    target: &Name,
) -> Result<bool, DnsError> {
    // Where no such name can be, no wildcard covers one.
    let Some(other) = beside(name) else { return Ok(false) };
    let answer = first_answer(servers, &other, RecordType::CNAME).await?;
    Ok(alias_in(&answer, &other).as_ref() == Some(target))
}

/// A name beside another that nobody has.
fn beside(name: &Name) -> Option<Name> {
    let mut octets = [0; 8];
    aws_lc_rs::rand::fill(&mut octets).ok()?;
    name.base_name().prepend_label(format!("oneport-{:016x}", u64::from_be_bytes(octets))).ok()
}

/// What `name` is another name for, as an answer says.
pub(super) fn alias_in(answer: &Message, name: &Name) -> Option<Name> {
    answer.answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.name == *name => Some(target.0.clone()),
        _ => None,
    })
}

/// The zone that an answer leads on to, or comes from, where it begins at `name` itself.
fn zone_below(answer: &Message, name: &Name) -> Option<Name> {
    let is_zone = |record: &&Record| {
        matches!(record.record_type(), RecordType::NS | RecordType::SOA) && record.name == *name
    };
    answer.authorities.iter().find(is_zone).map(|record| record.name.clone())
}

/// The zone that an answer says it is about, if `name` lies in it.
pub(super) fn soa_above(answer: &Message, name: &Name) -> Option<Name> {
    let mut records = answer.answers.iter().chain(&answer.authorities);
    let soa = records.find(|record| record.record_type() == RecordType::SOA && record.name.zone_of(name))?;
    Some(soa.name.clone())
}

/// Reads a name, with or without its final dot.
pub(super) fn parse(name: &str) -> Result<Name, DnsError> {
    let mut parsed = Name::from_ascii(name).map_err(|_| DnsError::Name(name.to_owned()))?;
    parsed.set_fqdn(true);
    Ok(parsed)
}

/// A name without its final dot.
pub(super) fn show(name: &Name) -> String {
    let shown = name.to_ascii();
    shown.strip_suffix('.').filter(|rest| !rest.is_empty()).map_or(shown.clone(), str::to_owned)
}

/// The resolvers in a `resolv.conf`; without any, this machine's (resolv.conf(5)).
fn system_resolvers(text: &str) -> Vec<SocketAddr> {
    let found: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
        })
        .map(|ip: IpAddr| SocketAddr::new(ip, PORT))
        .collect();
    if found.is_empty() { vec![SocketAddr::from(([127, 0, 0, 1], PORT))] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# nameserver 1.1.1.1\nsearch example.com\nnameserver 192.0.2.1\nnameserver 2001:db8::1 # x\nnameserver\nnameserver fe80::1%eth0\n";
        let found: Vec<String> = system_resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(system_resolvers("")[0].to_string(), "127.0.0.1:53");
    }

    #[test]
    fn names_are_shown_without_their_dot() {
        assert_eq!(
            show(&parse("_acme-challenge.Example.com").expect("a name")),
            "_acme-challenge.Example.com"
        );
        assert_eq!(show(&parse("example.com.").expect("a name")), "example.com");
        assert!(parse("a..b").is_err() && parse(&"a".repeat(64)).is_err());
    }
}
