//! The gateway's own hosts: `auth.` and `api.` below the base host, and the base host itself.

use http::{Method, Response, StatusCode};

use super::body::Answer;
use super::respond::{Failure, Form, escape, own, page};
use super::route::Own;
use crate::config::BaseUrl;
use crate::name::HostName;
use crate::observe::Reason;

/// Answers a request that is for the gateway itself.
///
/// # Errors
/// When there is nothing under this path, or not with this method.
pub(super) fn answer(
    place: Own,
    method: &Method,
    path: &str,
    form: Form,
    base: &BaseUrl,
) -> Result<Response<Answer>, Failure> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    match (place, path) {
        (Own::Service, "/healthz") if is_read => Ok(own(StatusCode::OK, Form::Text, "OK\n")),
        (Own::Base, "/") if is_read => Ok(front_page(form, base)),
        (Own::Service, "/healthz") | (Own::Base, "/") => Err(Failure::new(
            Reason::MethodNotAllowed,
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are for this path",
            "use one of these methods",
        )),
        // Who may log in or list tunnels is still to come; until then nobody has a valid token.
        (Own::Service, path) if path == "/login" || path.starts_with("/profiles/") => Err(Failure::new(
            Reason::LoginRequired,
            StatusCode::UNAUTHORIZED,
            "this needs a valid token",
            "ask the operator of this gateway",
        )),
        _ => Err(Failure::new(
            Reason::NotFound,
            StatusCode::NOT_FOUND,
            "there is nothing here under this path",
            format!("tunnels are at `{}`; check the host and the path", pattern(base)),
        )),
    }
}

fn front_page(form: Form, base: &BaseUrl) -> Response<Answer> {
    let what = "This is a oneport gateway: it shows services that agents offer through a tunnel";
    let pattern = pattern(base);
    match form {
        Form::Html => {
            let text = escape(&pattern);
            let content = format!("<p>{what}. Each has an address of its own: <code>{text}</code>.</p>");
            own(StatusCode::OK, form, page("oneport", &content))
        }
        Form::Json => own(StatusCode::OK, form, format!("{}\n", serde_json::json!({ "message": what }))),
        Form::Text => {
            own(StatusCode::OK, form, format!("{what}.\nEach has an address of its own: {pattern}\n"))
        }
    }
}

/// What tunnels' URLs look like.
fn pattern(base: &BaseUrl) -> String {
    base.url_of(&HostName::child_of("NAME", &base.host))
}
