//! When a certificate is renewed, and when a failed attempt is made again. Pure: `chance` is a
//! number from 0 to 1 that spreads gateways and names over time.

use std::time::Duration;

use time::OffsetDateTime;

use super::fault::{FaultKind, Scope};
use super::vault::Window;

/// First and longest pause after a fault that passes by itself.
const PASSING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 60 * 60));
/// First and longest pause after a fault that somebody has to mend. Authorities allow few failed
/// proofs an hour, and ask for pauses that grow.
const MENDING: (Duration, Duration) = (Duration::from_secs(5 * 60), Duration::from_secs(24 * 60 * 60));
/// How often an authority is asked for its window: at least and at most.
const ASKING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 60 * 60));

/// A third of the lifetime before the end, and up to a thirtieth earlier.
pub(super) fn by_lifetime(begin: OffsetDateTime, end: OffsetDateTime, chance: f64) -> OffsetDateTime {
    let lifetime = (end - begin).max(time::Duration::ZERO);
    end - lifetime / 3 - lifetime * (chance / 30.0)
}

/// A moment within the authority's window; past ones are fine, and mean now (RFC 9773, section 4.2).
pub(super) fn by_window(window: &Window, chance: f64) -> OffsetDateTime {
    let length = (window.end - window.start).max(time::Duration::ZERO);
    window.start + length * chance
}

/// When to ask for the window again: as the authority says, within reason, and several times in the
/// life of a short certificate.
pub(super) fn ask_again(said: Duration, begin: OffsetDateTime, end: OffsetDateTime) -> Duration {
    let tenth = Duration::try_from((end - begin) / 10).unwrap_or(ASKING.1);
    said.min(tenth).clamp(ASKING.0, ASKING.1)
}

/// The pause after so many failures, at least one.
pub(super) fn back_off(kind: FaultKind, failures: u32, chance: f64) -> Duration {
    let passes = matches!(
        kind,
        FaultKind::AuthorityFailed | FaultKind::DirectoryUnreachable | FaultKind::NotValidated
    ) || kind.scope() == Scope::Here;
    let ((first, longest), factor) = if passes { (PASSING, 2_u32) } else { (MENDING, 3) };
    let times = factor.saturating_pow(failures.saturating_sub(1).min(16));
    let pause = first.saturating_mul(times).min(longest);
    pause.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
}

/// A number from 0 to 1, another each time.
pub(super) fn chance() -> f64 {
    let mut octets = [0; 4];
    // Without randomness everybody comes at once, which is no reason not to come.
    let _ = aws_lc_rs::rand::fill(&mut octets);
    f64::from(u32::from_le_bytes(octets)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::days(days)
    }

    #[test]
    fn a_third_is_left_whatever_the_lifetime() {
        assert_eq!(by_lifetime(at(0), at(90), 0.0), at(60));
        assert_eq!(by_lifetime(at(0), at(90), 1.0), at(57));
        assert_eq!(by_lifetime(at(0), at(6), 0.0), at(4));
        assert_eq!(by_lifetime(at(6), at(0), 0.5), at(0), "an end before the begin");
        let window = Window { start: at(10), end: at(12) };
        assert_eq!((by_window(&window, 0.0), by_window(&window, 0.5)), (at(10), at(11)));
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let minutes = |kind, failures| back_off(kind, failures, 0.0).as_secs() / 60;
        assert_eq!([1, 2, 3, 9].map(|n| minutes(FaultKind::AuthorityFailed, n)), [1, 2, 4, 256]);
        assert_eq!([1, 2, 3, 4].map(|n| minutes(FaultKind::Unreachable, n)), [5, 15, 45, 135]);
        assert_eq!(minutes(FaultKind::Unreachable, u32::MAX), 24 * 60);
        assert_eq!(back_off(FaultKind::Local, 1, 1.0), Duration::from_secs(75));
    }

    #[test]
    fn the_window_is_asked_for_within_reason() {
        let again = |said: u64, days| ask_again(Duration::from_secs(said), at(0), at(days)).as_secs();
        assert_eq!((again(0, 90), again(21600, 90), again(1 << 30, 90)), (60, 21600, 86400));
        assert_eq!(again(21600, 1), 8640);
    }

    #[test]
    fn chance_is_within_its_bounds() {
        assert!((0..100).map(|_| chance()).all(|chance| (0.0..=1.0).contains(&chance)));
    }
}
