//! The end of a channel that nobody uses any more: the peer is to close it first.
//!
//! Closing first costs the library memory until the session ends, and a session that has cost too
//! much of it has to end. So the peer is told that no more is coming, and has some time to close;
//! what it goes on sending meanwhile is thrown away. A session that has used up a part of what it
//! may cost gives its peer much more time, so that visitors who leave in the middle of answers
//! do not end it soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::transport::Link;
use crate::observe::Metrics;
use crate::registry::Open;

/// Channels that a session may close first before its peer is given more time.
const FREELY: usize = 1024;
/// How many times as long it has then.
const LONGER: u32 = 120;
/// Octets that may still arrive on such a channel before it is closed from this side: more than
/// the peer may send at the largest window, because closing first costs the library memory; and
/// not many more, because they take up the agent's uplink for nobody.
const DISCARD: usize = 4 << 20;
/// The same when there is more time.
const DISCARD_MORE: usize = 64 << 20;
/// How long nothing has to arrive on a channel that was closed from this side.
const QUIET: Duration = Duration::from_millis(250);

/// The channels of a session that this side has closed before the peer did.
#[derive(Debug, Default)]
pub struct ClosedFirst {
    all: AtomicUsize,
    of_visitors: AtomicUsize,
    one_more: Notify,
}

impl ClosedFirst {
    /// One more.
    pub fn note(&self) {
        self.all.fetch_add(1, Ordering::Relaxed);
        self.one_more.notify_one();
    }

    /// One more, whose visitor had left.
    fn note_of_visitor(&self) {
        self.of_visitors.fetch_add(1, Ordering::Relaxed);
        self.note();
    }

    /// How many there are whose visitors had left.
    fn of_visitors(&self) -> usize {
        self.of_visitors.load(Ordering::Relaxed)
    }

    /// Resolves when there is one more; the value is how many there are. For one who waits. Cancel
    /// safe.
    pub async fn one_more(&self) -> usize {
        self.one_more.notified().await;
        self.all.load(Ordering::Relaxed)
    }
}

/// What the end of a channel needs.
pub struct Ending {
    /// Counts the channel as open, as long as somebody uses it.
    pub open: Open,
    /// Has a place for each channel that may wait for its peer.
    pub waiting: Arc<Semaphore>,
    /// How long the peer may take to close.
    pub timeout: Duration,
}

impl Ending {
    /// Ends a channel. `is_told`: whether the peer knows already that no more is coming.
    pub async fn run(
        self,
        mut read: ChannelReadHalf,
        write: ChannelWriteHalf<Msg>,
        is_told: bool,
        link: &Link,
        metrics: &Metrics,
    ) {
        let is_sparing = link.closed_first.of_visitors() >= FREELY;
        // An error means that the session is gone, and the channel with it.
        if !is_told && write.eof().await.is_err() {
            return;
        }
        let timeout = self.timeout;
        let is_closed = if is_sparing { self.wait_long(&mut read).await } else { self.wait(&mut read).await };
        if is_closed {
            return;
        }
        metrics.ssh.closed_first.one();
        link.closed_first.note_of_visitor();
        tracing::debug!("closing a channel that the agent left open");
        let _ = write.close().await;
        // The library still sends what was queued for this channel, and never says that this
        // was all.
        let rest = async { while let Ok(Some(_)) = tokio::time::timeout(QUIET, read.wait()).await {} };
        let _ = tokio::time::timeout(timeout, rest).await;
    }

    /// Gives the peer a little time, if there is a place among those who wait. The channel no longer
    /// counts as open: others must not wait for this.
    async fn wait(self, read: &mut ChannelReadHalf) -> bool {
        drop(self.open);
        let Ok(_place) = self.waiting.try_acquire_owned() else { return false };
        discard(read, Instant::now() + self.timeout, &mut { DISCARD }).await
    }

    /// Gives the peer much time. Without a place among those who wait, the channel goes on counting
    /// as open: then it is new channels that find none, and not the session that ends.
    async fn wait_long(self, read: &mut ChannelReadHalf) -> bool {
        let (until, mut room) = (Instant::now() + self.timeout * LONGER, DISCARD_MORE);
        let _place = tokio::select! {
            place = self.waiting.acquire_owned() => place,
            is_closed = discard(read, until, &mut room) => return is_closed,
        };
        drop(self.open);
        discard(read, until, &mut room).await
    }
}

/// Throws away what arrives, until the peer has closed (true), or it is too late or too much. Cancel
/// safe.
async fn discard(read: &mut ChannelReadHalf, until: Instant, room: &mut usize) -> bool {
    loop {
        match timeout_at(until, read.wait()).await {
            Ok(Some(ChannelMsg::Data { data })) => match room.checked_sub(data.len()) {
                Some(left) => *room = left,
                None => return false,
            },
            Ok(Some(ChannelMsg::Close) | None) => return true,
            Ok(Some(_)) => {}
            Err(_) => return false,
        }
    }
}
