//! The keys that `ssh` tries, in its order: what is taken where nobody names a key.
//!
//! As OpenSSH has it: keys of the ssh-agent that a file names, the ssh-agent's others, then the
//! files that the ssh-agent does not hold.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{PrivateKey, PublicKey};
use tokio::time::timeout;

use super::SshSettings;
use crate::access::{Identity, brief};

/// How long an ssh-agent may take to list its keys.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest file that is taken for a key, in octets.
const FILE_MAX: u64 = 64 * 1024;
/// What every file of a private key has.
pub(super) const PRIVATE: &str = "PRIVATE KEY-----";

/// A key that `ssh` would try.
#[derive(Clone, Debug)]
pub enum UsualKey {
    /// An ssh-agent holds it.
    InAgent {
        /// Its public half.
        public: PublicKey,
        /// The file that names it, if one does: of either half.
        file: Option<PathBuf>,
        /// The ssh-agent's socket.
        socket: PathBuf,
        /// What the ssh-agent calls it.
        comment: String,
    },
    /// Only its file does.
    InFile {
        /// The file of the private half.
        file: PathBuf,
        /// Its public half; `None` for a locked key that does not show it.
        public: Option<PublicKey>,
    },
}

impl UsualKey {
    /// Its public half, where that can be known without a passphrase.
    #[must_use]
    pub fn public(&self) -> Option<&PublicKey> {
        match self {
            Self::InAgent { public, .. } => Some(public),
            Self::InFile { public, .. } => public.as_ref(),
        }
    }

    /// The file to name it by, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::InAgent { file, .. } => file.as_deref(),
            Self::InFile { file, .. } => Some(file),
        }
    }

    /// What a person calls it.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::InFile { file, .. } => format!("`{}`", file.display()),
            Self::InAgent { file: Some(file), .. } => {
                format!("`{}`, which the ssh-agent holds", file.display())
            }
            Self::InAgent { public, comment, .. } => {
                format!("`{}` of the ssh-agent ({})", brief(comment), Identity::of(public).fingerprint)
            }
        }
    }
}

/// A file that `ssh` would look at.
struct Listed {
    file: PathBuf,
    public: Option<PublicKey>,
    has_private: bool,
}

impl Listed {
    /// The comment is no part of a key.
    fn is(&self, key: &PublicKey) -> bool {
        self.public.as_ref().is_some_and(|public| public.key_data() == key.key_data())
    }
}

/// All keys that `ssh` would try with these settings. Empty when there is none. What cannot be read or
/// asked is passed over, as `ssh` does it. Reads files; takes at most 5 s for the ssh-agent. Cancel safe.
pub async fn usual_keys(settings: &SshSettings) -> Vec<UsualKey> {
    let mut listed: Vec<Listed> = Vec::new();
    for file in &settings.files {
        let Some(new) = listed_at(file) else { continue };
        let is_known = |public: &PublicKey| listed.iter().any(|old| old.is(public));
        if !new.public.as_ref().is_some_and(is_known) {
            listed.push(new);
        }
    }
    let held = match &settings.socket {
        Some(socket) => held_by(socket).await,
        None => Vec::new(),
    };
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for (public, comment) in held {
        let of = |file| UsualKey::InAgent {
            public: public.clone(),
            file,
            socket: settings.socket.clone().unwrap_or_default(),
            comment: comment.clone(),
        };
        match listed.iter().position(|listed| listed.is(&public)) {
            Some(at) => named.push(of(Some(listed.remove(at).file))),
            None if settings.only_files => {}
            None => others.push(of(None)),
        }
    }
    let of_files = listed.into_iter().filter(|listed| listed.has_private);
    let of_files = of_files.map(|Listed { file, public, .. }| UsualKey::InFile { file, public });
    let all = named.into_iter().chain(others).chain(of_files);
    all.filter(|key| key.public().is_none_or(|public| settings.takes(public))).collect()
}

/// What stands at a path of a key: either half, or only the public one beside it.
fn listed_at(file: &Path) -> Option<Listed> {
    let beside = || PublicKey::from_openssh(read(&public_half(file))?.trim()).ok();
    let of = |public, has_private| Listed { public, file: file.to_owned(), has_private };
    let Some(text) = read(file) else { return beside().map(|public| of(Some(public), false)) };
    if !text.contains(PRIVATE) {
        return PublicKey::from_openssh(text.trim()).ok().map(|public| of(Some(public), false));
    }
    // Of a locked key the public half can be read all the same, but in the oldest form.
    let public = PrivateKey::from_openssh(&text).ok().map(|key| key.public_key().clone());
    let unlocked = || Some(russh::keys::decode_secret_key(&text, None).ok()?.public_key().clone());
    Some(of(public.or_else(unlocked).or_else(beside), true))
}

/// Where the public half of a private key is kept.
#[must_use]
pub fn public_half(private: &Path) -> PathBuf {
    let mut path = private.as_os_str().to_owned();
    path.push(".pub");
    path.into()
}

fn read(file: &Path) -> Option<String> {
    if !std::fs::metadata(file).ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(FILE_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The keys of an ssh-agent with what it calls them, in its order; certificates are none of ours.
async fn held_by(socket: &Path) -> Vec<(PublicKey, String)> {
    let asked = async { AgentClient::connect_uds(socket).await?.request_identities().await };
    let Ok(Ok(held)) = timeout(PATIENCE, asked).await else { return Vec::new() };
    let of = |held| match held {
        AgentIdentity::PublicKey { key, comment } => Some((key, comment)),
        AgentIdentity::Certificate { .. } => None,
    };
    held.into_iter().filter_map(of).collect()
}
