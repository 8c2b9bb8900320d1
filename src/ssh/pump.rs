//! Takes what arrives on a channel at once, so that the session's loop never waits for the
//! channel's owner, and ends the channel when its owner has gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::time::Instant;

use super::backlog::{Backlog, Done, Event};
use super::channel::{Failure, Inbox, PIECE, Shared};
use super::ending::Ending;
use super::transport::Link;
use crate::observe::Reason;

/// Pause between two looks at whether the owner takes anything, at the least.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

/// The task of one channel.
pub(super) struct Pump {
    pub(super) read: ChannelReadHalf,
    pub(super) write: ChannelWriteHalf<Msg>,
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    pub(super) backlog: Backlog,
    /// What follows when nobody uses the channel any more.
    pub(super) ending: Ending,
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
            let is_told = self.shared.inbox.lock().finished;
            let metrics = &self.shared.budget.metrics;
            self.ending.run(self.read, self.write, is_told, &self.link, metrics).await;
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
            None => {
                // Before the stream breaks, so that its owner knows why.
                if let Some(why @ Reason::KeyRemoved) = self.link.cut_reason() {
                    self.shared.cut.tell(why);
                }
                self.note(|inbox| {
                    inbox.closed = true;
                    inbox.severed = !inbox.ended;
                });
            }
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
}
