//! The login host: `auth.BASE/login` finds out who somebody is and hands it to the preview that
//! they came from.
//!
//! Refuses to send anybody anywhere but to the preview that was named, forms of other sites, and
//! whoever sends `Authorization`: that would be lost on the way.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::json;

use super::body::{Answer, Outgoing};
use super::credentials::credentials;
use super::denial::{escape as escape_query, invalid_token};
use super::respond::{Failure, Form, escape, own, page, restrict};
use super::route::Own;
use super::session;
use super::wanted::{Wanted, field};
use super::{Http, logout, provider};
use crate::access::{AccessLevel, Known, Login, Session, is_guess};
use crate::net::VisitorAddr;
use crate::observe::Reason;

/// Octets of a form: a token, and a path as long as a request's head.
const FORM_MAX: usize = 96 * 1024;
/// How long a form may take to arrive.
const FORM_TAKES: Duration = Duration::from_secs(10);

pub(super) type Outcome = Result<(Response<Answer>, Reason), Failure>;

/// Answers a request for `/login` or `/logout`.
///
/// # Errors
/// When somebody is to be told why not.
pub(super) async fn answer(
    http: &Http,
    place: Own,
    request: Request<Outgoing>,
    form: Form,
    visitor: VisitorAddr,
) -> Outcome {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_read && *request.method() != Method::POST {
        return Err(Failure::new(
            Reason::MethodNotAllowed,
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET, HEAD and POST are for this path",
            "use one of these methods",
        )
        .with(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST")));
    }
    if request.headers().contains_key(header::AUTHORIZATION) {
        return Err(nobody_here());
    }
    if place == Own::Api {
        // Cookies of logins are those of the other host.
        let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
        return Ok(redirect(
            &format!("{}{query}", http.settings.base.login_url()),
            StatusCode::TEMPORARY_REDIRECT,
        ));
    }
    if !is_read && !is_from_here(http, request.headers()) {
        return Err(Failure::new(
            Reason::LoginFailed,
            StatusCode::FORBIDDEN,
            "this form was sent by another site",
            format!("open {} in a browser, and use the form there", http.settings.base.login_url()),
        ));
    }
    match (request.uri().path(), is_read) {
        ("/logout", true) => Ok(logout::ask(http, request.headers())),
        ("/logout", false) => logout::end(http, request.headers(), visitor).await,
        (provider::PATH, true) => provider::finish(http, &request, visitor).await,
        (_, true) => begin(http, &request, form, visitor).await,
        (_, false) => take_token(http, request, form, visitor).await,
    }
}

/// Sends on a browser that is known; asks another one who it is.
async fn begin(http: &Http, request: &Request<Outgoing>, form: Form, visitor: VisitorAddr) -> Outcome {
    let wanted = Wanted::read(http, request.uri().query().unwrap_or_default(), visitor);
    let session = session::of_login(http, request.headers());
    if let Some(tunnel) = wanted.tunnel.as_ref().filter(|tunnel| tunnel.access == AccessLevel::Public) {
        return match session {
            Some(session) => go(http, &session, &wanted, None, StatusCode::TEMPORARY_REDIRECT),
            None => Ok((no_login(&wanted.place(http, tunnel), form), Reason::OwnAnswer)),
        };
    }
    let shown = by_token_cookie(http, request.headers(), &wanted);
    let may_see = |session: &Session| wanted.tunnel.as_ref().is_some_and(|it| session.may_see(&it.owner));
    match (&session, &shown) {
        (Some(session), _) if may_see(session) => {
            return go(http, session, &wanted, None, StatusCode::TEMPORARY_REDIRECT);
        }
        (Some(before), Shown::Theirs(known)) => {
            // Other previews may have set it: it comes beside a login, and never in its place.
            let owner = wanted.tunnel.as_ref().map(|tunnel| &tunnel.owner);
            let beside =
                http.sessions.begin(known.clone(), owner, Some(before)).map_err(|error| ours(&error))?;
            // A logout is remembered for as long as the login would have lived.
            let beside = beside.until_at_most(Some(before.until()));
            return go(http, &beside, &wanted, None, StatusCode::TEMPORARY_REDIRECT);
        }
        (None, Shown::Theirs(known)) => {
            return complete(http, known.clone(), None, &wanted, StatusCode::TEMPORARY_REDIRECT);
        }
        (_, Shown::Nothing | Shown::Others(_)) => {}
    }
    if let (Some(provider), false) = (http.sessions.provider(), session.is_some() && wanted.tunnel.is_none())
    {
        return provider::begin(http, &provider, request.headers(), &wanted).await;
    }
    if let Some(url) = http.settings.access.login_url.as_deref() {
        let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
        let back = format!("{}{query}", http.settings.base.login_url());
        let to = format!("{}/api/auth/login?redirectTo={}", url.trim_end_matches('/'), escape_query(&back));
        return Ok(match shown {
            // They come from there, and would be sent back at once.
            Shown::Others(name) => (not_theirs_there(&name, &to), Reason::NotAllowed),
            _ => redirect(&to, StatusCode::TEMPORARY_REDIRECT),
        });
    }
    match (session, &wanted.tunnel) {
        (Some(session), None) => Ok(logged_in(&session, &wanted)),
        _ if form != Form::Html => Err(nobody_here()),
        (Some(session), Some(_)) => Ok((not_theirs(http, &session, &wanted), Reason::NotAllowed)),
        (None, _) => Ok((ask(&wanted, None, StatusCode::OK), Reason::OwnAnswer)),
    }
}

/// What the cookie of the hosted service says that existing agents know.
enum Shown {
    /// Nothing that holds.
    Nothing,
    /// Who may see the preview.
    Theirs(Known),
    /// What somebody is called who may not.
    Others(String),
}

/// Who shows a token in that cookie.
fn by_token_cookie(http: &Http, headers: &HeaderMap, wanted: &Wanted) -> Shown {
    let Some(tunnel) = &wanted.tunnel else { return Shown::Nothing };
    let mut other = Shown::Nothing;
    for token in credentials(headers).in_cookies() {
        match http.issuers.identify(token, |_| Some(tunnel.owner.clone())) {
            Ok(known) if known.may_see(&tunnel.owner) => return Shown::Theirs(known),
            Ok(known) => other = Shown::Others(known.name),
            Err(_) => {}
        }
    }
    other
}

/// Takes the form with a token.
async fn take_token(http: &Http, request: Request<Outgoing>, form: Form, visitor: VisitorAddr) -> Outcome {
    if !takes_tokens(http) {
        return Err(Failure::new(
            Reason::MethodNotAllowed,
            StatusCode::METHOD_NOT_ALLOWED,
            "people do not log in with tokens here",
            format!("open {} in a browser", http.settings.base.login_url()),
        ));
    }
    let before = session::of_login(http, request.headers());
    let bad = |what: &'static str| Failure::bad_request(what);
    let body = Limited::new(request.into_body(), FORM_MAX).collect();
    let body =
        tokio::time::timeout(FORM_TAKES, body).await.map_err(|_| bad("the form did not come in time"))?;
    let body = body.map_err(|_| bad("the form is too large, or did not come whole"))?.to_bytes();
    // Forms have `+` for a space.
    let text = String::from_utf8_lossy(&body).replace('+', " ");
    let wanted = Wanted::read(http, &text, visitor);
    let token = field(&text, "token").unwrap_or_default();
    http.issuers.prepare(token.trim()).await;
    let owner_of = |profile: &str| Some(http.registry.of_profile(profile).first()?.owner.clone());
    let identified = http.issuers.identify(token.trim(), owner_of);
    match &identified {
        // A person's own, although a page sent it: those of other sites were turned away, and ours sends what
        // somebody typed. So no page shuts people out here.
        Err(fault) if is_guess(fault, true) => http.login_failed(Login::Token, visitor).await?,
        // Nothing is told of any token while the address is refused.
        _ => http.admit_login(Login::Token, visitor)?,
    }
    match identified {
        Ok(known) => complete(http, known, before.as_ref(), &wanted, StatusCode::SEE_OTHER),
        Err(fault) if form == Form::Html => {
            let mut answer = ask(&wanted, Some(&format!("{fault}.")), StatusCode::UNAUTHORIZED);
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, invalid_token(&fault.to_string()));
            Ok((answer, Reason::BadToken))
        }
        Err(fault) => {
            let challenge = invalid_token(&fault.to_string());
            let next = "make another with `oneport token`, or get one from whoever issues them";
            Err(Failure::new(Reason::BadToken, StatusCode::UNAUTHORIZED, fault.to_string(), next)
                .with(header::WWW_AUTHENTICATE, challenge))
        }
    }
}

/// Begins the session of somebody who has shown who they are, in the place of the one `before` it in this
/// browser: a logout then ends both.
pub(super) fn complete(
    http: &Http,
    known: Known,
    before: Option<&Session>,
    wanted: &Wanted,
    status: StatusCode,
) -> Outcome {
    let owner = wanted.tunnel.as_ref().map(|tunnel| &tunnel.owner);
    let session = http.sessions.begin(known, owner, before).map_err(|error| ours(&error))?;
    tracing::info!(name = %session.name, env = %wanted.env, "logged in");
    go(http, &session, wanted, session::set_login(http, &session), status)
}

/// Sends somebody who is known to their preview, if they may see it.
fn go(
    http: &Http,
    session: &Session,
    wanted: &Wanted,
    cookie: Option<HeaderValue>,
    status: StatusCode,
) -> Outcome {
    let (mut answer, reason) = match &wanted.tunnel {
        None => logged_in(session, wanted),
        Some(tunnel) if tunnel.access == AccessLevel::Private && !session.may_see(&tunnel.owner) => {
            (not_theirs(http, session, wanted), Reason::NotAllowed)
        }
        Some(tunnel) => redirect(&wanted.way(http, session, tunnel)?, status),
    };
    session::put(answer.headers_mut(), cookie);
    Ok((answer, reason))
}

/// The page that takes a token.
fn ask(wanted: &Wanted, trouble: Option<&str>, status: StatusCode) -> Response<Answer> {
    let what = match &wanted.tunnel {
        Some(tunnel) => {
            format!("<p>The preview <code>{}</code> is {}.</p>", escape(tunnel.name.as_str()), tunnel.access)
        }
        None if !wanted.env.is_empty() => {
            format!("<p>Nobody offers the preview <code>{}</code> now.</p>", escape(&wanted.env))
        }
        None => String::new(),
    };
    let trouble =
        trouble.map_or(String::new(), |trouble| format!("<p><strong>{}</strong></p>", escape(trouble)));
    let content = format!(
        "{what}{trouble}<form method=post action=/login><label>A token, such as <code>oneport token</code> prints:\
         <input type=password name=token required autocomplete=off autofocus></label>{}<button>Log in</button></form>",
        wanted.fields()
    );
    // The form's answer leads to the preview, and from there to wherever it likes, which
    // `form-action` would forbid.
    html(status, "Log in", &content, "")
}

/// Tells somebody that there is nothing to log in for. Nobody is sent on whom nothing is known of: whose
/// preview it is, may be anybody.
fn no_login(place: &str, form: Form) -> Response<Answer> {
    const WHAT: &str = "This preview is public: it needs no login";
    match form {
        Form::Html => {
            let place = escape(place);
            html(StatusCode::OK, "Public", &format!("<p>{WHAT}. <a href=\"{place}\">{place}</a></p>"), "")
        }
        Form::Json => own(StatusCode::OK, form, format!("{}\n", json!({ "message": WHAT, "url": place }))),
        Form::Text => own(StatusCode::OK, form, format!("{WHAT}.\n{place}\n")),
    }
}

/// Tells somebody that a preview is not for them, whoever they say they are.
fn not_theirs(http: &Http, session: &Session, wanted: &Wanted) -> Response<Answer> {
    let profile = wanted.tunnel.as_ref().and_then(|tunnel| tunnel.owner.thumbprint.as_ref());
    tracing::info!(name = %session.name, tunnel = wanted.env, profile = profile.map(|own| own.as_str()), "somebody logged in who may not see this preview: nothing gives them its profile");
    let what = format!("You are logged in as {}, who may not see this preview.", session.name);
    if takes_tokens(http) {
        return ask(wanted, Some(&what), StatusCode::FORBIDDEN);
    }
    let logout = "<p>Ask its owner, or <a href=\"/logout\">log out</a> to log in as somebody else.</p>";
    html(StatusCode::FORBIDDEN, "Not allowed", &format!("<p>{}</p>{logout}", escape(&what)), "")
}

/// The same to somebody whom the hosted service has sent, with the way there.
fn not_theirs_there(name: &str, to: &str) -> Response<Answer> {
    let content = format!(
        "<p>You are logged in as {}, who may not see this preview.</p><p>Ask its owner, or \
         <a href=\"{}\">log in as somebody else</a>.</p>",
        escape(name),
        escape(to)
    );
    html(StatusCode::FORBIDDEN, "Not allowed", &content, "")
}

/// Whether the page with the form is where people log in.
fn takes_tokens(http: &Http) -> bool {
    http.sessions.provider().is_none() && http.settings.access.login_url.is_none()
}

/// Tells somebody who they are, where there is nowhere to go.
fn logged_in(session: &Session, wanted: &Wanted) -> (Response<Answer>, Reason) {
    let gone = if wanted.env.is_empty() {
        String::new()
    } else {
        format!("<p>Nobody offers the preview <code>{}</code> now.</p>", escape(&wanted.env))
    };
    let content = format!(
        "{gone}<p>You are logged in as {}. Open a preview by its own address, or <a href=\"/logout\">log out</a>.</p>",
        escape(&session.name)
    );
    (html(StatusCode::OK, "Logged in", &content, ""), Reason::OwnAnswer)
}

pub(super) fn html(status: StatusCode, title: &str, content: &str, more: &str) -> Response<Answer> {
    let mut answer = own(status, Form::Html, page(title, content));
    restrict(answer.headers_mut(), more);
    answer
}

/// Whether a form is one of our pages': browsers say where a POST comes from.
fn is_from_here(http: &Http, headers: &HeaderMap) -> bool {
    let login = http.settings.base.login_url();
    let here = login.trim_end_matches("/login");
    match headers.get(header::ORIGIN) {
        Some(origin) => origin.as_bytes() == here.as_bytes(),
        None => headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin"),
    }
}

/// What programs are told, which cannot log in here.
fn nobody_here() -> Failure {
    Failure::new(
        Reason::LoginRequired,
        StatusCode::UNAUTHORIZED,
        "this is where people log in with a browser",
        "send `Authorization: Bearer TOKEN` to the tunnel itself; `oneport token` makes one",
    )
}

pub(super) fn ours(error: &dyn std::fmt::Display) -> Failure {
    let next = "try again; tell the operator of this gateway if it stays so";
    Failure::new(Reason::LoginFailed, StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), next)
}

/// Sends a browser on.
pub(super) fn redirect(to: &str, status: StatusCode) -> (Response<Answer>, Reason) {
    let mut answer = own(status, Form::Text, "go on\n");
    let headers = answer.headers_mut();
    // The address holds a code, or what a preview's own addresses hold.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(to) = HeaderValue::try_from(to) {
        headers.insert(header::LOCATION, to);
    }
    (answer, Reason::OwnAnswer)
}
