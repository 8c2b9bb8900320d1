//! What is said to plain HTTP where only HTTPS is spoken.

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode};

use super::body::{Answer, Outgoing};
use super::respond::{Failure, Form, own};
use crate::config::BaseUrl;
use crate::name::HostName;
use crate::observe::Reason;

/// Says where HTTPS is: by a redirect where that gives nothing away that was sent in the clear.
///
/// # Errors
/// When it does.
pub(super) fn to_https(
    base: &BaseUrl,
    request: &Request<Outgoing>,
    host: Option<&HostName>,
) -> Result<Response<Answer>, Failure> {
    let host = host.unwrap_or(&base.host);
    let port = base.port.filter(|_| base.https).map(|port| format!(":{port}")).unwrap_or_default();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let location = HeaderValue::try_from(format!(
        "https://{host}{port}{}",
        request.uri().path_and_query().map_or("/", PathAndQuery::as_str)
    ));
    if let (true, false, Ok(location)) =
        (is_read, request.headers().contains_key(header::AUTHORIZATION), location)
    {
        let text = format!("HTTPS is spoken here; go to https://{host}{port}/\n");
        let mut answer = own(StatusCode::PERMANENT_REDIRECT, Form::Text, text);
        answer.headers_mut().insert(header::LOCATION, location);
        return Ok(answer);
    }
    Err(Failure::new(
        Reason::PlainHttp,
        StatusCode::BAD_REQUEST,
        "this is plain HTTP, and only HTTPS is spoken on this port",
        format!("use `https://{host}{port}/`; what was sent has crossed the network unencrypted"),
    ))
}
