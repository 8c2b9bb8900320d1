//! What the configuration means for DNS: how a name is proved by a record there (RFC 8555,
//! section 8.4), and who is asked whether it can be seen.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Secret;
use crate::name::HostName;

/// DNS.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    /// Who sets the records. `None`: nobody, so that no wildcard can be proved.
    pub way: Option<DnsWay>,
    /// Who is asked where zones and their servers are. Empty: the system's resolvers.
    pub resolver: Vec<SocketAddr>,
    /// Who is asked whether a record can be seen. Empty: the servers in the zone's NS records.
    pub servers: Vec<SocketAddr>,
    /// How long a record may take to be set, and as long again to be seen.
    pub timeout: Duration,
}

/// Who sets the records.
#[derive(Clone, Debug)]
pub enum DnsWay {
    /// The gateway answers for them itself.
    Responder(ResponderSettings),
    /// A server that takes dynamic updates (RFC 2136).
    Rfc2136(Rfc2136Settings),
    /// A program.
    Exec(ExecSettings),
    /// Cloudflare.
    Cloudflare(CloudflareSettings),
}

/// The gateway's own answers.
#[derive(Clone, Debug)]
pub struct ResponderSettings {
    /// Where it listens, over UDP and TCP. Not empty.
    pub listen: Vec<SocketAddr>,
    /// What this host is called in the DNS: the NS record leads there.
    pub host: HostName,
}

/// A server that takes dynamic updates.
#[derive(Clone, Debug)]
pub struct Rfc2136Settings {
    /// Host name or IP literal of the zone's primary server.
    pub host: HostName,
    /// Its port.
    pub port: u16,
    /// The zone to update. `None`: the server is asked.
    pub zone: Option<HostName>,
    /// What the key is called there.
    pub key_name: HostName,
    /// The key, in base64.
    pub key_secret: SecretSource,
    /// How updates are signed.
    pub algorithm: TsigHash,
}

/// How an update is signed (RFC 8945, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TsigHash {
    /// `hmac-sha256`.
    Sha256,
    /// `hmac-sha384`.
    Sha384,
    /// `hmac-sha512`.
    Sha512,
}

/// A program that sets and removes records.
#[derive(Clone, Debug)]
pub struct ExecSettings {
    /// What is run.
    pub program: PathBuf,
    /// What is run to remove a record, where that is another one.
    pub cleanup: Option<PathBuf>,
    /// How it is told what to do.
    pub style: ExecStyle,
}

/// How a program is told what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecStyle {
    /// By arguments: `present FQDN. VALUE`, `cleanup FQDN. VALUE`.
    Lego,
    /// By the variables `CERTBOT_DOMAIN` and `CERTBOT_VALIDATION`.
    Certbot,
}

/// Cloudflare.
#[derive(Clone, Debug)]
pub struct CloudflareSettings {
    /// An API token that may edit the zone's DNS.
    pub token: SecretSource,
    /// What the API's URLs begin with; no `/` at its end.
    pub api: String,
}

/// Where a secret is.
#[derive(Clone, Debug)]
pub enum SecretSource {
    /// In the configuration itself.
    Inline(Secret),
    /// In this file, read anew for each use.
    File(PathBuf),
}

impl SecretSource {
    /// The secret, without blanks around it. Reads the file: not for a busy task.
    ///
    /// # Errors
    /// When the file, which is the first value, cannot be read.
    pub fn reveal(&self) -> Result<String, (&Path, std::io::Error)> {
        match self {
            Self::Inline(secret) => Ok(secret.reveal().trim().to_owned()),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(text.trim().to_owned()),
                Err(error) => Err((path, error)),
            },
        }
    }
}
