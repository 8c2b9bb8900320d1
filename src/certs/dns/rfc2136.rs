//! Records set by dynamic update (RFC 2136), signed with a shared key (TSIG, RFC 8945): what BIND,
//! Knot and PowerDNS take.
//!
//! Refuses a success that is not signed by the same key.

use std::net::SocketAddr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::op::update_message::{append, delete_by_rdata};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TSIG, TsigAlgorithm, TsigError};
use hickory_proto::rr::{Name, RData, Record, RecordSet, RecordType, TSigner};

use super::ask::{AskError, ask, exchange};
use super::lookup::{parse, show, soa_above};
use super::propagation::Watch;
use super::{ChallengeRecord, DnsError, DnsProvider, reveal};
use crate::config::{DnsSettings, Rfc2136Settings, SecretSource, TsigHash};
use crate::registry::BoxFuture;

/// How long others may remember the record, in seconds. Short, since another value may follow.
const TTL: u32 = 1;
/// How far the two clocks may be apart, in seconds (RFC 8945, section 10).
const FUDGE: u16 = 300;

/// Why a server did not take an update. One sentence each.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The server's name has no address.
    #[error("the DNS server `{server}` has no address ({cause}); check `dns.rfc2136.server`")]
    NoAddress {
        /// The server.
        server: String,
        /// What the system said.
        cause: String,
    },
    /// It does not answer.
    #[error(
        "the DNS server `{server}` cannot be asked: {cause}; check `dns.rfc2136.server`, and that UDP and TCP get there"
    )]
    Silent {
        /// The server.
        server: String,
        /// What happened.
        cause: AskError,
    },
    /// It holds no zone for the name.
    #[error(
        "the DNS server `{server}` holds no zone for `{name}`; name the zone's primary server in `dns.rfc2136.server`, or the zone in `dns.rfc2136.zone`"
    )]
    NoZone {
        /// The server.
        server: String,
        /// The record's name.
        name: String,
    },
    /// The name is not in the zone of the settings.
    #[error("`{name}` does not lie in the zone `{zone}`; correct `dns.rfc2136.zone`, or leave it out")]
    NotInZone {
        /// The record's name.
        name: String,
        /// The zone.
        zone: String,
    },
    /// The key cannot be used.
    #[error(
        "the key for updates cannot be used: {what}; copy what is between the quotes of its `secret` on the DNS server, and nothing else, into {place}"
    )]
    Key {
        /// What is wrong.
        what: String,
        /// Where it is written.
        place: String,
    },
    /// The server does not know the key.
    #[error(
        "the DNS server `{server}` does not know the key `{key}` with `{algorithm}` (BADKEY); correct `dns.rfc2136.key_name` and `dns.rfc2136.algorithm`, or add the key there"
    )]
    BadKey {
        /// The server.
        server: String,
        /// The key's name.
        key: String,
        /// How it is used.
        algorithm: String,
    },
    /// The key has another secret there.
    #[error(
        "the DNS server `{server}` has another secret for the key `{key}` (BADSIG); copy it into {place} again"
    )]
    BadSecret {
        /// The server.
        server: String,
        /// The key's name.
        key: String,
        /// Where its secret is written.
        place: String,
    },
    /// The clocks differ.
    #[error(
        "the clocks of this machine and of the DNS server `{server}` are {apart} apart (BADTIME); set them, by NTP"
    )]
    BadTime {
        /// The server.
        server: String,
        /// How far.
        apart: String,
    },
    /// The key may not do that.
    #[error(
        "the DNS server `{server}` does not let the key `{key}` change `{name}` in the zone `{zone}` (REFUSED); allow it there (`update-policy`, `allow-update` or an `acl`)"
    )]
    Refused {
        /// The server.
        server: String,
        /// The key's name.
        key: String,
        /// The record's name.
        name: String,
        /// The zone.
        zone: String,
    },
    /// It is not the zone's primary.
    #[error(
        "the DNS server `{server}` is not the primary one of the zone `{zone}` (NOTAUTH); name that in `dns.rfc2136.server`, or correct `dns.rfc2136.zone`"
    )]
    NotAuth {
        /// The server.
        server: String,
        /// The zone.
        zone: String,
    },
    /// Something else.
    #[error(
        "the DNS server `{server}` did not take the update of the zone `{zone}` ({code}); look into its log"
    )]
    Other {
        /// The server.
        server: String,
        /// The zone.
        zone: String,
        /// What it said.
        code: String,
    },
    /// It says yes, but unsigned or wrongly signed.
    #[error(
        "the DNS server `{server}` answered without a valid signature ({cause}); somebody on the way may have changed the answer: try again, and look into its log"
    )]
    Unverified {
        /// The server.
        server: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// Sets records by dynamic update.
#[derive(Debug)]
pub(super) struct Rfc2136 {
    settings: Rfc2136Settings,
    watch: Watch,
}

/// What an update does.
#[derive(Clone, Copy)]
enum Update {
    Add,
    Remove,
}

impl DnsProvider for Rfc2136 {
    fn set<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<Option<String>, DnsError>> {
        Box::pin(async move { self.update_in_time(record, Update::Add).await.map(|()| None) })
    }

    fn seen<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.watch.seen(record))
    }

    fn cleanup<'a>(
        &'a self,
        record: &'a ChallengeRecord,
        _memo: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async move {
            let removed = self.update_in_time(record, Update::Remove).await;
            self.watch.gone(&record.value);
            removed
        })
    }
}

impl Rfc2136 {
    pub(super) fn new(settings: &Rfc2136Settings, dns: &DnsSettings) -> Self {
        Self { settings: settings.clone(), watch: Watch::new(dns) }
    }

    #[cfg(test)]
    pub(super) fn with_port(mut self, port: u16) -> Self {
        self.watch.lookup.set_port(port);
        self
    }

    async fn update_in_time(&self, record: &ChallengeRecord, update: Update) -> Result<(), DnsError> {
        let outcome = tokio::time::timeout(self.watch.limit, self.update(record, update)).await;
        outcome.map_err(|_| DnsError::TooSlow { name: record.name.clone(), limit: self.watch.limit })?
    }

    async fn update(&self, record: &ChallengeRecord, update: Update) -> Result<(), DnsError> {
        let name = self.watch.target_of(record).await?;
        let server = self.address().await?;
        let zone = self.zone(server, &name).await?;
        let signer = self.signer()?;
        let mut set = RecordSet::with_ttl(name.clone(), RecordType::TXT, TTL);
        let data = RData::TXT(TXT::new(vec![record.value.clone()]));
        set.insert(Record::from_rdata(name.clone(), TTL, data), 0);
        let mut message = match update {
            Update::Add => append(set, zone.clone(), false, false),
            Update::Remove => delete_by_rdata(set, zone.clone(), false),
        };
        let key_fault = |error: hickory_proto::ProtoError| key_fault(&self.settings, error.to_string());
        let verifier = message.finalize(&signer, now()).map_err(key_fault)?;
        let request = message.to_vec().map_err(key_fault)?;
        let answer = exchange(server, &request)
            .await
            .map_err(|cause| UpdateError::Silent { server: self.server(), cause })?;
        self.judge(&answer.message, &name, &zone)?;
        let unverified = |cause: String| UpdateError::Unverified { server: self.server(), cause };
        if answer.message.signature.is_none() {
            return Err(unverified("it is unsigned".to_owned()).into());
        }
        let mut verifier = verifier.ok_or_else(|| unverified("there is no key".to_owned()))?;
        verifier.verify(&answer.bytes).map_err(|error| unverified(error.to_string()))?;
        Ok(())
    }

    /// What the server is called in messages.
    fn server(&self) -> String {
        format!("{}:{}", self.settings.host, self.settings.port)
    }

    async fn address(&self) -> Result<SocketAddr, UpdateError> {
        let server = self.server();
        let found = tokio::net::lookup_host(server.clone()).await.map(|mut all| all.next());
        match found {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err(UpdateError::NoAddress { server, cause: "it has none".to_owned() }),
            Err(error) => Err(UpdateError::NoAddress { server, cause: error.to_string() }),
        }
    }

    /// The zone to update: what the settings say, or else the server itself.
    async fn zone(&self, server: SocketAddr, name: &Name) -> Result<Name, DnsError> {
        if let Some(zone) = &self.settings.zone {
            let zone = parse(zone.as_str())?;
            if zone.zone_of(name) {
                return Ok(zone);
            }
            return Err(UpdateError::NotInZone { name: show(name), zone: show(&zone) }.into());
        }
        let mut at = name.clone();
        while !at.is_root() {
            let answer = ask(server, &at, RecordType::SOA, false)
                .await
                .map_err(|cause| UpdateError::Silent { server: self.server(), cause })?;
            if let Some(zone) = soa_above(&answer, name) {
                return Ok(zone);
            }
            at = at.base_name();
        }
        Err(UpdateError::NoZone { server: self.server(), name: show(name) }.into())
    }

    fn signer(&self) -> Result<TSigner, DnsError> {
        let secret = secret(&self.settings)?;
        let algorithm = match self.settings.algorithm {
            TsigHash::Sha256 => TsigAlgorithm::HmacSha256,
            TsigHash::Sha384 => TsigAlgorithm::HmacSha384,
            TsigHash::Sha512 => TsigAlgorithm::HmacSha512,
        };
        let name = parse(self.settings.key_name.as_str())?;
        Ok(TSigner::new(secret, algorithm, name, FUDGE)
            .map_err(|error| key_fault(&self.settings, error.to_string()))?)
    }

    /// What a refusal means.
    fn judge(&self, answer: &Message, name: &Name, zone: &Name) -> Result<(), UpdateError> {
        let (server, zone) = (self.server(), show(zone));
        let key = self.settings.key_name.to_string();
        let signature = answer.signature.as_ref().map(|record| &record.data);
        match (answer.metadata.response_code, signature.and_then(|tsig| tsig.error)) {
            (_, Some(TsigError::BadKey)) => {
                let algorithm = format!("{:?}", self.settings.algorithm).to_lowercase();
                Err(UpdateError::BadKey { server, key, algorithm: format!("hmac-{algorithm}") })
            }
            (_, Some(TsigError::BadSig)) => {
                Err(UpdateError::BadSecret { server, key, place: place_of(&self.settings) })
            }
            (_, Some(TsigError::BadTime)) => {
                Err(UpdateError::BadTime { server, apart: apart(signature, now()) })
            }
            (ResponseCode::NoError, None) => Ok(()),
            (ResponseCode::Refused, None) => {
                Err(UpdateError::Refused { server, key, name: show(name), zone })
            }
            (ResponseCode::NotAuth | ResponseCode::NotZone, None) => {
                Err(UpdateError::NotAuth { server, zone })
            }
            (ResponseCode::NotImp, None) => {
                Err(UpdateError::Other { server, zone, code: "it takes no updates".to_owned() })
            }
            (code, _) => Err(UpdateError::Other { server, zone, code: code.to_string() }),
        }
    }
}

/// How far the server's clock is from `now`, as it says itself (RFC 8945, section 5.2.3).
fn apart(signature: Option<&TSIG>, now: u64) -> String {
    let theirs = signature.map(|tsig| &tsig.other[..]).filter(|other| other.len() == 6);
    match theirs {
        Some(theirs) => {
            let theirs = theirs.iter().fold(0_u64, |sum, octet| sum << 8 | u64::from(*octet));
            format!("{}s", theirs.abs_diff(now))
        }
        None => format!("more than {FUDGE}s"),
    }
}

/// What is wrong with the secret of the key. Reads its file: not for a busy task.
pub(super) fn fault_of(settings: &Rfc2136Settings) -> Option<String> {
    secret(settings).err().map(|error| error.to_string())
}

fn secret(settings: &Rfc2136Settings) -> Result<Vec<u8>, DnsError> {
    let secret = STANDARD.decode(reveal(&settings.key_secret)?).ok().filter(|secret| !secret.is_empty());
    Ok(secret.ok_or_else(|| key_fault(settings, "it is not base64".to_owned()))?)
}

fn key_fault(settings: &Rfc2136Settings, what: String) -> UpdateError {
    UpdateError::Key { what, place: place_of(settings) }
}

/// Where the secret is written.
fn place_of(settings: &Rfc2136Settings) -> String {
    match &settings.key_secret {
        SecretSource::Inline(_) => "`dns.rfc2136.key_secret`".to_owned(),
        SecretSource::File(path) => format!("`{}` (`dns.rfc2136.key_secret_file`)", path.display()),
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server says of its own clock is told.
    #[test]
    fn clocks_that_differ_are_compared() {
        let tsig = |other: Vec<u8>| {
            TSIG::new(TsigAlgorithm::HmacSha256, 1000, 300, Vec::new(), 1, Some(TsigError::BadTime), other)
        };
        assert_eq!(apart(Some(&tsig(vec![0, 0, 0, 0, 0x10, 0])), 1000), "3096s");
        assert_eq!(apart(Some(&tsig(Vec::new())), 1000), "more than 300s");
        assert_eq!(apart(None, 1000), "more than 300s");
    }
}
