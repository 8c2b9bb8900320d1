//! Where the unread part of an answer waits: first in memory, then in a temporary file.
//!
//! A channel's reader must always take what comes, because the SSH library would else hold up
//! every other channel of that agent. What a visitor has not taken yet lies here, within the
//! [budgets](super::budget).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Notify;

use super::budget::{Budget, GIVES_BACK, LOOK, SpillError, Usage};
use super::progress::Progress;

/// How often others are cut for the sake of a piece for which the disk has no space.
const CUTS_FOR_SPACE: usize = 3;
/// How much is read back from a file at once, in octets, at most.
const READ_BACK: usize = 128 * 1024;
/// Size at which a file is followed by the next, in octets.
const SEGMENT: u64 = 8 << 20;

/// One stream's part on disk: first in, first out, in segments that are given back as soon as
/// they were read, so that a long stream with a steady backlog does not grow. The files have no
/// names, so they vanish with the process whatever happens. The methods block: call them where
/// that is allowed.
#[derive(Debug)]
pub struct Spill {
    budget: Arc<Budget>,
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
    /// Holds nothing yet. `agent` is whose key the stream's session has, and `owner` is told when the
    /// stream is cut for another's sake.
    #[must_use]
    pub fn new(budget: Arc<Budget>, owner: Arc<Notify>, progress: Progress, agent: Arc<str>) -> Self {
        let usage = budget.enter(owner, progress, agent);
        Self { budget, usage, segments: VecDeque::new() }
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
        result.map_err(|error| SpillError::File { folder: self.budget.folder().to_owned(), error })
    }

    /// Writes when there is space again, for which others are cut. One stream after the other: those
    /// that fill the disk at the same time would cut each other, where one may be enough for all.
    fn write_on_full_disk(&mut self, data: &[u8]) -> Result<io::Result<()>, SpillError> {
        let budget = self.budget.clone();
        let _turn = loop {
            if let Some(turn) = budget.turn() {
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
        self.let_go();
        Err(why)
    }

    /// Closes the files, one after the other, each before its space counts as free.
    fn let_go(&mut self) {
        while let Some(segment) = self.segments.pop_front() {
            let octets = segment.write_at;
            drop(segment);
            self.budget.give_back(&self.usage, octets);
        }
    }

    /// Takes the next octets out; empty when there are none.
    ///
    /// # Errors
    /// When the stream was cut, or a file fails.
    pub fn take(&mut self) -> Result<Bytes, SpillError> {
        if let Some(why) = self.cut() {
            return Err(why);
        }
        self.read().map_err(|error| SpillError::File { folder: self.budget.folder().to_owned(), error })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if self.segments.back().is_none_or(|last| last.write_at >= SEGMENT) {
            let file = tempfile::tempfile_in(self.budget.folder())?;
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
        self.let_go();
        self.budget.leave(&self.usage);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::Settings;
    use crate::ssh::budget::MEMORY_LITTLE;

    const SECOND: Duration = Duration::from_secs(1);

    fn budget(stream: u64, all: u64) -> Arc<Budget> {
        let mut limits = Settings::dev(8443, Path::new("unused")).limits;
        (limits.buffer_memory, limits.buffer_disk_per_stream, limits.buffer_disk) = (16, stream, all);
        Budget::new(&limits, SECOND, std::env::temp_dir(), Arc::default())
    }

    fn spill(budget: &Arc<Budget>) -> Spill {
        of_agent(budget, "one", budget.progress())
    }

    fn of_agent(budget: &Arc<Budget>, agent: &str, progress: Progress) -> Spill {
        Spill::new(budget.clone(), Arc::default(), progress, agent.into())
    }

    /// Of a visitor who goes on reading, and has taken nothing for so long.
    fn reader(idle: Duration) -> Progress {
        let progress = Progress::new(Instant::now() - 60 * SECOND);
        progress.set_last(u64::try_from((60 * SECOND - idle).as_millis()).expect("little"));
        progress.set_taken(61_000);
        progress
    }

    /// Of a visitor who has taken nothing for so long, after their buffers were full.
    fn stalled(idle: Duration) -> Progress {
        let progress = reader(idle);
        progress.set_taken(0);
        progress
    }

    /// Appends, and drops each of the others that is cut for it.
    fn append(to: &mut Spill, data: &[u8], others: &mut Vec<Spill>) -> Result<(), SpillError> {
        std::thread::scope(|scope| {
            let appended = scope.spawn(|| to.append(data));
            while !appended.is_finished() {
                others.retain(|other| other.cut().is_none());
                std::thread::yield_now();
            }
            appended.join().expect("no panic")
        })
    }

    #[test]
    fn what_goes_in_comes_out_in_order_and_frees_its_space() {
        let budget = budget(1000, 1000);
        let mut file = spill(&budget);
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
        let budget = Budget::new(&limits, SECOND, std::env::temp_dir(), Arc::default());
        let mut file = spill(&budget);
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
        let mut file = spill(&budget);
        file.append(b"abc").expect("space");
        assert!(matches!(file.append(b"de"), Err(SpillError::OverBudget)));
        assert!(matches!(file.cut(), Some(SpillError::OverBudget)));
        drop(file);
        assert_eq!(budget.disk_used(), 0);
    }

    #[test]
    fn the_one_who_took_nothing_for_longest_is_cut_for_the_others() {
        let budget = budget(100, 10);
        let mut others: Vec<_> = [5, 9, 7]
            .map(|idle| {
                let mut other = of_agent(&budget, "one", stalled(idle * SECOND));
                other.append(b"123").expect("space");
                other
            })
            .into();
        let mut busy = of_agent(&budget, "one", reader(5 * SECOND));
        append(&mut busy, b"12", &mut others).expect("one makes room");
        assert_eq!(others.len(), 2);
        append(&mut busy, b"123", &mut others).expect("one makes room");
        let [last] = &mut others[..] else { panic!("{} are left", others.len()) };
        assert_eq!(budget.disk_used(), 8);
        assert_eq!(last.usage.progress.idle().as_secs(), 5);
        assert!(busy.cut().is_none());
    }

    #[test]
    fn a_fast_reader_is_not_cut_for_those_who_drip() {
        let budget = budget(100, 30);
        let mut fast = spill(&budget);
        fast.append(b"12345678").expect("space");
        fast.usage.progress.note_taken(false);
        // So long it is between two of its steps.
        std::thread::sleep(Duration::from_millis(3));
        let mut drippers: Vec<_> = [(9, "1234567890"), (5, "123456789012")]
            .map(|(idle, holds)| {
                let mut dripper = of_agent(&budget, "one", reader(idle * SECOND));
                dripper.append(holds.as_bytes()).expect("space");
                dripper
            })
            .into();
        let mut new = spill(&budget);
        append(&mut new, b"1", &mut drippers).expect("one makes room");
        assert!(fast.cut().is_none() && new.cut().is_none());
        // Both go on reading: it was the one who holds most.
        let [left] = &drippers[..] else { panic!("{} are left", drippers.len()) };
        assert_eq!(left.usage.progress.idle().as_secs(), 9);
    }

    #[test]
    fn an_agent_that_holds_more_than_its_part_makes_room_first() {
        let budget = budget(100, 20);
        let mut large = of_agent(&budget, "large", reader(SECOND));
        large.append(&[0; 14]).expect("space");
        let mut small = of_agent(&budget, "small", stalled(50 * SECOND));
        small.append(&[0; 6]).expect("space");
        let mut others = vec![large, small];
        let mut new = of_agent(&budget, "small", budget.progress());
        append(&mut new, b"1", &mut others).expect("one makes room");
        let [left] = &others[..] else { panic!("{} are left", others.len()) };
        assert!(left.usage.progress.idle() >= 50 * SECOND, "the small one had to make room");
    }

    #[test]
    fn space_is_free_when_the_files_are_gone_and_not_before() {
        let budget = budget(100, 10);
        let mut slow = of_agent(&budget, "one", stalled(9 * SECOND));
        slow.append(b"12345678").expect("space");
        let mut new = spill(&budget);
        std::thread::scope(|scope| {
            let appended = scope.spawn(|| new.append(b"12345"));
            while slow.cut().is_none() {
                std::thread::yield_now();
            }
            assert!(slow.take().is_err());
            assert_eq!(budget.disk_used(), 8, "counted as free too early");
            drop(slow);
            appended.join().expect("no panic").expect("there is space");
        });
        assert_eq!(budget.disk_used(), 5);
    }
}
