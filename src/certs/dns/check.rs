//! Whether names can be proved by DNS, tried from the outside in: what `oneport check` tells.
//!
//! For the gateway's own responder: the record in the zone above, the address that it leads to, the
//! answers there, and what resolvers make of it. For the others: a value is set, seen and removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures_util::future::join_all;
use hickory_proto::rr::{Name, RecordType};

use super::ask::{Answer, AskError, Over, ask_over};
use super::delegation::{Leads, ask_parent, is_ours};
use super::lookup::{Lookup, ZoneServer, parse, show};
use super::responder::Responder;
use super::{ChallengeRecord, DnsError, provider};
use crate::certs::examine;
use crate::config::{DnsWay, ResponderSettings, Settings};
use crate::net::BindError;

/// What is set and removed for a try. No authority's value: those are 43 characters long.
const TRIED: &str = "oneport-check";

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub outcome: Outcome,
    /// One sentence; what to do, where it is not good.
    pub what: String,
}

/// How something is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// Not known, or not as is usual; the operator knows better.
    Note,
    /// Not as it should be.
    Bad,
}

impl Finding {
    /// Whether it is not as it should be.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.outcome == Outcome::Bad
    }

    pub(in crate::certs) fn good(what: impl Into<String>) -> Self {
        Self { outcome: Outcome::Good, what: what.into() }
    }

    pub(in crate::certs) fn note(what: impl Into<String>) -> Self {
        Self { outcome: Outcome::Note, what: what.into() }
    }

    pub(in crate::certs) fn bad(what: impl Into<String>) -> Self {
        Self { outcome: Outcome::Bad, what: what.into() }
    }
}

/// The records that the operator must write, once, for the wildcard: each as in a zone file. Empty
/// where none is needed.
#[must_use]
pub fn records_to_add(settings: &Settings) -> Vec<String> {
    match &settings.dns.way {
        Some(DnsWay::Responder(responder)) => {
            vec![format!("_acme-challenge.{}. NS {}.", settings.base.host, responder.host)]
        }
        _ => Vec::new(),
    }
}

/// Looks at everything. Takes as long as the settings let a record take. Sets a value at
/// `_acme-challenge.BASE` and removes it, where somebody else's server holds it. Must be called within
/// a tokio runtime.
pub async fn check(settings: &Settings) -> Vec<Finding> {
    check_with(settings, &Lookup::new(&settings.dns)).await
}

pub(super) async fn check_with(settings: &Settings, lookup: &Lookup) -> Vec<Finding> {
    match &settings.dns.way {
        // Nothing is ordered, or nothing has to be.
        None if settings.acme.is_none() || has_wildcard(settings) => Vec::new(),
        None => vec![Finding::note(format!(
            "nobody is there to set DNS records, so `*.{}` cannot be proved; docs/dns.md has four ways",
            settings.base.host
        ))],
        Some(DnsWay::Responder(responder)) => {
            // Answers while the gateway does not run; while it does, the port is held by it.
            let own = Responder::start(responder, settings);
            let is_in_use = matches!(own, Err(DnsError::Bind(BindError::InUse(_))));
            let is_foreign = is_in_use && !holds_port(settings, responder).await;
            let mut found = check_responder(settings, responder, lookup, is_foreign).await;
            match &own {
                Ok(_) => {}
                Err(_) if is_in_use && !is_foreign => {}
                // The gateway may run as somebody else, or elsewhere: the answers decide.
                Err(_) if !found.iter().any(Finding::is_bad) => {}
                Err(error) => found.insert(0, Finding::bad(error.to_string())),
            }
            found
        }
        Some(_) => vec![try_it(settings).await],
    }
}

/// Whether the operator's own certificates cover the previews, so that nothing has to be proved for them.
fn has_wildcard(settings: &Settings) -> bool {
    let wildcard = format!("*.{}", settings.base.host);
    settings.tls.certificates.iter().any(|source| examine(source).1.contains(&wildcard))
}

/// Whether a gateway's responder answers where this one would listen.
async fn holds_port(settings: &Settings, responder: &ResponderSettings) -> bool {
    let names = parse(&format!("_acme-challenge.{}", settings.base.host))
        .and_then(|apex| Ok((apex, parse(responder.host.as_str())?)));
    let Ok((apex, host)) = names else { return false };
    let asked = responder.listen.iter().map(|at| {
        let ip = match at.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        ask_over(SocketAddr::new(ip, at.port()), &apex, RecordType::SOA, Over::Udp)
    });
    let answers = join_all(asked).await;
    answers.iter().flatten().any(|answer| is_ours(&answer.message, &host))
}

/// Sets a value, and removes it.
async fn try_it(settings: &Settings) -> Finding {
    let record =
        ChallengeRecord { name: format!("_acme-challenge.{}", settings.base.host), value: TRIED.to_owned() };
    let tried = async {
        let Some(provider) = provider(settings)? else { return Ok(()) };
        let set = provider.set(&record).await;
        let memo = set.as_ref().ok().cloned().flatten();
        let seen = match set {
            Ok(_) => provider.seen(&record).await,
            Err(error) => Err(error),
        };
        // Also after a failure, since it may stand there all the same.
        let removed = provider.cleanup(&record, memo.as_deref()).await;
        seen.and(removed)
    };
    match tried.await {
        Ok(()) => Finding::good(format!(
            "a value at `{}` was set, seen at the zone's own servers, and removed",
            record.name
        )),
        Err(error) => Finding::bad(error.to_string()),
    }
}

async fn check_responder(
    settings: &Settings,
    responder: &ResponderSettings,
    lookup: &Lookup,
    is_foreign: bool,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let names = parse(&format!("_acme-challenge.{}", settings.base.host))
        .and_then(|apex| Ok((apex, parse(responder.host.as_str())?, parse(settings.base.host.as_str())?)));
    let (apex, host, base) = match names {
        Ok(names) => names,
        Err(error) => return vec![Finding::bad(error.to_string())],
    };
    match check_delegation(lookup, &apex, &host, &base).await {
        Ok(findings) => found.extend(findings),
        Err(error) => found.push(Finding::bad(error.to_string())),
    }
    match lookup.addresses_of(&host).await {
        Ok(addresses) if addresses.is_empty() => found.push(Finding::bad(format!(
            "`{}` has no address; add its A or AAAA record with this machine's public address, or correct `dns.responder_name`",
            show(&host)
        ))),
        Ok(addresses) => {
            let tried = addresses.iter().map(|ip| check_address(*ip, lookup.port(), &apex, &host, is_foreign));
            found.extend(join_all(tried).await.into_iter().flatten());
        }
        Err(error) => found.push(Finding::bad(error.to_string())),
    }
    if !found.iter().any(Finding::is_bad) {
        found.push(check_resolver(lookup, &apex, &host).await);
    }
    found
}

/// Whether the servers of the zone above lead to this host.
async fn check_delegation(
    lookup: &Lookup,
    apex: &Name,
    host: &Name,
    base: &Name,
) -> Result<Vec<Finding>, DnsError> {
    let zone = lookup.zone_of(base).await?;
    let servers = lookup.servers_of(&zone).await?;
    let asked = servers.iter().map(|server| check_parent(server, apex, host, &zone));
    Ok(join_all(asked).await)
}

async fn check_parent(server: &ZoneServer, apex: &Name, host: &Name, zone: &Name) -> Finding {
    let wanted = format!("{} NS {}", apex.to_ascii(), host.to_ascii());
    let who = format!("the name server `{}` of `{}`", server.name, show(zone));
    match ask_parent(server, apex, host).await {
        Leads::Here => Finding::good(format!("{who} has the record `{wanted}`")),
        Leads::Alias(target) => Finding::good(format!(
            "{who} leads `{}` on to `{}`, which must be delegated to `{}`",
            show(apex),
            show(&target),
            show(host)
        )),
        Leads::Elsewhere(other) => Finding::bad(format!(
            "{who} leads `{}` to `{}`; let its only NS record be `{wanted}`",
            show(apex),
            show(&other)
        )),
        Leads::Nowhere => Finding::bad(format!("{who} does not lead here; add the record `{wanted}` there")),
        Leads::Unknown(error) => Finding::bad(format!(
            "{who} cannot be asked ({error}); try again, or correct the zone's NS records"
        )),
    }
}

/// Whether the responder answers at an address, over UDP and TCP. `is_foreign`: another program holds
/// its port on this machine.
async fn check_address(ip: IpAddr, port: u16, apex: &Name, host: &Name, is_foreign: bool) -> Vec<Finding> {
    let at = SocketAddr::new(ip, port);
    let tried = [(Over::Udp, "UDP"), (Over::Tcp, "TCP")].map(|(over, word)| async move {
        let answer = ask_over(at, apex, RecordType::SOA, over).await;
        judge_answer(answer, host, &format!("`{at}` over {word}"), is_foreign)
    });
    join_all(tried).await
}

fn judge_answer(answer: Result<Answer, AskError>, host: &Name, place: &str, is_foreign: bool) -> Finding {
    match answer {
        Ok(answer) if is_ours(&answer.message, host) => {
            Finding::good(format!("the responder answers at {place}"))
        }
        Ok(_) => Finding::bad(format!(
            "another DNS server answers at {place}; stop it, or let the NS record lead to this machine"
        )),
        Err(AskError::Unreachable(error)) => Finding::note(format!(
            "{place} cannot be tried from this machine ({error}); try it from elsewhere"
        )),
        Err(error) if is_foreign => Finding::bad(format!(
            "{error} at {place}, since another program holds the port; stop it, or let `dns.responder` listen elsewhere"
        )),
        Err(error) => Finding::bad(format!(
            "{error} at {place}; let it through the firewall to this machine, and see that `dns.responder` listens there (where a machine cannot reach its own public address, try from elsewhere)"
        )),
    }
}

/// Whether a resolver finds its way here, as an authority's will.
async fn check_resolver(lookup: &Lookup, apex: &Name, host: &Name) -> Finding {
    match lookup.resolve(apex, RecordType::SOA).await {
        Ok(answer) if is_ours(&answer, host) => {
            Finding::good(format!("resolvers get the answers for `{}` from here", show(apex)))
        }
        Ok(_) => Finding::bad(format!(
            "resolvers do not get the answers for `{}` from here; where the record is new, wait until they have forgotten that there was none",
            show(apex)
        )),
        Err(error) => Finding::bad(error.to_string()),
    }
}
