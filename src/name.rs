//! Names: hosts, what certificates are for, tunnels, clients. Each is parsed once, at the border, and carried as its own
//! type from there on, so that a raw string is never looked up or compared by accident.
//!
//! This room is pure: no I/O, no clock, no other room.

use std::borrow::Borrow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use md5::{Digest as _, Md5};

/// Longest label in the DNS, in octets (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;
/// Longest host name in text form, in octets (RFC 1035, section 2.3.4).
const HOST_MAX: usize = 253;

/// A host name as it stands in SNI, `Host` or the configuration: lower case, no port, no
/// trailing dot. An IP literal is allowed (IPv6 in brackets), because `Host` may hold one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Why a text is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a host name: {fault}")]
pub struct HostNameError {
    value: String,
    fault: &'static str,
}

impl HostName {
    /// Parses a host name or IP literal without a port.
    ///
    /// # Errors
    /// When the text is empty, too long, holds a character outside `a-z0-9-_.` (RFC 1123 and
    /// the underscore that tunnel names use), or has an empty or over-long label.
    pub fn parse(text: &str) -> Result<Self, HostNameError> {
        let fail = |fault| Err(HostNameError { value: text.chars().take(HOST_MAX).collect(), fault });
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return match inner.parse::<Ipv6Addr>() {
                Ok(address) => Ok(Self(format!("[{address}]").into())),
                Err(_) => fail("not an IPv6 address in brackets"),
            };
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return fail("it is empty");
        }
        if name.len() > HOST_MAX {
            return fail("longer than 253 octets");
        }
        for label in name.split('.') {
            if label.is_empty() {
                return fail("an empty label");
            }
            if label.len() > LABEL_MAX {
                return fail("a label of more than 63 octets");
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return fail("a character that is not a letter, digit, `-`, `_` or `.`");
            }
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// Parses `host` or `host:port`, as in `Host` and `:authority` (RFC 9110, section 7.2).
    ///
    /// # Errors
    /// As [`HostName::parse`], and when what follows the colon is not a port number.
    pub fn parse_authority(text: &str) -> Result<(Self, Option<u16>), HostNameError> {
        let (host, port) = match text.rfind(':') {
            Some(colon) if !text[colon..].contains(']') => (&text[..colon], Some(&text[colon + 1..])),
            _ => (text, None),
        };
        let host = Self::parse(host)?;
        // An empty port is allowed by RFC 3986, section 3.2.3, and means the default one.
        match port {
            None | Some("") => Ok((host, None)),
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
                Ok(port) => Ok((host, Some(port))),
                Err(_) => Err(HostNameError { value: text.to_owned(), fault: "the port is over 65535" }),
            },
            Some(_) => Err(HostNameError { value: text.to_owned(), fault: "the port is not a number" }),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is an IP literal and not a name.
    #[must_use]
    pub fn is_ip(&self) -> bool {
        self.0.starts_with('[') || self.0.parse::<Ipv4Addr>().is_ok()
    }

    /// The single label in front of `base`: `web-abc` for `web-abc.example.com` under
    /// `example.com`. `None` when the host is the base itself, lies elsewhere, or is deeper.
    #[must_use]
    pub fn label_under(&self, base: &HostName) -> Option<&str> {
        let label = self.0.strip_suffix(base.as_str())?.strip_suffix('.')?;
        (!label.is_empty() && !label.contains('.')).then_some(label)
    }

    /// This host below `base`: `label.base`.
    #[must_use]
    pub fn child_of(label: &str, base: &HostName) -> Self {
        Self(format!("{label}.{base}").into())
    }

    /// Whether a certificate name (exact, or `*.` and one label: RFC 6125, section 6.4.3)
    /// covers this host.
    #[must_use]
    pub fn is_covered_by(&self, pattern: &str) -> bool {
        match pattern.strip_prefix("*.") {
            Some(parent) => self
                .0
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
            None => self.0.eq_ignore_ascii_case(pattern),
        }
    }
}

/// A name that a certificate can be ordered for: a host, or all its direct children (`*.host`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertName {
    host: HostName,
    wildcard: bool,
}

impl CertName {
    /// Parses `host` or `*.host`.
    ///
    /// # Errors
    /// As [`HostName::parse`], and when it is an IP address.
    pub fn parse(text: &str) -> Result<Self, HostNameError> {
        let (host, wildcard) = match text.strip_prefix("*.") {
            Some(parent) => (parent, true),
            None => (text, false),
        };
        let host = HostName::parse(host)?;
        if host.is_ip() {
            return Err(HostNameError { value: text.to_owned(), fault: "it is an IP address" });
        }
        Ok(Self { host, wildcard })
    }

    /// The name of one host.
    #[must_use]
    pub fn exact(host: HostName) -> Self {
        Self { host, wildcard: false }
    }

    /// The name of all direct children of a host.
    #[must_use]
    pub fn wildcard(host: HostName) -> Self {
        Self { host, wildcard: true }
    }

    /// The host, or that whose children are meant.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Whether a host's children are meant.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Whether a certificate for this name is good for `host`.
    #[must_use]
    pub fn covers(&self, host: &HostName) -> bool {
        if self.wildcard { host.label_under(&self.host).is_some() } else { *host == self.host }
    }
}

impl fmt::Display for CertName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.host)
    }
}

impl fmt::Debug for CertName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertName({self})")
    }
}

/// The first part of a tunnel's public host: one DNS label, `NAME-CLIENTID`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelName(Arc<str>);

impl TunnelName {
    /// Derives the public name from what the agent asked for, as existing agents expect it.
    ///
    /// `requested` may hold anything; one leading `/` is dropped. Each UTF-16 code unit outside
    /// `[A-Za-z0-9_-]` becomes `-`, and letters become lower case. When that changed something,
    /// or the result does not fit a DNS label together with the client id, four characters of
    /// the MD5 of the raw name keep different raw names apart.
    #[must_use]
    pub fn derive(requested: &str, client: &ClientId) -> Self {
        let raw = requested.strip_prefix('/').unwrap_or(requested);
        let room = LABEL_MAX - 1 - client.as_str().len();
        let clean = sanitise(raw);
        if clean == raw && clean.len() <= room {
            return Self(format!("{clean}-{client}").into());
        }
        let digest = sanitise(&URL_SAFE_NO_PAD.encode(Md5::digest(raw.as_bytes())));
        let tail = &digest[..4];
        let head = &clean[..clean.len().min(room - 1 - tail.len())];
        Self(format!("{head}-{tail}-{client}").into())
    }

    /// Takes a label as it came in a `Host` or a path, for a look-up. Any single label will do;
    /// whether such a tunnel exists is the registry's to say.
    #[must_use]
    pub fn from_label(label: &str) -> Option<Self> {
        let valid = !label.is_empty()
            && label.len() <= LABEL_MAX
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        valid.then(|| Self(label.to_ascii_lowercase().into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Replaces what a DNS label cannot hold. Works on UTF-16 code units, because existing agents
/// compute the same name in a language whose strings are made of them.
fn sanitise(raw: &str) -> String {
    raw.encode_utf16()
        .map(|unit| match u8::try_from(unit) {
            Ok(b) if b.is_ascii_alphanumeric() || b == b'-' || b == b'_' => {
                char::from(b).to_ascii_lowercase()
            }
            _ => '-',
        })
        .collect()
}

/// Eight lower-case characters that stand for a public key in host names. Short for people, not
/// a proof of identity: that is the [`Thumbprint`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Arc<str>);

impl ClientId {
    /// Derives the id from the SSH wire form of a public key (RFC 4253, section 6.6).
    #[must_use]
    pub fn from_key_blob(blob: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, blob);
        let id: String = URL_SAFE_NO_PAD
            .encode(digest)
            .chars()
            .filter(|c| !matches!(c, '-' | '_'))
            .take(8)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        Self(id.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What all thumbprints with SHA-256 begin with (RFC 9278, section 3).
const THUMBPRINT: &str = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:";

/// A key's RFC 7638 thumbprint as an RFC 9278 URI; also the profile id of the API.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Thumbprint(Arc<str>);

impl Thumbprint {
    /// Hashes a JWK in its canonical form (RFC 7638, section 3: required members only, in
    /// lexicographic order, no white space).
    #[must_use]
    pub fn of_canonical_jwk(jwk: &str) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, jwk.as_bytes());
        let digest = URL_SAFE_NO_PAD.encode(digest);
        Self(format!("{THUMBPRINT}{digest}").into())
    }

    /// Whether a text is the thumbprint of some key.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        let digest = text.strip_prefix(THUMBPRINT).and_then(|digest| URL_SAFE_NO_PAD.decode(digest).ok());
        digest.is_some_and(|digest| digest.len() == aws_lc_rs::digest::SHA256_OUTPUT_LEN)
    }

    /// The URI as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_name {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "`{}`", self.0) }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str { &self.0 }
        }
    )*};
}
text_name!(HostName TunnelName ClientId Thumbprint);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_lower_cased_and_bounded() {
        assert_eq!(HostName::parse("Example.COM.").expect("valid").as_str(), "example.com");
        assert_eq!(HostName::parse("[::0001]").expect("valid").as_str(), "[::1]");
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "exa\u{e9}.com",
            "a/b",
            "a:1",
            "[::g]",
            &"x".repeat(64),
            &"a.".repeat(127).repeat(2),
        ] {
            assert!(HostName::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn authorities_split_at_the_port() {
        let parse = |text| HostName::parse_authority(text).map(|(host, port)| (host.to_string(), port));
        assert_eq!(parse("A.b:8443").expect("valid"), ("a.b".to_owned(), Some(8443)));
        assert_eq!(parse("a.b:").expect("valid"), ("a.b".to_owned(), None));
        assert_eq!(parse("[::1]:80").expect("valid"), ("[::1]".to_owned(), Some(80)));
        assert_eq!(parse("[::1]").expect("valid"), ("[::1]".to_owned(), None));
        for bad in ["a:b", "a:99999", "a:+1", "user@a", "::1", "a:1:2"] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn labels_and_wildcards() {
        let base = HostName::parse("example.com").expect("valid");
        let host = |text| HostName::parse(text).expect("valid");
        assert_eq!(host("web-abc.example.com").label_under(&base), Some("web-abc"));
        assert_eq!(host("example.com").label_under(&base), None);
        assert_eq!(host("a.b.example.com").label_under(&base), None);
        assert_eq!(host("evilexample.com").label_under(&base), None);
        assert!(host("a.example.com").is_covered_by("*.example.com"));
        assert!(!host("a.b.example.com").is_covered_by("*.example.com"));
        assert!(!host("example.com").is_covered_by("*.example.com"));
    }
}
