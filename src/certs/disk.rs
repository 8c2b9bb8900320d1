//! Certificates and keys in PEM files: read, matched with each other, and understood.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

use super::Served;
use crate::config::{PemPair, PemSource, Shared};
use crate::net::pem_fault;

/// Why a certificate cannot be used. `source` says where it came from: a path in back-ticks, or
/// that it was given inline.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The file could not be read.
    #[error("cannot read {source_name}: {error}; check the path, and that this user may read it")]
    Unreadable {
        /// Where.
        source_name: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not PEM.
    #[error(
        "{source_name} is not in PEM form: {detail}; give the text with `-----BEGIN …-----` lines, whole and unchanged"
    )]
    NotPem {
        /// Where.
        source_name: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// PEM, but without a certificate.
    #[error("no certificate in {source_name}; it must hold the chain, the leaf first")]
    NoCertificate {
        /// Where.
        source_name: String,
    },
    /// PEM, but without a private key.
    #[error("no private key in {source_name}; it must hold an unencrypted `PRIVATE KEY` block")]
    NoKey {
        /// Where.
        source_name: String,
    },
    /// The certificate breaks X.509.
    #[error("the certificate in {source_name} cannot be understood: {detail}; get it anew from its issuer")]
    BadCertificate {
        /// Where.
        source_name: String,
        /// What the parser said.
        detail: String,
    },
    /// A folder without a pair of files.
    #[error(
        "`{}` holds no certificate: neither `fullchain.pem` and `privkey.pem` (or `tls.crt` and `tls.key`), nor a folder with them; is the path right?",
        folder.display()
    )]
    NoPair {
        /// Which folder.
        folder: std::path::PathBuf,
    },
    /// A kind of key that is not supported.
    #[error(
        "the private key in {source_name} cannot be used: {detail}; use ECDSA P-256 or P-384, Ed25519 or RSA from 2048 bits"
    )]
    BadKey {
        /// Where.
        source_name: String,
        /// What the provider said.
        detail: String,
    },
    /// Key and leaf do not belong together.
    #[error(
        "the private key in {key} does not belong to the first certificate in {cert}; give the key that it was issued for, and put the leaf first in the chain"
    )]
    Mismatch {
        /// The chain's place.
        cert: String,
        /// The key's place.
        key: String,
    },
    /// A file of the development CA could not be written.
    #[error("cannot write `{path}`: {error}; choose a folder that this user may write to (`--state-dir`)")]
    Unwritable {
        /// Which file.
        path: std::path::PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The development CA could not make a certificate.
    #[error("cannot make a development certificate: {0}")]
    NotMade(#[from] rcgen::Error),
}

/// Reads one pair. Does not look at whether the leaf has ended: see [`Served::warn`].
///
/// # Errors
/// When one of the two cannot be read or understood, or they do not belong together.
pub fn load_pair(pair: &PemPair) -> Result<Served, CertError> {
    let (cert_name, key_name) = (name_of(&pair.cert), name_of(&pair.key));
    let chain = parse_certificates(&read_source(&pair.cert)?, &cert_name)?;
    let key = parse_key(&read_source(&pair.key)?, &key_name)?;
    let facts = facts(&chain[0], &cert_name)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            CertError::Mismatch { cert: cert_name.clone(), key: key_name.clone() }
        }
        rustls::Error::General(detail) => CertError::BadKey { source_name: key_name.clone(), detail },
        other => CertError::BadCertificate { source_name: cert_name.clone(), detail: other.to_string() },
    })?;
    let shared_key = match &pair.key {
        PemSource::File(path) => Shared::at(path),
        PemSource::Inline(_) => None,
    };
    Ok(Served { shared_key, ..facts.of(Arc::new(key)) })
}

/// The PEM text itself.
///
/// # Errors
/// When its file cannot be read, or is not text.
pub fn read_source(source: &PemSource) -> Result<String, CertError> {
    match source {
        PemSource::Inline(text) => Ok(text.clone()),
        PemSource::File(path) => std::fs::read_to_string(path)
            .map_err(|error| CertError::Unreadable { source_name: name_of(source), error }),
    }
}

/// All certificates in a PEM text, in its order; at least one.
///
/// # Errors
/// When the text is not PEM or holds none.
pub fn parse_certificates(pem: &str, source_name: &str) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|error| {
            CertError::NotPem { source_name: source_name.to_owned(), detail: pem_fault(&error) }
        })?;
    if chain.is_empty() {
        return Err(CertError::NoCertificate { source_name: source_name.to_owned() });
    }
    Ok(chain)
}

/// Names a source in errors, never with its content.
pub(super) fn name_of(source: &PemSource) -> String {
    match source {
        PemSource::File(path) => format!("`{}`", path.display()),
        PemSource::Inline(_) => "the PEM text given inline".to_owned(),
    }
}

fn parse_key(pem: &str, source_name: &str) -> Result<PrivateKeyDer<'static>, CertError> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| match error {
        Error::NoItemsFound => CertError::NoKey { source_name: source_name.to_owned() },
        other => CertError::NotPem { source_name: source_name.to_owned(), detail: pem_fault(&other) },
    })
}

/// What a leaf says of itself.
pub(super) struct Facts {
    names: Vec<String>,
    issuer: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Facts {
    /// A certificate to show, from its chain and key.
    pub(super) fn of(self, key: Arc<CertifiedKey>) -> Served {
        let Self { names, issuer, not_before, not_after } = self;
        Served { key, names: names.into(), issuer, not_before, not_after, shared_key: None }
    }
}

/// Reads a leaf.
pub(super) fn facts(leaf: &CertificateDer<'_>, source_name: &str) -> Result<Facts, CertError> {
    let bad = |detail: String| CertError::BadCertificate { source_name: source_name.to_owned(), detail };
    let (_, cert) = x509_parser::parse_x509_certificate(leaf).map_err(|error| bad(error.to_string()))?;
    let mut names = Vec::new();
    if let Some(extension) = cert.subject_alternative_name().map_err(|error| bad(error.to_string()))? {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(octets) => names.extend(ip_name(octets)),
                _ => {}
            }
        }
    }
    let issuer = cert.issuer();
    let issuer =
        issuer.iter_organization().chain(issuer.iter_common_name()).find_map(|part| part.as_str().ok());
    let issuer = issuer.unwrap_or_default().to_owned();
    let (not_before, not_after) =
        (cert.validity().not_before.to_datetime(), cert.validity().not_after.to_datetime());
    Ok(Facts { names, issuer, not_before, not_after })
}

fn ip_name(octets: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(IpAddr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(octets).ok().map(|v6| format!("[{}]", IpAddr::from(v6)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).expect("valid name");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn fault(cert: &str, key: &str) -> String {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (cert_path, key_path) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        fs::write(&cert_path, cert).expect("writable");
        fs::write(&key_path, key).expect("writable");
        let pair = PemPair { cert: PemSource::File(cert_path), key: PemSource::File(key_path) };
        let error = load_pair(&pair).expect_err("must not load").to_string();
        error.replace(&dir.path().display().to_string(), "")
    }

    #[test]
    fn errors_name_the_file_and_the_cure() {
        let (cert, key) = made();
        let (other_cert, _) = made();
        assert!(fault("", &key).starts_with("no certificate in `/c.pem`"));
        assert!(fault(&key, &cert).starts_with("no certificate in `/c.pem`"));
        assert!(fault(&cert, &cert).starts_with("no private key in `/k.pem`"));
        assert!(fault(&other_cert, &key).starts_with("the private key in `/k.pem` does not belong"));
        assert!(fault(&cert[..cert.len() / 2], &key).contains("`/c.pem`"));
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(fault(junk, &key).starts_with("the certificate in `/c.pem` cannot be understood"));
        let junk = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(fault(&cert, junk).starts_with("the private key in `/k.pem` cannot be used"));
        let missing =
            PemPair { cert: PemSource::File("/nonexistent/c.pem".into()), key: PemSource::Inline(key) };
        let error = load_pair(&missing).expect_err("must not load").to_string();
        assert!(error.starts_with("cannot read `/nonexistent/c.pem`: "), "{error}");
    }

    #[test]
    fn an_ended_certificate_still_loads() {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).expect("valid name");
        params.not_after = OffsetDateTime::now_utc() - time::Duration::days(1);
        let cert = params.self_signed(&key).expect("signed");
        let pair =
            PemPair { cert: PemSource::Inline(cert.pem()), key: PemSource::Inline(key.serialize_pem()) };
        assert!(load_pair(&pair).is_ok());
    }
}
