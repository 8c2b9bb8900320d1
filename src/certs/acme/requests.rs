//! Requests to renew a certificate now: a file for each, in the vault, made by whoever may write
//! there. So the running gateway can be told without a port or a socket for it.

use super::Acme;
use crate::config::watch::{FileWatch, POLL, off_thread};
use crate::name::CertName;

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
                if self.may_renew(&name) {
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

    /// Names that nobody asked a certificate for are not begun with.
    fn may_renew(&self, name: &CertName) -> bool {
        self.settings().names.contains(name) || self.keeps(name)
    }
}
