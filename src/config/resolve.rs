//! What was written → what it means. Goes on after a fault, so that all are found at once.

mod access;
mod acme;
mod bounds;
mod dns;
mod oidc;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::list::find;
use super::routes;
use super::value::{self, clashes, list, parse_admin, parse_base_url, parse_network, text};
use super::written::{Value, Written};
use super::{
    AdminListen, AnyKey, BaseUrl, DnsWay, Fault, Faults, HttpSettings, Limits, LogSettings, PemSource,
    RouteSettings, Settings, SshSettings, TlsSettings,
};
use crate::name::HostName;
use crate::observe::LogFormat;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Understands all settings, and says everything that is wrong, `faults` included.
pub(super) fn resolve(written: Written, faults: Vec<Fault>) -> (Settings, Faults) {
    let mut r = Resolver { written, faults };
    let base = r.base_url();
    let tls = TlsSettings { certificates: r.certificates(), dev_ca: None, default: r.host("tls.default") };
    let plain_http = r.addresses("plain.http");
    let plain_ssh = r.addresses("plain.ssh");
    let has_certificate = !tls.certificates.is_empty() || r.is_given("acme.email");
    let listen = r.listen(has_certificate, !plain_http.is_empty() || !plain_ssh.is_empty());
    let admin = r.admin();
    let admin_address = match &admin {
        Some(AdminListen::Tcp(address)) => std::slice::from_ref(address),
        _ => &[],
    };
    let dns = r.dns(base.as_ref());
    let dns_listen: &[SocketAddr] = match &dns.way {
        Some(DnsWay::Responder(responder)) => &responder.listen,
        _ => &[],
    };
    r.check_ports(&[
        ("listen", &listen),
        ("plain.http", &plain_http),
        ("plain.ssh", &plain_ssh),
        ("admin.listen", admin_address),
        ("dns.responder", dns_listen),
    ]);
    let state_dir = r.path("state_dir").unwrap_or_default();
    let drain_timeout = r.duration("drain_timeout", Duration::ZERO, 24 * HOUR);
    let routes = r.routes(base.as_ref());
    let acme = r.acme(base.as_ref(), &routes);
    let ssh = r.ssh(base.as_ref(), &state_dir);
    let http = r.http();
    let limits = r.limits();
    let networks = r.networks("networks.allow", "networks.deny");
    let log = r.log();
    let access = r.access(&state_dir);
    let base = base.unwrap_or_else(BaseUrl::stand_in);
    let settings = Settings {
        file: None,
        listen,
        plain_http,
        plain_ssh,
        base,
        state_dir,
        routes,
        drain_timeout,
        tls,
        acme,
        dns,
        ssh,
        http,
        limits,
        networks,
        access,
        admin,
        log,
    };
    r.check_ways(&settings);
    (settings, Faults(r.faults))
}

struct Resolver {
    written: Written,
    faults: Vec<Fault>,
}

/// One group of settings each.
impl Resolver {
    fn base_url(&mut self) -> Option<BaseUrl> {
        if !self.is_given("base_url") {
            self.require(
                "base_url",
                "missing; write what public URLs begin with, such as `https://preview.example.com`",
            );
        }
        self.read("base_url", |value| parse_base_url(text(value).unwrap_or_default()))
    }

    fn routes(&mut self, base: Option<&BaseUrl>) -> Vec<RouteSettings> {
        const PATH: &str = "routes";
        let Some(given) = self.written.given.get(PATH) else { return Vec::new() };
        let folder = given.folder.clone();
        let parsed = routes::read(&given.value, |path| place(path, folder.as_deref()));
        let routes = self.keep_good(PATH, parsed);
        for what in routes::conflicts(&routes, base) {
            self.require(PATH, &what);
        }
        routes
    }

    /// Without a certificate there is nothing to listen with; that is fine only where it was not
    /// asked for and a plain listener is.
    fn listen(&mut self, has_certificate: bool, has_plain: bool) -> Vec<SocketAddr> {
        let is_given = self.is_given("listen");
        if !has_certificate && has_plain && !is_given {
            return Vec::new();
        }
        let listen = self.addresses("listen");
        if listen.is_empty() && is_given && !has_plain {
            self.require("listen", "empty, and there is no plain listener either; write at least one address, such as `0.0.0.0:443`");
        }
        if !has_certificate && !listen.is_empty() {
            self.require(
                "tls.certificates",
                "no certificate; write `acme.email` to have them ordered, or `certificates = [{ cert = \"cert.pem\", key = \"key.pem\" }]` under `[tls]`, or `listen = []` and `plain.http` to serve without TLS",
            );
        }
        listen
    }

    fn ssh(&mut self, base: Option<&BaseUrl>, state_dir: &Path) -> SshSettings {
        let hostnames =
            self.items("ssh.hostnames", |item| HostName::parse(item).map_err(|error| error.to_string()));
        let hostnames = match base {
            Some(base) if !self.is_given("ssh.hostnames") => vec![base.host.clone()],
            _ => hostnames,
        };
        let host_key = self.host_key(state_dir);
        let authorized_keys = self.path("ssh.authorized_keys");
        let is_any = self.required("ssh.allow_any_key", value::switch);
        if is_any && authorized_keys.is_some() {
            self.require(
                "ssh.allow_any_key",
                "`true` together with `ssh.authorized_keys`, which would then mean nothing; keep one of the two",
            );
        } else if !is_any && authorized_keys.is_none() && !self.is_given("ssh.authorized_keys") {
            self.require(
                "ssh.authorized_keys",
                "missing; name a file or folder of agents' public keys, or, to let any SSH key offer tunnels, write `ssh.allow_any_key = true`",
            );
        }
        SshSettings {
            hostnames,
            host_key,
            authorized_keys,
            any_key: if is_any { AnyKey::Yes } else { AnyKey::No },
            raw: self.required("ssh.raw", value::switch),
            keepalive_interval: self.duration("ssh.keepalive_interval", SECOND, HOUR),
            login_timeout: self.duration("ssh.login_timeout", SECOND, HOUR),
            open_timeout: self.duration("ssh.open_timeout", SECOND, HOUR),
            close_timeout: self.duration("ssh.close_timeout", Duration::from_millis(1), HOUR),
            max_forwards: self.count("ssh.max_forwards", 1, 10_000),
            max_channels: self.count("ssh.max_channels", 1, 10_000),
            rekey_after: self.size("ssh.rekey_after", 4 << 20, 32 << 30),
            networks: self.networks("ssh.allow", "ssh.deny"),
            max_sessions_per_key: self.count("ssh.max_sessions_per_key", 0, 1_000_000),
            max_tunnels_per_key: self.count("ssh.max_tunnels_per_key", 0, 1_000_000),
        }
    }

    fn host_key(&mut self, state_dir: &Path) -> PemSource {
        if let Some(given) = self.written.given.get_mut("ssh.host_key")
            && let Value::Pem(pem) = &mut given.value
        {
            return PemSource::Inline(std::mem::take(pem));
        }
        let path = self.path("ssh.host_key");
        PemSource::File(path.unwrap_or_else(|| state_dir.join("ssh_host_ed25519_key")))
    }

    fn http(&mut self) -> HttpSettings {
        HttpSettings {
            trusted_proxies: self.items("http.trusted_proxies", parse_network),
            idle_timeout: self.duration("http.idle_timeout", SECOND, 24 * HOUR),
            send_timeout: self.duration("http.send_timeout", SECOND, 24 * HOUR),
            upstream_idle_timeout: self.duration("http.upstream_idle_timeout", SECOND, 24 * HOUR),
            upstream_idle_max: self.count("http.upstream_idle_max", 0, 10_000),
            upstream_max: self.count("http.upstream_max", 1, 100_000),
            upgrade_idle_timeout: self.duration("http.upgrade_idle_timeout", SECOND, WEEK),
        }
    }

    fn limits(&mut self) -> Limits {
        let limits = Limits {
            handshake_timeout: self.duration("limits.handshake_timeout", Duration::from_millis(100), HOUR),
            silence_timeout: self.duration("limits.silence_timeout", Duration::from_millis(10), HOUR),
            connections: self.count("limits.connections", 1, 10_000_000),
            connections_per_address: self.count("limits.connections_per_address", 1, 10_000_000),
            header_bytes: usize::try_from(self.size("limits.header_bytes", 4 << 10, 4 << 20))
                .unwrap_or(usize::MAX),
            buffer_memory: self.size("limits.buffer_memory", 4 << 10, 1 << 30),
            buffer_memory_all: self.size("limits.buffer_memory_all", 0, 1 << 40),
            queue_memory_all: self.size("limits.queue_memory_all", 1 << 20, 1 << 40),
            buffer_disk_per_stream: self.size("limits.buffer_disk_per_stream", 0, 1 << 50),
            buffer_disk: self.size("limits.buffer_disk", 0, 1 << 50),
            requests: self.requests(),
        };
        if limits.silence_timeout >= limits.handshake_timeout {
            self.require(
                "limits.silence_timeout",
                "not shorter than `limits.handshake_timeout`, within which it must pass; make it shorter",
            );
        }
        if limits.buffer_disk_per_stream > limits.buffer_disk {
            self.require(
                "limits.buffer_disk",
                "smaller than `limits.buffer_disk_per_stream`; make it at least as large",
            );
        }
        limits
    }

    /// Nothing asks who comes there, so it must be out of reach for others.
    fn admin(&mut self) -> Option<AdminListen> {
        const PATH: &str = "admin.listen";
        let folder = self.written.given.get(PATH).and_then(|given| given.folder.clone());
        self.read(PATH, |value| parse_admin(value, folder.as_deref()))
    }

    fn log(&mut self) -> LogSettings {
        LogSettings {
            format: self.required("log.format", |value| match text(value) {
                Ok("text") => Ok(LogFormat::Text),
                Ok("json") => Ok(LogFormat::Json),
                Ok(other) => Err(format!("`{other}` is not a log format; write `text` or `json`")),
                Err(other) => Err(format!("`{other}` is not a log format; write `text` or `json`")),
            }),
            filter: self.required("log.filter", |value| {
                let filter = text(value)
                    .map_err(|shown| format!("`{shown}` is not a text; write a level such as `info`"))?;
                match tracing_subscriber::EnvFilter::try_new(filter) {
                    Ok(_) => Ok(filter.to_owned()),
                    Err(error) => {
                        Err(format!("`{filter}` is not a log filter: {error}; write a level such as `info`"))
                    }
                }
            }),
        }
    }

    /// Two listeners cannot share a port of one address.
    fn check_ports(&mut self, groups: &[(&'static str, &[SocketAddr])]) {
        let all: Vec<(&'static str, SocketAddr)> =
            groups.iter().flat_map(|(path, list)| list.iter().map(|address| (*path, *address))).collect();
        for (index, (path, address)) in all.iter().enumerate() {
            let clash = all[..index].iter().find(|(_, earlier)| clashes(*earlier, *address));
            if let Some((other, earlier)) = clash {
                let what =
                    format!("`{address}` is taken already by `{earlier}` in `{other}`; choose another port");
                self.require(path, &what);
            }
        }
    }
}

/// Single values.
impl Resolver {
    fn is_given(&self, path: &'static str) -> bool {
        self.written.given.contains_key(path) || self.written.broken.contains(path)
    }

    /// A fault about a setting, called by the name under which it was written. Silent when that
    /// setting has a fault already.
    fn require(&mut self, path: &'static str, what: &str) {
        if !self.written.broken.contains(path) {
            let place = self.written.given.get(path).map_or(path, |given| &given.place);
            self.faults.push(Fault::new(place, what));
        }
    }

    /// What is given; after a fault, or without it, the default. `None` when there is none.
    fn read<T>(&mut self, path: &'static str, parse: impl Fn(&Value) -> Result<T, String>) -> Option<T> {
        if let Some(given) = self.written.given.get(path) {
            match parse(&given.value) {
                Ok(value) => return Some(value),
                Err(what) => {
                    self.faults.push(Fault::new(&given.place, what));
                    self.written.broken.insert(path);
                }
            }
        }
        let default = find(path).map(|setting| setting.default).filter(|default| !default.is_empty())?;
        parse(&Value::Text(default.to_owned())).ok()
    }

    fn required<T>(&mut self, path: &'static str, parse: impl Fn(&Value) -> Result<T, String>) -> T {
        self.read(path, parse).expect("its default in the list of settings is valid, which a test shows")
    }

    fn duration(&mut self, path: &'static str, least: Duration, most: Duration) -> Duration {
        self.required(path, |value| match value::duration(value)? {
            duration if duration < least => Err(format!("too short; write at least `{least:?}`")),
            duration if duration > most => {
                Err(format!("too long; write at most `{}h`", most.as_secs() / 3600))
            }
            duration => Ok(duration),
        })
    }

    fn count(&mut self, path: &'static str, least: u64, most: u64) -> usize {
        let number = self.required(path, |value| within(value::number(value)?, least, most));
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    fn size(&mut self, path: &'static str, least: u64, most: u64) -> u64 {
        self.required(path, |value| within(value::size(value)?, least, most))
    }

    /// A list. Each faulty item is told of.
    fn items<T>(&mut self, path: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let parsed = self.read(path, |value| {
            let items = list(value)
                .map_err(|shown| format!("`{shown}` is not a text; write a list of quoted texts"))?;
            Ok(items.into_iter().map(&parse).collect::<Vec<_>>())
        });
        self.keep_good(path, parsed.unwrap_or_default())
    }

    fn keep_good<T>(&mut self, path: &'static str, items: Vec<Result<T, String>>) -> Vec<T> {
        let place = self.written.given.get(path).map_or(path, |given| &given.place).to_owned();
        let mut good = Vec::new();
        for item in items {
            match item {
                Ok(item) => good.push(item),
                Err(what) => {
                    self.faults.push(Fault::new(&place, what));
                    self.written.broken.insert(path);
                }
            }
        }
        good
    }

    fn addresses(&mut self, path: &'static str) -> Vec<SocketAddr> {
        self.items(path, |item| {
            item.parse().map_err(|_| {
                format!("`{item}` is not an address; write IP and port, such as `0.0.0.0:443` or `[::]:443`")
            })
        })
    }

    fn host(&mut self, path: &'static str) -> Option<HostName> {
        self.read(path, |value| {
            let written =
                text(value).map_err(|shown| format!("`{shown}` is not a host name; write it in quotes"))?;
            HostName::parse(written).map_err(|error| format!("{error}; write a name such as `example.com`"))
        })
    }

    fn path(&mut self, path: &'static str) -> Option<PathBuf> {
        let folder = self.written.given.get(path).and_then(|given| given.folder.clone());
        self.read(path, |value| match text(value) {
            Ok("") => Err("empty; write a path, or leave the setting out".to_owned()),
            Ok(written) if value::is_pem(written) => Err(value::NOT_A_PATH.to_owned()),
            Ok(written) => Ok(place(written, folder.as_deref())),
            Err(shown) => Err(format!("`{shown}` is not a path; write it in quotes")),
        })
    }
}

/// A path as it is usable from the working directory. Absolute ones stay as they are.
pub(super) fn place(path: &str, folder: Option<&Path>) -> PathBuf {
    folder.map_or_else(|| PathBuf::from(path), |folder| folder.join(path))
}

fn within(number: u64, least: u64, most: u64) -> Result<u64, String> {
    if number < least {
        Err(format!("`{number}` is too small; write at least `{least}`"))
    } else if number > most {
        Err(format!("`{number}` is too large; write at most `{most}`"))
    } else {
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SETTINGS;

    /// Also shows that every default is valid: `required` relies on it.
    #[test]
    fn defaults_are_valid_and_every_setting_is_read() {
        let settings = Settings::dev(8443, Path::new("certs/dev"));
        assert_eq!(settings.limits.header_bytes, 65536);
        for setting in SETTINGS {
            let mut written = Written::default();
            written.set(
                setting.path,
                setting.path,
                Value::Toml(toml::Value::Datetime("1979-05-27".parse().expect("a date"))),
            );
            let (_, faults) = resolve(written, Vec::new());
            assert!(
                faults.0.iter().any(|fault| fault.place == setting.path && fault.what.contains("; ")),
                "`{}` is never read: {faults}",
                setting.path
            );
        }
    }
}
