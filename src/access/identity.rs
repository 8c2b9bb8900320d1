//! What a public key says of its owner.

use std::sync::{Arc, OnceLock};

use russh::keys::{HashAlg, PublicKey, PublicKeyBase64 as _};

use super::verifying_key::VerifyingKey;
use crate::name::{ClientId, Thumbprint};

/// An agent's key, in every form that the contract asks for.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The key itself.
    pub key: Arc<PublicKey>,
    /// The short id in host names.
    pub client_id: ClientId,
    /// The profile id; `None` for a key kind without a JWK form.
    pub thumbprint: Option<Thumbprint>,
    /// `SHA256:…`, as OpenSSH prints it.
    pub fingerprint: Arc<str>,
    /// What its tokens are checked with; made when first needed.
    verifying: Arc<OnceLock<Option<VerifyingKey>>>,
}

impl Identity {
    /// Derives the ids of a key.
    #[must_use]
    pub fn of(key: &PublicKey) -> Self {
        Self {
            client_id: ClientId::from_key_blob(&key.public_key_bytes()),
            thumbprint: canonical_jwk(key).map(|jwk| Thumbprint::of_canonical_jwk(&jwk)),
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string().into(),
            key: Arc::new(key.clone()),
            verifying: Arc::default(),
        }
    }
}

impl Identity {
    /// What this key's tokens are checked with. `None` for one that cannot sign any, or is too short
    /// to be believed.
    pub(super) fn verifying_key(&self) -> Option<&VerifyingKey> {
        self.verifying.get_or_init(|| VerifyingKey::of_agent(&self.key)).as_ref()
    }
}

/// The required members of the key's JWK in lexicographic order (RFC 7638, section 3.2; RFC 8037
/// for Ed25519).
pub(super) fn canonical_jwk(key: &PublicKey) -> Option<String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    use russh::keys::ssh_key::public::KeyData;
    match key.key_data() {
        KeyData::Ed25519(key) => {
            Some(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, B64.encode(key.0)))
        }
        KeyData::Rsa(key) => {
            let (e, n) = (key.e().as_positive_bytes()?, key.n().as_positive_bytes()?);
            Some(format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, B64.encode(e), B64.encode(n)))
        }
        KeyData::Ecdsa(key) => {
            let point = key.as_sec1_bytes();
            // SEC 1, section 2.3.3: 0x04, then two coordinates of equal length.
            let (4, coordinates) = point.split_first().map(|(tag, rest)| (*tag, rest))? else { return None };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            let curve = match x.len() {
                32 => "P-256",
                48 => "P-384",
                66 => "P-521",
                _ => return None,
            };
            Some(format!(r#"{{"crv":"{curve}","kty":"EC","x":"{}","y":"{}"}}"#, B64.encode(x), B64.encode(y)))
        }
        _ => None,
    }
}
