//! What a request's head must look like, checked on its raw bytes.
//!
//! An HTTP parser forgives; two parsers in a row forgive differently, and that difference is
//! request smuggling. This file forgives nothing that could be read in two ways. It is pure.

use http::StatusCode;

/// Fields that a head may hold; the parser behind has the same bound.
const FIELDS_MAX: usize = 100;
/// Octets of a request target; the parser behind has the same bound.
const TARGET_MAX: usize = 65_534;
/// Octets that the extensions and the trailer section of a chunked body may hold, each.
const CHUNK_EXTRA_MAX: usize = 16 * 1024;

/// Why a request was refused before it was read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum Fault {
    #[error("a line of the request's head ends in a bare line feed; end each line with CR LF")]
    BareLineFeed,
    #[error("the first line is not `METHOD TARGET HTTP/1.1`")]
    RequestLine,
    #[error("the request target holds a character that must be percent-encoded")]
    Target,
    #[error("the request target is too long; send less in the URL")]
    TargetTooLong,
    #[error("only HTTP/1.1 and HTTP/1.0 are spoken on this connection")]
    Version,
    #[error("a header line begins with white space (obsolete line folding)")]
    Folded,
    #[error("there is white space between a header's name and its colon")]
    SpaceBeforeColon,
    #[error("a header's name holds a character that is not allowed there")]
    FieldName,
    #[error("a header's value holds a control character")]
    FieldValue,
    #[error("there is no `Host` header")]
    NoHost,
    #[error("there is more than one `Host` header")]
    TwoHosts,
    #[error("the `Content-Length` is not one number")]
    Length,
    #[error("there are both a `Content-Length` and a `Transfer-Encoding`")]
    TwoLengths,
    #[error("the only transfer coding understood is exactly `chunked`")]
    TransferEncoding,
    #[error("the chunked body is malformed")]
    Chunk,
    #[error("the request's headers are too large; send fewer or shorter ones (cookies?)")]
    TooLarge,
    #[error("the request's head did not arrive in time")]
    TooSlow,
}

impl Fault {
    /// The status that says it (RFC 9110, section 15.5; RFC 6585, section 5).
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// What follows a head on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// The next head.
    Head,
    /// A body of so many octets.
    Length(u64),
    /// A chunked body.
    Chunked,
    /// Whatever the answer says: it may switch protocols.
    Perhaps,
}

/// Finds the end of a head while it arrives.
#[derive(Debug, Default)]
pub(super) struct Finder {
    line: usize,
    seen: usize,
}

impl Finder {
    /// The length of the head that `bytes` begin with, its empty line included. `None`: more is
    /// needed; call again with the same bytes and more. A length of 2 is an empty line in front
    /// of a request, which is to be skipped (RFC 9112, section 2.2).
    pub(super) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        while let Some(offset) = bytes[self.seen..].iter().position(|b| *b == b'\n') {
            let end = self.seen + offset;
            if end == self.line || bytes[end - 1] != b'\r' {
                return Err(Fault::BareLineFeed);
            }
            let empty = end - self.line == 1;
            (self.line, self.seen) = (end + 1, end + 1);
            if empty {
                return Ok(Some(std::mem::take(self).seen));
            }
        }
        self.seen = bytes.len();
        Ok(None)
    }
}

/// Checks a whole head, from the request line to the empty line, and says what follows it.
pub(super) fn check(head: &[u8]) -> Result<Follows, Fault> {
    let mut lines = Lines(head);
    let (connect, newer) = check_request_line(lines.next().unwrap_or_default())?;
    let (mut hosts, mut fields, mut upgrade) = (0, 0, connect);
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        fields += 1;
        let (name, value) = check_field(line)?;
        // The lengths of the names that matter, so that most fields cost one comparison.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade |= newer,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let this = parse_length(value)?;
                if length.is_some_and(|other| other != this) {
                    return Err(Fault::Length);
                }
                length = Some(this);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !newer || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::TransferEncoding);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    match (hosts, length, chunked) {
        _ if fields > FIELDS_MAX => Err(Fault::TooLarge),
        (0, ..) if newer => Err(Fault::NoHost),
        (2.., ..) => Err(Fault::TwoHosts),
        (_, Some(_), true) => Err(Fault::TwoLengths),
        (_, None, true) => Ok(Follows::Chunked),
        (_, Some(1..), false) => Ok(Follows::Length(length.unwrap_or(0))),
        _ if upgrade => Ok(Follows::Perhaps),
        _ => Ok(Follows::Head),
    }
}

/// Whether the method is CONNECT, and whether the version is 1.1.
fn check_request_line(line: &[u8]) -> Result<(bool, bool), Fault> {
    let mut words = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Fault::RequestLine);
    };
    if method.is_empty() || target.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(Fault::RequestLine);
    }
    if target.len() > TARGET_MAX {
        return Err(Fault::TargetTooLong);
    }
    // A fragment is never sent (RFC 9110, section 7.1), and what cuts it off would change the path.
    if !target.iter().all(|b| *b > b' ' && *b != 0x7f && *b != b'#') || !is_parsed_behind(target) {
        return Err(Fault::Target);
    }
    match version {
        b"HTTP/1.1" => Ok((method == b"CONNECT", true)),
        b"HTTP/1.0" => Ok((method == b"CONNECT", false)),
        _ if version.starts_with(b"HTTP/") => Err(Fault::Version),
        _ => Err(Fault::RequestLine),
    }
}

/// Whether the parser behind takes the target as well; its own refusal would say nothing.
fn is_parsed_behind(target: &[u8]) -> bool {
    let ordinary = |b: &u8| b.is_ascii_alphanumeric() || b"/-_.~%?&=+,:;@!$'()*".contains(b);
    (target[0] == b'/' && target.iter().all(ordinary)) || http::Uri::try_from(target).is_ok()
}

/// A field line's name and its value without the white space around (RFC 9112, section 5).
fn check_field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Fault::Folded);
    }
    let colon = line.iter().position(|b| *b == b':').ok_or(Fault::FieldName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err(Fault::SpaceBeforeColon);
    }
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        return Err(Fault::FieldName);
    }
    if value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(Fault::FieldValue);
    }
    Ok((name, value.trim_ascii()))
}

fn parse_length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Length);
    }
    // Lengths near the type's end have meanings of their own in the parser behind.
    let text = std::str::from_utf8(value).map_err(|_| Fault::Length)?;
    text.parse().ok().filter(|length| *length < u64::MAX / 2).ok_or(Fault::Length)
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The lines of a head, each known to end in CR LF, up to the empty one.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|b| *b == b'\n')?;
        let line = self.0[..end].strip_suffix(b"\r")?;
        self.0 = &self.0[end + 1..];
        (!line.is_empty()).then_some(line)
    }
}

/// Follows a chunked body to its end (RFC 9112, section 7.1); data is skipped, not looked at.
#[derive(Debug)]
pub(super) struct Chunks {
    part: Part,
    line: Vec<u8>,
    extra: usize,
}

#[derive(Debug)]
enum Part {
    /// A size line, or (`true`) a line of the trailer section.
    Line(bool),
    Data(u64),
    DataCr,
    DataLf,
}

impl Chunks {
    /// At the start of a chunked body.
    pub(super) fn new() -> Self {
        Self { part: Part::Line(false), line: Vec::new(), extra: 0 }
    }

    /// Looks at the next bytes of the connection: how many belong to the body, and whether it
    /// ends with them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(usize, bool), Fault> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.part {
                Part::Data(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += count;
                    *left -= count as u64;
                    if *left == 0 {
                        self.part = Part::DataCr;
                    }
                    continue;
                }
                Part::DataCr if bytes[at] == b'\r' => self.part = Part::DataLf,
                Part::DataLf if bytes[at] == b'\n' => self.part = Part::Line(false),
                Part::Line(trailer) if bytes[at] == b'\n' => {
                    let line = self.line.strip_suffix(b"\r").ok_or(Fault::Chunk)?;
                    self.extra += line.len();
                    self.part = match (*trailer, line.is_empty()) {
                        (true, true) => return Ok((at + 1, true)),
                        (true, false) => check_field(line).map(|_| Part::Line(true))?,
                        (false, _) => match parse_size(line)? {
                            0 => Part::Line(true),
                            size => Part::Data(size),
                        },
                    };
                    self.line.clear();
                }
                Part::Line(_) if self.line.len() + self.extra < CHUNK_EXTRA_MAX => self.line.push(bytes[at]),
                _ => return Err(Fault::Chunk),
            }
            at += 1;
        }
        Ok((at, false))
    }
}

fn parse_size(line: &[u8]) -> Result<u64, Fault> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    let extension = &line[digits.len()..];
    if digits.is_empty() || digits.len() > 15 || extension.iter().any(|b| *b < b' ' && *b != b'\t') {
        return Err(Fault::Chunk);
    }
    digits.iter().try_fold(0, |size, digit| {
        let value = char::from(*digit).to_digit(16).ok_or(Fault::Chunk)?;
        Ok(size * 16 + u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(head: &str) -> Result<Follows, Fault> {
        let end = Finder::default().find(head.as_bytes())?;
        assert_eq!(end, Some(head.len()));
        check(head.as_bytes())
    }

    #[test]
    fn plain_heads_pass_and_say_what_follows() {
        let get = "GET //tunnels?a=%20 HTTP/1.1\r\nHost: a_b.example\r\n";
        assert_eq!(verdict(&format!("{get}\r\n")), Ok(Follows::Head));
        assert_eq!(verdict(&format!("{get}Content-Length: 0\r\n\r\n")), Ok(Follows::Head));
        assert_eq!(
            verdict(&format!("{get}Content-Length: 5\r\ncontent-length:5\r\n\r\n")),
            Ok(Follows::Length(5))
        );
        assert_eq!(verdict(&format!("{get}Transfer-Encoding: Chunked\r\n\r\n")), Ok(Follows::Chunked));
        assert_eq!(verdict(&format!("{get}Upgrade: tcp\r\n\r\n")), Ok(Follows::Perhaps));
        assert_eq!(verdict("GET / HTTP/1.0\r\n\r\n"), Ok(Follows::Head));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (fields, fault) in [
            ("", Fault::NoHost),
            ("Host: a\r\nHost: a\r\n", Fault::TwoHosts),
            ("Host: a\nX: y\r\n", Fault::BareLineFeed),
            ("Host: a\r\nX: y\r\n z\r\n", Fault::Folded),
            ("Host : a\r\n", Fault::SpaceBeforeColon),
            ("Host: a\r\nX y: z\r\n", Fault::FieldName),
            ("Host: a\r\nX\r\n", Fault::FieldName),
            ("Host: a\r\nX: a\rb\r\n", Fault::FieldValue),
            ("Host: a\r\nX: a\0b\r\n", Fault::FieldValue),
            ("Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n", Fault::Length),
            ("Host: a\r\nContent-Length: +1\r\n", Fault::Length),
            ("Host: a\r\nContent-Length: 1, 1\r\n", Fault::Length),
            ("Host: a\r\nContent-Length: 18446744073709551615\r\n", Fault::Length),
            ("Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", Fault::TwoLengths),
            ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", Fault::TransferEncoding),
            (
                "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Fault::TransferEncoding,
            ),
            ("Host: a\r\nTransfer-Encoding: identity\r\n", Fault::TransferEncoding),
        ] {
            assert_eq!(verdict(&format!("GET / HTTP/1.1\r\n{fields}\r\n")), Err(fault), "{fields:?}");
        }
        for (line, fault) in [
            ("GET  / HTTP/1.1", Fault::RequestLine),
            ("GET / x HTTP/1.1", Fault::RequestLine),
            ("G@T / HTTP/1.1", Fault::RequestLine),
            ("GET /#a HTTP/1.1", Fault::Target),
            ("GET /\t HTTP/1.1", Fault::Target),
            ("GET /<a> HTTP/1.1", Fault::Target),
            ("GET http:// HTTP/1.1", Fault::Target),
            ("GET / HTTP/2.0", Fault::Version),
            ("GET /", Fault::RequestLine),
        ] {
            assert_eq!(verdict(&format!("{line}\r\nHost: a\r\n\r\n")), Err(fault), "{line:?}");
        }
        let old = "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(verdict(old), Err(Fault::TransferEncoding));
    }

    #[test]
    fn chunked_bodies_end_where_they_end() {
        let body = b"5;x=y\r\nhello\r\n0\r\nSum: 1\r\n\r\n";
        for split in 0..=body.len() {
            let mut chunks = Chunks::new();
            let (first, done) = chunks.feed(&body[..split]).expect("well-formed");
            assert_eq!((first, done), (split, split == body.len()));
            if !done {
                let mut rest = body[split..].to_vec();
                rest.extend_from_slice(b"GET");
                assert_eq!(chunks.feed(&rest), Ok((body.len() - split, true)));
            }
        }
        for bad in ["5\nhello", "g\r\n", "\r\n", "5 \r\nhello", "5\r\nhelloX", "-1\r\n", "0\r\nA : b\r\n\r\n"]
        {
            assert!(Chunks::new().feed(bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
    }
}
