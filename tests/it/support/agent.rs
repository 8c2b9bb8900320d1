//! Agents: OpenSSH and Node's `ssh2`, with the keys of the vectors.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::backend::Backend;
use super::gateway::{Gateway, ONEPORT, Setup};
use super::process::{Output, Process};
use super::{SOON, test_file, vectors};

/// The way of an OpenSSH agent to the gateway.
#[derive(Clone, Copy, Debug)]
pub enum Via {
    /// `oneport connect`.
    Connect,
    /// `openssl s_client`, with ALPN or without.
    SClient { alpn: bool },
    /// TCP to the single port, without TLS.
    Raw,
    /// The listener for plain SSH.
    PlainListener,
}

/// An OpenSSH agent in the making.
pub struct OpenSsh<'a> {
    gateway: &'a Gateway,
    via: Via,
    key: String,
    user: String,
    arguments: Vec<String>,
    command: Option<String>,
}

/// A running agent.
pub struct Agent {
    pub process: Process,
    /// What its `hello` said.
    pub hello: Value,
}

/// The private key of a vector as a file in `dir`, for its owner only.
pub fn key_file(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(format!("key-{name}"));
    if !path.exists() {
        let key = vector_key(name);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .expect("temporary folder");
        let text = key["openssh_private_key"].as_str().expect("a key");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("temporary folder");
    }
    path
}

/// A key of the vectors.
pub fn vector_key(name: &str) -> Value {
    let vectors = vectors();
    let keys = vectors["keys"].as_array().expect("a list");
    keys.iter().find(|key| key["name"] == name).unwrap_or_else(|| panic!("no key `{name}`")).clone()
}

/// The public key of a vector, as a line of `authorized_keys`.
pub fn public_key(name: &str) -> String {
    vector_key(name)["openssh_public_key"].as_str().expect("a key").to_owned()
}

/// The host of a tunnel that was asked for as `name` with the default key.
pub fn host(name: &str) -> String {
    format!("{name}-dzk582uo.gw.test")
}

impl<'a> OpenSsh<'a> {
    /// An agent `me` with the key `ed25519a`, through `oneport connect`.
    pub fn new(gateway: &'a Gateway) -> Self {
        Self {
            gateway,
            via: Via::Connect,
            key: "ed25519a".to_owned(),
            user: "me".to_owned(),
            arguments: Vec::new(),
            command: None,
        }
    }

    pub fn via(mut self, via: Via) -> Self {
        self.via = via;
        self
    }

    /// Comes from this address of loopback, over plain TCP to the single port (`ssh.raw`).
    pub fn from(self, address: &str) -> Self {
        self.via(Via::Raw).args(&["-b", address])
    }

    pub fn key(mut self, name: &str) -> Self {
        name.clone_into(&mut self.key);
        self
    }

    pub fn user(mut self, name: &str) -> Self {
        name.clone_into(&mut self.user);
        self
    }

    /// More arguments for `ssh`.
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// `-R REQUEST:ADDRESS`.
    pub fn forward(self, request: &str, to: SocketAddr) -> Self {
        self.args(&["-R", &format!("{request}:{}:{}", to.ip(), to.port())])
    }

    /// The command to run on the gateway.
    pub fn command(mut self, command: &str) -> Self {
        self.command = Some(command.to_owned());
        self
    }

    /// The whole command line.
    pub fn build(&self) -> Command {
        let key = key_file(self.gateway.path("").as_path(), &self.key);
        let address = match self.via {
            Via::PlainListener => self.gateway.address_of("plain-ssh"),
            _ => self.gateway.address(),
        };
        let ca = self.gateway.ca();
        let proxy = match self.via {
            Via::Connect => Some(format!("{ONEPORT} connect --ca {} %h:%p", ca.display())),
            Via::SClient { alpn } => Some(format!(
                "openssl s_client -quiet -verify_quiet -verify_return_error -CAfile {} -servername gw.test{} -connect %h:%p",
                ca.display(),
                if alpn { " -alpn ssh" } else { "" }
            )),
            Via::Raw | Via::PlainListener => None,
        };
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-T", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "GlobalKnownHostsFile=/dev/null"]);
        command.args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "LogLevel=INFO"]);
        command.arg("-i").arg(key).arg("-p").arg(address.port().to_string()).args(["-l", &self.user]);
        if let Some(proxy) = proxy {
            command.arg("-o").arg(format!("ProxyCommand={proxy}"));
        }
        command.args(&self.arguments).arg("localhost").args(self.command.iter());
        command
    }

    /// Starts it, and leaves it running.
    #[track_caller]
    pub fn spawn(self) -> Process {
        Process::start(&mut self.build())
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Output {
        Process::run(&mut self.build(), SOON)
    }

    /// Starts it with `hello`, and waits for the answer: from then on the forwards are there.
    #[track_caller]
    pub fn start(self) -> Agent {
        let process = self.command("hello").spawn();
        let hello = process.out.wait("answer to hello", SOON, |said| {
            said.strip_suffix("\r\n").and_then(|line| serde_json::from_str(line).ok())
        });
        Agent { process, hello }
    }
}

/// A gateway, a service, and an OpenSSH agent that offers it as `web`.
#[track_caller]
pub fn web(setup: Setup) -> (Gateway, Backend, Agent) {
    let (gateway, backend) = (setup.start(), Backend::start());
    let agent = Agent::web(&gateway, backend.address());
    (gateway, backend, agent)
}

impl Agent {
    /// The default agent: `web` leads to `backend`.
    #[track_caller]
    pub fn web(gateway: &Gateway, backend: SocketAddr) -> Self {
        OpenSsh::new(gateway).forward("/web", backend).start()
    }

    /// Kills it as a crash would: no word to the gateway but the kernel's.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.exit(Duration::from_secs(5));
    }
}

/// A JavaScript program of `tests/node`, given one JSON object.
#[track_caller]
pub fn node(script: &str, argument: &Value) -> Process {
    assert!(
        test_file("node/node_modules/ssh2").exists(),
        "the packages of tests/node are missing; install with: ./test (or npm ci in tests/node)"
    );
    Process::start(Command::new("node").arg(test_file(&format!("node/{script}"))).arg(argument.to_string()))
}
