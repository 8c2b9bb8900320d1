//! Takes what arrives on a channel at once, so that the session's loop never waits for the
//! channel's owner, and ends the channel when its owner has gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::backlog::{Backlog, Done, Event};
use super::channel::{Failure, Inbox, PIECE, Shared};
use super::transport::Link;
use crate::observe::Reason;

/// How long the peer may take to close a channel that nobody uses any more.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Octets that may still arrive on such a channel before it is closed from this side: more than
/// the peer may send at the largest window, because closing first costs the library memory; and
/// not many more, because they take up the agent's uplink for nobody.
const CLOSE_DISCARD: usize = 4 << 20;
/// How long nothing has to arrive on a channel that was closed from this side.
const QUIET: Duration = Duration::from_millis(250);
/// Pause between two looks at whether the owner takes anything, at the least.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

/// The task of one channel.
pub(super) struct Pump {
    pub(super) read: ChannelReadHalf,
    pub(super) write: ChannelWriteHalf<Msg>,
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    pub(super) backlog: Backlog,
    /// Counts the channel as open, as long as somebody uses it.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// For channels that nobody uses any more, and that the peer has to close.
    pub(super) closing: Arc<Semaphore>,
}

enum Step {
    Message(Option<ChannelMsg>),
    Disk(Event),
    Called,
    Look,
}

impl Pump {
    /// Runs until the channel has ended and nothing of it is left to give out.
    pub(super) async fn run(mut self) {
        let mut peer_open = true;
        let patience = self.shared.budget.stalled_after();
        let look = tokio::time::sleep(patience);
        tokio::pin!(look);
        loop {
            let step = tokio::select! {
                message = self.read.wait(), if peer_open => Step::Message(message),
                event = self.backlog.next() => Step::Disk(event),
                () = self.shared.call.notified() => Step::Called,
                () = &mut look => Step::Look,
            };
            let kept = match step {
                Step::Message(message) => {
                    peer_open &= !matches!(message, None | Some(ChannelMsg::Close));
                    self.hear(message);
                    Ok(())
                }
                Step::Disk(Event::Step(done)) => done.map(|done| self.came_back(done)),
                Step::Disk(Event::HeldLong) | Step::Called => Ok(()),
                Step::Look => {
                    let idle = self.shared.progress.idle();
                    look.as_mut().reset(Instant::now() + patience.saturating_sub(idle).max(SHORTEST_LOOK));
                    let waits = self.shared.inbox.lock().length > 0;
                    if waits && idle >= patience { Err(Failure::TooSlow) } else { Ok(()) }
                }
            };
            // The word of it may have come in the middle of a step on disk.
            let kept = self.backlog.cut().map_or(kept, Err);
            if let Err(failure) = kept.and_then(|()| self.go_on()) {
                self.fail(failure);
            }
            let (dropped, failed, waiting) = {
                let inbox = self.shared.inbox.lock();
                (inbox.dropped, inbox.failed.is_some(), inbox.on_disk)
            };
            if dropped || failed || (!peer_open && !waiting) {
                break;
            }
        }
        self.backlog.clear();
        if peer_open {
            self.close().await;
        }
    }

    fn hear(&mut self, message: Option<ChannelMsg>) {
        match message {
            Some(ChannelMsg::Data { data }) => self.keep(data),
            Some(ChannelMsg::WindowAdjusted { new_size }) => {
                self.shared.ahead.lock().note_taken(new_size, &self.link.learned);
                self.shared.writer.wake();
            }
            Some(ChannelMsg::Eof) => self.note(|inbox| inbox.ended = true),
            Some(ChannelMsg::Close) => self.note(|inbox| (inbox.ended, inbox.closed) = (true, true)),
            None => self.note(|inbox| {
                inbox.closed = true;
                inbox.severed = !inbox.ended;
            }),
            Some(_) => {}
        }
    }

    fn note(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.shared.inbox.lock());
        self.shared.reader.wake();
        self.shared.writer.wake();
    }

    fn fail(&mut self, failure: Failure) {
        self.backlog.clear();
        self.note(|inbox| {
            inbox.failed.get_or_insert(failure);
        });
        let reason = match failure {
            Failure::SessionEnded => return,
            Failure::TooSlow => Reason::VisitorTooSlow,
            Failure::NoSpace => Reason::NoSpace,
        };
        self.shared.budget.metrics.ssh.cut.one(reason);
        self.shared.cut.tell(reason);
    }

    fn keep(&mut self, data: Bytes) {
        {
            let mut inbox = self.shared.inbox.lock();
            if inbox.dropped {
                return;
            }
            let fits = inbox.length + data.len() + PIECE <= self.shared.budget.memory_per_stream();
            if !inbox.on_disk && (fits || inbox.memory.is_empty()) {
                inbox.push(data);
                drop(inbox);
                self.shared.reader.wake();
                return;
            }
            inbox.on_disk = true;
        }
        self.backlog.push(data);
    }

    /// Keeps what has come back from disk.
    fn came_back(&mut self, done: Done) {
        if let Done::Taken(data) = done {
            self.note(|inbox| inbox.push(data));
        }
    }

    /// Moves pieces towards the owner as it takes them, and begins the next step on disk.
    fn go_on(&mut self) -> Result<(), Failure> {
        let limit = self.shared.budget.memory_per_stream();
        let wanted = |inbox: &Inbox| inbox.on_disk && !inbox.dropped && inbox.length < limit / 2;
        let mut moved = false;
        let wanted = {
            let mut inbox = self.shared.inbox.lock();
            while wanted(&inbox)
                && let Some(data) = self.backlog.pop()
            {
                inbox.push(data);
                moved = true;
            }
            if inbox.on_disk && self.backlog.is_empty() {
                (inbox.on_disk, moved) = (false, true);
            }
            wanted(&inbox)
        };
        if moved {
            self.shared.reader.wake();
        }
        self.backlog.begin(wanted, &self.shared.call, &self.shared.progress);
        self.backlog.relieve()
    }

    /// Ends a channel that nobody uses any more. It no longer counts as open: others must not wait
    /// for this.
    async fn close(mut self) {
        let deadline = Instant::now() + CLOSE_WAIT;
        let mut discarded = 0;
        self.permit = None;
        let may_wait = self.closing.clone().try_acquire_owned();
        let finished = self.shared.inbox.lock().finished;
        // An error means that the session is gone, and the channel with it.
        let mut open = finished || self.write.eof().await.is_ok();
        while open && discarded <= CLOSE_DISCARD && may_wait.is_ok() {
            match tokio::time::timeout_at(deadline, self.read.wait()).await {
                Ok(Some(ChannelMsg::Data { data })) => discarded += data.len(),
                Ok(Some(ChannelMsg::Close) | None) => open = false,
                Ok(Some(_)) => {}
                Err(_) => break,
            }
        }
        if open {
            self.shared.budget.metrics.ssh.closed_first.one();
            self.link.note_closed_first();
            tracing::debug!(discarded, "closing a channel that the agent left open");
            let _ = self.write.close().await;
            // The library still sends what was queued for this channel, and never says that this
            // was all.
            let rest =
                async { while let Ok(Some(_)) = tokio::time::timeout(QUIET, self.read.wait()).await {} };
            let _ = tokio::time::timeout(CLOSE_WAIT, rest).await;
        }
    }
}
