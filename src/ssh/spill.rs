//! Where the unread part of an answer waits: first in memory, then in a temporary file.
//!
//! A channel's reader must always take what comes, because the SSH library would else hold up
//! every other channel of that agent. What a visitor has not taken yet lies here, under budgets:
//! octets in memory a stream, octets on disk a stream, octets on disk in all. Past a budget, the
//! stream that has been taken from least recently is cut; never the others.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::progress::Progress;
use crate::config::Limits;
use crate::observe::Metrics;

/// Octets of a stream in memory, when all together hold as much as they may.
const MEMORY_LITTLE: usize = 32 * 1024;
/// How often others are cut for the sake of a piece for which the disk has no space.
const CUTS_FOR_SPACE: usize = 3;
/// How long a stream that was cut has to give its space back.
const GIVES_BACK: Duration = Duration::from_millis(500);
/// Pause between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(10);
/// How much is read back from a file at once, in octets, at most.
const READ_BACK: usize = 128 * 1024;
/// Size at which a file is followed by the next, in octets.
const SEGMENT: u64 = 8 << 20;
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
    /// Held by the one stream that makes space on a full disk.
    turn: Mutex<()>,
    /// What happens here is counted there.
    pub(super) metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    streams: HashMap<u64, Arc<Usage>>,
}

impl State {
    /// Cuts whoever has taken nothing for longest, if anybody has a file.
    fn cut_slowest(&mut self, sake: For) -> bool {
        let slowest = self
            .streams
            .values()
            .filter(|usage| !usage.is_cut() && usage.bytes.load(Ordering::Relaxed) > 0)
            .max_by_key(|usage| usage.blame());
        let Some(slowest) = slowest else { return false };
        let _ = slowest.cut.set(sake);
        slowest.owner.notify_one();
        // Its file goes when its owner sees the mark, which is soon; count it as free now.
        self.used -= slowest.bytes.swap(0, Ordering::Relaxed);
        true
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
struct Usage {
    bytes: AtomicU64,
    progress: Progress,
    cut: OnceLock<For>,
    /// Wakes the owner when it was cut for somebody else's sake.
    owner: Arc<Notify>,
}

impl Usage {
    fn is_cut(&self) -> bool {
        self.cut.get().is_some()
    }

    /// What its owner is told when it was cut.
    fn why(&self, budget: &Budget) -> Option<SpillError> {
        Some(match self.cut.get()? {
            For::Budget => SpillError::OverBudget,
            For::Space => SpillError::Full { folder: budget.folder.clone() },
        })
    }

    /// How much rather than others this stream is cut: by how long nothing was taken of it, with
    /// time for who goes on reading.
    fn blame(&self) -> (Duration, Duration) {
        let idle = self.progress.idle();
        (idle.saturating_sub(self.progress.grace()), idle)
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

    fn enter(&self, owner: Arc<Notify>, progress: Progress) -> (u64, Arc<Usage>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (bytes, cut) = (AtomicU64::new(0), OnceLock::new());
        let usage = Arc::new(Usage { bytes, progress, cut, owner });
        self.state.lock().streams.insert(id, usage.clone());
        (id, usage)
    }

    /// Takes space, cutting whoever has taken nothing for longest until there is enough.
    fn reserve(&self, own: &Usage, amount: u64) -> Result<(), SpillError> {
        if own.bytes.load(Ordering::Relaxed) + amount > self.disk_per_stream {
            let _ = own.cut.set(For::Budget);
        }
        let mut state = self.state.lock();
        while !own.is_cut() && state.used + amount > self.disk {
            if !state.cut_slowest(For::Budget) {
                let _ = own.cut.set(For::Budget);
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

    /// Cuts whoever has taken nothing for longest, because there is no space for `own`; nobody if
    /// that one is cut already.
    fn make_space(&self, own: &Usage) {
        let mut state = self.state.lock();
        if !own.is_cut() && !state.cut_slowest(For::Space) {
            let _ = own.cut.set(For::Space);
        }
    }

    /// Gives back what a stream has read. A stream that was cut has nothing left to give.
    fn give_back(&self, own: &Usage, amount: u64) {
        let mut state = self.state.lock();
        let held = own.bytes.load(Ordering::Relaxed);
        let freed = amount.min(held);
        own.bytes.store(held - freed, Ordering::Relaxed);
        state.used -= freed;
    }

    fn leave(&self, id: u64) {
        let mut state = self.state.lock();
        if let Some(usage) = state.streams.remove(&id) {
            state.used -= usage.bytes.swap(0, Ordering::Relaxed);
        }
    }
}

/// One stream's part on disk: first in, first out, in segments that are given back as soon as
/// they were read, so that a long stream with a steady backlog does not grow. The files have no
/// names, so they vanish with the process whatever happens. The methods block: call them where
/// that is allowed.
#[derive(Debug)]
pub struct Spill {
    budget: Arc<Budget>,
    id: u64,
    usage: Arc<Usage>,
    segments: VecDeque<Segment>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    read_at: u64,
    write_at: u64,
}

impl Spill {
    /// Holds nothing yet. `owner` is told when the stream is cut for another's sake.
    #[must_use]
    pub fn new(budget: Arc<Budget>, owner: Arc<Notify>, progress: Progress) -> Self {
        let (id, usage) = budget.enter(owner, progress);
        Self { budget, id, usage, segments: VecDeque::new() }
    }

    /// Whether everything was read back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Why the stream was cut, by itself or for somebody else's sake, if it was.
    #[must_use]
    pub fn cut(&self) -> Option<SpillError> {
        self.usage.why(&self.budget)
    }

    /// Appends.
    ///
    /// # Errors
    /// When the stream is over its budget (it is cut then), or a file fails.
    pub fn append(&mut self, data: &[u8]) -> Result<(), SpillError> {
        self.budget.reserve(&self.usage, data.len() as u64)?;
        let result = match self.write(data) {
            // The disk is fuller than the budget knows: others' files may be on it.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.write_on_full_disk(data)?,
            result => result,
        };
        result.map_err(|error| SpillError::File { folder: self.budget.folder.clone(), error })
    }

    /// Writes when there is space again, for which others are cut. One stream after the other: those
    /// that fill the disk at the same time would cut each other, where one may be enough for all.
    fn write_on_full_disk(&mut self, data: &[u8]) -> Result<io::Result<()>, SpillError> {
        let budget = self.budget.clone();
        let _turn = loop {
            if let Some(turn) = budget.turn.try_lock_for(LOOK) {
                break turn;
            }
            self.check_cut()?;
        };
        let mut result = self.write(data);
        for _ in 0..CUTS_FOR_SPACE {
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::StorageFull) {
                break;
            }
            budget.make_space(&self.usage);
            let until = Instant::now() + GIVES_BACK;
            while result.is_err() && Instant::now() < until {
                self.check_cut()?;
                std::thread::sleep(LOOK);
                result = self.write(data);
            }
        }
        Ok(result)
    }

    /// Gives the space back if the stream was cut, before anybody else looks for some: else the next
    /// would still find none, and cut one more.
    fn check_cut(&mut self) -> Result<(), SpillError> {
        let Some(why) = self.cut() else { return Ok(()) };
        self.segments.clear();
        Err(why)
    }

    /// Takes the next octets out; empty when there are none.
    ///
    /// # Errors
    /// When the stream was cut, or a file fails.
    pub fn take(&mut self) -> Result<Bytes, SpillError> {
        if let Some(why) = self.cut() {
            return Err(why);
        }
        self.read().map_err(|error| SpillError::File { folder: self.budget.folder.clone(), error })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if self.segments.back().is_none_or(|last| last.write_at >= SEGMENT) {
            let file = tempfile::tempfile_in(&self.budget.folder)?;
            self.segments.push_back(Segment { file, read_at: 0, write_at: 0 });
        }
        if let Some(last) = self.segments.back_mut() {
            last.file.write_all_at(data, last.write_at)?;
            last.write_at += data.len() as u64;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<Bytes> {
        let Some(first) = self.segments.front_mut() else { return Ok(Bytes::new()) };
        // A piece is asked for when half of what may be in memory is free.
        let most = (self.budget.memory_per_stream() / 2).clamp(1, READ_BACK);
        let length = most.min(usize::try_from(first.write_at - first.read_at).unwrap_or(most));
        let mut data = vec![0; length];
        first.file.read_exact_at(&mut data, first.read_at)?;
        first.read_at += length as u64;
        if first.read_at == first.write_at {
            let freed = first.write_at;
            self.segments.pop_front();
            self.budget.give_back(&self.usage, freed);
        }
        Ok(data.into())
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.budget.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Settings;

    fn budget(stream: u64, all: u64) -> Arc<Budget> {
        let mut limits = Settings::dev(8443, Path::new("unused")).limits;
        (limits.buffer_memory, limits.buffer_disk_per_stream, limits.buffer_disk) = (16, stream, all);
        Budget::new(&limits, Duration::from_secs(1), std::env::temp_dir(), Arc::default())
    }

    #[test]
    fn what_goes_in_comes_out_in_order_and_frees_its_space() {
        let budget = budget(1000, 1000);
        let mut file = Spill::new(budget.clone(), Arc::default(), budget.progress());
        file.append(b"abc").expect("space");
        file.append(b"def").expect("space");
        assert_eq!(budget.disk_used(), 6);
        assert_eq!(file.take().expect("whole"), "abcdef");
        assert!(file.is_empty());
        assert_eq!(budget.disk_used(), 0);
        file.append(b"ghi").expect("space");
        drop(file);
        assert_eq!(budget.disk_used(), 0);
    }

    #[test]
    fn what_comes_back_is_no_more_than_there_is_memory_for() {
        let mut limits = Settings::dev(8443, Path::new("unused")).limits;
        (limits.buffer_memory, limits.buffer_memory_all) = (1 << 20, 1 << 20);
        let (limit, folder) = (Duration::from_secs(1), std::env::temp_dir());
        let budget = Budget::new(&limits, limit, folder, Arc::default());
        let mut file = Spill::new(budget.clone(), Arc::default(), budget.progress());
        file.append(&[0; 1 << 20]).expect("space");
        assert_eq!(file.take().expect("a piece").len(), READ_BACK);
        budget.note_memory(1 << 20);
        assert_eq!(file.take().expect("a piece").len(), MEMORY_LITTLE / 2);
        budget.forget_memory(1 << 20);
        assert_eq!(file.take().expect("a piece").len(), READ_BACK);
    }

    #[test]
    fn a_stream_over_its_own_budget_is_cut() {
        let budget = budget(4, 1000);
        let mut file = Spill::new(budget.clone(), Arc::default(), budget.progress());
        file.append(b"abc").expect("space");
        assert!(matches!(file.append(b"de"), Err(SpillError::OverBudget)));
        assert!(matches!(file.cut(), Some(SpillError::OverBudget)));
    }

    #[test]
    fn the_one_who_took_nothing_for_longest_is_cut_for_the_others() {
        let budget = budget(100, 10);
        let mut idle = Spill::new(budget.clone(), Arc::default(), budget.progress());
        idle.append(b"12345678").expect("space");
        let mut busy = Spill::new(budget.clone(), Arc::default(), budget.progress());
        busy.append(b"1").expect("space");
        busy.usage.progress.set_last(u64::MAX);
        busy.append(b"2345").expect("the idle one makes room");
        assert!(idle.cut().is_some() && busy.cut().is_none());
        assert!(idle.take().is_err());
        assert_eq!(budget.disk_used(), 5);
        drop(idle);
        assert_eq!(budget.disk_used(), 5);
    }
}
