//! How single values are written: durations, sizes, switches, lists, URLs, pairs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::resolve::place;
use super::written::Value;
use super::{AdminListen, BaseUrl, CertificateSource, PemPair, PemSource};
use crate::name::HostName;

/// Reads `30s`, `500ms`, `1h30m`: numbers with units, largest first is usual but not required.
pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    const HINT: &str = "write a number and a unit, such as `500ms`, `30s`, `5m` or `1h`";
    let text = text(value).map_err(|shown| format!("`{shown}` is not a duration; {HINT}"))?;
    let bad = || format!("`{text}` is not a duration; {HINT}");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (digits, after) = split_number(rest).ok_or_else(bad)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit.trim() {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(60 * 60),
            "d" => Duration::from_secs(24 * 60 * 60),
            _ => return Err(bad()),
        };
        let part = digits.parse().ok().and_then(|number| unit.checked_mul(number)).ok_or_else(bad)?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = after;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// Reads `65536`, `64KiB`, `1 GiB`, `4GB`, in octets.
pub(super) fn size(value: &Value) -> Result<u64, String> {
    const HINT: &str = "write octets, or a number and a unit such as `64KiB`, `256MiB` or `1GiB`";
    if let Value::Toml(toml::Value::Integer(number)) = value {
        return u64::try_from(*number).map_err(|_| format!("`{number}` is not a size; {HINT}"));
    }
    let text = text(value).map_err(|shown| format!("`{shown}` is not a size; {HINT}"))?;
    let bad = || format!("`{text}` is not a size; {HINT}");
    let (digits, unit) = split_number(text).ok_or_else(bad)?;
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    digits.parse().ok().and_then(|number: u64| number.checked_mul(unit)).ok_or_else(bad)
}

/// Reads a whole number.
pub(super) fn number(value: &Value) -> Result<u64, String> {
    let read = match value {
        Value::Toml(toml::Value::Integer(number)) => u64::try_from(*number).map_err(|_| number.to_string()),
        Value::Text(text) => text.trim().parse().map_err(|_| text.clone()),
        Value::Toml(other) => Err(other.to_string()),
        Value::Pem(_) | Value::Pair(_) => Err("***".to_owned()),
    };
    read.map_err(|shown| format!("`{shown}` is not a whole number; write one such as `64`"))
}

/// Reads a switch.
pub(super) fn switch(value: &Value) -> Result<bool, String> {
    let shown = match value {
        Value::Toml(toml::Value::Boolean(on)) => return Ok(*on),
        Value::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => return Ok(true),
            "false" | "0" | "no" | "off" => return Ok(false),
            _ => text.clone(),
        },
        Value::Toml(other) => other.to_string(),
        Value::Pem(_) | Value::Pair(_) => "***".to_owned(),
    };
    Err(format!("`{shown}` is neither `true` nor `false`; write one of them, without quotes"))
}

/// Reads a text. The error is how the value looks.
pub(super) fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Toml(toml::Value::String(text)) | Value::Text(text) => Ok(text.trim()),
        Value::Toml(other) => Err(other.to_string()),
        Value::Pem(_) | Value::Pair(_) => Err("***".to_owned()),
    }
}

/// Reads a list of texts: an array in the file, commas in a variable. A single text in the file
/// is a list of one. The error is how the faulty item looks.
pub(super) fn list(value: &Value) -> Result<Vec<&str>, String> {
    match value {
        Value::Toml(toml::Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::trim).ok_or_else(|| item.to_string())).collect()
        }
        Value::Text(text) => Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()),
        other => text(other).map(|text| vec![text]),
    }
}

/// Whether a text is PEM, and perhaps a private key: it is in no message then.
pub(super) fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

/// What is said of PEM where a path should be.
pub(super) const NOT_A_PATH: &str =
    "a PEM text where a path should be; put the text into a file, and write that file's path";

pub(super) fn parse_base_url(url: &str) -> Result<BaseUrl, String> {
    const HINT: &str = "write `https://HOST[:PORT]`";
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("`{url}` is not a URL; {HINT}"));
    };
    let https = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err(format!("`{url}` is neither an https nor an http URL; {HINT}")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(format!("`{url}` holds more than scheme, host and port; {HINT}"));
    }
    let (host, port) = HostName::parse_authority(authority).map_err(|error| format!("{error}; {HINT}"))?;
    if host.is_ip() {
        return Err(format!(
            "`{host}` is an IP address, below which no tunnel can have a name; write a host name"
        ));
    }
    if port == Some(0) {
        return Err(format!("`{url}` has the port 0; {HINT}"));
    }
    let own = if https { 443 } else { 80 };
    Ok(BaseUrl { https, host, port: port.filter(|port| *port != own) })
}

/// Reads a loopback address, or `unix:` and a path that is relative to `folder`.
pub(super) fn parse_admin(value: &Value, folder: Option<&Path>) -> Result<AdminListen, String> {
    const HINT: &str = "write such as `127.0.0.1:9180`, or `unix:/run/oneport/admin.sock`";
    let written =
        text(value).map_err(|shown| format!("`{shown}` is neither an address nor a socket; {HINT}"))?;
    if let Some(path) = written.strip_prefix("unix:") {
        return match path {
            "" => Err(format!("`{written}` names no path; {HINT}")),
            path => Ok(AdminListen::Unix(place(path, folder))),
        };
    }
    match written.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(AdminListen::Tcp(address)),
        Ok(_) => Err(format!(
            "`{written}` can be reached from elsewhere, and whoever comes there is not asked who they are; {HINT}"
        )),
        Err(_) => Err(format!("`{written}` is neither an address nor a socket; {HINT}")),
    }
}

pub(super) fn parse_network(item: &str) -> Result<IpNet, String> {
    let bad = || format!("`{item}` is not a network; write such as `10.0.0.0/8` or one address");
    item.parse::<IpNet>().or_else(|_| item.parse::<std::net::IpAddr>().map(IpNet::from)).map_err(|_| bad())
}

/// Reads a pair of files, or a folder of pairs.
pub(super) fn parse_certificate(
    item: &toml::Value,
    relative: impl Fn(&str) -> PathBuf,
) -> Result<CertificateSource, String> {
    const HINT: &str =
        "write `{ cert = \"cert.pem\", key = \"key.pem\" }`, or `{ folder = \"/etc/letsencrypt/live\" }`";
    if item.as_str().is_some_and(is_pem) {
        return Err(NOT_A_PATH.to_owned());
    }
    let table = item.as_table().ok_or_else(|| format!("`{item}` is not a pair; {HINT}"))?;
    if let Some(unknown) = table.keys().find(|key| !["cert", "key", "folder"].contains(&key.as_str())) {
        return Err(format!("a pair has no `{unknown}`; {HINT}"));
    }
    let path = |name: &str| {
        let path = table.get(name).and_then(toml::Value::as_str).filter(|path| !path.is_empty());
        match path {
            Some(pem) if is_pem(pem) => Err(format!("`{name}` is {NOT_A_PATH}")),
            path => {
                path.map(&relative).ok_or_else(|| format!("a pair without the path of its `{name}`; {HINT}"))
            }
        }
    };
    if !table.contains_key("folder") {
        let (cert, key) = (PemSource::File(path("cert")?), PemSource::File(path("key")?));
        return Ok(PemPair { cert, key }.into());
    }
    if table.len() > 1 {
        return Err(format!("`folder` stands for itself, without `cert` and `key`; {HINT}"));
    }
    path("folder").map(CertificateSource::Folder)
}

/// Reads `cert.pem:key.pem`, or `folder/`.
pub(super) fn parse_colon_pair(
    item: &str,
    relative: impl Fn(&str) -> PathBuf,
) -> Result<CertificateSource, String> {
    match item.split_once(':') {
        _ if is_pem(item) => Err(NOT_A_PATH.to_owned()),
        Some((cert, key)) if !cert.is_empty() && !key.is_empty() => {
            let (cert, key) = (PemSource::File(relative(cert)), PemSource::File(relative(key)));
            Ok(PemPair { cert, key }.into())
        }
        None if item.ends_with('/') => Ok(CertificateSource::Folder(relative(item))),
        _ => Err(format!(
            "`{item}` is not a pair; write `cert.pem:key.pem`, or `folder/` with the slash, and commas between them"
        )),
    }
}

/// Whether two listeners cannot have these addresses both.
pub(super) fn clashes(one: SocketAddr, other: SocketAddr) -> bool {
    let is_wide = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || is_wide)
}

fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn durations() {
        assert_eq!(duration(&written("500ms")), Ok(Duration::from_millis(500)));
        assert_eq!(duration(&written("1h30m")), Ok(Duration::from_secs(5400)));
        assert_eq!(duration(&written(" 5 s")), Ok(Duration::from_secs(5)));
        for bad in ["", "5", "s", "5x", "-5s", "1.5s", "99999999999999999999s", "9999999999999999999d", "5s!"]
        {
            assert!(duration(&written(bad)).is_err(), "{bad:?} was taken");
        }
        assert!(duration(&Value::Toml(toml::Value::Integer(5))).is_err());
    }

    #[test]
    fn sizes_numbers_switches() {
        assert_eq!(size(&written("64KiB")), Ok(65536));
        assert_eq!(size(&written("1 gb")), Ok(1_000_000_000));
        assert_eq!(size(&Value::Toml(toml::Value::Integer(7))), Ok(7));
        for bad in ["", "KiB", "-1", "1.5GiB", "1XiB", "99999999999GiB"] {
            assert!(size(&written(bad)).is_err(), "{bad:?} was taken");
        }
        assert_eq!(number(&written("64")), Ok(64));
        assert!(number(&written("-1")).is_err());
        assert_eq!(switch(&written("Yes")), Ok(true));
        assert!(switch(&Value::Toml(toml::Value::String("true".to_owned()))).is_err());
        assert_eq!(list(&written("a, b,,")), Ok(vec!["a", "b"]));
    }

    #[test]
    fn base_urls() {
        let parse = |url: &str| parse_base_url(url).map(|base| base.url_of(&base.host));
        assert_eq!(parse("https://Example.com").as_deref(), Ok("https://example.com/"));
        assert_eq!(parse("https://example.com:443/").as_deref(), Ok("https://example.com/"));
        assert_eq!(parse("http://example.com:443").as_deref(), Ok("http://example.com:443/"));
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "https://",
            "https://a/b",
            "https://a?b",
            "https://u@a",
            "https://a:0",
            "https://a:b",
            "https://127.0.0.1",
            "https://[::1]",
        ] {
            assert!(parse(bad).is_err(), "{bad} was taken");
        }
    }
}
