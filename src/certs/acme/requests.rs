//! Requests to renew a certificate now: a file for each, in the vault, made by whoever may write
//! there. So the running gateway can be told without a port or a socket for it.

use std::fs;
use std::path::PathBuf;

use super::super::files;
use super::notes::{VaultError, disk, write};
use super::vault::{folder_of_name, name_of_folder};
use super::{Acme, Vault};
use crate::config::watch::{FileWatch, POLL, Places, Stamp, off_thread, stamp};
use crate::name::CertName;

/// Where they come, in the vault.
pub(super) const REQUESTS: &str = "requests";

impl Acme {
    /// Does what is requested, until the tasks are cut.
    pub(super) async fn follow_requests(self) {
        let vault = self.vault().clone();
        let look = move || vault.look_for_requests();
        let mut watch = FileWatch::new("requests to renew certificates", look).await;
        loop {
            let vault = self.vault().clone();
            // `None` only when the runtime ends.
            let Some(names) = off_thread(move || vault.take_requests()).await else { return };
            for name in names {
                if self.holds_file(&name) {
                    tracing::warn!(%name, "a renewal was requested of a name that a certificate in `tls.certificates` covers; nothing is ordered for it");
                } else if self.may_renew(&name) {
                    tracing::info!(%name, "a renewal was requested");
                    self.renew(&name);
                } else {
                    tracing::warn!(%name, "a renewal was requested of a name that no certificate is ordered for");
                }
            }
            watch.was_read(true);
            while !watch.is_due_within(POLL).await {}
        }
    }

    /// Whether the operator has a certificate for a name that lasts.
    fn holds_file(&self, name: &CertName) -> bool {
        self.0.store.file_for(name).is_some_and(|file| !file.has_ended())
    }

    /// Names that nobody asked a certificate for are not begun with.
    fn may_renew(&self, name: &CertName) -> bool {
        self.settings().names.contains(name) || self.keeps(name)
    }
}

impl Vault {
    /// Whether a gateway has made the place where requests come.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        self.at(REQUESTS).is_dir()
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
    fn take_requests(&self) -> Vec<CertName> {
        let taken = |path: PathBuf| {
            let name = name_of_folder(path.file_name()?.to_str()?)?;
            files::remove(&path).ok()?;
            Some(name)
        };
        self.requests().into_iter().filter_map(taken).collect()
    }

    /// Where requests come, and the stamp of those that are there.
    fn look_for_requests(&self) -> (Places, Stamp) {
        (Places::of(&self.at(REQUESTS)), stamp(self.requests()))
    }

    fn requests(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.at(REQUESTS)).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    fn request_path(&self, name: &CertName) -> PathBuf {
        self.at(REQUESTS).join(folder_of_name(name))
    }
}
