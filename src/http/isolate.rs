//! What of a service's answer must not reach further than the service: a cookie that a preview sets for
//! more than its own host is narrowed to that host, and none may have a name of the gateway's own; no
//! preview clears the cookies of all; below a path, none has browsers ask for a password; no cache in
//! between keeps what needed a login.
//!
//! Network error logging (`NEL`) passes, as it is for the preview's own host and what lies below it.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::credentials::TOKEN_COOKIE;
use super::service::Visit;
use super::session::Kind;
use crate::config::Settings;
use crate::name::HostName;
use crate::registry::Target;

/// What the log says of an `Authorization` that a browser keeps for more than the service.
const WITHHELD: &str = "withheld the browser's `Authorization`, which it sends to all below `/proxy/`; it passes on the tunnel's own host";
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// Takes out what a target must not say, and narrows what a preview says for more than its own host,
/// unless that is allowed. Says what was changed, for the log. Costs few look-ups where there is nothing.
pub(super) fn isolate(
    headers: &mut HeaderMap,
    visit: &Visit<'_>,
    settings: &Settings,
) -> Option<Cow<'static, str>> {
    if visit.permit.by().is_some() {
        keep_private(headers);
    }
    let mut said = Vec::new();
    if visit.is_withheld {
        said.push(WITHHELD.to_owned());
    }
    let tunnel = match visit.target {
        Target::Tunnel(tunnel) => Some(tunnel),
        Target::Route(_) => None,
    };
    let isolated = tunnel.filter(|_| settings.access.isolate_cookies);
    if headers.contains_key(header::SET_COOKIE) {
        let host = isolated.map(|tunnel| HostName::child_of(tunnel.name.as_str(), &settings.base.host));
        // Below a path, all are given out anew anyway.
        let host = host.filter(|_| visit.below.is_none());
        confine(headers, host.as_ref().map(HostName::as_str), tunnel.is_some(), &mut said);
    }
    if let Some(below) = visit.below {
        below.let_out(headers, &mut said);
    }
    if isolated.is_some() && headers.contains_key(CLEAR_SITE_DATA) {
        spare_cookies(headers, &mut said);
    }
    // A service that sets very many makes no record of very many words.
    said.truncate(3);
    (!said.is_empty()).then(|| said.join("; ").into())
}

/// With `host`, what reaches beyond it is narrowed to it. A preview cannot set the cookie of tokens
/// either, which an operator's own service behind a route may.
fn confine(headers: &mut HeaderMap, host: Option<&str>, is_preview: bool, said: &mut Vec<String>) {
    let (mut kept, before) = (Vec::new(), said.len());
    let is_ours = |name: &[u8]| {
        Kind::is_one(name) || (is_preview && name.eq_ignore_ascii_case(TOKEN_COOKIE.as_bytes()))
    };
    for field in headers.get_all(header::SET_COOKIE) {
        let name = name_of(field.as_bytes());
        if is_ours(name) {
            said.push(format!("dropped the service's cookie `{}`, whose name is the gateway's", shown(name)));
            continue;
        }
        match host.and_then(|host| narrowed(field, host)) {
            Some(narrow) => {
                said.push(format!("narrowed the service's cookie `{}` to its host", shown(name)));
                kept.push(narrow);
            }
            None => kept.push(field.clone()),
        }
    }
    if said.len() == before {
        return;
    }
    headers.remove(header::SET_COOKIE);
    for field in kept {
        headers.append(header::SET_COOKIE, field);
    }
}

/// Takes out of `Clear-Site-Data` what clears cookies, because that clears those of the whole domain
/// (W3C Clear Site Data, section 4.2.3). All else is for the preview's own origin.
fn spare_cookies(headers: &mut HeaderMap, said: &mut Vec<String>) {
    let clears_cookies = |item: &&str| item.contains('*') || item.to_ascii_lowercase().contains("cookies");
    let fields = headers.get_all(CLEAR_SITE_DATA).iter();
    let text: Vec<_> = fields.map(|field| String::from_utf8_lossy(field.as_bytes())).collect();
    let items = || text.iter().flat_map(|field| field.split(',')).map(str::trim);
    if !items().any(|item| clears_cookies(&item)) {
        return;
    }
    let kept: Vec<&str> = items().filter(|item| !item.is_empty() && !clears_cookies(item)).collect();
    let kept = HeaderValue::try_from(kept.join(", ")).ok().filter(|kept| !kept.is_empty());
    said.push("took out of the service's `Clear-Site-Data` what clears cookies of others".to_owned());
    headers.remove(CLEAR_SITE_DATA);
    if let Some(kept) = kept {
        headers.insert(CLEAR_SITE_DATA, kept);
    }
}

/// Has no cache that others share keep an answer (RFC 9111, section 5.2.2; RFC 9213), whose visitor had
/// to show who they are. The visitor's own may, as the service wants it.
fn keep_private(headers: &mut HeaderMap) {
    let is_targeted = |name: &HeaderName| {
        let name = name.as_str();
        name == "surrogate-control" || name.ends_with("cdn-cache-control")
    };
    while let Some(name) = headers.keys().find(|name| is_targeted(name)).cloned() {
        headers.remove(name);
    }
    if !headers.contains_key(header::CACHE_CONTROL) && headers.contains_key(header::PRAGMA) {
        // With a `Cache-Control`, it would no longer count.
        return;
    }
    let fields = headers.get_all(header::CACHE_CONTROL).iter();
    let text: Vec<_> = fields.map(|field| String::from_utf8_lossy(field.as_bytes()).into_owned()).collect();
    let text = text.join(",");
    let name_of =
        |directive: &str| directive.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    let mut kept: Vec<&str> = directives(&text)
        .into_iter()
        .filter(|directive| match name_of(directive).as_str() {
            "" | "public" | "s-maxage" => false,
            // With names of fields, it is for these alone.
            "private" => !directive.contains('='),
            _ => true,
        })
        .collect();
    let is_private = |directive: &&str| matches!(name_of(directive).as_str(), "private" | "no-store");
    if !kept.iter().any(is_private) {
        kept.push("private");
    }
    let kept = HeaderValue::try_from(kept.join(", ")).unwrap_or(HeaderValue::from_static("no-store"));
    headers.insert(header::CACHE_CONTROL, kept);
}

/// The items of a list that may hold commas within quotes.
fn directives(text: &str) -> Vec<&str> {
    let mut is_quoted = false;
    let items = text.split(|c: char| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    });
    items.map(str::trim).collect()
}

/// The cookie without `Domain`, if one of them is not just this host. Browsers take the last
/// (RFC 6265, section 5.3), others may take the first.
fn narrowed(field: &HeaderValue, host: &str) -> Option<HeaderValue> {
    let reaches_beyond =
        |part: &[u8]| domain_of(part).is_some_and(|domain| !domain.eq_ignore_ascii_case(host.as_bytes()));
    let parts = || field.as_bytes().split(|&octet| octet == b';');
    if !parts().skip(1).any(reaches_beyond) {
        return None;
    }
    let kept = parts().enumerate().filter(|(index, part)| *index == 0 || domain_of(part).is_none());
    let kept: Vec<&[u8]> = kept.map(|(_, part)| part).collect();
    HeaderValue::from_bytes(&kept.join(&b';')).ok()
}

/// The value of a `Domain` attribute, as browsers read it: without one dot in front.
fn domain_of(part: &[u8]) -> Option<&[u8]> {
    let mut halves = part.splitn(2, |&octet| octet == b'=');
    let name = halves.next().unwrap_or_default().trim_ascii();
    if !name.eq_ignore_ascii_case(b"domain") {
        return None;
    }
    let value = halves.next().unwrap_or_default().trim_ascii();
    Some(value.strip_prefix(b".").unwrap_or(value))
}

/// A cookie without `=` is a value without a name. One that begins with it has a name that is empty,
/// and goes back to the service as what stands behind it: that could look like another's.
pub(super) fn name_of(cookie: &[u8]) -> &[u8] {
    let mut pair = cookie.split(|&octet| octet == b';').next().unwrap_or_default().trim_ascii_start();
    while let Some(rest) = pair.strip_prefix(b"=") {
        pair = rest.trim_ascii_start();
    }
    match pair.iter().position(|&octet| octet == b'=') {
        Some(at) => pair[..at].trim_ascii(),
        None => &[],
    }
}

pub(super) fn shown(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "web-a.gw.test";

    fn after(cookies: &[&str], host: Option<&str>) -> (Vec<String>, bool) {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(header::SET_COOKIE, HeaderValue::from_bytes(cookie.as_bytes()).expect("valid"));
        }
        let mut said = Vec::new();
        confine(&mut headers, host, true, &mut said);
        let said = !said.is_empty();
        let left = headers.get_all(header::SET_COOKIE).iter();
        (left.map(|field| String::from_utf8_lossy(field.as_bytes()).into_owned()).collect(), said)
    }

    #[test]
    fn what_reaches_beyond_the_host_is_narrowed() {
        for (set, left) in [
            ("a=1; Domain=gw.test; Path=/", "a=1; Path=/"),
            ("a=1;domain = .GW.test ;Secure", "a=1;Secure"),
            ("a=1; DOMAIN=other-b.gw.test", "a=1"),
            ("a=1; Domain=web-a.gw.test; Domain=test", "a=1"),
            ("a=1; Domain", "a=1"),
            ("é=1; Domain=test", "é=1"),
        ] {
            assert_eq!(after(&[set], Some(HOST)), (vec![left.to_owned()], true), "{set}");
        }
        for untouched in [
            "a=1",
            "domain=gw.test",
            "a=Domain=gw.test",
            "a=1; Domain=.Web-A.gw.test",
            "a=1; Domainx=gw.test",
        ] {
            assert_eq!(after(&[untouched], Some(HOST)), (vec![untouched.to_owned()], false), "{untouched}");
        }
        let reaching = "a=1; Domain=gw.test";
        assert_eq!(after(&[reaching], None), (vec![reaching.to_owned()], false));
    }

    #[test]
    fn our_names_are_not_for_services() {
        let set = [
            "a=1",
            "__Host-oneport-visit=x; Path=/; Secure",
            " oneport-login =y",
            "= =oneport-login=z",
            "b=2",
        ];
        for host in [None, Some(HOST)] {
            assert_eq!(after(&set, host), (vec!["a=1".to_owned(), "b=2".to_owned()], true));
        }
    }
}
