//! Sealing: what a visitor's browser keeps for the gateway, and can neither read nor change.
//!
//! A seal is for one purpose and bound to one thing (a host, say); sealed for another purpose or
//! bound to something else, it does not open. The cryptography is the TLS library's own
//! (AES-256-GCM-SIV, which forgives a nonce that comes twice), its key derived from a secret
//! (HKDF, RFC 5869).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::hold::Basis;
use crate::config::watch::{Complaint, FileWatch, POLL, Places, off_thread, stamp};
use crate::config::{AccessSettings, Secret, Shared};
use crate::net::Tasks;
use crate::observe::Reason;

/// What the key of a secret is derived for.
const LABEL: &[u8] = b"oneport seal v1";
/// What its name is derived for.
const NAME_LABEL: &[u8] = b"oneport seal name v1";
/// What a file of them is called in warnings.
const WHAT: &str = "the cookie secrets, with which anybody can log in as whom they like";
/// Octets of a secret that the gateway makes itself.
const MADE: usize = 32;
/// Largest file of secrets, in octets.
const FILE_MAX: u64 = 64 * 1024;
/// Most secrets at a time.
const SECRETS_MAX: usize = 32;
/// Shortest secret that is not warned of, in octets.
const SHORT: usize = 16;
/// Longest sealed text that is looked at, in octets.
const SEALED_MAX: usize = 8 * 1024;

/// What is sealed: one purpose's seal is never taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Who somebody is, on the login host.
    Login,
    /// Who somebody is, on the host of a preview.
    Visit,
    /// A login at another provider that is under way.
    Provider,
    /// A guest link.
    Guest,
}

impl Purpose {
    const fn label(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Visit => "visit",
            Self::Provider => "provider",
            Self::Guest => "guest",
        }
    }
}

/// Why there are no secrets to seal with.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file could not be read.
    #[error("cannot read the secrets in `{path}`: {error}; check the path, and that this user may read it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file could not be made.
    #[error(
        "cannot make the file of secrets `{path}`: {error}; make its folder writable, or set `access.secrets`"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It holds none, or far too many.
    #[error(
        "`{0}` holds no secrets of at least 16 characters, one a line; write what `openssl rand -base64 32` prints, or remove the file to have one made"
    )]
    Unusable(PathBuf),
    /// No randomness, or no such algorithm.
    #[error("the system gives no random numbers")]
    Random,
}

/// The secrets, as keys: the first seals, all open. Clones share them.
#[derive(Clone)]
pub struct Seals(Arc<Inner>);

struct Inner {
    /// Where they are read from; `None`: given in the configuration.
    file: Option<PathBuf>,
    keys: ArcSwap<Vec<Key>>,
}

/// What names a secret, and says nothing of it.
pub type SecretName = [u8; 8];

/// A secret, as what it is used for.
struct Key {
    name: SecretName,
    cipher: RandomizedNonceKey,
    /// What rests on it ends when the secret is taken away.
    basis: Basis,
}

/// What the secrets are to become, by other settings.
pub struct PlannedSecrets(Vec<Key>);

/// What was sealed.
#[derive(Debug)]
pub struct Opened {
    /// The octets.
    pub octets: Vec<u8>,
    /// The secret that it was sealed with.
    pub secret: SecretName,
    /// What ends when that secret is taken away.
    pub basis: Basis,
}

impl std::fmt::Debug for Seals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seals(***)")
    }
}

impl Seals {
    /// Takes the secrets that are given, or those in the file; makes one there (mode 0600) if there
    /// is none. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When the file can neither be read nor made, or holds no secret.
    pub fn open(settings: &AccessSettings) -> Result<Self, SealError> {
        Self::warn(settings);
        if settings.secrets.is_empty() {
            let path = &settings.secrets_file;
            let secrets = match fs::symlink_metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?,
                _ => read(path)?,
            };
            return Self::of(&secrets, Some(path.clone()));
        }
        Self::of(&settings.secrets, None)
    }

    /// Logs which secrets others may know or guess, as [`Seals::open`] does. Reads a file: not for a busy
    /// task.
    pub fn warn(settings: &AccessSettings) {
        if settings.secrets.is_empty() {
            warn_of(&settings.secrets_file);
        }
        if settings.secrets.iter().any(|secret| secret.reveal().len() < SHORT) {
            tracing::warn!(
                "a cookie secret has fewer than {SHORT} characters, and whoever guesses it can log in as anybody; \
                 replace it by what `openssl rand -base64 32` prints"
            );
        }
    }

    /// Whether the file, where it is needed and there, holds secrets. Makes none.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(settings: &AccessSettings) -> Result<(), SealError> {
        let path = &settings.secrets_file;
        if !settings.secrets.is_empty() || fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        read(path).map(drop)
    }

    fn of(secrets: &[Secret], file: Option<PathBuf>) -> Result<Self, SealError> {
        Ok(Self(Arc::new(Inner { file, keys: ArcSwap::from_pointee(keys_of(secrets)?) })))
    }

    /// Seals octets with the first secret. The text may stand in a cookie or a URL.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn seal(&self, purpose: Purpose, bound_to: &str, octets: &[u8]) -> Result<String, SealError> {
        let keys = self.0.keys.load();
        let key = keys.first().ok_or(SealError::Random)?;
        let mut sealed = octets.to_vec();
        let nonce = key
            .cipher
            .seal_in_place_append_tag(Aad::from(context(purpose, bound_to)), &mut sealed)
            .map_err(|_| SealError::Random)?;
        sealed.splice(..0, nonce.as_ref().iter().copied());
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// What was sealed; `None` if not by one of these secrets, not for this purpose, or bound to
    /// something else.
    #[must_use]
    pub fn open_sealed(&self, purpose: Purpose, bound_to: &str, sealed: &str) -> Option<Opened> {
        if sealed.len() > SEALED_MAX {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let context = context(purpose, bound_to);
        self.0.keys.load().iter().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut octets = rest.to_vec();
            let length = key.cipher.open_in_place(nonce, Aad::from(&context), &mut octets).ok()?.len();
            octets.truncate(length);
            Some(Opened { octets, secret: key.name, basis: key.basis.clone() })
        })
    }

    /// What the secrets would be by other settings. `None`: where they come from differs, for which they
    /// are to be opened anew; or they lie in a file, which is followed anyway.
    ///
    /// # Errors
    /// When no key can be made of one.
    pub(super) fn plan(&self, settings: &AccessSettings) -> Result<Option<PlannedSecrets>, SealError> {
        if self.0.file.is_some() || settings.secrets.is_empty() {
            return Ok(None);
        }
        keys_of(&settings.secrets).map(PlannedSecrets).map(Some)
    }

    /// Has these be the secrets. What rests on one that is no longer among them ends.
    pub(super) fn put(&self, planned: PlannedSecrets) {
        let secrets = planned.0.len();
        if self.0.replace(planned.0) {
            tracing::info!(secrets, "cookie secrets were reread");
        }
    }

    /// Starts to reread the file when it changes, until draining begins. What cannot be used keeps
    /// the secrets as they were.
    pub fn watch(&self, tasks: &Tasks) {
        let Some(path) = self.0.file.clone() else { return };
        let (seals, drain) = (self.clone(), tasks.drain_begun());
        tasks.spawn("cookie secrets", async move {
            tokio::select! {
                () = drain.cancelled() => {}
                () = seals.follow(path) => {}
            }
        });
    }

    async fn follow(self, path: PathBuf) {
        let at = path.clone();
        let mut watch =
            FileWatch::new("cookie secrets", move || (Places::of(&at), stamp([at.clone()]))).await;
        let mut complaint = Complaint::default();
        let mut is_first = true;
        loop {
            if is_first || watch.is_due_within(POLL).await {
                watch.was_read(self.reread(&path, &mut complaint, is_first).await);
            }
            is_first = false;
        }
    }

    async fn reread(&self, path: &Path, complaint: &mut Complaint, is_first: bool) -> bool {
        let from = path.to_owned();
        let read = off_thread(move || read(&from).and_then(|secrets| keys_of(&secrets))).await;
        match read {
            Some(Ok(keys)) => {
                *complaint = Complaint::default();
                if !is_first {
                    let file = path.to_owned();
                    off_thread(move || warn_of(&file)).await;
                    tracing::info!(path = %path.display(), secrets = keys.len(), "cookie secrets were reread");
                }
                self.0.replace(keys);
                true
            }
            Some(Err(error)) => {
                if complaint.is_news(&error, POLL) {
                    tracing::error!(%error, "keeping the cookie secrets as they were");
                }
                false
            }
            None => false,
        }
    }
}

impl Inner {
    /// Has these be the secrets; whether they are others. What rests on one that is no longer among them
    /// ends.
    fn replace(&self, mut keys: Vec<Key>) -> bool {
        let old = self.keys.load_full();
        for key in &mut keys {
            if let Some(known) = old.iter().find(|known| known.name == key.name) {
                key.basis = known.basis.clone();
            }
        }
        let keys = Arc::new(keys);
        self.keys.store(keys.clone());
        let is_gone = |known: &&Key| keys.iter().all(|key| key.name != known.name);
        old.iter().filter(is_gone).for_each(|gone| gone.basis.end(Reason::SecretRemoved));
        !keys.iter().map(|key| key.name).eq(old.iter().map(|key| key.name))
    }
}

/// Random octets, as text for cookies and URLs.
///
/// # Errors
/// When the system gives none.
pub fn random_text<const N: usize>() -> Result<String, SealError> {
    random::<N>().map(|octets| URL_SAFE_NO_PAD.encode(octets))
}

/// Random octets.
///
/// # Errors
/// When the system gives none.
pub fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut octets = [0; N];
    aws_lc_rs::rand::fill(&mut octets).map_err(|_| SealError::Random)?;
    Ok(octets)
}

/// What a seal is checked against besides its key. No label holds a NUL, so that no two pairs give
/// the same octets.
fn context(purpose: Purpose, bound_to: &str) -> Vec<u8> {
    [purpose.label().as_bytes(), bound_to.as_bytes()].join(&0)
}

fn keys_of(secrets: &[Secret]) -> Result<Vec<Key>, SealError> {
    secrets.iter().take(SECRETS_MAX).map(key_of).collect()
}

fn key_of(secret: &Secret) -> Result<Key, SealError> {
    let (mut key, mut named) = ([0; 32], [0; 32]);
    let extracted = Salt::new(HKDF_SHA256, &[]).extract(secret.reveal().as_bytes());
    let derive = |label, into: &mut [u8; 32]| {
        extracted.expand(&[label], &AES_256_GCM_SIV).and_then(|derived| derived.fill(into))
    };
    derive(LABEL, &mut key)
        .and_then(|()| derive(NAME_LABEL, &mut named))
        .and_then(|()| RandomizedNonceKey::new(&AES_256_GCM_SIV, &key))
        .map(|cipher| {
            let mut name = SecretName::default();
            name.copy_from_slice(&named[..8]);
            Key { name, cipher, basis: Basis::default() }
        })
        .map_err(|_| SealError::Random)
}

fn warn_of(path: &Path) {
    if let Some(shared) = Shared::at(path) {
        shared.warn(WHAT);
    }
}

/// One secret a line; blank lines and comments are skipped.
fn read(path: &Path) -> Result<Vec<Secret>, SealError> {
    let fail = |error| SealError::Read { path: path.to_owned(), error };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(fail)?;
    io::Read::read_to_string(&mut io::Read::take(file, FILE_MAX + 1), &mut text).map_err(fail)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let secrets: Vec<Secret> = lines.map(Secret::new).collect();
    let is_short = secrets.iter().any(|secret| secret.reveal().len() < SHORT);
    if secrets.is_empty() || secrets.len() > SECRETS_MAX || is_short || text.len() as u64 > FILE_MAX {
        return Err(SealError::Unusable(path.to_owned()));
    }
    Ok(secrets)
}

fn make(path: &Path) -> Result<Vec<Secret>, SealError> {
    let fail = |error| SealError::Write { path: path.to_owned(), error };
    let text = STANDARD.encode(random::<MADE>()?);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(fail)?;
    // A temporary file has mode 0600 from the start, and the name appears only when it is whole.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    writeln!(file, "{text}").and_then(|()| file.as_file().sync_all()).map_err(fail)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(vec![Secret::new(text)]),
        // Another process was faster; its secret counts.
        Err(lost) if lost.error.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(lost) => Err(fail(lost.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seals(secrets: &[&str]) -> Seals {
        Seals::of(&secrets.iter().map(|&secret| Secret::new(secret)).collect::<Vec<_>>(), None).expect("made")
    }

    #[test]
    fn a_seal_opens_only_for_what_it_was_made_for() {
        let (old, new) = (seals(&["one"]), seals(&["two", "one"]));
        let sealed = old.seal(Purpose::Visit, "a.test", b"who").expect("sealed");
        let open = |seals: &Seals, purpose, host, text: &str| {
            seals.open_sealed(purpose, host, text).map(|opened| opened.octets)
        };
        assert_eq!(open(&old, Purpose::Visit, "a.test", &sealed).as_deref(), Some(&b"who"[..]));
        assert_eq!(open(&new, Purpose::Visit, "a.test", &sealed).as_deref(), Some(&b"who"[..]));
        let newer = new.seal(Purpose::Visit, "a.test", b"who").expect("sealed");
        for (seals, purpose, host, text) in [
            (&old, Purpose::Visit, "b.test", sealed.as_str()),
            (&old, Purpose::Login, "a.test", &sealed),
            (&seals(&["two"]), Purpose::Visit, "a.test", &sealed),
            (&old, Purpose::Visit, "a.test", &newer),
            (&old, Purpose::Visit, "a.test", ""),
            (&old, Purpose::Visit, "a.test", "not base64!"),
            (&old, Purpose::Visit, "a.test", &sealed[..sealed.len() - 2]),
        ] {
            assert_eq!(open(seals, purpose, host, text), None, "{text}");
        }
        assert_ne!(sealed, old.seal(Purpose::Visit, "a.test", b"who").expect("sealed"));
    }

    #[test]
    fn what_rests_on_a_secret_ends_when_it_is_taken_away() {
        let seals = seals(&["old"]);
        let basis = || {
            let sealed = seals.seal(Purpose::Visit, "", b"x").expect("sealed");
            seals.open_sealed(Purpose::Visit, "", &sealed).expect("opens").basis
        };
        let replace = |secrets: &[&str]| {
            let secrets: Vec<_> = secrets.iter().map(|&secret| Secret::new(secret)).collect();
            seals.0.replace(keys_of(&secrets).expect("made"));
        };
        let by_old = basis();
        replace(&["new", "old"]);
        let by_new = basis();
        assert_eq!((by_old.ended(), by_new.ended()), (None, None));
        replace(&["new"]);
        assert_eq!((by_old.ended(), by_new.ended()), (Some(Reason::SecretRemoved), None));
    }

    #[test]
    fn a_secret_is_made_once_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("below").join("secrets");
        let settings = AccessSettings { secrets_file: path.clone(), ..AccessSettings::default() };
        let first = Seals::open(&settings).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let sealed = first.seal(Purpose::Login, "", b"x").expect("sealed");
        let second = Seals::open(&settings).expect("read");
        assert!(second.open_sealed(Purpose::Login, "", &sealed).is_some());
        fs::write(&path, "# none\n\nshort\n").expect("writable");
        assert!(matches!(Seals::open(&settings), Err(SealError::Unusable(_))));
    }
}
