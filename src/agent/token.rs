//! Tokens that an agent's own key signs: they open the private tunnels that this key offers.
//!
//! The key is used as SSH uses it, so that one that lies in an ssh-agent will do; an SSH
//! signature (RFC 8709, 8332, 5656) holds what a token's (RFC 7518, 8037) does, in another form.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use russh::keys::agent::client::AgentClient;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Decode as _;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{self, Signature};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PublicKey};
use time::OffsetDateTime;
use tokio::net::UnixStream;

use super::usual::PRIVATE;
use super::{SshFault, SshSettings, UsualKey};
use crate::access::Identity;
use crate::name::Thumbprint;
use crate::observe::shell_word;

/// How long an ssh-agent may take: it may ask its person.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);
/// Shortest RSA key whose tokens are believed, in bits.
const RSA_LEAST: usize = 2048;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Where the ssh-agent is could not be found out.
    #[error(transparent)]
    Ssh(#[from] SshFault),
    /// The file cannot be read.
    #[error("cannot read the key `{path}`: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It holds the private key in part, or without its lines.
    #[error(
        "the private key in `{path}` is not whole; keep its line breaks and its last line where you store it"
    )]
    NotWhole {
        /// The file.
        path: PathBuf,
    },
    /// It holds no key.
    #[error("`{path}` holds no SSH key: {what}; make one with `ssh-keygen -t ed25519`")]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        what: String,
    },
    /// Its passphrase could not be had, or is wrong.
    #[error("the key `{path}` is locked: {what}")]
    Locked {
        /// The file.
        path: PathBuf,
        /// What happened.
        what: String,
    },
    /// It is of a kind that signs no tokens.
    #[error(
        "a key of the kind `{0}` cannot sign tokens; use Ed25519, RSA from 2048 bits, P-256, P-384 or P-521"
    )]
    CannotSign(String),
    /// Nobody holds the private half.
    #[error("{}", without_agent(key, .socket.as_ref()))]
    NoAgent {
        /// The key, as a person calls it.
        key: KeyName,
        /// Where an ssh-agent should be, and what the system said.
        socket: Option<(PathBuf, String)>,
    },
    /// The ssh-agent did not sign.
    #[error("the ssh-agent did not sign with {}: {what}{}", key.shown, hint_to_add(key))]
    Agent {
        /// The key, as a person calls it.
        key: KeyName,
        /// What happened.
        what: String,
    },
}

/// What a person calls a key.
#[derive(Clone, Debug)]
pub struct KeyName {
    shown: String,
    /// The file of its public half, where that was named.
    public: Option<PathBuf>,
}

impl KeyName {
    /// The private half beside the public one that was named.
    fn private(&self) -> Option<PathBuf> {
        let public = self.public.as_ref().filter(|path| path.extension().is_some_and(|end| end == "pub"));
        Some(public?.with_extension(""))
    }

    /// As the shell takes it.
    fn to_add(&self) -> String {
        self.private().map_or_else(|| "FILE".to_owned(), |path| shell_word(&path.display().to_string()))
    }
}

/// Neither half of the advice helps without the other half of the key.
fn without_agent(key: &KeyName, socket: Option<&(PathBuf, String)>) -> String {
    let what = match socket {
        None => "no ssh-agent runs here (`SSH_AUTH_SOCK` is not set)".to_owned(),
        Some((path, error)) => format!("no ssh-agent answers at `{}` ({error})", path.display()),
    };
    let private = key.private().filter(|path| path.is_file());
    let other = private.map_or_else(
        || "name the private key with `--key`".to_owned(),
        |path| format!("name the private key: `--key {}`", shell_word(&path.display().to_string())),
    );
    format!(
        "{what} to sign with {}; start one with `eval \"$(ssh-agent)\"` and `ssh-add {}`, or {other}",
        key.shown,
        key.to_add()
    )
}

fn hint_to_add(key: &KeyName) -> String {
    if key.public.is_none() {
        return "; name another with `--key`".to_owned();
    }
    format!("; add the key with `ssh-add {}`", key.to_add())
}

/// A key to sign with.
#[derive(Debug)]
pub struct SigningKey {
    name: KeyName,
    public: PublicKey,
    place: Place,
}

/// Where the private half is.
#[derive(Debug)]
enum Place {
    Here(Box<PrivateKey>),
    /// In the ssh-agent at this socket; `None`: in the one that `ssh` would ask.
    Agent(Option<PathBuf>),
}

impl SigningKey {
    /// Reads a key file: a private key, or the public half of one that is in the ssh-agent. For a
    /// locked one, `passphrase` is called with the path. Reads files.
    ///
    /// # Errors
    /// When there is no key, or it cannot be unlocked.
    pub fn open(
        path: &Path,
        passphrase: impl FnOnce(&Path) -> Result<String, String>,
    ) -> Result<Self, TokenError> {
        let path = path.to_owned();
        let text = std::fs::read_to_string(&path)
            .map_err(|error| TokenError::Unreadable { path: path.clone(), error })?;
        let not_a_key = |what: String| TokenError::NotAKey { path: path.clone(), what };
        let shown = format!("`{}`", path.display());
        if !text.contains(PRIVATE) {
            // The library's words may quote what stands there.
            let public = PublicKey::from_openssh(text.trim())
                .map_err(|_| not_a_key("it is neither a private key nor a `.pub` file".to_owned()))?;
            let name = KeyName { shown, public: Some(path) };
            return Ok(Self { name, public, place: Place::Agent(None) });
        }
        let private = match russh::keys::decode_secret_key(&text, None) {
            Err(russh::keys::Error::KeyIsEncrypted) => {
                let locked = |what: String| TokenError::Locked { path: path.clone(), what };
                let passphrase = passphrase(&path).map_err(locked)?;
                russh::keys::decode_secret_key(&text, Some(&passphrase))
                    .map_err(|_| locked("that is not its passphrase".to_owned()))?
            }
            Err(_) if !is_whole(&text) => return Err(TokenError::NotWhole { path }),
            read => read.map_err(|_| not_a_key("the private key in it cannot be read".to_owned()))?,
        };
        let name = KeyName { shown, public: None };
        Ok(Self { name, public: private.public_key().clone(), place: Place::Here(Box::new(private)) })
    }

    /// The key that `ssh` would take: in its file, or in the ssh-agent. Reads files.
    ///
    /// # Errors
    /// When its file cannot be used, or it cannot be unlocked.
    pub fn usual(
        key: &UsualKey,
        passphrase: impl FnOnce(&Path) -> Result<String, String>,
    ) -> Result<Self, TokenError> {
        match key {
            UsualKey::InFile { file, .. } => Self::open(file, passphrase),
            UsualKey::InAgent { public, socket, .. } => Ok(Self {
                name: KeyName { shown: key.shown(), public: None },
                public: public.clone(),
                place: Place::Agent(Some(socket.clone())),
            }),
        }
    }

    /// The profile id of this key.
    ///
    /// # Errors
    /// When a key of its kind has none.
    pub fn profile(&self) -> Result<Thumbprint, TokenError> {
        Self::profile_of(&self.public)
    }

    /// The profile id of a key whose public half is known.
    ///
    /// # Errors
    /// When a key of its kind has none.
    pub fn profile_of(public: &PublicKey) -> Result<Thumbprint, TokenError> {
        algorithm(public)?;
        Identity::of(public).thumbprint.ok_or_else(|| cannot_sign(public))
    }

    /// A token for this key's profile that is valid from `now` on, for so long.
    ///
    /// # Errors
    /// When the key cannot sign it.
    pub async fn token(&self, now: OffsetDateTime, valid: Duration) -> Result<String, TokenError> {
        let issuer = format!("preevy://{}", self.profile()?);
        let begins = now.unix_timestamp();
        let ends = begins.saturating_add(i64::try_from(valid.as_secs()).unwrap_or(i64::MAX));
        let head = serde_json::json!({ "alg": algorithm(&self.public)?, "typ": "JWT" });
        let claims = serde_json::json!({ "iss": issuer, "iat": begins, "exp": ends });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = self.sign(signed.as_bytes()).await?;
        let raw = raw_signature(&signature).ok_or_else(|| cannot_sign(&self.public))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(raw)))
    }

    async fn sign(&self, data: &[u8]) -> Result<Signature, TokenError> {
        match &self.place {
            Place::Here(key) => match key.key_data() {
                KeypairData::Rsa(rsa) => (rsa, Some(HashAlg::Sha256)).try_sign(data),
                _ => key.try_sign(data),
            }
            .map_err(|_| cannot_sign(&self.public)),
            Place::Agent(Some(socket)) => self.sign_by_agent(socket, data).await,
            Place::Agent(None) => {
                // The key is known; where `ssh` does not say where the ssh-agent is, the environment does.
                let settings =
                    SshSettings::of(None, None).await.unwrap_or_else(|_| SshSettings::without_ssh());
                match settings.socket {
                    Some(socket) => self.sign_by_agent(&socket, data).await,
                    None => Err(TokenError::NoAgent { key: self.name.clone(), socket: None }),
                }
            }
        }
    }

    async fn sign_by_agent(&self, socket: &Path, data: &[u8]) -> Result<Signature, TokenError> {
        let key = || self.name.clone();
        let fail = |what: String| TokenError::Agent { key: key(), what };
        let hash = self.public.key_data().rsa().map(|_| HashAlg::Sha256);
        let signing = async {
            let stream = UnixStream::connect(socket).await.map_err(|error| TokenError::NoAgent {
                key: key(),
                socket: Some((socket.to_owned(), error.to_string())),
            })?;
            let signature =
                AgentClient::connect(stream).sign_request_signature(&self.public, hash, data).await;
            signature.map_err(|_| fail("it has no such key, or was told not to".to_owned()))
        };
        let signing = tokio::time::timeout(AGENT_PATIENCE, signing).await;
        signing.unwrap_or_else(|_| Err(fail(format!("no answer within {} s", AGENT_PATIENCE.as_secs()))))
    }
}

/// The token's word for how a key signs (RFC 7518, section 3.1).
fn algorithm(key: &PublicKey) -> Result<&'static str, TokenError> {
    match key.algorithm() {
        Algorithm::Ed25519 => Ok("EdDSA"),
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 } => Ok("ES256"),
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 } => Ok("ES384"),
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 } => Ok("ES512"),
        Algorithm::Rsa { .. } if rsa_bits(key) >= RSA_LEAST => Ok("RS256"),
        _ => Err(cannot_sign(key)),
    }
}

fn rsa_bits(key: &PublicKey) -> usize {
    let modulus = key.key_data().rsa().and_then(|key| key.n().as_positive_bytes());
    modulus.map_or(0, |modulus| modulus.len() * 8)
}

fn cannot_sign(key: &PublicKey) -> TokenError {
    let kind = key.algorithm().to_string();
    TokenError::CannotSign(match rsa_bits(key) {
        0 => kind,
        bits => format!("{kind} of {bits} bits"),
    })
}

/// Whether a private key has its first line, its last one and nothing but its own between them.
fn is_whole(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.starts_with("-----BEGIN "));
    let Some(label) = lines.next().and_then(|line| line.strip_prefix("-----BEGIN ")) else { return false };
    let end = format!("-----END {label}");
    let mut body = String::new();
    for line in lines {
        if line == end {
            return label.ends_with(PRIVATE) && !body.is_empty() && STANDARD.decode(body).is_ok();
        }
        // Of the oldest form, which has a head.
        if !line.contains(':') {
            body.push_str(line);
        }
    }
    false
}

/// What a token wants of an SSH signature. The two halves of ECDSA's are of fixed length there
/// (RFC 7518, section 3.4).
fn raw_signature(signature: &Signature) -> Option<Vec<u8>> {
    let Algorithm::Ecdsa { curve } = signature.algorithm() else {
        return Some(signature.as_bytes().to_vec());
    };
    let length = match curve {
        EcdsaCurve::NistP256 => 32,
        EcdsaCurve::NistP384 => 48,
        EcdsaCurve::NistP521 => 66,
    };
    let mut rest = signature.as_bytes();
    let mut raw = Vec::with_capacity(2 * length);
    for _ in 0..2 {
        let half = ssh_key::Mpint::decode(&mut rest).ok()?;
        let half = half.as_positive_bytes()?;
        raw.extend(std::iter::repeat_n(0, length.checked_sub(half.len())?));
        raw.extend(half);
    }
    Some(raw)
}
