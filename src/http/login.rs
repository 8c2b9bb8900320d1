//! The login host: `auth.BASE/login` finds out who somebody is and hands it to the preview that
//! they came from, `auth.BASE/logout` ends it everywhere.
//!
//! Refuses to send anybody anywhere but to the preview that was named, forms of other sites, and
//! whoever sends `Authorization`: that would be lost on the way.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use percent_encoding::percent_decode_str;

use super::body::{Answer, Outgoing};
use super::credentials::credentials;
use super::denial::{escape as escape_query, invalid_token, unauthorized};
use super::respond::{Failure, Form, escape, own, page, restrict};
use super::route::Own;
use super::session::{self, Kind};
use super::{Http, callback, provider};
use crate::access::{self, AccessLevel, Credentials, Denial, Known, Session, is_guess};
use crate::config::watch::off_thread;
use crate::name::{HostName, TunnelName};
use crate::net::VisitorAddr;
use crate::observe::Reason;
use crate::registry::Tunnel;

/// Octets of a form: a token, and a path as long as a request's head.
const FORM_MAX: usize = 96 * 1024;
/// How long a form may take to arrive.
const FORM_TAKES: Duration = Duration::from_secs(10);

/// Octets of a path that goes to a provider and back.
const PATH_MAX: usize = 1024;

pub(super) type Outcome = Result<(Response<Answer>, Reason), Failure>;

/// Where somebody wants to go who logs in.
pub(super) struct Wanted {
    /// The tunnel, if it is there.
    pub(super) tunnel: Option<Arc<Tunnel>>,
    env: String,
    /// A path there; empty for none.
    path: String,
    /// Which browser it is to be; `None`: it did not come from the tunnel itself.
    browser: Option<String>,
}

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
        ("/logout", true) => Ok(logout_page(http, request.headers())),
        ("/logout", false) => logout(http, request.headers()).await,
        (provider::PATH, true) => provider::finish(http, &request, visitor).await,
        (_, true) => begin(http, &request, form).await,
        (_, false) => take_token(http, request, form, visitor).await,
    }
}

/// Sends on a browser that is known; asks another one who it is.
async fn begin(http: &Http, request: &Request<Outgoing>, form: Form) -> Outcome {
    let wanted = Wanted::read(http, request.uri().query().unwrap_or_default());
    let session = session::of_login(http, request.headers());
    if let Some(session) = &session
        && wanted.tunnel.as_ref().is_some_and(|tunnel| session.may_see(&tunnel.owner))
    {
        return go(http, session, &wanted, None, StatusCode::TEMPORARY_REDIRECT);
    }
    if let Some(known) = by_token_cookie(http, request.headers(), &wanted)? {
        return complete(http, known, &wanted, StatusCode::TEMPORARY_REDIRECT);
    }
    if let (Some(provider), false) = (http.sessions.provider(), session.is_some() && wanted.tunnel.is_none())
    {
        return provider::begin(http, &provider, request.headers(), &wanted).await;
    }
    if let Some(url) = http.settings.access.login_url.as_deref() {
        let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
        let back = format!("{}{query}", http.settings.base.login_url());
        let to = format!("{}/api/auth/login?redirectTo={}", url.trim_end_matches('/'), escape_query(&back));
        return Ok(redirect(&to, StatusCode::TEMPORARY_REDIRECT));
    }
    match (session, &wanted.tunnel) {
        (Some(session), None) => Ok(logged_in(&session, &wanted)),
        _ if form != Form::Html => Err(nobody_here()),
        (Some(session), Some(_)) => Ok((not_theirs(http, &session, &wanted), Reason::NotAllowed)),
        (None, _) => Ok((ask(&wanted, None, StatusCode::OK), Reason::OwnAnswer)),
    }
}

/// Who shows a token in the cookie of the hosted service that existing agents know.
fn by_token_cookie(http: &Http, headers: &HeaderMap, wanted: &Wanted) -> Result<Option<Known>, Failure> {
    let Some(tunnel) = &wanted.tunnel else { return Ok(None) };
    let shown = Credentials { authorization: None, ..credentials(headers) };
    match access::authenticate(&http.issuers, &tunnel.owner, &shown) {
        Ok(_) => {
            let owner = |_: &str| Some(tunnel.owner.clone());
            let known = shown.cookies.iter().filter_map(|token| http.issuers.identify(token, owner).ok());
            let mut known = known.filter(|known| known.may_see(&tunnel.owner));
            Ok(known.next())
        }
        Err(denial @ Denial::OtherProfile) => Err(unauthorized(&denial)),
        Err(_) => Ok(None),
    }
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
    let bad = |what: &'static str| Failure::bad_request(what);
    let body = Limited::new(request.into_body(), FORM_MAX).collect();
    let body =
        tokio::time::timeout(FORM_TAKES, body).await.map_err(|_| bad("the form did not come in time"))?;
    let body = body.map_err(|_| bad("the form is too large, or did not come whole"))?.to_bytes();
    // Forms have `+` for a space.
    let text = String::from_utf8_lossy(&body).replace('+', " ");
    let wanted = Wanted::read(http, &text);
    let token = field(&text, "token").unwrap_or_default();
    http.issuers.prepare(token.trim()).await;
    let owner_of = |profile: &str| Some(http.registry.of_profile(profile).first()?.owner.clone());
    let identified = http.issuers.identify(token.trim(), owner_of);
    match &identified {
        Err(fault) if is_guess(fault, true) => http.login_failed(visitor).await?,
        // Nothing is told of any token while the address is refused.
        _ => http.admit_login(visitor)?,
    }
    match identified {
        Ok(known) => complete(http, known, &wanted, StatusCode::SEE_OTHER),
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

/// Begins the session of somebody who has shown who they are.
pub(super) fn complete(http: &Http, known: Known, wanted: &Wanted, status: StatusCode) -> Outcome {
    let owner = wanted.tunnel.as_ref().map(|tunnel| &tunnel.owner);
    let session = http.sessions.begin(known, owner).map_err(|error| ours(&error))?;
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

impl Wanted {
    /// Reads it from a query or a form.
    pub(super) fn read(http: &Http, text: &str) -> Self {
        let name = field(text, "env").and_then(|env| TunnelName::from_label(&env));
        let tunnel = name.as_ref().and_then(|name| http.registry.look_up(name));
        let env = name.map(|name| name.as_str().to_owned()).unwrap_or_default();
        let path = field(text, "returnPath").filter(|path| is_path(path)).unwrap_or_default();
        let browser = field(text, "browser").filter(|mark| !mark.is_empty());
        Self { tunnel, env, path, browser }
    }

    /// The way to the preview. Without a browser to hand the login to, it is the preview itself,
    /// which sends the browser here once more.
    fn way(&self, http: &Http, session: &Session, tunnel: &Tunnel) -> Result<String, Failure> {
        let base = &http.settings.base;
        let host = HostName::child_of(tunnel.name.as_str(), &base.host);
        let url = base.url_of(&host);
        let url = url.trim_end_matches('/');
        match self.browser.as_deref().filter(|_| tunnel.access == AccessLevel::Private) {
            None => Ok(format!("{url}{}", self.path)),
            Some(browser) => {
                let code = http.sessions.hand_over(session, host.as_str(), browser);
                let code = code.map_err(|error| ours(&error))?;
                Ok(format!("{url}{}?code={code}&returnPath={}", callback::PATH, escape_query(&self.path)))
            }
        }
    }

    /// The same as a query, of bounded length: a path may be very long.
    pub(super) fn query(&self) -> String {
        let path = if self.path.len() > PATH_MAX { "" } else { &self.path };
        let browser = self.browser.as_deref().unwrap_or_default();
        let browser = if browser.len() > PATH_MAX { "" } else { browser };
        let (env, path, browser) = (escape_query(&self.env), escape_query(path), escape_query(browser));
        format!("env={env}&returnPath={path}&browser={browser}")
    }

    /// The same as fields of a form.
    fn fields(&self) -> String {
        let field = |name, value| format!("<input type=hidden name={name} value=\"{}\">", escape(value));
        let browser = self.browser.as_deref().map_or(String::new(), |mark| field("browser", mark));
        format!("{}{}{browser}", field("env", &self.env), field("returnPath", &self.path))
    }
}

/// The page that takes a token.
fn ask(wanted: &Wanted, trouble: Option<&str>, status: StatusCode) -> Response<Answer> {
    let what = match &wanted.tunnel {
        Some(tunnel) => {
            format!("<p>The preview <code>{}</code> is private.</p>", escape(tunnel.name.as_str()))
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

/// Tells somebody that a preview is not for them, whoever they say they are.
fn not_theirs(http: &Http, session: &Session, wanted: &Wanted) -> Response<Answer> {
    let what = format!("You are logged in as {}, who may not see this preview.", session.name);
    if takes_tokens(http) {
        return ask(wanted, Some(&what), StatusCode::FORBIDDEN);
    }
    let logout = "<p>Ask its owner, or <a href=\"/logout\">log out</a> to log in as somebody else.</p>";
    html(StatusCode::FORBIDDEN, "Not allowed", &format!("<p>{}</p>{logout}", escape(&what)), "")
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

fn logout_page(http: &Http, headers: &HeaderMap) -> (Response<Answer>, Reason) {
    let content = match session::of_login(http, headers) {
        Some(session) => format!(
            "<p>You are logged in as {}.</p><form method=post action=/logout><button>Log out everywhere</button></form>",
            escape(&session.name)
        ),
        None => "<p>You are not logged in.</p>".to_owned(),
    };
    (html(StatusCode::OK, "Log out", &content, "; form-action 'self'"), Reason::OwnAnswer)
}

/// Ends the session here and on all previews.
async fn logout(http: &Http, headers: &HeaderMap) -> Outcome {
    if let Some(session) = session::of_login(http, headers) {
        let (sessions, name) = (http.sessions.clone(), session.name.clone());
        if let Some(Err(error)) = off_thread(move || sessions.end(&session)).await {
            tracing::error!(%error, "a logout could not be written down; a restart would undo it");
        }
        tracing::info!(%name, "logged out");
    }
    let mut answer = html(StatusCode::OK, "Logged out", "<p>You are logged out, of all previews.</p>", "");
    let cookies = [Kind::Login, Kind::Provider].map(|kind| kind.set(&http.settings.base, "", 0));
    session::put(answer.headers_mut(), cookies.into_iter().flatten());
    Ok((answer, Reason::OwnAnswer))
}

fn html(status: StatusCode, title: &str, content: &str, more: &str) -> Response<Answer> {
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

fn ours(error: &dyn std::fmt::Display) -> Failure {
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

/// A value in a query.
pub(super) fn field(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// Whether a text leads to a path on the host that it is put behind, and nowhere else.
pub(super) fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && !text.starts_with("//")
        && text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_are_ways_back() {
        for good in ["/", "/a//b?c=d&e=%2F%5C#f", "/~!$'()*,;:@"] {
            assert!(is_path(good), "{good}");
        }
        for evil in [
            "",
            "a",
            "//evil.test",
            "/\\evil.test",
            "\\/evil.test",
            "/\t/evil.test",
            "/\r\nSet-Cookie: a=b",
            "/é",
            "@evil.test",
            ".evil.test",
            "https://evil.test",
            "/ ",
        ] {
            assert!(!is_path(evil), "{evil:?}");
        }
    }
}
