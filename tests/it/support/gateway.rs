//! The gateway: the real binary, a temporary folder, ports given by the kernel.

use std::fs::Metadata;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use super::SOON;
use super::ca::{Ca, Leaf};
use super::process::{Output, Process};

/// The program under test.
pub const ONEPORT: &str = env!("CARGO_BIN_EXE_oneport");

/// A configuration in the making. The default one serves `gw.test` and `*.gw.test` on one port
/// of loopback and lets any key in.
pub struct Setup {
    pub dir: TempDir,
    pub ca: Ca,
    table: Table,
}

/// A running gateway.
pub struct Gateway {
    setup: Setup,
    process: Process,
}

impl Setup {
    /// The default configuration.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ca = Ca::make(dir.path());
        let leaf = ca.leaf("leaf", &["gw.test", "*.gw.test", "localhost"]);
        let mut setup = Self { dir, ca, table: Table::new() };
        let (state, cert, key) = (setup.path("state"), leaf.cert, leaf.key);
        setup.set("listen", vec!["127.0.0.1:0"]);
        setup.set("base_url", "https://gw.test");
        setup.set("state_dir", text(&state));
        setup.set("ssh.allow_any_key", true);
        setup.set("log.format", "json");
        setup.certificates(&[(&cert, &key)]);
        setup
    }

    /// A path in this gateway's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets what lies at a path like `limits.handshake_timeout`.
    pub fn set(&mut self, path: &str, value: impl Into<toml::Value>) -> &mut Self {
        let mut table = &mut self.table;
        let (folders, last) = path.rsplit_once('.').map_or(("", path), |split| split);
        for folder in folders.split('.').filter(|folder| !folder.is_empty()) {
            let entry = table.entry(folder).or_insert_with(|| Table::new().into());
            table = entry.as_table_mut().expect("a section");
        }
        table.insert(last.to_owned(), value.into());
        self
    }

    /// Takes out what lies at a path in a section.
    pub fn unset(&mut self, section: &str, key: &str) -> &mut Self {
        if let Some(table) = self.table.get_mut(section).and_then(toml::Value::as_table_mut) {
            table.remove(key);
        }
        self
    }

    /// Has the figures be told.
    pub fn with_figures(&mut self) -> &mut Self {
        self.set("admin.listen", "127.0.0.1:0")
    }

    /// Sets the certificates.
    pub fn certificates(&mut self, pairs: &[(&Path, &Path)]) -> &mut Self {
        let list: Vec<toml::Value> = pairs
            .iter()
            .map(|(cert, key)| {
                let mut pair = Table::new();
                pair.insert("cert".to_owned(), text(cert).into());
                pair.insert("key".to_owned(), text(key).into());
                pair.into()
            })
            .collect();
        self.set("tls.certificates", list)
    }

    /// Writes the configuration file.
    pub fn write(&self) -> PathBuf {
        let path = self.path("oneport.toml");
        std::fs::write(&path, self.table.to_string()).expect("temporary folder");
        path
    }

    /// `oneport serve` with this configuration.
    pub fn command(&self) -> Command {
        let mut command = bare();
        command.arg("serve").arg("--config").arg(self.write()).current_dir(self.dir.path());
        command
    }

    /// Starts the gateway and waits until it listens.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let command = self.command();
        self.start_with(command)
    }

    /// Starts the gateway with a disk of so many MiB for its state, which nobody else sees. Takes a
    /// name space of its own; who is not root makes one of users as well.
    #[track_caller]
    pub fn start_on_small_disk(self, mib: usize) -> Gateway {
        let (inner, state) = (self.command(), self.path("state"));
        std::fs::create_dir(&state).expect("temporary folder");
        let mut command = Command::new("unshare");
        command.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" });
        let script = format!("mount -t tmpfs -o size={mib}m,mode=700 tmpfs \"$0\" && exec \"$@\"");
        command.args(["sh", "-c", &script]).arg(state).arg(inner.get_program()).args(inner.get_args());
        for (name, _) in inner.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        command.current_dir(self.dir.path());
        self.start_with(command)
    }

    /// Starts the gateway by a command of the test's own.
    #[track_caller]
    pub fn start_with(self, mut command: Command) -> Gateway {
        let process = Process::start(&mut command);
        let gateway = Gateway { setup: self, process };
        gateway.address();
        gateway
    }
}

/// Gives file descriptors out again on drop.
pub struct WithoutDescriptors {
    pid: Pid,
    before: Rlimit,
}

impl WithoutDescriptors {
    /// How many descriptors the gateway could have.
    pub fn before(&self) -> Rlimit {
        self.before
    }
}

impl Drop for WithoutDescriptors {
    fn drop(&mut self) {
        // Failing means that the gateway is gone.
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}

/// `oneport`, without any setting from the surroundings.
pub fn bare() -> Command {
    without_settings(ONEPORT)
}

/// A program, without any setting of `oneport` from the surroundings.
pub fn without_settings(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        let old = ["PORT", "SSH_PORT", "TLS_PORT", "BASE_URL", "RUST_LOG"];
        if name.starts_with("ONEPORT_") || old.contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command
}

/// What `oneport` says with these arguments.
#[track_caller]
pub fn oneport(arguments: &[&str]) -> Output {
    Process::run(bare().args(arguments), SOON)
}

/// The first address in the log that was bound for this purpose.
fn bound(log: &str, what: &str) -> Option<SocketAddr> {
    let in_json = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|record| record["message"] == "listening" && record["what"] == what)
        .and_then(|record| record["address"].as_str()?.parse().ok());
    let in_text =
        || log.split_once(&format!("listening what=\"{what}\" address="))?.1.split('\n').next()?.parse().ok();
    in_json.or_else(in_text)
}

impl Gateway {
    /// A gateway with the default configuration.
    #[track_caller]
    pub fn start() -> Self {
        Setup::new().start()
    }

    /// The single port.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.address_of("tls")
    }

    /// The first listener of this kind: `tls`, `plain-http` or `plain-ssh`.
    #[track_caller]
    pub fn address_of(&self, what: &str) -> SocketAddr {
        self.process.err.wait(&format!("listener `{what}`"), SOON, |log| bound(log, what))
    }

    /// One more certificate of its authority's.
    pub fn leaf(&self, file: &str, names: &[&str]) -> Leaf {
        self.setup.ca.leaf(file, names)
    }

    /// A path in the gateway's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.setup.path(name)
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.setup.ca.cert()
    }

    /// All log records so far.
    pub fn log(&self) -> Vec<Value> {
        self.process.err.to_string().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a log record.
    #[track_caller]
    pub fn wait_log(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        self.process.err.wait(&format!("log record: {what}"), SOON, |log| {
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).find(|record| matches(record))
        })
    }

    /// Waits for a log record that may take longer.
    #[track_caller]
    pub fn wait_log_within(&self, limit: Duration, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        self.process.err.wait(&format!("log record: {what}"), limit, |log| {
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).find(|record| matches(record))
        })
    }

    /// Kills the gateway without a word, and starts it again with the same configuration and folder.
    #[track_caller]
    pub fn restart(self) -> Self {
        self.kill().start()
    }

    /// Kills the gateway without a word. What is left can start another.
    #[track_caller]
    pub fn kill(self) -> Setup {
        let Self { setup, mut process } = self;
        process.signal(Signal::KILL);
        process.exit(SOON);
        setup
    }

    /// Waits for a log record with this reason.
    #[track_caller]
    pub fn wait_reason(&self, reason: &str) -> Value {
        self.wait_log(reason, |record| record["reason"] == reason)
    }

    /// Everything on standard error so far.
    pub fn stderr(&self) -> String {
        self.process.err.to_string()
    }

    /// Signals the process.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// The process's number.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// While the value lives, the running gateway gets no new file descriptor. Those that it has
    /// stay good.
    #[must_use]
    pub fn without_descriptors(&self) -> WithoutDescriptors {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let pid = self.process.pid();
        let none = Rlimit { current: Some(0), maximum };
        let before = prlimit(Some(pid), Resource::Nofile, none).expect("the process is ours");
        WithoutDescriptors { pid, before }
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(&mut self, limit: Duration) -> Output {
        self.process.finish(limit)
    }

    /// Memory that is in use now, in octets.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most memory that was in use since [`Gateway::forget_peak`].
    pub fn memory_peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Begins anew to look for the most memory in use.
    pub fn forget_peak(&self) {
        std::fs::write(self.proc("clear_refs"), "5").expect("the process is ours");
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("the gateway runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a line of it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// How many files without a name are open, and what they take on disk, in octets.
    pub fn unnamed_files(&self) -> (usize, u64) {
        let files = self.unnamed();
        // Blocks are of 512 octets, whatever the file system's are.
        (files.len(), files.iter().map(|file| file.blocks() * 512).sum())
    }

    /// How many files without a name are open, and how many names they have all the same.
    pub fn links_to_unnamed_files(&self) -> (usize, u64) {
        let files = self.unnamed();
        (files.len(), files.iter().map(Metadata::nlink).sum())
    }

    fn unnamed(&self) -> Vec<Metadata> {
        let pid = self.process.pid().as_raw_nonzero().to_string();
        unnamed_files(&self.path("state"), &pid)
            .iter()
            .filter_map(|file| std::fs::metadata(file).ok())
            .collect()
    }

    /// What the admin listener says under a path.
    #[track_caller]
    pub fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address_of("admin")).expect("the admin listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("open");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("a page");
        assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
        page.split_once("\r\n\r\n").expect("a head").1.to_owned()
    }

    /// A figure of `/metrics`, where `admin.listen` is set; zero while it does not appear.
    #[track_caller]
    pub fn figure(&self, name: &str) -> u64 {
        let page = self.admin("/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{name} is {value}")))
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.process.pid().as_raw_nonzero().to_string()).join(name)
    }

    /// Whether the gateway still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.has_ended().is_none()
    }
}

/// The open files below a folder that have no name, of a process or of all of them (`*`), as links
/// in `/proc`.
pub fn unnamed_files(folder: &Path, pid: &str) -> Vec<PathBuf> {
    let links =
        |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let processes = match pid {
        "*" => links("/proc".into()).collect(),
        pid => vec![Path::new("/proc").join(pid)],
    };
    let open = processes.into_iter().flat_map(|process| links(process.join("fd")));
    let is_one = |link: &PathBuf| {
        let target = std::fs::read_link(link).unwrap_or_default();
        target.starts_with(folder) && target.to_str().is_some_and(|target| target.ends_with(" (deleted)"))
    };
    open.filter(is_one).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
