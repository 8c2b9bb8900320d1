//! The cookies of logins: how they are called and set, and the sessions in them.
//!
//! Over HTTPS their names begin with `__Host-`, so that a browser takes them from the host itself
//! only, over TLS, and gives them to no other. Where `base_url` is plain HTTP, no browser would
//! take such a name; there they lack the prefix and `Secure`, which is for trying things out.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request};

use super::Http;
use super::body::Outgoing;
use super::credentials::{credentials, values_of};
use super::headers::PROTO;
use crate::access::{self, Guest, Permit, Session, Way};
use crate::config::BaseUrl;
use crate::name::HostName;
use crate::registry::{Target, Tunnel};

/// What begins the names of cookies that only their own host sets (RFC 6265bis, section 4.1.3.2).
const PREFIX: &str = "__Host-";
/// Seconds that a browser may take from being sent to the login until it is back.
const LOGIN_TAKES: u64 = 60 * 60;

/// What a cookie of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A login, on the login host.
    Login,
    /// A login, on the host of a preview.
    Visit,
    /// Which browser was sent to the login: another must not complete it, or somebody could have
    /// others use their login.
    Browser,
    /// Which browser was sent on to the provider, on the login host.
    Provider,
    /// A guest link, on the host of its preview.
    Guest,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [Self::Login, Self::Visit, Self::Browser, Self::Provider, Self::Guest];

    const fn bare(self) -> &'static str {
        match self {
            Self::Login => "oneport-login",
            Self::Visit => "oneport-visit",
            Self::Browser => "oneport-browser",
            Self::Provider => "oneport-provider",
            Self::Guest => "oneport-guest",
        }
    }

    /// Whether a cookie has one of our names, with or without the prefix; browsers know some
    /// differences of case that others do not.
    pub(super) fn is_one(name: &[u8]) -> bool {
        let bare = match name.split_at_checked(PREFIX.len()) {
            Some((prefix, bare)) if prefix.eq_ignore_ascii_case(PREFIX.as_bytes()) => bare,
            _ => name,
        };
        Self::ALL.iter().any(|kind| bare.eq_ignore_ascii_case(kind.bare().as_bytes()))
    }

    fn name(self, base: &BaseUrl) -> String {
        format!("{}{}", if base.https { PREFIX } else { "" }, self.bare())
    }

    /// `Set-Cookie` with a text that needs no quotes, for so many seconds; none takes it away.
    pub(super) fn set(self, base: &BaseUrl, value: &str, seconds: u64) -> Option<HeaderValue> {
        self.set_for(base, value, &format!("; Max-Age={seconds}"))
    }

    fn set_for(self, base: &BaseUrl, value: &str, age: &str) -> Option<HeaderValue> {
        let (name, secure) = (self.name(base), if base.https { "; Secure" } else { "" });
        let text = format!("{name}={value}; Path=/{age}; HttpOnly; SameSite=Lax{secure}");
        HeaderValue::try_from(text).ok()
    }

    /// The first value in a request that is text.
    pub(super) fn find(self, base: &BaseUrl, headers: &HeaderMap) -> Option<String> {
        let name = self.name(base);
        values_of(headers, &name).next().map(str::to_owned)
    }
}

/// Has here what it takes to believe a cookie of a login, where that is to be fetched first. Cancel
/// safe.
pub(super) async fn prepare(http: &Http, kind: Kind, headers: &HeaderMap) {
    if kind.find(&http.settings.base, headers).is_some() {
        http.issuers.first_keys().await;
    }
}

/// Who somebody is on the login host.
pub(super) fn of_login(http: &Http, headers: &HeaderMap) -> Option<Session> {
    http.sessions.of_login(&Kind::Login.find(&http.settings.base, headers)?)
}

/// Who somebody is on a preview's own host, where alone they have its cookie.
pub(super) fn of_visit(http: &Http, headers: &HeaderMap, host: Option<&HostName>) -> Option<Session> {
    let sealed = Kind::Visit.find(&http.settings.base, headers)?;
    http.sessions.of_visit(&sealed, host?.as_str())
}

/// Who comes by a guest link to a preview's own host, where alone they have its cookie.
pub(super) fn of_guest(
    http: &Http,
    headers: &HeaderMap,
    tunnel: &Tunnel,
    host: Option<&HostName>,
) -> Option<Guest> {
    let sealed = Kind::Guest.find(&http.settings.base, headers)?;
    http.sessions.shares().guest(&sealed, host?.as_str(), &tunnel.owner).ok()
}

/// `Set-Cookie` for a login on the login host.
pub(super) fn set_login(http: &Http, session: &Session) -> Option<HeaderValue> {
    let sealed = http.sessions.seal_login(session).ok()?;
    Kind::Login.set(&http.settings.base, &sealed, session.left().as_secs())
}

/// `Set-Cookie` for a login on a preview's own host.
pub(super) fn set_visit(
    http: &Http,
    session: &Session,
    tunnel: &Tunnel,
    host: &HostName,
) -> Option<HeaderValue> {
    let sealed = http.sessions.seal_visit(session, &tunnel.owner, host.as_str()).ok()?;
    Kind::Visit.set(&http.settings.base, &sealed, session.left().as_secs())
}

/// `Set-Cookie` for a browser that showed its token by Basic, in its own dialogue: from then on
/// scripts and WebSockets of the page have the cookie. A program that sends Basic needs none. As no logout
/// ends what the browser goes on sending, both go when it is closed, and at the token's end.
pub(super) fn set_for_basic(
    http: &Http,
    permit: &Permit,
    request: &Request<Outgoing>,
    target: &Target,
    host: Option<&HostName>,
) -> Option<HeaderValue> {
    let Target::Tunnel(tunnel) = target else { return None };
    let headers = request.headers();
    let is_page = headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
    if permit.by() != Some(Way::Basic) || *request.method() != Method::GET || !is_page {
        return None;
    }
    let host = host.filter(|host| is_own_host(tunnel, host, &http.settings.base))?;
    let (_, token) = credentials(headers).authorization?;
    let known = http.issuers.identify(&token, |_| Some(tunnel.owner.clone())).ok()?;
    let ends = http.issuers.judge(&token, &tunnel.owner).ok()?.claims.expires;
    let session = http.sessions.begin(known, Some(&tunnel.owner), None).ok()?.until_at_most(ends);
    // The token itself may hold a little longer, because clocks differ.
    if session.left().is_zero() {
        return None;
    }
    let sealed = http.sessions.seal_visit(&session, &tunnel.owner, host.as_str()).ok()?;
    Kind::Visit.set_for(&http.settings.base, &sealed, "")
}

/// Whether a browser would keep our cookies that sends this: over plain HTTP it takes none that is for
/// HTTPS. A proxy that ends TLS says so if it is trusted; of another, the browser tells, which says how it
/// fetches where it takes them, and there only (Fetch Metadata).
pub(super) fn are_kept(base: &BaseUrl, headers: &HeaderMap, tls: bool, trusted: bool) -> bool {
    let by_proxy = trusted && headers.get(PROTO).is_none_or(|proto| proto != "http");
    !base.https || tls || by_proxy || headers.contains_key("sec-fetch-mode")
}

/// Whether a host is the tunnel's own, rather than one where it lies under a path with others.
pub(super) fn is_own_host(tunnel: &Tunnel, host: &HostName, base: &BaseUrl) -> bool {
    host.label_under(&base.host).is_some_and(|label| label == tunnel.name.as_str())
}

/// Whether this is a host of the target's own in that sense.
pub(super) fn is_home(target: &Target, host: Option<&HostName>, base: &BaseUrl) -> bool {
    match (target, host) {
        (Target::Tunnel(tunnel), Some(host)) => is_own_host(tunnel, host, base),
        _ => false,
    }
}

/// A browser that is sent to the login.
#[derive(Debug)]
pub(super) struct Browser {
    /// What it is called in URLs, which says nothing of its cookie.
    pub(super) mark: String,
    /// The cookie, if it has none yet.
    pub(super) set: Option<HeaderValue>,
}

impl Browser {
    /// The browser that sent these headers. One that logs in from several tabs stays the same.
    pub(super) fn of(kind: Kind, headers: &HeaderMap, base: &BaseUrl) -> Option<Self> {
        if let Some(mark) = Self::mark_in(kind, headers, base) {
            return Some(Self { mark, set: None });
        }
        let secret = access::random_text::<16>().ok()?;
        let set = kind.set(base, &secret, LOGIN_TAKES)?;
        Some(Self { mark: mark_of(&secret), set: Some(set) })
    }

    /// What a browser is called that has the cookie.
    pub(super) fn mark_in(kind: Kind, headers: &HeaderMap, base: &BaseUrl) -> Option<String> {
        let secret = kind.find(base, headers)?;
        // Not of ours: of another length.
        (secret.len() == 22).then(|| mark_of(&secret))
    }
}

fn mark_of(secret: &str) -> String {
    use base64::Engine as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes());
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16])
}

/// Puts cookies into an answer's head.
pub(super) fn put(headers: &mut HeaderMap, cookies: impl IntoIterator<Item = HeaderValue>) {
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_are_known_in_every_spelling() {
        let ours = ["__Host-oneport-visit", "__hOST-Oneport-Login", "oneport-browser", "oneport-guest"];
        assert!(ours.iter().all(|name| Kind::is_one(name.as_bytes())));
        let others = ["oneport", "__Host-", "__Host-session", "oneport-visits", "__Secure-oneport-visit", ""];
        assert!(!others.iter().any(|name| Kind::is_one(name.as_bytes())));
    }
}
