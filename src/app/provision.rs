//! Makes everything that the configuration names, or says what cannot be made.

use std::io;
use std::sync::Arc;

use crate::access::{
    Admission, AgentKeys, IssuerError, Issuers, KeysError, NetworksError, Seals, Sessions, SessionsError,
};
use crate::admin::AdminError;
use crate::certs::acme::{Acme, OnDemand, VaultError};
use crate::certs::{CertError, CertStore, Challenges, dns};
use crate::config::{PemSource, Settings, Shared};
use crate::edge::{Certificates, Edge};
use crate::http::{self, Http};
use crate::net::{BindError, Tasks};
use crate::observe::Metrics;
use crate::registry::Registry;
use crate::ssh::{Ssh, Trust, host_key};

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A certificate.
    #[error(transparent)]
    Certificates(#[from] CertError),
    /// Where ordered certificates are kept.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// What sets records in the DNS.
    #[error(transparent)]
    Dns(#[from] dns::DnsError),
    /// The agents' keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A list of networks.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// An issuer's key cannot be used.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// What logins need.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// The host key.
    #[error(transparent)]
    HostKey(#[from] host_key::HostKeyError),
    /// Where figures and health are served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// TLS itself.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The folder for what the gateway keeps.
    #[error("cannot make the folder `{path}`: {error}; set `state_dir` to one that can be written to")]
    StateDir {
        /// The folder.
        path: std::path::PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}

/// What was made.
pub struct Provisioned {
    /// Where connections go.
    pub edge: Arc<Edge>,
    /// The agents' keys, to be watched.
    pub keys: AgentKeys,
    /// Whose tokens are believed, to be watched.
    pub issuers: Issuers,
    /// Logins.
    pub sessions: Sessions,
    /// Who may come at all, whose lists are to be watched.
    pub admission: Admission,
    /// The names that agents offer.
    pub registry: Registry,
    /// The certificates.
    pub certs: CertStore,
    /// What orders certificates, to be started once the port is open.
    pub acme: Option<Acme>,
    /// The agents.
    pub ssh: Arc<Ssh>,
}

/// Makes everything but the listeners.
pub fn provision(
    settings: &Arc<Settings>,
    visitors: &Tasks,
    agents: &Tasks,
    orders: &Tasks,
    metrics: &Arc<Metrics>,
) -> Result<Provisioned, AppError> {
    let path = &settings.state_dir;
    std::fs::create_dir_all(path).map_err(|error| AppError::StateDir { path: path.clone(), error })?;
    let certs = CertStore::from_settings(settings)?;
    let keys = AgentKeys::open(settings.ssh.authorized_keys.as_deref(), settings.ssh.any_key)?;
    let host_key = host_key::load(&settings.ssh.host_key)?;
    warn_of_host_key(settings);
    let registry = Registry::new();
    let issuers = Issuers::open(&settings.access)?;
    let sessions = Sessions::open(&settings.access, &issuers, &settings.base.login_url(), path)?;
    sessions.watch(visitors);
    let shares = sessions.shares().clone();
    let admission = Admission::open(settings, metrics)?;
    let challenges = Challenges::default();
    let dns = dns::provider(settings)?;
    let acme = Acme::open(settings, &certs, &challenges, dns, orders)?;
    let http = Http::new(
        settings.clone(),
        registry.clone(),
        http::Doors { issuers: issuers.clone(), sessions: sessions.clone(), admission: admission.clone() },
        challenges.clone(),
        visitors.clone(),
        metrics.clone(),
    );
    let closing = visitors.drain_begun();
    let ssh = Ssh::new(
        settings.clone(),
        registry.clone(),
        Trust { host_key, keys: keys.clone(), shares, admission: admission.clone() },
        agents.clone(),
        closing,
        metrics.clone(),
    );
    let on_demand = acme.as_ref().map(|acme| OnDemand::new(acme, settings, &registry));
    let edge = Edge::new(
        settings.clone(),
        Certificates { store: certs.clone(), challenges, on_demand },
        http,
        ssh.clone(),
        visitors.clone(),
        agents.clone(),
        metrics.clone(),
    )?;
    Ok(Provisioned { edge, keys, issuers, sessions, admission, registry, certs, acme, ssh })
}

/// Logs what the start would warn of, and makes nothing. What the process itself may have is left out: a
/// service often has more than the shell that asks. Reads files: not for a busy task.
pub fn warn_as_at_start(settings: &Settings) {
    // What cannot be used is a fault, which has been said.
    let _ = CertStore::from_settings(settings);
    warn_of_host_key(settings);
    if let Ok(issuers) = Issuers::open(&settings.access) {
        issuers.warn();
    }
    Seals::warn(&settings.access);
}

fn warn_of_host_key(settings: &Settings) {
    if let PemSource::File(path) = &settings.ssh.host_key
        && let Some(shared) = Shared::at(path)
    {
        shared.warn("the SSH host key");
    }
}
