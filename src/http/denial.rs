//! What a visitor is told who may not see a tunnel: to log in, or what is wrong with their token.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::credentials::{is_by_browser, login_of, shows_basic};
use super::respond::Failure;
use super::session::{Browser, Kind};
use crate::access::{Denial, TokenFault, Way, is_guess};
use crate::config::BaseUrl;
use crate::name::{HostName, TunnelName};
use crate::observe::Reason;

/// The challenge that has a browser ask for user name and password.
const BASIC: &str = "Basic realm=\"oneport\", charset=\"UTF-8\"";
/// What existing tools add to a query to get that.
const HINT: &str = "_preevy_auth_hint=basic";
/// Longest path, in octets, that goes to a login and back: escaped it may be three times as long, and no
/// request's head may be very long.
pub(super) const PATH_MAX: usize = 1024;
/// What stands for itself in a query's value (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where a request was refused.
pub(super) struct Refused<'a> {
    /// The tunnel.
    pub(super) name: &'a TunnelName,
    /// The path and query there.
    pub(super) path: Option<&'a PathAndQuery>,
    /// The request's headers.
    pub(super) headers: &'a HeaderMap,
    /// Whether it came to the tunnel's own host.
    pub(super) is_home: bool,
    /// Whether it came there in a way in which its visitors can have a cookie.
    pub(super) has_cookies: bool,
    /// Whether it asks for no more than to read something, so that it can go elsewhere first.
    pub(super) is_read: bool,
}

impl Refused<'_> {
    /// The same on the tunnel's own host.
    fn url_at_home(&self, base: &BaseUrl) -> String {
        let host = HostName::child_of(self.name.as_str(), &base.host);
        format!("{}{}", base.origin_of(&host), self.path.map_or("/", PathAndQuery::as_str))
    }
}

/// Makes the answer. Whoever sent `Authorization` is told the reason, and never sent elsewhere,
/// where it would be lost.
pub(super) fn denied(denial: &Denial, refused: &Refused<'_>, base: &BaseUrl) -> Failure {
    if !matches!(denial, Denial::LoginRequired) {
        return unauthorized(denial, refused.headers);
    }
    if refused.headers.contains_key(header::AUTHORIZATION) {
        return without_token(refused, base);
    }
    if wants_basic(refused.path) && refused.is_home {
        let next = "give `x-preevy-profile-key` as the user name, and a token as the password";
        return Failure::new(Reason::LoginRequired, StatusCode::UNAUTHORIZED, denial.to_string(), next)
            .with(header::WWW_AUTHENTICATE, HeaderValue::from_static(BASIC));
    }
    if !refused.is_read {
        let next = "log in with a browser, or send `Authorization: Bearer TOKEN`";
        return Failure::new(Reason::LoginRequired, StatusCode::UNAUTHORIZED, denial.to_string(), next);
    }
    if wants_basic(refused.path) {
        let url = refused.url_at_home(base);
        let next = format!("go to {url}, where a browser asks for user name and password");
        return sent_to(&url, denial.to_string(), next);
    }
    let browser = refused.has_cookies.then(|| Browser::of(Kind::Browser, refused.headers, base)).flatten();
    let url = login_url(base, refused.name.as_str(), refused.path, browser.as_ref());
    let next = format!("log in at {url}, or send `Authorization: Bearer TOKEN`");
    let failure = sent_to(&url, denial.to_string(), next);
    match browser.and_then(|browser| browser.set) {
        Some(cookie) => failure.with(header::SET_COOKIE, cookie),
        None => failure,
    }
}

/// The answer that sends somebody elsewhere to log in.
fn sent_to(url: &str, what: String, next: String) -> Failure {
    let status = StatusCode::TEMPORARY_REDIRECT;
    let failure = Failure::new(Reason::LoginRequired, status, what, next);
    match HeaderValue::try_from(url) {
        Ok(url) => failure.with(header::LOCATION, url),
        // No path holds what a header must not.
        Err(_) => failure,
    }
}

/// The answer to somebody who sent an `Authorization` in which there is no token, or not one that counts.
fn without_token(refused: &Refused<'_>, base: &BaseUrl) -> Failure {
    let is_basic = shows_basic(refused.headers);
    let what = if is_basic && !refused.is_home && is_by_browser(refused.headers) {
        "this tunnel is private, and a password that a browser keeps counts only on the tunnel's own host"
    } else {
        "this tunnel is private, and the `Authorization` that was sent holds no token of a kind known here"
    };
    let next = if refused.is_home {
        "send `Authorization: Bearer TOKEN`; `oneport token` makes one".to_owned()
    } else {
        format!("open {}, or send `Authorization: Bearer TOKEN`", refused.url_at_home(base))
    };
    let failure = Failure::new(Reason::LoginRequired, StatusCode::UNAUTHORIZED, what, next)
        .with(header::WWW_AUTHENTICATE, invalid_token(what));
    // Or a browser would go on sending what it was told once. Elsewhere it would send it to all there.
    if refused.is_home && (is_basic || wants_basic(refused.path)) {
        failure.with(header::WWW_AUTHENTICATE, HeaderValue::from_static(BASIC))
    } else {
        failure
    }
}

/// What is wrong with what somebody showed in these headers, where there is nowhere to log in.
pub(super) fn unauthorized(denial: &Denial, headers: &HeaderMap) -> Failure {
    let what = denial.to_string();
    match denial {
        Denial::LoginRequired => Failure::new(
            Reason::LoginRequired,
            StatusCode::UNAUTHORIZED,
            "this needs a valid token",
            "send `Authorization: Bearer TOKEN`; `oneport token` makes one",
        ),
        Denial::BadToken { fault: TokenFault::NoKeysYet(_), .. } => {
            let next =
                "try again in a moment; if it stays, ask the operator of this gateway to look at its log";
            Failure::new(Reason::IssuerUnreachable, StatusCode::SERVICE_UNAVAILABLE, what, next)
                .with(header::RETRY_AFTER, HeaderValue::from_static("10"))
        }
        Denial::BadToken { way, fault } => {
            let challenge = invalid_token(&what);
            let next = match fault {
                // Without a key's name, the same would come again.
                TokenFault::OtherKey => {
                    "make one with `oneport token --key FILE`, with the key that the agent uses, or get one from whoever issues them"
                }
                _ => "make another with `oneport token`, or get one from whoever issues them",
            };
            let mut failure = Failure::new(Reason::BadToken, StatusCode::UNAUTHORIZED, what, next)
                .with(header::WWW_AUTHENTICATE, challenge);
            // Any other may be what a service asks its own visitors for.
            failure.failed_login = is_guess(fault, *way == Way::Basic).then(|| login_of(headers));
            match way {
                Way::Basic => failure.with(header::WWW_AUTHENTICATE, HeaderValue::from_static(BASIC)),
                Way::Bearer | Way::Cookie | Way::Session | Way::Guest => failure,
            }
        }
        Denial::OtherSite(_) => {
            let next = "open the preview itself, or send `Authorization: Bearer TOKEN`";
            Failure::new(Reason::OtherSite, StatusCode::FORBIDDEN, what, next)
        }
        Denial::OtherProfile => {
            let challenge = bearer("insufficient_scope", &what);
            let next = "have its issuer add the profile, or use a token of the agent's own key";
            Failure::new(Reason::NotAllowed, StatusCode::FORBIDDEN, what, next)
                .with(header::WWW_AUTHENTICATE, challenge)
        }
    }
}

/// What is said to somebody whose permit ended before there was an answer.
pub(super) fn no_longer(why: Reason) -> Failure {
    let what = match why {
        Reason::IssuerKeyRemoved => {
            "the issuer withdrew the key of the token, or of the one that was shown to log in"
        }
        Reason::LoginEnded => "the login that allowed this request was ended",
        Reason::LinkEnded => "the guest link that allowed this request was taken back",
        Reason::SecretRemoved => "the secret was removed that the login or the guest link is sealed with",
        _ => "what this request was allowed by has expired before the service answered",
    };
    let next = "get another token, or log in again";
    Failure::new(why, StatusCode::UNAUTHORIZED, what, next)
        .with(header::WWW_AUTHENTICATE, invalid_token(what))
}

/// Where people log in to see a tunnel.
fn login_url(base: &BaseUrl, name: &str, path: Option<&PathAndQuery>, browser: Option<&Browser>) -> String {
    let path = path.map_or("/", PathAndQuery::as_str);
    let path = if path.len() > PATH_MAX { String::new() } else { format!("&returnPath={}", escape(path)) };
    let browser = browser.map_or(String::new(), |browser| format!("&browser={}", browser.mark));
    format!("{}?env={}{path}{browser}", base.login_url(), escape(name))
}

/// A text as a query's value.
pub(super) fn escape(text: &str) -> percent_encoding::PercentEncode<'_> {
    utf8_percent_encode(text, ESCAPED)
}

fn wants_basic(path: Option<&PathAndQuery>) -> bool {
    path.and_then(PathAndQuery::query).is_some_and(|query| query.split('&').any(|pair| pair == HINT))
}

/// The challenge that says what is wrong with a token.
pub(super) fn invalid_token(what: &str) -> HeaderValue {
    bearer("invalid_token", what)
}

/// RFC 6750, section 3: no quotes, backslashes or control characters in the description.
fn bearer(error: &str, description: &str) -> HeaderValue {
    let plain = |c: char| match c {
        '"' | '`' => '\'',
        ' '..='~' if c != '\\' => c,
        _ => '?',
    };
    let description: String = description.chars().map(plain).collect();
    HeaderValue::try_from(format!("Bearer error=\"{error}\", error_description=\"{description}\""))
        .unwrap_or(HeaderValue::from_static("Bearer"))
}
