//! What the vault writes down of a name and of an account, as JSON.

use super::left::Left;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;

/// Where a certificate came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is for.
    pub name: String,
    /// The directory that it was ordered from.
    pub directory: String,
    /// How the name was proved.
    pub way: String,
    /// When it was ordered.
    #[serde(with = "rfc3339")]
    pub ordered: OffsetDateTime,
}

/// How it stands with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Which certificate it speaks of; empty while there is none. What is known of another means
    /// nothing to it.
    pub leaf: String,
    /// When the certificate is renewed.
    #[serde(with = "rfc3339::option")]
    pub renew_at: Option<OffsetDateTime>,
    /// The window that the authority suggests for that (ARI, RFC 9773).
    pub window: Option<Window>,
    /// When it is asked again for the window.
    #[serde(with = "rfc3339::option")]
    pub ask_at: Option<OffsetDateTime>,
    /// Attempts that failed since the last success.
    pub failures: u32,
    /// Attempts that were begun since the last one whose end is known.
    pub begun: u32,
    /// Not tried again before.
    #[serde(with = "rfc3339::option")]
    pub retry_at: Option<OffsetDateTime>,
    /// What went wrong last.
    pub fault: Option<FaultNote>,
    /// Directories that do not want to be asked, and until when (seconds since 1970).
    pub limited: BTreeMap<String, i64>,
    /// Stands for the settings that the fault came up under: with others it is tried at once.
    pub settings: String,
}

/// When an authority wants a certificate renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From then on.
    #[serde(with = "rfc3339")]
    pub start: OffsetDateTime,
    /// Until then.
    #[serde(with = "rfc3339")]
    pub end: OffsetDateTime,
}

/// A fault, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultNote {
    /// When.
    #[serde(with = "rfc3339")]
    pub at: OffsetDateTime,
    /// Its word. Earlier versions wrote it down as `word`.
    #[serde(rename = "fault", alias = "word")]
    pub word: String,
    /// What happened, and what to do.
    pub text: String,
}

/// An order that is not finished. It can be gone on with after a restart, which costs nothing of
/// what an authority allows.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) directory: String,
    pub(super) url: String,
    pub(super) way: String,
    /// The key that the certificate will be for, in PEM.
    pub(super) key: String,
    /// Proofs that the authority was asked to look for, without a word yet of what it found: of this
    /// order, and of those before it that were cut off.
    #[serde(default)]
    pub(super) proofs: u32,
    /// The record that proves the name, while it may stand in the DNS.
    #[serde(default)]
    pub(super) record: Option<Left>,
}

/// An account at a directory.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct AccountFile {
    pub(super) directory: String,
    /// PKCS #8 in base64url.
    pub(super) key: String,
    /// Its URL. `None`: the directory has not been told of it, or its answer has not been heard.
    pub(super) id: Option<String>,
    /// The address that the directory knows.
    pub(super) contact: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_an_earlier_version_wrote_down_is_read() {
        let note = |name: &str| {
            let text =
                format!(r#"{{"at": "2026-11-22T12:00:00Z", "{name}": "wrong-dns", "text": "so it is"}}"#);
            serde_json::from_str::<FaultNote>(&text).expect("a note")
        };
        assert_eq!(note("word"), note("fault"));
        let written = serde_json::to_value(note("word")).expect("JSON");
        assert_eq!(written["fault"], "wrong-dns");
    }
}
