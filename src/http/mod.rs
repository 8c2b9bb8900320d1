//! Visitors' requests: one connection served, each request in visible order.

mod addressee;
mod admit;
mod allow;
mod bell;
mod below;
mod body;
mod callback;
mod challenge;
mod coding;
mod connection;
mod cork;
mod credentials;
mod denial;
mod exchange;
mod forward;
mod guard;
mod head;
mod headers;
mod inject;
mod isolate;
mod link;
mod login;
mod logout;
mod origin;
mod own;
mod patience;
mod plain;
mod pool;
mod preflight;
mod provider;
mod record;
mod respond;
mod rewrite;
mod route;
mod service;
mod session;
mod stall;
mod stay;
mod streams;
mod upgrade;
mod wanted;

use std::sync::Arc;

use pool::Pool;

use crate::access::{Admission, Issuers, Sessions};
use crate::certs::Challenges;
use crate::config::Settings;
use crate::net::{ConnId, Duplex, PeerAddr, Tasks};
use crate::observe::{Metrics, Reason};
use crate::registry::{Registry, Routes};

/// Who may visit.
#[derive(Clone, Debug)]
pub struct Doors {
    /// By their tokens.
    pub issuers: Issuers,
    /// By their logins.
    pub sessions: Sessions,
    /// By where they come from, and how often.
    pub admission: Admission,
}

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
    /// Why another certificate was shown than the one asked for, which there is not.
    pub missing: Option<Arc<str>>,
}

/// Serves visitors.
#[derive(Debug)]
pub struct Http {
    settings: Arc<Settings>,
    registry: Registry,
    issuers: Issuers,
    sessions: Sessions,
    admission: Admission,
    routes: Routes,
    challenges: Challenges,
    tasks: Tasks,
    pool: Pool,
    metrics: Arc<Metrics>,
}

impl Http {
    /// Prepares to serve.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        registry: Registry,
        doors: Doors,
        challenges: Challenges,
        tasks: Tasks,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let kept = &settings.http;
        let pool =
            Pool::new(tasks.clone(), metrics.clone(), kept.upstream_idle_max, kept.upstream_idle_timeout);
        let Doors { issuers, sessions, admission } = doors;
        let routes = Routes::of(&settings.routes, admission.routes(), kept.upstream_max);
        Arc::new(Self {
            settings,
            registry,
            issuers,
            sessions,
            admission,
            routes,
            challenges,
            tasks,
            pool,
            metrics,
        })
    }

    /// Who may come at all, to whatever is served beside HTTP too.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Serves one connection to its end, which is the value. HTTP/2 when ALPN chose it, else
    /// HTTP/1.1; includes what follows a protocol switch. Each request gets its own record; that
    /// of the connection is the caller's.
    ///
    /// When draining begins, requests that run are finished, and the connection is closed. Not
    /// cancel safe: dropping the future ends the connection at once.
    pub async fn serve(self: Arc<Self>, io: impl Duplex + 'static, conn: Connection) -> Reason {
        connection::serve(self, io, conn, false).await
    }

    /// Answers a plain HTTP request that came to the TLS port: where HTTPS is, in words. Over
    /// within the handshake's deadline, counted from the call; one request only.
    pub async fn serve_plain_on_tls_port(
        self: Arc<Self>,
        io: impl Duplex + 'static,
        conn: Connection,
    ) -> Reason {
        let limit = self.settings.limits.handshake_timeout;
        match tokio::time::timeout(limit, connection::serve(self, io, conn, true)).await {
            Ok(_) => Reason::PlainHttp,
            Err(_) => Reason::HandshakeTimeout,
        }
    }
}

#[cfg(test)]
mod tests;
