//! Ends an HTTP/2 stream whose visitor takes nothing of its answer, and no other stream with it.
//!
//! A visitor's window may be zero for as long as they like. Then the parser neither writes, which
//! [`super::patience`] would bound, nor asks the answer for more. So each stream keeps
//! the time. It stands still while the service is what is waited for.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep};

use super::patience::Unsent;
use crate::observe::Reason;
use crate::registry::BoxFuture;

/// Octets given out at once that get the whole time once more: the parser asks for more only when
/// the visitor has made room for all of them.
const STEP: u32 = 64 * 1024;
/// Steps that are counted at most.
const STEPS_MAX: u32 = 4;
/// How many times the limit a stream may stand still behind a connection that is full. Its streams
/// take turns, so that one may wait for long although the visitor takes all they can.
const TURNS_MAX: u32 = 10;

tokio::task_local! {
    static CURRENT: Arc<Stall>;
}

/// What an HTTP/2 stream and the stream's answer tell each other.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// Whether there is an answer to be taken.
    answered: AtomicBool,
    /// Whether the answer had nothing more to give when the stream last ran.
    dry: AtomicBool,
    /// Octets given out since the stream last waited.
    given: AtomicU32,
    over: OnceLock<Reason>,
    task: AtomicWaker,
}

impl Stall {
    /// That of the stream that runs now; `None` over HTTP/1.1.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// From now on there is an answer to be taken.
    pub(super) fn answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// The answer was asked for more, and gave so many octets; `None`: the service has sent none.
    pub(super) fn note(&self, given: Option<usize>) {
        match given {
            // Only the stream itself writes here, so that nothing is lost in between.
            Some(octets) => {
                let given = self.given.load(Ordering::Relaxed);
                let octets = u32::try_from(octets).unwrap_or(u32::MAX);
                self.given.store(given.saturating_add(octets), Ordering::Relaxed);
                self.dry.store(false, Ordering::Relaxed);
            }
            None => self.dry.store(true, Ordering::Relaxed),
        }
    }

    /// Has the stream end: its visitor takes too little, or may see no more of it. What it holds is
    /// dropped as soon as it has its turn.
    pub(super) fn end(&self, why: Reason) {
        let _ = self.over.set(why);
        self.task.wake();
    }

    /// Why the stream ends, or has ended, by [`Stall::end`].
    pub(super) fn over(&self) -> Option<Reason> {
        self.over.get().copied()
    }
}

/// A stream, and the time for which it has stood still. It ends when its visitor takes nothing of
/// its answer for too long; the visitor sees it reset.
pub(super) struct Watched {
    stream: BoxFuture<'static, ()>,
    stall: Arc<Stall>,
    limit: Duration,
    unsent: Arc<Unsent>,
    /// While the visitor is waited for.
    wait: Option<Wait>,
}

struct Wait {
    since: Instant,
    steps: u32,
    /// How often the connection had been full, or not any more, at the last look.
    seen: u64,
    look: Pin<Box<Sleep>>,
}

impl Watched {
    /// Lets a stream stand still for at most `limit`, or longer while `unsent` says that the
    /// connection is full.
    pub(super) fn new<F>(stream: F, limit: Duration, unsent: Arc<Unsent>) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stall = Arc::<Stall>::default();
        let stream = Box::pin(CURRENT.scope(stall.clone(), stream));
        Self { stream, stall, limit, unsent, wait: None }
    }
}

impl Future for Watched {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.stall.dry.store(false, Ordering::Relaxed);
        if self.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !self.stall.answered.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.stall.task.register(cx.waker());
        if self.stall.over().is_some() {
            return Poll::Ready(());
        }
        let given = self.stall.given.load(Ordering::Relaxed);
        if given > 0 {
            self.stall.given.store(0, Ordering::Relaxed);
        }
        if self.stall.dry.load(Ordering::Relaxed) {
            self.wait = None;
            return Poll::Pending;
        }
        self.poll_patience(given, cx)
    }
}

impl Watched {
    /// Waits until the visitor has had time enough since they last took something, which is now
    /// if octets were given out.
    fn poll_patience(&mut self, given: u32, cx: &mut Context<'_>) -> Poll<()> {
        let (limit, unsent) = (self.limit, &self.unsent);
        let wait = self.wait.get_or_insert_with(|| Wait {
            since: Instant::now(),
            steps: 0,
            seen: unsent.changes(),
            look: Box::pin(tokio::time::sleep(limit)),
        });
        if given > 0 {
            (wait.since, wait.steps) = (Instant::now(), (given / STEP).min(STEPS_MAX));
        }
        loop {
            ready!(wait.look.as_mut().poll(cx));
            let now = Instant::now();
            let due = wait.since + limit * (1 + wait.steps);
            let changes = unsent.changes();
            let was_full = changes != wait.seen || unsent.is_any();
            wait.seen = changes;
            if now < due {
                wait.look.as_mut().reset(due);
            } else if was_full && now < wait.since + limit * TURNS_MAX {
                wait.look.as_mut().reset(now + limit);
            } else {
                self.stall.end(Reason::VisitorTooSlow);
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use super::*;
    use crate::net::Tasks;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Runs a stream to its end; the value is how long it took.
    async fn run(unsent: Arc<Unsent>, stream: impl Future<Output = ()> + Send + 'static) -> u64 {
        let (tasks, started) = (Tasks::new(), Instant::now());
        tasks.spawn("stream", Watched::new(stream, LIMIT, unsent));
        tasks.begin_drain();
        tasks.all_ended().await;
        started.elapsed().as_secs()
    }

    fn stall() -> Arc<Stall> {
        Stall::current().expect("a stream's task")
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_stands_still_for_the_limit_from_when_it_last_gave() {
        let took = run(Arc::default(), async {
            tokio::time::sleep(LIMIT * 3).await;
            stall().answer();
            tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
            stall().note(Some(5));
            pending().await
        });
        assert_eq!(took.await, 30 + 9 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn much_at_once_gets_more_time() {
        let took = run(Arc::default(), async {
            stall().answer();
            stall().note(Some(128 * 1024));
            pending().await
        });
        assert_eq!(took.await, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_service_is_not_standing_still() {
        let took = run(Arc::default(), async {
            stall().answer();
            let mut slow = std::pin::pin!(tokio::time::sleep(LIMIT * 7));
            poll_fn(|cx| {
                let result = slow.as_mut().poll(cx);
                stall().note(result.is_ready().then_some(1));
                result
            })
            .await;
            pending().await
        });
        assert_eq!(took.await, 70 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_connection_gives_time_but_not_without_end() {
        let unsent = Arc::<Unsent>::default();
        let fill = async {
            tokio::time::sleep(LIMIT / 2).await;
            unsent.change();
            tokio::time::sleep(LIMIT).await;
            unsent.change();
        };
        let still = || async {
            stall().answer();
            pending().await
        };
        let (took, ()) = tokio::join!(run(unsent.clone(), still()), fill);
        assert_eq!(took, 30);
        unsent.change();
        assert_eq!(run(unsent.clone(), still()).await, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_ended_from_outside() {
        let took = run(Arc::default(), async {
            stall().answer();
            let outside = stall();
            Tasks::new().spawn("outside", async move {
                tokio::time::sleep(LIMIT / 5).await;
                outside.end(Reason::NoSpace);
            });
            poll_fn::<(), _>(|_| {
                stall().note(None);
                Poll::Pending
            })
            .await;
        });
        assert_eq!(took.await, 2);
    }
}
