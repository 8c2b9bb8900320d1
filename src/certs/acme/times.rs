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
/// The pause for each proof that failed: Let's Encrypt allows five an hour for a name.
const PROOF: Duration = Duration::from_secs(15 * 60);
/// How often a process may end amid an order before that counts as a fault.
const CUT_OFF_MAX: u32 = 20;
/// No certificate follows another sooner, if both last long.
const NEXT: time::Duration = time::Duration::hours(1);
/// How far ahead of the clock a remembered moment may lie: a pause with all that chance adds, a pause
/// that an authority asked for, and the next question for a window. What lies further was written
/// when the clock was wrong.
pub(super) const AHEAD: (time::Duration, time::Duration, time::Duration) =
    (time::Duration::hours(30), time::Duration::days(8), time::Duration::days(1));
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

/// The soonest that a certificate is followed by another, whatever the authority or the clock says.
pub(super) fn next_order(
    ordered: OffsetDateTime,
    begin: OffsetDateTime,
    end: OffsetDateTime,
) -> OffsetDateTime {
    let tenth: time::Duration = (end - begin) / 10;
    ordered + tenth.clamp(time::Duration::ZERO, NEXT)
}

/// The pause after so many failures, at least one, the last of which took so many failed proofs.
pub(super) fn back_off(kind: FaultKind, failures: u32, proofs: u32, chance: f64) -> Duration {
    let passes = matches!(
        kind,
        FaultKind::AuthorityFailed | FaultKind::DirectoryUnreachable | FaultKind::NotValidated
    ) || kind.scope() == Scope::Here;
    let ((first, longest), factor) = match kind {
        // Each attempt makes another certificate, which is of no more use.
        FaultKind::WrongClock => ((MENDING.1, MENDING.1), 1),
        _ if passes => (PASSING, 2_u32),
        _ => (MENDING, 3),
    };
    let times = factor.saturating_pow(failures.saturating_sub(1).min(16));
    let pause = first.saturating_mul(times).min(longest).saturating_mul(proofs.max(1)).min(longest);
    let pause = pause.max(PROOF.saturating_mul(proofs).min(MENDING.1));
    pause.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
}

/// A pause that an authority asked for, and up to a twentieth more, lest all whom it told the same
/// come back at once.
pub(super) fn spread(wanted: Duration, chance: f64) -> Duration {
    wanted.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 20.0)
}

/// The pause while there is a certificate that still lasts: so short that several attempts are left
/// before its end. Proofs that failed count all the same.
pub(super) fn within(
    pause: Duration,
    begin: OffsetDateTime,
    end: OffsetDateTime,
    now: OffsetDateTime,
    proofs: u32,
) -> Duration {
    // One that has ended is none.
    let Ok(left) = Duration::try_from(end - now) else { return pause };
    let tenth = Duration::try_from((end - begin) / 10).unwrap_or_default();
    let bound = tenth.min(left / 4).max(PASSING.0).max(PROOF.saturating_mul(proofs));
    pause.min(bound)
}

/// The pause after a process ended amid an order for the how-many-th time: mostly it is killed or
/// restarted, and the order is gone on with; sometimes it is the order that ends it.
pub(super) fn cut_off(begun: u32, chance: f64) -> Duration {
    match begun.checked_sub(CUT_OFF_MAX) {
        Some(times @ 1..) => back_off(FaultKind::Local, times, 0, chance),
        _ => Duration::ZERO,
    }
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
        let minutes = |kind, failures| back_off(kind, failures, 0, 0.0).as_secs() / 60;
        assert_eq!([1, 2, 3, 9].map(|n| minutes(FaultKind::AuthorityFailed, n)), [1, 2, 4, 256]);
        assert_eq!([1, 2, 3, 4].map(|n| minutes(FaultKind::Unreachable, n)), [5, 15, 45, 135]);
        assert_eq!(minutes(FaultKind::Unreachable, u32::MAX), 24 * 60);
        assert_eq!(back_off(FaultKind::Local, 1, 0, 1.0), Duration::from_secs(75));
        assert_eq!(minutes(FaultKind::WrongClock, 1), 24 * 60);
        let longest = AHEAD.0.unsigned_abs();
        for kind in FaultKind::ALL {
            assert!(back_off(*kind, u32::MAX, u32::MAX, 1.0) <= longest, "{kind:?} would not be believed");
        }
    }

    #[test]
    fn what_an_authority_asked_for_is_never_cut_short_and_is_believed_later() {
        let week = Duration::from_secs(7 * 24 * 60 * 60);
        assert_eq!(spread(week, 0.0), week);
        assert_eq!(spread(Duration::from_secs(1000), 1.0), Duration::from_secs(1050));
        assert!(spread(week, 1.0) < AHEAD.1.unsigned_abs());
    }

    #[test]
    fn failed_proofs_stay_below_five_an_hour() {
        for proofs in 1..=3 {
            for kind in [FaultKind::Unreachable, FaultKind::NotValidated, FaultKind::WrongDns] {
                for failures in 1..5 {
                    let pause = back_off(kind, failures, proofs, 0.0);
                    assert!(pause >= PROOF * proofs, "{kind:?}: {pause:?} after {proofs}");
                    let short = within(pause, at(0), at(6), at(5), proofs);
                    assert!(short >= PROOF * proofs, "{kind:?}: {short:?} after {proofs}");
                }
            }
        }
        assert_eq!(back_off(FaultKind::Unreachable, 2, 3, 0.0), Duration::from_secs(45 * 60));
    }

    #[test]
    fn attempts_come_closer_as_the_end_nears() {
        let day = Duration::from_secs(24 * 60 * 60);
        let hours = |begin, end, now| within(day, at(begin), at(end), now, 0).as_secs() / 3600;
        assert_eq!(hours(0, 90, at(60)), 24);
        assert_eq!(hours(0, 6, at(4)), 12);
        assert_eq!(hours(0, 6, at(2)), 14);
        assert_eq!(hours(0, 6, at(6) - time::Duration::hours(8)), 2);
        assert_eq!(hours(0, 6, at(7)), 24, "it has ended");
        assert_eq!(within(day, at(0), at(6), at(6), 0), PASSING.0);
    }

    #[test]
    fn a_process_that_ends_again_and_again_amid_an_order_waits() {
        assert_eq!([1, 20].map(|begun| cut_off(begun, 0.0)), [Duration::ZERO; 2]);
        assert_eq!(cut_off(21, 0.0), Duration::from_secs(60));
        assert_eq!(cut_off(23, 0.0), Duration::from_secs(240));
    }

    #[test]
    fn one_certificate_does_not_follow_the_other_at_once() {
        let after = |days| next_order(at(1), at(0), at(days)) - at(1);
        assert_eq!((after(90), after(0)), (time::Duration::hours(1), time::Duration::ZERO));
        assert_eq!(
            next_order(at(0), at(0), at(0) + time::Duration::seconds(40)) - at(0),
            time::Duration::seconds(4)
        );
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
