//! What `ssh` has been told about keys: asked of `ssh -G`, so that its `Host`, `Match` and `Include` count
//! as they do there.
//!
//! Reads no configuration of `ssh` itself. Where there is no `ssh`, its defaults count.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use russh::keys::{Algorithm, PublicKey};
use tokio::process::Command;
use tokio::time::timeout;

use crate::access::brief;

/// How long `ssh` may take: its configuration may have it run programs and look up names.
const PATIENCE: Duration = Duration::from_secs(5);
/// Asked about where nobody says which host it is; nothing leads there (RFC 2606, section 2).
const NOWHERE: &str = "oneport.invalid";
/// Printed back with the home folder that `ssh` goes by, which is that of the user and not `HOME`.
const WHERE_IS_HOME: &str = "UserKnownHostsFile=~/.";
/// Files that OpenSSH looks for by itself, in its order.
const DEFAULT_FILES: [&str; 3] = ["id_rsa", "id_ecdsa", "id_ed25519"];

/// Which keys `ssh` tries for a host, and where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshSettings {
    /// Files of keys, in its order (`IdentityFile`).
    pub(super) files: Vec<PathBuf>,
    /// Where the ssh-agent listens (`IdentityAgent`), if there is one.
    pub(super) socket: Option<PathBuf>,
    /// Whether the ssh-agent is only asked for the keys of these files (`IdentitiesOnly`).
    pub(super) only_files: bool,
    /// Kinds of keys and signatures that it takes (`PubkeyAcceptedAlgorithms`). `None`: all.
    accepted: Option<Vec<String>>,
}

/// Why `ssh` could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum SshFault {
    /// It refused.
    #[error(
        "`ssh -G {host}` failed: `{said}`; mend that, name the gateway's host with `--host`, or a key with `--key`"
    )]
    Refused {
        /// What it was asked about.
        host: String,
        /// Its last words.
        said: String,
    },
    /// It did not answer.
    #[error("`ssh -G {0}` did not answer within {s} s; see what its configuration has it wait for, or name a key with `--key`", s = PATIENCE.as_secs())]
    Silent(String),
}

impl SshSettings {
    /// Asks for those of a host, as it stands behind `ssh`: `HOST`, `USER@HOST` or an alias. `None`: for
    /// those that hold for every host. `port`: as with `ssh -p`. Takes at most 5 s. Cancel safe.
    ///
    /// # Errors
    /// When there is an `ssh`, but it does not say: it would connect to no host then.
    pub async fn of(host: Option<&str>, port: Option<u16>) -> Result<Self, SshFault> {
        let host = host.unwrap_or(NOWHERE);
        let mut command = Command::new("ssh");
        command.args(["-G", "-o", WHERE_IS_HOME]);
        if let Some(port) = port {
            command.args(["-p", &port.to_string()]);
        }
        command.args(["--", host]).stdin(Stdio::null()).kill_on_drop(true);
        let asked = timeout(PATIENCE, command.output()).await;
        let Ok(output) = asked.map_err(|_| SshFault::Silent(brief(host)))? else {
            return Ok(Self::without_ssh());
        };
        if output.status.success() {
            return Ok(Self::read(&String::from_utf8_lossy(&output.stdout), variable));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = brief(said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default());
        Err(SshFault::Refused { host: brief(host), said })
    }

    /// Those that count where there is no `ssh`.
    #[must_use]
    pub fn without_ssh() -> Self {
        Self::default_of(std::env::home_dir().as_deref(), variable)
    }

    /// Whether a key is of a kind that `ssh` tries.
    pub(super) fn takes(&self, key: &PublicKey) -> bool {
        let algorithm = key.algorithm();
        let kinds = match algorithm {
            Algorithm::Rsa { .. } => vec!["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
            _ => vec![algorithm.as_str()],
        };
        self.accepted
            .as_ref()
            .is_none_or(|accepted| accepted.iter().any(|kind| kinds.contains(&kind.as_str())))
    }

    /// Those of a machine where nobody configured `ssh`.
    fn default_of(home: Option<&Path>, variable: impl Fn(&str) -> Option<String>) -> Self {
        let file = |name| home.map(|home| home.join(".ssh").join(name));
        Self {
            files: DEFAULT_FILES.into_iter().filter_map(file).collect(),
            socket: agent_of_environment(variable),
            ..Self::default()
        }
    }

    /// Reads what `ssh -G` printed: a setting a line.
    fn read(printed: &str, variable: impl Fn(&str) -> Option<String>) -> Self {
        let lines = || printed.lines().filter_map(|line| line.split_once(' '));
        let value = |name: &str| lines().find(|(key, _)| *key == name).map(|(_, value)| value);
        let home = value("userknownhostsfile").and_then(|value| value.strip_suffix("/."));
        let home = home.filter(|home| !home.starts_with('~')).map(PathBuf::from).or_else(std::env::home_dir);
        let mut tokens = HashMap::from([('%', "%".to_owned())]);
        for (token, name) in [('h', "hostname"), ('n', "host"), ('p', "port"), ('r', "user")] {
            tokens.extend(value(name).map(|value| (token, value.to_owned())));
        }
        tokens.insert('i', rustix::process::getuid().as_raw().to_string());
        tokens.extend(variable("USER").map(|user| ('u', user)));
        tokens.extend(home.as_ref().map(|home| ('d', home.display().to_string())));
        let path = |text: &str| expand(text, home.as_deref(), &tokens, &variable);
        let files = lines().filter(|(key, value)| *key == "identityfile" && *value != "none");
        let socket = match value("identityagent") {
            None | Some("SSH_AUTH_SOCK") => agent_of_environment(&variable),
            Some("none") => None,
            Some(text) => match text.strip_prefix('$').filter(|name| !name.starts_with('{')) {
                Some(name) => variable(name).map(PathBuf::from),
                None => path(text),
            },
        };
        Self {
            files: files.filter_map(|(_, value)| path(value)).collect(),
            socket,
            only_files: value("identitiesonly") == Some("yes"),
            accepted: value("pubkeyacceptedalgorithms")
                .map(|list| list.split(',').map(str::to_owned).collect()),
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn agent_of_environment(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    variable("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A path as ssh_config(5) has it: `~`, `${VARIABLE}` and `%` tokens. `None` where one is not known here.
fn expand(
    text: &str,
    home: Option<&Path>,
    tokens: &HashMap<char, String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<PathBuf> {
    let (mut path, mut rest) = match text.strip_prefix("~/") {
        Some(rest) => (format!("{}/", home?.display()), rest),
        None if text.starts_with('~') => return None,
        None => (String::new(), text),
    };
    while let Some(at) = rest.find(['%', '$']) {
        path.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(inner) = rest.strip_prefix("${") {
            let (name, after) = inner.split_once('}')?;
            path.push_str(&variable(name)?);
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('%') {
            let token = inner.chars().next()?;
            path.push_str(tokens.get(&token)?);
            rest = &inner[token.len_utf8()..];
        } else {
            path.push('$');
            rest = &rest[1..];
        }
    }
    path.push_str(rest);
    Some(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "host gw\nuser me\nhostname gw.test\nport 8443\nidentitiesonly yes
identityagent /run/agents/%r of %h
identityfile ~/.ssh/id_rsa
identityfile /keys/100%%/%n %p
identityfile ${KEYS}/a$b
identityfile ${ABSENT}/a
identityfile ~other/a
identityfile /%C
identityfile none
userknownhostsfile /home/a b/.
";

    fn variable(name: &str) -> Option<String> {
        match name {
            "KEYS" => Some("/k".to_owned()),
            "SSH_AUTH_SOCK" => Some("/sock".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn what_ssh_prints_is_understood() {
        let read = SshSettings::read(PRINTED, variable);
        let files = ["/home/a b/.ssh/id_rsa", "/keys/100%/gw 8443", "/k/a$b"];
        assert_eq!(read.files, files.map(PathBuf::from));
        assert_eq!(read.socket, Some("/run/agents/me of gw.test".into()));
        assert!(read.only_files);
        let agent = |line: &str| SshSettings::read(line, variable).socket;
        for env in ["", "identityagent SSH_AUTH_SOCK\n", "identityagent $SSH_AUTH_SOCK\n"] {
            assert_eq!(agent(env), Some("/sock".into()), "{env}");
        }
        assert_eq!(agent("identityagent none\n"), None);
        assert_eq!(agent("identityagent $ABSENT\n"), None);
        assert!(!SshSettings::read("identitiesonly no\n", variable).only_files);
    }

    #[test]
    fn without_ssh_its_defaults_count() {
        let read = SshSettings::default_of(Some(Path::new("/h")), variable);
        assert_eq!(read.files[0], Path::new("/h/.ssh/id_rsa"));
        assert_eq!(read.socket, Some("/sock".into()));
        assert_eq!(SshSettings::default_of(None, |_| None), SshSettings::default());
    }
}
