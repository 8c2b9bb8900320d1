//! Nothing is read from a peer that sends faster than the disk takes, for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::transport::Link;

/// How long nothing may be read from a peer that sends faster than the disk takes, ...
const HOLD_MOST: Duration = Duration::from_secs(3);
/// ... within this span.
const HOLD_SPAN: Duration = Duration::from_secs(10);

/// For how long nothing was read from the peer lately.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// When the span began over which it is added up.
    span: Option<Instant>,
    used: Duration,
    /// When reading stopped, if it has.
    since: Option<Instant>,
}

/// While it lives, nothing is read from the peer.
#[derive(Debug)]
pub struct Hold {
    link: Arc<Link>,
    until: Instant,
}

impl Hold {
    /// Whether it has lasted as long as it may.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Resolves when it has. Cancel safe.
    pub async fn over(&self) {
        tokio::time::sleep_until(self.until).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holding = self.link.holding.lock();
        if self.link.holds.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(since) = holding.since.take()
        {
            holding.used += since.elapsed();
        }
        drop(holding);
        self.link.reader.wake();
    }
}

impl Link {
    /// Has nothing be read from the peer while the value lives. `None` when that was so for
    /// `HOLD_MOST` in the last `HOLD_SPAN` already, whoever asked for it: keep-alives and
    /// others' answers must get through.
    pub fn hold(self: Arc<Self>) -> Option<Hold> {
        let now = Instant::now();
        let mut holding = self.holding.lock();
        if holding.span.is_none_or(|span| now - span >= HOLD_SPAN) {
            (holding.span, holding.used) = (Some(now), Duration::ZERO);
            holding.since = holding.since.map(|_| now);
        }
        let used = holding.used + holding.since.map_or(Duration::ZERO, |since| now - since);
        let left = HOLD_MOST.checked_sub(used).filter(|left| !left.is_zero())?;
        holding.since.get_or_insert(now);
        self.holds.fetch_add(1, Ordering::AcqRel);
        drop(holding);
        Some(Hold { link: self, until: now + left })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::Tasks;
    use crate::observe::Reason;
    use crate::ssh::transport::transport;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_while_it_is_held() {
        let (near, mut far) = tokio::io::duplex(16);
        let (mut transport, link) = transport(near, &Tasks::new(), &Arc::default());
        far.write_all(b"x").await.expect("open");
        let hold = || link.clone().hold().expect("there is time left");
        let (first, second) = (hold(), hold());
        let short = Duration::from_millis(10);
        assert!(tokio::time::timeout(short, transport.read_u8()).await.is_err());
        drop(first);
        let (read, ()) = tokio::join!(transport.read_u8(), async move {
            tokio::time::sleep(short).await;
            drop(second);
        });
        assert_eq!(read.expect("open"), b'x');
        let long = hold();
        long.over().await;
        assert!(long.is_over() && link.clone().hold().is_none(), "the time is used up");
        drop(long);
        tokio::time::sleep(HOLD_SPAN).await;
        let _hold = hold();
        link.cut(Reason::TakenOver);
        assert!(transport.read_u8().await.is_err());
    }
}
