//! Whether the zone above a name leads to the gateway's own responder, as its servers say.
//!
//! Does not ask the responder where the record is right: a machine may not reach its own public address.

use std::net::SocketAddr;

use futures_util::future::join_all;
use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData, RecordType};

use super::ask::{AskError, ask};
use super::lookup::{Lookup, ZoneServer, alias_in, is_of_wildcard, show};
use super::{DnsError, zones::Zones};

/// How many CNAME records are followed.
const CNAMES_MAX: usize = 8;

/// What a server of the zone above says.
#[derive(Debug)]
pub(super) enum Leads {
    /// To this host.
    Here,
    /// The name is another one's alias.
    Alias(Name),
    /// To another server.
    Elsewhere(Name),
    /// Nowhere.
    Nowhere,
    /// It cannot be asked.
    Unknown(AskError),
}

/// Asks a server of the zone above where `apex` leads; `host` is what this host is called.
pub(super) async fn ask_parent(server: &ZoneServer, apex: &Name, host: &Name) -> Leads {
    let mut last = AskError::Silent;
    for address in &server.addresses {
        match ask(*address, apex, RecordType::NS, false).await {
            Ok(answer) => {
                let leads = judge(&answer, apex, host);
                let Leads::Alias(target) = &leads else { return leads };
                // What a wildcard makes of every name is no answer for this one.
                let is_of_all = is_of_wildcard(std::slice::from_ref(server), apex, target).await;
                return if is_of_all.unwrap_or(false) { Leads::Nowhere } else { leads };
            }
            Err(error) => last = error,
        }
    }
    Leads::Unknown(last)
}

fn judge(answer: &Message, apex: &Name, host: &Name) -> Leads {
    if let Some(target) = alias_in(answer, apex) {
        return Leads::Alias(target);
    }
    let records = answer.answers.iter().chain(&answer.authorities).filter(|record| record.name == *apex);
    let names: Vec<&Name> = records
        .filter_map(|record| match &record.data {
            RData::NS(server) => Some(&server.0),
            _ => None,
        })
        .collect();
    match (names.is_empty(), names.iter().find(|name| **name != host)) {
        (true, _) => Leads::Nowhere,
        (false, None) => Leads::Here,
        (false, Some(other)) => Leads::Elsewhere((*other).clone()),
    }
}

/// Whether the answer is the responder's: it has its zone, and its name.
pub(super) fn is_ours(answer: &Message, host: &Name) -> bool {
    answer.answers.iter().any(|record| matches!(&record.data, RData::SOA(soa) if soa.mname == *host))
}

/// Why not everybody who asks for `name` is led here, in words; `Ok` with the name that it leads to by
/// CNAME records, where all are. Asks no resolver for the name, unless the servers above cannot be asked.
pub(super) async fn leads_here(lookup: &Lookup, name: &Name, zones: &Zones) -> Result<(), NotHere> {
    let mut at = name.clone();
    for _ in 0..=CNAMES_MAX {
        let servers = lookup.servers_above(&at).await.map_err(|error| NotHere::of(&at, &error))?;
        let said = join_all(servers.iter().map(|server| ask_parent(server, &at, zones.host()))).await;
        let (mut is_here, mut alias) = (false, None);
        for (server, leads) in servers.iter().zip(said) {
            let not = |what: String| NotHere { at: at.clone(), found: format!("`{}` {what}", server.name) };
            match leads {
                Leads::Here => is_here = true,
                Leads::Alias(target) => alias = Some(target),
                Leads::Elsewhere(other) if !serves_us(lookup, &other, &at, zones.host()).await => {
                    return Err(not(format!("leads to `{}`", show(&other))));
                }
                Leads::Elsewhere(_) => is_here = true,
                Leads::Nowhere => return Err(not("has no such record".to_owned())),
                Leads::Unknown(error) => tracing::debug!(server = server.name, %error, "cannot be asked"),
            }
        }
        match alias {
            Some(target) => at = target,
            None if is_here && !zones.holds(&at) => {
                return Err(NotHere { found: "no zone of this gateway begins there".to_owned(), at });
            }
            None if is_here => return Ok(()),
            None => return ask_resolver(lookup, at, zones.host()).await,
        }
    }
    Err(NotHere::of(name, &DnsError::Circle(show(name))))
}

/// What does not lead here.
#[derive(Debug)]
pub(super) struct NotHere {
    /// What the name led to by CNAME records.
    pub(super) at: Name,
    /// What was found.
    pub(super) found: String,
}

impl NotHere {
    fn of(at: &Name, error: &DnsError) -> Self {
        Self { at: at.clone(), found: error.to_string() }
    }
}

/// Whether all addresses of another name server are the responder's.
async fn serves_us(lookup: &Lookup, server: &Name, apex: &Name, host: &Name) -> bool {
    let Ok(addresses) = lookup.addresses_of(server).await else { return false };
    let asked =
        addresses.iter().map(|ip| ask(SocketAddr::new(*ip, lookup.port()), apex, RecordType::SOA, false));
    let said = join_all(asked).await;
    !said.is_empty() && said.iter().all(|answer| answer.as_ref().is_ok_and(|answer| is_ours(answer, host)))
}

/// Where the zone's own servers are out of reach, as behind some firewalls.
async fn ask_resolver(lookup: &Lookup, at: Name, host: &Name) -> Result<(), NotHere> {
    match lookup.resolve(&at, RecordType::SOA).await {
        Ok(answer) if is_ours(&answer, host) => Ok(()),
        Ok(_) => Err(NotHere { found: "resolvers find another answer".to_owned(), at }),
        Err(error) => Err(NotHere::of(&at, &error)),
    }
}
