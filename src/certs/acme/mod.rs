//! Certificates that are ordered and renewed (ACME, RFC 8555), each name by itself: what fails for
//! one never holds up another.
//!
//! `keeper` decides when a name's certificate is due, `attempt` asks one authority after the other
//! and proves the name in one way after the other, `order` carries out a single order, `vault` keeps
//! what was got. Refuses to order what the operator's own files cover.

/// Calls again when an authority did not take the nonce, as often as that may be mere chance: the
/// library does so three times only (RFC 8555, section 6.5).
macro_rules! persist {
    ($call:expr) => {{
        let mut left = 12;
        loop {
            match $call.await {
                Err(error) if left > 0 && $crate::certs::acme::is_bad_nonce(&error) => left -= 1,
                done => break done,
            }
        }
    }};
}

mod account;
mod attempt;
mod check;
mod client;
mod csr;
mod door;
mod fault;
mod folders;
mod keeper;
mod known;
mod last;
mod left;
mod mark;
mod notes;
mod on_demand;
mod order;
mod overview;
mod places;
mod probe;
mod records;
mod requests;
mod times;
mod turns;
mod vault;
mod window;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

pub use check::check;
pub use fault::{Fault, FaultKind};
pub use on_demand::{NotNow, OnDemand};
pub use overview::Ordered;
pub use vault::{About, FaultNote, Kept, Status, Vault, VaultError, Window};

use super::dns::DnsProvider;
use super::{CertStore, Challenges, Served};
use crate::config::{AcmeSettings, OnDemandSettings, Settings};
use crate::name::CertName;
use crate::net::Tasks;
use door::Door;
use keeper::{Line, Wanting};
use order::Answers;
use places::Places;
use turns::Turns;
use vault::Lock;

/// How long another process may hold what is needed here.
const LOCKED: Duration = Duration::from_secs(5 * 60);
/// Pause between two looks whether it still does.
const LOCK_PAUSE: Duration = Duration::from_millis(250);

/// Keeps certificates for names: orders them, and renews them. Clones share one.
#[derive(Clone, Debug)]
pub struct Acme(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Arc<Settings>,
    acme: AcmeSettings,
    vault: Vault,
    store: CertStore,
    answers: Answers,
    tasks: Tasks,
    turns: Turns,
    /// The directories, in their order.
    doors: Vec<Door>,
    lines: Mutex<HashMap<CertName, Arc<Line>>>,
}

impl Acme {
    /// Opens the vault, and puts what is there for the configured names into the store. `None` when
    /// nothing is to be ordered. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When the vault cannot be made.
    pub fn open(
        settings: &Arc<Settings>,
        store: &CertStore,
        challenges: &Challenges,
        dns: Option<Arc<dyn DnsProvider>>,
        tasks: &Tasks,
    ) -> Result<Option<Self>, VaultError> {
        let Some(acme) = settings.acme.clone() else { return Ok(None) };
        let vault = Vault::open(&settings.state_dir)?;
        for name in &acme.names {
            match vault.load(name) {
                Ok(Some(kept)) => {
                    kept.served.warn(&format!("of `{name}`"));
                    store.put(name, kept.served);
                }
                Ok(None) => {}
                // It is tried again, and told of, by whoever keeps it.
                Err(error) => tracing::warn!(%name, %error, "starting without a certificate"),
            }
        }
        Ok(Some(Self(Arc::new(Inner {
            settings: settings.clone(),
            vault,
            store: store.clone(),
            answers: Answers { challenges: challenges.clone(), dns },
            tasks: tasks.clone(),
            turns: Turns::default(),
            doors: acme.directories.iter().map(|_| Door::default()).collect(),
            lines: Mutex::default(),
            acme,
        }))))
    }

    /// Begins to keep certificates for the configured names, and to do what is requested, until the tasks are cut.
    pub fn start(&self) {
        for name in &self.0.acme.names {
            self.keep(name);
        }
        self.spawn("requests to renew", self.clone().follow_requests());
        if let Some(dns) = self.0.answers.dns.clone() {
            left::follow(&self.0.tasks, &self.0.vault, dns, self.0.acme.names.clone());
        }
    }

    /// Begins to keep a certificate for a name, unless that is done already. One that was ordered
    /// before is shown as soon as it is read.
    pub fn keep(&self, name: &CertName) {
        self.line(name, None);
    }

    /// Does as [`Acme::keep`], and gives up when nobody wants the certificate any more at the time
    /// that it would be ordered or renewed.
    fn keep_while(&self, name: &CertName, wanted: Box<dyn Wanting>) {
        self.line(name, Some(wanted));
    }

    /// Whether a certificate for a name is being kept.
    fn keeps(&self, name: &CertName) -> bool {
        self.0.lines.lock().contains_key(name)
    }

    /// What is to be ordered, and how.
    fn settings(&self) -> &AcmeSettings {
        &self.0.acme
    }

    /// How many orders on demand there may be. Reads a file: not for a busy task.
    fn places(&self, bounds: OnDemandSettings) -> Places {
        Places::open(bounds, &self.0.vault, &self.0.tasks)
    }

    fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(what, task);
    }

    /// A certificate for a name: the one that is there, or else the one that is then ordered.
    /// However many ask, there is one order, which may take minutes: the deadline is the caller's.
    /// Cancel safe: the order goes on.
    ///
    /// # Errors
    /// Why the attempt failed, or the last one did, when no other is due yet.
    pub async fn obtain(&self, name: &CertName) -> Result<Arc<Served>, FaultNote> {
        self.obtain_while(name, None).await
    }

    async fn obtain_while(
        &self,
        name: &CertName,
        wanted: Option<Box<dyn Wanting>>,
    ) -> Result<Arc<Served>, FaultNote> {
        // One that only stands in for names without a certificate is none, and one that has ended.
        let covers = |served: &Arc<Served>| {
            !served.has_ended() && served.names.iter().any(|shown| name.host().is_covered_by(shown))
        };
        if !name.is_wildcard()
            && let Some(served) = self.0.store.select(Some(name.host())).filter(covers)
        {
            return Ok(served);
        }
        let mut state = self.line(name, wanted).state.subscribe();
        let known = state.wait_for(|state| state.served.is_some() || state.fault.is_some()).await;
        // The line lives as long as this.
        let state = known.map(|state| state.clone()).unwrap_or_default();
        state.served.ok_or_else(|| {
            state.fault.unwrap_or_else(|| FaultNote {
                at: time::OffsetDateTime::now_utc(),
                word: FaultKind::Local.word().to_owned(),
                text: "the gateway is ending; ask again when it is back".to_owned(),
            })
        })
    }

    /// Renews the certificate of a name now, whatever its age, and whatever failed before.
    pub fn renew(&self, name: &CertName) {
        self.0.doors.iter().for_each(Door::open);
        self.line(name, None).renew();
    }

    /// What is kept on disk.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.0.vault
    }

    fn line(&self, name: &CertName, wanted: Option<Box<dyn Wanting>>) -> Arc<Line> {
        let mut lines = self.0.lines.lock();
        if let Some(line) = lines.get(name) {
            return line.clone();
        }
        let line = Arc::new(Line::new(name.clone(), wanted));
        lines.insert(name.clone(), line.clone());
        let (inner, kept) = (self.0.clone(), line.clone());
        self.0.tasks.spawn("certificate", async move { inner.keep(&kept).await });
        line
    }
}

/// Whether the roots that are named for directories can be used: a sentence for each that cannot.
/// Reads files: not for a busy task.
#[must_use]
pub fn faulty_roots(acme: &AcmeSettings) -> Vec<String> {
    let roots = acme.directories.iter().filter_map(|directory| directory.root.as_deref());
    roots.filter_map(|root| client::fetch_with(Some(root)).err()).collect()
}

/// Does what waits for the disk where nobody waits for it.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Fault::new(FaultKind::Local, "the gateway is ending; it goes on after the next start"))
}

/// Takes what another order, or another process, may hold; `None` when that lasts for too long.
async fn wait_for_lock(
    take: impl Fn() -> Result<Option<Lock>, VaultError> + Clone + Send + 'static,
) -> Result<Option<Lock>, Fault> {
    let end = Instant::now() + LOCKED;
    loop {
        let taken = off_thread(take.clone()).await??;
        if taken.is_some() || Instant::now() >= end {
            return Ok(taken);
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

fn is_bad_nonce(error: &instant_acme::Error) -> bool {
    matches!(error, instant_acme::Error::Api(problem)
        if problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:badNonce"))
}

/// Tells texts apart in names of files and in notes: the first 64 bits of SHA-256, in hex.
fn short_hash(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().take(8).map(|octet| format!("{octet:02x}")).collect()
}
