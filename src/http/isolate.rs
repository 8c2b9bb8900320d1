//! Cookies of services: one that a preview sets for more than its own host is narrowed to that
//! host, and none may have a name of the gateway's own.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderValue};

use super::session::Kind;
use crate::config::Settings;
use crate::name::HostName;
use crate::registry::Target;

/// Takes out what a target must not set, and narrows what a preview sets for more than its own host,
/// unless that is allowed. Says what was changed, for the log. Costs a look-up where there is no
/// cookie.
pub(super) fn isolate(
    headers: &mut HeaderMap,
    target: &Target,
    settings: &Settings,
) -> Option<Cow<'static, str>> {
    if !headers.contains_key(header::SET_COOKIE) {
        return None;
    }
    let host = match target {
        Target::Tunnel(tunnel) if settings.access.isolate_cookies => {
            Some(HostName::child_of(tunnel.name.as_str(), &settings.base.host))
        }
        _ => None,
    };
    confine(headers, host.as_ref().map(HostName::as_str))
}

/// With `host`, what reaches beyond it is narrowed to it.
fn confine(headers: &mut HeaderMap, host: Option<&str>) -> Option<Cow<'static, str>> {
    let (mut kept, mut said) = (Vec::new(), Vec::new());
    for field in headers.get_all(header::SET_COOKIE) {
        let name = name_of(field.as_bytes());
        if Kind::is_one(name) {
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
    if said.is_empty() {
        return None;
    }
    headers.remove(header::SET_COOKIE);
    for field in kept {
        headers.append(header::SET_COOKIE, field);
    }
    // A service that sets very many makes no record of very many words.
    said.truncate(3);
    Some(said.join("; ").into())
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
fn name_of(cookie: &[u8]) -> &[u8] {
    let mut pair = cookie.split(|&octet| octet == b';').next().unwrap_or_default().trim_ascii_start();
    while let Some(rest) = pair.strip_prefix(b"=") {
        pair = rest.trim_ascii_start();
    }
    match pair.iter().position(|&octet| octet == b'=') {
        Some(at) => pair[..at].trim_ascii(),
        None => &[],
    }
}

fn shown(name: &[u8]) -> String {
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
        let said = confine(&mut headers, host).is_some();
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
