//! Certificate authorities: pebble, a real ACME server, with a DNS of its own that leads every name
//! to this machine.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use super::ca::Ca;
use super::gateway::Setup;
use super::process::Process;
use super::{SOON, poll};

/// A port of loopback that was free just now, for programs that must be told theirs.
pub fn free_port() -> u16 {
    super::named::free_port(&["127.0.0.1"])
}

/// A DNS server that says what it is told: by default, every name is at 127.0.0.1.
pub struct Names {
    process: Process,
    pub port: u16,
    management: u16,
}

impl Names {
    #[track_caller]
    pub fn start() -> Self {
        let (port, management) = (free_port(), free_port());
        let at = |port: u16| format!("127.0.0.1:{port}");
        let mut command = Command::new("pebble-challtestsrv");
        command.args(["-dns01", &at(port), "-management", &at(management), "-defaultIPv6", ""]);
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let names = Self { process: Process::start(&mut command), port, management };
        poll("DNS server", SOON, || std::net::TcpStream::connect(at(management)).ok());
        names
    }

    /// Tells the server something, such as `add-a`.
    #[track_caller]
    pub fn tell(&self, what: &str, value: &serde_json::Value) {
        let url = format!("http://127.0.0.1:{}/{what}", self.management);
        let output = Process::run(Command::new("curl").args(["-sSf", "-d", &value.to_string(), &url]), SOON);
        assert!(output.status.success(), "{output:?}\n{}", self.process.err);
    }

    /// Leads one name to an address.
    pub fn lead(&self, name: &str, to: IpAddr) {
        self.tell("add-a", &json!({ "host": format!("{name}."), "addresses": [to.to_string()] }));
    }
}

/// Whom pebble asks for names.
pub trait Resolver {
    fn port(&self) -> u16;
}

impl Resolver for Names {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Resolver for super::named::Named {
    fn port(&self) -> u16 {
        self.port
    }
}

/// Pebble in the making.
pub struct PebbleSetup {
    config: serde_json::Value,
    env: Vec<(&'static str, String)>,
    dns: u16,
}

/// A running authority.
pub struct Pebble {
    dir: TempDir,
    pub process: Process,
    port: u16,
    management: u16,
}

impl PebbleSetup {
    /// Looks at `tls` for TLS-ALPN-01 and at `http` for HTTP-01, without a pause before.
    pub fn new(names: &impl Resolver, tls: u16, http: u16) -> Self {
        Self {
            config: json!({ "tlsPort": tls, "httpPort": http }),
            env: vec![("PEBBLE_VA_NOSLEEP", "1".to_owned())],
            dns: names.port(),
        }
    }

    /// Sets something in its configuration.
    pub fn set(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.retain(|(other, _)| *other != name);
        self.env.push((name, value.to_owned()));
        self
    }

    /// Takes a variable out.
    pub fn without(mut self, name: &str) -> Self {
        self.env.retain(|(other, _)| *other != name);
        self
    }

    #[track_caller]
    pub fn start(mut self) -> Pebble {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let leaf = Ca::make(dir.path()).leaf("server", &["localhost"]);
        let (port, management) = (free_port(), free_port());
        let config = &mut self.config;
        config["listenAddress"] = format!("127.0.0.1:{port}").into();
        config["managementListenAddress"] = format!("127.0.0.1:{management}").into();
        config["certificate"] = leaf.cert.to_str().expect("UTF-8").into();
        config["privateKey"] = leaf.key.to_str().expect("UTF-8").into();
        let path = dir.path().join("pebble.json");
        std::fs::write(&path, json!({ "pebble": self.config }).to_string()).expect("temporary folder");
        let mut command = Command::new("pebble");
        command.args(["-strict", "-dnsserver", &format!("127.0.0.1:{}", self.dns), "-config"]).arg(&path);
        let process = Process::start(command.envs(self.env));
        let pebble = Pebble { dir, process, port, management };
        pebble.get_roots();
        pebble
    }
}

impl Pebble {
    /// Looks at `tls` and `http`, as fast as it can.
    #[track_caller]
    pub fn start(names: &Names, tls: u16, http: u16) -> Self {
        PebbleSetup::new(names, tls, http).start()
    }

    /// Where its directory is.
    pub fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// Who vouches for the server.
    pub fn server_root(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Who vouches for the certificates that it makes.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    /// How often its log has this.
    pub fn count(&self, text: &str) -> usize {
        self.process.out.to_string().matches(text).count()
    }

    #[track_caller]
    fn get_roots(&self) {
        let url = format!("https://localhost:{}/roots/0", self.management);
        let (root, server) = (self.root(), self.server_root());
        poll("root of pebble", SOON, || {
            let mut curl = Command::new("curl");
            curl.args(["-sSf", "--cacert"]).arg(&server).arg("-o").arg(&root).arg(&url);
            Process::run(&mut curl, SOON).status.success().then_some(())
        });
    }
}

/// A directory, as the configuration names it.
pub fn directory(url: &str, root: &Path) -> toml::Value {
    let mut table = toml::Table::new();
    table.insert("url".to_owned(), url.into());
    table.insert("root".to_owned(), root.to_str().expect("UTF-8").into());
    table.into()
}

/// A gateway's configuration without certificates, on this port of loopback, which orders for
/// `names` from these directories.
pub fn ordering(port: u16, names: &[&str], directories: Vec<toml::Value>) -> Setup {
    let mut setup = Setup::new();
    setup.unset("tls", "certificates");
    setup.set("listen", vec![format!("127.0.0.1:{port}")]);
    setup.set("acme.email", "operator@example.com");
    setup.set("acme.names", names.to_vec());
    setup.set("acme.directories", directories);
    setup
}
