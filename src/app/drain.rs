//! From the signal to stop until nothing runs.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::AppError;
use crate::config::watch::Hangups;
use crate::net::Tasks;

/// How long agents have to hear that the gateway ends, once no visitor is left.
const AGENTS_LEAVE: Duration = Duration::from_secs(3);

/// The signals that end the gateway, and the one that does not.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangups: Hangups,
}

impl Signals {
    /// Takes the signals over.
    pub fn install() -> Result<Self, AppError> {
        let take = |kind| signal(kind).map_err(AppError::Signals);
        let (terminate, interrupt) = (take(SignalKind::terminate())?, take(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangups: Hangups::listen() })
    }

    /// The next signal to end. SIGHUP is only said: whoever read something listens for it as well.
    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                () = self.hangups.next() => {
                    tracing::info!("SIGHUP: reading anew the configuration and what it names: keys, certificates, issuers, lists of networks");
                }
            }
        }
    }
}

/// Waits for a signal, then drains: no new connection, what runs goes on for at most `timeout`.
/// Visitors go first, because agents carry their bytes. Orders are cut at once: no authority that comes
/// to look would be let in, and that would be held against the name. A second signal cuts all.
pub async fn until_stopped(
    mut signals: Signals,
    visitors: &Tasks,
    agents: &Tasks,
    orders: &Tasks,
    timeout: Duration,
) {
    let name = signals.next().await;
    tracing::info!(
        signal = name,
        timeout_s = timeout.as_secs_f64(),
        visitors_tasks = visitors.running(),
        agents_tasks = agents.running(),
        "draining; a second signal cuts at once"
    );
    orders.cut();
    visitors.begin_drain();
    let drained = async {
        if tokio::time::timeout(timeout, visitors.all_ended()).await.is_err() {
            tracing::info!(tasks = visitors.running(), "drain time is over; cutting what is left");
            visitors.cut();
        }
        agents.begin_drain();
        let _ = tokio::time::timeout(AGENTS_LEAVE, agents.all_ended()).await;
    };
    tokio::select! {
        () = drained => tracing::info!("drained"),
        name = signals.next() => tracing::info!(signal = name, "cut"),
    }
    visitors.cut();
    agents.cut();
}
