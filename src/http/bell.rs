//! Wakes whoever polls a part of a task, and remembers that the part is to be polled.
//!
//! A part that is polled with a bell's waker is polled only when there is something to do for it,
//! whoever owns it by then; and what its own task does to it wakes nobody.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// A bell. Its waker rings it.
#[derive(Debug)]
pub(super) struct Bell {
    inner: Arc<Inner>,
    ring: Waker,
}

#[derive(Debug)]
struct Inner {
    rung: AtomicBool,
    owner: AtomicWaker,
}

impl Bell {
    /// Rung already: whatever is new is to be polled.
    pub(super) fn new() -> Self {
        let inner = Arc::new(Inner { rung: AtomicBool::new(true), owner: AtomicWaker::new() });
        Self { ring: Waker::from(inner.clone()), inner }
    }

    /// What the part is to be polled with.
    pub(super) fn ring(&self) -> &Waker {
        &self.ring
    }

    /// Has this one woken by the next ring, and nobody else. It may have rung before.
    pub(super) fn wakes(&self, owner: &Waker) {
        self.inner.owner.register(owner);
    }

    /// Has nobody woken any more.
    pub(super) fn wakes_nobody(&self) {
        self.inner.owner.take();
    }

    /// Whether it has rung since the last time.
    pub(super) fn take(&self) -> bool {
        self.inner.rung.swap(false, Ordering::AcqRel)
    }

    /// Whether it has rung.
    pub(super) fn is_rung(&self) -> bool {
        self.inner.rung.load(Ordering::Acquire)
    }
}

/// A future that is polled only when its bell has rung, for one that stands beside another which is
/// polled often.
#[derive(Debug)]
pub(super) struct Seldom<F> {
    bell: Bell,
    part: F,
}

impl<F> Seldom<F> {
    /// Polled once in any case.
    pub(super) fn new(part: F) -> Self {
        Self { bell: Bell::new(), part }
    }
}

impl<F: Future + Unpin> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { bell, part } = &mut *self;
        bell.wakes(cx.waker());
        if bell.take() {
            return Pin::new(part).poll(&mut Context::from_waker(bell.ring()));
        }
        Poll::Pending
    }
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Whoever polls says first who is woken and looks at `rung` then, so that one of the two is
        // seen.
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.owner.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_ring_wakes_the_last_owner_once_and_is_remembered() {
        let (bell, first, second) = (Bell::new(), Arc::<Count>::default(), Arc::<Count>::default());
        assert!(bell.take() && !bell.take(), "what is new is to be polled, once");
        bell.wakes(&first.clone().into());
        bell.wakes(&second.clone().into());
        bell.ring().wake_by_ref();
        bell.ring().wake_by_ref();
        assert!(bell.is_rung() && bell.take());
        bell.wakes_nobody();
        bell.ring().wake_by_ref();
        assert!(bell.is_rung(), "nobody was woken, and it is known all the same");
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
    }
}
