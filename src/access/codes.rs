//! One-time codes: how a login is handed from the login host to the host of a preview, through
//! the browser. A code is random, good once, for one host and one browser, for 30 s.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::seal::{SealError, random_text};
use super::session::Session;

/// How long a code is good.
const LIFETIME: Duration = Duration::from_secs(30);
/// Most codes that wait to be used. The oldest goes for one more: whoever waited for it logs in again.
const WAITING_MAX: usize = 10_000;

/// The codes that were given out and not used. They end with the process: who comes with one later
/// logs in again.
#[derive(Debug, Default)]
pub struct Codes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    codes: HashMap<String, Handover>,
    /// In the order of their making, which is that of their ends; used ones may still be there.
    order: VecDeque<(Instant, String)>,
}

/// What a code stands for.
#[derive(Debug)]
struct Handover {
    session: Session,
    host: String,
    browser: String,
    made: Instant,
}

/// Why a code is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeFault {
    /// Used already, made up, or of a gateway that has been restarted.
    #[error("this login was completed already, or is not known here any more")]
    Unknown,
    /// Too old.
    #[error("this login was not completed within {} s", LIFETIME.as_secs())]
    TooOld,
    /// For another host.
    #[error("this login is for another host")]
    OtherHost,
    /// Begun by another browser.
    #[error("this login was not begun in this browser")]
    OtherBrowser,
}

impl Codes {
    /// Makes a code with which `host` gets the session, from the browser that began it.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn make(&self, session: Session, host: &str, browser: &str) -> Result<String, SealError> {
        self.make_at(session, host, browser, Instant::now())
    }

    /// Takes a code, which is used up by it, good or not.
    ///
    /// # Errors
    /// When it is not good for this host and browser, now.
    pub fn take(&self, code: &str, host: &str, browser: &str) -> Result<Session, CodeFault> {
        self.take_at(code, host, browser, Instant::now())
    }

    fn make_at(
        &self,
        session: Session,
        host: &str,
        browser: &str,
        now: Instant,
    ) -> Result<String, SealError> {
        let code = random_text::<24>()?;
        let handover = Handover { session, host: host.to_owned(), browser: browser.to_owned(), made: now };
        let mut waiting = self.0.lock();
        while let Some((made, oldest)) = waiting.order.front()
            && (waiting.order.len() >= WAITING_MAX || now.duration_since(*made) > LIFETIME)
        {
            let oldest = oldest.clone();
            waiting.codes.remove(&oldest);
            waiting.order.pop_front();
        }
        waiting.order.push_back((now, code.clone()));
        waiting.codes.insert(code.clone(), handover);
        Ok(code)
    }

    fn take_at(&self, code: &str, host: &str, browser: &str, now: Instant) -> Result<Session, CodeFault> {
        let handover = self.0.lock().codes.remove(code).ok_or(CodeFault::Unknown)?;
        if now.duration_since(handover.made) > LIFETIME {
            return Err(CodeFault::TooOld);
        }
        if handover.host != host {
            return Err(CodeFault::OtherHost);
        }
        if handover.browser != browser {
            return Err(CodeFault::OtherBrowser);
        }
        Ok(handover.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::sessions::tests::session;

    #[test]
    fn a_code_is_good_once_in_time_for_one_host_and_browser() {
        let (codes, now) = (Codes::default(), Instant::now());
        let make = || codes.make_at(session(), "a.test", "b1", now).expect("made");
        let take = |code: &str, host, browser, after| {
            codes.take_at(code, host, browser, now + Duration::from_secs(after)).map(drop)
        };
        let code = make();
        assert_eq!(take(&code, "a.test", "b1", 30), Ok(()));
        assert_eq!(take(&code, "a.test", "b1", 30), Err(CodeFault::Unknown));
        let code = make();
        assert_eq!(take(&code, "b.test", "b1", 1), Err(CodeFault::OtherHost));
        assert_eq!(
            take(&code, "a.test", "b1", 1),
            Err(CodeFault::Unknown),
            "shown to another host, it is used up"
        );
        assert_eq!(take(&make(), "a.test", "b2", 1), Err(CodeFault::OtherBrowser));
        assert_eq!(take(&make(), "a.test", "b1", 31), Err(CodeFault::TooOld));
        assert_eq!(take("", "a.test", "b1", 1), Err(CodeFault::Unknown));
    }

    #[test]
    fn waiting_codes_are_bounded() {
        let (codes, now) = (Codes::default(), Instant::now());
        let first = codes.make_at(session(), "a", "b", now).expect("made");
        for _ in 0..WAITING_MAX {
            codes.make_at(session(), "a", "b", now).expect("made");
        }
        assert_eq!(codes.0.lock().codes.len(), WAITING_MAX);
        assert_eq!(codes.take_at(&first, "a", "b", now).map(drop), Err(CodeFault::Unknown));
        codes.make_at(session(), "a", "b", now + LIFETIME * 2).expect("made");
        let waiting = codes.0.lock();
        assert_eq!((waiting.codes.len(), waiting.order.len()), (1, 1));
    }
}
