//! Whether a stream's visitor goes on taking what is there for them. Counts nothing else: what is
//! cut for it is decided in [`super::spill`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A visitor who takes nothing of what is there for so long, and then something, goes on reading.
const PAUSE: Duration = Duration::from_millis(250);
/// Stands for the time of the last taking while there is nothing to take.
const NOTHING: u64 = u64::MAX;
/// How long such a visitor may seem to take nothing, and yet not be cut for others.
const GRACE: Duration = Duration::from_secs(10);

/// When a stream's visitor last took something. Clones share it.
#[derive(Clone, Debug)]
pub struct Progress {
    started: Instant,
    /// Milliseconds since then; [`NOTHING`] while there is nothing to take.
    last: Arc<AtomicU64>,
    /// The longest time, in milliseconds, that nothing was taken of what was there, and then
    /// something was.
    pause: Arc<AtomicU64>,
}

impl Progress {
    /// Begins now, and counts the time from `started`.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        let progress = Self { started, last: Arc::default(), pause: Arc::default() };
        progress.note_offer();
        progress
    }

    /// How long ago the visitor last took something, while there is something left to take; what is
    /// still on its way from the agent or the disk keeps them waiting, and not the other way round.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// For how long the visitor may seem to take nothing, and yet go on reading: what lies in the
    /// buffers on the way keeps a slow one busy between two looks. Nothing for who never went on
    /// after a pause, however much went into those buffers at first.
    #[must_use]
    pub fn grace(&self) -> Duration {
        let pause = Duration::from_millis(self.pause.load(Ordering::Relaxed));
        if pause >= PAUSE { GRACE } else { Duration::ZERO }
    }

    /// There is something to take again, after there was nothing.
    pub fn note_offer(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// The visitor has taken something, and perhaps all that there is for now.
    pub fn note_taken(&self, all: bool) {
        let now = self.now();
        let before = self.last.swap(if all { NOTHING } else { now }, Ordering::Relaxed);
        self.pause.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Progress {
        /// Has something been taken last so many milliseconds after the beginning.
        pub fn set_last(&self, millis: u64) {
            self.last.store(millis, Ordering::Relaxed);
        }
    }

    #[test]
    fn one_that_goes_on_after_a_pause_is_given_time() {
        let second = Duration::from_secs(1);
        let progress = Progress::new(Instant::now() - 3 * second);
        assert!(progress.idle() < second);
        // It takes at once what there is, and has taken nothing since.
        progress.note_taken(false);
        progress.set_last(0);
        assert!(progress.idle() >= 3 * second && progress.grace() == Duration::ZERO);
        // There was nothing to take meanwhile.
        progress.note_offer();
        progress.note_taken(true);
        assert_eq!((progress.idle(), progress.grace()), (Duration::ZERO, Duration::ZERO));
        progress.note_taken(false);
        assert_eq!(progress.grace(), Duration::ZERO);
        progress.set_last(0);
        progress.note_taken(false);
        assert!(progress.idle() < second && progress.grace() == GRACE);
    }
}
