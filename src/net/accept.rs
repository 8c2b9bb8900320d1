//! The accept loop: an error never ends it, and a full house refuses before any work is done.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::bind::{INHERITED, prepare_socket};
use super::{ConnId, PeerAddr, Slot, Slots, Tasks};
use crate::observe::{Metrics, Reason};

/// First pause after an accept error that will last, such as no free file descriptor.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause after accept errors in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts until draining begins, and hands each connection with its slot to `serve`, which
/// must not block. A connection without a free slot is closed at once.
pub async fn accept_loop(
    listener: TcpListener,
    slots: Slots,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    mut serve: impl FnMut(TcpStream, PeerAddr, ConnId, Slot),
) {
    let drain = tasks.drain_begun();
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            () = drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = FIRST_PAUSE;
                metrics.net.accepted.one();
                let (peer, conn) = (PeerAddr(peer), ConnId::next());
                match slots.take(peer.ip()) {
                    Ok(slot) => {
                        if !INHERITED {
                            prepare_socket(&stream);
                        }
                        serve(stream, peer, conn, slot);
                    }
                    Err(full) => {
                        let reason = Reason::TooManyConnections;
                        metrics.net.refused.one(reason);
                        tracing::info!(%conn, %peer, %reason, detail = %full, "connection refused");
                    }
                }
            }
            Err(error) if is_about_one_connection(&error) => {
                tracing::debug!(%error, "a connection was gone before it was accepted");
            }
            Err(error) => {
                tracing::error!(%error, pause_ms = pause.as_millis(), "cannot accept; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
