//! Where a login or a guest arrives at a preview: `/.oneport/login` on its own host takes a one-time
//! code, `/.oneport/guest` a guest link; each sets the host's cookie, and sends the browser on to
//! where it wanted to go.

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode};

use super::Http;
use super::body::{Answer, Outgoing};
use super::respond::{Failure, Form, own};
use super::session::{self, Browser, Kind};
use super::wanted::{field, is_path};
use crate::access::{AccessLevel, GUEST_PATH};
use crate::config::BaseUrl;
use crate::name::HostName;
use crate::observe::Reason;
use crate::registry::Tunnel;

/// Where a login arrives: a path that a private preview's service cannot have.
pub(super) const PATH: &str = "/.oneport/login";

/// Answers what is not for the preview's service, but for its host; `None` for all else.
///
/// # Errors
/// When the code or the link is not good for this host, or the code not for this browser.
pub(super) fn answer(
    http: &Http,
    tunnel: &Tunnel,
    host: &HostName,
    request: &Request<Outgoing>,
) -> Result<Option<Response<Answer>>, Failure> {
    match ours(request.uri().path()) {
        Some(PATH) if tunnel.access == AccessLevel::Private => {
            complete(http, tunnel, host, request).map(Some)
        }
        // On a public preview as well: no service is to see a link.
        Some(GUEST_PATH) => welcome(http, tunnel, host, request).map(Some),
        _ => Ok(None),
    }
}

/// Answers a guest link that was put below `/proxy/NAME`: it is good on the preview's own host, and its
/// service is not to see it here either. `path` is the path below.
pub(super) fn elsewhere(
    http: &Http,
    tunnel: &Tunnel,
    path: &PathAndQuery,
    request: &Request<Outgoing>,
) -> Option<Response<Answer>> {
    let ours = ours(path.path()).filter(|path| *path == GUEST_PATH)?;
    let base = &http.settings.base;
    let host = base.origin_of(&HostName::child_of(tunnel.name.as_str(), &base.host));
    let query = path.query().map_or(String::new(), |query| format!("?{query}"));
    Some(go_on(request, &format!("{host}{ours}{query}"), None))
}

/// Which of our paths it is, with slashes more or fewer: links are bent on their way.
fn ours(path: &str) -> Option<&'static str> {
    let mut steps = path.split('/').filter(|step| !step.is_empty());
    // Nearly all are told apart by the first.
    if steps.next() != Some(".oneport") {
        return None;
    }
    match (steps.next(), steps.next()) {
        (Some("login"), None) => Some(PATH),
        (Some("guest"), None) => Some(GUEST_PATH),
        _ => None,
    }
}

/// Completes a login.
fn complete(
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
    let to = way_on(base, host, query);
    let code = field(query, "code").unwrap_or_default();
    let browser = Browser::marks_in(Kind::Browser, request.headers(), base);
    let cookie = match http.sessions.redeem(&code, host.as_str(), &browser) {
        Ok(session) if session.may_see(&tunnel.owner) => session::set_visit(http, &session, tunnel, host),
        // Somebody who went back or reloaded is logged in already.
        _ if session::of_visit(http, request.headers(), Some(host)).is_some() => None,
        Ok(_) => return Err(failed("this login is not for the agent who offers this preview now", &to)),
        Err(fault) => return Err(failed(&fault.to_string(), &to)),
    };
    Ok(go_on(request, &to, cookie))
}

/// Lets a guest in. Looking uses nothing up, so that programs which try links do no harm.
fn welcome(
    http: &Http,
    tunnel: &Tunnel,
    host: &HostName,
    request: &Request<Outgoing>,
) -> Result<Response<Answer>, Failure> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Failure::new(
            Reason::MethodNotAllowed,
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are for this path",
            "open the link with a browser",
        )
        .with(header::ALLOW, HeaderValue::from_static("GET, HEAD")));
    }
    let base = &http.settings.base;
    let query = request.uri().query().unwrap_or_default();
    let to = way_on(base, host, query);
    if tunnel.access == AccessLevel::Public {
        return Ok(go_on(request, &to, None));
    }
    let link = field(query, "link").unwrap_or_default();
    let guest = http.sessions.shares().guest(&link, host.as_str(), &tunnel.owner);
    let guest = guest.map_err(|fault| {
        let next = match fault.reason() {
            Reason::LinkEnded => "ask whoever sent it for another",
            _ => "open it exactly as it was sent to you, or ask for another",
        };
        Failure::new(fault.reason(), StatusCode::FORBIDDEN, fault.to_string(), next)
            .with(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
    })?;
    tracing::info!(link = %guest.id, %host, "a guest came");
    Ok(go_on(request, &to, Kind::Guest.set(base, &link, guest.left().as_secs())))
}

/// Where somebody goes on to: a path on this host, and nowhere else.
fn way_on(base: &BaseUrl, host: &HostName, query: &str) -> String {
    let path = field(query, "returnPath").filter(|path| is_path(path)).unwrap_or_else(|| "/".to_owned());
    format!("{}{path}", base.origin_of(host))
}

/// Sends somebody on. Who sends `Authorization` is told where to instead: it is redirected nowhere.
fn go_on(request: &Request<Outgoing>, to: &str, cookie: Option<HeaderValue>) -> Response<Answer> {
    let is_sent = !request.headers().contains_key(header::AUTHORIZATION);
    let status = if is_sent { StatusCode::SEE_OTHER } else { StatusCode::OK };
    let mut answer = own(status, Form::Text, format!("go to {to}\n"));
    let headers = answer.headers_mut();
    session::put(headers, cookie);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let (true, Ok(to)) = (is_sent, HeaderValue::try_from(to)) {
        headers.insert(header::LOCATION, to);
    }
    answer
}

fn failed(what: &str, to: &str) -> Failure {
    let next = format!("open {to} again, in a browser that takes cookies");
    Failure::new(Reason::LoginFailed, StatusCode::BAD_REQUEST, what.to_owned(), next)
}
