//! The gateway's own hosts: `auth.` and `api.` below the base host, and the base host itself.

use http::header::HeaderMap;
use http::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;

use super::Http;
use super::body::{Answer, Outgoing};
use super::credentials::credentials;
use super::denial::unauthorized;
use super::login;
use super::provider;
use super::respond::{Failure, Form, escape, own, page};
use super::route::Own;
use crate::access;
use crate::config::BaseUrl;
use crate::name::HostName;
use crate::net::VisitorAddr;
use crate::observe::Reason;

/// Answers a request that is for the gateway itself.
///
/// # Errors
/// When there is nothing under this path, or not with this method, or not for this visitor.
pub(super) async fn answer(
    http: &Http,
    place: Own,
    request: Request<Outgoing>,
    form: Form,
    visitor: VisitorAddr,
) -> Result<(Response<Answer>, Reason), Failure> {
    let (uri, base) = (request.uri(), &http.settings.base);
    if matches!(
        (place, uri.path()),
        (Own::Auth | Own::Api, "/login") | (Own::Auth, "/logout" | provider::PATH)
    ) {
        return login::answer(http, place, request, form, visitor).await;
    }
    let profile = uri.path().strip_prefix("/profiles/").and_then(|rest| rest.strip_suffix("/tunnels"));
    let known = matches!(
        (place, uri.path(), profile),
        (Own::Auth | Own::Api, "/healthz", _) | (Own::Base, "/", _) | (Own::Auth | Own::Api, _, Some(_))
    );
    if !known {
        return Err(Failure::new(
            Reason::NotFound,
            StatusCode::NOT_FOUND,
            "there is nothing here under this path",
            format!("tunnels are at `{}`; check the host and the path", pattern(base)),
        ));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Failure::new(
            Reason::MethodNotAllowed,
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are for this path",
            "use one of these methods",
        ));
    }
    let answer = match (uri.path(), profile) {
        (_, Some(profile)) => tunnels_of(http, profile, request.headers())?,
        ("/healthz", _) => own(StatusCode::OK, Form::Text, "OK\n"),
        _ => front_page(form, base),
    };
    Ok((answer, Reason::OwnAnswer))
}

/// Whether it is asked there whether the gateway is well, which anybody may as often as they like.
pub(super) fn is_health(place: Own, path: &str) -> bool {
    matches!(place, Own::Auth | Own::Api) && path == "/healthz"
}

/// Whether what lies there depends on who asks.
pub(super) fn asks_who(path: &str) -> bool {
    path == "/login" || path.starts_with("/profiles/")
}

/// The tunnels of a profile, for who may see them.
fn tunnels_of(http: &Http, profile: &str, headers: &HeaderMap) -> Result<Response<Answer>, Failure> {
    let profile = percent_decode_str(profile).decode_utf8_lossy();
    let tunnels = http.registry.of_profile(&profile);
    let Some(first) = tunnels.first() else {
        return Err(Failure::new(
            Reason::NotFound,
            StatusCode::NOT_FOUND,
            format!("no agent of the profile `{profile}` offers anything now"),
            "start the agent, or check the profile's id; `oneport token --profile` prints it",
        ));
    };
    access::authenticate(&http.issuers, &first.owner, &credentials(headers))
        .map_err(|denial| unauthorized(&denial, headers))?;
    let list: Vec<_> = tunnels
        .iter()
        .map(|tunnel| {
            serde_json::json!({
                "envId": &*tunnel.env_id,
                "hostname": tunnel.name.as_str(),
                "access": tunnel.access.to_string(),
                "meta": tunnel.meta,
            })
        })
        .collect();
    Ok(own(StatusCode::OK, Form::Json, format!("{}\n", serde_json::Value::from(list))))
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
