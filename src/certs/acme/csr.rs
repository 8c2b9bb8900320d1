//! Keys of certificates that are ordered, and what is sent to have them signed.

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize,
};

use crate::certs::CertError;
use crate::config::KeyType;
use crate::name::CertName;

/// A new key, to be kept before a certificate is ordered for it.
///
/// # Errors
/// When it cannot be made.
pub(super) fn new_key(key_type: KeyType) -> Result<KeyPair, CertError> {
    Ok(match key_type {
        KeyType::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        KeyType::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?,
    })
}

/// The request for a name's certificate (PKCS #10, RFC 2986), in DER, with a key in PEM.
///
/// # Errors
/// When the key cannot sign it.
pub(super) fn signing_request(key: &str, name: &CertName) -> Result<Vec<u8>, CertError> {
    let key = KeyPair::from_pem(key)?;
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_key_can_be_asked_for() {
        let name = CertName::parse("*.a.test").expect("valid");
        for (kind, least) in [(KeyType::P256, 150), (KeyType::Rsa2048, 550)] {
            let key = new_key(kind).expect("made").serialize_pem();
            assert!(signing_request(&key, &name).expect("signed").len() > least);
        }
    }
}
