//! The space that unread answers may take: octets in memory a stream and in all, octets on disk a
//! stream and in all. Past what all together may take on disk, somebody is cut, and this decides who.
//!
//! First it is an agent that holds more than its part; of its streams, the one that nothing was taken
//! of for longest; and where all are being read, the one that holds most. Refuses to touch the files:
//! their owners do, and say so when they are gone.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use super::progress::Progress;
use crate::config::Limits;
use crate::observe::Metrics;

/// Octets of a stream in memory, when all together hold as much as they may.
pub(super) const MEMORY_LITTLE: usize = 32 * 1024;
/// How long a stream that was cut has to give its space back.
pub(super) const GIVES_BACK: Duration = Duration::from_millis(500);
/// Pause between two looks at whether it has.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// Space for unread answers, shared by all streams.
#[derive(Debug)]
pub struct Budget {
    memory_per_stream: usize,
    memory: usize,
    memory_used: AtomicUsize,
    disk_per_stream: u64,
    disk: u64,
    stalled_after: Duration,
    folder: PathBuf,
    started: Instant,
    next: AtomicU64,
    state: Mutex<State>,
    /// Space was given back, or somebody was cut.
    changed: Condvar,
    /// Held by the one stream that makes space on a full disk.
    turn: Mutex<()>,
    /// What happens here is counted there.
    pub(super) metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// The part of `used` that streams hold which were cut: it is free as soon as their files are
    /// gone.
    leaving: u64,
    streams: HashMap<u64, Arc<Usage>>,
}

impl State {
    fn cut(&mut self, usage: &Usage, sake: For) {
        if usage.cut.set(sake).is_ok() {
            self.leaving += usage.bytes.load(Ordering::Relaxed);
            usage.owner.notify_one();
        }
    }

    /// Cuts whoever is to blame most, if anybody has a file.
    fn cut_worst(&mut self, sake: For) -> bool {
        let with_files = || {
            let streams = self.streams.values().filter(|usage| !usage.is_cut());
            streams.map(|usage| (usage, usage.bytes.load(Ordering::Relaxed))).filter(|(_, bytes)| *bytes > 0)
        };
        let mut agents: HashMap<&str, u64> = HashMap::new();
        for (usage, bytes) in with_files() {
            *agents.entry(&usage.agent).or_default() += bytes;
        }
        let part = agents.values().sum::<u64>() / agents.len().max(1) as u64;
        let worst = with_files()
            .filter(|(usage, _)| agents.get(&*usage.agent).is_some_and(|held| *held >= part))
            .max_by_key(|(usage, bytes)| (usage.progress.blame(usage.since), *bytes))
            .map(|(usage, _)| usage.clone());
        let Some(worst) = worst else { return false };
        self.cut(&worst, sake);
        true
    }

    fn free(&mut self, usage: &Usage, octets: u64) {
        usage.bytes.fetch_sub(octets, Ordering::Relaxed);
        self.used -= octets;
        if usage.is_cut() {
            self.leaving -= octets;
        }
    }
}

/// For the sake of what a stream was cut.
#[derive(Clone, Copy, Debug)]
enum For {
    /// The budgets.
    Budget,
    /// The disk has no space, although the budgets have.
    Space,
}

/// What one stream with a file uses, and when its visitor last took something.
#[derive(Debug)]
pub(super) struct Usage {
    id: u64,
    /// Changed under the lock only.
    bytes: AtomicU64,
    pub(super) progress: Progress,
    /// When it first had something on disk.
    since: Instant,
    /// Whose key the stream's session has.
    agent: Arc<str>,
    cut: OnceLock<For>,
    /// Wakes the owner when it was cut for somebody else's sake.
    owner: Arc<Notify>,
}

impl Usage {
    fn is_cut(&self) -> bool {
        self.cut.get().is_some()
    }

    /// What its owner is told when it was cut.
    pub(super) fn why(&self, budget: &Budget) -> Option<SpillError> {
        Some(match self.cut.get()? {
            For::Budget => SpillError::OverBudget,
            For::Space => SpillError::Full { folder: budget.folder.clone() },
        })
    }
}

/// Why an answer's unread part found no space.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// This stream was cut: it, or all together, reached the budget.
    #[error("the visitor took too little of the answer")]
    OverBudget,
    /// This stream was cut: there was no space on the disk.
    #[error("no space is left for temporary files in `{folder}`, and the visitor took too little")]
    Full {
        /// Where they lie.
        folder: PathBuf,
    },
    /// The temporary file failed.
    #[error("cannot use a temporary file in `{folder}`: {error}")]
    File {
        /// Where it lies.
        folder: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Budget {
    /// The budgets of `limits`; a stream that nothing is taken of for `stalled_after` is cut in any
    /// case. Files are made in `folder` and have no name there.
    #[must_use]
    pub fn new(
        limits: &Limits,
        stalled_after: Duration,
        folder: PathBuf,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (started, next) = (Instant::now(), AtomicU64::new(0));
        Arc::new(Self {
            memory_per_stream: usize::try_from(limits.buffer_memory).unwrap_or(usize::MAX),
            memory: usize::try_from(limits.buffer_memory_all).unwrap_or(usize::MAX),
            memory_used: AtomicUsize::new(0),
            disk_per_stream: limits.buffer_disk_per_stream,
            disk: limits.buffer_disk,
            stalled_after,
            folder,
            started,
            next,
            state: Mutex::default(),
            changed: Condvar::new(),
            turn: Mutex::default(),
            metrics,
        })
    }

    /// Octets that one stream may hold in memory now: little, when all together hold much.
    #[must_use]
    pub fn memory_per_stream(&self) -> usize {
        let all = self.memory_used.load(Ordering::Relaxed);
        if all < self.memory { self.memory_per_stream } else { self.memory_per_stream.min(MEMORY_LITTLE) }
    }

    /// A stream holds so many octets more in memory.
    pub fn note_memory(&self, octets: usize) {
        self.memory_used.fetch_add(octets, Ordering::Relaxed);
    }

    /// A stream holds so many octets less in memory.
    pub fn forget_memory(&self, octets: usize) {
        self.memory_used.fetch_sub(octets, Ordering::Relaxed);
    }

    /// The progress of a stream that begins now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress::new(self.started)
    }

    /// How long nothing may be taken of a stream that something waits in.
    #[must_use]
    pub fn stalled_after(&self) -> Duration {
        self.stalled_after
    }

    /// Octets on disk now, in all.
    #[must_use]
    pub fn disk_used(&self) -> u64 {
        self.state.lock().used
    }

    /// Where the files are made.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The right to make space on a full disk, if it comes within a moment.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.try_lock_for(LOOK)
    }

    /// A stream of the agent with this key begins to use the disk. `owner` is told when it is cut.
    pub(super) fn enter(&self, owner: Arc<Notify>, progress: Progress, agent: Arc<str>) -> Arc<Usage> {
        let (bytes, cut, since) = (AtomicU64::new(0), OnceLock::new(), Instant::now());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let usage = Arc::new(Usage { id, bytes, progress, since, agent, cut, owner });
        self.state.lock().streams.insert(id, usage.clone());
        usage
    }

    /// Takes space, cutting others until there is enough, and waiting for a moment until their files
    /// are gone. Blocks.
    ///
    /// # Errors
    /// When the stream itself was cut.
    pub(super) fn reserve(&self, own: &Usage, amount: u64) -> Result<(), SpillError> {
        let mut state = self.state.lock();
        if own.bytes.load(Ordering::Relaxed) + amount > self.disk_per_stream {
            state.cut(own, For::Budget);
        }
        let mut until = None;
        while !own.is_cut() && state.used + amount > self.disk {
            if state.used - state.leaving + amount > self.disk {
                if !state.cut_worst(For::Budget) {
                    state.cut(own, For::Budget);
                }
                self.changed.notify_all();
                continue;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + GIVES_BACK);
            if self.changed.wait_until(&mut state, until).timed_out() {
                // The disk takes long to delete. Nobody else is cut for that.
                break;
            }
        }
        if let Some(why) = own.why(self) {
            return Err(why);
        }
        self.metrics.ssh.spilled.add(amount);
        own.bytes.fetch_add(amount, Ordering::Relaxed);
        state.used += amount;
        Ok(())
    }

    /// Cuts whoever is to blame most, because there is no space for `own`; nobody if that one is cut
    /// already.
    pub(super) fn make_space(&self, own: &Usage) {
        let mut state = self.state.lock();
        if !own.is_cut() && !state.cut_worst(For::Space) {
            state.cut(own, For::Space);
        }
        self.changed.notify_all();
    }

    /// Counts as free what a stream has given back, at most what it has.
    pub(super) fn give_back(&self, own: &Usage, amount: u64) {
        let mut state = self.state.lock();
        let held = own.bytes.load(Ordering::Relaxed);
        state.free(own, amount.min(held));
        self.changed.notify_all();
    }

    /// A stream uses the disk no longer. Its files are gone by now.
    pub(super) fn leave(&self, own: &Usage) {
        let mut state = self.state.lock();
        state.streams.remove(&own.id);
        state.free(own, own.bytes.load(Ordering::Relaxed));
        self.changed.notify_all();
    }
}
