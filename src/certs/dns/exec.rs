//! Records set by a program of the operator's: called as lego calls its `exec` programs, or as certbot
//! calls its hooks.
//!
//! Refuses to run two at once, since such programs often read, change and write a zone; to hand them
//! this process's environment; and to leave anything of them running after their time.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::propagation::Watch;
use super::{ChallengeRecord, DnsError, DnsProvider};
use crate::config::{DnsSettings, ExecSettings, ExecStyle};
use crate::registry::BoxFuture;

/// Variables that a program gets from this process's environment.
const KEPT: &[&str] = &["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// Octets of each of its outputs that are kept.
const OUTPUT_MAX: usize = 16 * 1024;
/// Characters of what it said that an error tells.
const TOLD_MAX: usize = 500;
/// Octets of its first line that the system looks at.
const LINE_MAX: u64 = 256;
/// How long its outputs may stay open after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a program did not set or remove a record. One sentence each.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It did not start.
    #[error("the program `{program}` in `dns.exec` cannot be run: {error}; {}", hint(program, error))]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It failed.
    #[error(
        "the program `{program}` failed to {action} the record ({status}): {said}; run it by hand to see why"
    )]
    Failed {
        /// The program.
        program: PathBuf,
        /// `present` or `cleanup`.
        action: &'static str,
        /// How it ended.
        status: String,
        /// What it said, on one line.
        said: String,
    },
    /// It took too long.
    #[error("the program `{program}` did not {action} the record within {}s and was ended: {said}; make it quicker, or `dns.timeout` longer", .limit.as_secs())]
    TooSlow {
        /// The program.
        program: PathBuf,
        /// `present` or `cleanup`.
        action: &'static str,
        /// How long it had.
        limit: Duration,
        /// What it said until then, on one line.
        said: String,
    },
}

/// Sets records by running a program.
#[derive(Debug)]
pub(super) struct Exec {
    settings: ExecSettings,
    watch: Watch,
    turn: Semaphore,
}

impl DnsProvider for Exec {
    fn set<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<Option<String>, DnsError>> {
        Box::pin(async move {
            let said = self.run(&self.settings.program, "present", record, None).await?;
            Ok((self.settings.style == ExecStyle::Certbot).then_some(said))
        })
    }

    fn seen<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.watch.seen(record))
    }

    /// `memo`: what certbot's hook said when it set the record.
    fn cleanup<'a>(
        &'a self,
        record: &'a ChallengeRecord,
        memo: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async move {
            let program = match (&self.settings.cleanup, self.settings.style) {
                (Some(program), _) => program,
                (None, ExecStyle::Lego) => &self.settings.program,
                (None, ExecStyle::Certbot) => return Ok(()),
            };
            let removed = self.run(program, "cleanup", record, memo).await;
            self.watch.gone(&record.value);
            Ok(removed.map(|_| ())?)
        })
    }
}

impl Exec {
    pub(super) fn new(settings: &ExecSettings, dns: &DnsSettings) -> Self {
        Self { settings: settings.clone(), watch: Watch::new(dns), turn: Semaphore::new(1) }
    }

    #[cfg(test)]
    pub(super) fn shorten(&mut self, timeout: Duration) {
        self.watch.limit = timeout;
    }

    /// Runs a program to its end, and gives what it wrote to its standard output. Cancel safe: one that
    /// is not waited for is ended.
    async fn run(
        &self,
        program: &Path,
        action: &'static str,
        record: &ChallengeRecord,
        said_before: Option<&str>,
    ) -> Result<String, ExecError> {
        let mut command = Command::new(program);
        command.env_clear().envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        match self.settings.style {
            ExecStyle::Lego => {
                command.args([action, &format!("{}.", record.name), &record.value]);
            }
            ExecStyle::Certbot => {
                let domain = record.name.strip_prefix("_acme-challenge.").unwrap_or(&record.name);
                command.env("CERTBOT_DOMAIN", domain).env("CERTBOT_ALL_DOMAINS", domain);
                command.env("CERTBOT_VALIDATION", &record.value).env("CERTBOT_REMAINING_CHALLENGES", "0");
                if let Some(said) = said_before {
                    command.env("CERTBOT_AUTH_OUTPUT", said.replace('\0', ""));
                }
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        // Waiting for the turn is no program's fault; each that has it gives it back in its own time.
        let _turn = self.turn.acquire().await;
        let ended = timeout(self.watch.limit, async {
            let child =
                command.spawn().map_err(|error| ExecError::Start { program: program.to_owned(), error })?;
            Ok(Group::new(child).finish(&mut out, &mut err).await)
        });
        let (program, ended) = (program.to_owned(), ended.await);
        let said = last_words(if err.is_empty() { &out } else { &err });
        match ended {
            Ok(Ok(Ok(status))) if status.success() => Ok(text(&out)),
            Ok(Ok(Ok(status))) => {
                Err(ExecError::Failed { program, action, status: show_status(status), said })
            }
            Ok(Ok(Err(error))) => Err(ExecError::Start { program, error }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ExecError::TooSlow { program, action, limit: self.watch.limit, said }),
        }
    }
}

/// Why a file is no program that can be run.
pub(super) fn fault_of(program: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let shown = program.display();
    match std::fs::metadata(program) {
        Err(error) => Some(format!("`{shown}` cannot be looked at ({error}); check the path")),
        Ok(facts) if !facts.is_file() => Some(format!("`{shown}` is not a file; name a program")),
        Ok(facts) if facts.permissions().mode() & 0o111 == 0 => {
            Some(format!("`{shown}` may not be executed; make it executable with `chmod +x`"))
        }
        Ok(_) => interpreter_of(program).filter(|interpreter| !interpreter.exists()).map(|interpreter| {
            format!(
                "the first line of `{shown}` names the interpreter `{}`, which is not there; correct that line, or install it",
                interpreter.display()
            )
        }),
    }
}

/// What helps where a program does not start.
fn hint(program: &Path, error: &std::io::Error) -> &'static str {
    // The system says the same of a script without its interpreter as of no file at all.
    if error.kind() == std::io::ErrorKind::NotFound && program.exists() {
        "the interpreter in its first line (`#!`) is not there: correct that line, or install it"
    } else if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) {
        "it is no program of this system: let a script begin with a line such as `#!/bin/sh`"
    } else {
        "check its path, and that this user may execute it"
    }
}

/// What a script's first line names (execve(2)); `None` where it names none, or cannot be read.
fn interpreter_of(program: &Path) -> Option<PathBuf> {
    use std::io::Read as _;
    let mut line = Vec::new();
    std::fs::File::open(program).ok()?.take(LINE_MAX).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|octet| *octet == b'\n').next()?;
    let path = std::str::from_utf8(line).ok()?.trim_start().split([' ', '\t']).next()?;
    // A relative one depends on where the program is started.
    Some(PathBuf::from(path)).filter(|path| path.is_absolute())
}

/// A program with all that it started: a process group of its own. Dropped before its end, all of it
/// is killed.
struct Group {
    child: Child,
    /// `None` once nothing of it is left that could be killed.
    leader: Option<Pid>,
}

impl Group {
    fn new(child: Child) -> Self {
        let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Self { child, leader }
    }

    /// Waits for the end, and hears what is said until then.
    async fn finish(mut self, out: &mut Vec<u8>, err: &mut Vec<u8>) -> std::io::Result<ExitStatus> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let mut heard = std::pin::pin!(async { tokio::join!(hear(stdout, out), hear(stderr, err)) });
        let status = tokio::select! {
            _ = &mut heard => {
                let status = self.child.wait().await?;
                self.leader = None;
                return Ok(status);
            }
            status = self.child.wait() => status?,
        };
        // What it left running in the background may hold its outputs open: that is ended, too. With
        // all outputs closed nobody is known to be left, and the group's number may be another's.
        if timeout(LAST_WORDS, heard).await.is_ok() {
            self.leader = None;
        }
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // It may have ended by itself.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Reads to the end, and keeps the beginning.
async fn hear(output: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut output) = output else { return };
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = output.read(&mut chunk).await {
        let room = OUTPUT_MAX - kept.len();
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// The end of what was said, on one line, without what a terminal would take for a command.
fn last_words(bytes: &[u8]) -> String {
    let line: String = text(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let skip = line.chars().count().saturating_sub(TOLD_MAX);
    match line.chars().skip(skip).collect::<String>() {
        said if said.is_empty() => "it said nothing".to_owned(),
        said => format!("`{said}`"),
    }
}

fn show_status(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit status".to_owned(),
    }
}
