//! Whose tokens are believed: each agent's own key, for its own tunnels; and issuers that the
//! operator configured, for the profiles that a token names.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use time::OffsetDateTime;

use super::Identity;
use super::token::{Claims, Terms, TokenFault, Unverified, VerifyingKey, brief};
use crate::config::{AccessSettings, IssuerKeys, IssuerSettings, PemSource};
use crate::name::Thumbprint;

/// What the issuer of a token that an agent's key signed begins with; its thumbprint follows.
const KEY_ISSUER: &str = "preevy://";
/// The claim of a key's own token that would name profiles: it needs none.
const NO_CLAIM: &str = "";
/// Most of an issuer's keys that are tried for a token that names none.
const KEYS_MAX: usize = 8;
/// Most keys that a warning of a token without end is remembered for.
const WARNED_MAX: usize = 10_000;

/// All whose tokens are believed. Clones share the contents.
#[derive(Clone, Debug)]
pub struct Issuers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configured: Vec<Issuer>,
    allow_unexpiring: bool,
    /// Whose tokens without an end were warned of.
    warned: Mutex<HashSet<Thumbprint>>,
}

/// A configured issuer.
#[derive(Debug)]
struct Issuer {
    settings: IssuerSettings,
    keys: Vec<VerifyingKey>,
}

/// Why an issuer's keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the key of the issuer `{issuer}` in {place} cannot be used: {what}")]
pub struct IssuerError {
    /// The issuer's name.
    pub issuer: String,
    /// The file, in back-ticks, or that it was given inline.
    pub place: String,
    /// What is wrong, and what to do.
    pub what: String,
}

/// Why a token does not open a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not hold.
    Fault(TokenFault),
    /// It holds, but not for this profile.
    OtherProfile,
}

impl From<TokenFault> for Refused {
    fn from(fault: TokenFault) -> Self {
        Self::Fault(fault)
    }
}

impl Issuers {
    /// Reads the keys of the issuers. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When one cannot be used.
    pub fn open(settings: &AccessSettings) -> Result<Self, IssuerError> {
        let configured = settings.issuers.iter().map(Issuer::open).collect::<Result<_, _>>()?;
        let allow_unexpiring = settings.allow_unexpiring_tokens;
        Ok(Self(Arc::new(Inner { configured, allow_unexpiring, warned: Mutex::default() })))
    }

    /// Whether a token opens what `owner` offers, now.
    ///
    /// # Errors
    /// When it does not.
    pub fn judge(&self, token: &str, owner: &Identity) -> Result<Claims, Refused> {
        self.judge_at(token, owner, OffsetDateTime::now_utc())
    }

    /// Whether a token says that it was made for gateways: its issuer is an agent's key, which means
    /// something nowhere else, or one that is configured, and then with the right audience if one
    /// is. Believes the token, so it is for keeping it secret only.
    #[must_use]
    pub fn are_meant(&self, token: &str) -> bool {
        let Ok(unverified) = Unverified::read(token) else { return false };
        let mut configured = self.0.configured.iter();
        unverified.issuer.starts_with(KEY_ISSUER)
            || configured.any(|issuer| {
                let audience = issuer.settings.audience.as_ref();
                issuer.settings.name == unverified.issuer
                    && audience.is_none_or(|audience| unverified.audiences.contains(audience))
            })
    }

    fn judge_at(&self, token: &str, owner: &Identity, now: OffsetDateTime) -> Result<Claims, Refused> {
        let unverified = Unverified::read(token)?;
        if let Some(thumbprint) = unverified.issuer.strip_prefix(KEY_ISSUER) {
            return Ok(self.of_key(token, thumbprint, owner, now)?);
        }
        let issuer = self.0.configured.iter().find(|issuer| issuer.settings.name == unverified.issuer);
        let issuer = issuer.ok_or_else(|| TokenFault::UnknownIssuer(brief(&unverified.issuer)))?;
        let claims = issuer.verify(token, unverified.key_id.as_deref(), now)?;
        let own = owner.thumbprint.as_ref();
        if own.is_some_and(|own| claims.profiles.iter().any(|profile| profile == own.as_str())) {
            return Ok(claims);
        }
        Err(Refused::OtherProfile)
    }

    fn of_key(
        &self,
        token: &str,
        thumbprint: &str,
        owner: &Identity,
        now: OffsetDateTime,
    ) -> Result<Claims, TokenFault> {
        let own = owner.thumbprint.as_ref().ok_or(TokenFault::UnusableKey)?;
        if own.as_str() != thumbprint {
            return Err(TokenFault::OtherKey);
        }
        let key = owner.verifying_key().ok_or(TokenFault::UnusableKey)?;
        let terms =
            Terms { audience: None, profiles_claim: NO_CLAIM, allow_unexpiring: self.0.allow_unexpiring };
        let claims = key.verify(token, terms, now)?;
        if claims.expires.is_none() {
            self.warn_once(own, owner);
        }
        Ok(claims)
    }

    fn warn_once(&self, thumbprint: &Thumbprint, owner: &Identity) {
        let mut warned = self.0.warned.lock();
        if warned.len() < WARNED_MAX && warned.insert(thumbprint.clone()) {
            tracing::warn!(
                key = %owner.fingerprint,
                "a token of this key has no `exp` and is valid for ever; make one with `oneport token --ttl`, and set `access.allow_unexpiring_tokens = false` once no agent needs it"
            );
        }
    }
}

impl Issuer {
    fn open(settings: &IssuerSettings) -> Result<Self, IssuerError> {
        let source = match &settings.keys {
            IssuerKeys::Pem(source) | IssuerKeys::Jwks(source) => source,
        };
        let (place, text) = match source {
            PemSource::Inline(text) => ("the configuration".to_owned(), Ok(text.clone())),
            PemSource::File(path) => (format!("`{}`", path.display()), std::fs::read_to_string(path)),
        };
        let fail = |what: String| IssuerError { issuer: settings.name.clone(), place: place.clone(), what };
        let text =
            text.map_err(|error| fail(format!("{error}; check the path, and that this user may read it")))?;
        let keys = match &settings.keys {
            IssuerKeys::Pem(_) => vec![VerifyingKey::of_pem(&text).map_err(fail)?],
            IssuerKeys::Jwks(_) => key_set(&text).map_err(fail)?,
        };
        Ok(Self { settings: settings.clone(), keys })
    }

    fn verify(&self, token: &str, key_id: Option<&str>, now: OffsetDateTime) -> Result<Claims, TokenFault> {
        let terms = Terms {
            audience: self.settings.audience.as_deref(),
            profiles_claim: &self.settings.profiles_claim,
            allow_unexpiring: false,
        };
        let mut last = TokenFault::UnknownKey(brief(key_id.unwrap_or_default()));
        for key in self.keys.iter().filter(|key| key.is_called(key_id)).take(KEYS_MAX) {
            match key.verify(token, terms, now) {
                // Without a name in the token, it may be another of the keys.
                Err(fault @ (TokenFault::BadSignature | TokenFault::WrongAlgorithm(_))) => last = fault,
                decided => return decided,
            }
        }
        Err(last)
    }
}

/// Whether a key is for signatures (RFC 7517, sections 4.2 and 4.3).
fn may_verify(key: &serde_json::Value) -> bool {
    let usage = key.get("use").and_then(serde_json::Value::as_str);
    let operations = key.get("key_ops").and_then(serde_json::Value::as_array);
    usage.is_none_or(|usage| usage == "sig")
        && operations.is_none_or(|all| all.iter().any(|operation| operation == "verify"))
}

/// The keys of a set that can check tokens (RFC 7517, section 5: others are left out).
fn key_set(text: &str) -> Result<Vec<VerifyingKey>, String> {
    const HINT: &str = "give the JSON object with its `keys`";
    let set: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("{error}; {HINT}"))?;
    let keys = set.get("keys").and_then(serde_json::Value::as_array).ok_or(HINT)?;
    let mut last = "it holds no key".to_owned();
    let mut usable = Vec::new();
    for key in keys {
        if !may_verify(key) {
            continue;
        }
        let read = serde_json::from_value(key.clone()).map_err(|error| error.to_string());
        match read.and_then(|jwk| VerifyingKey::of_jwk(&jwk)) {
            Ok(key) => usable.push(key),
            Err(what) => last = what,
        }
    }
    if usable.is_empty() { Err(format!("no key in it can be used: {last}")) } else { Ok(usable) }
}
