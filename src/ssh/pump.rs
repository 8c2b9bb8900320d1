//! Takes what arrives on a channel at once, so that the session's loop never waits for the
//! channel's owner, and ends the channel when its owner has gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::time::Instant;

use super::channel::{Failure, Inbox, PIECE, Shared};
use super::spill::{Budget, Spill, SpillError};
use super::transport::Link;
use crate::observe::Reason;

/// How long the peer may take to close a channel that nobody uses any more.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Octets that may still arrive on such a channel before it is closed from this side.
const CLOSE_DISCARD: usize = 256 * 1024;
/// How long a step on disk may take before nothing more is read from the agent.
const DISK_PATIENCE: Duration = Duration::from_millis(50);
/// How long nothing may be read for that: keep-alives must get through.
const HOLD_MOST: Duration = Duration::from_secs(3);

/// Pause between two looks at whether the owner takes anything, at the least.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

/// The task of one channel.
pub(super) struct Pump {
    pub(super) read: ChannelReadHalf,
    pub(super) write: ChannelWriteHalf<Msg>,
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    pub(super) budget: Arc<Budget>,
    pub(super) spill: Option<Box<Spill>>,
}

enum Step {
    Message(Option<ChannelMsg>),
    Called,
    Look,
}

impl Pump {
    /// Runs until the channel has ended and nothing of it is left to give out.
    pub(super) async fn run(mut self) {
        let mut peer_open = true;
        let patience = self.budget.stalled_after();
        let look = tokio::time::sleep(patience);
        tokio::pin!(look);
        loop {
            let step = tokio::select! {
                message = self.read.wait(), if peer_open => Step::Message(message),
                () = self.shared.call.notified() => Step::Called,
                () = &mut look => Step::Look,
            };
            let kept = match step {
                Step::Message(message) => {
                    peer_open &= !matches!(message, None | Some(ChannelMsg::Close));
                    self.hear(message).await
                }
                Step::Called => self.refill().await,
                Step::Look => {
                    let idle = self.shared.progress.idle();
                    look.as_mut().reset(Instant::now() + patience.saturating_sub(idle).max(SHORTEST_LOOK));
                    let waits = self.shared.inbox.lock().length > 0;
                    if waits && idle >= patience { Err(Failure::TooSlow) } else { Ok(()) }
                }
            };
            if let Err(failure) = kept {
                self.spill = None;
                let _ = self.note(|inbox| {
                    inbox.failed.get_or_insert(failure);
                });
                if failure == Failure::TooSlow {
                    self.budget.metrics.ssh.cut.one(Reason::VisitorTooSlow);
                    self.shared.cut.tell();
                }
            }
            let (dropped, failed, waiting) = {
                let inbox = self.shared.inbox.lock();
                (inbox.dropped, inbox.failed.is_some(), inbox.on_disk)
            };
            if dropped || failed || (!peer_open && !waiting) {
                break;
            }
        }
        self.spill = None;
        if peer_open {
            self.close().await;
        }
    }

    async fn hear(&mut self, message: Option<ChannelMsg>) -> Result<(), Failure> {
        match message {
            Some(ChannelMsg::Data { data }) => self.keep(data).await,
            Some(ChannelMsg::WindowAdjusted { new_size }) => {
                self.shared.ahead.lock().note_taken(new_size, &self.link.learned);
                self.shared.writer.wake();
                Ok(())
            }
            Some(ChannelMsg::Eof) => self.note(|inbox| inbox.ended = true),
            Some(ChannelMsg::Close) => self.note(|inbox| (inbox.ended, inbox.closed) = (true, true)),
            None => self.note(|inbox| {
                inbox.closed = true;
                inbox.severed = !inbox.ended;
            }),
            Some(_) => Ok(()),
        }
    }

    fn note(&self, change: impl FnOnce(&mut Inbox)) -> Result<(), Failure> {
        change(&mut self.shared.inbox.lock());
        self.shared.reader.wake();
        self.shared.writer.wake();
        Ok(())
    }

    async fn keep(&mut self, data: Bytes) -> Result<(), Failure> {
        {
            let mut inbox = self.shared.inbox.lock();
            if inbox.dropped {
                return Ok(());
            }
            let fits = (inbox.length + data.len() + PIECE) as u64 <= self.budget.memory_per_stream();
            if !inbox.on_disk && (fits || inbox.memory.is_empty()) {
                inbox.push(data);
                drop(inbox);
                self.shared.reader.wake();
                return Ok(());
            }
            inbox.on_disk = true;
        }
        self.on_disk(move |spill| spill.append(&data)).await
    }

    /// Moves a piece from disk into memory when there is little there; one at a time, because the
    /// channel must be read in between.
    async fn refill(&mut self) -> Result<(), Failure> {
        let is_wanted = |inbox: &Inbox, budget: &Budget| {
            inbox.on_disk && !inbox.dropped && (inbox.length as u64) < budget.memory_per_stream() / 2
        };
        if is_wanted(&self.shared.inbox.lock(), &self.budget) {
            let (data, empty) = self.on_disk(|spill| Ok((spill.take()?, spill.is_empty()))).await?;
            let _ = self.note(|inbox| {
                inbox.push(data);
                inbox.on_disk = !empty;
            });
            if empty {
                self.spill = None;
            }
            if is_wanted(&self.shared.inbox.lock(), &self.budget) {
                self.shared.call.notify_one();
            }
        }
        if self.spill.as_ref().is_some_and(|spill| spill.is_cut()) {
            return Err(Failure::TooSlow);
        }
        Ok(())
    }

    /// Runs a blocking step on the stream's part on disk. While a disk takes its time, less is read
    /// from the agent: what comes would wait in memory.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&mut Spill) -> Result<T, SpillError> + Send + 'static,
    ) -> Result<T, Failure> {
        let fresh = || {
            let (call, progress) = (self.shared.call.clone(), self.shared.progress.clone());
            Box::new(Spill::new(self.budget.clone(), call, progress))
        };
        let mut spill = self.spill.take().unwrap_or_else(fresh);
        let mut step = tokio::task::spawn_blocking(move || (step(&mut spill), spill));
        let mut done = tokio::time::timeout(DISK_PATIENCE, &mut step).await;
        if done.is_err() {
            let _hold = self.link.clone().hold();
            done = tokio::time::timeout(HOLD_MOST, &mut step).await;
        }
        let done = match done {
            Ok(done) => done,
            Err(_) => step.await,
        };
        let Ok((result, spill)) = done else { return Err(Failure::NoSpace) };
        self.spill = Some(spill);
        result.map_err(|error| match error {
            SpillError::OverBudget => Failure::TooSlow,
            SpillError::File { .. } => {
                tracing::error!(%error, "an answer was cut");
                Failure::NoSpace
            }
        })
    }

    /// Ends a channel that nobody uses any more.
    async fn close(mut self) {
        let deadline = Instant::now() + CLOSE_WAIT;
        let mut discarded = 0;
        let finished = self.shared.inbox.lock().finished;
        // An error means that the session is gone, and the channel with it.
        let mut open = finished || self.write.eof().await.is_ok();
        while open && discarded <= CLOSE_DISCARD {
            match tokio::time::timeout_at(deadline, self.read.wait()).await {
                Ok(Some(ChannelMsg::Data { data })) => discarded += data.len(),
                Ok(Some(ChannelMsg::Close) | None) => open = false,
                Ok(Some(_)) => {}
                Err(_) => break,
            }
        }
        if open {
            self.budget.metrics.ssh.closed_first.one();
            tracing::debug!(discarded, "closing a channel that the agent left open");
            let _ = self.write.close().await;
            // The library still sends what was queued for this channel; take it until it ends.
            let _ =
                tokio::time::timeout(CLOSE_WAIT, async { while self.read.wait().await.is_some() {} }).await;
        }
    }
}
