//! Whether a stream's visitor goes on taking what is there for them. Counts nothing else: what is
//! cut for it is decided in [`super::budget`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A visitor who still takes something so long after the first of it had to wait on disk goes on
/// reading: the buffers on the way were full by then.
const BUFFERS: Duration = Duration::from_millis(500);
/// Stands for the time of the last taking while there is nothing to take.
const NOTHING: u64 = u64::MAX;
/// How long such a visitor may seem to take nothing, and yet not be cut for others: what lies in the
/// buffers on the way keeps a slow one busy between two looks.
const GRACE: Duration = Duration::from_secs(10);
/// The same for everybody else: who reads as fast as they can takes something more often.
const GRACE_AT_FIRST: Duration = Duration::from_millis(100);

/// When a stream's visitor last took something. Clones share it.
#[derive(Clone, Debug)]
pub struct Progress {
    started: Instant,
    /// Milliseconds since then; [`NOTHING`] while there is nothing to take.
    last: Arc<AtomicU64>,
    /// Milliseconds until the visitor last took something, whatever is there now.
    taken: Arc<AtomicU64>,
}

impl Progress {
    /// Begins now, and counts the time from `started`.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        let progress = Self { started, last: Arc::default(), taken: Arc::default() };
        progress.note_offer();
        progress
    }

    /// How long ago the visitor last took something, while there is something left to take; what is
    /// still on its way from the agent or the disk keeps them waiting, and not the other way round.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// How much rather than others the stream is cut whose answer had to wait on disk since `since`: by
    /// how long nothing was taken of it, with time for who goes on reading.
    #[must_use]
    pub fn blame(&self, since: Instant) -> Duration {
        let taken = self.started + Duration::from_millis(self.taken.load(Ordering::Relaxed));
        let grace = if taken >= since + BUFFERS { GRACE } else { GRACE_AT_FIRST };
        self.idle().saturating_sub(grace)
    }

    /// There is something to take again, after there was nothing.
    pub fn note_offer(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// The visitor has taken something, and perhaps all that there is for now.
    pub fn note_taken(&self, all: bool) {
        let now = self.now();
        self.last.store(if all { NOTHING } else { now }, Ordering::Relaxed);
        self.taken.store(now, Ordering::Relaxed);
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

        /// The same, whatever is there now.
        pub fn set_taken(&self, millis: u64) {
            self.taken.store(millis, Ordering::Relaxed);
        }
    }

    #[test]
    fn one_that_goes_on_reading_is_given_time() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        let progress = Progress::new(now - 3 * second);
        assert!(progress.idle() < second);
        // It takes at once what there is, and has taken nothing since.
        progress.note_taken(false);
        progress.set_last(0);
        assert!(progress.idle() >= 3 * second);
        assert!(progress.blame(now) >= 2 * second, "that was what the buffers held");
        assert_eq!(progress.blame(now - second), Duration::ZERO);
        // There was nothing to take meanwhile.
        progress.note_offer();
        progress.note_taken(true);
        assert_eq!((progress.idle(), progress.blame(now)), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn who_stopped_is_to_blame_in_the_end() {
        let now = Instant::now();
        let progress = Progress::new(now - 2 * GRACE);
        progress.note_taken(false);
        progress.set_last(0);
        assert!(progress.blame(now - 2 * GRACE) >= GRACE);
    }
}
