//! What a connection is, decided from what was seen of it. Pure: no I/O, no clock.

/// ALPN names that the gateway speaks, best first (RFC 7301; the agents' name is the
/// contract's).
pub const ALPN: [&[u8]; 3] = [b"ssh", b"h2", b"http/1.1"];
/// What a certificate authority's probe offers (RFC 8737, section 3).
pub const ACME_TLS: &[u8] = b"acme-tls/1";
/// Longest HTTP method that is recognised, in octets.
const METHOD_MAX: usize = 16;

/// What the first bytes are the opening of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A TLS record with a handshake in it.
    Tls,
    /// SSH without TLS.
    Ssh,
    /// HTTP without TLS.
    Http,
    /// Nothing that this port speaks.
    Unknown,
    /// Too little to tell.
    NeedMore,
}

/// Tells from the first bytes of a connection what it opens with.
#[must_use]
pub fn by_first_bytes(bytes: &[u8]) -> Opening {
    const SSH: &[u8] = b"SSH-";
    let Some(&first) = bytes.first() else { return Opening::NeedMore };
    // A TLS record of type handshake (RFC 8446, section 5.1). Nothing that a person could type.
    if first == 0x16 {
        return Opening::Tls;
    }
    let common = bytes.len().min(SSH.len());
    if bytes[..common] == SSH[..common] {
        return if common == SSH.len() { Opening::Ssh } else { Opening::NeedMore };
    }
    let method = bytes.iter().take(METHOD_MAX + 1).take_while(|b| b.is_ascii_uppercase()).count();
    // The target begins with a path, `*` or `http:` (RFC 9112, section 3.2); what other protocols
    // say after a word in capitals does not.
    match (bytes.get(method), bytes.get(method + 1)) {
        (Some(b' '), Some(b'/' | b'*' | b'h' | b'H')) if method > 0 => Opening::Http,
        (Some(b' '), None) if method > 0 => Opening::NeedMore,
        (None, _) if method <= METHOD_MAX => Opening::NeedMore,
        _ => Opening::Unknown,
    }
}

/// What ALPN says of a TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsClass {
    /// An agent.
    Ssh,
    /// A visitor.
    Http,
    /// A certificate authority's probe.
    AcmeChallenge,
    /// No list was sent: what comes after the handshake decides.
    Unsaid,
    /// A list that has nothing in common with ours.
    NothingCommon,
}

/// Classifies by the client's ALPN list; `None` when it sent none.
#[must_use]
pub fn by_alpn<'a>(offered: Option<impl Iterator<Item = &'a [u8]>>) -> TlsClass {
    let Some(offered) = offered else { return TlsClass::Unsaid };
    let mut class = TlsClass::NothingCommon;
    for name in offered {
        match name {
            // A probe offers only this name, and nobody else may (RFC 8737, section 3).
            ACME_TLS => return TlsClass::AcmeChallenge,
            b"ssh" => class = TlsClass::Ssh,
            b"h2" | b"http/1.1" if class == TlsClass::NothingCommon => class = TlsClass::Http,
            _ => {}
        }
    }
    class
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings() {
        for (bytes, opening) in [
            (&b""[..], Opening::NeedMore),
            (b"\x16", Opening::Tls),
            (b"S", Opening::NeedMore),
            (b"SSH", Opening::NeedMore),
            (b"SSH-", Opening::Ssh),
            (b"SSI", Opening::NeedMore),
            (b"SSI /", Opening::Http),
            (b"SEARCH / HTTP/1.1", Opening::Http),
            (b"GET", Opening::NeedMore),
            (b"GET ", Opening::NeedMore),
            (b"GET /", Opening::Http),
            (b"GET http://a/ HTTP/1.1", Opening::Http),
            (b"EHLO mail.test", Opening::Unknown),
            (b"PROXY TCP4 192.0.2.1", Opening::Unknown),
            (b"PRI * HTTP/2.0", Opening::Http),
            (b" GET", Opening::Unknown),
            (b"get /", Opening::Unknown),
            (b"\x80\x2e\x01", Opening::Unknown),
            (b"AAAAAAAAAAAAAAAAA", Opening::Unknown),
            (b"\x00", Opening::Unknown),
        ] {
            assert_eq!(by_first_bytes(bytes), opening, "{bytes:?}");
        }
    }

    #[test]
    fn alpn() {
        let by = |names: &'static [&'static [u8]]| by_alpn(Some(names.iter().copied()));
        assert_eq!(by_alpn(None::<std::iter::Empty<&[u8]>>), TlsClass::Unsaid);
        assert_eq!(by(&[b"ssh"]), TlsClass::Ssh);
        assert_eq!(by(&[b"http/1.1", b"ssh"]), TlsClass::Ssh);
        assert_eq!(by(&[b"h3", b"http/1.1"]), TlsClass::Http);
        assert_eq!(by(&[b"h2", b"acme-tls/1"]), TlsClass::AcmeChallenge);
        assert_eq!(by(&[b"smtp"]), TlsClass::NothingCommon);
        assert_eq!(by(&[]), TlsClass::NothingCommon);
    }
}
