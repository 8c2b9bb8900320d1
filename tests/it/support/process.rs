//! Programs: started in a process group of their own, heard on both outputs, killed on drop.

use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Programs that tests need, and the Debian packages that bring them.
const PACKAGES: &[(&str, &str)] = &[
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("node", "nodejs"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("pebble", "pebble"),
    ("pebble-challtestsrv", "pebble"),
    ("valgrind", "valgrind"),
    ("vgdb", "valgrind"),
    ("unshare", "util-linux"),
    ("certutil", "libnss3-tools"),
];

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    pub out: Heard,
    pub err: Heard,
    status: Option<ExitStatus>,
}

/// What a program has said so far on one of its outputs.
#[derive(Clone, Default)]
pub struct Heard(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

/// What a program had to say by its end.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    /// Starts a program; panics with the way to install it when it is missing.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let hint = PACKAGES.iter().find(|(program, _)| *program == name).map_or_else(
                    || "run ./test".to_owned(),
                    |(_, package)| format!("install with: apt-get install {package} (or run ./test)"),
                );
                panic!("cannot start `{name}`: {error}; {hint}");
            }
        };
        let out = Heard::listen(child.stdout.take().expect("piped"));
        let err = Heard::listen(child.stderr.take().expect("piped"));
        let stdin = child.stdin.take();
        Self { name, child, stdin, out, err, status: None }
    }

    /// Starts a program and waits for its end.
    #[track_caller]
    pub fn run(command: &mut Command, limit: Duration) -> Output {
        let mut process = Self::start(command);
        process.close_stdin();
        process.finish(limit)
    }

    /// Waits for the end; panics with what the program said when it does not come.
    #[track_caller]
    pub fn finish(&mut self, limit: Duration) -> Output {
        let status = self.exit(limit);
        let end = Instant::now() + Duration::from_secs(5);
        Output { status, stdout: self.out.all(end), stderr: self.err.all(end) }
    }

    /// Waits for the exit status only.
    #[track_caller]
    pub fn exit(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("end of `{}`", self.name);
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "within {limit:?}, no {what}\nstdout: {}\nstderr: {}",
                self.out,
                self.err
            );
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// The exit status, if the program has ended.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the child is ours");
        }
        self.status
    }

    /// Writes to the program's input.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("stdin is open").write_all(bytes).expect("the program reads");
    }

    /// Ends the program's input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Signals the program and all that it started.
    pub fn signal(&self, signal: Signal) {
        // Failing means that all of them are gone.
        let _ = kill_process_group(self.pid(), signal);
    }

    /// The process's own number, and its group's.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Heard {
    fn listen(mut from: impl Read + Send + 'static) -> Self {
        let heard = Self::default();
        let shared = heard.0.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            loop {
                let count = from.read(&mut buffer).unwrap_or(0);
                let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.bytes.extend_from_slice(&buffer[..count]);
                state.ended = count == 0;
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        heard
    }

    /// Waits until `find` finds something in all that was said; panics after `limit`.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, limit: Duration, find: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + limit;
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let text = String::from_utf8_lossy(&state.bytes).into_owned();
            if let Some(found) = find(&text) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !state.ended, "no {what} within {limit:?}; was said:\n{text}");
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until `text` was said.
    #[track_caller]
    pub fn wait_for(&self, text: &str, limit: Duration) -> String {
        self.wait(&format!("`{text}`"), limit, |said| said.contains(text).then(|| said.to_owned()))
    }

    /// All that was said by the end of the output, or by `end`.
    fn all(&self, end: Instant) -> String {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.ended && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        String::from_utf8_lossy(&state.bytes).into_owned()
    }
}

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.write_str(&String::from_utf8_lossy(&state.bytes))
    }
}
