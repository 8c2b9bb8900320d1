//! Somebody with a configuration of `ssh` and an ssh-agent of their own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use super::agent::key_file;
use super::gateway::without_settings;
use super::process::Process;
use super::{SOON, poll};

/// Somebody with a configuration of `ssh` and, it may be, an ssh-agent.
pub struct Person {
    dir: tempfile::TempDir,
    agent: Option<Process>,
}

impl Person {
    /// Without any key.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // `ssh` goes by the user's folder, whatever HOME is; so one that reads another configuration
        // stands in front of it.
        let real = Process::run(Command::new("sh").args(["-c", "command -v ssh"]), SOON).stdout;
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("temporary folder");
        let config = dir.path().join("config");
        std::fs::write(
            bin.join("ssh"),
            format!("#!/bin/sh\nexec {} -F {} \"$@\"\n", real.trim(), config.display()),
        )
        .expect("temporary folder");
        std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755)).expect("ours");
        std::fs::write(config, "IdentityFile none\n").expect("temporary folder");
        Self { dir, agent: None }
    }

    /// A path in this person's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file of a private key.
    pub fn key(&self, name: &str) -> PathBuf {
        key_file(self.dir.path(), name)
    }

    /// Has `ssh` go by this configuration.
    pub fn config(&self, text: &str) -> &Self {
        std::fs::write(self.path("config"), text).expect("temporary folder");
        self
    }

    fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    /// Starts an ssh-agent that holds these keys, in this order.
    pub fn with_agent(mut self, keys: &[&str]) -> Self {
        let socket = self.socket();
        self.agent = Some(Process::start(Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket)));
        poll("the ssh-agent's socket", SOON, || socket.exists().then_some(()));
        for key in keys {
            let mut add = Command::new("ssh-add");
            let output = Process::run(add.arg(self.key(key)).env("SSH_AUTH_SOCK", &socket), SOON);
            assert!(output.status.success(), "{output:?}");
        }
        self
    }

    /// A program, with this person's surroundings.
    pub fn command(&self, program: &str) -> Command {
        let mut command = without_settings(program);
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        match &self.agent {
            Some(_) => command.env("SSH_AUTH_SOCK", self.socket()),
            None => command.env_remove("SSH_AUTH_SOCK"),
        };
        command.env("HOME", self.dir.path());
        command
    }
}
