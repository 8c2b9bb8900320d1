//! CORS preflights (Fetch standard, section 4.8) of visitors who have shown nothing: browsers send them
//! without any login, so that they pass to private tunnels as well. Only what makes one goes there, and
//! only its answer comes back: a service that does not look at the method would show what it has.

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response};
use http_body::Body as _;

use super::body::{Answer, Outgoing};
use super::exchange::Exchange;
use super::headers::is_forwarded;
use super::upgrade::asks_to_switch;

/// Whether a request is a preflight and nothing more: no body, no switch, no `Authorization`.
pub(super) fn is_one(request: &Request<Outgoing>) -> bool {
    let headers = request.headers();
    let has_one = |name| headers.get_all(name).iter().count() == 1;
    *request.method() == Method::OPTIONS
        && has_one(header::ORIGIN)
        && has_one(header::ACCESS_CONTROL_REQUEST_METHOD)
        && !headers.contains_key(header::AUTHORIZATION)
        && request.body().is_end_stream()
        && !asks_to_switch(request)
        // No browser asks for the server as a whole.
        && request.uri().path().starts_with('/')
}

/// Leaves what makes a preflight; of a trusted proxy also where it says that the request comes from.
pub(super) fn confine(headers: &mut HeaderMap, trusted: bool) {
    let is_kept = |name: &HeaderName| {
        matches!(
            name.as_str(),
            "host"
                | "origin"
                | "access-control-request-method"
                | "access-control-request-headers"
                | "access-control-request-private-network"
        ) || (trusted && is_forwarded(name))
    };
    keep(headers, is_kept);
}

/// What of the service's answer is the preflight's: no body, and few fields. A body that was begun is
/// cut.
pub(super) fn answer(response: Response<Exchange>) -> Response<Answer> {
    let (parts, _) = response.into_parts();
    let mut headers = parts.headers;
    keep(&mut headers, |name| {
        matches!(name.as_str(), "allow" | "date" | "vary") || name.as_str().starts_with("access-control-")
    });
    let mut answer = Response::new(Answer::own(bytes::Bytes::new()));
    (*answer.status_mut(), *answer.headers_mut()) = (parts.status, headers);
    answer
}

fn keep(headers: &mut HeaderMap, is_kept: impl Fn(&HeaderName) -> bool) {
    let others: Vec<HeaderName> = headers.keys().filter(|name| !is_kept(name)).cloned().collect();
    for name in others {
        headers.remove(name);
    }
}
