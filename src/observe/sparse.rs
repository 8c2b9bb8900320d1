//! Records that strangers can cause as often as they like: some of them are written, and how many
//! were not is said with the next.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Records in an [`INTERVAL`].
const MOST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(1);

/// Says which records are to be written: ten in a second.
#[derive(Debug, Default)]
pub struct Sparse(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Sparse {
    /// Whether the next record is to be written; if so, how many were left out before it.
    pub fn next(&self) -> Option<u64> {
        self.next_at(Instant::now())
    }

    fn next_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL) {
            (state.since, state.written) = (Some(now), 0);
        }
        if state.written == MOST {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_in_a_second_and_the_rest_is_told() {
        let (sparse, now) = (Sparse::default(), Instant::now());
        let written = (0..100).filter_map(|_| sparse.next_at(now)).collect::<Vec<_>>();
        assert_eq!(written, [0; 10]);
        assert_eq!(sparse.next_at(now + INTERVAL), Some(90));
        assert_eq!(sparse.next_at(now + INTERVAL), Some(0));
    }
}
