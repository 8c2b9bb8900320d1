//! What the DNS says of a host that a certificate is for: its addresses, and who may issue for it
//! (CAA, RFC 8659).

use std::net::IpAddr;

use hickory_proto::rr::{RData, RecordType};

use super::DnsError;
use super::lookup::{Lookup, parse, show};
use crate::config::DnsSettings;
use crate::name::HostName;

/// Asks the system's resolvers, or those of the settings.
#[derive(Clone, Debug)]
pub(in crate::certs) struct Names(Lookup);

/// The CAA records that count for a name.
#[derive(Clone, Debug)]
pub(in crate::certs) struct CaaSet {
    /// Where they stand: at the name, or above it.
    pub(in crate::certs) at: String,
    /// Not empty.
    pub(in crate::certs) records: Vec<Caa>,
}

/// A CAA record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::certs) struct Caa {
    /// Whether who does not understand it must not issue.
    pub(in crate::certs) is_critical: bool,
    /// In lower case: `issue`, `issuewild` or another.
    pub(in crate::certs) tag: String,
    /// What it says.
    pub(in crate::certs) value: String,
}

impl Names {
    pub(in crate::certs) fn new(settings: &DnsSettings) -> Self {
        Self(Lookup::new(settings))
    }

    /// The addresses of a host; empty where it has none.
    ///
    /// # Errors
    /// When no resolver answers.
    pub(in crate::certs) async fn addresses_of(&self, host: &HostName) -> Result<Vec<IpAddr>, DnsError> {
        self.0.addresses_of(&parse(host.as_str())?).await
    }

    /// The records of the host, or of the nearest name above it that has any (RFC 8659, section 3).
    ///
    /// # Errors
    /// When no resolver answers.
    pub(in crate::certs) async fn caa_of(&self, host: &HostName) -> Result<Option<CaaSet>, DnsError> {
        let mut at = parse(host.as_str())?;
        while !at.is_root() {
            let answer = self.0.resolve(&at, RecordType::CAA).await?;
            let records = answer.answers.iter().filter_map(|record| match &record.data {
                RData::CAA(caa) => Some(Caa {
                    is_critical: caa.issuer_critical,
                    tag: caa.tag.to_ascii_lowercase(),
                    value: String::from_utf8_lossy(&caa.value).into_owned(),
                }),
                _ => None,
            });
            let records: Vec<Caa> = records.collect();
            if !records.is_empty() {
                return Ok(Some(CaaSet { at: show(&at), records }));
            }
            at = at.base_name();
        }
        Ok(None)
    }
}
