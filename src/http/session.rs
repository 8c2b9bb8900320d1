//! The cookies of logins: how they are called and set, and the sessions in them.
//!
//! Over HTTPS their names begin with `__Host-`, so that a browser takes them from the host itself
//! only, over TLS, and gives them to no other. Where `base_url` is plain HTTP, no browser would
//! take such a name; there they lack the prefix and `Secure`, which is for trying things out.
//!
//! Of two answers on their way to a browser at the same time, as for tabs that are opened again, the last
//! to arrive replaces what the other has set. So what begins anew has a name of its own, and all are looked
//! at: a logout ends each login of the browser, and no tab spoils another's.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request};

use super::Http;
use super::body::Outgoing;
use super::credentials::{cookies_named, credentials, values_of};
use super::headers::PROTO;
use crate::access::{self, Guest, Permit, Session, Way};
use crate::config::BaseUrl;
use crate::name::HostName;
use crate::registry::{Target, Tunnel};

/// What begins the names of cookies that only their own host sets (RFC 6265bis, section 4.1.3.2).
const PREFIX: &str = "__Host-";
/// Seconds that a browser may take from being sent to the login until it is back.
const LOGIN_TAKES: u64 = 60 * 60;
/// Most cookies of a kind that are read: more than browsers keep of one site.
const KEPT_MAX: usize = 256;
/// Characters of a mark that are in its cookie's name.
const TAG: usize = 8;
/// Most logins of one browser that are looked at, and marks of it: as many tabs as it may open again at
/// once. The newest count.
const AT_ONCE_MAX: usize = 64;

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
        Self::ALL.iter().any(|kind| match bare.split_at_checked(kind.bare().len()) {
            Some((own, tag)) => {
                own.eq_ignore_ascii_case(kind.bare().as_bytes()) && (tag.is_empty() || tag.starts_with(b"-"))
            }
            None => false,
        })
    }

    fn name(self, base: &BaseUrl) -> String {
        format!("{}{}", if base.https { PREFIX } else { "" }, self.bare())
    }

    /// The same for one of several that a browser may have of this kind.
    fn name_of(self, base: &BaseUrl, tag: &str) -> String {
        format!("{}-{tag}", self.name(base))
    }

    /// `Set-Cookie` with a text that needs no quotes, for so many seconds.
    pub(super) fn set(self, base: &BaseUrl, value: &str, seconds: u64) -> Option<HeaderValue> {
        set(base, &self.name(base), value, &format!("; Max-Age={seconds}"))
    }

    /// `Set-Cookie` that takes away all of this kind that a request shows.
    pub(super) fn take_away(self, base: &BaseUrl, headers: &HeaderMap) -> Vec<HeaderValue> {
        let names = self.find_all(base, headers).into_iter().map(|(name, _)| name);
        names.filter_map(|name| set(base, name, "", "; Max-Age=0")).collect()
    }

    /// The first value in a request that is text.
    pub(super) fn find(self, base: &BaseUrl, headers: &HeaderMap) -> Option<String> {
        let name = self.name(base);
        values_of(headers, &name).next().map(str::to_owned)
    }

    /// All of several that a request shows, as names and values, in their order: browsers send those first
    /// that they have had for longest (RFC 6265, section 5.4).
    fn find_all<'a>(self, base: &BaseUrl, headers: &'a HeaderMap) -> Vec<(&'a str, &'a str)> {
        let own = self.name(base);
        let is_own =
            |name: &str| name.strip_prefix(&*own).is_some_and(|tag| tag.is_empty() || tag.starts_with('-'));
        cookies_named(headers, is_own).take(KEPT_MAX).collect()
    }
}

fn set(base: &BaseUrl, name: &str, value: &str, age: &str) -> Option<HeaderValue> {
    let secure = if base.https { "; Secure" } else { "" };
    HeaderValue::try_from(format!("{name}={value}; Path=/{age}; HttpOnly; SameSite=Lax{secure}")).ok()
}

/// Has here what it takes to believe a cookie of a login, where that is to be fetched first. Cancel
/// safe.
pub(super) async fn prepare(http: &Http, kind: Kind, headers: &HeaderMap) {
    if !kind.find_all(&http.settings.base, headers).is_empty() {
        http.issuers.first_keys().await;
    }
}

/// Who somebody is on the login host: of several logins, whom they began last as.
pub(super) fn of_login(http: &Http, headers: &HeaderMap) -> Option<Session> {
    let all = Kind::Login.find_all(&http.settings.base, headers);
    let newest = &all[all.len().saturating_sub(AT_ONCE_MAX)..];
    let good = newest.iter().filter_map(|(_, sealed)| http.sessions.of_login(sealed));
    good.max_by_key(Session::until)
}

/// All logins of a browser that a logout ends, whether or not they are believed now: they could be again.
pub(super) fn to_end(http: &Http, headers: &HeaderMap) -> Vec<Session> {
    let all = Kind::Login.find_all(&http.settings.base, headers);
    all.into_iter().filter_map(|(_, sealed)| http.sessions.to_end(sealed)).collect()
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
    let base = &http.settings.base;
    let name = Kind::Login.name_of(base, &session.tag());
    set(base, &name, &sealed, &format!("; Max-Age={}", session.left().as_secs()))
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
    let base = &http.settings.base;
    set(base, &Kind::Visit.name(base), &sealed, "")
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
        if let Some(mark) = Self::marks_in(kind, headers, base).pop() {
            return Some(Self { mark, set: None });
        }
        let secret = access::random_text::<16>().ok()?;
        let mark = mark_of(&secret);
        // What a page asks for, which may be much at once, would leave no room for other cookies of the site.
        let is_page = headers.get("sec-fetch-mode").is_none_or(|mode| mode == "navigate");
        let name = if is_page { kind.name_of(base, &mark[..TAG]) } else { kind.name(base) };
        let cookie = set(base, &name, &secret, &format!("; Max-Age={LOGIN_TAKES}"))?;
        Some(Self { mark, set: Some(cookie) })
    }

    /// What a browser is called that has the cookie; by each of several, of which the last is the newest.
    pub(super) fn marks_in(kind: Kind, headers: &HeaderMap, base: &BaseUrl) -> Vec<String> {
        let all = kind.find_all(base, headers);
        let newest = &all[all.len().saturating_sub(AT_ONCE_MAX)..];
        newest.iter().filter(|(_, secret)| is_mark(secret)).map(|(_, secret)| mark_of(secret)).collect()
    }
}

/// Whether it could be a secret of ours, or a mark: base64url of 16 octets.
pub(super) fn is_mark(text: &str) -> bool {
    text.len() == 22
        && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
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
    fn each_page_that_is_sent_to_the_login_makes_a_browser_known_by_one_more() {
        let base = BaseUrl { https: true, host: HostName::parse("gw.test").expect("a name"), port: None };
        let name_for = |mode: Option<&'static str>| {
            let fields =
                mode.map(|mode| ("sec-fetch-mode".parse().expect("a name"), HeaderValue::from_static(mode)));
            let browser = Browser::of(Kind::Browser, &HeaderMap::from_iter(fields), &base).expect("random");
            let cookie = browser.set.expect("a cookie");
            let cookie = cookie.to_str().expect("text").split(';').next().expect("a pair").to_owned();
            let shown =
                HeaderMap::from_iter([(header::COOKIE, HeaderValue::try_from(&cookie).expect("text"))]);
            let again = Browser::of(Kind::Browser, &shown, &base).expect("known");
            assert!(again.mark == browser.mark && again.set.is_none(), "{cookie}");
            cookie.split('=').next().expect("a name").to_owned()
        };
        let names = [None, Some("navigate"), Some("cors"), Some("no-cors")].map(name_for);
        assert!(names[..2].iter().all(|name| name.starts_with("__Host-oneport-browser-")), "{names:?}");
        assert_eq!(names[2..], ["__Host-oneport-browser"; 2]);
    }

    #[test]
    fn marks_are_those_that_we_make() {
        let secret = access::random_text::<16>().expect("random");
        assert!(is_mark(&secret) && is_mark(&mark_of(&secret)) && is_mark(&"-_Az09".repeat(4)[..22]));
        for bad in ["", "x", &secret[1..], &format!("{secret}A"), &secret.repeat(1000)] {
            assert!(!is_mark(bad), "{bad}");
        }
        for octet in ["=", "+", "/", "%", "\"", " ", "é", "\n"] {
            assert!(!is_mark(&format!("{octet}{}", &secret[octet.len()..])), "{octet:?}");
        }
    }

    #[test]
    fn our_names_are_known_in_every_spelling() {
        let ours = ["__Host-oneport-visit", "__hOST-Oneport-Login", "oneport-browser", "ONEPORT-login-x"];
        assert!(ours.iter().all(|name| Kind::is_one(name.as_bytes())));
        let others = ["oneport", "__Host-", "__Host-session", "oneport-visits", "__Secure-oneport-visit", ""];
        assert!(!others.iter().any(|name| Kind::is_one(name.as_bytes())));
    }
}
