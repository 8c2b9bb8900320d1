//! Whether the operator's certificates are valid now, and for how much longer: what clients are going to
//! refuse is said before they do.
//!
//! Refuses no start for it: the rest of the gateway is better up than down, and the file may be
//! replaced while it runs.

use time::{Duration, OffsetDateTime};

use super::Served;
use super::dns::Finding;
use super::given::readable;
use crate::config::Settings;
use crate::observe::shown_time;

/// How long before its end a certificate is to be renewed; one of a few days, in its last third.
const SOON: Duration = Duration::days(7);

/// What is wrong with the time of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Ended,
    NotYet,
    EndsSoon,
}

impl Served {
    fn trouble(&self, now: OffsetDateTime) -> Option<Trouble> {
        let soon = SOON.min((self.not_after - self.not_before) / 3);
        if self.not_after <= now {
            Some(Trouble::Ended)
        } else if self.not_before > now {
            Some(Trouble::NotYet)
        } else if self.not_after - now <= soon {
            Some(Trouble::EndsSoon)
        } else {
            None
        }
    }

    /// Logs what will keep clients from accepting this certificate, and whether others may have its key.
    pub fn warn(&self, source_name: &str) {
        if let Some(shared) = &self.shared_key {
            shared.warn("the private key of a certificate");
        }
        let now = OffsetDateTime::now_utc();
        if let Some(trouble) = self.trouble(now) {
            let not_after = shown_time(self.not_after);
            tracing::warn!(not_after, "{}", sentence(self, source_name, trouble, now));
        }
        if self.names.is_empty() {
            tracing::warn!(
                certificate = source_name,
                "a certificate has no subject alternative name; clients will refuse it"
            );
        }
    }
}

/// What happened, and what to do.
fn sentence(served: &Served, source_name: &str, trouble: Trouble, now: OffsetDateTime) -> String {
    let (begin, end) = (shown_time(served.not_before), shown_time(served.not_after));
    match trouble {
        Trouble::Ended => format!(
            "the certificate in {source_name} ended at {end}, and clients refuse it; put a new one in its place, which is then taken up without a restart"
        ),
        Trouble::NotYet => format!(
            "the certificate in {source_name} begins to be valid at {begin}, and clients refuse it until then; put one in its place that is valid now, or set this machine's clock right (it says {})",
            shown_time(now)
        ),
        Trouble::EndsSoon => format!(
            "the certificate in {source_name} ends at {end}; renew it where it comes from, and put the new one in its place"
        ),
    }
}

/// What is wrong with the times of the operator's certificates: one that clients refuse is bad where no
/// other covers its names. What cannot be read is passed over. Reads files: not for a busy task.
#[must_use]
pub fn check_lifetimes(settings: &Settings) -> Vec<Finding> {
    let now = OffsetDateTime::now_utc();
    let all = readable(&settings.tls.certificates);
    let is_covered = |name: &String| {
        let is_good =
            |served: &Served| !matches!(served.trouble(now), Some(Trouble::Ended | Trouble::NotYet));
        all.iter().any(|(_, served)| is_good(served) && served.names.contains(name))
    };
    let is_ordered = |name: &String| {
        settings.acme.iter().flat_map(|acme| &acme.names).any(|ordered| ordered.to_string() == *name)
    };
    let finding = |(source_name, served): &(String, Served)| {
        let trouble = served.trouble(now)?;
        let what = sentence(served, source_name, trouble, now);
        Some(match trouble {
            Trouble::EndsSoon => Finding::note(what),
            _ if served.names.iter().all(is_covered) => {
                Finding::note(format!("{what}; others cover its names, so that it may as well be taken out"))
            }
            _ if served.names.iter().all(|name| is_covered(name) || is_ordered(name)) => {
                Finding::note(format!("{what}; until then, one that is ordered is shown"))
            }
            _ => Finding::bad(what),
        })
    };
    all.iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::load_pair;
    use crate::config::{PemPair, PemSource};

    #[test]
    fn a_week_before_the_end_or_in_the_last_third() {
        let now = OffsetDateTime::now_utc();
        let trouble = |begin: Duration, end: Duration| {
            let key = rcgen::KeyPair::generate().expect("key");
            let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).expect("valid name");
            (params.not_before, params.not_after) = (now + begin, now + end);
            let cert = params.self_signed(&key).expect("signed").pem();
            let pair = PemPair { cert: PemSource::Inline(cert), key: PemSource::Inline(key.serialize_pem()) };
            load_pair(&pair).expect("a pair").trouble(now)
        };
        let (day, hour) = (Duration::days, Duration::hours);
        assert_eq!(trouble(day(-80), day(8)), None);
        assert_eq!(trouble(day(-80), day(6)), Some(Trouble::EndsSoon));
        assert_eq!(trouble(day(-80), hour(-1)), Some(Trouble::Ended));
        assert_eq!(trouble(hour(1), day(80)), Some(Trouble::NotYet));
        assert_eq!(trouble(day(-2), day(4)), None, "of six days, in the last two");
        assert_eq!(trouble(day(-5), day(1)), Some(Trouble::EndsSoon));
    }
}
