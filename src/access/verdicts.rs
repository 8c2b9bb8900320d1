//! Tokens that were checked and hold, so that a signature is not checked again for each request.
//!
//! Only what holds is remembered: a wrong token costs its check each time, and takes no room. A
//! token is known by its hash, so that none lies in memory for longer than its request.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use time::OffsetDateTime;

use super::hold::Hold;
use super::token::Claims;
use crate::name::Thumbprint;

/// Tokens that are remembered at least, if so many come. Twice as many are at most: 16 MiB, if all
/// are as long as they may be.
const REMEMBERED: usize = 1024;

/// A token that holds.
#[derive(Debug)]
pub struct Verdict {
    /// What it says.
    pub claims: Claims,
    /// How long it holds.
    pub hold: Hold,
    /// Whose key it is made with.
    pub maker: Maker,
}

/// Who made a token.
#[derive(Debug)]
pub enum Maker {
    /// An agent, for what is offered with the same key.
    Agent(Thumbprint),
    /// A configured issuer, for the profiles that the token names.
    Issuer,
}

/// What a token is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hashes a token (SHA-256).
    pub fn of(token: &str) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        Self(hash)
    }
}

/// The tokens that were checked of late.
#[derive(Debug, Default)]
pub struct Verdicts(Mutex<Halves>);

/// When the young half is full, it takes the place of the old one: what was not asked for since is
/// forgotten, without a look at each.
#[derive(Debug, Default)]
struct Halves {
    young: HashMap<TokenHash, Arc<Verdict>>,
    old: HashMap<TokenHash, Arc<Verdict>>,
}

impl Verdicts {
    /// What is known of a token, if it still holds at this time.
    pub fn find(&self, token: &TokenHash, now: OffsetDateTime) -> Option<Arc<Verdict>> {
        let mut halves = self.0.lock();
        let found = halves.young.get(token).or_else(|| halves.old.get(token)).cloned()?;
        if found.hold.over_at(now).is_some() {
            halves.young.remove(token);
            halves.old.remove(token);
            return None;
        }
        if !halves.young.contains_key(token) {
            halves.keep(*token, found.clone());
        }
        Some(found)
    }

    /// Remembers a token.
    pub fn keep(&self, token: TokenHash, verdict: Arc<Verdict>) {
        self.0.lock().keep(token, verdict);
    }
}

impl Halves {
    fn keep(&mut self, token: TokenHash, verdict: Arc<Verdict>) {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token, verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::hold::Basis;
    use crate::observe::Reason;

    fn verdict(hold: Hold) -> Arc<Verdict> {
        let claims = Claims { subject: None, profiles: Vec::new(), expires: None };
        Arc::new(Verdict { claims, hold, maker: Maker::Issuer })
    }

    #[test]
    fn what_no_longer_holds_is_forgotten() {
        let (verdicts, now, basis) = (Verdicts::default(), OffsetDateTime::now_utc(), Basis::default());
        let (timed, keyed) = (TokenHash::of("a"), TokenHash::of("b"));
        verdicts.keep(timed, verdict(Hold::new(Some(now), None)));
        verdicts.keep(keyed, verdict(Hold::new(None, Some(basis.clone()))));
        assert!(verdicts.find(&timed, now - time::Duration::seconds(1)).is_some());
        assert!(verdicts.find(&timed, now).is_none());
        assert!(verdicts.find(&timed, now - time::Duration::seconds(1)).is_none(), "it was kept");
        assert!(verdicts.find(&keyed, now).is_some());
        basis.end(Reason::IssuerKeyRemoved);
        assert!(verdicts.find(&keyed, now).is_none());
        assert!(verdicts.find(&TokenHash::of("c"), now).is_none());
    }

    #[test]
    fn what_is_asked_for_stays_among_any_number_of_others() {
        let (verdicts, now, used) = (Verdicts::default(), OffsetDateTime::now_utc(), TokenHash::of("used"));
        verdicts.keep(used, verdict(Hold::default()));
        let unused = TokenHash::of("unused");
        verdicts.keep(unused, verdict(Hold::default()));
        for number in 0..REMEMBERED * 5 {
            verdicts.keep(TokenHash::of(&number.to_string()), verdict(Hold::default()));
            if number % 500 == 0 {
                assert!(verdicts.find(&used, now).is_some(), "forgotten after {number}");
            }
        }
        assert!(verdicts.find(&unused, now).is_none());
        let halves = verdicts.0.lock();
        assert!(halves.young.len() + halves.old.len() <= 2 * REMEMBERED);
    }
}
