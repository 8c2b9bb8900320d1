//! What is ordered, for those who show it.

use super::records::Status;
use super::vault::{Kept, Vault, VaultError};
use crate::name::CertName;

/// A name that a certificate is ordered for, and how it stands.
#[derive(Debug)]
pub struct Ordered {
    /// The name.
    pub name: CertName,
    /// The certificate, if there is one.
    pub kept: Option<Kept>,
    /// When it is renewed, and what failed last.
    pub status: Status,
}

impl Vault {
    /// The names that certificates are ordered for: those that are configured, in their order, and
    /// those that were ordered on demand.
    #[must_use]
    pub fn ordered_names(&self, configured: &[CertName]) -> Vec<CertName> {
        let mut names = configured.to_vec();
        names.extend(self.names().into_iter().filter(|name| !configured.contains(name)));
        names
    }

    /// How it stands with a name. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When its certificate is there, perhaps, but cannot be read now.
    pub fn ordered(&self, name: CertName) -> Result<Ordered, VaultError> {
        let (kept, status) = (self.load(&name)?, self.status(&name));
        Ok(Ordered { name, kept, status })
    }
}
