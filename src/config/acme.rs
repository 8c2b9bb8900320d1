//! What the settings under `[acme]` mean: which certificates are ordered, from whom, and how names
//! are proved.

use std::path::PathBuf;

use super::{Secret, Settings};
use crate::name::CertName;

/// Certificates that are ordered and renewed (ACME, RFC 8555).
#[derive(Clone, Debug)]
pub struct AcmeSettings {
    /// Where the authority may write to.
    pub email: String,
    /// What certificates are ordered for, one each.
    pub names: Vec<CertName>,
    /// Whom to order from: the first, and the next when it cannot. At least one.
    pub directories: Vec<DirectorySettings>,
    /// How names are proved, in the order in which it is tried.
    pub challenges: Vec<ChallengeWay>,
    /// Which of the authority's kinds of certificate to order. `None`: its usual one.
    pub profile: Option<String>,
    /// Kind of the certificates' keys.
    pub key_type: KeyType,
    /// How many are ordered for hosts that no name covers, when somebody first asks for one.
    /// `None`: none are.
    pub on_demand: Option<OnDemandSettings>,
}

/// How many certificates are ordered on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDemandSettings {
    /// At most in one minute; at least one.
    pub per_minute: usize,
    /// At most in one week; at least one.
    pub per_week: usize,
}

/// A certificate authority that speaks ACME.
#[derive(Clone, Debug)]
pub struct DirectorySettings {
    /// Where its directory is.
    pub url: String,
    /// Authorities (PEM) that vouch for the server itself, besides the system's.
    pub root: Option<PathBuf>,
    /// What binds the account to one made elsewhere.
    pub eab: Option<EabSettings>,
}

/// External account binding (RFC 8555, section 7.3.4).
#[derive(Clone, Debug)]
pub struct EabSettings {
    /// The key's identifier.
    pub key_id: String,
    /// The MAC key, in base64url.
    pub key: Secret,
}

/// A way to prove that a name leads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeWay {
    /// By a certificate under the name, on the single port (RFC 8737).
    TlsAlpn01,
    /// By a text under a path, over plain HTTP (RFC 8555, section 8.3).
    Http01,
    /// By a record in the DNS (RFC 8555, section 8.4).
    Dns01,
}

impl ChallengeWay {
    /// All of them, in the usual order.
    pub const ALL: [Self; 3] = [Self::TlsAlpn01, Self::Http01, Self::Dns01];

    /// The word for it in ACME.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
            Self::Dns01 => "dns-01",
        }
    }
}

impl std::fmt::Display for ChallengeWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl Settings {
    /// Whether what a way to prove names needs is set up. HTTP-01 comes to port 80, where the single port
    /// answers it as well; a plain listener elsewhere may have that port led to it.
    #[must_use]
    pub fn offers(&self, way: ChallengeWay) -> bool {
        match way {
            ChallengeWay::TlsAlpn01 => !self.listen.is_empty(),
            ChallengeWay::Http01 => {
                !self.plain_http.is_empty() || self.listen.iter().any(|address| address.port() == 80)
            }
            ChallengeWay::Dns01 => self.dns.way.is_some(),
        }
    }

    /// Whether a name can be proved in a way here: wildcards by DNS-01 only (RFC 8555, section 7.1.3).
    #[must_use]
    pub fn proves(&self, name: &CertName, way: ChallengeWay) -> bool {
        self.offers(way) && (way == ChallengeWay::Dns01 || !name.is_wildcard())
    }
}

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA over P-256.
    P256,
    /// RSA with 2048 bits.
    Rsa2048,
}
