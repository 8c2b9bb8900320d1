//! Files that hold secrets, and that nobody but their owner should be able to read. Of others it is only
//! warned: some systems hand secrets over in no other way.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A file of a secret that others than its owner can read, write or run.
#[derive(Clone, Debug)]
pub struct Shared {
    path: PathBuf,
    mode: u32,
}

impl Shared {
    /// Looks whether a file is one. Asks the file system: not for a busy task.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then(|| Self { path: path.to_owned(), mode })
    }

    /// Warns of it; `what` says what it holds.
    pub fn warn(&self, what: &str) {
        let path = self.path.display();
        tracing::warn!(
            %path,
            mode = format!("{:04o}", self.mode),
            "others than its owner can read or change {what}; run `chmod 600 {path}`, and replace it if somebody may have read it"
        );
    }
}
