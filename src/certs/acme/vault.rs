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
//! records.json                     records in the DNS that could not be removed yet
//! ```
//!
//! A certificate, its key and what is known of it come as one folder, which gets its number when it
//! is whole on disk: a process that ends at any moment leaves the old ones or the new ones.
//! Reads and writes files: not for a busy task.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{Served, files};
use super::folders::{self, CHAIN, FRESH, KEY};
pub use super::notes::VaultError;
use super::notes::{disk, no_folder, read, text, to_text, try_read, unreadable, write};
pub use super::records::{About, FaultNote, Status, Window};
pub(super) use super::records::{AccountFile, Pending};
use super::requests::REQUESTS;
use crate::name::CertName;

const ABOUT: &str = "certificate.json";
/// What a wildcard's folder begins with; no host name can.
const WILDCARD: &str = "wildcard+";

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
    /// The number of its folder.
    pub(super) number: String,
}

/// Holds a name, or a directory's account, until it is dropped: also against other processes.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] fs::File);

impl Vault {
    /// The vault of a state folder, made if absent.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, VaultError> {
        let vault = Self::look(state_dir);
        for folder in ["accounts", "names", REQUESTS] {
            let path = vault.at(folder);
            files::private_folder(&path).map_err(|error| no_folder(&path, error))?;
        }
        Ok(vault)
    }

    /// The vault of a state folder, for those who only look: nothing is made, since it would belong to
    /// whoever looks, and not to the gateway.
    #[must_use]
    pub fn look(state_dir: &Path) -> Self {
        Self(state_dir.join("acme").into())
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

    /// The newest certificate for a name that can be used. One that is broken is passed over with a
    /// warning.
    ///
    /// # Errors
    /// When it is there, perhaps, but cannot be read now.
    pub fn load(&self, name: &CertName) -> Result<Option<Kept>, VaultError> {
        let folder = self.folder(name);
        let Some((served, number)) = folders::newest(&folder)? else { return Ok(None) };
        Ok(Some(kept(&folder.join(&number), served, number)))
    }

    /// Whether other programs find this certificate under `current`: a process may have ended before
    /// it was linked.
    pub(super) fn is_linked(&self, name: &CertName, kept: &Kept) -> bool {
        folders::is_linked(&self.folder(name), &kept.number)
    }

    /// Lets other programs find this certificate. The name must be held.
    pub(super) fn link(&self, name: &CertName, kept: &Kept, _held: &Lock) -> Result<(), VaultError> {
        let folder = self.folder(name);
        folders::link(&folder, &kept.number).map_err(|error| disk(&folder, error))
    }

    /// Keeps a new certificate in the place of the one before, which stays beside it.
    ///
    /// # Errors
    /// When the disk does not take it, or chain and key cannot be used, or are for another name; then
    /// all is as before.
    pub(super) fn keep(
        &self,
        name: &CertName,
        chain: &str,
        key: &str,
        about: &About,
    ) -> Result<Kept, VaultError> {
        let folder = self.private(name)?;
        let before = folders::numbers(&folder).map_err(|error| unreadable(&folder, error))?;
        let last = before.last().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
        let number = format!("{:06}", last.saturating_add(1));
        let place = || {
            // Taken away again on failure; a folder without a number is nobody's.
            let fresh = tempfile::Builder::new().prefix(FRESH).tempdir_in(&folder)?;
            files::replace(&fresh.path().join(CHAIN), chain, 0o600)?;
            files::replace(&fresh.path().join(KEY), key, 0o600)?;
            files::replace(&fresh.path().join(ABOUT), &to_text(about), 0o600)?;
            Ok(fresh)
        };
        let fresh = place().map_err(|error| disk(&folder, error))?;
        let served = folders::pair(fresh.path())?;
        if !served.names.iter().any(|shown| is_for(shown, name)) {
            return Err(VaultError::OtherName { name: name.clone(), shown: served.names });
        }
        let kept = kept(fresh.path(), served, number.clone());
        let finish = || {
            fs::rename(fresh.path(), folder.join(&number))?;
            files::sync(&folder)?;
            folders::link(&folder, &number)
        };
        finish().map_err(|error| disk(&folder.join(&number), error))?;
        folders::tidy(&folder, &before);
        Ok(kept)
    }

    /// Whether a certificate for a name is there.
    #[must_use]
    pub fn has(&self, name: &CertName) -> bool {
        self.folder(name).join(folders::CURRENT).exists()
    }

    /// A file or folder of the vault's own.
    pub(super) fn at(&self, place: &str) -> PathBuf {
        self.0.join(place)
    }

    /// How it stands with a name, for those who show it; as new when nothing is known.
    #[must_use]
    pub fn status(&self, name: &CertName) -> Status {
        read(&self.status_path(name)).unwrap_or_default()
    }

    /// How it stands with a name, for those who act on it: what is there but cannot be read is an
    /// error. As new when nothing is known.
    pub(super) fn known_status(&self, name: &CertName) -> Result<Status, VaultError> {
        Ok(try_read(&self.status_path(name))?.unwrap_or_default())
    }

    pub(super) fn set_status(&self, name: &CertName, status: &Status) -> Result<(), VaultError> {
        write(&self.private(name)?.join("status.json"), status)
    }

    /// The order that is not finished. One whose certificate is kept is.
    pub(super) fn pending(&self, name: &CertName) -> Result<Option<Pending>, VaultError> {
        let folder = self.folder(name);
        let pending: Option<Pending> = try_read(&folder.join("order.json"))?;
        let Some(pending) = pending else { return Ok(None) };
        let newest = folders::numbers(&folder).map_err(|error| unreadable(&folder, error))?.pop();
        let is_finished = newest.is_some_and(|number| {
            fs::read_to_string(folder.join(number).join(KEY)).is_ok_and(|key| key == pending.key)
        });
        Ok(Some(pending).filter(|_| !is_finished))
    }

    pub(super) fn set_pending(&self, name: &CertName, pending: Option<&Pending>) -> Result<(), VaultError> {
        let path = self.private(name)?.join("order.json");
        match pending {
            Some(pending) => write(&path, pending),
            None => files::remove(&path).map_err(|error| disk(&path, error)),
        }
    }

    /// Changes the notes of an order that is not finished. The name must be held.
    pub(super) fn change_pending(
        &self,
        name: &CertName,
        change: impl FnOnce(&mut Pending),
    ) -> Result<(), VaultError> {
        let Some(mut pending) = self.pending(name)? else { return Ok(()) };
        change(&mut pending);
        self.set_pending(name, Some(&pending))
    }

    /// The account at a directory. One that cannot be read, or understood, is not taken for none: a
    /// new one would come in its place.
    pub(super) fn account(&self, directory: &str) -> Result<Option<AccountFile>, VaultError> {
        let path = self.account_path(directory);
        let Some(text) = text(&path)? else { return Ok(None) };
        let account: AccountFile =
            serde_json::from_slice(&text).map_err(|error| VaultError::Torn { path, error })?;
        Ok(Some(account).filter(|account| account.directory == directory))
    }

    pub(super) fn set_account(&self, account: &AccountFile) -> Result<(), VaultError> {
        write(&self.account_path(&account.directory), account)
    }

    /// Forgets an account, unless another one is kept by now.
    pub(super) fn forget_account(&self, directory: &str, id: &str, _held: &Lock) -> Result<(), VaultError> {
        if self.account(directory)?.is_none_or(|account| account.id.as_deref() != Some(id)) {
            return Ok(());
        }
        let path = self.account_path(directory);
        files::remove(&path).map_err(|error| disk(&path, error))
    }

    /// Takes a name for this process; `None` while another has it.
    pub(super) fn lock(&self, name: &CertName) -> Result<Option<Lock>, VaultError> {
        lock(&self.private(name)?.join("lock"))
    }

    /// Takes the account at a directory; `None` while another has it.
    pub(super) fn lock_account(&self, directory: &str) -> Result<Option<Lock>, VaultError> {
        lock(&self.0.join("accounts").join(format!("lock-{}", super::short_hash(directory.as_bytes()))))
    }

    /// Takes the records that were left; `None` while another has them.
    pub(super) fn lock_left(&self) -> Result<Option<Lock>, VaultError> {
        lock(&self.0.join("records.lock"))
    }

    fn status_path(&self, name: &CertName) -> PathBuf {
        self.folder(name).join("status.json")
    }

    fn folder(&self, name: &CertName) -> PathBuf {
        self.0.join("names").join(folder_of_name(name))
    }

    fn private(&self, name: &CertName) -> Result<PathBuf, VaultError> {
        let folder = self.folder(name);
        files::private_folder(&folder).map_err(|error| no_folder(&folder, error))?;
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

pub(super) fn folder_of_name(name: &CertName) -> String {
    format!("{}{}", if name.is_wildcard() { WILDCARD } else { "" }, name.host())
}

pub(super) fn name_of_folder(folder: &str) -> Option<CertName> {
    match folder.strip_prefix(WILDCARD) {
        Some(host) => CertName::parse(&format!("*.{host}")).ok(),
        None => CertName::parse(folder).ok(),
    }
}

/// Whether a certificate that shows this name is good for another.
fn is_for(shown: &str, name: &CertName) -> bool {
    *shown == name.to_string() || (!name.is_wildcard() && name.host().is_covered_by(shown))
}

/// A certificate with what is known of where it came from.
fn kept(folder: &Path, served: Served, number: String) -> Kept {
    let about = read(&folder.join(ABOUT)).unwrap_or_else(|| About {
        name: served.names.first().cloned().unwrap_or_default(),
        directory: String::new(),
        way: String::new(),
        ordered: served.not_before,
    });
    Kept { served: Arc::new(served), about, number }
}

fn lock(path: &Path) -> Result<Option<Lock>, VaultError> {
    let file = files::lock_file(path).map_err(|error| disk(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(disk(path, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use time::OffsetDateTime;

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
        assert_eq!(folders::numbers(&folder).expect("readable"), ["000002", "000003"]);
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
        folders::link(&folder, "000001").expect("linked");
        let kept = vault.load(&name).expect("readable").expect("there");
        assert!(!vault.is_linked(&name, &kept));
        assert_eq!(shown(), first, "it was changed by somebody who does not hold the name");
        let held = vault.lock(&name).expect("lockable").expect("free");
        vault.link(&name, &kept, &held).expect("linked");
        assert!(vault.is_linked(&name, &kept));
        drop(held);
        assert_eq!(shown(), second);
        fs::write(folder.join("000002/privkey.pem"), "torn").expect("writable");
        assert_eq!(vault.load(&name).expect("readable").expect("there").number, "000001");
        // A mismatch is refused before it replaces anything.
        let ((chain, _), (_, key)) = (pair("a.test"), pair("a.test"));
        assert!(vault.keep(&name, &chain, &key, &about(&name)).is_err());
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 4, "something was left");
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
        let account = |directory| vault.account(directory);
        assert_eq!(account("https://ca.test:14000/dir").expect("readable").expect("there").key, "k");
        assert!(account("https://ca.test:14000/other").expect("readable").is_none());
        // With a torn one nobody makes a new account over the old one.
        fs::write(vault.account_path("https://ca.test:14000/dir"), "{").expect("writable");
        let said = account("https://ca.test:14000/dir").err().expect("torn").to_string();
        assert!(said.contains("cannot understand") && said.contains("made anew"), "{said}");
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_absent() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let name = name("a.test");
        keep(&vault, &name);
        let folder = dir.path().join("acme/names/a.test");
        // A folder in the place of a file cannot be read, whoever one is.
        let hide = |file: &str| {
            let path = folder.join(file);
            files::remove(&path).expect("ours");
            fs::create_dir(&path).expect("ours");
        };
        hide("status.json");
        hide("order.json");
        assert!(vault.known_status(&name).is_err() && vault.pending(&name).is_err());
        assert_eq!(vault.status(&name), Status::default());
        hide("000001/privkey.pem");
        let said = vault.load(&name).expect_err("unreadable").to_string();
        assert!(said.contains("cannot read") && said.contains("privkey.pem"), "{said}");
        fs::create_dir(vault.account_path("https://ca.test/dir")).expect("ours");
        assert!(vault.account("https://ca.test/dir").is_err());
        fs::remove_dir_all(&folder).expect("ours");
        assert!(vault.load(&name).expect("absent").is_none());
        fs::write(&folder, "").expect("writable");
        assert!(vault.load(&name).is_err());
    }

    #[test]
    fn a_finished_order_is_not_gone_on_with() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let name = name("a.test");
        let (chain, key) = pair("a.test");
        let text = |text: &str| text.to_owned();
        let pending = Pending {
            directory: text("d"),
            url: text("u"),
            way: text("w"),
            key: key.clone(),
            proofs: 0,
            record: None,
        };
        vault.set_pending(&name, Some(&pending)).expect("written");
        assert!(vault.pending(&name).expect("readable").is_some());
        vault.keep(&name, &chain, &key, &about(&name)).expect("kept");
        assert!(vault.pending(&name).expect("readable").is_none());
    }

    #[test]
    fn a_certificate_for_another_name_is_not_kept() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let tried = |shown: &str, name: &CertName| {
            let (chain, key) = pair(shown);
            vault.keep(name, &chain, &key, &about(name))
        };
        for (shown, wanted) in [("a.test", "b.test"), ("a.test", "*.a.test"), ("*.a.test", "a.test")] {
            let said = tried(shown, &name(wanted)).expect_err("of another").to_string();
            assert!(said.contains(&format!("for `{wanted}` is for [\"{shown}\"]")), "{said}");
            assert!(vault.load(&name(wanted)).expect("readable").is_none());
        }
        tried("*.a.test", &name("b.a.test")).expect("covered");
    }

    #[test]
    fn two_who_link_do_not_stumble_over_each_other() {
        let dir = tempfile::tempdir().expect("temporary folder");
        std::thread::scope(|scope| {
            for number in ["000001", "000002"] {
                let folder = dir.path();
                scope.spawn(move || (0..50).for_each(|_| folders::link(folder, number).expect("linked")));
            }
        });
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
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
