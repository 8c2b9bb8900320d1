//! The composition root: provision → run → drain. Nothing else knows all the rooms.

mod descriptors;
mod drain;
mod provision;
mod reload;
mod validate;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use provision::{AppError, warn_as_at_start};
pub use validate::{Looked, validate};

use crate::admin::{Admin, Listener, Sources};
use crate::config::{Reading, Settings, Source};
use crate::edge::Edge;
use crate::net::{BindError, Slots, Tasks, accept_loop, bind};
use crate::observe::Metrics;
use provision::Provisioned;
use reload::Reload;

/// The addresses that were bound; ports are the real ones where 0 was asked for.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// The single port.
    pub tls: Vec<SocketAddr>,
    /// Plain HTTP.
    pub plain_http: Vec<SocketAddr>,
    /// Plain SSH.
    pub plain_ssh: Vec<SocketAddr>,
}

/// Runs the gateway until a signal ends it (SIGTERM or SIGINT), draining first. `source` is where the
/// settings come from, with how they were read, where they are to be read again. `ready` is called once everything is bound.
///
/// # Errors
/// When something that the configuration names cannot be used, or an address not be bound.
pub async fn run(
    settings: Settings,
    source: Option<(Source, Reading)>,
    ready: impl FnOnce(&Bound),
) -> Result<(), AppError> {
    let signals = drain::Signals::install()?;
    let to_services = settings.routes.len().saturating_mul(settings.http.upstream_max);
    let connections = descriptors::slots(settings.limits.connections, to_services);
    let slots = Slots::new(connections, settings.limits.connections_per_address);
    let (visitors, agents) = (Tasks::new(), Tasks::new());
    let (settings, metrics) = (Arc::new(settings), Arc::<Metrics>::default());
    // Cut when draining begins: an order goes on where it was after the next start.
    let orders = Tasks::new();
    let made = provision::provision(&settings, &visitors, &agents, &orders, &metrics)?;
    let Provisioned { edge, keys, issuers, sessions, admission, registry, certs, acme, ssh } = made;
    // Goes on while the gateway drains; the socket's file goes when this function returns.
    let admin_tasks = Tasks::new();
    let draining = visitors.drain_begun();
    certs.watch(&settings.tls, &visitors);
    let vault = acme.as_ref().map(|acme| acme.vault().clone());
    let admin = Admin::new(Sources {
        settings: settings.clone(),
        metrics: metrics.clone(),
        slots: slots.clone(),
        registry,
        certs,
        vault,
        ssh,
        draining,
    });
    let (admin_listener, _socket) = settings.admin.as_ref().map(Listener::bind).transpose()?.unzip();
    let bound = listen(&settings, &edge, &slots, &metrics, &visitors)?;
    if let Some(listener) = admin_listener {
        tracing::info!(what = "admin", address = %listener.place(), "listening");
        admin.serve(listener, &admin_tasks);
    }
    keys.watch(&agents);
    issuers.watch(&agents);
    admission.watch(&agents);
    if let Some((source, reading)) = source {
        Reload::new(source, &admission, &issuers, &sessions).watch(reading, &agents);
    }
    if let Some(acme) = acme {
        acme.start();
    }
    ready(&bound);
    drain::until_stopped(signals, &visitors, &agents, &orders, settings.drain_timeout).await;
    admin_tasks.cut();
    Ok(())
}

#[derive(Clone, Copy)]
enum What {
    Tls,
    PlainHttp,
    PlainSsh,
}

impl What {
    const fn word(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::PlainHttp => "plain-http",
            Self::PlainSsh => "plain-ssh",
        }
    }
}

/// Binds everything before anything is accepted.
fn listen(
    settings: &Settings,
    edge: &Arc<Edge>,
    slots: &Slots,
    metrics: &Arc<Metrics>,
    visitors: &Tasks,
) -> Result<Bound, AppError> {
    let wanted = settings
        .listen
        .iter()
        .map(|address| (What::Tls, *address))
        .chain(settings.plain_http.iter().map(|address| (What::PlainHttp, *address)))
        .chain(settings.plain_ssh.iter().map(|address| (What::PlainSsh, *address)));
    let mut listeners = Vec::new();
    let mut bound = Bound::default();
    for (what, mut address) in wanted {
        // With port 0, all addresses of one kind share the port that the first one gets.
        let list = match what {
            What::Tls => &mut bound.tls,
            What::PlainHttp => &mut bound.plain_http,
            What::PlainSsh => &mut bound.plain_ssh,
        };
        if let (0, Some(first)) = (address.port(), list.first()) {
            address.set_port(first.port());
        }
        let listener = match bind(address) {
            Ok(listener) => listener,
            // Lists such as `0.0.0.0` and `[::]` are written for machines with and without IPv6.
            Err(error @ BindError::NoIpv6(_)) if has_ipv4(settings, what) => {
                tracing::warn!(%error, "going on without");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let real = listener.local_addr().unwrap_or(address);
        list.push(real);
        listeners.push((what, listener, real));
    }
    for (what, listener, address) in listeners {
        tracing::info!(what = what.word(), %address, "listening");
        let accepting = Accepting { edge: edge.clone(), slots: slots.clone(), metrics: metrics.clone() };
        accepting.start(what, listener, address.port(), visitors);
    }
    Ok(bound)
}

fn has_ipv4(settings: &Settings, what: What) -> bool {
    let list = match what {
        What::Tls => &settings.listen,
        What::PlainHttp => &settings.plain_http,
        What::PlainSsh => &settings.plain_ssh,
    };
    list.iter().any(SocketAddr::is_ipv4)
}

/// What every listener needs.
struct Accepting {
    edge: Arc<Edge>,
    slots: Slots,
    metrics: Arc<Metrics>,
}

impl Accepting {
    fn start(self, what: What, listener: TcpListener, port: u16, visitors: &Tasks) {
        let Self { edge, slots, metrics } = self;
        let accepting = accept_loop(
            listener,
            slots,
            visitors.clone(),
            metrics,
            move |stream, peer, id, slot| match what {
                _ if !edge.admits(peer, id) => {}
                What::Tls => edge.serve_tls(stream, peer, id, slot, port),
                What::PlainHttp => edge.serve_plain_http(stream, peer, id, slot, port),
                What::PlainSsh => edge.serve_plain_ssh(stream, peer, id, slot),
            },
        );
        visitors.spawn("listener", accepting);
    }
}
