//! What a certificate authority finds when it looks whether a name leads here: a certificate under
//! the name (TLS-ALPN-01, RFC 8737), a text under a path (HTTP-01, RFC 8555, section 8.3).
//!
//! Only what is being proved now is answered; nobody can have the gateway answer for other names.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::CertifiedKey;

use super::CertError;
use crate::name::HostName;

/// Where an authority looks for a token.
const PATH: &str = "/.well-known/acme-challenge/";

/// The answers for names that are being proved now. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Challenges(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    certificates: Mutex<HashMap<HostName, Arc<CertifiedKey>>>,
    tokens: Mutex<HashMap<String, String>>,
}

/// An answer that is given while this value lives.
#[derive(Debug)]
#[must_use = "dropping it takes the answer away"]
pub struct Answering {
    from: Challenges,
    what: What,
}

#[derive(Debug)]
enum What {
    Certificate(HostName, Arc<CertifiedKey>),
    Token(String),
}

impl Challenges {
    /// The certificate that answers a probe for this name. `None` when the name is not being proved
    /// by TLS-ALPN-01 now.
    #[must_use]
    pub fn certificate(&self, name: &HostName) -> Option<Arc<CertifiedKey>> {
        self.0.certificates.lock().get(name).cloned()
    }

    /// The text that answers a request for this path. `None` when no name is being proved by it now.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH)?;
        self.0.tokens.lock().get(token).cloned()
    }

    /// Answers probes for `name` with a certificate that holds `digest`, the SHA-256 of the key
    /// authorization (RFC 8737, section 3).
    ///
    /// # Errors
    /// When no certificate can be made for such a name.
    pub fn answer_probe(&self, name: &HostName, digest: &[u8]) -> Result<Answering, CertError> {
        let key = Arc::new(validation_certificate(name, digest)?);
        self.0.certificates.lock().insert(name.clone(), key.clone());
        Ok(Answering { from: self.clone(), what: What::Certificate(name.clone(), key) })
    }

    /// Answers requests for `token` with the key authorization.
    pub fn answer_request(&self, token: &str, authorization: &str) -> Answering {
        self.0.tokens.lock().insert(token.to_owned(), authorization.to_owned());
        Answering { from: self.clone(), what: What::Token(token.to_owned()) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        match &self.what {
            What::Certificate(name, key) => {
                let mut certificates = self.from.0.certificates.lock();
                // A newer one for the same name stays.
                if certificates.get(name).is_some_and(|held| Arc::ptr_eq(held, key)) {
                    certificates.remove(name);
                }
            }
            What::Token(token) => drop(self.from.0.tokens.lock().remove(token)),
        }
    }
}

/// Self-signed, for this name only, with the digest in a critical extension.
fn validation_certificate(name: &HostName, digest: &[u8]) -> Result<CertifiedKey, CertError> {
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.self_signed(&key)?;
    let source_name = format!("the validation certificate for `{name}`");
    let bad = |error: rustls::Error| CertError::BadKey { source_name, detail: error.to_string() };
    let der = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(bad)?;
    // Not through the check of key against certificate: the library's parser refuses the extension.
    Ok(CertifiedKey::new(vec![cert.der().clone()], signing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_live_as_long_as_the_proof() {
        let challenges = Challenges::default();
        let name = HostName::parse("a.test").expect("valid");
        assert!(challenges.certificate(&name).is_none());
        let first = challenges.answer_probe(&name, &[1; 32]).expect("made");
        let second = challenges.answer_probe(&name, &[2; 32]).expect("made");
        drop(first);
        assert!(challenges.certificate(&name).is_some(), "the newer one stays");
        drop(second);
        assert!(challenges.certificate(&name).is_none());

        let token = challenges.answer_request("abc", "abc.thumb");
        assert_eq!(challenges.text("/.well-known/acme-challenge/abc").as_deref(), Some("abc.thumb"));
        assert_eq!(challenges.text("/.well-known/acme-challenge/abcd"), None);
        assert_eq!(challenges.text("/abc"), None);
        drop(token);
        assert_eq!(challenges.text("/.well-known/acme-challenge/abc"), None);
    }
}
