//! The certificates that may be shown, by the name that the client asks for.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use super::disk::name_of;
use super::{CertError, DevIssuer, load_pair};
use crate::config::{PemPair, TlsSettings};
use crate::name::HostName;

/// A certificate that can be shown, and what is known of it.
#[derive(Debug)]
pub struct Served {
    /// The chain and its key, as rustls takes them.
    pub key: Arc<CertifiedKey>,
    /// DNS names (`*.` wildcards included) and IP addresses (IPv6 in brackets, as in `Host`) of
    /// the leaf.
    pub names: Arc<[String]>,
    /// When the leaf ends.
    pub not_after: OffsetDateTime,
}

impl Served {
    /// Logs what will keep clients from accepting this certificate. Only a warning, because the
    /// rest of the gateway is better up than down.
    pub fn warn(&self, source_name: &str) {
        if self.not_after <= OffsetDateTime::now_utc() {
            tracing::warn!(
                certificate = source_name,
                not_after = %self.not_after,
                "a certificate has ended; clients will refuse it until it is renewed"
            );
        }
        if self.names.is_empty() {
            tracing::warn!(
                certificate = source_name,
                "a certificate has no subject alternative name; clients will refuse it"
            );
        }
    }
}

/// All certificates that the gateway may show. Clones share the contents.
#[derive(Clone, Debug, Default)]
pub struct CertStore(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    all: Vec<Arc<Served>>,
    first: Option<Arc<Served>>,
    exact: HashMap<String, Arc<Served>>,
    /// By what follows the `*.`.
    wildcard: HashMap<String, Arc<Served>>,
    dev: Option<DevIssuer>,
}

impl CertStore {
    /// Reads the operator's pairs. The first is for clients that send no SNI; of two with the
    /// same name, the earlier is shown. Reads files: not for a busy task.
    ///
    /// # Errors
    /// For the first pair that cannot be used.
    pub fn load(pairs: &[PemPair]) -> Result<Self, CertError> {
        Ok(Self(Arc::new(Inner::of(pairs)?)))
    }

    /// As [`CertStore::load`], with the development CA's issuer if there is one.
    ///
    /// # Errors
    /// As [`CertStore::load`], and when the CA's files cannot be used.
    pub fn from_settings(tls: &TlsSettings) -> Result<Self, CertError> {
        let mut inner = Inner::of(&tls.certificates)?;
        inner.dev = tls.dev_ca.as_ref().map(DevIssuer::load).transpose()?;
        Ok(Self(Arc::new(inner)))
    }

    /// The certificate to show: exact name first, then wildcard; without SNI the first of all.
    /// `None` when no certificate covers the name.
    #[must_use]
    pub fn select(&self, sni: Option<&HostName>) -> Option<Arc<Served>> {
        let inner = &self.0;
        let Some(host) = sni else { return inner.first.clone() };
        if let Some(served) = inner.exact.get(host.as_str()) {
            return Some(served.clone());
        }
        if let Some(served) = inner.dev.as_ref().and_then(|dev| dev.issue(host)) {
            return Some(served);
        }
        let (_, parent) = host.as_str().split_once('.')?;
        inner.wildcard.get(parent).cloned()
    }
}

impl CertStore {
    /// The operator's certificates, in their order.
    #[must_use]
    pub fn all(&self) -> &[Arc<Served>] {
        &self.0.all
    }
}

impl Inner {
    fn of(pairs: &[PemPair]) -> Result<Self, CertError> {
        let mut inner = Self::default();
        for pair in pairs {
            let served = Arc::new(load_pair(pair)?);
            served.warn(&name_of(&pair.cert));
            for name in served.names.iter() {
                let (map, key) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut inner.wildcard, parent),
                    None => (&mut inner.exact, name.as_str()),
                };
                map.entry(key.to_owned()).or_insert_with(|| served.clone());
            }
            inner.first.get_or_insert_with(|| served.clone());
            inner.all.push(served);
        }
        Ok(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PemSource;

    fn pair(names: &[&str]) -> PemPair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("valid names");
        PemPair {
            cert: PemSource::Inline(made.cert.pem()),
            key: PemSource::Inline(made.signing_key.serialize_pem()),
        }
    }

    #[test]
    fn exact_before_wildcard_and_no_guess() {
        let store = CertStore::load(&[
            pair(&["example.com", "*.example.com", "::1"]),
            pair(&["special.example.com", "other.example"]),
        ])
        .expect("valid pairs");
        let names = |sni: &str| {
            let host = HostName::parse(sni).expect("valid");
            store.select(Some(&host)).map(|served| served.names[0].clone())
        };
        assert_eq!(names("example.com").as_deref(), Some("example.com"));
        assert_eq!(names("Web-abc.example.com").as_deref(), Some("example.com"));
        assert_eq!(names("special.example.com").as_deref(), Some("special.example.com"));
        assert_eq!(names("a.b.example.com"), None);
        assert_eq!(names("unknown.test"), None);
        assert_eq!(names("test"), None);
        let shown = store.select(None).expect("the first");
        assert_eq!(shown.names.to_vec(), ["example.com", "*.example.com", "[::1]"]);
        assert!(CertStore::load(&[]).expect("nothing to read").select(None).is_none());
    }
}
