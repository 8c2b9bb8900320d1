//! Tunnels below `/proxy/NAME`, where many share one host: each has cookies of its own there, under names
//! that begin with its own, and says nothing that is for the host as a whole: neither does it have browsers
//! ask for a password, which they would send to all of it.
//!
//! Their pages still are of one origin: what scripts can reach there, any of them can.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, StatusCode};

use super::challenge;
use super::isolate::{name_of, shown};
use super::respond::Failure;
use crate::name::TunnelName;
use crate::observe::Reason;

/// What begins such a cookie's name. The tunnel's name and a dot follow, which none of them holds.
const PREFIX: &str = "oneport-proxy.";
/// Longest path of a cookie, in octets. Browsers take none above 1,024 (RFC 6265bis, section 5.6).
const PATH_MAX: usize = 900;
/// What would be for all tunnels there: which service workers may be in charge, what a browser is to
/// forget, where it reports what goes wrong, how it connects, and what it tells of itself.
const FOR_ALL: [HeaderName; 7] = [
    HeaderName::from_static("strict-transport-security"),
    HeaderName::from_static("alt-svc"),
    HeaderName::from_static("accept-ch"),
    HeaderName::from_static("service-worker-allowed"),
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
];

/// The place of a tunnel below a path.
#[derive(Debug)]
pub(super) struct Below {
    /// What its cookies' names begin with.
    prefix: String,
    /// `/proxy/NAME`, as the visitor wrote it: browsers compare paths with that.
    path: String,
}

impl Below {
    /// The place that a path leads to.
    ///
    /// # Errors
    /// When it asks for a service worker that would be in charge of more than the place: it is of all
    /// below the last `/` of its own path.
    pub(super) fn of<B>(name: &TunnelName, request: &Request<B>) -> Result<Self, Failure> {
        let path = request.uri().path_and_query().map_or("", PathAndQuery::path);
        let end = "/proxy/".len() + name.as_str().len();
        // The name was read from there.
        let (place, rest) = path.split_at_checked(end).unwrap_or((path, ""));
        if rest.is_empty() && request.headers().contains_key("service-worker") {
            return Err(Failure::new(
                Reason::NotFound,
                StatusCode::NOT_FOUND,
                format!(
                    "a service worker's script cannot be `{place}` itself, from where it would be in charge of others' pages"
                ),
                format!("let it lie below `{place}/`, or use the tunnel's own host"),
            ));
        }
        Ok(Self { prefix: format!("{PREFIX}{}.", name.as_str()), path: place.to_owned() })
    }

    /// Leaves the cookies that are the tunnel's, under the names that it gave them.
    pub(super) fn let_in(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(header::COOKIE) {
            return;
        }
        let fields = headers.get_all(header::COOKIE).iter();
        let pairs = fields.flat_map(|field| field.as_bytes().split(|&octet| octet == b';'));
        let own = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(self.prefix.as_bytes()));
        // One without a name comes back without the sign, too.
        let own = own.map(|pair| pair.strip_prefix(b"=").unwrap_or(pair));
        let own: Vec<&[u8]> = own.filter(|pair| !pair.is_empty()).collect();
        let joined = HeaderValue::from_bytes(&own.join(&b"; "[..])).ok().filter(|joined| !joined.is_empty());
        headers.remove(header::COOKIE);
        if let Some(joined) = joined {
            headers.insert(header::COOKIE, joined);
        }
    }

    /// Gives the service's cookies names and paths of the tunnel's own, and takes out what is for all.
    /// Says what a person may miss.
    pub(super) fn let_out(&self, headers: &mut HeaderMap, said: &mut Vec<String>) {
        for name in FOR_ALL {
            headers.remove(name);
        }
        if let Some(scheme) = challenge::take_out(headers) {
            let scheme = shown(&scheme);
            said.push(format!(
                "took out the service's challenge `{scheme}`, because browsers would send the password to all below `/proxy/`; it passes on the tunnel's own host"
            ));
        }
        if !headers.contains_key(header::SET_COOKIE) {
            return;
        }
        let fields = headers.get_all(header::SET_COOKIE).iter();
        let own: Vec<_> = fields.filter_map(|field| self.own(field.as_bytes())).collect();
        headers.remove(header::SET_COOKIE);
        for field in own {
            headers.append(header::SET_COOKIE, field);
        }
    }

    fn own(&self, field: &[u8]) -> Option<HeaderValue> {
        let mut parts = field.split(|&octet| octet == b';');
        let pair = parts.next().unwrap_or_default().trim_ascii();
        let mut own = self.prefix.clone().into_bytes();
        if name_of(pair).is_empty() && !pair.starts_with(b"=") {
            own.push(b'=');
        }
        own.extend_from_slice(pair);
        let mut path = &b""[..];
        for part in parts {
            let mut halves = part.splitn(2, |&octet| octet == b'=');
            let name = halves.next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
            match name.as_slice() {
                // Browsers take the last (RFC 6265, section 5.3).
                b"path" => path = halves.next().unwrap_or_default().trim_ascii(),
                b"domain" => {}
                _ => {
                    own.push(b';');
                    own.extend_from_slice(part);
                }
            }
        }
        own.extend_from_slice(b"; Path=");
        own.extend_from_slice(self.path.as_bytes());
        // `/` is all of it: with the slash, the place itself would be left out.
        if path.starts_with(b"/") && path != b"/" && path.len() <= PATH_MAX {
            own.extend_from_slice(path);
        }
        HeaderValue::from_bytes(&own).ok()
    }
}
