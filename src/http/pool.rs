//! Connections to services that are kept for reuse, and the rules of when they may be.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::link::Link;
use crate::net::{ByteStream, Tasks};
use crate::observe::Metrics;
use crate::registry::{Cut, Target, TargetId};

/// Idle connections to services, by target. Clones share the contents.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    idle: Mutex<HashMap<TargetId, Idle>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
    idle_max: usize,
    idle_timeout: Duration,
}

/// A target's idle connections. A task of their own keeps them, as long as there is this.
#[derive(Debug)]
struct Idle {
    target: Target,
    /// The one that was used last is the last.
    links: Vec<(Link, Instant)>,
    /// Wakes the keeper.
    keeper: Waker,
}

/// Word to a keeper that something has happened on one of its connections.
#[derive(Debug, Default)]
struct Word(Notify);

impl Wake for Word {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}

impl Pool {
    /// Keeps at most `idle_max` idle connections a target, each for at most `idle_timeout`.
    pub(super) fn new(tasks: Tasks, metrics: Arc<Metrics>, idle_max: usize, idle_timeout: Duration) -> Self {
        let drain = tasks.drain_begun();
        Self(Arc::new(Inner { idle: Mutex::default(), tasks, metrics, drain, idle_max, idle_timeout }))
    }

    /// The connection that was used last, if one is left that still lives.
    pub(super) fn take(&self, target: &Target) -> Option<Link> {
        loop {
            let (mut link, older) = {
                let mut idle = self.0.idle.lock();
                let links = &mut idle.get_mut(&target.id())?.links;
                let (link, since) = links.pop()?;
                // Those below it are older still.
                let is_old = since.elapsed() >= self.0.idle_timeout;
                (link, is_old.then(|| std::mem::take(links)))
            };
            if older.is_some() {
                return None;
            }
            link.settle();
            if link.is_free() {
                self.0.metrics.http.upstream_reused.one();
                return Some(link);
            }
        }
    }

    /// Begins HTTP/1.1 on a new stream, of which `cut` tells.
    ///
    /// # Errors
    /// As [`Link::new`].
    pub(super) async fn connect(&self, stream: ByteStream, cut: Cut) -> Result<Link, hyper::Error> {
        let link = Link::new(stream, cut).await?;
        self.0.metrics.http.upstream_opened.one();
        Ok(link)
    }

    /// Keeps a connection whose answer was read whole, if it still lives.
    pub(super) fn give_back(&self, mut link: Link, target: &Target) {
        link.cut().forget();
        link.used_by(None);
        link.settle();
        let inner = &self.0;
        let over = target.gone().is_cancelled() || inner.drain.is_cancelled();
        if over || inner.idle_max == 0 || !link.is_free() {
            return;
        }
        let mut first = None;
        let mut all = inner.idle.lock();
        let idle = all.entry(target.id()).or_insert_with(|| {
            let word = Arc::<Word>::default();
            first = Some(word.clone());
            Idle { target: target.clone(), links: Vec::new(), keeper: Waker::from(word) }
        });
        if idle.links.len() < inner.idle_max {
            link.belong_to(&idle.keeper);
            idle.links.push((link, Instant::now()));
        }
        drop(all);
        if let Some(word) = first {
            let (pool, target) = (self.clone(), target.clone());
            inner.tasks.spawn("keeper of idle connections", async move { pool.keep(&target, &word).await });
        }
    }

    /// Drops a target's idle connections in time, or when their service closes them, until none was
    /// left for a whole idle time.
    async fn keep(&self, target: &Target, word: &Word) {
        let mut due = Box::pin(tokio::time::sleep(self.0.idle_timeout));
        loop {
            let (over, is_due) = tokio::select! {
                () = target.gone().cancelled() => (true, true),
                () = self.0.drain.cancelled() => (true, true),
                () = &mut due => (false, true),
                () = word.0.notified() => (false, false),
            };
            if is_due {
                due.as_mut().reset(tokio::time::Instant::now() + self.0.idle_timeout);
            }
            let mut idle = self.0.idle.lock();
            let Some(Idle { links, keeper, .. }) = idle.get_mut(&target.id()) else { return };
            let mut cx = Context::from_waker(keeper);
            let ended: Vec<_> = links
                .extract_if(.., |(link, since)| {
                    link.drive(&mut cx);
                    over || since.elapsed() >= self.0.idle_timeout || !link.is_free()
                })
                .collect();
            if let Some((_, oldest)) = links.first().filter(|_| is_due) {
                due.as_mut().reset((*oldest + self.0.idle_timeout).into());
            }
            let is_over = links.is_empty() && is_due;
            if is_over {
                idle.remove(&target.id());
            }
            // A connection's end may take a while.
            drop(idle);
            drop(ended);
            if is_over {
                return;
            }
        }
    }

    /// Drops the connection that was idle for longest, of all targets that share what they can carry
    /// with this one.
    pub(super) fn make_room(&self, target: &Target) {
        let oldest = {
            let mut idle = self.0.idle.lock();
            let links = idle.values_mut().filter(|idle| idle.target.shares_with(target));
            let links = links.filter(|idle| !idle.links.is_empty()).map(|idle| &mut idle.links);
            links.min_by_key(|links| links[0].1).map(|links| links.remove(0))
        };
        // Its end is not to be waited for under the lock.
        drop(oldest);
    }

    /// Whoever spawns for a connection.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }
}
