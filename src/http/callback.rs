//! Where a login arrives at a preview: `/.oneport/login` on its own host takes a one-time code,
//! sets the host's cookie, and sends the browser on to where it wanted to go.

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::Http;
use super::body::{Answer, Outgoing};
use super::login::{field, is_path};
use super::respond::{Failure, Form, own};
use super::session::{self, Browser, Kind};
use crate::name::HostName;
use crate::observe::Reason;
use crate::registry::Tunnel;

/// The path that a preview's own service cannot have.
pub(super) const PATH: &str = "/.oneport/login";

/// Completes a login.
///
/// # Errors
/// When the code is not good for this host and browser.
pub(super) fn complete(
    http: &Http,
    tunnel: &Tunnel,
    host: &HostName,
    request: &Request<Outgoing>,
) -> Result<Response<Answer>, Failure> {
    let base = &http.settings.base;
    if *request.method() != Method::GET {
        // Least of all HEAD, with which programs try links: it would use up the code.
        return Err(Failure::new(
            Reason::MethodNotAllowed,
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is for this path",
            "open the link with a browser",
        ));
    }
    let query = request.uri().query().unwrap_or_default();
    let path = field(query, "returnPath").filter(|path| is_path(path)).unwrap_or_else(|| "/".to_owned());
    let to = format!("{}{path}", base.url_of(host).trim_end_matches('/'));
    let code = field(query, "code").unwrap_or_default();
    let browser = Browser::mark_in(Kind::Browser, request.headers(), base).unwrap_or_default();
    let cookie = match http.sessions.redeem(&code, host.as_str(), &browser) {
        Ok(session) if session.may_see(&tunnel.owner) => session::set_visit(http, &session, tunnel, host),
        // Somebody who went back or reloaded is logged in already.
        _ if session::of_visit(http, request.headers(), Some(host)).is_some() => None,
        Ok(_) => return Err(failed("this login is not for the agent who offers this preview now", &to)),
        Err(fault) => return Err(failed(&fault.to_string(), &to)),
    };
    let mut answer = own(StatusCode::SEE_OTHER, Form::Text, format!("go to {to}\n"));
    let headers = answer.headers_mut();
    session::put(headers, cookie);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(to) = HeaderValue::try_from(to) {
        headers.insert(header::LOCATION, to);
    }
    Ok(answer)
}

fn failed(what: &str, to: &str) -> Failure {
    let next = format!("open {to} again, in a browser that takes cookies");
    Failure::new(Reason::LoginFailed, StatusCode::BAD_REQUEST, what.to_owned(), next)
}
