//! Instruction counts: a program that runs under valgrind's callgrind, whose counter is read
//! before and after a piece of work. What the program does to start is not even counted.
//!
//! A count hardly depends on what else the machine does, unlike a time.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;
use tempfile::TempDir;

use super::process::Process;

/// How long valgrind may take to obey.
const LIMIT: Duration = Duration::from_secs(30);

/// Counts the instructions of one program.
pub struct Callgrind {
    dir: TempDir,
    dumps: usize,
}

impl Callgrind {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder"), dumps: 0 }
    }

    /// The same command under callgrind, with one runtime thread: which of several is woken for
    /// what is decided anew each time, and costs differ.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("valgrind");
        wrapped.args(["--quiet", "--tool=callgrind", "--instr-atstart=no", "--dump-line=no"]);
        wrapped.arg(self.pipes()).arg(format!("--callgrind-out-file={}", self.dump_file().display()));
        wrapped.arg("--").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        wrapped.env("TOKIO_WORKER_THREADS", "1");
        wrapped
    }

    /// Begins to watch the program, which makes it slower by far.
    #[track_caller]
    pub fn start(&self, pid: Pid) {
        self.tell(pid, &["instrumentation", "on"]);
    }

    /// Lets the program run faster again, uncounted.
    #[track_caller]
    pub fn stop(&self, pid: Pid) {
        self.tell(pid, &["instrumentation", "off"]);
    }

    /// The instructions that the program executes, on all its threads, while `work` runs.
    #[track_caller]
    pub fn count(&mut self, pid: Pid, work: impl FnOnce()) -> u64 {
        self.tell(pid, &["zero"]);
        work();
        self.tell(pid, &["dump"]);
        self.dumps += 1;
        let path = self.dump_file().with_extension(self.dumps.to_string());
        let dump =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let total = dump.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        total.unwrap_or_else(|| panic!("no total in {}", path.display()))
    }

    #[track_caller]
    fn tell(&self, pid: Pid, words: &[&str]) {
        let mut vgdb = Command::new("vgdb");
        // Meets a program that is still being loaded, too.
        vgdb.args(["--wait=20", "--max-invoke-ms=20"])
            .arg(self.pipes())
            .arg(format!("--pid={}", pid.as_raw_nonzero()))
            .args(words);
        let output = Process::run(&mut vgdb, LIMIT);
        assert!(output.status.success(), "vgdb {words:?}: {}", output.stderr);
    }

    fn pipes(&self) -> String {
        format!("--vgdb-prefix={}", self.dir.path().join("vgdb").display())
    }

    fn dump_file(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("count")
    }
}
