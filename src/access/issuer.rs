//! One configured issuer, and its keys as they are now.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::hold::Basis;
use super::key_set::key_set;
use super::remote::Remote;
use super::session::Origin;
use super::token::{Claims, Terms, TokenFault, brief};
use super::verifying_key::{KeyName, VerifyingKey};
use crate::config::{IssuerKeys, IssuerSettings, PemSource};
use crate::observe::Reason;

/// Largest file of keys, in octets.
const FILE_MAX: u64 = 1 << 20;
/// Most of an issuer's keys that are tried for a token that names none.
const TRIED_MAX: usize = 8;

/// A configured issuer.
#[derive(Debug)]
pub struct Issuer {
    pub(super) settings: IssuerSettings,
    /// What logins by its tokens come from.
    pub(super) origin: Origin,
    /// `None`: they were never had.
    keys: ArcSwapOption<Vec<IssuerKey>>,
    /// Where they are fetched.
    pub(super) remote: Option<Remote>,
    /// Cancelled when it is no longer configured.
    pub(super) gone: CancellationToken,
}

/// A key, and what the permits rest on that are given for its tokens.
#[derive(Clone, Debug)]
struct IssuerKey {
    key: VerifyingKey,
    name: KeyName,
    basis: Basis,
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

impl Issuer {
    /// Reads the keys, unless they are to be fetched. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When there is none that can be used, or nobody to be trusted with fetching them.
    pub fn open(settings: &IssuerSettings) -> Result<Self, IssuerError> {
        let issuer = settings.name.clone();
        let (remote, keys) = match &settings.keys {
            IssuerKeys::JwksUrl(from) => {
                let place = || format!("`{}`", from.url);
                let remote = Remote::open(from);
                (Some(remote.map_err(|what| IssuerError { issuer, place: place(), what })?), None)
            }
            _ => {
                let keys = read(settings)?;
                if keys.is_empty() {
                    let (place, what) = (place_of(settings), "it holds no key".to_owned());
                    return Err(IssuerError { issuer, place, what });
                }
                (None, Some(keys))
            }
        };
        let (keys_now, origin) = (ArcSwapOption::empty(), Origin::issuer(settings));
        let (settings, gone) = (settings.clone(), CancellationToken::new());
        let made = Self { settings, origin, keys: keys_now, remote, gone };
        if let Some(keys) = keys {
            made.replace(keys);
        }
        Ok(made)
    }

    /// The file that the keys are in, if they are in one.
    pub fn file(&self) -> Option<&Path> {
        match &self.settings.keys {
            IssuerKeys::Pem(PemSource::File(path)) | IssuerKeys::Jwks(PemSource::File(path)) => Some(path),
            _ => None,
        }
    }

    /// What rests on the key of this name; `None` where it is none of the issuer's.
    pub fn basis(&self, name: &KeyName) -> Option<Basis> {
        let keys = self.keys.load();
        keys.as_ref()?.iter().find(|key| key.name == *name).map(|key| key.basis.clone())
    }

    /// Whether it has had no keys yet.
    pub fn has_no_keys_yet(&self) -> bool {
        self.keys.load().is_none()
    }

    /// Whether a key may be needed for this token that is not here: none was ever had, none has the name
    /// that it says, or it says none and is signed with none of these.
    pub fn lacks(&self, token: &str, key_id: Option<&str>) -> bool {
        let keys = self.keys.load();
        let is_called = |keys: &Arc<Vec<IssuerKey>>| keys.iter().any(|key| key.key.is_called(key_id));
        !keys.as_ref().is_some_and(is_called) || (key_id.is_none() && self.has_not_signed(token))
    }

    fn has_not_signed(&self, token: &str) -> bool {
        let verified = self.verify(token, None, OffsetDateTime::now_utc());
        matches!(verified, Err(TokenFault::BadSignature | TokenFault::WrongAlgorithm(_)))
    }

    /// Has these be its keys from now on; whether they are others than before. What rests on one
    /// that is no longer among them ends.
    pub fn replace(&self, keys: Vec<VerifyingKey>) -> bool {
        let old = self.keys.load_full();
        let old = old.as_ref().map(|old| old.as_slice());
        let known = |key: &VerifyingKey| old.unwrap_or_default().iter().find(|known| known.key == *key);
        let next: Vec<_> = keys
            .into_iter()
            .map(|key| IssuerKey {
                basis: known(&key).map_or_else(Basis::default, |known| known.basis.clone()),
                name: key.name(),
                key,
            })
            .collect();
        let gone: Vec<_> = old
            .unwrap_or_default()
            .iter()
            .filter(|known| !next.iter().any(|next| next.key == known.key))
            .map(|known| known.basis.clone())
            .collect();
        let is_same = old.is_some_and(|old| old.len() == next.len()) && gone.is_empty();
        self.keys.store(Some(Arc::new(next)));
        // Only now: whoever comes in between must find the new keys.
        gone.iter().for_each(|basis| basis.end(Reason::IssuerKeyRemoved));
        !is_same
    }

    /// Has nothing rest on it any more: it is no longer configured.
    pub fn retire(&self) {
        self.gone.cancel();
        let keys = self.keys.swap(None);
        let keys = keys.as_ref().map(|keys| keys.as_slice()).unwrap_or_default();
        keys.iter().for_each(|key| key.basis.end(Reason::IssuerKeyRemoved));
    }

    /// What a token says, and the key that it is signed with: what rests on it, and its name.
    ///
    /// # Errors
    /// When it does not hold.
    pub fn verify(
        &self,
        token: &str,
        key_id: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<(Claims, Basis, KeyName), TokenFault> {
        let terms = Terms {
            audience: self.settings.audience.as_deref(),
            profiles_claim: &self.settings.profiles_claim,
            allow_unexpiring: false,
        };
        let keys = self.keys.load();
        let keys = keys.as_ref().ok_or_else(|| TokenFault::NoKeysYet(self.settings.name.clone()))?;
        let mut last = TokenFault::UnknownKey(brief(key_id.unwrap_or_default()));
        for IssuerKey { key, name, basis } in
            keys.iter().filter(|key| key.key.is_called(key_id)).take(TRIED_MAX)
        {
            match key.verify(token, terms, now) {
                // Without a name in the token, it may be another of the keys.
                Err(fault @ (TokenFault::BadSignature | TokenFault::WrongAlgorithm(_))) => last = fault,
                decided => return Ok((decided?, basis.clone(), *name)),
            }
        }
        Err(last)
    }
}

/// Reads the keys of an issuer that has them in a file or in the configuration. Reads files: not
/// for a busy task.
///
/// # Errors
/// When they cannot be read or used.
pub fn read(settings: &IssuerSettings) -> Result<Vec<VerifyingKey>, IssuerError> {
    let fail = |what: String| IssuerError { issuer: settings.name.clone(), place: place_of(settings), what };
    match &settings.keys {
        IssuerKeys::Pem(source) => {
            let text = text_of(source).map_err(fail)?;
            Ok(vec![VerifyingKey::of_pem(&text).map_err(fail)?])
        }
        IssuerKeys::Jwks(source) => key_set(&text_of(source).map_err(fail)?).map_err(fail),
        IssuerKeys::JwksUrl(_) => Ok(Vec::new()),
    }
}

fn place_of(settings: &IssuerSettings) -> String {
    let shown = |path: &PathBuf| format!("`{}`", path.display());
    match &settings.keys {
        IssuerKeys::Pem(PemSource::File(path)) | IssuerKeys::Jwks(PemSource::File(path)) => shown(path),
        IssuerKeys::JwksUrl(from) => format!("`{}`", from.url),
        _ => "the configuration".to_owned(),
    }
}

fn text_of(source: &PemSource) -> Result<String, String> {
    let path = match source {
        PemSource::Inline(text) => return Ok(text.clone()),
        PemSource::File(path) => path,
    };
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|open| open.take(FILE_MAX + 1).read_to_string(&mut text));
    read.map_err(|error| format!("{error}; check the path, and that this user may read it"))?;
    if text.len() as u64 > FILE_MAX {
        return Err("it has more than 1 MiB, which no set of keys has; is the path right?".to_owned());
    }
    Ok(text)
}
