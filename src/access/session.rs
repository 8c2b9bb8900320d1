//! A session: that somebody logged in, whose tunnels they may see, and until when; how it is written
//! to be sealed. Whether it is good now is [`super::sessions`]' to say.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Identity;
use super::hold::Hold;
use super::keep::hex;
use super::logouts::SessionId;
use super::verifying_key::KeyName;
use crate::config::{IssuerSettings, OidcSettings};

/// Octets of a profile's hash.
const HASH: usize = 16;

/// Somebody who logged in.
#[derive(Clone, Debug)]
pub struct Session {
    pub(super) id: SessionId,
    /// What they are called, for people.
    pub name: String,
    pub(super) origin: Origin,
    /// The issuer's key that vouches for it, where an issuer does.
    pub(super) key: Option<KeyName>,
    pub(super) sees: Sees,
    pub(super) until: OffsetDateTime,
    pub(super) hold: Hold,
}

/// Whose tunnels somebody may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sees {
    /// Everybody's.
    All,
    /// Those of these profiles, by their hashes.
    Profiles(Vec<[u8; HASH]>),
}

/// Who says so: sessions end with the configuration that made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin([u8; 8]);

/// Who vouches for a session: an issuer, a provider, or one of the keys that anybody can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Voucher {
    pub(super) origin: Origin,
    /// Which of the keys, where it is one.
    profile: Option<[u8; HASH]>,
}

/// Somebody who has just shown who they are.
#[derive(Clone, Debug)]
pub struct Known {
    /// What they are called, for people.
    pub name: String,
    /// Who says so.
    pub origin: Origin,
    /// The key that a configured issuer's token was signed with, where it was such a token.
    pub key: Option<KeyName>,
    /// The profiles whose tunnels they may see; `None`: all.
    pub profiles: Option<Vec<String>>,
}

/// A session as it is sealed. Short names: it goes with every request.
#[derive(Serialize, Deserialize)]
struct Sealed {
    i: String,
    n: String,
    o: String,
    /// Hashes of profiles, one behind the other; `None`: all.
    p: Option<String>,
    /// The name of the issuer's key; `None`: no issuer vouches, or an older version sealed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    k: Option<String>,
    u: i64,
}

impl Origin {
    /// The tunnel's own key.
    #[must_use]
    pub fn key() -> Self {
        Self::of(&["key"])
    }

    /// A configured issuer of tokens.
    #[must_use]
    pub fn issuer(issuer: &IssuerSettings) -> Self {
        Self::of(&["issuer", &issuer.name, issuer.audience.as_deref().unwrap_or(""), &issuer.profiles_claim])
    }

    /// A provider, with its rules.
    #[must_use]
    pub fn oidc(settings: &OidcSettings) -> Self {
        Self::of(&["oidc", &settings.issuer, &settings.client_id, &format!("{:?}", settings.allow)])
    }

    /// Whatever these words describe.
    pub(super) fn of(words: &[&str]) -> Self {
        let mut origin = [0; 8];
        origin.copy_from_slice(&digest(&words.join("\0"))[..8]);
        Self(origin)
    }
}

impl Known {
    /// Whether they may see what this agent offers privately.
    #[must_use]
    pub fn may_see(&self, owner: &Identity) -> bool {
        let Some(profiles) = &self.profiles else { return true };
        owner.thumbprint.as_ref().is_some_and(|own| profiles.iter().any(|profile| profile == own.as_str()))
    }
}

impl Session {
    /// Whether its bearer may see what this agent offers privately.
    #[must_use]
    pub fn may_see(&self, owner: &Identity) -> bool {
        match &self.sees {
            Sees::All => true,
            Sees::Profiles(hashes) => hashes.contains(&hash_of(owner)),
        }
    }

    /// What names it.
    pub(super) const fn id(&self) -> SessionId {
        self.id
    }

    /// What tells its cookie from those of the same browser's other logins. No secret.
    #[must_use]
    pub fn tag(&self) -> String {
        hex(&self.id[..4])
    }

    /// Whose logouts it is counted with.
    pub(super) fn voucher(&self) -> Voucher {
        let profile = match &self.sees {
            Sees::Profiles(own) if self.origin == Origin::key() => own.first().copied(),
            Sees::Profiles(_) | Sees::All => None,
        };
        Voucher { origin: self.origin, profile }
    }

    /// When it ends by itself.
    #[must_use]
    pub fn until(&self) -> OffsetDateTime {
        self.until
    }

    /// How long it is still good.
    #[must_use]
    pub fn left(&self) -> Duration {
        (self.until - OffsetDateTime::now_utc()).try_into().unwrap_or_default()
    }

    /// The same, but over at this time, if it would not be before.
    #[must_use]
    pub fn until_at_most(self, end: Option<OffsetDateTime>) -> Self {
        let until = end.map_or(self.until, |end| end.min(self.until));
        Self { until, hold: Hold::new(Some(until), None), ..self }
    }

    /// How long a visit may last that it allows.
    #[must_use]
    pub const fn hold(&self) -> &Hold {
        &self.hold
    }

    /// The same, but for the tunnels of this agent only: what its host is given.
    pub(super) fn narrowed(&self, owner: &Identity) -> Self {
        Self { sees: Sees::Profiles(vec![hash_of(owner)]), ..self.clone() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let text = |octets: &[u8]| STANDARD_NO_PAD.encode(octets);
        let sealed = Sealed {
            i: text(&self.id),
            n: self.name.clone(),
            o: text(&self.origin.0),
            p: match &self.sees {
                Sees::All => None,
                Sees::Profiles(hashes) => Some(text(hashes.as_flattened())),
            },
            k: self.key.as_ref().map(|key| text(key)),
            u: self.until.unix_timestamp(),
        };
        serde_json::to_vec(&sealed).expect("texts and a number can be written as JSON")
    }

    pub(super) fn decode(octets: &[u8]) -> Option<Self> {
        let sealed: Sealed = serde_json::from_slice(octets).ok()?;
        let octets = |text: &str| STANDARD_NO_PAD.decode(text).ok();
        let sees = match &sealed.p {
            None => Sees::All,
            Some(hashes) => Sees::Profiles(octets(hashes)?.as_chunks().0.to_vec()),
        };
        let key = match &sealed.k {
            None => None,
            Some(key) => Some(octets(key)?.try_into().ok()?),
        };
        let until = OffsetDateTime::from_unix_timestamp(sealed.u).ok()?;
        Some(Self {
            id: octets(&sealed.i)?.try_into().ok()?,
            name: sealed.n,
            origin: Origin(octets(&sealed.o)?.try_into().ok()?),
            key,
            sees,
            until,
            hold: Hold::new(Some(until), None),
        })
    }
}

/// What a session that may see this agent's tunnels has of it: its profile's hash; of a key without a
/// profile, its own.
fn hash_of(owner: &Identity) -> [u8; HASH] {
    hash(owner.thumbprint.as_ref().map_or(&owner.fingerprint, |own| own.as_str()))
}

pub(super) fn hash(profile: &str) -> [u8; HASH] {
    let mut hash = [0; HASH];
    hash.copy_from_slice(&digest(profile)[..HASH]);
    hash
}

fn digest(text: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 octets")
}
