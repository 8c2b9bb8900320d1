//! Where settings come from, so that they can be read again, and what has changed since the first time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::written::{Value, Written};
use super::{Faults, Settings};

/// A file, if there is one, and the environment as it was.
#[derive(Clone)]
pub struct Source {
    file: Option<PathBuf>,
    env: Vec<(String, String)>,
}

/// One reading of settings.
pub struct Reading {
    /// What they mean.
    pub settings: Settings,
    given: Given,
}

/// What was written, by the paths of settings.
#[derive(Default)]
pub(super) struct Given(BTreeMap<&'static str, Value>);

impl Source {
    /// This file, under these variables, which win.
    pub fn new(file: Option<PathBuf>, env: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { file, env: env.into_iter().collect() }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the file, if there is one, and the environment, which wins. Reads a file: not for a busy
    /// task.
    ///
    /// A relative path in the file is relative to the file's folder; one in a variable, to the
    /// working directory.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn read(&self) -> Result<Reading, Faults> {
        match self.examine() {
            (Some(reading), faults) if faults.0.is_empty() => Ok(reading),
            (_, faults) => Err(faults),
        }
    }

    /// As [`Source::read`], but goes on after faults, so that the files which the settings name can be
    /// looked at as well. Settings that come with faults are for that only: what was wrong is left out
    /// or stood in for. `None` when nothing could be understood.
    #[must_use]
    pub fn examine(&self) -> (Option<Reading>, Faults) {
        let (read, faults) = super::read(self.file.as_deref(), self.env.iter().cloned());
        (read.map(|(settings, given)| Reading { settings, given }), faults)
    }
}

impl Reading {
    /// The settings that are written otherwise than at another time, by their paths.
    #[must_use]
    pub fn changed_since(&self, earlier: &Self) -> Vec<&'static str> {
        let paths: BTreeSet<_> = self.given.0.keys().chain(earlier.given.0.keys()).copied().collect();
        let differs = |path: &&'static str| self.given.0.get(path) != earlier.given.0.get(path);
        paths.into_iter().filter(differs).collect()
    }
}

impl Given {
    /// What was written so far.
    pub(super) fn of(written: &Written) -> Self {
        Self(written.given.iter().map(|(path, given)| (*path, given.value.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_otherwise_is_named_and_what_a_variable_says_does_not_change() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("oneport.toml");
        let write = |text: &str| std::fs::write(&file, text).expect("writable");
        let base =
            "base_url = \"http://gw.test\"\nplain.http = [\"127.0.0.1:80\"]\nssh.allow_any_key = true\n";
        write(base);
        let source = Source::new(Some(file.clone()), [("ONEPORT_SSH_RAW".to_owned(), "true".to_owned())]);
        let first = source.read().expect("valid");
        assert_eq!(source.read().expect("valid").changed_since(&first), [""; 0]);
        write(&format!("{base}drain_timeout = \"1s\"\nssh.raw = false\nnetworks.deny = [\"::1\"]\n"));
        let second = source.read().expect("valid");
        assert_eq!(second.changed_since(&first), ["drain_timeout", "networks.deny"]);
        assert_eq!(first.changed_since(&second), ["drain_timeout", "networks.deny"]);
        assert!(second.settings.ssh.raw);
        write("base_url = 1\n");
        assert!(source.read().is_err());
    }
}
