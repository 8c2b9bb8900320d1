//! What one channel keeps beyond memory: the pieces that the disk has not taken yet, and the step
//! that it is at. A step runs on a thread of its own, and pieces gather here meanwhile, so that
//! the channel is always read. When much gathers, because the disk is slower than the agent,
//! nothing is read from that agent for a while; when that does not help, the stream whose step
//! takes so long fails, and not its neighbours.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::budget::{Budget, SpillError};
use super::channel::{Failure, PIECE};
use super::hold::Hold;
use super::progress::Progress;
use super::spill::Spill;
use super::transport::Link;

/// What the pieces of all channels of a session may cost in memory, in octets, before nothing is
/// read from its agent.
const HIGH: usize = 4 << 20;
/// Below this, reading goes on.
const LOW: usize = 1 << 20;
/// What goes to disk in one step costs so much, and perhaps one piece more.
const BATCH: usize = 1 << 20;

/// What a step came to.
pub(super) enum Done {
    /// Pieces are on disk.
    Appended,
    /// A piece came back.
    Taken(Bytes),
}

/// What happened.
pub(super) enum Event {
    /// A step on disk is done, or has failed: the stream is over its budget, or the disk fails.
    Step(Result<Done, Failure>),
    /// Nothing was read from the agent for as long as that may be.
    HeldLong,
}

type Step = JoinHandle<(Result<Done, SpillError>, Box<Spill>)>;

/// The part of one channel that is on disk or on its way there.
pub(super) struct Backlog {
    budget: Arc<Budget>,
    link: Arc<Link>,
    waiting: VecDeque<Bytes>,
    /// What the pieces in `waiting` and in the step that runs cost, in octets.
    length: usize,
    in_step: usize,
    step: Option<Step>,
    spill: Option<Box<Spill>>,
    /// Whether the last step was an append: the two kinds take turns.
    appended: bool,
    hold: Option<Hold>,
}

impl Backlog {
    /// Nothing yet.
    pub(super) fn new(budget: Arc<Budget>, link: Arc<Link>) -> Self {
        Self {
            budget,
            link,
            waiting: VecDeque::new(),
            length: 0,
            in_step: 0,
            step: None,
            spill: None,
            appended: false,
            hold: None,
        }
    }

    /// Whether nothing waits, lies on disk, or is on its way from there.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.step.is_none() && self.spill.is_none()
    }

    /// Takes a piece that found no place in memory.
    pub(super) fn push(&mut self, data: Bytes) {
        self.length += cost(&data);
        self.link.backlog.fetch_add(cost(&data), Ordering::Relaxed);
        self.waiting.push_back(data);
    }

    /// Gives the oldest piece back, if the disk never had to take any that is still there.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.step.is_some() || self.spill.is_some() {
            return None;
        }
        let data = self.waiting.pop_front()?;
        self.forget(cost(&data));
        Some(data)
    }

    /// Begins the next step, if none runs and there is one to do. `wanted`: whether something
    /// should come back from disk.
    pub(super) fn begin(&mut self, wanted: bool, owner: &Arc<Notify>, progress: &Progress) {
        if self.step.is_some() {
            return;
        }
        let comes_back = wanted && self.spill.is_some() && (self.appended || self.waiting.is_empty());
        if comes_back {
            self.appended = false;
            if let Some(mut spill) = self.spill.take() {
                self.step = Some(tokio::task::spawn_blocking(move || {
                    let taken = spill.take().map(Done::Taken);
                    (taken, spill)
                }));
            }
            return;
        }
        if self.waiting.is_empty() {
            return;
        }
        self.appended = true;
        let mut batch = Vec::new();
        while let Some(data) = self.waiting.pop_front() {
            self.in_step += cost(&data);
            batch.push(data);
            if self.in_step >= BATCH {
                break;
            }
        }
        let agent = self.link.agent.get().cloned().unwrap_or_default();
        let fresh = || Box::new(Spill::new(self.budget.clone(), owner.clone(), progress.clone(), agent));
        let mut spill = self.spill.take().unwrap_or_else(fresh);
        self.step = Some(tokio::task::spawn_blocking(move || {
            let done = spill.append(&joined(batch)).map(|()| Done::Appended);
            (done, spill)
        }));
    }

    /// Waits for what happens next; for ever, if nothing does. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        let joined = {
            let step = async {
                match &mut self.step {
                    Some(step) => step.await,
                    None => pending().await,
                }
            };
            let held = async {
                match &self.hold {
                    Some(hold) => hold.over().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                joined = step => joined,
                () = held => return Event::HeldLong,
            }
        };
        self.step = None;
        let in_step = std::mem::take(&mut self.in_step);
        self.forget(in_step);
        // A panic in a step is logged as one, and costs this stream.
        let Ok((result, spill)) = joined else { return Event::Step(Err(Failure::NoSpace)) };
        if !spill.is_empty() {
            self.spill = Some(spill);
        }
        Event::Step(result.map_err(failure))
    }

    /// Forgets everything. A step that runs ends on its own.
    pub(super) fn clear(&mut self) {
        self.hold = None;
        let files = (self.step.take(), self.spill.take());
        if files.0.is_some() || files.1.is_some() {
            // To close files of a gibibyte takes a while. Without a runtime the process is ending.
            match Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(move || drop(files))),
                Err(_) => drop(files),
            }
        }
        self.waiting.clear();
        self.in_step = 0;
        let all = self.length;
        self.forget(all);
    }

    /// Why the stream was cut for another's sake, if it was.
    pub(super) fn cut(&self) -> Option<Failure> {
        self.spill.as_ref().and_then(|spill| spill.cut()).map(failure)
    }

    /// Has less be read from the agent while too much waits.
    ///
    /// # Errors
    /// When that has not helped, and it is this stream that waits.
    pub(super) fn relieve(&mut self) -> Result<(), Failure> {
        let all = self.link.backlog.load(Ordering::Relaxed);
        if self.length == 0 || all < LOW {
            self.hold = None;
        } else if all > HIGH && self.hold.as_ref().is_none_or(Hold::is_over) {
            self.hold = None;
            self.hold = Some(self.link.clone().hold().ok_or_else(|| {
                tracing::error!(waiting = all, "the disk takes too long; an answer was cut");
                Failure::NoSpace
            })?);
        }
        Ok(())
    }

    fn forget(&mut self, octets: usize) {
        self.length -= octets;
        self.link.backlog.fetch_sub(octets, Ordering::Relaxed);
    }
}

/// What a piece costs in memory, in octets.
fn cost(data: &Bytes) -> usize {
    data.len() + PIECE
}

/// All of a batch in one piece: many small ones would each cost a write.
fn joined(mut batch: Vec<Bytes>) -> Bytes {
    if let [_] = batch[..] {
        return batch.remove(0);
    }
    let mut all = Vec::with_capacity(batch.iter().map(Bytes::len).sum());
    for data in batch {
        all.extend_from_slice(&data);
    }
    all.into()
}

fn failure(error: SpillError) -> Failure {
    match error {
        SpillError::OverBudget => Failure::TooSlow,
        SpillError::Full { .. } | SpillError::File { .. } => {
            tracing::error!(%error, "an answer was cut");
            Failure::NoSpace
        }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::Settings;

    #[tokio::test]
    async fn many_small_pieces_are_bounded_and_go_to_disk_together() {
        let limits = Settings::dev(8443, Path::new("unused")).limits;
        let budget = Budget::new(&limits, Duration::from_secs(1), std::env::temp_dir(), Arc::default());
        let link = Arc::<Link>::default();
        let mut backlog = Backlog::new(budget.clone(), link.clone());
        let mut count = 0;
        while backlog.hold.is_none() {
            backlog.push(Bytes::from_static(b"x"));
            backlog.relieve().expect("it is the first time");
            count += 1;
            assert!(count <= HIGH / PIECE, "nothing bounds them");
        }
        let progress = budget.progress();
        let mut steps = 0;
        while !backlog.waiting.is_empty() {
            backlog.begin(false, &Arc::default(), &progress);
            assert!(matches!(backlog.next().await, Event::Step(Ok(Done::Appended))));
            steps += 1;
        }
        assert!(steps <= HIGH / BATCH + 1, "{steps} steps");
        assert_eq!((backlog.length, link.backlog.load(Ordering::Relaxed)), (0, 0));
        backlog.begin(true, &Arc::default(), &progress);
        let Event::Step(Ok(Done::Taken(data))) = backlog.next().await else { panic!("nothing came back") };
        assert_eq!(data, vec![b'x'; count]);
        assert!(backlog.is_empty());
    }

    /// Files of a folder that this process has open.
    fn open_files(folder: &Path) -> usize {
        let links = std::fs::read_dir("/proc/self/fd").expect("Linux").flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        targets.filter(|target| target.starts_with(folder)).count()
    }

    #[test]
    fn files_are_closed_where_that_holds_nobody_up_and_count_until_then() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().expect("a runtime");
        let limits = Settings::dev(8443, Path::new("unused")).limits;
        let folder = tempfile::tempdir().expect("a folder");
        let limit = Duration::from_secs(1);
        let budget = Budget::new(&limits, limit, folder.path().to_owned(), Arc::default());
        let mut backlog = Backlog::new(budget.clone(), Arc::default());
        runtime.block_on(async {
            backlog.push(Bytes::from_static(b"x"));
            backlog.begin(false, &Arc::default(), &budget.progress());
            assert!(matches!(backlog.next().await, Event::Step(Ok(Done::Appended))));
            // The only thread that may wait for a disk does.
            let (go_on, told) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || told.recv().is_err());
            drop(backlog);
            assert_eq!(
                (open_files(folder.path()), budget.disk_used()),
                (1, 1),
                "closed in the runtime's thread"
            );
            drop(go_on);
            assert!(busy.await.expect("no panic"));
            tokio::task::spawn_blocking(|| ()).await.expect("no panic");
        });
        assert_eq!((open_files(folder.path()), budget.disk_used()), (0, 0));
    }
}
