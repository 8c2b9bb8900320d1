//! Whose tokens are believed: each agent's own key, for its own tunnels; and issuers that the
//! operator configured, for the profiles that a token names.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use time::OffsetDateTime;

use super::Identity;
use super::follow::follow;
use super::hold::{Basis, Hold};
use super::issuer::{Issuer, IssuerError};
use super::session::{Known, Origin};
use super::token::{Claims, LEEWAY, TOKEN_MAX, Terms, TokenFault, Unverified, brief, has_claims};
use super::verdicts::{Maker, TokenHash, Verdict, Verdicts};
use super::verifying_key::KeyName;
use crate::config::{AccessSettings, IssuerSettings};
use crate::name::Thumbprint;
use crate::net::Tasks;

/// What the issuer of a token that an agent's key signed begins with; its thumbprint follows.
const KEY_ISSUER: &str = "preevy://";
/// The claim of a key's own token that would name profiles: it needs none.
const NO_CLAIM: &str = "";
/// How long a request waits for keys in all.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Most keys that a warning of a token without end is remembered for.
const WARNED_MAX: usize = 10_000;

/// All whose tokens are believed. Clones share the contents.
#[derive(Clone, Debug)]
pub struct Issuers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configured: ArcSwap<Vec<Arc<Issuer>>>,
    /// Who owns what keeps their keys up to date, once that has begun.
    tasks: OnceLock<Tasks>,
    allow_unexpiring: bool,
    /// Tokens that were checked already.
    verdicts: Verdicts,
    /// Whose tokens without an end were warned of.
    warned: Mutex<HashSet<Thumbprint>>,
}

/// Who is to be believed, by other settings.
#[derive(Debug)]
pub struct PlannedIssuers(Vec<Arc<Issuer>>);

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
        let open = |settings| Issuer::open(settings).map(Arc::new);
        let configured = settings.issuers.iter().map(open).collect::<Result<_, _>>()?;
        let (configured, tasks) = (ArcSwap::from_pointee(configured), OnceLock::new());
        let (allow_unexpiring, verdicts, warned) =
            (settings.allow_unexpiring_tokens, Verdicts::default(), Mutex::default());
        Ok(Self(Arc::new(Inner { configured, tasks, allow_unexpiring, verdicts, warned })))
    }

    /// Logs who is believed in more than is likely meant, as [`Issuers::watch`] does.
    pub fn warn(&self) {
        self.0.configured.load().iter().for_each(warn_of_audience);
    }

    /// Starts to keep the keys those in files and at URLs, until draining begins.
    pub fn watch(&self, tasks: &Tasks) {
        let _ = self.0.tasks.set(tasks.clone());
        self.warn();
        self.0.configured.load().iter().for_each(|issuer| follow(issuer, tasks));
    }

    /// Reads the keys of those that would be believed by other settings. One that is configured as before
    /// is the same one. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When one cannot be used.
    pub fn plan(&self, settings: &AccessSettings) -> Result<PlannedIssuers, IssuerError> {
        let now = self.0.configured.load();
        let known = |wanted: &IssuerSettings| now.iter().find(|issuer| issuer.settings == *wanted).cloned();
        let open = |wanted| known(wanted).map_or_else(|| Issuer::open(wanted).map(Arc::new), Ok);
        settings.issuers.iter().map(open).collect::<Result<_, _>>().map(PlannedIssuers)
    }

    /// Has these be believed from now on. What rests on one that is no longer among them ends. For one
    /// at a time.
    pub fn put(&self, planned: PlannedIssuers) {
        let next = Arc::new(planned.0);
        let old = self.0.configured.swap(next.clone());
        let among = |all: &[Arc<Issuer>], one: &Arc<Issuer>| all.iter().any(|other| Arc::ptr_eq(other, one));
        let gone = old.iter().filter(|issuer| !among(&next, issuer));
        gone.for_each(|issuer| {
            issuer.retire();
            tracing::info!(issuer = issuer.settings.name, "an issuer is no longer believed as it was");
        });
        for issuer in next.iter().filter(|issuer| !among(&old, issuer)) {
            tracing::info!(issuer = issuer.settings.name, "an issuer is believed from now on");
            warn_of_audience(issuer);
            if let Some(tasks) = self.0.tasks.get() {
                follow(issuer, tasks);
            }
        }
    }

    /// Waits for the keys that a token needs to be checked, if they are fetched from a URL and are
    /// not here: for at most 5 s, and not at all where that was done too often of late. To be called
    /// before [`Issuers::judge`]. Cancel safe.
    pub async fn prepare(&self, token: &str) {
        if self.0.configured.load().iter().all(|issuer| issuer.remote.is_none()) {
            return;
        }
        let Ok(unverified) = Unverified::read(token) else { return };
        let Some(issuer) = self.configured(&unverified.issuer) else { return };
        if let Some(remote) = &issuer.remote
            && self.0.verdicts.find(&TokenHash::of(token), OffsetDateTime::now_utc()).is_none()
            && issuer.lacks(token, unverified.key_id.as_deref())
        {
            remote.fetched_anew().await;
        }
    }

    /// Whether a token opens what `owner` offers, now, and how long it does.
    ///
    /// # Errors
    /// When it does not.
    pub fn judge(&self, token: &str, owner: &Identity) -> Result<Arc<Verdict>, Refused> {
        self.judge_at(token, owner, OffsetDateTime::now_utc())
    }

    /// Who shows a token, whatever tunnel it is for. `owner_of` finds the agent of a profile, without
    /// whose key no token of it can be checked.
    ///
    /// # Errors
    /// When it does not hold.
    pub fn identify(
        &self,
        token: &str,
        owner_of: impl FnOnce(&str) -> Option<Identity>,
    ) -> Result<Known, TokenFault> {
        let (unverified, now) = (Unverified::read(token)?, OffsetDateTime::now_utc());
        if let Some(thumbprint) = unverified.issuer.strip_prefix(KEY_ISSUER) {
            let owner = owner_of(thumbprint).ok_or(TokenFault::NoAgent)?;
            let (claims, _) = self.of_key(token, thumbprint, &owner, now)?;
            let name =
                claims.subject.unwrap_or_else(|| format!("the holder of the key {}", owner.fingerprint));
            let profiles = Some(vec![thumbprint.to_owned()]);
            return Ok(Known { name, origin: Origin::key(), key: None, profiles });
        }
        let issuer = self.known(&unverified.issuer)?;
        let (claims, _, key) = issuer.verify(token, unverified.key_id.as_deref(), now)?;
        let name = claims.subject.unwrap_or_else(|| brief(&unverified.issuer));
        Ok(Known { name, origin: issuer.origin, key: Some(key), profiles: Some(claims.profiles) })
    }

    /// What a login rests on that was made by a token of an issuer, signed with a key of this name.
    /// `None` where it is no longer believed.
    #[must_use]
    pub fn basis(&self, origin: Origin, key: &KeyName) -> Option<Basis> {
        let configured = self.0.configured.load();
        let mut issuers = configured.iter().filter(|issuer| issuer.origin == origin);
        issuers.find_map(|issuer| issuer.basis(key))
    }

    /// Waits for the first keys of issuers that have them at a URL, for at most 5 s: without them, no
    /// login by their tokens can be believed. Does not wait where they are here. Cancel safe.
    pub async fn first_keys(&self) {
        let all = async {
            let configured = self.0.configured.load_full();
            for issuer in configured.iter().filter(|issuer| issuer.has_no_keys_yet()) {
                if let Some(remote) = &issuer.remote {
                    remote.fetched_anew().await;
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }

    /// Whether a text holds a token that says that it was made for gateways: its issuer is an agent's key,
    /// which means something nowhere else, or one that is configured, and then with the audience that is.
    /// Where none is, the same tokens may be those of other apps. Dots and parts around it, and whatever else
    /// would have it refused here, change nothing: it is for keeping tokens secret only.
    #[must_use]
    pub fn are_meant(&self, text: &str) -> bool {
        let configured = self.0.configured.load();
        has_claims(text, |name, is_named| {
            let is_one = |issuer: &Arc<Issuer>| {
                issuer.settings.name == name && issuer.settings.audience.as_deref().is_some_and(is_named)
            };
            name.starts_with(KEY_ISSUER) || configured.iter().any(is_one)
        })
    }

    fn judge_at(&self, token: &str, owner: &Identity, now: OffsetDateTime) -> Result<Arc<Verdict>, Refused> {
        if token.len() > TOKEN_MAX {
            return Err(TokenFault::TooLong.into());
        }
        let hash = TokenHash::of(token);
        let verdict = match self.0.verdicts.find(&hash, now) {
            Some(verdict) => verdict,
            None => {
                let verdict = Arc::new(self.check(token, owner, now)?);
                self.0.verdicts.keep(hash, verdict.clone());
                verdict
            }
        };
        let own = owner.thumbprint.as_ref();
        match &verdict.maker {
            Maker::Agent(thumbprint) if own != Some(thumbprint) => Err(TokenFault::OtherKey.into()),
            Maker::Agent(_) => Ok(verdict),
            Maker::Issuer => {
                let profiles = &verdict.claims.profiles;
                let is_named = own.is_some_and(|own| profiles.iter().any(|profile| profile == own.as_str()));
                if is_named { Ok(verdict) } else { Err(Refused::OtherProfile) }
            }
        }
    }

    /// Checks a token that nothing is known of.
    fn check(&self, token: &str, owner: &Identity, now: OffsetDateTime) -> Result<Verdict, TokenFault> {
        let unverified = Unverified::read(token)?;
        let (claims, basis, maker) = match unverified.issuer.strip_prefix(KEY_ISSUER) {
            // Its basis is the agent's session: without it, there is no tunnel to visit.
            Some(thumbprint) => {
                let (claims, own) = self.of_key(token, thumbprint, owner, now)?;
                (claims, None, Maker::Agent(own))
            }
            None => {
                let issuer = self.known(&unverified.issuer)?;
                let (claims, basis, _) = issuer.verify(token, unverified.key_id.as_deref(), now)?;
                (claims, Some(basis), Maker::Issuer)
            }
        };
        // Beyond the calendar, it is for ever.
        let until = claims.expires.and_then(|end| end.checked_add(time::Duration::seconds(LEEWAY)));
        Ok(Verdict { hold: Hold::new(until, basis), claims, maker })
    }

    fn configured(&self, name: &str) -> Option<Arc<Issuer>> {
        self.0.configured.load().iter().find(|issuer| issuer.settings.name == name).cloned()
    }

    fn known(&self, name: &str) -> Result<Arc<Issuer>, TokenFault> {
        self.configured(name).ok_or_else(|| TokenFault::UnknownIssuer(brief(name)))
    }

    fn of_key(
        &self,
        token: &str,
        thumbprint: &str,
        owner: &Identity,
        now: OffsetDateTime,
    ) -> Result<(Claims, Thumbprint), TokenFault> {
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
        Ok((claims, own.clone()))
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

fn warn_of_audience(issuer: &Arc<Issuer>) {
    if issuer.settings.audience.is_none() {
        tracing::warn!(
            issuer = issuer.settings.name,
            "an issuer has no `audience`: what it gives anybody for any other app is believed here, and goes on to services where it was not needed; set its `audience`, if it stands in `[[access.issuer]]`"
        );
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::PublicKey;

    use super::*;
    use crate::agent::SigningKey;

    #[tokio::test]
    async fn a_token_is_checked_once_and_opens_what_it_did() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/tunnel-protocol.json")).expect("JSON");
        let text =
            |index: usize, field: &str| vectors["keys"][index][field].as_str().expect("text").to_owned();
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("key");
        std::fs::write(&path, text(0, "openssh_private_key")).expect("writable");
        let key = SigningKey::open(&path, |_| Err(String::new())).expect("a key");
        let now = OffsetDateTime::now_utc();
        let token = key.token(now, std::time::Duration::from_secs(60)).await.expect("a token");
        let owner = |index| {
            Identity::of(&PublicKey::from_openssh(&text(index, "openssh_public_key")).expect("a key"))
        };
        let (own, other) = (owner(0), owner(1));
        let issuers = Issuers::open(&AccessSettings::default()).expect("no file to read");
        let first = issuers.judge_at(&token, &own, now).expect("it holds");
        let again = issuers.judge_at(&token, &own, now).expect("it holds");
        assert!(Arc::ptr_eq(&first, &again), "it was checked anew");
        let refused = |owner, at| issuers.judge_at(&token, owner, at).expect_err("it does not hold");
        assert_eq!(refused(&other, now), TokenFault::OtherKey.into());
        let late = now + time::Duration::seconds(60 + LEEWAY);
        assert!(matches!(refused(&own, late), Refused::Fault(TokenFault::Expired(_))));
        assert!(issuers.judge_at(&token, &own, late - time::Duration::seconds(2)).is_ok());
        let long = "a".repeat(TOKEN_MAX + 1);
        assert_eq!(issuers.judge_at(&long, &own, now).expect_err("too long"), TokenFault::TooLong.into());
    }
}
