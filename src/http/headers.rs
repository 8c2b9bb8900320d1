//! The trust boundary of headers: what is between two neighbours stays there, and what a visitor
//! says of where it comes from is believed only from a trusted proxy.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version, request};
use ipnet::IpNet;

use super::record::Upload;
use crate::access::brief;
use crate::name::HostName;
use crate::net::{PeerAddr, VisitorAddr};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Whether a visitor came over HTTP or HTTPS.
pub(super) const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Whether a field is between two neighbours (RFC 9110, section 7.6.1), or of a proxy's own login
/// (sections 11.7 and 11.6.3).
fn is_between_neighbours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "http2-settings"
    )
}

/// What a trusted proxy says of where a request comes from, and what is no address: nobody knows then
/// who is behind it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Illegible(pub(super) String);

/// Who a request came from: the last address in the chain that is not a trusted proxy's. Where a
/// trusted proxy's own word is no address, that is said as well, and the visitor is the last who is
/// known.
pub(super) fn visitor(
    headers: &HeaderMap,
    peer: PeerAddr,
    trusted: &[IpNet],
) -> (VisitorAddr, Option<Illegible>) {
    let trusts = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut visitor = peer.ip();
    if !trusts(visitor) {
        return (VisitorAddr(visitor), None);
    }
    for value in headers.get_all(FOR).iter().rev() {
        // Octets, because what the visitor sent need not be text.
        for word in value.as_bytes().rsplit(|&octet| octet == b',') {
            // It ends the chain: nothing before it can be believed.
            let Some(address) = address_in(word) else {
                return (VisitorAddr(visitor), Some(Illegible(brief(&String::from_utf8_lossy(word)))));
            };
            visitor = address.to_canonical();
            if !trusts(visitor) {
                return (VisitorAddr(visitor), None);
            }
        }
    }
    (VisitorAddr(visitor), None)
}

/// The address in a word of the chain, which some proxies write with a port, in brackets or in quotes
/// (RFC 7239, section 6).
fn address_in(word: &[u8]) -> Option<IpAddr> {
    let word = std::str::from_utf8(word.trim_ascii()).ok()?;
    let word = word.strip_prefix('"').and_then(|word| word.strip_suffix('"')).unwrap_or(word);
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    if let Some(rest) = word.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let is_whole = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse().ok().filter(|_| is_whole);
    }
    word.parse().ok().or_else(|| {
        let (address, port) = word.split_once(':')?;
        address.parse::<Ipv4Addr>().ok().filter(|_| is_port(port)).map(IpAddr::V4)
    })
}

/// What the gateway itself knows of where a request came from.
pub(super) struct Origin<'a> {
    /// The address of the other end of the connection.
    pub(super) peer: &'a HeaderValue,
    /// Whether that is a trusted proxy.
    pub(super) trusted: bool,
    /// Whether the connection is under TLS.
    pub(super) tls: bool,
    /// The port that the visitor named, if it named one.
    pub(super) port: Option<u16>,
    /// The host as the visitor wrote it.
    pub(super) host: Option<&'a HeaderValue>,
}

/// Makes a visitor's request head one for the service. `base` is the host where none was named.
pub(super) fn prepare(parts: &mut request::Parts, origin: &Origin<'_>, base: &HostName, has_body: bool) {
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    if parts.version >= Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let trailers = takes_trailers(&parts.headers);
    let head = &mut parts.headers;
    remove_hop_by_hop(head);
    // The parser answers it itself, as soon as the service is sent the body.
    head.remove(header::EXPECT);
    if trailers {
        head.insert(header::TE, HeaderValue::from_static("trailers"));
        head.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    // Over HTTP/2 it may stand there twice, with the same value.
    if let Some(length) = head.get(header::CONTENT_LENGTH).cloned() {
        head.insert(header::CONTENT_LENGTH, length);
    }
    if has_body && !head.contains_key(header::CONTENT_LENGTH) {
        head.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if !has_body && matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
        head.entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    }
    if let Some(text) = origin.host {
        head.insert(header::HOST, text.clone());
    } else if let Ok(base) = HeaderValue::from_str(base.as_str()) {
        head.insert(header::HOST, base);
    }
    rebuild_forwarded(head, origin);
}

/// Rebuilds the forwarding headers: what a visitor sent is dropped; what a trusted proxy sent is
/// kept, with its own address added to the chain.
pub(super) fn rebuild_forwarded(headers: &mut HeaderMap, origin: &Origin<'_>) {
    let mut chain = None;
    if origin.trusted {
        let earlier = headers.get_all(FOR).iter().map(HeaderValue::as_bytes);
        let all: Vec<&[u8]> = earlier.chain([origin.peer.as_bytes()]).collect();
        chain = HeaderValue::try_from(all.join(&b", "[..])).ok();
    } else {
        let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
        for name in claims {
            headers.remove(name);
        }
    }
    headers.insert(FOR, chain.unwrap_or_else(|| origin.peer.clone()));
    let mut say = |name: HeaderName, value: Option<HeaderValue>| match (headers.entry(name), value) {
        (Entry::Occupied(_), _) if origin.trusted => {}
        (Entry::Occupied(mut entry), Some(value)) => drop(entry.insert(value)),
        (Entry::Occupied(entry), None) => drop(entry.remove_entry_mult()),
        (Entry::Vacant(entry), Some(value)) => drop(entry.insert(value)),
        (Entry::Vacant(_), None) => {}
    };
    say(PROTO, Some(HeaderValue::from_static(if origin.tls { "https" } else { "http" })));
    say(HOST, origin.host.cloned());
    // No port in `Host` means the scheme's own, whatever port it arrived at behind a mapping; and
    // the scheme is what now stands there, for a trusted proxy may have ended TLS.
    let secure = headers.get(PROTO).is_some_and(|proto| proto == "https");
    let own = || HeaderValue::from_static(if secure { "443" } else { "80" });
    if !(origin.trusted && headers.contains_key(PORT)) {
        headers.insert(PORT, origin.port.map_or_else(own, HeaderValue::from));
    }
}

/// Whether a field is one of those that are rebuilt.
pub(super) fn is_forwarded(name: &HeaderName) -> bool {
    [FOR, PROTO, PORT, HOST].contains(name)
}

/// Whether a header says where a request comes from. Services that know headers as variables take
/// `_` for `-`, so that spelling counts as well.
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !matches!(name.as_bytes().first(), Some(b'x' | b'f')) {
        return false;
    }
    let name = name.replace('_', "-");
    name.starts_with("x-forwarded-") || matches!(name.as_str(), "forwarded" | "x-real-ip" | "x-client-ip")
}

/// Takes out what is between two neighbours, and what `Connection` names as such.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|word| HeaderName::from_bytes(word.trim().as_bytes()).ok())
        // Taking these out would change the message itself, which no sender may ask for.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    // One pass over the names costs less than eight look-ups, and there is rarely one to remove.
    while let Some(name) = headers.keys().find(|name| is_between_neighbours(name)).cloned() {
        headers.remove(name);
    }
}

/// Whether the other side takes trailers (RFC 9110, section 10.1.4).
pub(super) fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut words = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    words.any(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("trailers")))
}

/// The protocol that a request or an answer wants to switch to; `None` when `Connection` does
/// not say `upgrade` (RFC 9110, section 7.8). HTTP/2 is never switched to.
pub(super) fn upgrade_to(headers: &HeaderMap) -> Option<HeaderValue> {
    let token = headers.get(header::UPGRADE)?;
    let asked = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")));
    let h2 = token.as_bytes().to_ascii_lowercase().starts_with(b"h2");
    (asked && !h2).then(|| token.clone())
}

/// Joins the cookie fields that HTTP/2 may split (RFC 9113, section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Makes a service's answer head one for the visitor.
pub(super) fn clean_answer(parts: &mut http::response::Parts, h1: bool, upload: Option<&Upload>) {
    let headers = &mut parts.headers;
    // A refusal that says which protocol would do must go on saying it (RFC 9110, section 15.5.22).
    let wanted =
        (h1 && parts.status == StatusCode::UPGRADE_REQUIRED).then(|| headers.get(header::UPGRADE).cloned());
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // The chunks were what counted (RFC 9112, section 6.3), and they are taken apart.
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    let early = upload.is_some_and(|upload| !upload.is_ended());
    if let Some(wanted) = wanted.flatten() {
        headers.insert(header::UPGRADE, wanted);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if h1 && early {
        headers.append(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn peer(text: &str) -> PeerAddr {
        PeerAddr(text.parse().expect("literal"))
    }

    #[test]
    fn the_visitor_is_the_last_address_not_trusted() {
        let trusted = ["10.0.0.0/8".parse().expect("literal")];
        let of = |from: &str, chain: &'static str| {
            visitor(&map(&[("x-forwarded-for", chain)]), peer(from), &trusted).0.to_string()
        };
        assert_eq!(of("192.0.2.1:1", "198.51.100.7"), "192.0.2.1");
        assert_eq!(of("10.0.0.1:1", "203.0.113.5, 198.51.100.7, 10.1.1.1"), "198.51.100.7");
        assert_eq!(of("10.0.0.1:1", "198.51.100.7, junk"), "10.0.0.1");
        assert_eq!(of("[::ffff:10.0.0.1]:1", "2001:db8::1"), "2001:db8::1");
    }

    #[test]
    fn forwarding_headers_are_believed_only_from_trusted_proxies() {
        let sent = || {
            map(&[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "gopher"),
                ("x-real-ip", "6.6.6.6"),
                ("x_forwarded_for", "9.9.9.9"),
                ("x-forwarded-prefix", "/a"),
            ])
        };
        let host = HeaderValue::from_static("a.example:8443");
        let text = HeaderValue::from_static("192.0.2.1");
        let origin =
            |trusted| Origin { peer: &text, trusted, tls: true, port: Some(8443), host: Some(&host) };
        let mut headers = sent();
        rebuild_forwarded(&mut headers, &origin(false));
        let rebuilt = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "8443"),
            ("x-forwarded-host", "a.example:8443"),
        ];
        assert_eq!(headers, map(&rebuilt));
        let mut headers = sent();
        rebuild_forwarded(&mut headers, &origin(true));
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 192.0.2.1");
        assert_eq!(headers["x-forwarded-proto"], "gopher");
        assert_eq!(headers["x-real-ip"], "6.6.6.6");
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        let mut headers = map(&[
            ("connection", "close, X-Mine, host"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("upgrade", "tcp"),
            ("host", "a"),
            ("trailer", "sum"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("trailer", "sum")]));
    }

    #[test]
    fn cookie_crumbs_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2")]));
    }
}
