//! What is kept of ordered certificates, below `acme/` in the state folder, as files that other
//! programs can read:
//!
//! ```text
//! accounts/HOST-HASH.json          an account's key, for one directory
//! names/NAME/current               a link to the certificate in use, one of the folders beside it:
//! names/NAME/000007/fullchain.pem  the chain, leaf first
//! names/NAME/000007/privkey.pem    its key
//! names/NAME/000007/certificate.json  where it came from
//! names/NAME/order.json            an order that is not finished, with the key that it is for
//! names/NAME/status.json           when it is renewed; the last fault, and when it is tried again
//! names/NAME/lock                  held while it is ordered
//! requests/NAME                    whose certificate is to be renewed now
//! on-demand.json                   when orders on demand were begun, in the last week
//! ```
//!
//! A certificate, its key and what is known of it come as one folder, which gets its number when it
//! is whole on disk: a process that ends at any moment leaves the old ones or the new ones.
//! Reads and writes files: not for a busy task.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;

use super::super::{CertError, Served, files, load_pair};
use crate::config::watch::{Places, Stamp, stamp};
use crate::config::{PemPair, PemSource};
use crate::name::CertName;

const CHAIN: &str = "fullchain.pem";
const KEY: &str = "privkey.pem";
const ABOUT: &str = "certificate.json";
const CURRENT: &str = "current";
const REQUESTS: &str = "requests";
const BEGUN: &str = "on-demand.json";
/// What a wildcard's folder begins with; no host name can.
const WILDCARD: &str = "wildcard+";

/// Why something could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The disk.
    #[error("cannot keep `{path}`: {error}; let this user write to `state_dir`, and make room there")]
    Disk {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A certificate that cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertError),
}

/// The folder with all of it. Clones share it.
#[derive(Clone, Debug)]
pub struct Vault(Arc<Path>);

/// A certificate that is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What can be shown.
    pub served: Arc<Served>,
    /// Where it came from.
    pub about: About,
}

/// Where a certificate came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is for.
    pub name: String,
    /// The directory that it was ordered from.
    pub directory: String,
    /// How the name was proved.
    pub way: String,
    /// When it was ordered.
    #[serde(with = "rfc3339")]
    pub ordered: OffsetDateTime,
}

/// How it stands with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// When the certificate is renewed.
    #[serde(with = "rfc3339::option")]
    pub renew_at: Option<OffsetDateTime>,
    /// The window that the authority suggests for that (ARI, RFC 9773).
    pub window: Option<Window>,
    /// When it is asked again for the window.
    #[serde(with = "rfc3339::option")]
    pub ask_at: Option<OffsetDateTime>,
    /// Attempts that failed since the last success.
    pub failures: u32,
    /// Not tried again before.
    #[serde(with = "rfc3339::option")]
    pub retry_at: Option<OffsetDateTime>,
    /// What went wrong last.
    pub fault: Option<FaultNote>,
    /// Directories that do not want to be asked, and until when (seconds since 1970).
    pub limited: BTreeMap<String, i64>,
    /// Stands for the settings that the fault came up under: with others it is tried at once.
    pub settings: String,
}

/// When an authority wants a certificate renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From then on.
    #[serde(with = "rfc3339")]
    pub start: OffsetDateTime,
    /// Until then.
    #[serde(with = "rfc3339")]
    pub end: OffsetDateTime,
}

/// A fault, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultNote {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: OffsetDateTime,
    /// Its word.
    pub word: String,
    /// What happened, and what to do.
    pub text: String,
}

/// An order that is not finished. It can be gone on with after a restart, which costs nothing of
/// what an authority allows.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) directory: String,
    pub(super) url: String,
    pub(super) way: String,
    /// The key that the certificate will be for, in PEM.
    pub(super) key: String,
}

/// An account at a directory.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct AccountFile {
    pub(super) directory: String,
    /// PKCS #8 in base64url.
    pub(super) key: String,
    /// Its URL. `None`: the directory has not been told of it, or its answer has not been heard.
    pub(super) id: Option<String>,
    /// The address that the directory knows.
    pub(super) contact: Option<String>,
}

/// Holds a name, or all accounts, until it is dropped: also against other processes.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] fs::File);

impl Vault {
    /// The vault of a state folder, made if absent.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, VaultError> {
        let dir = state_dir.join("acme");
        for folder in ["accounts", "names", REQUESTS] {
            let path = dir.join(folder);
            files::private_folder(&path).map_err(|error| disk(&path, error))?;
        }
        Ok(Self(dir.into()))
    }

    /// Every name that something is kept of.
    #[must_use]
    pub fn names(&self) -> Vec<CertName> {
        let Ok(entries) = fs::read_dir(self.0.join("names")) else { return Vec::new() };
        let names = entries.filter_map(|entry| name_of_folder(entry.ok()?.file_name().to_str()?));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// The newest certificate for a name that can be used. One that cannot is passed over with a
    /// warning.
    ///
    /// # Errors
    /// When the link to it cannot be set right.
    pub fn load(&self, name: &CertName) -> Result<Option<Kept>, VaultError> {
        let folder = self.folder(name);
        for number in numbers(&folder).into_iter().rev() {
            match load(&folder.join(&number)) {
                Ok(kept) => {
                    // It may have been all but linked when the process ended.
                    if fs::read_link(folder.join(CURRENT)).ok().as_deref() != Some(Path::new(&number)) {
                        link(&folder, &number).map_err(|error| disk(&folder.join(CURRENT), error))?;
                    }
                    return Ok(Some(kept));
                }
                Err(error) => {
                    tracing::warn!(%name, %error, "a kept certificate cannot be used; passing it over")
                }
            }
        }
        Ok(None)
    }

    /// Keeps a new certificate in the place of the one before, which stays beside it.
    ///
    /// # Errors
    /// When the disk does not take it, or chain and key cannot be used; then all is as before.
    pub(super) fn keep(
        &self,
        name: &CertName,
        chain: &str,
        key: &str,
        about: &About,
    ) -> Result<Kept, VaultError> {
        let folder = self.private(name)?;
        let before = numbers(&folder);
        let last = before.last().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
        let number = format!("{:06}", last.saturating_add(1));
        let place = || {
            // Taken away again on failure; a folder without a number is nobody's.
            let fresh = tempfile::Builder::new().prefix(".new-").tempdir_in(&folder)?;
            files::replace(&fresh.path().join(CHAIN), chain, 0o600)?;
            files::replace(&fresh.path().join(KEY), key, 0o600)?;
            files::replace(&fresh.path().join(ABOUT), &to_text(about), 0o600)?;
            Ok(fresh)
        };
        let fresh = place().map_err(|error| disk(&folder, error))?;
        let kept = load(fresh.path())?;
        let finish = || {
            fs::rename(fresh.path(), folder.join(&number))?;
            files::sync(&folder)?;
            link(&folder, &number)?;
            Ok(())
        };
        finish().map_err(|error| disk(&folder.join(&number), error))?;
        tidy(&folder, &before);
        Ok(kept)
    }

    /// Whether a certificate for a name is there.
    #[must_use]
    pub fn has(&self, name: &CertName) -> bool {
        self.folder(name).join(CURRENT).exists()
    }

    /// When orders on demand were begun.
    pub(super) fn begun(&self) -> Vec<OffsetDateTime> {
        let seconds: Vec<i64> = read(&self.0.join(BEGUN)).unwrap_or_default();
        seconds.into_iter().filter_map(|at| OffsetDateTime::from_unix_timestamp(at).ok()).collect()
    }

    pub(super) fn set_begun(&self, begun: &[OffsetDateTime]) -> Result<(), VaultError> {
        let seconds: Vec<i64> = begun.iter().map(|at| at.unix_timestamp()).collect();
        write(&self.0.join(BEGUN), &seconds)
    }

    /// Requests that a name's certificate be renewed now, of the gateway that runs.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn request(&self, name: &CertName) -> Result<(), VaultError> {
        write(&self.request_path(name), &name.to_string())
    }

    /// Whether a request has not been taken up yet.
    #[must_use]
    pub fn is_requested(&self, name: &CertName) -> bool {
        self.request_path(name).exists()
    }

    /// Takes a request back.
    ///
    /// # Errors
    /// When the disk does not let it go.
    pub fn withdraw(&self, name: &CertName) -> Result<(), VaultError> {
        let path = self.request_path(name);
        files::remove(&path).map_err(|error| disk(&path, error))
    }

    /// Takes up all requests.
    pub(super) fn take_requests(&self) -> Vec<CertName> {
        let taken = |path: PathBuf| {
            let name = name_of_folder(path.file_name()?.to_str()?)?;
            files::remove(&path).ok()?;
            Some(name)
        };
        self.requests().into_iter().filter_map(taken).collect()
    }

    /// Where requests come, and the stamp of those that are there.
    pub(super) fn look_for_requests(&self) -> (Places, Stamp) {
        (Places::of(&self.0.join(REQUESTS)), stamp(self.requests()))
    }

    fn requests(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join(REQUESTS)).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    fn request_path(&self, name: &CertName) -> PathBuf {
        self.0.join(REQUESTS).join(folder_of_name(name))
    }

    /// How it stands with a name; as new when nothing is known.
    #[must_use]
    pub fn status(&self, name: &CertName) -> Status {
        read(&self.folder(name).join("status.json")).unwrap_or_default()
    }

    pub(super) fn set_status(&self, name: &CertName, status: &Status) -> Result<(), VaultError> {
        write(&self.private(name)?.join("status.json"), status)
    }

    pub(super) fn pending(&self, name: &CertName) -> Option<Pending> {
        read(&self.folder(name).join("order.json"))
    }

    pub(super) fn set_pending(&self, name: &CertName, pending: Option<&Pending>) -> Result<(), VaultError> {
        let path = self.private(name)?.join("order.json");
        match pending {
            Some(pending) => write(&path, pending),
            None => files::remove(&path).map_err(|error| disk(&path, error)),
        }
    }

    pub(super) fn account(&self, directory: &str) -> Option<AccountFile> {
        read::<AccountFile>(&self.account_path(directory)).filter(|account| account.directory == directory)
    }

    pub(super) fn set_account(&self, account: &AccountFile) -> Result<(), VaultError> {
        write(&self.account_path(&account.directory), account)
    }

    pub(super) fn forget_account(&self, directory: &str) -> Result<(), VaultError> {
        let path = self.account_path(directory);
        files::remove(&path).map_err(|error| disk(&path, error))
    }

    /// Takes a name for this process; `None` while another has it.
    pub(super) fn lock(&self, name: &CertName) -> Result<Option<Lock>, VaultError> {
        lock(&self.private(name)?.join("lock"))
    }

    /// Takes all accounts.
    pub(super) fn lock_accounts(&self) -> Result<Option<Lock>, VaultError> {
        lock(&self.0.join("accounts/lock"))
    }

    fn folder(&self, name: &CertName) -> PathBuf {
        self.0.join("names").join(folder_of_name(name))
    }

    fn private(&self, name: &CertName) -> Result<PathBuf, VaultError> {
        let folder = self.folder(name);
        files::private_folder(&folder).map_err(|error| disk(&folder, error))?;
        Ok(folder)
    }

    /// The host is for people, the hash tells directories of one host apart.
    fn account_path(&self, directory: &str) -> PathBuf {
        let rest = directory.split_once("://").map_or(directory, |(_, rest)| rest);
        let host = rest.split(['/', ':', '?']).next().unwrap_or_default();
        let safe: String =
            host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
        let hash = super::short_hash(directory.as_bytes());
        self.0.join("accounts").join(format!("{safe}-{hash}.json"))
    }
}

fn folder_of_name(name: &CertName) -> String {
    format!("{}{}", if name.is_wildcard() { WILDCARD } else { "" }, name.host())
}

fn name_of_folder(folder: &str) -> Option<CertName> {
    match folder.strip_prefix(WILDCARD) {
        Some(host) => CertName::parse(&format!("*.{host}")).ok(),
        None => CertName::parse(folder).ok(),
    }
}

/// The numbered folders, oldest first.
fn numbers(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut numbers: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.len() >= 6 && name.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    numbers.sort_by_key(|number| (number.len(), number.clone()));
    numbers
}

/// Takes away what is older than the certificate before this one, and what a process left that ended
/// in the midst. What cannot be taken away does no harm.
fn tidy(folder: &Path, before: &[String]) {
    let unfinished = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| {
        entry.ok()?.file_name().into_string().ok().filter(|name| name.starts_with(".new-"))
    });
    for name in before.iter().rev().skip(1).cloned().chain(unfinished) {
        if let Err(error) = fs::remove_dir_all(folder.join(&name)) {
            tracing::debug!(%name, %error, "an old certificate's folder stays");
        }
    }
}

fn load(folder: &Path) -> Result<Kept, CertError> {
    let file = |name: &str| PemSource::File(folder.join(name));
    let served = Arc::new(load_pair(&PemPair { cert: file(CHAIN), key: file(KEY) })?);
    let about = read(&folder.join(ABOUT)).unwrap_or_else(|| About {
        name: served.names.first().cloned().unwrap_or_default(),
        directory: String::new(),
        way: String::new(),
        ordered: served.not_before,
    });
    Ok(Kept { served, about })
}

/// Lets `current` lead to a folder, in one step.
fn link(folder: &Path, number: &str) -> io::Result<()> {
    let fresh = folder.join(".current");
    files::remove(&fresh)?;
    std::os::unix::fs::symlink(number, &fresh)?;
    fs::rename(&fresh, folder.join(CURRENT))?;
    files::sync(folder)
}

fn lock(path: &Path) -> Result<Option<Lock>, VaultError> {
    let file = files::lock_file(path).map_err(|error| disk(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(disk(path, error)),
    }
}

/// What a file holds; nothing when it is absent, or cannot be understood, which is said.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read; going on without it");
            return None;
        }
    };
    serde_json::from_str(&text)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot be understood; going on without it"))
        .ok()
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), VaultError> {
    files::replace(path, &to_text(value), 0o600).map_err(|error| disk(path, error))
}

fn to_text<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("texts, numbers and maps with texts as keys are JSON") + "\n"
}

fn disk(path: &Path, error: io::Error) -> VaultError {
    VaultError::Disk { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn name(text: &str) -> CertName {
        CertName::parse(text).expect("valid")
    }

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("valid name");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn about(name: &CertName) -> About {
        About {
            name: name.to_string(),
            directory: "https://ca.test/dir".to_owned(),
            way: "http-01".to_owned(),
            ordered: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn keep(vault: &Vault, name: &CertName) -> String {
        let (chain, key) = pair(&name.to_string());
        vault.keep(name, &chain, &key, &about(name)).expect("kept");
        chain
    }

    #[test]
    fn what_is_kept_can_be_read_by_others_and_only_the_last_two_stay() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let name = name("*.a.test");
        assert!(vault.load(&name).expect("readable").is_none());
        let chains = [keep(&vault, &name), keep(&vault, &name), keep(&vault, &name)];
        let folder = dir.path().join("acme/names/wildcard+a.test");
        assert_eq!(numbers(&folder), ["000002", "000003"]);
        assert_eq!(fs::read_to_string(folder.join("current/fullchain.pem")).expect("there"), chains[2]);
        let mode = |path: &str| fs::metadata(folder.join(path)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("current/privkey.pem")), (0o700, 0o600));
        let kept = vault.load(&name).expect("readable").expect("there");
        assert_eq!((kept.about, vault.names()), (about(&name), vec![name]));
    }

    #[test]
    fn a_folder_that_was_not_linked_counts_and_a_broken_one_does_not() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let name = name("a.test");
        let (first, second) = (keep(&vault, &name), keep(&vault, &name));
        let folder = dir.path().join("acme/names/a.test");
        let shown = || fs::read_to_string(folder.join("current/fullchain.pem")).expect("there");
        link(&folder, "000001").expect("linked");
        vault.load(&name).expect("readable").expect("there");
        assert_eq!(shown(), second);
        fs::write(folder.join("000002/privkey.pem"), "torn").expect("writable");
        vault.load(&name).expect("readable").expect("there");
        assert_eq!(shown(), first);
        // A mismatch is refused before it replaces anything.
        let ((chain, _), (_, key)) = (pair("a.test"), pair("a.test"));
        assert!(vault.keep(&name, &chain, &key, &about(&name)).is_err());
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 3, "something was left");
    }

    #[test]
    fn a_status_and_an_account_survive_and_a_torn_file_does_not_matter() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let name = name("a.test");
        assert_eq!(vault.status(&name), Status::default());
        let status = Status { failures: 2, renew_at: Some(OffsetDateTime::UNIX_EPOCH), ..Status::default() };
        vault.set_status(&name, &status).expect("written");
        assert_eq!(vault.status(&name), status);
        fs::write(dir.path().join("acme/names/a.test/status.json"), "{").expect("writable");
        assert_eq!(vault.status(&name), Status::default());

        let directory = "https://ca.test:14000/dir".to_owned();
        let account = AccountFile { directory, key: "k".to_owned(), id: None, contact: None };
        vault.set_account(&account).expect("written");
        assert_eq!(vault.account("https://ca.test:14000/dir").expect("there").key, "k");
        assert!(vault.account("https://ca.test:14000/other").is_none());
    }

    #[test]
    fn a_name_is_held_by_one_at_a_time() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let held = vault.lock(&name("a.test")).expect("lockable").expect("free");
        assert!(vault.lock(&name("a.test")).expect("lockable").is_none());
        assert!(vault.lock(&name("b.test")).expect("lockable").is_some());
        drop(held);
        assert!(vault.lock(&name("a.test")).expect("lockable").is_some());
    }
}
