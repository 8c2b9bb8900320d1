//! Whether certificates can be ordered, tried without ordering any: what `oneport check` tells of the
//! directories, of each name's addresses, port and CAA records, and of what failed last.
//!
//! Makes no account, and changes nothing. Every look has a deadline.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use http::Request;
use serde::Deserialize;
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;

use super::client::fetch_with;
use super::fault::host as authority;
use super::last::last_faults;
use super::off_thread;
use super::probe::{Who, connect, who_answers};
use crate::certs::dns::{Caa, CaaSet, Finding, Names};
use crate::config::{AcmeSettings, ChallengeWay, DirectorySettings, Settings};
use crate::name::{CertName, HostName};
use crate::net::{BindError, bind};

/// Names that are looked at at once.
const AT_ONCE: usize = 16;
/// Addresses of a host that are tried.
const ADDRESSES_MAX: usize = 8;
/// How much longer a handshake may take than the gateway lets it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time for everything about one name.
const NAME: Duration = Duration::from_secs(60);

/// What is used of a directory (RFC 8555, section 7.1.1).
#[derive(Debug, Default, Deserialize)]
struct Directory {
    #[serde(rename = "newOrder")]
    new_order: Option<String>,
    #[serde(default)]
    meta: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    caa_identities: Vec<String>,
    external_account_required: bool,
    profiles: Option<BTreeMap<String, serde_json::Value>>,
}

/// Looks at all that an order needs. Empty when nothing is ordered. `before`: what was found of the ways to
/// set records. Reads files; must be called within a tokio runtime.
pub async fn check(settings: &Settings, before: &[Finding]) -> Vec<Finding> {
    let Some(acme) = &settings.acme else { return Vec::new() };
    let asked = join_all(acme.directories.iter().map(|directory| check_directory(acme, directory))).await;
    let identities = match asked.first() {
        Some((Some(directory), _)) => directory.meta.caa_identities.clone(),
        _ => Vec::new(),
    };
    let mut found: Vec<Finding> = asked.into_iter().map(|(_, finding)| finding).collect();
    // Held to the end: where nobody listens yet, connections get through to these.
    let hold = |addresses: &[SocketAddr]| -> (Vec<TcpListener>, bool) {
        let fixed = addresses.iter().filter(|address| address.port() != 0);
        let (mut held, mut is_in_use) = (Vec::new(), false);
        for bound in fixed.map(|address| bind(*address)) {
            is_in_use |= matches!(bound, Err(BindError::InUse(_)));
            held.extend(bound.ok());
        }
        (held, is_in_use)
    };
    let ((tls, is_in_use), _plain) = (hold(&settings.listen), hold(&settings.plain_http));
    let runs = tls.is_empty();
    if !runs {
        found.push(Finding::note(
            "no gateway runs here: its port is free; run this again while it runs, to see who answers TLS",
        ));
    }
    let world = World { settings, acme, names: Names::new(&settings.dns), identities, runs, is_in_use };
    let hosts = world.hosts();
    let by_host = stream::iter(hosts.iter().map(|host| world.in_time(host, world.check_host(host))));
    found.extend(by_host.buffered(AT_ONCE).collect::<Vec<_>>().await.into_iter().flatten());
    let by_name = acme.names.iter().map(|name| world.in_time(name.host(), world.check_caa(name)));
    found.extend(stream::iter(by_name).buffered(AT_ONCE).collect::<Vec<_>>().await.into_iter().flatten());
    let is_well = runs && !before.iter().chain(&found).any(Finding::is_bad);
    found.extend(last_faults(settings, acme, is_well).await);
    found
}

/// Whether a directory answers, and offers what the settings ask for.
async fn check_directory(acme: &AcmeSettings, directory: &DirectorySettings) -> (Option<Directory>, Finding) {
    let url = &directory.url;
    let root = directory.root.clone();
    let fetch = match off_thread(move || fetch_with(root.as_deref())).await {
        Ok(Ok(fetch)) => fetch,
        Ok(Err(text)) => return (None, Finding::bad(text)),
        Err(fault) => return (None, Finding::bad(fault.text)),
    };
    let Ok(request) = Request::get(url).body(Bytes::new()) else {
        return (None, Finding::bad(format!("`{url}` is no URL; correct it in `acme.directories`")));
    };
    let answer = match fetch.send(request).await {
        Ok(answer) => answer,
        Err(error) => {
            return (None, Finding::bad(format!("the directory `{url}` cannot be used: {error}")));
        }
    };
    let read: Option<Directory> =
        serde_json::from_slice(answer.body()).ok().filter(|read: &Directory| read.new_order.is_some());
    let Some(read) = read.filter(|_| answer.status().is_success()) else {
        return (
            None,
            Finding::bad(format!(
                "there is no ACME server at `{url}` (status {}); check the URL in `acme.directories`",
                answer.status().as_u16()
            )),
        );
    };
    let finding = judge_directory(acme, directory, &read.meta);
    (Some(read), finding)
}

fn judge_directory(acme: &AcmeSettings, directory: &DirectorySettings, meta: &Meta) -> Finding {
    let url = &directory.url;
    if meta.external_account_required && directory.eab.is_none() {
        return Finding::bad(format!(
            "the directory `{url}` takes only accounts that are bound to one made there; write its `eab_key_id` and `eab_key` in `acme.directories`"
        ));
    }
    if let (Some(profile), Some(offered)) = (&acme.profile, &meta.profiles)
        && !offered.contains_key(profile)
    {
        let offered: Vec<&str> = offered.keys().map(String::as_str).collect();
        return Finding::bad(format!(
            "the directory `{url}` has no profile `{profile}`; write one that it offers (`{}`) in `acme.profile`, or leave it out",
            offered.join("`, `")
        ));
    }
    if let (Some(profile), None) = (&acme.profile, &meta.profiles) {
        return Finding::note(format!(
            "the directory `{url}` answers and lists no profiles, so that `{profile}` of `acme.profile` may count for nothing there"
        ));
    }
    Finding::good(format!("the directory `{url}` answers"))
}

/// What the looks at names share.
struct World<'a> {
    settings: &'a Settings,
    acme: &'a AcmeSettings,
    names: Names,
    /// What CAA records call the first authority. Empty: it does not say.
    identities: Vec<String>,
    /// Whether somebody, probably the gateway, holds its port for TLS.
    runs: bool,
    /// Whether that is known, and not only that this user may not hold it.
    is_in_use: bool,
}

impl World<'_> {
    /// The base host, and those that certificates are ordered for.
    fn hosts(&self) -> Vec<HostName> {
        let mut hosts = vec![self.settings.base.host.clone()];
        for name in &self.acme.names {
            if !hosts.contains(name.host()) {
                hosts.push(name.host().clone());
            }
        }
        hosts
    }

    async fn in_time(&self, host: &HostName, look: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
        timeout(NAME, look).await.unwrap_or_else(|_| {
            vec![Finding::bad(format!(
                "what the DNS says of `{host}` was not found out within {}s; check its name servers",
                NAME.as_secs()
            ))]
        })
    }

    async fn check_host(&self, host: &HostName) -> Vec<Finding> {
        let addresses = match self.names.addresses_of(host).await {
            Ok(addresses) => addresses,
            Err(error) => return vec![Finding::bad(error.to_string())],
        };
        if addresses.is_empty() {
            return vec![Finding::bad(format!(
                "`{host}` has no address; make an A or AAAA record that leads to this host"
            ))];
        }
        let mut found = vec![says_where(host, &addresses).await];
        let (tls, plain) = self.ports(host);
        let looks = addresses.into_iter().take(ADDRESSES_MAX).map(|ip| {
            let tls = join_all(tls.iter().map(move |port| self.check_tls(host, SocketAddr::new(ip, *port))));
            async move {
                let mut found = tls.await;
                if let Some(port) = plain {
                    found.push(self.check_plain(host, SocketAddr::new(ip, port)).await);
                }
                found
            }
        });
        found.extend(join_all(looks).await.into_iter().flatten());
        found
    }

    /// Where visitors and authorities come for a host: with TLS, and without.
    fn ports(&self, host: &HostName) -> (Vec<u16>, Option<u16>) {
        let has = |way| self.acme.challenges.contains(&way);
        let is_single = self.acme.names.iter().any(|name| !name.is_wildcard() && name.host() == host);
        let mut tls = vec![self.settings.base.port.unwrap_or(443)];
        if is_single && has(ChallengeWay::TlsAlpn01) && tls != [443] {
            tls.push(443);
        }
        let is_plain = self.settings.offers(ChallengeWay::Http01) && is_single && has(ChallengeWay::Http01);
        (tls, is_plain.then_some(80))
    }

    async fn check_tls(&self, host: &HostName, at: SocketAddr) -> Finding {
        let stream = match connect(at).await {
            Ok(stream) => stream,
            Err(error) => return refused(host, at, &error, self.is_in_use).await,
        };
        if !self.runs {
            return Finding::note(format!(
                "connections get through to `{at}` for `{host}`; who answers TLS there is not looked at"
            ));
        }
        let patience = self.settings.limits.handshake_timeout + PATIENCE;
        match who_answers(stream, at, host, patience).await {
            Who::Oneport => Finding::good(format!("oneport answers at `{at}` for `{host}`")),
            Who::Other(what) => Finding::bad(format!(
                "another server than oneport answers at `{at}` for `{host}`: {what}; correct the A and AAAA records, and let this port lead to oneport with nothing in between that ends TLS"
            )),
            Who::NoTls(cause) => Finding::bad(format!(
                "what listens at `{at}` for `{host}` does not speak TLS ({cause}); let this port lead to oneport, with nothing in between that ends TLS"
            )),
            Who::Silent => Finding::bad(format!(
                "what listens at `{at}` for `{host}` does not answer a TLS handshake; let this port lead to oneport, with nothing in between"
            )),
        }
    }

    async fn check_plain(&self, host: &HostName, at: SocketAddr) -> Finding {
        match connect(at).await {
            Ok(_) if self.runs => Finding::good(format!("connections get through to `{at}` for `{host}`")),
            Ok(_) => Finding::note(format!(
                "connections get through to `{at}` for `{host}`; whether they come to the gateway is not looked at"
            )),
            Err(error) => refused(host, at, &error, self.is_in_use).await,
        }
    }

    async fn check_caa(&self, name: &CertName) -> Vec<Finding> {
        let Some(directory) = self.acme.directories.first() else { return Vec::new() };
        let who = authority(&directory.url);
        vec![match self.names.caa_of(name.host()).await {
            Err(error) => Finding::bad(error.to_string()),
            Ok(None) => Finding::good(format!("no CAA record limits who may issue for `{name}`")),
            Ok(Some(set)) => match forbidden(&set, name, &self.identities, &self.acme.challenges) {
                Some(why) => {
                    let tag = if name.is_wildcard() { "issuewild" } else { "issue" };
                    let wanted = self.identities.first().map_or("AUTHORITY", String::as_str);
                    Finding::bad(format!(
                        "a CAA record of `{}` forbids `{who}` to issue for `{name}` ({why}); add `{}. CAA 0 {tag} \"{wanted}\"` there, or order from another in `acme.directories`",
                        set.at, set.at
                    ))
                }
                None if self.identities.is_empty() => Finding::note(format!(
                    "the CAA records of `{}` allow some to issue for `{name}`; `{who}` does not say under which name, so see that it is among them",
                    set.at
                )),
                None => Finding::good(format!(
                    "the CAA records of `{}` allow `{who}` to issue for `{name}`",
                    set.at
                )),
            },
        }]
    }
}

/// Where a host is, and whether that is here.
async fn says_where(host: &HostName, addresses: &[IpAddr]) -> Finding {
    let mut shown = Vec::new();
    let mut is_elsewhere = false;
    for ip in addresses {
        let is_own = is_own(*ip).await;
        is_elsewhere |= !is_own;
        shown.push(format!("`{ip}` ({})", if is_own { "this machine's" } else { "not this machine's own" }));
    }
    let said = format!("`{host}` is at {}", shown.join(", "));
    if is_elsewhere {
        return Finding::note(format!(
            "{said}; where it is not that of a router or balancer before this machine, correct its A and AAAA records"
        ));
    }
    Finding::good(said)
}

/// Whether an address is this machine's: the system lets nobody take one that is not.
async fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).await.is_ok()
}

async fn refused(host: &HostName, at: SocketAddr, error: &io::Error, runs: bool) -> Finding {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    if matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable) {
        return Finding::note(format!(
            "`{at}` for `{host}` cannot be tried from this machine ({error}); try it from elsewhere"
        ));
    }
    if !is_own(at.ip()).await {
        return Finding::bad(format!(
            "`{host}` cannot be reached at `{at}` ({error}), which leads to another machine; correct its A and AAAA records, or, where that is a router or balancer before this one, let it pass this port on to the gateway (where a machine cannot reach its own public address, try from elsewhere)"
        ));
    }
    let cure = if runs { "have the gateway listen there" } else { "start the gateway" };
    Finding::bad(format!(
        "`{host}` cannot be reached at `{at}` ({error}); {cure}, and let this port through the firewall to it (where a machine cannot reach its own public address, try from elsewhere)"
    ))
}

/// Why the records forbid it, if they do (RFC 8659, section 4; RFC 8657, section 4). With no identity
/// known, they forbid it only where they forbid it to everybody.
fn forbidden(set: &CaaSet, name: &CertName, identities: &[String], ways: &[ChallengeWay]) -> Option<String> {
    let unknown = |caa: &&Caa| {
        caa.is_critical && !["issue", "issuewild", "issuemail", "iodef"].contains(&caa.tag.as_str())
    };
    if let Some(caa) = set.records.iter().find(unknown) {
        return Some(format!("its critical tag `{}` is known to few", caa.tag));
    }
    let tagged = |tag| set.records.iter().filter(|caa| caa.tag == tag).collect::<Vec<_>>();
    let wild = tagged("issuewild");
    let counts = if name.is_wildcard() && !wild.is_empty() { wild } else { tagged("issue") };
    if counts.is_empty() || counts.iter().any(|caa| allows(&caa.value, identities, ways)) {
        return None;
    }
    let said: Vec<String> = counts.iter().map(|caa| format!("`{} \"{}\"`", caa.tag, caa.value)).collect();
    Some(said.join(", "))
}

fn allows(value: &str, identities: &[String], ways: &[ChallengeWay]) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let issuer = parts.next().unwrap_or_default().trim_end_matches('.');
    let is_known = identities.is_empty() || identities.iter().any(|own| own.eq_ignore_ascii_case(issuer));
    let methods = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim().eq_ignore_ascii_case("validationmethods").then(|| value.trim().to_owned())
    });
    let is_way = |methods: String| methods.split(',').any(|m| ways.iter().any(|way| way.word() == m.trim()));
    !issuer.is_empty() && is_known && methods.is_none_or(is_way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_machine_is_told_from_a_gateway_that_does_not_run() {
        let host = HostName::parse("a.test").expect("valid");
        let said = async |at: &str, runs| {
            let error = io::Error::from(io::ErrorKind::ConnectionRefused);
            refused(&host, at.parse().expect("an address"), &error, runs).await.what
        };
        let other = said("192.0.2.1:443", true).await;
        assert!(
            other.contains("leads to another machine") && !other.contains("start the gateway"),
            "{other}"
        );
        let own = said("127.0.0.1:443", false).await;
        assert!(own.contains("start the gateway"), "{own}");
        let own = said("127.0.0.1:443", true).await;
        assert!(!own.contains("start the gateway"), "{own}");
    }

    #[test]
    fn caa_records_allow_or_forbid() {
        let caa = |text: &str| {
            let (tag, value) = text.split_once(' ').expect("a tag");
            Caa { is_critical: tag.starts_with('!'), tag: tag.replace('!', ""), value: value.to_owned() }
        };
        let is_forbidden = |name: &str, identities: &[&str], records: &[&str]| {
            let set =
                CaaSet { at: "a.test".to_owned(), records: records.iter().map(|text| caa(text)).collect() };
            let identities: Vec<String> = identities.iter().map(|own| (*own).to_owned()).collect();
            let ways = [ChallengeWay::TlsAlpn01];
            forbidden(&set, &CertName::parse(name).expect("valid"), &identities, &ways).is_some()
        };
        let le = &["letsencrypt.org"][..];
        for (is, name, identities, records) in [
            (false, "a.test", le, &["issue LetsEncrypt.org"][..]),
            (false, "a.test", le, &["issue other.test", "issue letsencrypt.org; accounturi=https://x"]),
            (true, "a.test", le, &["issue other.test"]),
            (true, "a.test", le, &["issue ;"]),
            (true, "a.test", &[], &["issue ;"]),
            (false, "a.test", &[], &["issue other.test"]),
            (false, "a.test", le, &["issuewild ;"]),
            (true, "*.a.test", le, &["issue letsencrypt.org", "issuewild ;"]),
            (true, "*.a.test", le, &["issue other.test"]),
            (false, "*.a.test", le, &["issue other.test", "issuewild letsencrypt.org"]),
            (false, "a.test", le, &["iodef mailto:me@a.test"]),
            (true, "a.test", le, &["issue letsencrypt.org; validationmethods=dns-01"]),
            (false, "a.test", le, &["issue letsencrypt.org; validationmethods=dns-01,tls-alpn-01"]),
            (true, "a.test", le, &["issue letsencrypt.org", "!new thing"]),
        ] {
            assert_eq!(is_forbidden(name, identities, records), is, "{name} {identities:?} {records:?}");
        }
    }
}
