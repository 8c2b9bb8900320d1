//! The gateway's own hosts: `auth.` and `api.` below the base host, and the base host itself.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;

use super::Http;
use super::body::{Answer, Outgoing};
use super::credentials::credentials;
use super::denial::{escape as escape_query, unauthorized};
use super::respond::{Failure, Form, escape, own, page};
use super::route::Own;
use crate::access::{self, Credentials, Denial};
use crate::config::BaseUrl;
use crate::name::{HostName, TunnelName};
use crate::observe::Reason;

/// Answers a request that is for the gateway itself.
///
/// # Errors
/// When there is nothing under this path, or not with this method, or not for this visitor.
pub(super) fn answer(
    http: &Http,
    place: Own,
    request: &Request<Outgoing>,
    form: Form,
) -> Result<Response<Answer>, Failure> {
    let (uri, base) = (request.uri(), &http.settings.base);
    let profile = uri.path().strip_prefix("/profiles/").and_then(|rest| rest.strip_suffix("/tunnels"));
    let known = matches!(
        (place, uri.path(), profile),
        (Own::Service, "/healthz" | "/login", _) | (Own::Base, "/", _) | (Own::Service, _, Some(_))
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
    match (uri.path(), profile) {
        (_, Some(profile)) => tunnels_of(http, profile, request.headers()),
        ("/login", _) => login(http, request),
        ("/healthz", _) => Ok(own(StatusCode::OK, Form::Text, "OK\n")),
        _ => Ok(front_page(form, base)),
    }
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
            "check the profile's id; `oneport token --profile` prints it",
        ));
    };
    access::authenticate(&http.issuers, &first.owner, &credentials(headers))
        .map_err(|denial| unauthorized(&denial))?;
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

/// Sends a browser on to where people log in; one that comes from there, back to its tunnel.
fn login(http: &Http, request: &Request<Outgoing>) -> Result<Response<Answer>, Failure> {
    // It would be lost on the way.
    let may_be_sent = !request.headers().contains_key(header::AUTHORIZATION);
    if may_be_sent && let Some(back) = way_back(http, request)? {
        return Ok(redirect(&back));
    }
    let url = http.settings.access.login_url.as_deref();
    let Some(url) = url.filter(|_| may_be_sent) else {
        return Err(Failure::new(
            Reason::LoginRequired,
            StatusCode::UNAUTHORIZED,
            "this tunnel is private, and nobody can log in here with a browser yet",
            "send `Authorization: Bearer TOKEN` to the tunnel itself; `oneport token` makes one",
        ));
    };
    let back = http.settings.base.url_of(&HostName::child_of("auth", &http.settings.base.host));
    let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
    let back = format!("{back}login{query}");
    let to = format!("{}/api/auth/login?redirectTo={}", url.trim_end_matches('/'), escape_query(&back));
    Ok(redirect(&to))
}

/// Where somebody came from whose cookie opens the tunnel already; sent to the login again, they
/// would come back for ever.
fn way_back(http: &Http, request: &Request<Outgoing>) -> Result<Option<String>, Failure> {
    let query = request.uri().query().unwrap_or_default();
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| *key == name)?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    };
    let tunnel = value("env").and_then(|env| TunnelName::from_label(&env));
    let Some(tunnel) = tunnel.and_then(|name| http.registry.look_up(&name)) else { return Ok(None) };
    let shown = Credentials { authorization: None, ..credentials(request.headers()) };
    match access::authenticate(&http.issuers, &tunnel.owner, &shown) {
        Ok(_) => {
            let base = &http.settings.base;
            let host = base.url_of(&HostName::child_of(tunnel.name.as_str(), &base.host));
            let path = value("returnPath").filter(|path| is_path(path)).unwrap_or_default();
            Ok(Some(format!("{}{path}", host.trim_end_matches('/'))))
        }
        Err(denial @ (Denial::OtherProfile | Denial::BadToken { .. })) => Err(unauthorized(&denial)),
        Err(_) => Ok(None),
    }
}

/// Whether a text leads to a path on the host that it is put behind, and nowhere else.
fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && !text.starts_with("//")
        && text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'\\')
}

fn redirect(to: &str) -> Response<Answer> {
    let mut answer = own(StatusCode::TEMPORARY_REDIRECT, Form::Text, format!("go to {to}\n"));
    if let Ok(to) = HeaderValue::try_from(to) {
        answer.headers_mut().insert(header::LOCATION, to);
    }
    answer
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
