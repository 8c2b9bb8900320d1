//! One-time codes: how a login is handed from the login host to the host of a preview, through
//! the browser. A code is random, good once, for one host and one browser, for 30 s.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::logouts::SessionId;
use super::seal::{SealError, random_text};
use super::session::Session;
use crate::net::address_group;

/// How long a code is good.
const LIFETIME: Duration = Duration::from_secs(30);
/// Most codes of one session that wait to be used: as many tabs as a browser may open again at once.
const OF_SESSION_MAX: usize = 64;
/// Most for one address (of IPv6, one /64).
const OF_ADDRESS_MAX: usize = 1_000;
/// Most of all. Of each of these, the oldest goes for one more: whoever waited for it logs in again.
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
    /// Those of each, in the same order; none that was used.
    of: HashMap<Whose, VecDeque<String>>,
}

/// Whom codes are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Session(SessionId),
    Address(IpAddr),
}

/// What a code stands for.
#[derive(Debug)]
struct Handover {
    session: Session,
    host: String,
    browser: String,
    made: Instant,
    whose: [Whose; 2],
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
    /// Makes a code with which `host` gets the session, from the browser that began it, and that asks
    /// `from` there.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn make(
        &self,
        session: Session,
        host: &str,
        browser: &str,
        from: IpAddr,
    ) -> Result<String, SealError> {
        self.make_at(session, host, browser, from, Instant::now())
    }

    /// Takes a code, which is used up by it, good or not. A browser may be known by several marks.
    ///
    /// # Errors
    /// When it is not good for this host and browser, now.
    pub fn take(&self, code: &str, host: &str, browsers: &[impl AsRef<str>]) -> Result<Session, CodeFault> {
        self.take_at(code, host, browsers, Instant::now())
    }

    fn make_at(
        &self,
        session: Session,
        host: &str,
        browser: &str,
        from: IpAddr,
        now: Instant,
    ) -> Result<String, SealError> {
        let code = random_text::<24>()?;
        let whose = [Whose::Session(session.id()), Whose::Address(address_group(from))];
        let (host, browser) = (host.to_owned(), browser.to_owned());
        let mut waiting = self.0.lock();
        waiting.make_room(whose, now);
        waiting.add(code.clone(), Handover { session, host, browser, made: now, whose });
        Ok(code)
    }

    fn take_at(
        &self,
        code: &str,
        host: &str,
        browsers: &[impl AsRef<str>],
        now: Instant,
    ) -> Result<Session, CodeFault> {
        let handover = self.0.lock().take(code).ok_or(CodeFault::Unknown)?;
        if now.duration_since(handover.made) > LIFETIME {
            return Err(CodeFault::TooOld);
        }
        if handover.host != host {
            return Err(CodeFault::OtherHost);
        }
        if !browsers.iter().any(|browser| browser.as_ref() == handover.browser) {
            return Err(CodeFault::OtherBrowser);
        }
        Ok(handover.session)
    }
}

impl Waiting {
    fn make_room(&mut self, whose: [Whose; 2], now: Instant) {
        while let Some((made, oldest)) = self.order.front()
            && (self.codes.len() >= WAITING_MAX || now.duration_since(*made) > LIFETIME)
        {
            let oldest = oldest.clone();
            self.take(&oldest);
            self.order.pop_front();
        }
        // Those that are used or gone take no room for long.
        if self.order.len() >= 2 * WAITING_MAX {
            let codes = &self.codes;
            self.order.retain(|(_, code)| codes.contains_key(code));
        }
        for (whose, most) in whose.into_iter().zip([OF_SESSION_MAX, OF_ADDRESS_MAX]) {
            let own = self.of.get(&whose).filter(|own| own.len() >= most);
            if let Some(oldest) = own.and_then(|own| own.front().cloned()) {
                self.take(&oldest);
            }
        }
    }

    fn add(&mut self, code: String, handover: Handover) {
        for whose in handover.whose {
            self.of.entry(whose).or_default().push_back(code.clone());
        }
        self.order.push_back((handover.made, code.clone()));
        self.codes.insert(code, handover);
    }

    fn take(&mut self, code: &str) -> Option<Handover> {
        let handover = self.codes.remove(code)?;
        for whose in handover.whose {
            let Some(own) = self.of.get_mut(&whose) else { continue };
            // Mostly the first.
            own.iter().position(|known| known == code).and_then(|at| own.remove(at));
            if own.is_empty() {
                self.of.remove(&whose);
            }
        }
        Some(handover)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::sessions::tests::{HERE, session, session_of};

    #[test]
    fn a_code_is_good_once_in_time_for_one_host_and_browser() {
        let (codes, now) = (Codes::default(), Instant::now());
        let make = || codes.make_at(session(), "a.test", "b1", HERE, now).expect("made");
        let take = |code: &str, host, browser, after| {
            codes.take_at(code, host, &["b0", browser], now + Duration::from_secs(after)).map(drop)
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

    /// The `number`th of very many addresses, each with a session of its own.
    fn crowd(codes: &Codes, number: u32, now: Instant) -> String {
        let from = IpAddr::from(number.to_be_bytes());
        codes.make_at(session_of(number.into()), "a", "b", from, now).expect("made")
    }

    fn take(codes: &Codes, code: &str, now: Instant) -> Result<(), CodeFault> {
        codes.take_at(code, "a", &["b"], now).map(drop)
    }

    #[test]
    fn waiting_codes_are_bounded() {
        let (codes, now) = (Codes::default(), Instant::now());
        let first = crowd(&codes, 0, now);
        (1..=10_000).for_each(|number| drop(crowd(&codes, number, now)));
        assert_eq!(codes.0.lock().codes.len(), WAITING_MAX);
        assert_eq!(take(&codes, &first, now), Err(CodeFault::Unknown));
        crowd(&codes, 0, now + LIFETIME * 2);
        let waiting = codes.0.lock();
        assert_eq!((waiting.codes.len(), waiting.order.len(), waiting.of.len()), (1, 1, 2));
    }

    #[test]
    fn nobody_makes_codes_enough_for_others_to_go() {
        let (codes, now) = (Codes::default(), Instant::now());
        let victim = crowd(&codes, 1, now);
        let make = |id, from: &str| {
            let from = from.parse().expect("an address");
            codes.make_at(session_of(id), "a", "b", from, now).expect("made")
        };
        // One session from everywhere.
        let (first, second) = (make(7, "::1"), make(7, "::1"));
        (0..3 * WAITING_MAX).for_each(|number| drop(make(7, &format!("2001:db8:0:{:x}::1", number % 9))));
        assert_eq!(take(&codes, &second, now), Err(CodeFault::Unknown));
        assert_eq!(codes.0.lock().codes.len(), 1 + OF_SESSION_MAX);
        assert!(codes.0.lock().order.len() <= 2 * WAITING_MAX);
        // One address with very many sessions.
        (0..3 * WAITING_MAX as u128).for_each(|number| drop(make(100 + number, "192.0.2.1")));
        assert_eq!(codes.0.lock().codes.len(), 1 + OF_SESSION_MAX + OF_ADDRESS_MAX);
        assert_eq!(take(&codes, &first, now), Err(CodeFault::Unknown));
        assert_eq!(take(&codes, &victim, now), Ok(()));
    }

    #[test]
    fn used_codes_take_up_nothing() {
        let (codes, now) = (Codes::default(), Instant::now());
        let last = crowd(&codes, 1, now);
        for _ in 0..2 * OF_SESSION_MAX {
            let code = crowd(&codes, 1, now);
            assert_eq!(take(&codes, &code, now), Ok(()));
        }
        assert_eq!(take(&codes, &last, now), Ok(()));
        assert!(codes.0.lock().of.is_empty());
    }
}
