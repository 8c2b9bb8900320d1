//! Visitors' requests: one connection served, each request in visible order.

mod guard;
mod head;

use std::sync::Arc;

use crate::config::Settings;
use crate::net::{ConnId, Duplex, PeerAddr, Tasks};
use crate::observe::Reason;
use crate::registry::Registry;

/// What is known of a connection by the time that it carries HTTP.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Names it in records.
    pub id: ConnId,
    /// The other end.
    pub peer: PeerAddr,
    /// The port that it came in on.
    pub local_port: u16,
    /// `None` on a plain listener.
    pub tls: Option<TlsFacts>,
}

/// What the TLS handshake settled.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// The names in the certificate that was shown, `*.` wildcards included.
    pub names: Arc<[String]>,
    /// Whether ALPN chose `h2`.
    pub h2: bool,
}

/// Serves visitors.
#[derive(Debug)]
pub struct Http {
    settings: Arc<Settings>,
    registry: Registry,
    tasks: Tasks,
}

impl Http {
    /// Prepares to serve.
    #[must_use]
    pub fn new(settings: Arc<Settings>, registry: Registry, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { settings, registry, tasks })
    }

    /// Serves one connection to its end, which is the value.
    pub async fn serve(self: Arc<Self>, io: impl Duplex + 'static, conn: Connection) -> Reason {
        let _ = (io, conn, &self.settings, &self.registry, &self.tasks);
        Reason::Finished
    }

    /// Answers a plain HTTP request that came to the TLS port: where HTTPS is, in words.
    pub async fn serve_plain_on_tls_port(
        self: Arc<Self>,
        io: impl Duplex + 'static,
        conn: Connection,
    ) -> Reason {
        let _ = (io, conn);
        Reason::PlainHttp
    }
}
