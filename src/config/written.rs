//! What was written, not yet understood: for each setting the value, and where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::{PemPair, Secret};

/// Everything that was written, by the path of its setting.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) given: BTreeMap<&'static str, Given>,
    /// Settings that were written so badly that there is no value; said already.
    pub(super) broken: BTreeSet<&'static str>,
    pub(super) login: WrittenLogin,
    /// What `listen` is where nothing says it, if that differs from its default.
    pub(super) default_listen: Option<&'static str>,
}

/// What the old container's variables say of logins.
#[derive(Debug, Default)]
pub(super) struct WrittenLogin {
    pub(super) cookie_secrets: Vec<Secret>,
    /// In PEM form.
    pub(super) public_key: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) base_url: Option<String>,
}

/// A value and its origin.
#[derive(Debug)]
pub(super) struct Given {
    /// What a fault calls it: the setting's path, or the variable's name.
    pub(super) place: String,
    /// What relative paths are relative to; `None`: the working directory.
    pub(super) folder: Option<PathBuf>,
    pub(super) value: Value,
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// In the file.
    Toml(toml::Value),
    /// In an environment variable, or a default.
    Text(String),
    /// A PEM text, given itself.
    Pem(String),
    /// A certificate with its key, from the variables made for it.
    Pair(PemPair),
}

impl Written {
    /// Puts what was written elsewhere over this.
    pub(super) fn override_with(&mut self, other: Self) {
        self.given.extend(other.given);
        self.broken.extend(other.broken);
        self.login = other.login;
        if let Some(listen) = other.default_listen
            && !self.given.contains_key("listen")
            && !self.broken.contains("listen")
        {
            self.set_text("listen", "TLS_PORT", listen);
        }
    }

    /// Sets what a variable says.
    pub(super) fn set_text(&mut self, path: &'static str, place: &str, text: impl Into<String>) {
        self.set(path, place, Value::Text(text.into()));
    }

    pub(super) fn set(&mut self, path: &'static str, place: &str, value: Value) {
        self.given.insert(path, Given { place: place.to_owned(), folder: None, value });
    }
}
