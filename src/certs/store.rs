//! The certificates that may be shown, by the name that the client asks for.
//!
//! Three layers: the operator's files, which win for the names that they hold; certificates that
//! were ordered; the development CA. Each is swapped whole, so that whoever is in a handshake goes
//! on with what they were given. One whose time is over is shown only where there is no other. A name
//! that none of them covers gets none, unless the operator named a certificate for just that.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{CertError, DevIssuer, given};
use crate::config::{Settings, Shared, TlsSettings};
use crate::name::{CertName, HostName};
use crate::net::Tasks;

/// A certificate that can be shown, and what is known of it.
#[derive(Debug)]
pub struct Served {
    /// The chain and its key, as rustls takes them.
    pub key: Arc<CertifiedKey>,
    /// DNS names (`*.` wildcards included) and IP addresses (IPv6 in brackets, as in `Host`) of
    /// the leaf.
    pub names: Arc<[String]>,
    /// Who signed the leaf, as its organisation or common name says; may be empty.
    pub issuer: String,
    /// When the leaf begins.
    pub not_before: OffsetDateTime,
    /// When the leaf ends.
    pub not_after: OffsetDateTime,
    /// The file of the key, if others can read it.
    pub shared_key: Option<Shared>,
}

impl Served {
    /// Whether clients refuse it because its time is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.not_after <= OffsetDateTime::now_utc()
    }
}

/// All certificates that the gateway may show. Clones share the contents.
#[derive(Clone, Debug, Default)]
pub struct CertStore(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    files: ArcSwap<Shelf>,
    /// Tells of changes to them.
    files_changed: watch::Sender<()>,
    ordered: ArcSwap<Ordered>,
    /// What `files` was read from, for whoever reads it anew.
    held: Mutex<given::Held>,
    dev: Option<DevIssuer>,
    /// Whose certificate is for clients that send no SNI, where no file is there for them.
    base: Option<HostName>,
    /// Whose certificate is shown where none covers the name.
    default: Option<HostName>,
}

/// Certificates that were ordered, and what each was ordered for.
#[derive(Clone, Debug, Default)]
struct Ordered {
    of: BTreeMap<CertName, Arc<Served>>,
    shelf: Shelf,
}

/// Certificates of one layer.
#[derive(Clone, Debug, Default)]
struct Shelf {
    all: Vec<Arc<Served>>,
    exact: HashMap<String, Vec<Arc<Served>>>,
    /// By what follows the `*.`.
    wildcard: HashMap<String, Vec<Arc<Served>>>,
}

impl CertStore {
    #[cfg(test)]
    fn of(all: Vec<Arc<Served>>) -> Self {
        let store = Self::default();
        store.replace_files(all);
        store
    }

    /// Reads what the settings name: the operator's certificates, of which the first is for
    /// clients that send no SNI, and of two with the same name the earlier is shown; the
    /// development CA; whose certificate stands in where none covers a name. Does not notice
    /// changes until [`CertStore::watch`] is called. Reads files: not for a busy task.
    ///
    /// # Errors
    /// For the first pair that cannot be used, a folder that holds none, and when the CA's files
    /// cannot be used.
    pub fn from_settings(settings: &Settings) -> Result<Self, CertError> {
        let tls = &settings.tls;
        let held = given::read(&tls.certificates)?;
        let store = Self(Arc::new(Inner {
            dev: tls.dev_ca.as_ref().map(DevIssuer::load).transpose()?,
            base: Some(settings.base.host.clone()),
            default: tls.default.clone(),
            ..Inner::default()
        }));
        store.replace_files(held.all());
        *store.0.held.lock() = held;
        Ok(store)
    }

    /// Reads the operator's certificates anew when they change, until draining begins.
    pub fn watch(&self, settings: &TlsSettings, tasks: &Tasks) {
        let held = std::mem::take(&mut *self.0.held.lock());
        given::watch(self.clone(), held, settings.certificates.clone(), tasks);
    }

    /// The certificate to show. The operator's come before those that were ordered, and in both
    /// an exact name before a wildcard; one that has ended comes after all that have not. Without SNI
    /// it is the operator's first, or that of the gateway's own name. `None` when no certificate
    /// covers the name: see [`CertStore::stand_in`].
    #[must_use]
    pub fn select(&self, sni: Option<&HostName>) -> Option<Arc<Served>> {
        let inner = &*self.0;
        match sni {
            Some(host) => inner.covering(host),
            None => {
                let files = inner.files.load();
                let base = || inner.covering(inner.base.as_ref()?);
                let lasting = files.all.iter().find(|served| !served.has_ended()).cloned();
                let lasting = lasting.or_else(|| base().filter(|served| !served.has_ended()));
                lasting.or_else(|| files.all.first().cloned()).or_else(base)
            }
        }
    }

    /// What is shown where no certificate covers the name, if the operator named one for that.
    #[must_use]
    pub fn stand_in(&self) -> Option<Arc<Served>> {
        self.0.covering(self.0.default.as_ref()?)
    }

    /// Every certificate: the operator's in their order, then those that were ordered.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Served>> {
        let inner = &*self.0;
        inner.files.load().all.iter().chain(&inner.ordered.load().shelf.all).cloned().collect()
    }

    /// The operator's certificate for a name (`*.` wildcards included), if one covers it; one that has
    /// ended only where no other does.
    #[must_use]
    pub fn file_for(&self, name: &CertName) -> Option<Arc<Served>> {
        let files = self.0.files.load();
        if name.is_wildcard() {
            return best(files.wildcard.get(name.host().as_str()).into_iter().flatten());
        }
        best(files.covering(name.host()))
    }

    /// Puts others in the place of all the operator's. Handshakes in flight are not disturbed.
    pub fn replace_files(&self, all: Vec<Arc<Served>>) {
        let mut shelf = Shelf::default();
        all.into_iter().for_each(|served| shelf.add(served));
        self.0.files.store(Arc::new(shelf));
        self.0.files_changed.send_replace(());
    }

    /// Hears of it when the operator's certificates are replaced.
    #[must_use]
    pub fn files_changed(&self) -> watch::Receiver<()> {
        self.0.files_changed.subscribe()
    }

    /// Puts in the certificate that was ordered for a name, in the place of the one before. Of two
    /// that show the same name, the one that was made later is shown.
    pub fn put(&self, name: &CertName, served: Arc<Served>) {
        self.change_ordered(|of| {
            of.insert(name.clone(), served.clone());
        });
    }

    /// Takes out the certificate that was ordered for a name.
    pub fn remove(&self, name: &CertName) {
        self.change_ordered(|of| {
            of.remove(name);
        });
    }

    fn change_ordered(&self, change: impl Fn(&mut BTreeMap<CertName, Arc<Served>>)) {
        self.0.ordered.rcu(|ordered| {
            let mut of = ordered.of.clone();
            change(&mut of);
            let mut latest_first: Vec<_> = of.values().cloned().collect();
            latest_first.sort_by_key(|served| std::cmp::Reverse(served.not_before));
            let mut shelf = Shelf::default();
            latest_first.into_iter().for_each(|served| shelf.add(served));
            Ordered { of, shelf }
        });
    }
}

impl Inner {
    fn covering(&self, host: &HostName) -> Option<Arc<Served>> {
        let (files, ordered) = (self.files.load(), self.ordered.load());
        let found = best(files.covering(host).chain(ordered.shelf.covering(host)));
        let made = || self.dev.as_ref()?.issue(host);
        match found {
            Some(found) if !found.has_ended() => Some(found),
            found => made().or(found),
        }
    }
}

impl Shelf {
    /// Of two with the same name, the earlier counts, unless it has ended.
    fn add(&mut self, served: Arc<Served>) {
        for name in served.names.iter() {
            let (map, key) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            map.entry(key.to_owned()).or_default().push(served.clone());
        }
        self.all.push(served);
    }

    /// Those for a host, the best first.
    fn covering(&self, host: &HostName) -> impl Iterator<Item = &Arc<Served>> {
        let parent = host.as_str().split_once('.').map(|(_, parent)| parent);
        let wildcard = parent.and_then(|parent| self.wildcard.get(parent));
        self.exact.get(host.as_str()).into_iter().chain(wildcard).flatten()
    }
}

/// The first that has not ended; where all have, the one that ended last.
fn best<'a>(all: impl Iterator<Item = &'a Arc<Served>>) -> Option<Arc<Served>> {
    let mut last: Option<&Arc<Served>> = None;
    for served in all {
        if !served.has_ended() {
            return Some(served.clone());
        }
        if last.is_none_or(|last| last.not_after < served.not_after) {
            last = Some(served);
        }
    }
    last.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::load_pair;
    use crate::config::{PemPair, PemSource};

    fn pair(names: &[&str]) -> PemPair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("valid names");
        PemPair {
            cert: PemSource::Inline(made.cert.pem()),
            key: PemSource::Inline(made.signing_key.serialize_pem()),
        }
    }

    fn served(names: &[&str]) -> Arc<Served> {
        Arc::new(load_pair(&pair(names)).expect("a pair"))
    }

    fn put(store: &CertStore, name: &str, served: Arc<Served>) {
        store.put(&CertName::parse(name).expect("valid"), served);
    }

    fn shown(store: &CertStore, sni: &str) -> Option<Arc<Served>> {
        store.select(Some(&HostName::parse(sni).expect("valid")))
    }

    #[test]
    fn exact_before_wildcard_and_no_guess() {
        let store = CertStore::of(vec![
            served(&["example.com", "*.example.com", "::1"]),
            served(&["special.example.com", "other.example"]),
        ]);
        let names = |sni: &str| shown(&store, sni).map(|served| served.names[0].clone());
        assert_eq!(names("example.com").as_deref(), Some("example.com"));
        assert_eq!(names("Web-abc.example.com").as_deref(), Some("example.com"));
        assert_eq!(names("special.example.com").as_deref(), Some("special.example.com"));
        assert_eq!(names("a.b.example.com"), None);
        assert_eq!(names("unknown.test"), None);
        assert_eq!(names("test"), None);
        let first = store.select(None).expect("the first");
        assert_eq!(first.names.to_vec(), ["example.com", "*.example.com", "[::1]"]);
        assert!(CertStore::default().select(None).is_none());
    }

    #[test]
    fn files_win_and_what_was_ordered_is_swapped() {
        let store = CertStore::of(vec![served(&["*.a.test"])]);
        let (one, two) = (served(&["x.a.test"]), served(&["b.test"]));
        put(&store, "x.a.test", one);
        put(&store, "b.test", two.clone());
        let file = shown(&store, "x.a.test").expect("the file's");
        assert_eq!(file.names.to_vec(), ["*.a.test"]);
        let renewed = served(&["b.test"]);
        put(&store, "b.test", renewed.clone());
        assert!(Arc::ptr_eq(&shown(&store, "b.test").expect("there"), &renewed));
        assert_eq!((store.all().len(), two.names.len()), (3, 1));
        store.remove(&CertName::parse("b.test").expect("valid"));
        assert!(shown(&store, "b.test").is_none());
        let is_held = |name: &str| store.file_for(&CertName::parse(name).expect("valid")).is_some();
        assert!(is_held("x.a.test") && is_held("*.a.test") && !is_held("a.test"));
        store.replace_files(Vec::new());
        assert_eq!(shown(&store, "x.a.test").expect("ordered").names.to_vec(), ["x.a.test"]);
    }

    #[test]
    fn the_later_of_two_is_shown_and_what_a_name_had_before_goes() {
        let store = CertStore::default();
        let dated = |names: &[&str], year| {
            let served = Arc::into_inner(served(names)).expect("one owner");
            let not_before = served.not_before.replace_year(year).expect("a year");
            Arc::new(Served { not_before, ..served })
        };
        let (old, new) = (dated(&["a.test", "b.test"], 2026), dated(&["b.test", "c.test"], 2027));
        for order in [[("a.test", &old), ("b.test", &new)], [("b.test", &new), ("a.test", &old)]] {
            order.into_iter().for_each(|(name, served)| put(&store, name, served.clone()));
            assert!(Arc::ptr_eq(&shown(&store, "b.test").expect("there"), &new));
            assert!(Arc::ptr_eq(&shown(&store, "a.test").expect("there"), &old));
        }
        put(&store, "b.test", dated(&["b.test"], 2028));
        assert!(shown(&store, "c.test").is_none(), "the authority showed one name less");
        assert_eq!(store.all().len(), 2);
    }

    fn ended(names: &[&str], year: i32) -> Arc<Served> {
        let served = Arc::into_inner(served(names)).expect("one owner");
        let not_after = served.not_before.replace_year(year).expect("a year");
        Arc::new(Served { not_after, ..served })
    }

    #[test]
    fn one_that_has_ended_is_shown_only_where_there_is_no_other() {
        let (old, older) = (ended(&["a.test"], 2021), ended(&["a.test"], 2020));
        let is = |store: &CertStore, sni: &str, wanted: &Arc<Served>| {
            assert!(Arc::ptr_eq(&shown(store, sni).expect("there"), wanted), "{sni}");
        };
        let store = CertStore::of(vec![older.clone(), old.clone()]);
        is(&store, "a.test", &old);
        assert!(Arc::ptr_eq(&store.select(None).expect("the first"), &older));
        // Of the operator's: one with the same name, and a wildcard for an exact one.
        let (fresh, wildcard) = (served(&["a.test"]), served(&["*.b.test"]));
        let store =
            CertStore::of(vec![older.clone(), fresh.clone(), ended(&["x.b.test"], 2020), wildcard.clone()]);
        is(&store, "a.test", &fresh);
        is(&store, "x.b.test", &wildcard);
        assert!(Arc::ptr_eq(&store.select(None).expect("the first that lasts"), &fresh));
        // One that was ordered, for the operator's, until that is new.
        let store = CertStore::of(vec![older.clone()]);
        put(&store, "a.test", fresh.clone());
        is(&store, "a.test", &fresh);
        let name = CertName::parse("a.test").expect("valid");
        assert!(store.file_for(&name).is_some_and(|file| file.has_ended()));
        let newer = served(&["a.test"]);
        store.replace_files(vec![older, newer.clone()]);
        is(&store, "a.test", &newer);
        assert!(store.file_for(&name).is_some_and(|file| !file.has_ended()));
    }

    #[tokio::test]
    async fn whoever_waits_hears_that_the_operators_are_replaced() {
        let store = CertStore::default();
        let mut changed = store.files_changed();
        assert!(!changed.has_changed().expect("open"));
        store.replace_files(Vec::new());
        changed.changed().await.expect("open");
    }

    #[test]
    fn a_certificate_can_be_named_for_all_other_names() {
        let mut settings = Settings::dev(8443, std::path::Path::new("certs/dev"));
        settings.base.host = HostName::parse("gw.test").expect("valid");
        settings.tls.certificates = vec![pair(&["a.test"]).into()];
        settings.tls.default = Some(HostName::parse("b.test").expect("valid"));
        let store = CertStore::from_settings(&settings).expect("valid pairs");
        assert!(store.stand_in().is_none(), "it is not there yet");
        put(&store, "b.test", served(&["b.test"]));
        put(&store, "gw.test", served(&["gw.test"]));
        assert!(shown(&store, "c.test").is_none());
        assert_eq!(store.stand_in().expect("the default").names[0], "b.test");
        assert_eq!(store.select(None).expect("the first").names[0], "a.test");
        store.replace_files(Vec::new());
        assert_eq!(store.select(None).expect("that of the base").names[0], "gw.test");
    }
}
