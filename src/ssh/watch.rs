//! What ends a session from this side: its login takes too long, its key or its address may no longer
//! come, it is used up, or the gateway drains.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::session::Session;
use crate::observe::Reason;
use crate::registry::Holder as _;

/// How often a session's key is checked anew; a removed key is noticed at once, an expired one
/// within this.
const KEY_CHECK: Duration = Duration::from_secs(20);
/// Channels that a session may close before its agent does: the library keeps some 3.5 KiB of each
/// until the session ends, which makes 14 MiB.
const CLOSED_FIRST_MAX: usize = 4096;
/// From so many on, such a session ends as soon as nobody is being served.
const CLOSED_FIRST_MANY: usize = 3072;

/// Watches over a session as long as it runs.
pub(super) async fn watch_on(session: &Session, login: Instant) -> Infallible {
    watch(session, login).await;
    std::future::pending().await
}

/// Watches over a session: its login, its key, what it has used up, and the gateway's end.
async fn watch(session: &Session, login: Instant) {
    let drain: CancellationToken = session.shared.tasks.drain_begun();
    tokio::select! {
        () = session.authenticated.cancelled() => {}
        () = drain.cancelled() => return session.end(Reason::Draining),
        () = tokio::time::sleep_until(login) => return session.end(Reason::LoginTimeout),
    }
    let mut changes = session.shared.keys.changes();
    let mut lists = session.shared.admission.changes();
    let closing = &session.shared.closing;
    let mut told = false;
    loop {
        let allowed = session
            .identity()
            .is_some_and(|identity| session.shared.keys.check(&identity.key, session.peer.ip()).is_ok());
        if !allowed {
            return session.end(Reason::KeyRemoved);
        }
        if let Err(denial) = session.shared.admission.agent(session.peer.ip()) {
            tracing::info!(conn = %session.conn, rule = %denial.by, "agents may no longer come from there");
            return session.end(Reason::NetworkDenied);
        }
        tokio::select! {
            () = drain.cancelled() => return session.end(Reason::Draining),
            () = tokio::time::sleep(KEY_CHECK) => {}
            () = closing.cancelled(), if !told => {
                told = true;
                session.notice(format!("the gateway is shutting down ({})", Reason::Draining));
            }
            count = session.link.closed_first.one_more() => {
                let is_unused = session.channels_open() == 0;
                if count >= CLOSED_FIRST_MAX || (count >= CLOSED_FIRST_MANY && is_unused) {
                    return session.end(Reason::SessionUsedUp);
                }
            }
            // The sender lives as long as the gateway; without it, the clock is left.
            Ok(()) = changes.changed() => {}
            Ok(()) = lists.changed() => {}
        }
    }
}
