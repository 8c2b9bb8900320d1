//! What a forward request says: `/NAME` or `/NAME#k=v;k=v`, and standard TCP forwards.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regex::RegexBuilder;
use serde::Deserialize;

use crate::access::AccessLevel;
use crate::config::{NetworkSettings, NetworkSource, parse_network};
use crate::observe::Reason;
use crate::registry::Script;

/// Longest request id, in octets. It comes back in every channel open.
const REQUEST_MAX: usize = 16 * 1024;
/// Most scripts that one tunnel may inject.
const SCRIPTS_MAX: usize = 16;
/// Most networks in one list.
const NETWORKS_MAX: usize = 256;
/// Largest compiled `pathRegex`, in octets.
const REGEX_MAX: usize = 128 * 1024;

/// A forward request, understood.
#[derive(Clone, Debug)]
pub struct ForwardRequest {
    /// The raw name, without its leading `/`.
    pub path: String,
    /// Who may visit.
    pub access: AccessLevel,
    /// Free data; empty when none was given.
    pub meta: serde_json::Map<String, serde_json::Value>,
    /// Scripts to inject.
    pub inject: Vec<Script>,
    /// Where visitors may come from.
    pub networks: NetworkSettings,
}

/// Why a forward is refused, in words for the person at the agent.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Too long.
    #[error(
        "the forward request is {0} octets long, and {REQUEST_MAX} are allowed; shorten its name or meta"
    )]
    TooLong(usize),
    /// A parameter that does not exist.
    #[error(
        "invalid param `{param}` in request `{request}`: allowed are access, meta, inject, allow and deny"
    )]
    UnknownParam {
        /// The parameter.
        param: String,
        /// The whole request.
        request: String,
    },
    /// A parameter given twice.
    #[error("param `{param}` stands twice in request `{request}`; give it once")]
    Repeated {
        /// The parameter.
        param: String,
        /// The whole request.
        request: String,
    },
    /// An access level that does not exist.
    #[error("invalid access `{value}` in request `{request}`: allowed are private and public")]
    Access {
        /// What was given.
        value: String,
        /// The whole request.
        request: String,
    },
    /// `meta`, `inject`, `allow` or `deny` is malformed.
    #[error("invalid {param} in request: `{value}`: {fault}")]
    Encoded {
        /// Which of them.
        param: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        fault: String,
    },
    /// Another port than 0, 80 or 443.
    #[error(
        "port {0} is not offered: a tunnel is served as HTTPS under its name; ask for port 80, 443 or 0, as in -R NAME:80:localhost:3000"
    )]
    Port(u32),
    /// The same request is held already on this connection.
    #[error("`{0}` is forwarded on this connection already; choose another name")]
    Duplicate(String),
    /// Too many forwards.
    #[error("this session holds {0} forwards, which is all that one may hold; open another connection")]
    TooMany(usize),
    /// Too many forwards of the key's sessions together.
    #[error(
        "your key offers {0} tunnels over all of its sessions, which is all that one key may; end some of them, or ask the operator of this gateway"
    )]
    TooManyOfKey(usize),
    /// Another live session holds the name.
    #[error("the name `{0}` is held by another live session; end that one, or choose another name")]
    Taken(String),
    /// The session is ending.
    #[error("the session is ending")]
    Ending,
}

impl ForwardError {
    /// The words for a log: without the values of parameters, which may hold secrets.
    #[must_use]
    pub fn for_log(&self) -> String {
        match self {
            Self::UnknownParam { param, .. } => format!("invalid param `{param}`"),
            Self::Repeated { param, .. } => format!("param `{param}` stands twice"),
            Self::Access { value, .. } => format!("invalid access `{value}`"),
            Self::Encoded { param, .. } => format!("invalid {param}"),
            Self::Duplicate(request) => {
                let name = request.split('#').next().unwrap_or_default();
                format!("`{name}` is forwarded on this connection already")
            }
            other => other.to_string(),
        }
    }

    /// The word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLong(_) | Self::UnknownParam { .. } | Self::Repeated { .. } => Reason::BadForward,
            Self::Access { .. } | Self::Encoded { .. } => Reason::BadForward,
            Self::Port(_) => Reason::PortNotOffered,
            Self::Duplicate(_) => Reason::DuplicateForward,
            Self::TooMany(_) => Reason::TooManyForwards,
            Self::TooManyOfKey(_) => Reason::TooManyTunnels,
            Self::Taken(_) => Reason::NameTaken,
            Self::Ending => Reason::Draining,
        }
    }
}

/// Understands the socket path of a `streamlocal-forward@openssh.com` request.
///
/// # Errors
/// When it is malformed or asks for something that does not exist.
pub fn parse(request: &str) -> Result<ForwardRequest, ForwardError> {
    if request.len() > REQUEST_MAX {
        return Err(ForwardError::TooLong(request.len()));
    }
    let (path, params) = match request.split_once('#') {
        Some((path, params)) => (path, Some(params)),
        None => (request, None),
    };
    let mut access = None;
    let mut meta = None;
    let mut inject = None;
    let (mut allow, mut deny) = (None, None);
    for param in params.into_iter().flat_map(|params| params.split(';')) {
        let (key, value) = param.split_once('=').unwrap_or((param, ""));
        let first = match key {
            "access" => access.replace(parse_access(value, request)?).is_none(),
            "meta" => meta.replace(parse_meta(value)?).is_none(),
            "inject" => inject.replace(parse_inject(value)?).is_none(),
            "allow" => allow.replace(parse_networks("allow", value)?).is_none(),
            "deny" => deny.replace(parse_networks("deny", value)?).is_none(),
            _ => {
                let (param, request) = (key.to_owned(), request.to_owned());
                return Err(ForwardError::UnknownParam { param, request });
            }
        };
        if !first {
            return Err(ForwardError::Repeated { param: key.to_owned(), request: request.to_owned() });
        }
    }
    Ok(ForwardRequest {
        path: path.strip_prefix('/').unwrap_or(path).to_owned(),
        access: access.unwrap_or_default(),
        meta: meta.unwrap_or_default(),
        inject: inject.unwrap_or_default(),
        networks: NetworkSettings { allow: allow.unwrap_or_default(), deny: deny.unwrap_or_default() },
    })
}

/// The raw name that a TCP forward asks for: its bind address, or the user's name when that is
/// no name but an address or a placeholder.
///
/// # Errors
/// When the port is not one that a tunnel is served on.
pub fn parse_tcp<'a>(address: &'a str, port: u32, user: &'a str) -> Result<&'a str, ForwardError> {
    if !matches!(port, 0 | 80 | 443) {
        return Err(ForwardError::Port(port));
    }
    if address.len() > REQUEST_MAX {
        return Err(ForwardError::TooLong(address.len()));
    }
    let placeholder =
        matches!(address, "" | "*" | "localhost") || address.parse::<std::net::IpAddr>().is_ok();
    Ok(if placeholder { user } else { address })
}

fn parse_access(value: &str, request: &str) -> Result<AccessLevel, ForwardError> {
    match value {
        "public" => Ok(AccessLevel::Public),
        "private" => Ok(AccessLevel::Private),
        _ => Err(ForwardError::Access { value: value.to_owned(), request: request.to_owned() }),
    }
}

fn decode<T: serde::de::DeserializeOwned>(param: &'static str, value: &str) -> Result<T, ForwardError> {
    let fail = |fault: String| ForwardError::Encoded { param, value: value.to_owned(), fault };
    let json = URL_SAFE_NO_PAD
        .decode(value.trim_end_matches('='))
        .map_err(|error| fail(format!("not base64url ({error})")))?;
    serde_json::from_slice(&json)
        .map_err(|error| fail(format!("not the JSON that is wanted, in base64url ({error})")))
}

fn parse_meta(value: &str) -> Result<serde_json::Map<String, serde_json::Value>, ForwardError> {
    decode("meta", value)
}

/// A list with commas, or a JSON array in base64url, whose characters no network is written with
/// alone. An empty one is refused: it might mean everybody, or nobody.
fn parse_networks(param: &'static str, value: &str) -> Result<Vec<NetworkSource>, ForwardError> {
    let fail = |fault: String| ForwardError::Encoded { param, value: value.to_owned(), fault };
    let written: Vec<String> = if value.contains(['.', ':', ',']) {
        value.split(',').map(|item| item.trim().to_owned()).collect()
    } else {
        decode(param, value)?
    };
    if written.is_empty() {
        return Err(fail("it names no network".to_owned()));
    }
    if written.len() > NETWORKS_MAX {
        return Err(fail(format!("more than {NETWORKS_MAX} networks")));
    }
    written.iter().map(|item| parse_network(item).map(NetworkSource::Network).map_err(fail)).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenScript {
    src: String,
    #[serde(default, rename = "async")]
    is_async: bool,
    #[serde(default)]
    defer: bool,
    path_regex: Option<String>,
}

fn parse_inject(value: &str) -> Result<Vec<Script>, ForwardError> {
    let fail = |fault: String| ForwardError::Encoded { param: "inject", value: value.to_owned(), fault };
    let written: Vec<WrittenScript> = decode("inject", value)?;
    if written.len() > SCRIPTS_MAX {
        return Err(fail(format!("more than {SCRIPTS_MAX} scripts")));
    }
    written
        .into_iter()
        .map(|script| {
            let path = script
                .path_regex
                .map(|text| RegexBuilder::new(&text).size_limit(REGEX_MAX).build())
                .transpose()
                .map_err(|error| fail(format!("its pathRegex is not one that can be used: {error}")))?;
            Ok(Script { src: script.src, is_async: script.is_async, defer: script.defer, path })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_forwards_take_a_name_or_the_user() {
        assert_eq!(parse_tcp("web", 80, "me").expect("valid"), "web");
        for placeholder in ["", "*", "localhost", "0.0.0.0", "127.0.0.1", "::"] {
            assert_eq!(parse_tcp(placeholder, 0, "me").expect("valid"), "me");
        }
        let refusal = parse_tcp("web", 8080, "me").expect_err("not offered").to_string();
        assert!(refusal.contains("8080") && refusal.contains("443"));
    }

    #[test]
    fn a_parameter_stands_once() {
        assert!(matches!(parse("/t#access=public;access=private"), Err(ForwardError::Repeated { .. })));
        assert!(matches!(parse(&"x".repeat(REQUEST_MAX + 1)), Err(ForwardError::TooLong(_))));
    }

    #[test]
    fn networks_are_a_list_with_commas_or_json() {
        let read = |value: &str| parse(&format!("/t#deny={value}")).map(|request| request.networks.deny);
        let both = read("10.0.0.0/8,2001:db8::1").expect("valid");
        assert_eq!(both.len(), 2);
        let json = URL_SAFE_NO_PAD.encode(r#"["10.0.0.0/8","2001:db8::1"]"#);
        assert_eq!(read(&json).expect("valid"), both);
        let empty = URL_SAFE_NO_PAD.encode("[]");
        let many = vec!["10.0.0.0/8"; NETWORKS_MAX + 1].join(",");
        for bad in ["", &empty, &many, "10.0.0.0/33", "10.0.0.0/8,", "office", "file:a", "a.b"] {
            let refusal = read(bad).map(drop).expect_err(bad).to_string();
            assert!(refusal.starts_with("invalid deny"), "{refusal}");
        }
        assert!(parse("/t#allow=10.0.0.1;allow=10.0.0.2").is_err());
        assert_eq!(parse("/t").expect("valid").networks, NetworkSettings::default());
    }

    #[test]
    fn a_regex_that_cannot_be_used_is_refused_in_words() {
        let inject = URL_SAFE_NO_PAD.encode(r#"[{"src":"a.js","pathRegex":"(?=x)"}]"#);
        let refusal = parse(&format!("/t#inject={inject}")).expect_err("look-ahead").to_string();
        assert!(refusal.contains("pathRegex"), "{refusal}");
    }
}
