//! The files that agents' keys are read from: one file, or a folder of them. A malformed line is
//! left out with a warning; a file that cannot be read, or is no list by its size, is refused. So is a
//! private key, unless it is one file of several: then it is left out.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::public::KeyData;

use super::authorized_keys::{Entry, is_private_key, parse_line};
use crate::config::watch::{Places, Stamp, stamp};

/// Largest file of keys, in octets.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// The lines of each key.
pub type List = HashMap<KeyData, Vec<Entry>>;

/// Why the list of keys could not be read.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file or folder could not be read.
    #[error(
        "cannot read agents' keys from `{path}`: {error}; check the path, and that this user may read it"
    )]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file is larger than any list of keys.
    #[error("`{0}` has more than 16 MiB, which is no list of keys; is the path right?")]
    TooLarge(PathBuf),
    /// A file is the secret half of a key.
    #[error("`{0}`: this is a private key; name its `.pub` file instead")]
    PrivateKey(PathBuf),
}

/// Where the list is, and the stamp of its files.
pub fn look(path: &Path) -> (Places, Stamp) {
    (Places::of(path), stamp(files_of(path).unwrap_or_default()))
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>, KeysError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error| KeysError::Unreadable { path, error }
    };
    if !fs::metadata(path).map_err(unreadable(path))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for item in fs::read_dir(path).map_err(unreadable(path))? {
        let item = item.map_err(unreadable(path))?;
        let name = item.file_name();
        let name = name.to_string_lossy();
        // Follows links: that is how Kubernetes puts a Secret into a folder. One that leads
        // nowhere is not a file.
        let is_file = fs::metadata(item.path()).is_ok_and(|facts| facts.is_file());
        if is_file && !name.starts_with('.') && !name.ends_with('~') {
            files.push(item.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Reads all files of the list.
pub fn read_all(path: &Path) -> Result<List, KeysError> {
    let mut list = List::new();
    for file in files_of(path)? {
        let mut octets = Vec::new();
        fs::File::open(&file)
            .and_then(|open| open.take(FILE_MAX + 1).read_to_end(&mut octets))
            .map_err(|error| KeysError::Unreadable { path: file.clone(), error })?;
        if octets.len() as u64 > FILE_MAX {
            return Err(KeysError::TooLarge(file));
        }
        // Comments may be in any encoding; keys and options are ASCII.
        let text = String::from_utf8_lossy(&octets);
        if text.lines().any(is_private_key) {
            if file == path {
                return Err(KeysError::PrivateKey(file));
            }
            tracing::warn!(path = %file.display(), "this file in the folder of agents' keys is a private key, and left out; keep only `.pub` files there");
            continue;
        }
        for (number, text) in (1..).zip(text.lines()) {
            let place = format_args!("{}:{number}", file.display());
            match parse_line(text) {
                Ok(None) => {}
                Ok(Some(line)) => {
                    for note in &line.notes {
                        tracing::debug!(place = %place, "{note}");
                    }
                    list.entry(line.key.key_data().clone()).or_default().push(line.entry);
                }
                Err(fault) => {
                    tracing::warn!(place = %place, "this line of agents' keys is left out: {fault}")
                }
            }
        }
    }
    Ok(list)
}
