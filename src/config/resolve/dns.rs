//! What is written under `[dns]` → who sets records and who is asked for them. Exactly one way, or
//! none.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::dns::{
    CloudflareSettings, DnsSettings, DnsWay, ExecSettings, ExecStyle, ResponderSettings, Rfc2136Settings,
    SecretSource, TsigHash,
};
use super::super::value::text;
use super::super::written::Value;
use super::super::{BaseUrl, Secret};
use super::{HOUR, Resolver, SECOND};
use crate::name::HostName;

const RESPONDER: &str = "dns.responder";
const SERVER: &str = "dns.rfc2136.server";
const EXEC: &str = "dns.exec";
const TOKEN: &str = "dns.cloudflare.token";
const TOKEN_FILE: &str = "dns.cloudflare.token_file";

/// The port of the DNS (RFC 1035, section 4.2).
const PORT: u16 = 53;

impl Resolver {
    pub(super) fn dns(&mut self, base: Option<&BaseUrl>) -> DnsSettings {
        let responder = self.responder(base);
        let rfc2136 = self.rfc2136();
        let exec = self.exec();
        let cloudflare = self.cloudflare();
        let mut ways: Vec<(&'static str, DnsWay)> = [
            responder.map(|way| (RESPONDER, DnsWay::Responder(way))),
            rfc2136.map(|way| (SERVER, DnsWay::Rfc2136(way))),
            exec.map(|way| (EXEC, DnsWay::Exec(way))),
            cloudflare.map(|way| (TOKEN, DnsWay::Cloudflare(way))),
        ]
        .into_iter()
        .flatten()
        .collect();
        for (path, _) in ways.iter().skip(1) {
            let first = ways[0].0;
            let path = if self.is_given(path) { path } else { TOKEN_FILE };
            self.require(path, &format!("set together with `{first}`; keep one way to set records"));
        }
        DnsSettings {
            way: ways.drain(..).next().map(|(_, way)| way),
            resolver: self.items("dns.resolver", parse_server),
            servers: self.items("dns.servers", parse_server),
            timeout: self.duration("dns.timeout", SECOND, HOUR),
        }
    }

    /// Whether one of the ways is written, be it well or badly.
    pub(super) fn means_dns(&self) -> bool {
        [RESPONDER, SERVER, EXEC, TOKEN, TOKEN_FILE].iter().any(|path| self.is_given(path))
    }

    fn responder(&mut self, base: Option<&BaseUrl>) -> Option<ResponderSettings> {
        let listen = self.items(RESPONDER, parse_server);
        let name = self.host_name("dns.responder_name");
        let host = name.or_else(|| base.map(|base| base.host.clone()))?;
        (!listen.is_empty()).then_some(ResponderSettings { listen, host })
    }

    fn rfc2136(&mut self) -> Option<Rfc2136Settings> {
        const KEY_NAME: &str = "dns.rfc2136.key_name";
        const SECRET: &str = "dns.rfc2136.key_secret";
        let server = self.read(SERVER, |value| {
            const HINT: &str = "write a host name or an IP address, with `:PORT` unless it is 53";
            let written = text(value).map_err(|shown| format!("`{shown}` is not a server; {HINT}"))?;
            if let Ok(address) = parse_server(written) {
                let ip = address.ip();
                let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
                return Ok((HostName::parse(&host).expect("an IP address is a host name"), address.port()));
            }
            let (host, port) =
                HostName::parse_authority(written).map_err(|error| format!("{error}; {HINT}"))?;
            Ok((host, port.unwrap_or(PORT)))
        });
        let zone = self.host_name("dns.rfc2136.zone");
        let key_name = self.host_name(KEY_NAME);
        let key_secret = self.secret(SECRET, "dns.rfc2136.key_secret_file", |secret| {
            let is_key = STANDARD.decode(secret).is_ok_and(|key| !key.is_empty());
            is_key.then_some(()).ok_or("not base64; copy what is between the quotes of the key's `secret` on the DNS server, and nothing else")
        });
        let algorithm = self.required("dns.rfc2136.algorithm", |value| {
            const ALL: [(&str, TsigHash); 3] = [
                ("hmac-sha256", TsigHash::Sha256),
                ("hmac-sha384", TsigHash::Sha384),
                ("hmac-sha512", TsigHash::Sha512),
            ];
            choice(value, "an algorithm for updates", &ALL)
        });
        let (host, port) = server?;
        if key_name.is_none() {
            self.require(KEY_NAME, "missing; write what the key for updates is called on the DNS server");
        }
        if key_secret.is_none() && !self.is_given("dns.rfc2136.key_secret_file") {
            self.require(
                SECRET,
                "missing; write the key's secret, or its file in `dns.rfc2136.key_secret_file`",
            );
        }
        Some(Rfc2136Settings { host, port, zone, key_name: key_name?, key_secret: key_secret?, algorithm })
    }

    fn exec(&mut self) -> Option<ExecSettings> {
        const CLEANUP: &str = "dns.exec_cleanup";
        let style = self.required("dns.exec_style", |value| {
            choice(value, "a style", &[("lego", ExecStyle::Lego), ("certbot", ExecStyle::Certbot)])
        });
        let cleanup = self.path(CLEANUP).map(in_folder);
        let program = self.path(EXEC).map(in_folder);
        if cleanup.is_some() && program.is_none() {
            self.require(CLEANUP, "set without `dns.exec`; name the program that sets records there");
        }
        Some(ExecSettings { program: program?, cleanup, style })
    }

    fn cloudflare(&mut self) -> Option<CloudflareSettings> {
        let token = self.secret(TOKEN, TOKEN_FILE, |token| {
            let is_token = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
            is_token.then_some(()).ok_or("not a token; copy it as the dashboard showed it")
        });
        let api = self.required("dns.cloudflare.api", |value| {
            const HINT: &str = "write `https://HOST/PATH`";
            let url = text(value).map_err(|shown| format!("`{shown}` is not a URL; {HINT}"))?;
            let uri: http::Uri = url.parse().map_err(|_| format!("`{url}` is not a URL; {HINT}"))?;
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let is_near = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            match uri.scheme_str() {
                Some("https") => Ok(url.trim_end_matches('/').to_owned()),
                Some("http") if is_near => Ok(url.trim_end_matches('/').to_owned()),
                _ => Err(format!("`{url}` would show the token to whoever is on the way; {HINT}")),
            }
        });
        Some(CloudflareSettings { token: token?, api })
    }

    fn host_name(&mut self, path: &'static str) -> Option<HostName> {
        self.read(path, |value| {
            let written = text(value)
                .map_err(|shown| format!("`{shown}` is not a name; write one such as `example.com`"))?;
            match HostName::parse(written) {
                Ok(name) if name.is_ip() => {
                    Err(format!("`{written}` is an address; write a name such as `example.com`"))
                }
                Ok(name) => Ok(name),
                Err(error) => Err(format!("{error}; write a name such as `example.com`")),
            }
        })
    }

    /// A secret, or its file. It is in no message.
    pub(super) fn secret(
        &mut self,
        path: &'static str,
        file: &'static str,
        check: impl Fn(&str) -> Result<(), &'static str>,
    ) -> Option<SecretSource> {
        let inline = self.read(path, |value| match value {
            Value::Toml(toml::Value::String(written)) | Value::Text(written) => {
                let secret = written.trim();
                check(secret)?;
                Ok(Secret::new(secret))
            }
            _ => Err("not a text; write it in quotes".to_owned()),
        });
        let file_path = self.path(file);
        if inline.is_some() && file_path.is_some() {
            self.require(file, &format!("set together with `{path}`; keep one of the two"));
        }
        inline.map(SecretSource::Inline).or(file_path.map(SecretSource::File))
    }
}

/// A program that is a file of the working directory. As a bare name the system would look for it in the
/// folders of `PATH`, and nowhere else.
fn in_folder(program: PathBuf) -> PathBuf {
    if program.parent() == Some(Path::new("")) { Path::new(".").join(program) } else { program }
}

/// Reads one of these words.
fn choice<T: Copy>(value: &Value, what: &str, words: &[(&str, T)]) -> Result<T, String> {
    let written = text(value).map_or_else(|shown| shown, str::to_owned);
    let found = words.iter().find(|(word, _)| *word == written);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("`{written}` is not {what}; write one of `{}`", all.join("`, `"))
    })
}

/// Reads an address of a DNS server, with its port unless that is 53.
fn parse_server(item: &str) -> Result<SocketAddr, String> {
    let bad = || {
        format!(
            "`{item}` is not an address; write an IP address, with a port unless it is 53, such as `192.0.2.1`"
        )
    };
    item.parse::<SocketAddr>()
        .or_else(|_| Ok(SocketAddr::new(item.parse::<IpAddr>().map_err(|_| bad())?, PORT)))
}
