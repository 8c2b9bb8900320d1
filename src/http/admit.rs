//! Whether a request may come at all: from where its visitor is, how often, and after how many failed
//! logins; and what those are told who may not.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

use super::Http;
use super::credentials::login_of;
use super::headers::Illegible;
use super::respond::Failure;
use crate::access::{Bounds, LockedOut, Login, NetworkDenial, Permit, Running, TooManyRequests, Way};
use crate::net::VisitorAddr;
use crate::observe::Reason;
use crate::registry::Target;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whence<'a> {
    /// The last address that is known.
    pub(super) visitor: VisitorAddr,
    /// What was said of it, if it could not be read.
    pub(super) illegible: Option<&'a Illegible>,
}

impl Whence<'_> {
    /// Where lists decide, a proxy's own address must not stand for somebody it failed to name.
    fn is_known(&self) -> Result<(), Failure> {
        let Some(Illegible(word)) = self.illegible else { return Ok(()) };
        let what = "it cannot be told where you come from, and so not whether you may come here";
        let next = "tell the operator of the proxy in front to send addresses in `X-Forwarded-For`";
        let mut failure = Failure::new(Reason::NetworkDenied, StatusCode::FORBIDDEN, what, next);
        failure.for_log =
            Some(format!("`{word}` in `X-Forwarded-For`, as a trusted proxy sent it, is not an address"));
        Err(failure)
    }
}

impl Http {
    /// May there be a request from here, whatever for?
    pub(super) fn admit(&self, whence: Whence<'_>) -> Result<(), Failure> {
        if self.admission.has_list() {
            whence.is_known()?;
        }
        self.admission.visitor(whence.visitor).map_err(|denial| from_there(&denial))
    }

    /// May there be a request from here for what has these bounds?
    pub(super) fn admit_to(&self, bounds: &Bounds, whence: Whence<'_>) -> Result<(), Failure> {
        if bounds.networks.as_ref().is_some_and(|list| !list.is_open()) {
            whence.is_known()?;
        }
        bounds.check(whence.visitor).map_err(|denial| from_there(&denial))
    }

    /// Counts a request of this visitor, allowed or not, for as long as the value lives; with `bounds`,
    /// as those say.
    pub(super) fn count_visitor(
        &self,
        bounds: Option<&Bounds>,
        visitor: VisitorAddr,
    ) -> Result<Option<Running>, Failure> {
        self.admission.visitor_request(bounds, visitor).map_err(|many| too_many(&many))
    }

    /// Counts a request to this target that was allowed by this permit.
    pub(super) fn count_target(&self, target: &Target, permit: &Permit) -> Result<Option<Running>, Failure> {
        self.admission.target_request(target.bounds(), permit).map_err(|many| too_many(&many))
    }

    /// May somebody be let in by what they have shown? Not by a token while the address is refused: it
    /// could be one of many that are tried. A cookie comes from a login.
    pub(super) fn admit_by(
        &self,
        way: Option<Way>,
        headers: &HeaderMap,
        visitor: VisitorAddr,
    ) -> Result<(), Failure> {
        match way {
            Some(Way::Bearer | Way::Basic) => self.admit_login(login_of(headers), visitor),
            Some(Way::Cookie | Way::Session | Way::Guest) | None => Ok(()),
        }
    }

    /// May somebody log in so from here?
    pub(super) fn admit_login(&self, how: Login, visitor: VisitorAddr) -> Result<(), Failure> {
        self.admission.login(visitor.0, how).map_err(|locked| locked_out(&locked))
    }

    /// The same where a token is for nobody but the gateway.
    pub(super) fn admit_with(&self, headers: &HeaderMap, visitor: VisitorAddr) -> Result<(), Failure> {
        let has_token = headers.contains_key(header::AUTHORIZATION);
        self.admit_by(has_token.then_some(Way::Bearer), headers, visitor)
    }

    /// Counts a failed login, and waits the longer the more of them there were. Cancel safe: it was
    /// counted first.
    ///
    /// # Errors
    /// When the address is refused from now on, or was already.
    pub(super) async fn login_failed(&self, how: Login, visitor: VisitorAddr) -> Result<(), Failure> {
        let counted = self.admission.login_failed(visitor.0, how);
        let pause = counted.map_err(|locked| locked_out(&locked))?;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// What a failed login is answered, once it was counted.
    pub(super) async fn answer_later(&self, failure: Failure, visitor: VisitorAddr) -> Failure {
        let Some(how) = failure.failed_login else { return failure };
        self.login_failed(how, visitor).await.err().unwrap_or(failure)
    }
}

/// What somebody is told who may not come from where they are.
pub(super) fn from_there(denial: &NetworkDenial) -> Failure {
    let next = "go on from an address that may come here, or ask who offers this";
    let mut failure =
        Failure::new(Reason::NetworkDenied, StatusCode::FORBIDDEN, "your address may not come here", next);
    failure.for_log = Some(denial.by.to_string());
    failure
}

fn too_many(many: &TooManyRequests) -> Failure {
    let after = many.retry_after();
    let next = format!("try again in {after} s, and more slowly");
    Failure::new(Reason::TooManyRequests, StatusCode::TOO_MANY_REQUESTS, many.to_string(), next)
        .with(header::RETRY_AFTER, HeaderValue::from(after))
}

fn locked_out(locked: &LockedOut) -> Failure {
    let after = locked.left.as_secs() + 1;
    let what = match locked.how {
        Login::Ssh | Login::Token => "too many logins from your address have failed",
        Login::Page => "too many tokens that web pages sent from your address did not hold",
    };
    let next = format!("try again in {after} s, with a login that holds");
    Failure::new(Reason::TooManyFailures, StatusCode::TOO_MANY_REQUESTS, what, next)
        .with(header::RETRY_AFTER, HeaderValue::from(after))
}
