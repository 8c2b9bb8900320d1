//! Tokens that an agent's own key signs: they open the private tunnels that this key offers.
//!
//! The key is used as SSH uses it, so that one that lies in an ssh-agent will do; an SSH
//! signature (RFC 8709, 8332, 5656) holds what a token's (RFC 7518, 8037) does, in another form.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use russh::keys::agent::client::AgentClient;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Decode as _;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{self, Signature};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PublicKey};
use time::OffsetDateTime;

use crate::access::Identity;
use crate::name::Thumbprint;

/// How long an ssh-agent may take: it may ask its person.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);
/// Keys that OpenSSH itself would look for, in this order.
const USUAL: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];
/// Shortest RSA key whose tokens are believed, in bits.
const RSA_LEAST: usize = 2048;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No key was named, and none is where keys usually are.
    #[error(
        "no key: neither `~/.ssh/id_ed25519` nor `id_ecdsa` nor `id_rsa` is there; name one with `--key`"
    )]
    NoKey,
    /// The file cannot be read.
    #[error("cannot read the key `{path}`: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
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
    /// The ssh-agent did not sign.
    #[error("the ssh-agent did not sign with `{path}`: {what}; add the key with `ssh-add`")]
    Agent {
        /// The file with the public half.
        path: PathBuf,
        /// What happened.
        what: String,
    },
}

/// A key to sign with.
#[derive(Debug)]
pub struct SigningKey {
    path: PathBuf,
    public: PublicKey,
    /// `None`: it is in the ssh-agent.
    private: Option<PrivateKey>,
}

impl SigningKey {
    /// Reads a key file: a private key, or the public half of one that is in the ssh-agent. For a
    /// locked one, `passphrase` is called with the path. `None` looks where OpenSSH does. Reads
    /// files.
    ///
    /// # Errors
    /// When there is no key, or it cannot be unlocked.
    pub fn open(
        path: Option<&Path>,
        passphrase: impl FnOnce(&Path) -> Result<String, String>,
    ) -> Result<Self, TokenError> {
        let path = path.map(Path::to_owned).or_else(usual).ok_or(TokenError::NoKey)?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| TokenError::Unreadable { path: path.clone(), error })?;
        let not_a_key = |what: String| TokenError::NotAKey { path: path.clone(), what };
        if !text.contains("PRIVATE KEY-----") {
            // The library's words may quote what stands there.
            let public = PublicKey::from_openssh(text.trim())
                .map_err(|_| not_a_key("it is neither a private key nor a `.pub` file".to_owned()))?;
            return Ok(Self { path, public, private: None });
        }
        let private = match russh::keys::decode_secret_key(&text, None) {
            Err(russh::keys::Error::KeyIsEncrypted) => {
                let locked = |what: String| TokenError::Locked { path: path.clone(), what };
                let passphrase = passphrase(&path).map_err(locked)?;
                russh::keys::decode_secret_key(&text, Some(&passphrase))
                    .map_err(|_| locked("that is not its passphrase".to_owned()))?
            }
            read => read.map_err(|_| not_a_key("the private key in it cannot be read".to_owned()))?,
        };
        Ok(Self { public: private.public_key().clone(), private: Some(private), path })
    }

    /// The profile id of this key.
    ///
    /// # Errors
    /// When a key of its kind has none.
    pub fn profile(&self) -> Result<Thumbprint, TokenError> {
        self.algorithm()?;
        Identity::of(&self.public).thumbprint.ok_or_else(|| self.cannot_sign())
    }

    /// A token for this key's profile that is valid from `now` on, for so long.
    ///
    /// # Errors
    /// When the key cannot sign it.
    pub async fn token(&self, now: OffsetDateTime, valid: Duration) -> Result<String, TokenError> {
        let issuer = format!("preevy://{}", self.profile()?);
        let begins = now.unix_timestamp();
        let ends = begins.saturating_add(i64::try_from(valid.as_secs()).unwrap_or(i64::MAX));
        let head = serde_json::json!({ "alg": self.algorithm()?, "typ": "JWT" });
        let claims = serde_json::json!({ "iss": issuer, "iat": begins, "exp": ends });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = self.sign(signed.as_bytes()).await?;
        let raw = raw_signature(&signature).ok_or_else(|| self.cannot_sign())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(raw)))
    }

    /// The token's word for how this key signs (RFC 7518, section 3.1).
    fn algorithm(&self) -> Result<&'static str, TokenError> {
        match self.public.algorithm() {
            Algorithm::Ed25519 => Ok("EdDSA"),
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 } => Ok("ES256"),
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 } => Ok("ES384"),
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 } => Ok("ES512"),
            Algorithm::Rsa { .. } if self.rsa_bits() >= RSA_LEAST => Ok("RS256"),
            _ => Err(self.cannot_sign()),
        }
    }

    fn rsa_bits(&self) -> usize {
        let modulus = self.public.key_data().rsa().and_then(|key| key.n().as_positive_bytes());
        modulus.map_or(0, |modulus| modulus.len() * 8)
    }

    fn cannot_sign(&self) -> TokenError {
        let kind = self.public.algorithm().to_string();
        TokenError::CannotSign(match self.rsa_bits() {
            0 => kind,
            bits => format!("{kind} of {bits} bits"),
        })
    }

    async fn sign(&self, data: &[u8]) -> Result<Signature, TokenError> {
        match &self.private {
            Some(key) => match key.key_data() {
                KeypairData::Rsa(rsa) => (rsa, Some(HashAlg::Sha256)).try_sign(data),
                _ => key.try_sign(data),
            }
            .map_err(|_| self.cannot_sign()),
            None => self.sign_by_agent(data).await,
        }
    }

    async fn sign_by_agent(&self, data: &[u8]) -> Result<Signature, TokenError> {
        let fail = |what: String| TokenError::Agent { path: self.path.clone(), what };
        let hash = self.public.key_data().rsa().map(|_| HashAlg::Sha256);
        let signing = async {
            let mut agent = AgentClient::connect_env().await.map_err(|error| fail(error.to_string()))?;
            let signature = agent.sign_request_signature(&self.public, hash, data).await;
            signature.map_err(|_| fail("it has no such key, or was told not to".to_owned()))
        };
        let signing = tokio::time::timeout(AGENT_PATIENCE, signing).await;
        signing.unwrap_or_else(|_| Err(fail(format!("no answer within {} s", AGENT_PATIENCE.as_secs()))))
    }
}

fn usual() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("HOME")?).join(".ssh");
    USUAL.iter().map(|name| folder.join(name)).find(|path| path.is_file())
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
