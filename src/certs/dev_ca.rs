//! The development CA: made once in a folder, then reused. It can only vouch for this machine:
//! name constraints hold it to `localhost` and the loopback addresses, so that trusting it
//! gives nothing away but these.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

use super::disk::{facts, name_of};
use super::{CertError, Served, files, load_pair, parse_certificates, read_source};
use crate::config::{PemPair, PemSource};
use crate::name::HostName;

/// How long the CA lasts.
const CA_LIFE: Duration = Duration::days(3650);
/// How long a leaf lasts: what browsers allow.
const LEAF_LIFE: Duration = Duration::days(397);
/// A leaf with less than this left is made anew.
const LEAF_MARGIN: Duration = Duration::days(30);
/// Clocks differ: what is made now is valid since this long ago.
const BACKDATED: Duration = Duration::hours(1);
/// Leaves kept for reuse. Past it all are forgotten; making one takes less than a millisecond.
const LEAVES_KEPT: usize = 1024;

/// Where the development certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevFiles {
    /// The CA's certificate: what clients are told to trust.
    pub ca_cert: PathBuf,
    /// The CA's key.
    pub ca_key: PathBuf,
    /// The leaf for `localhost`, `127.0.0.1` and `::1`. Names below `localhost` get their own,
    /// see [`DevIssuer`].
    pub cert: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
}

impl DevFiles {
    fn in_dir(dir: &Path) -> Self {
        Self {
            ca_cert: dir.join("ca.pem"),
            ca_key: dir.join("ca.key"),
            cert: dir.join("localhost.pem"),
            key: dir.join("localhost.key"),
        }
    }

    /// The leaf, as the configuration names it.
    #[must_use]
    pub fn leaf_pair(&self) -> PemPair {
        PemPair { cert: PemSource::File(self.cert.clone()), key: PemSource::File(self.key.clone()) }
    }

    /// The CA, as the configuration names it.
    #[must_use]
    pub fn ca_pair(&self) -> PemPair {
        PemPair { cert: PemSource::File(self.ca_cert.clone()), key: PemSource::File(self.ca_key.clone()) }
    }
}

/// Makes the development CA and its leaf in `dir` unless good ones are there.
///
/// Whatever is there and cannot be used any more (ended soon, torn, not ours) is moved aside as
/// `NAME.old` and made anew. A lock on the folder keeps a second process waiting meanwhile, and
/// each file is replaced in one step, so that no reader sees half of one.
///
/// # Errors
/// When the folder cannot be written to.
pub fn ensure_dev_certificates(dir: &Path) -> Result<DevFiles, CertError> {
    let files = DevFiles::in_dir(dir);
    let _lock = lock(dir)?;
    if !ca_is_good(&files) {
        make_ca(&files)?;
    }
    if !leaf_is_good(&files) {
        let leaf = DevIssuer::load(&files.ca_pair())?.sign(&["localhost", "127.0.0.1", "::1"])?;
        set_aside(&files.key)?;
        set_aside(&files.cert)?;
        write(&files.key, &leaf.key.serialize_pem(), 0o600)?;
        write(&files.cert, &leaf.cert.pem(), 0o644)?;
        tracing::debug!(path = %files.cert.display(), "made a development certificate");
    }
    Ok(files)
}

/// Signs certificates for names under `localhost` as they are asked for.
///
/// A leaf for `*.localhost` would not do: curl, OpenSSL and Chromium take no wildcard directly
/// below a top-level name, and rustls refuses the whole certificate because of it.
pub struct DevIssuer {
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<HostName, Arc<Served>>>,
}

struct Leaf {
    cert: rcgen::Certificate,
    key: KeyPair,
}

impl DevIssuer {
    /// Reads the CA's certificate and key.
    ///
    /// # Errors
    /// When they cannot be read, or are no pair.
    pub fn load(ca: &PemPair) -> Result<Self, CertError> {
        load_pair(ca)?;
        let key = KeyPair::from_pem(&read_source(&ca.key)?)?;
        let chain = parse_certificates(&read_source(&ca.cert)?, &name_of(&ca.cert))?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&chain[0], key)?, leaves: Mutex::default() })
    }

    /// A certificate for this host; `None` unless it is one label below `localhost`.
    #[must_use]
    pub fn issue(&self, host: &HostName) -> Option<Arc<Served>> {
        let label = host.as_str().strip_suffix(".localhost")?;
        if label.contains('.') {
            return None;
        }
        let soon = OffsetDateTime::now_utc() + LEAF_MARGIN;
        if let Some(served) = self.leaves.lock().get(host).filter(|served| served.not_after > soon) {
            return Some(served.clone());
        }
        match self.serve(host) {
            Ok(served) => {
                let mut leaves = self.leaves.lock();
                if leaves.len() >= LEAVES_KEPT {
                    leaves.clear();
                }
                leaves.insert(host.clone(), served.clone());
                Some(served)
            }
            Err(error) => {
                tracing::error!(%host, %error, "cannot make a development certificate");
                None
            }
        }
    }

    fn serve(&self, host: &HostName) -> Result<Arc<Served>, CertError> {
        let leaf = self.sign(&[host.as_str()])?;
        let chain = vec![leaf.cert.der().clone()];
        let source = format!("the development certificate for `{host}`");
        let facts = facts(&chain[0], &source)?;
        let key = PrivatePkcs8KeyDer::from(leaf.key.serialize_der()).into();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| CertError::BadKey { source_name: source, detail: error.to_string() })?;
        Ok(Arc::new(facts.of(Arc::new(key))))
    }

    fn sign(&self, names: &[&str]) -> Result<Leaf, CertError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "oneport development certificate");
        (params.not_before, params.not_after) = life(LEAF_LIFE);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { cert, key })
    }
}

impl std::fmt::Debug for DevIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevIssuer").finish_non_exhaustive()
    }
}

fn life(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let start = OffsetDateTime::now_utc() - BACKDATED;
    (start, start + length)
}

/// Whether the CA is a pair that outlives any leaf made now.
fn ca_is_good(files: &DevFiles) -> bool {
    match load_pair(&files.ca_pair()) {
        Ok(served) => served.not_after > OffsetDateTime::now_utc() + LEAF_LIFE,
        Err(error) => {
            if files.ca_cert.exists() {
                tracing::warn!(%error, "the development CA cannot be used; making a new one, to be trusted anew");
            }
            false
        }
    }
}

/// Whether a client that trusts the CA would take the leaf, now and for the margin to come.
fn leaf_is_good(files: &DevFiles) -> bool {
    let Ok(served) = load_pair(&files.leaf_pair()) else { return false };
    let Ok(roots) = roots(files) else { return false };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() else {
        return false;
    };
    let (Some(leaf), Ok(later)) =
        (served.key.cert.first(), u64::try_from((OffsetDateTime::now_utc() + LEAF_MARGIN).unix_timestamp()))
    else {
        return false;
    };
    let later = UnixTime::since_unix_epoch(std::time::Duration::from_secs(later));
    ["localhost", "127.0.0.1", "::1"].iter().all(|name| {
        ServerName::try_from(*name)
            .is_ok_and(|name| verifier.verify_server_cert(leaf, &[], &name, &[], later).is_ok())
    })
}

fn roots(files: &DevFiles) -> Result<rustls::RootCertStore, CertError> {
    let source = PemSource::File(files.ca_cert.clone());
    let chain: Vec<CertificateDer<'static>> = parse_certificates(&read_source(&source)?, &name_of(&source))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(chain);
    Ok(roots)
}

fn make_ca(files: &DevFiles) -> Result<(), CertError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // Trust stores list authorities by this name: two of them must be told apart.
    let id: String = params.key_identifier(&key).iter().take(4).map(|octet| format!("{octet:02x}")).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("oneport development CA {id}"));
    (params.not_before, params.not_after) = life(CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName("localhost".to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(
                std::net::Ipv6Addr::LOCALHOST.into(),
                128,
            )),
        ],
        excluded_subtrees: Vec::new(),
    });
    let cert = params.self_signed(&key)?;
    set_aside(&files.ca_key)?;
    set_aside(&files.ca_cert)?;
    write(&files.ca_key, &key.serialize_pem(), 0o600)?;
    write(&files.ca_cert, &cert.pem(), 0o644)
}

/// Holds the folder until the value is dropped.
fn lock(dir: &Path) -> Result<fs::File, CertError> {
    let path = dir.join(".lock");
    let open = || {
        files::private_folder(dir)?;
        let file = files::lock_file(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|error| CertError::Unwritable { path: path.clone(), error })
}

fn set_aside(path: &Path) -> Result<(), CertError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".old");
    match fs::rename(path, aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CertError::Unwritable { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    files::replace(path, text, mode).map_err(|error| CertError::Unwritable { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::CertStore;
    use crate::config::Settings;

    fn snapshot(files: &DevFiles) -> Vec<Vec<u8>> {
        [&files.ca_cert, &files.ca_key, &files.cert, &files.key]
            .map(|path| fs::read(path).expect("made"))
            .to_vec()
    }

    #[cfg(unix)]
    #[test]
    fn made_once_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().expect("temporary folder");
        let dir = root.path().join("deep/dev");
        let files = ensure_dev_certificates(&dir).expect("made");
        let mode = |path: &Path| fs::metadata(path).expect("made").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&files.ca_key), mode(&files.key)), (0o700, 0o600, 0o600));
        let before = snapshot(&files);
        assert_eq!(ensure_dev_certificates(&dir).expect("kept"), files);
        assert_eq!(snapshot(&files), before);
    }

    #[test]
    fn broken_files_are_replaced_and_kept_aside() {
        let root = tempfile::tempdir().expect("temporary folder");
        let files = ensure_dev_certificates(root.path()).expect("made");
        let before = snapshot(&files);
        fs::write(&files.cert, "half").expect("writable");
        ensure_dev_certificates(root.path()).expect("made anew");
        let after = snapshot(&files);
        assert_eq!(before[..2], after[..2], "the CA must stay");
        assert_eq!(fs::read_to_string(root.path().join("localhost.pem.old")).expect("aside"), "half");

        fs::remove_file(&files.ca_key).expect("removable");
        ensure_dev_certificates(root.path()).expect("made anew");
        assert_eq!(fs::read(root.path().join("ca.pem.old")).expect("aside"), after[0]);
        assert!(ca_is_good(&files) && leaf_is_good(&files));
    }

    #[test]
    fn a_leaf_near_its_end_is_renewed() {
        let root = tempfile::tempdir().expect("temporary folder");
        let files = ensure_dev_certificates(root.path()).expect("made");
        let issuer = DevIssuer::load(&files.ca_pair()).expect("a pair");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("valid");
        params.not_after = OffsetDateTime::now_utc() + Duration::days(29);
        let key = KeyPair::generate().expect("key");
        fs::write(&files.cert, params.signed_by(&key, &issuer.issuer).expect("signed").pem())
            .expect("writable");
        fs::write(&files.key, key.serialize_pem()).expect("writable");
        ensure_dev_certificates(root.path()).expect("renewed");
        let left = load_pair(&files.leaf_pair()).expect("a pair").not_after - OffsetDateTime::now_utc();
        assert!(left > Duration::days(390), "{left}");
    }

    #[test]
    fn two_at_once_agree() {
        let root = tempfile::tempdir().expect("temporary folder");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| ensure_dev_certificates(root.path()).expect("made"));
            }
        });
        let files = DevFiles::in_dir(root.path());
        assert!(ca_is_good(&files) && leaf_is_good(&files));
        assert!(!root.path().join("ca.pem.old").exists(), "made twice");
    }

    #[test]
    fn names_under_localhost_get_their_own_leaf() {
        let root = tempfile::tempdir().expect("temporary folder");
        let files = ensure_dev_certificates(root.path()).expect("made");
        let mut settings = Settings::dev(8443, root.path());
        settings.tls.certificates = vec![files.leaf_pair().into()];
        settings.tls.dev_ca = Some(files.ca_pair());
        let store = CertStore::from_settings(&settings).expect("loads");
        let host = |text| HostName::parse(text).expect("valid");
        let served = store.select(Some(&host("web-abc.localhost"))).expect("made");
        assert_eq!(served.names.to_vec(), ["web-abc.localhost"]);
        let again = store.select(Some(&host("web-abc.localhost"))).expect("kept");
        assert!(Arc::ptr_eq(&served, &again));
        assert!(store.select(Some(&host("a.b.localhost"))).is_none());
        assert!(store.select(Some(&host("example.com"))).is_none());
        assert_eq!(store.select(Some(&host("localhost"))).expect("the file").names.len(), 3);
    }
}
