//! Who may order now: so many at once, and names that failed before have half of that at most, so
//! that they hold up no other.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Orders that run at once. Names that cannot be proved take minutes each, so not too few.
const AT_ONCE: usize = 16;

/// The turns.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    failed: Semaphore,
}

/// Leave to order, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _one: SemaphorePermit<'a>,
    _of_failed: Option<SemaphorePermit<'a>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Semaphore::new(AT_ONCE), failed: Semaphore::new(AT_ONCE / 2) }
    }
}

impl Turns {
    /// Waits for a turn, first come, first served. Cancel safe: the place in the row is lost.
    pub(super) async fn take(&self, failures: u32) -> Turn<'_> {
        const OPEN: &str = "the semaphores are never closed";
        let of_failed = match failures {
            0 => None,
            _ => Some(self.failed.acquire().await.expect(OPEN)),
        };
        Turn { _one: self.all.acquire().await.expect(OPEN), _of_failed: of_failed }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn names_that_failed_leave_half_of_the_turns_to_others() {
        let turns = Turns::default();
        let take = |failures| turns.take(failures).now_or_never();
        let failed: Vec<_> = (0..100).filter_map(|_| take(3)).collect();
        assert_eq!(failed.len(), AT_ONCE / 2);
        let fresh: Vec<_> = (0..100).filter_map(|_| take(0)).collect();
        assert_eq!(fresh.len(), AT_ONCE / 2);
        drop(failed);
        assert!(take(1).is_some() && take(0).is_some());
    }
}
