//! Records in the DNS that prove a name to a certificate authority (DNS-01: RFC 8555, section
//! 8.4), set in one of four ways behind one small trait.
//!
//! Refuses to touch any other record: a provider only ever adds and removes single values of
//! `_acme-challenge` names.

mod ask;
mod check;
mod cloudflare;
mod delegation;
mod exec;
mod lookup;
mod names;
mod propagation;
mod responder;
mod rfc2136;
#[cfg(test)]
mod tests;
mod zones;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::cloudflare::Cloudflare;
use self::exec::Exec;
use self::responder::Responder;
use self::rfc2136::Rfc2136;
use crate::config::{DnsSettings, DnsWay, Fault, SecretSource, Settings};
use crate::net::BindError;
use crate::registry::BoxFuture;

pub use ask::AskError;
pub use check::{Finding, Outcome, check, records_to_add};
pub use cloudflare::CloudflareError;
pub use exec::ExecError;
pub(super) use names::{Caa, CaaSet, Names};
pub use rfc2136::UpdateError;
pub use zones::Answers;

/// What must stand in DNS while a name is being proved (RFC 8555 8.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChallengeRecord {
    /// `_acme-challenge.example.com`, without a final dot.
    pub name: String,
    /// The TXT value.
    pub value: String,
}

/// Sets records, and removes them. Several values may stand at one name at once. All have deadlines
/// of their own.
pub trait DnsProvider: Send + Sync + std::fmt::Debug {
    /// Sets a value, beside those that stand there; gives what [`Self::cleanup`] has to be told besides,
    /// if anything. When it is not waited for, or fails, the value may stand all the same: clean up.
    /// Setting it again is no error.
    ///
    /// # Errors
    /// When it cannot be set.
    fn set<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<Option<String>, DnsError>>;

    /// Returns when the zone's own servers all show a value that was set, and nobody can remember
    /// another value without it. Cancel safe.
    ///
    /// # Errors
    /// When it is not seen in time.
    fn seen<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>>;

    /// Removes one value, and leaves the others. `memo` is what [`Self::set`] gave. Removing what is not
    /// there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn cleanup<'a>(
        &'a self,
        record: &'a ChallengeRecord,
        memo: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DnsError>>;
}

/// Why a name cannot be proved by DNS, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Not a name.
    #[error("`{0}` is not a name that the DNS can hold; write one such as `example.com`")]
    Name(String),
    /// No resolver answered.
    #[error(
        "no DNS resolver tells the {kind} records of `{name}` ({cause}); {advice}, and the domain's servers"
    )]
    Resolver {
        /// What was asked for.
        name: String,
        /// Which records.
        kind: String,
        /// What each said.
        cause: String,
        /// Where resolvers are named.
        advice: &'static str,
    },
    /// None of a zone's own servers answered.
    #[error(
        "no server of its zone tells where `{name}` leads ({cause}); check that they can be asked from here, or name others in `dns.servers`"
    )]
    Servers {
        /// What was asked for.
        name: String,
        /// What each said.
        cause: String,
    },
    /// The zone above does not lead to the responder.
    #[error(
        "`{name}` does not lead here ({found}); add the record `{record}` in the zone above it, and see `oneport check`"
    )]
    NotDelegated {
        /// The record's name.
        name: String,
        /// What was found instead.
        found: String,
        /// What the operator must write, as in a zone file.
        record: String,
    },
    /// A CNAME leads to itself, or through too many others.
    #[error("the CNAME records of `{0}` lead nowhere; let them lead to one name that has none")]
    Circle(String),
    /// No zone.
    #[error("no zone holds `{0}`; check that its domain is registered and has name servers")]
    NoZone(String),
    /// A zone without servers.
    #[error(
        "the name servers of the zone `{0}` have no address; check its NS records, or name its servers in `dns.servers`"
    )]
    NoServers(String),
    /// Set, but not seen.
    #[error("the record `{name}` was set, but after {}s not all servers of its zone show it: {servers}; check that they take the zone over from its primary server, or make `dns.timeout` longer", .waited.as_secs())]
    NotSeen {
        /// The record's name.
        name: String,
        /// What each of those servers said.
        servers: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It took too long to set.
    #[error("the record `{name}` could not be set or removed within {}s; the servers that were asked are slow: try again later, or make `dns.timeout` longer", .limit.as_secs())]
    TooSlow {
        /// The record's name.
        name: String,
        /// How long it had.
        limit: Duration,
    },
    /// The port of the DNS cannot be listened on.
    #[error(
        "the DNS responder {0} (on port 53 of a loopback address there is often the system's own resolver: then write this machine's public address into `dns.responder` instead of `0.0.0.0`)"
    )]
    Bind(BindError),
    /// A socket failed.
    #[error("the DNS responder cannot listen: {0}")]
    Socket(io::Error),
    /// A server refused an update.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// A program failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// Cloudflare refused.
    #[error(transparent)]
    Cloudflare(#[from] CloudflareError),
    /// A file with a secret.
    #[error("the secret in `{path}` cannot be read: {error}; let this user read that file")]
    Secret {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

// Not as its source: its words stand in the sentence already.
impl From<BindError> for DnsError {
    fn from(error: BindError) -> Self {
        Self::Bind(error)
    }
}

/// Who sets records, as the settings say; `None` where they say nobody. The gateway's own responder
/// listens from then on, until it is dropped. Must be called within a tokio runtime.
///
/// # Errors
/// When the responder cannot listen, or no certificate authority is known by which to ask an API.
pub fn provider(settings: &Settings) -> Result<Option<Arc<dyn DnsProvider>>, DnsError> {
    let dns = &settings.dns;
    let provider: Arc<dyn DnsProvider> = match &dns.way {
        None => return Ok(None),
        Some(DnsWay::Responder(responder)) => Arc::new(Responder::start(responder, settings)?.0),
        Some(DnsWay::Rfc2136(update)) => Arc::new(Rfc2136::new(update, dns)),
        Some(DnsWay::Exec(exec)) => Arc::new(Exec::new(exec, dns)),
        Some(DnsWay::Cloudflare(cloudflare)) => Arc::new(Cloudflare::new(cloudflare, dns)?),
    };
    Ok(Some(provider))
}

/// What is wrong with the files that the settings name: secrets and programs. Reads files: not for a
/// busy task.
#[must_use]
pub fn check_files(dns: &DnsSettings) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut check = |place: &str, secret: &SecretSource| match reveal(secret) {
        Err(error) => faults.push(Fault::new(place, error.to_string())),
        Ok(secret) if secret.is_empty() => {
            faults.push(Fault::new(place, "there is no secret in it; write it into that file"));
        }
        Ok(_) => {}
    };
    match &dns.way {
        Some(DnsWay::Rfc2136(update)) => {
            const PLACE: &str = "dns.rfc2136.key_secret_file";
            check(PLACE, &update.key_secret);
            if faults.is_empty() {
                faults.extend(rfc2136::fault_of(update).map(|what| Fault::new(PLACE, what)));
            }
        }
        Some(DnsWay::Cloudflare(cloudflare)) => check("dns.cloudflare.token_file", &cloudflare.token),
        Some(DnsWay::Exec(programs)) => {
            let cleanup = programs.cleanup.iter().map(|path| ("dns.exec_cleanup", path));
            for (place, path) in [("dns.exec", &programs.program)].into_iter().chain(cleanup) {
                faults.extend(exec::fault_of(path).map(|what| Fault::new(place, what)));
            }
        }
        Some(DnsWay::Responder(_)) | None => {}
    }
    faults
}

/// The secret, without the white space around it.
fn reveal(source: &SecretSource) -> Result<String, DnsError> {
    source.reveal().map_err(|(path, error)| DnsError::Secret { path: path.to_owned(), error })
}
