//! What is known of a name's certificate, and what follows: when it is ordered, when its authority is
//! asked for a window. Pure.
//!
//! Refuses to believe what was remembered of another certificate, or while the clock was ahead.

use time::{Duration, OffsetDateTime};

use super::fault::FaultKind;
use super::times;
use super::vault::{Kept, Status};

/// What is known of a name's certificate.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) kept: Option<Kept>,
    pub(super) status: Status,
    /// Whether other programs find the certificate.
    pub(super) is_linked: bool,
    now: OffsetDateTime,
}

/// How far apart the clocks of two gateways with one folder may be.
const SKEW: Duration = Duration::minutes(1);

impl Known {
    /// What the disk has, without what cannot be true.
    pub(super) fn new(kept: Option<Kept>, status: Status, is_linked: bool, now: OffsetDateTime) -> Self {
        let mut status = without_future(status, now);
        let leaf = kept.as_ref().map(leaf).unwrap_or_default();
        if kept.is_some() && status.leaf != leaf {
            // It was got, and nothing was written of it before the process ended.
            let Status { limited, settings, .. } = status;
            status = Status { limited, settings, ..Status::default() };
        }
        if kept.is_none() {
            status = Status { renew_at: None, window: None, ask_at: None, ..status };
        }
        status.leaf = leaf;
        Self { kept, status, is_linked, now }
    }

    /// When a certificate is to be ordered. Faults count under the settings that they came up under.
    pub(super) fn order_at(&self, settings: &str) -> OffsetDateTime {
        let Status { renew_at, retry_at, .. } = self.status;
        let due = self.kept.as_ref().map_or(OffsetDateTime::UNIX_EPOCH, |kept| {
            let (begin, end) = (kept.served.not_before, kept.served.not_after);
            let by_lifetime = times::by_lifetime(begin, end, 0.0);
            // The end counts in any case.
            let due = renew_at.filter(|at| *at < end).unwrap_or(by_lifetime);
            let next = Some(kept.about.ordered).filter(|at| *at <= self.now + SKEW);
            due.max(next.map_or(due, |ordered| times::next_order(ordered, begin, end)))
        });
        due.max(retry_at.filter(|_| self.status.settings == settings).unwrap_or(due))
    }

    /// When its authority is to be asked for a window.
    pub(super) fn ask_at(&self) -> Option<OffsetDateTime> {
        self.kept.as_ref()?;
        Some(self.status.ask_at.unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }

    /// When there is something to do.
    pub(super) fn next(&self, settings: &str) -> OffsetDateTime {
        let order_at = self.order_at(settings);
        self.ask_at().map_or(order_at, |ask_at| ask_at.min(order_at))
    }
}

/// What stands for a certificate.
pub(super) fn leaf(kept: &Kept) -> String {
    kept.served.key.cert.first().map(|leaf| super::short_hash(leaf)).unwrap_or_default()
}

/// A status without what was written when the clock was ahead.
fn without_future(mut status: Status, now: OffsetDateTime) -> Status {
    let (pause, limit, asking) = times::AHEAD;
    let longest = match &status.fault {
        Some(fault) if fault.word == FaultKind::RateLimited.word() => limit,
        _ => pause,
    };
    status.fault = status.fault.filter(|fault| {
        let is_past = fault.at <= now + SKEW;
        if !is_past {
            status.retry_at = None;
        }
        is_past
    });
    status.retry_at = status.retry_at.filter(|at| *at <= now + longest);
    status.ask_at = status.ask_at.filter(|at| *at <= now + asking);
    status.limited.retain(|_, until| *until <= (now + limit).unix_timestamp());
    status
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::certs::acme::{About, FaultNote};
    use crate::certs::load_pair;
    use crate::config::{PemPair, PemSource};

    const NOW: OffsetDateTime = time::macros::datetime!(2026-11-22 12:00 UTC);

    fn days(days: i64) -> OffsetDateTime {
        NOW + Duration::days(days)
    }

    /// A certificate that begins and ends so many days from now.
    fn kept(begin: i64, end: i64, ordered: OffsetDateTime) -> Kept {
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).expect("valid");
        (params.not_before, params.not_after) = (days(begin), days(end));
        let key = rcgen::KeyPair::generate().expect("made");
        let cert = params.self_signed(&key).expect("signed").pem();
        let pair = PemPair { cert: PemSource::Inline(cert), key: PemSource::Inline(key.serialize_pem()) };
        let about =
            About { name: "a.test".to_owned(), directory: String::new(), way: String::new(), ordered };
        let served = Arc::new(load_pair(&pair).expect("a pair"));
        Kept { served, about, number: "000001".to_owned() }
    }

    fn known(kept: Option<&Kept>, status: Status) -> Known {
        let leaf = kept.map(leaf).unwrap_or_default();
        Known::new(kept.cloned(), Status { leaf, settings: "s".to_owned(), ..status }, true, NOW)
    }

    fn failed(word: FaultKind, at: OffsetDateTime, retry_at: OffsetDateTime) -> Status {
        let fault = FaultNote { at, word: word.word().to_owned(), text: String::new() };
        Status { failures: 3, retry_at: Some(retry_at), fault: Some(fault), ..Status::default() }
    }

    #[test]
    fn what_is_known_of_another_certificate_means_nothing() {
        let (old, new) = (kept(-60, 30, days(-60)), kept(0, 90, NOW - Duration::hours(2)));
        let mut status = failed(FaultKind::Local, days(-1), days(0));
        status.renew_at = Some(days(-1));
        assert_eq!(known(Some(&old), status.clone()).order_at("s"), days(0));
        // The new one was kept, and the process killed before that was noted.
        status.leaf = leaf(&old);
        let known = Known::new(Some(new.clone()), status, true, NOW);
        assert_eq!((known.order_at("s"), known.status.failures), (days(60), 0));
        assert_eq!(known.status.leaf, leaf(&new));
    }

    #[test]
    fn one_certificate_does_not_follow_the_other_at_once() {
        // The authority's window is always past, or the clock far ahead.
        let fresh = kept(0, 90, NOW);
        let status = Status { renew_at: Some(days(-2)), ..Status::default() };
        assert_eq!(known(Some(&fresh), status.clone()).order_at("s"), NOW + Duration::hours(1));
        let stale = kept(-90, 0, NOW);
        assert_eq!(known(Some(&stale), Status::default()).order_at("s"), NOW + Duration::hours(1));
        let older = kept(-1, 89, days(-1));
        assert!(known(Some(&older), status).order_at("s") <= NOW);
    }

    #[test]
    fn moments_from_a_clock_that_was_ahead_are_forgotten() {
        let order_at = |status| known(None, status).order_at("s");
        let retry = NOW + Duration::hours(20);
        assert_eq!(order_at(failed(FaultKind::Unreachable, days(0), retry)), retry);
        assert!(order_at(failed(FaultKind::Unreachable, days(0), days(3))) <= NOW);
        assert!(order_at(failed(FaultKind::Unreachable, days(1), retry)) <= NOW, "noted tomorrow");
        assert_eq!(order_at(failed(FaultKind::RateLimited, days(0), days(6))), days(6));
        assert!(order_at(failed(FaultKind::RateLimited, days(0), days(10))) <= NOW);

        let kept = kept(-1, 89, days(-1));
        let asked =
            |at| known(Some(&kept), Status { ask_at: Some(at), ..Status::default() }).ask_at().expect("some");
        assert_eq!(asked(NOW + Duration::hours(6)), NOW + Duration::hours(6));
        assert!(asked(days(2)) <= NOW);
        let limited = [("a", days(1)), ("b", days(9))];
        let limited = limited.map(|(url, until)| (url.to_owned(), until.unix_timestamp())).into();
        let known = known(None, Status { limited, ..Status::default() });
        assert_eq!(known.status.limited.keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_certificate_of_a_clock_that_was_ahead_does_not_come_to_stay() {
        // Ordered in a year, as it seemed.
        let order_at = known(Some(&kept(-60, 30, days(300))), Status::default()).order_at("s");
        assert_eq!(order_at, days(0));
    }

    #[test]
    fn other_settings_are_tried_at_once() {
        let known = known(None, failed(FaultKind::NotBound, days(0), days(1)));
        assert_eq!(known.order_at("s"), days(1));
        assert!(known.order_at("t") <= NOW);
    }
}
