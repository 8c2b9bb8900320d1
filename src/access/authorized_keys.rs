//! OpenSSH's `authorized_keys` format (sshd(8), AUTHORIZED_KEYS FILE FORMAT): one key a line,
//! with options before it.
//!
//! Honours `from=` and `expiry-time=`. Refuses a line whose options would hold the key back in
//! a way that means something here but cannot be honoured, rather than let it do more than was
//! meant. Options about shells mean nothing here and are skipped. Refuses as well to quote a line that
//! is none: it may be a piece of a private key.

use std::net::IpAddr;

use ipnet::IpNet;
use russh::keys::PublicKey;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time};

/// What a line allows, besides the key itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where the key may connect from; `None`: from anywhere.
    from: Option<Vec<Pattern>>,
    /// When it ceases to be valid.
    pub(super) expires: Option<OffsetDateTime>,
}

/// What a line holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) key: PublicKey,
    pub(super) entry: Entry,
    /// What the writer should know although the line holds: an option or pattern without effect.
    pub(super) notes: Vec<String>,
}

/// One item of a `from=` list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    matcher: Matcher,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Matcher {
    Net(IpNet),
    Address(IpAddr),
    /// `*` and `?` on the address's text, in lower case.
    Text(String),
}

/// A name in lower case, and a value without its quotes.
type WrittenOption = (String, Option<String>);

/// Options that only concern shells, and so nothing here.
const WITHOUT_EFFECT: &[&str] = &[
    "agent-forwarding",
    "command",
    "environment",
    "no-agent-forwarding",
    "no-pty",
    "no-touch-required",
    "no-user-rc",
    "no-x11-forwarding",
    "permitopen",
    "port-forwarding",
    "principals",
    "pty",
    "tunnel",
    "user-rc",
    "x11-forwarding",
];

/// Options that say something here, or must not be passed over.
const WITH_EFFECT: &[&str] = &[
    "cert-authority",
    "expiry-time",
    "from",
    "no-port-forwarding",
    "permitlisten",
    "restrict",
    "verify-required",
];

/// Whether a line begins a private key, in the form of OpenSSH, PEM or PuTTY.
pub(super) fn is_private_key(line: &str) -> bool {
    let line = line.trim();
    (line.starts_with("-----BEGIN ") && line.contains("PRIVATE KEY"))
        || line.starts_with("PuTTY-User-Key-File-")
}

/// Reads one line; `None` for a blank one or a comment.
///
/// # Errors
/// In words, when the line cannot be used as a whole. They quote nothing of it.
pub(super) fn parse_line(line: &str) -> Result<Option<Line>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    // As sshd: a line that begins with a key has no options.
    if let Some(key) = parse_key(line) {
        return Ok(Some(Line { key: key?, entry: Entry::default(), notes: Vec::new() }));
    }
    let (options, rest) = split_options(line)?;
    let Some(key) = parse_key(rest.trim_start()) else {
        return Err(
            "no public key found after the options; a line is `[OPTIONS] TYPE BASE64 [COMMENT]`".to_owned()
        );
    };
    let (entry, notes) = read_options(&options)?;
    Ok(Some(Line { key: key?, entry, notes }))
}

impl Entry {
    /// Whether the key may connect from this address. As in sshd, a negated pattern that
    /// matches refuses, wherever it stands in the list. Names are never looked up in the DNS.
    pub(super) fn allows_from(&self, address: IpAddr) -> bool {
        let Some(patterns) = &self.from else { return true };
        let address = address.to_canonical();
        let text = address.to_string();
        let mut allowed = false;
        for pattern in patterns.iter().filter(|pattern| pattern.matcher.matches(address, &text)) {
            if pattern.negated {
                return false;
            }
            allowed = true;
        }
        allowed
    }
}

impl Matcher {
    fn matches(&self, address: IpAddr, text: &str) -> bool {
        match self {
            Self::Net(net) => net.contains(&address),
            Self::Address(wanted) => *wanted == address,
            Self::Text(pattern) => wildcard(pattern.as_bytes(), text.as_bytes()),
        }
    }
}

/// `*` is any run, `?` any single octet. Remembers only the last `*`, so the time is bounded by
/// the product of the lengths.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, seen)) = star else { return false };
                star = Some((at, seen + 1));
                p = at + 1;
                t = seen + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// The key that the text begins with; `None` when it begins with something else.
fn parse_key(text: &str) -> Option<Result<PublicKey, String>> {
    let mut fields = text.split_ascii_whitespace();
    let (kind, blob) = (fields.next()?, fields.next());
    let is_kind = kind.starts_with("ssh-")
        || kind.starts_with("ecdsa-sha2-")
        || kind.starts_with("sk-")
        || kind.starts_with("rsa-sha2-");
    if !is_kind || kind.contains(['=', ',', '"']) {
        return None;
    }
    if kind.contains("-cert-v0") {
        return Some(Err("this is a certificate; list the plain public key".to_owned()));
    }
    let Some(blob) = blob else { return Some(Err("the key itself is missing after its type".to_owned())) };
    Some(
        PublicKey::from_openssh(&format!("{kind} {blob}"))
            .map_err(|_| "the public key cannot be read; copy the whole line of the `.pub` file".to_owned()),
    )
}

/// Splits `name,name="value",… rest` into the options and the rest.
fn split_options(line: &str) -> Result<(Vec<WrittenOption>, &str), String> {
    let mut options = Vec::new();
    let mut rest = line;
    loop {
        let end = rest.find(['=', ',', ' ', '\t']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() || name.contains('"') {
            return Err("the options before the key are malformed; write `name` or `name=\"value\"`, with commas between".to_owned());
        }
        let (value, after) = match after.strip_prefix('=') {
            Some(after) => {
                let (value, after) = unquote(after)
                    .ok_or_else(|| format!("the value of {} is not quoted to its end", called(name)))?;
                (Some(value), after)
            }
            None => (None, after),
        };
        options.push((name.to_ascii_lowercase(), value));
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.starts_with([' ', '\t']) => return Ok((options, after)),
            None if after.is_empty() => return Ok((options, after)),
            None => return Err(format!("something follows the value of {}", called(name))),
        }
    }
}

/// An option in words. One that is not known may be no name at all.
fn called(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    if WITHOUT_EFFECT.contains(&&*name) || WITH_EFFECT.contains(&&*name) {
        format!("the option `{name}`")
    } else {
        "an option that is not known".to_owned()
    }
}

/// Reads a quoted value. Only `\"` is an escape, as in sshd.
fn unquote(text: &str) -> Option<(String, &str)> {
    let body = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = body.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &body[at + 1..])),
            '\\' if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                value.push('"');
                chars.next();
            }
            c => value.push(c),
        }
    }
    None
}

fn read_options(options: &[WrittenOption]) -> Result<(Entry, Vec<String>), String> {
    let mut entry = Entry::default();
    let mut notes = Vec::new();
    let mut forwarding = true;
    for (name, value) in options {
        match (name.as_str(), value) {
            ("from", Some(list)) if entry.from.is_none() => {
                let (patterns, more) = parse_from(list)?;
                entry.from = Some(patterns);
                notes.extend(more);
            }
            ("from", Some(_)) => return Err("the option `from` is given twice".to_owned()),
            ("expiry-time", Some(text)) => {
                let expires = parse_time(text).ok_or_else(|| {
                    "what is in `expiry-time` is not a time; write `expiry-time=\"YYYYMMDD[HHMM[SS]]Z\"`".to_owned()
                })?;
                // As in sshd, the earliest of several counts.
                entry.expires = Some(entry.expires.map_or(expires, |earlier| earlier.min(expires)));
            }
            ("from" | "expiry-time", None) => return Err(format!("the option `{name}` needs a value")),
            ("cert-authority", _) => {
                return Err("`cert-authority` is not supported; list each agent's own key".to_owned());
            }
            ("restrict" | "no-port-forwarding", None) => forwarding = false,
            ("port-forwarding", None) => forwarding = true,
            ("permitlisten" | "verify-required", _) => {
                return Err(format!("the option `{name}` cannot be honoured here; remove it, or the line"));
            }
            (name, _) if WITHOUT_EFFECT.contains(&name) => {
                notes.push(format!("the option `{name}` has no effect here"));
            }
            _ => return Err("there is an option that this format does not have; a line is `[OPTIONS] TYPE BASE64 [COMMENT]`".to_owned()),
        }
    }
    if forwarding {
        Ok((entry, notes))
    } else {
        Err("its options forbid forwarding, which is all that a key is for here; remove `no-port-forwarding`, or add `port-forwarding` after `restrict`".to_owned())
    }
}

fn parse_from(list: &str) -> Result<(Vec<Pattern>, Vec<String>), String> {
    let mut notes = Vec::new();
    let mut patterns = Vec::new();
    for item in list.split(',').map(str::trim) {
        let (negated, text) = match item.strip_prefix('!') {
            Some(text) => (true, text),
            None => (false, item),
        };
        if text.is_empty() {
            return Err("`from` holds an empty pattern".to_owned());
        }
        let matcher = if text.contains('/') {
            let net: IpNet = text
                .parse()
                .map_err(|_| "`from` has something with `/` that is no address block such as `10.0.0.0/8`")?;
            if net.addr() != net.network() {
                return Err("a block in `from` has bits after its prefix; write its first address".to_owned());
            }
            Matcher::Net(net)
        } else if let Ok(address) = text.parse::<IpAddr>() {
            Matcher::Address(address.to_canonical())
        } else {
            let could_match = text.bytes().all(|b| b.is_ascii_hexdigit() || b".:*?".contains(&b));
            if !could_match {
                notes.push(format!(
                    "`{text}` in `from` never matches: names are not looked up, only addresses are compared"
                ));
            }
            Matcher::Text(text.to_ascii_lowercase())
        };
        patterns.push(Pattern { negated, matcher });
    }
    Ok((patterns, notes))
}

/// Reads `YYYYMMDD[HHMM[SS]][Z]`. sshd takes a time without `Z` as local time; here all times
/// are UTC, because the local offset cannot be found out safely in a threaded process.
fn parse_time(text: &str) -> Option<OffsetDateTime> {
    const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]");
    const TIME: &[BorrowedFormatItem<'_>] = format_description!("[hour][minute][second]");
    let digits = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let time = match digits.len() {
        8 => Time::MIDNIGHT,
        12 => Time::parse(&format!("{}00", &digits[8..]), TIME).ok()?,
        14 => Time::parse(&digits[8..], TIME).ok()?,
        _ => return None,
    };
    let date = Date::parse(&digits[..8], DATE).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn line(text: &str) -> Result<Line, String> {
        parse_line(text).map(|line| line.expect("not blank"))
    }

    fn entry(options: &str) -> Entry {
        line(&format!("{options} {KEY} me@host")).expect("valid").entry
    }

    #[test]
    fn blank_lines_comments_and_plain_keys() {
        assert_eq!(parse_line(""), Ok(None));
        assert_eq!(parse_line("  \t"), Ok(None));
        assert_eq!(parse_line(" # x"), Ok(None));
        for text in [KEY.to_owned(), format!("{KEY} a comment, with=\"things\""), KEY.replace(' ', " \t ")] {
            assert_eq!(line(&text).expect("valid").entry, Entry::default());
        }
    }

    #[test]
    fn options_are_split_as_sshd_does() {
        let read = line(&format!(
            "command=\"echo \\\"a, b\\\" c\",No-PTY,from=\"192.0.2.0/24,2001:db8::/32\"  {KEY} me"
        ))
        .expect("valid");
        assert_eq!(read.notes.len(), 2);
        assert!(read.entry.allows_from("192.0.2.7".parse().expect("literal")));
        assert!(read.entry.allows_from("::ffff:192.0.2.7".parse().expect("literal")));
        assert!(!read.entry.allows_from("198.51.100.1".parse().expect("literal")));
        for (bad, word) in [
            ("from=192.0.2.1", "not quoted"),
            ("from=\"192.0.2.1", "not quoted"),
            ("from", "needs a value"),
            ("from=\"a\",from=\"b\"", "given twice"),
            ("from=\"10.0.0.1/8\"", "first address"),
            ("from=\"10.0.0.0/99\"", "address block"),
            ("from=\"\"", "empty pattern"),
            ("no-such", "does not have"),
            ("cert-authority", "cert-authority"),
            ("restrict", "forbid forwarding"),
            ("permitlisten=\"80\"", "cannot be honoured"),
            ("expiry-time=\"soon\"", "not a time"),
            (",", "malformed"),
            ("no-pty,", "malformed"),
            ("from=\"1.2.3.4\"x", "follows"),
        ] {
            let error = line(&format!("{bad} {KEY}")).expect_err(bad);
            assert!(error.contains(word), "{bad}: {error}");
        }
        assert!(line("no-pty").is_err());
        assert!(line("ssh-ed25519").is_err());
        assert!(line("ssh-ed25519 AAAA").is_err());
        assert!(line(&KEY.replace("ssh-ed25519 ", "ssh-rsa ")).is_err());
        assert_eq!(entry("restrict,port-forwarding"), Entry::default());
    }

    #[test]
    fn nothing_of_a_bad_line_is_quoted() {
        for bad in [
            "hidden",
            "hidden=\"x\"",
            "hidden=hidden",
            "from=\"hidden/8\"",
            "expiry-time=\"hidden\"",
            "from=\"10.0.0.1\"hidden",
            "hidden=\"x\"hidden",
        ] {
            let error = line(&format!("{bad} {KEY}")).expect_err(bad);
            assert!(!error.contains("hidden"), "{bad}: {error}");
        }
        assert!(!line("ssh-hidden AAAA").expect_err("no key").contains("hidden"));
        for private in [
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            " -----BEGIN PRIVATE KEY----- x",
            "PuTTY-User-Key-File-3: x",
        ] {
            assert!(is_private_key(private), "{private}");
        }
        assert!(
            !is_private_key("# -----BEGIN PRIVATE KEY-----") && !is_private_key("-----BEGIN PUBLIC KEY-----")
        );
    }

    #[test]
    fn from_matches_addresses_wildcards_and_negation() {
        let check = |list: &str, address: &str| {
            entry(&format!("from=\"{list}\"")).allows_from(address.parse().expect("literal"))
        };
        assert!(check("192.0.2.*", "192.0.2.99"));
        assert!(check("192.0.2.?", "192.0.2.9"));
        assert!(!check("192.0.2.?", "192.0.2.99"));
        assert!(check("*", "2001:db8::1"));
        assert!(check("2001:DB8:0::1", "2001:db8::1"));
        assert!(!check("*,!192.0.2.1", "192.0.2.1"));
        assert!(!check("!192.0.2.1,*", "192.0.2.1"));
        assert!(check("!192.0.2.1,*", "192.0.2.2"));
        assert!(!check("!192.0.2.1", "192.0.2.2"));
        assert!(!check("*.example.com", "192.0.2.2"));
        assert!(check("1*1*1", "10.1.1.1"));
    }

    #[test]
    fn expiry_times() {
        let at = |text: &str| {
            entry(&format!("expiry-time=\"{text}\"")).expires.map(OffsetDateTime::unix_timestamp)
        };
        assert_eq!(at("20300102"), Some(1_893_542_400));
        assert_eq!(at("203001020304Z"), Some(1_893_553_440));
        assert_eq!(at("20300102030405Z"), Some(1_893_553_445));
        assert_eq!(at("20300102\",expiry-time=\"20290102"), Some(1_862_006_400));
        for bad in ["2030", "20301301", "203001022500", "2030010203", "20300102ZZ", "+2300102"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
