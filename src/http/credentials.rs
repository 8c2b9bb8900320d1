//! What a visitor shows of who they are, and what of it goes no further.
//!
//! An `Authorization` that the gateway used, or that only a gateway could use, reaches no service;
//! neither do the cookies by which it knows visitors. All else is the service's own.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};

use crate::access::{Credentials, Issuers, Way};

/// The user name under which existing agents' tools send a token as a password.
const TOKEN_USER: &str = "x-preevy-profile-key";
/// The cookie in which the hosted service's login leaves a token.
const TOKEN_COOKIE: &str = "preevy-saas-jwt";

/// Finds the tokens in a request's head.
pub(super) fn credentials(headers: &HeaderMap) -> Credentials<'_> {
    Credentials { authorization: authorization(headers), cookie: cookie(headers, TOKEN_COOKIE) }
}

/// Takes out what is between the visitor and the gateway: everything of ours in `Cookie`, and
/// `Authorization` if it was used, or is a token of an agent's key.
pub(super) fn withhold(headers: &mut HeaderMap, used: Option<Way>) {
    if headers.contains_key(header::AUTHORIZATION) && (is_used(used) || is_for_a_gateway(headers)) {
        headers.remove(header::AUTHORIZATION);
    }
    if cookie(headers, TOKEN_COOKIE).is_some() {
        withhold_cookies(headers);
    }
}

const fn is_used(used: Option<Way>) -> bool {
    matches!(used, Some(Way::Bearer | Way::Basic))
}

fn is_for_a_gateway(headers: &HeaderMap) -> bool {
    authorization(headers).is_some_and(|(way, token)| way == Way::Basic || Issuers::is_of_a_key(&token))
}

/// The token in `Authorization`: a Bearer's, or the password of the user who stands for tokens.
/// Of two such fields neither is taken: who sends two wants one reader to see another than the
/// next does.
fn authorization(headers: &HeaderMap) -> Option<(Way, Cow<'_, str>)> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    let (scheme, rest) = field.to_str().ok()?.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some((Way::Bearer, Cow::Borrowed(rest)));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    let (user, token) = decoded.split_once(':')?;
    (user == TOKEN_USER).then(|| (Way::Basic, Cow::Owned(token.to_owned())))
}

/// The first cookie of this name.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let fields = headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then(|| value.trim_matches('"'))
    })
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

fn is_ours(pair: &[u8]) -> bool {
    let name = pair.split(|&octet| octet == b'=').next().unwrap_or_default();
    name.trim_ascii() == TOKEN_COOKIE.as_bytes()
}

#[cfg(test)]
mod tests {
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
            (authorization, found.cookie.map(str::to_owned))
        };
        let token = |way| Some((way, "a.b.c".to_owned()));
        assert_eq!(found(&[("authorization", "BEARER  a.b.c ")]).0, token(Way::Bearer));
        assert_eq!(found(&[("authorization", &basic("x-preevy-profile-key:a.b.c"))]).0, token(Way::Basic));
        assert_eq!(found(&[("authorization", &basic("admin:a.b.c"))]).0, None);
        assert_eq!(found(&[("authorization", "Basic !")]).0, None);
        assert_eq!(found(&[("authorization", "Bearer a.b.c"), ("authorization", "Bearer x")]).0, None);
        let cookies = [("cookie", "a=1; preevy-saas-jwt=t"), ("cookie", "preevy-saas-jwt=u")];
        assert_eq!(found(&cookies), (None, Some("t".to_owned())));
    }

    #[test]
    fn what_is_ours_goes_no_further() {
        let left = |fields: &[(&'static str, &str)], used| {
            let mut map = map(fields);
            withhold(&mut map, used);
            let of = |name| map.get_all(name).iter().map(|v| v.to_str().expect("text").to_owned()).collect();
            let (authorization, cookies): (Vec<String>, Vec<String>) =
                (of(header::AUTHORIZATION), of(header::COOKIE));
            (authorization, cookies)
        };
        let app = [("authorization", "Bearer of.the.app"), ("cookie", "a=1; preevy-saas-jwt=t; b=2")];
        assert_eq!(left(&app, None), (vec!["Bearer of.the.app".to_owned()], vec!["a=1; b=2".to_owned()]));
        assert_eq!(left(&app, Some(Way::Cookie)).0, ["Bearer of.the.app"]);
        assert_eq!(left(&app, Some(Way::Bearer)).0, <[&str; 0]>::default());
        let only = [("cookie", "preevy-saas-jwt=t")];
        assert_eq!(left(&only, None).1, <[&str; 0]>::default());
        // The token of an agent's key opens doors nowhere else, so no service is to see it.
        let of_key = "Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJwcmVldnk6Ly94In0.AAAA";
        assert_eq!(left(&[("authorization", of_key)], None).0, <[&str; 0]>::default());
        let basic = format!("Basic {}", STANDARD.encode("x-preevy-profile-key:a.b.c"));
        assert_eq!(left(&[("authorization", &basic)], None).0, <[&str; 0]>::default());
    }
}
