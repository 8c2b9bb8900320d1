//! The one place that spawns: every task has an owner that can wait for it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks, waits for them, and tells them when to finish. Clones share one set.
///
/// A panic in a task ends that task only; it is logged as our fault.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: CancellationToken,
    cut: CancellationToken,
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` to its end, or until the set is cut. `what` names it should it panic.
    pub fn spawn<F>(&self, what: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cut = self.cut.clone();
        let guard = PanicLog(what);
        // Boxed, because a future is moved by each of the layers that a task is made of, and at its
        // end: of a request's task that copied 100 KiB.
        let task = Box::pin(task);
        self.tracker.spawn(async move {
            let _guard = guard;
            tokio::select! {
                () = cut.cancelled() => {}
                () = task => {}
            }
        })
    }

    /// Asks the tasks to finish what they do and begin nothing new.
    pub fn begin_drain(&self) {
        self.drain.cancel();
        self.tracker.close();
    }

    /// Ends every task at its next await.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Whether the tasks were cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Resolves when [`Tasks::begin_drain`] was called. Cancel safe.
    #[must_use]
    pub fn drain_begun(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Resolves when every task has ended and draining has begun. Cancel safe.
    pub async fn all_ended(&self) {
        self.tracker.wait().await;
    }

    /// How many tasks run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.spawn("part of a connection", future);
    }
}

/// A part of a task that ends alone when it panics; that is logged as our fault.
#[derive(Debug)]
pub struct Isolated<F> {
    what: &'static str,
    part: F,
}

impl<F> Isolated<F> {
    /// `what` names it should it panic.
    pub fn new(what: &'static str, part: F) -> Self {
        Self { what, part }
    }
}

impl<F: Future<Output = ()> + Unpin> Future for Isolated<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { what, part } = &mut *self;
        // What a panic leaves of it is never polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let _guard = PanicLog(what);
            Pin::new(part).poll(cx)
        }));
        polled.unwrap_or(Poll::Ready(()))
    }
}

/// Says in the log that the task it lives in is being unwound. The panic itself, with its
/// place, is logged by the panic hook.
struct PanicLog(&'static str);

impl Drop for PanicLog {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, reason = "panic", "a task panicked; only what it served ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_task_only() {
        let tasks = Tasks::new();
        let (give, take) = tokio::sync::oneshot::channel();
        let other = tasks.spawn("other", async move { assert!(take.await.is_ok()) });
        assert!(tasks.spawn("bad", async { panic!("on purpose") }).await.is_err());
        give.send(()).expect("the other task still waits");
        other.await.expect("the other task ends well");
        tasks.begin_drain();
        tasks.all_ended().await;
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_part_only() {
        let bad = Isolated::new("bad", Box::pin(async { panic!("on purpose") }));
        let good = Isolated::new("good", Box::pin(tokio::task::yield_now()));
        tokio::join!(bad, good);
    }

    #[tokio::test]
    async fn a_cut_ends_every_task() {
        let tasks = Tasks::new();
        tasks.spawn("endless", std::future::pending());
        tasks.begin_drain();
        assert_eq!(tasks.running(), 1);
        tasks.cut();
        tasks.all_ended().await;
    }
}
