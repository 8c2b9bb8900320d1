//! How the gateway is, for those who run it: figures, health and status, on a listener of its own.
//!
//! Nobody is asked who they are, so only this machine gets in: a loopback address, or a unix
//! socket for this user alone. A browser that was led here by another name is turned away
//! (`answer`). Whoever asks costs little: few connections at once, one request each, a small
//! head, and an end to every wait. Refuses to change anything: it only tells.

mod answer;
mod listener;
mod status;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::certs::CertStore;
use crate::certs::acme::Vault;
use crate::config::Settings;
use crate::net::{ByteStream, Slots, Tasks};
use crate::observe::{Metrics, Now};
use crate::registry::Registry;
use crate::ssh::Ssh;
pub use listener::{AdminError, Listener, SocketFile};

/// Connections at once.
const CONNECTIONS: usize = 16;
/// Time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a connection, from accept until the answer was taken.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Octets of a request's head.
const HEAD_MAX: usize = 16 * 1024;
/// Header fields of a request.
const FIELDS_MAX: usize = 64;

/// What is told of.
pub struct Sources {
    /// The configuration.
    pub settings: Arc<Settings>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Places for connections.
    pub slots: Slots,
    /// The tunnels.
    pub registry: Registry,
    /// The certificates that are shown.
    pub certs: CertStore,
    /// Those that are ordered.
    pub vault: Option<Vault>,
    /// The agents.
    pub ssh: Arc<Ssh>,
    /// Cancelled when no new connection is taken any more.
    pub draining: CancellationToken,
}

/// Knows where to ask for everything that is told.
pub struct Admin {
    of: Sources,
    started: SystemTime,
}

impl Admin {
    /// Prepares to tell.
    #[must_use]
    pub fn new(of: Sources) -> Arc<Self> {
        Arc::new(Self { of, started: SystemTime::now() })
    }

    /// Answers whoever comes, until `tasks` are cut.
    pub fn serve(self: Arc<Self>, listener: Listener, tasks: &Tasks) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let owner = tasks.clone();
        tasks.spawn("admin listener", async move {
            loop {
                let stream = listener.accept().await;
                // Nobody waits for a slot: whoever holds them all must not hold this as well.
                let Ok(slot) = slots.clone().try_acquire_owned() else {
                    tracing::debug!("all admin connections are taken; closing one");
                    continue;
                };
                owner.spawn("admin connection", self.clone().talk(stream, listener.is_open_to_names(), slot));
            }
        });
    }

    /// Answers one request. `names`: whether a browser could have been led here by a name.
    async fn talk(self: Arc<Self>, stream: ByteStream, names: bool, slot: OwnedSemaphorePermit) {
        let service = service_fn(move |request| {
            let admin = self.clone();
            async move { Ok::<_, std::convert::Infallible>(admin.answer(&request, names).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_MAX)
            .max_headers(FIELDS_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended with an error"),
            Err(_) => tracing::debug!("an admin connection took too long"),
        }
        drop(slot);
    }

    /// Figures that are read off now.
    fn now(&self) -> Now {
        let certificates = self.of.certs.all();
        let ends = certificates.iter().map(|served| served.not_after.unix_timestamp());
        Now {
            started: Some(self.started),
            connections: self.of.slots.taken() as u64,
            connections_max: self.of.slots.limits().0 as u64,
            certificate_end: ends.min(),
            tunnels: self.of.registry.count() as u64,
            ssh: self.of.ssh.now(),
        }
    }
}
