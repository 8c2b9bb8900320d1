//! What a visitor shows of who they are, and what of it goes no further.
//!
//! An `Authorization` that the gateway used, or that only a gateway could use, reaches no service;
//! neither do the cookies by which it knows visitors. All else is the service's own.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{self, HeaderMap, HeaderValue};

use super::isolate;
use super::session::Kind;
use crate::access::{Credentials, Issuers, Login, Way};

/// The user name under which existing agents' tools send a token as a password.
const TOKEN_USER: &str = "x-preevy-profile-key";
/// The cookie in which the hosted service's login leaves a token.
pub(super) const TOKEN_COOKIE: &str = "preevy-saas-jwt";

/// The schemes for which browsers ask for a password or take the system's, and keep it.
const KEPT_BY_BROWSERS: [&str; 4] = ["Basic", "Digest", "NTLM", "Negotiate"];

/// From which site a request comes, as browsers say, and they alone.
const FETCH_SITE: &str = "sec-fetch-site";

/// As many decoders are: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Finds the tokens in a request's head.
pub(super) fn credentials(headers: &HeaderMap) -> Credentials<'_> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    // Of two neither is taken: who sends two wants one reader to see another than the next does.
    let authorization = match (fields.next(), fields.next()) {
        (Some(field), None) => token_in(field),
        _ => None,
    };
    let cookies = values_of(headers, TOKEN_COOKIE).collect();
    Credentials { authorization, cookies, session: None, guest: None }
}

/// Whose failed logins a token in `Authorization` would be among: those of pages where a browser says that
/// a page made the request (Fetch standard, section 3.2; Fetch metadata, section 2), and of tools and people
/// otherwise. A page may send its visitor elsewhere, too; only where nobody did has a person gone there. Who
/// adds such fields is counted just the same.
pub(super) fn login_of(headers: &HeaderMap) -> Login {
    let is_sent = headers.get_all(FETCH_SITE).iter().any(|site| site != "none");
    if headers.contains_key(header::ORIGIN) || is_sent { Login::Page } else { Login::Token }
}

/// Whether a browser sent a request: all of today say over HTTPS from which site it comes (Fetch metadata),
/// and programs do not. A page cannot leave that out. How it is fetched, Node's own `fetch` says as well.
pub(super) fn is_by_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key(FETCH_SITE)
}

/// The values of cookies of one name, in their order.
pub(super) fn values_of<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    pairs(headers).filter(move |pair| name_of(pair) == name.as_bytes()).filter_map(value_of)
}

/// The cookies whose names are meant, with their values, in their order.
pub(super) fn cookies_named(
    headers: &HeaderMap,
    is_meant: impl Fn(&str) -> bool,
) -> impl Iterator<Item = (&str, &str)> {
    pairs(headers).filter_map(move |pair| {
        let name = std::str::from_utf8(name_of(pair)).ok().filter(|name| is_meant(name))?;
        Some((name, value_of(pair)?))
    })
}

/// Whether somebody who is asked for a login is known to want it from the browser's own dialogue.
pub(super) fn shows_basic(headers: &HeaderMap) -> bool {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    fields.any(|field| scheme_of(field).is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("basic")))
}

/// Takes out what is between the visitor and the gateway: everything of ours in `Cookie`, and
/// `Authorization` if it was used, or if any of it is meant for gateways.
pub(super) fn withhold(headers: &mut HeaderMap, used: Option<Way>, issuers: &Issuers) {
    let is_ours_to_read = |field: &HeaderValue| {
        token_in(field).is_some_and(|(way, _)| way == Way::Basic)
            || words_of(field)
                .iter()
                .any(|text| text.split(is_not_of_token).any(|word| issuers.are_meant(word)))
    };
    let is_used = matches!(used, Some(Way::Bearer | Way::Basic));
    if headers.contains_key(header::AUTHORIZATION)
        && (is_used || headers.get_all(header::AUTHORIZATION).iter().any(is_ours_to_read))
    {
        headers.remove(header::AUTHORIZATION);
    }
    if pairs(headers).any(is_ours) {
        withhold_cookies(headers);
    }
}

/// Takes out the `Authorization` that a browser keeps, once somebody has given it a password, and sends by
/// itself to all of a host. Says whether there was one.
pub(super) fn withhold_kept(headers: &mut HeaderMap) -> bool {
    // Octets, because a name within it need not be ASCII.
    let is_kept = |field: &HeaderValue| {
        let mut words = field.as_bytes().trim_ascii().split(u8::is_ascii_whitespace);
        let scheme = words.next().unwrap_or_default();
        KEPT_BY_BROWSERS.iter().any(|kept| scheme.eq_ignore_ascii_case(kept.as_bytes()))
    };
    let is_withheld = headers.contains_key(header::AUTHORIZATION)
        && is_by_browser(headers)
        && headers.get_all(header::AUTHORIZATION).iter().any(is_kept);
    if is_withheld {
        headers.remove(header::AUTHORIZATION);
    }
    is_withheld
}

/// The token in an `Authorization`: a Bearer's, or the password of the user who stands for tokens.
fn token_in(field: &HeaderValue) -> Option<(Way, Cow<'_, str>)> {
    let (scheme, rest) = scheme_of(field)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some((Way::Bearer, Cow::Borrowed(rest)));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
    let (user, token) = decoded.split_once(':')?;
    user.eq_ignore_ascii_case(TOKEN_USER).then(|| (Way::Basic, Cow::Owned(token.to_owned())))
}

fn scheme_of(field: &HeaderValue) -> Option<(&str, &str)> {
    let (scheme, rest) = field.to_str().ok()?.trim().split_once(|c: char| c.is_ascii_whitespace())?;
    Some((scheme, rest.trim()))
}

/// An `Authorization` as a service may read it, whatever its scheme: as it is, and decoded.
fn words_of(field: &HeaderValue) -> Vec<String> {
    let text = String::from_utf8_lossy(field.as_bytes()).into_owned();
    let decoded = scheme_of(field).and_then(|(_, rest)| BASE64.decode(rest).ok());
    let decoded = decoded.map(|octets| String::from_utf8_lossy(&octets).into_owned());
    [text].into_iter().chain(decoded).collect()
}

/// What stands between tokens (RFC 7515, section 7.1).
fn is_not_of_token(c: char) -> bool {
    !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The pairs of all cookie fields. Octets, because a stranger's cookie need not be text.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let fields = headers.get_all(header::COOKIE).iter();
    fields.flat_map(|field| field.as_bytes().split(|&octet| octet == b';'))
}

fn name_of(pair: &[u8]) -> &[u8] {
    pair.split(|&octet| octet == b'=').next().unwrap_or_default().trim_ascii()
}

/// Whether a service could take it for one of ours, which it would not be for us: without a name, and with
/// a value that looks like one.
fn is_ours(pair: &[u8]) -> bool {
    let name = isolate::name_of(pair);
    name.eq_ignore_ascii_case(TOKEN_COOKIE.as_bytes()) || Kind::is_one(name)
}

fn value_of(pair: &[u8]) -> Option<&str> {
    let (_, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
    Some(value.trim().trim_matches('"'))
}

fn withhold_cookies(headers: &mut HeaderMap) {
    let kept: Vec<HeaderValue> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|field| {
            let rest: Vec<&[u8]> =
                field.as_bytes().split(|&octet| octet == b';').filter(|pair| !is_ours(pair)).collect();
            let rest = rest.join(&b";"[..]);
            HeaderValue::from_bytes(rest.trim_ascii()).ok().filter(|value| !value.is_empty())
        })
        .collect();
    headers.remove(header::COOKIE);
    for field in kept {
        headers.append(header::COOKIE, field);
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_str(value).expect("valid"));
        }
        map
    }

    #[test]
    fn tokens_are_found_where_the_contract_puts_them() {
        let basic = |text: &str| format!("bAsIc {}", STANDARD.encode(text));
        let found = |fields: &[(&'static str, &str)]| {
            let map = map(fields);
            let found = credentials(&map);
            let authorization = found.authorization.map(|(way, token)| (way, token.into_owned()));
            (authorization, found.cookies.iter().map(|&token| token.to_owned()).collect::<Vec<_>>())
        };
        let token = |way| Some((way, "a.b.c".to_owned()));
        assert_eq!(found(&[("authorization", "BEARER  a.b.c ")]).0, token(Way::Bearer));
        assert_eq!(found(&[("authorization", &basic("x-preevy-profile-key:a.b.c"))]).0, token(Way::Basic));
        assert_eq!(found(&[("authorization", &basic("admin:a.b.c"))]).0, None);
        assert_eq!(found(&[("authorization", "Basic !")]).0, None);
        assert_eq!(found(&[("authorization", "Bearer a.b.c"), ("authorization", "Bearer x")]).0, None);
        let cookies = [("cookie", "a=\u{e9}; preevy-saas-jwt=t"), ("cookie", "preevy-saas-jwt =u")];
        assert_eq!(found(&cookies), (None, vec!["t".to_owned(), "u".to_owned()]));
    }

    #[test]
    fn what_a_page_sends_is_known_by_what_the_browser_says() {
        let own = [("sec-fetch-mode", "navigate"), ("sec-fetch-site", "none")];
        let node = [("sec-fetch-mode", "cors"), ("user-agent", "node")];
        for none in [&[][..], &[("authorization", "Bearer x"), ("user-agent", "curl")], &own, &node] {
            assert_eq!(login_of(&map(none)), Login::Token, "{none:?}");
        }
        let twice = [own[1], ("sec-fetch-site", "same-site")];
        let sent = [own[0], ("sec-fetch-site", "cross-site")];
        let fetch = [("sec-fetch-mode", "same-origin"), ("sec-fetch-site", "same-origin")];
        for page in [&[("origin", "null")][..], &twice, &sent, &fetch] {
            assert_eq!(login_of(&map(page)), Login::Page, "{page:?}");
        }
    }

    #[test]
    fn what_is_ours_goes_no_further() {
        let issuers = Issuers::open(&crate::config::AccessSettings::default()).expect("no file to read");
        let left = |fields: &[(&'static str, &str)], used| {
            let mut map = map(fields);
            withhold(&mut map, used, &issuers);
            let text = |v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
            let of = |name| map.get_all(name).iter().map(text).collect();
            let (authorization, cookies): (Vec<String>, Vec<String>) =
                (of(header::AUTHORIZATION), of(header::COOKIE));
            (authorization, cookies)
        };
        // The token of an agent's key opens doors nowhere else, so no service is to see it.
        let of_key = "Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJwcmVldnk6Ly94In0.AAAA";
        let app = [("authorization", "Bearer of.the.app"), ("cookie", "a=1; preevy-saas-jwt=t; b=2")];
        assert_eq!(left(&app, None), (vec!["Bearer of.the.app".to_owned()], vec!["a=1; b=2".to_owned()]));
        assert_eq!(left(&app, Some(Way::Cookie)).0, ["Bearer of.the.app"]);
        assert_eq!(left(&app, Some(Way::Bearer)).0, <[&str; 0]>::default());
        let foreign = [("cookie", "a=\u{e9}; preevy-saas-jwt =t")];
        assert_eq!(left(&foreign, None).1, ["a=\u{e9}"]);
        let two = [("authorization", "Bearer of.the.app"), ("authorization", of_key)];
        assert_eq!(left(&two, None).0, <[&str; 0]>::default());
        let only = [("cookie", "preevy-saas-jwt=t")];
        assert_eq!(left(&only, None).1, <[&str; 0]>::default());
        assert_eq!(left(&[("authorization", of_key)], None).0, <[&str; 0]>::default());
        let basic = format!("Basic {}", STANDARD.encode("x-preevy-profile-key:a.b.c"));
        assert_eq!(left(&[("authorization", &basic)], None).0, <[&str; 0]>::default());
    }
}
