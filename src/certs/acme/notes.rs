//! Files with notes in JSON: read and replaced whole.
//!
//! Refuses to take a file that cannot be read now for one that is not there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::{CertError, files};
use crate::name::CertName;

/// Why something could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A folder.
    #[error("cannot make the folder `{path}`: {error}; let the gateway's user write to `{nearest}`")]
    Folder {
        /// Which one.
        path: PathBuf,
        /// The nearest that is there.
        nearest: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The disk.
    #[error("cannot keep `{path}`: {error}; let the gateway's user write there, and make room")]
    Disk {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The disk, while reading.
    #[error("cannot read `{path}`: {error}; let this user read it, and see whether the disk is sound")]
    Unreadable {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file that nothing can be made of.
    #[error(
        "cannot understand `{path}` (line {}, column {}); put it back from a copy, or remove it and have it made anew",
        .error.line(), .error.column()
    )]
    Torn {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it. Its words may quote a key, and are not told.
        error: serde_json::Error,
    },
    /// A certificate that cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// A certificate for somebody else.
    #[error(
        "the certificate that was made for `{name}` is for {shown:?}; the authority made a mistake, see what it says"
    )]
    OtherName {
        /// What it should be for.
        name: CertName,
        /// What it is for.
        shown: Arc<[String]>,
    },
}

/// What a file holds; nothing when it is absent, or cannot be read or understood, which is said.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    try_read(path).inspect_err(|error| tracing::warn!(%error, "going on without a file")).ok().flatten()
}

/// What a file holds; nothing when it is absent, or cannot be understood, which is said.
pub(super) fn try_read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, VaultError> {
    let Some(text) = text(path)? else { return Ok(None) };
    let read = serde_json::from_slice(&text);
    Ok(read
        .inspect_err(|error| tracing::warn!(path = %path.display(), line = error.line(), column = error.column(), "cannot be understood; going on without it"))
        .ok())
}

/// The octets of a file; `None` when it is absent, and for no other reason.
pub(super) fn text(path: &Path) -> Result<Option<Vec<u8>>, VaultError> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), VaultError> {
    files::replace(path, &to_text(value), 0o600).map_err(|error| disk(path, error))
}

pub(super) fn to_text<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("texts, numbers and maps with texts as keys are JSON") + "\n"
}

pub(super) fn disk(path: &Path, error: io::Error) -> VaultError {
    VaultError::Disk { path: path.to_owned(), error }
}

pub(super) fn unreadable(path: &Path, error: io::Error) -> VaultError {
    VaultError::Unreadable { path: path.to_owned(), error }
}

/// A folder could not be made: what must be written to is the nearest above it that is there.
pub(super) fn no_folder(path: &Path, error: io::Error) -> VaultError {
    let nearest = path.ancestors().skip(1).find(|above| fs::symlink_metadata(above).is_ok());
    let nearest = nearest.unwrap_or(Path::new(".")).to_owned();
    VaultError::Folder { path: path.to_owned(), nearest, error }
}
