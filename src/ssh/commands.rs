//! What an agent may ask: `hello` and `tunnel-url`.

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::session::Session;
use crate::name::TunnelName;

/// A command that the gateway knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Which tunnels this connection holds, and under which URLs.
    Hello,
    /// Which URLs these names have, or would have.
    TunnelUrl(Vec<String>),
}

impl Command {
    /// Understands an `exec` request; `None` when it is no command of ours.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
        match words.next()? {
            "hello" => Some(Self::Hello),
            "tunnel-url" => Some(Self::TunnelUrl(words.map(str::to_owned).collect())),
            _ => None,
        }
    }

    /// The answer, as one line of JSON and CRLF.
    pub fn answer(&self, session: &Session) -> String {
        let base = &session.shared.settings.base;
        let json = match self {
            Self::Hello => {
                let tunnels = session.tunnels();
                let urls = tunnels.iter().map(|tunnel| (&*tunnel.request_id, base.tunnel_url(&tunnel.name)));
                serde_json::to_string(&Hello {
                    client_id: session.identity().map_or("", |identity| identity.client_id.as_str()),
                    tunnels: Pairs(urls.collect()),
                    root_url: base.url_of(&base.host),
                    base_url: BaseUrl {
                        hostname: base.host.as_str(),
                        port: base.port.map(|port| port.to_string()).unwrap_or_default(),
                        protocol: format!("{}:", base.scheme()),
                    },
                })
            }
            Self::TunnelUrl(names) => {
                let url = |name: &str| {
                    let identity = session.identity()?;
                    Some(base.tunnel_url(&TunnelName::derive(name, &identity.client_id)))
                };
                let urls = names.iter().filter_map(|name| Some((name.as_str(), url(name)?)));
                serde_json::to_string(&Pairs(urls.collect()))
            }
        };
        json.expect("strings and maps with string keys always become JSON") + "\r\n"
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hello<'a> {
    client_id: &'a str,
    tunnels: Pairs<'a>,
    root_url: String,
    base_url: BaseUrl<'a>,
}

#[derive(Serialize)]
struct BaseUrl<'a> {
    hostname: &'a str,
    port: String,
    protocol: String,
}

/// A JSON object in the order of its pairs.
struct Pairs<'a>(Vec<(&'a str, String)>);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_known_or_not() {
        assert_eq!(Command::parse(b"hello"), Some(Command::Hello));
        assert_eq!(
            Command::parse(b"tunnel-url /a b"),
            Some(Command::TunnelUrl(vec!["/a".to_owned(), "b".to_owned()]))
        );
        for other in [&b""[..], b"bash", b"helloo", b"\xff"] {
            assert_eq!(Command::parse(other), None);
        }
    }
}
