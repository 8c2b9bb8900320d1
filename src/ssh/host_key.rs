//! The host's own key, and the algorithms that the gateway speaks.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::{Preferred, cipher, compression, kex, mac};

use crate::config::PemSource;

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// Not a key.
    #[error("the SSH host key {place} cannot be used: {fault}; make one with `ssh-keygen -t ed25519 -N ''`")]
    Invalid {
        /// Where it was.
        place: String,
        /// What is wrong.
        fault: String,
    },
    /// The file could not be read.
    #[error("cannot read the SSH host key `{path}`: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file could not be made.
    #[error("cannot make the SSH host key `{path}`: {error}; make its folder writable")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Reads the host key. A file that does not exist is made first: Ed25519, mode 0600.
///
/// # Errors
/// When the key cannot be read, made or understood, or is locked with a passphrase.
pub fn load(source: &PemSource) -> Result<PrivateKey, HostKeyError> {
    match source {
        PemSource::Inline(text) => parse(text, "given in the configuration".to_owned()),
        PemSource::File(path) => match std::fs::read_to_string(path) {
            Ok(text) => parse(&text, format!("`{}`", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
            Err(error) => Err(HostKeyError::Read { path: path.clone(), error }),
        },
    }
}

fn parse(text: &str, place: String) -> Result<PrivateKey, HostKeyError> {
    let fail = |fault: String| HostKeyError::Invalid { place: place.clone(), fault };
    let key = russh::keys::decode_secret_key(text, None).map_err(|error| {
        // The library's words may quote what stands there.
        fail(match error {
            russh::keys::Error::KeyIsEncrypted => "it is locked with a passphrase".to_owned(),
            _ => "it is no private key of SSH".to_owned(),
        })
    })?;
    if matches!(key.algorithm(), Algorithm::Ed25519 | Algorithm::Rsa { .. } | Algorithm::Ecdsa { .. }) {
        return Ok(key);
    }
    Err(fail(format!("its kind `{}` is not one of Ed25519, RSA, ECDSA", key.algorithm())))
}

fn make(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let fail = |error| HostKeyError::Write { path: path.to_owned(), error };
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)
        .map_err(|error| fail(io::Error::other(error)))?;
    let text = key.to_openssh(LineEnding::LF).map_err(|error| fail(io::Error::other(error)))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(fail)?;
    // A temporary file has mode 0600 from the start, and the name appears only when it is whole.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(key),
        // Another process was faster; its key is the host's.
        Err(lost) if lost.error.kind() == io::ErrorKind::AlreadyExists => {
            let text = std::fs::read_to_string(path).map_err(fail)?;
            parse(&text, format!("`{}`", path.display()))
        }
        Err(lost) => Err(fail(lost.error)),
    }
}

/// The ciphers, best first.
const CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305];

/// The algorithms without any cipher but AES-GCM.
#[must_use]
pub fn aes_gcm_only() -> Preferred {
    Preferred { cipher: Cow::Borrowed(&CIPHERS[..2]), ..algorithms() }
}

/// The algorithms, best first: none that an audit has a word against.
#[must_use]
pub fn algorithms() -> Preferred {
    const KEX: &[kex::Name] = &[
        kex::MLKEM768X25519_SHA256,
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::EXTENSION_SUPPORT_AS_SERVER,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    ];
    const KEYS: &[Algorithm] = &[
        Algorithm::Ed25519,
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    ];
    const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM];
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(KEYS),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_host_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("deep/host_key");
        let source = PemSource::File(path.clone());
        let made = load(&source).expect("made");
        let again = load(&source).expect("kept");
        assert_eq!(made.public_key(), again.public_key());
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_host_key_is_named_and_left_alone() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("host_key");
        std::fs::write(&path, "nonsense").expect("writable");
        let fault = load(&PemSource::File(path.clone())).expect_err("broken").to_string();
        assert!(fault.contains("host_key") && fault.contains("ssh-keygen"), "{fault}");
        assert_eq!(std::fs::read_to_string(&path).expect("exists"), "nonsense");
    }
}
