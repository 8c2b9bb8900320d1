//! Records in the DNS that prove a name to a certificate authority (DNS-01: RFC 8555, section
//! 8.4), behind one small trait.

use crate::registry::BoxFuture;

/// What must stand in DNS while a name is being proved (RFC 8555 8.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChallengeRecord {
    /// `_acme-challenge.example.com`, without a final dot.
    pub name: String,
    /// The TXT value.
    pub value: String,
}

/// Sets records, and removes them. Several values may stand at one name at once.
pub trait DnsProvider: Send + Sync + std::fmt::Debug {
    /// Sets a value, and returns when the zone's own servers all show it.
    ///
    /// # Errors
    /// When it cannot be set, or is not seen in time.
    fn present<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>>;

    /// Removes one value, and leaves the others.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn cleanup<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>>;
}

/// Why a name cannot be proved by DNS, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DnsError(pub String);
