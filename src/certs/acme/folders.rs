//! The folders of one name's certificates: a number for each, and a link to the one in use.
//!
//! Refuses to take a folder that cannot be read now for one that is not there: a certificate would be
//! ordered that nobody needs.

use std::fs;
use std::io;
use std::path::Path;

use super::super::{CertError, Served, files, load_pair};
use crate::config::{PemPair, PemSource};

pub(super) const CHAIN: &str = "fullchain.pem";
pub(super) const KEY: &str = "privkey.pem";
pub(super) const CURRENT: &str = "current";
/// What folders are called that have no number yet.
pub(super) const FRESH: &str = ".new-";
/// What links are called that do not stand in their place yet.
const FRESH_LINK: &str = ".current-";

/// The numbered folders, oldest first.
pub(super) fn numbers(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if name.len() >= 6 && name.bytes().all(|b| b.is_ascii_digit()) {
            numbers.push(name);
        }
    }
    numbers.sort_by_key(|number| (number.len(), number.clone()));
    Ok(numbers)
}

/// The newest pair that can be used, and its number. One that is broken is passed over with a
/// warning.
pub(super) fn newest(folder: &Path) -> Result<Option<(Served, String)>, CertError> {
    let unreadable = |error| CertError::Unreadable { source_name: format!("`{}`", folder.display()), error };
    for number in numbers(folder).map_err(unreadable)?.into_iter().rev() {
        match pair(&folder.join(&number)) {
            Ok(served) => return Ok(Some((served, number))),
            Err(error) if is_passing(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a kept certificate cannot be used; passing it over");
            }
        }
    }
    Ok(None)
}

/// The pair in one of the folders.
pub(super) fn pair(folder: &Path) -> Result<Served, CertError> {
    let file = |name: &str| PemSource::File(folder.join(name));
    load_pair(&PemPair { cert: file(CHAIN), key: file(KEY) })
}

/// Whether a file is there, but cannot be read now.
fn is_passing(error: &CertError) -> bool {
    let CertError::Unreadable { error, .. } = error else { return false };
    !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
}

/// Whether `current` leads to this folder.
pub(super) fn is_linked(folder: &Path, number: &str) -> bool {
    fs::read_link(folder.join(CURRENT)).is_ok_and(|target| target == Path::new(number))
}

/// Lets `current` lead to a folder, in one step.
pub(super) fn link(folder: &Path, number: &str) -> io::Result<()> {
    let mut fresh = tempfile::Builder::new();
    let fresh = fresh.prefix(FRESH_LINK).make_in(folder, |path| std::os::unix::fs::symlink(number, path))?;
    fresh.into_temp_path().persist(folder.join(CURRENT)).map_err(|error| error.error)?;
    files::sync(folder)
}

/// Takes away what is older than the certificate before this one, and what a process left that ended
/// in the midst. What cannot be taken away does no harm. The name must be held.
pub(super) fn tidy(folder: &Path, before: &[String]) {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let beginning = |what| names.iter().filter(move |name| name.starts_with(what));
    let folders = before.iter().rev().skip(1).chain(beginning(FRESH));
    let removed = folders.map(|name| (name, fs::remove_dir_all(folder.join(name))));
    let links = beginning(FRESH_LINK).map(|name| (name, fs::remove_file(folder.join(name))));
    for (name, removed) in removed.chain(links) {
        if let Err(error) = removed {
            tracing::debug!(%name, %error, "an old certificate's folder stays");
        }
    }
}
