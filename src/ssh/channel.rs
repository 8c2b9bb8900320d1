//! An SSH channel as a byte stream that never holds anybody else up.
//!
//! A task takes whatever arrives on the channel at once and keeps it for the visitor
//! ([`crate::ssh::spill`]); the stream's owner reads from there. The other way, a write waits
//! for the peer's window and for room in the session's transport. When the owner drops the
//! stream, the task ends the channel so that the peer closes first, which costs the SSH library
//! no memory, and closes it itself when the peer does not.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use russh::Channel;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use super::ahead::Ahead;
use super::backlog::Backlog;
use super::budget::Budget;
use super::ending::Ending;
use super::progress::Progress;
use super::pump::Pump;

use super::transport::Link;
use crate::net::Tasks;
use crate::observe::Reason;
use crate::registry::Cut;

/// What keeping one piece costs beside its octets, so that many small ones count as well.
pub(super) const PIECE: usize = 128;

type Writer = Pin<Box<dyn AsyncWrite + Send>>;
type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The owner's end of a channel.
pub struct ChannelStream {
    shared: Arc<Shared>,
    link: Arc<Link>,
    writer: Writer,
    /// Whether the library holds a piece that it could not pass on yet; it must be asked again
    /// then, whatever else waits, because it may hold a place in the session's queue.
    is_writing: bool,
    wait: Option<Wait>,
    /// Runs while the agent has taken too little of what was sent.
    patience: Option<Pin<Box<Sleep>>>,
}

/// What the owner's end and the task share.
pub(super) struct Shared {
    pub(super) inbox: Mutex<Inbox>,
    pub(super) reader: AtomicWaker,
    pub(super) writer: AtomicWaker,
    /// Wakes the task: the owner wants more from disk, or is gone.
    pub(super) call: Arc<Notify>,
    /// What is on its way to the agent.
    pub(super) ahead: Mutex<Ahead>,
    /// When the owner last took something.
    pub(super) progress: Progress,
    pub(super) budget: Arc<Budget>,
    /// Tells an owner who does not read that there is no more to read.
    pub(super) cut: Cut,
}

/// What has arrived and was not taken yet.
pub(super) struct Inbox {
    budget: Arc<Budget>,
    progress: Progress,
    pub(super) memory: VecDeque<Bytes>,
    /// What `memory` costs, in octets; changed through [`Inbox::push`] and [`Inbox::forget`].
    pub(super) length: usize,
    /// Whether more lies on disk, behind what is in memory.
    pub(super) on_disk: bool,
    /// The peer will send no more.
    pub(super) ended: bool,
    /// The peer takes no more.
    pub(super) closed: bool,
    /// The session ended under the channel: what came before it counts, but it is not all.
    pub(super) severed: bool,
    pub(super) failed: Option<Failure>,
    /// The peer was told that no more is coming.
    pub(super) finished: bool,
    pub(super) dropped: bool,
}

impl Inbox {
    fn new(budget: Arc<Budget>, progress: Progress) -> Self {
        Self {
            budget,
            progress,
            memory: VecDeque::new(),
            length: 0,
            on_disk: false,
            ended: false,
            closed: false,
            severed: false,
            failed: None,
            finished: false,
            dropped: false,
        }
    }

    /// Appends what the owner may take next.
    pub(super) fn push(&mut self, data: Bytes) {
        if self.memory.is_empty() {
            // The owner had nothing to take until now, wherever it was.
            self.progress.note_offer();
        }
        let cost = data.len() + PIECE;
        self.length += cost;
        self.budget.note_memory(cost);
        self.memory.push_back(data);
    }

    fn forget(&mut self, octets: usize) {
        self.length -= octets;
        self.budget.forget_memory(octets);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.forget(self.length);
    }
}

/// Why a stream broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The session under it ended.
    #[error("the agent's session ended")]
    SessionEnded,
    /// Too much was unread.
    #[error("too much of the answer was unread for too long ({})", Reason::VisitorTooSlow)]
    TooSlow,
    /// The temporary file failed.
    #[error("the gateway could not keep the unread part of the answer")]
    NoSpace,
}

/// Makes a stream of an open channel. `cut` tells when the stream fails because too much of it is
/// unread, and `ending` is what follows when the stream was dropped.
pub fn stream(
    channel: Channel<Msg>,
    link: Arc<Link>,
    budget: Arc<Budget>,
    tasks: &Tasks,
    ending: Ending,
    cut: Cut,
) -> ChannelStream {
    let (read, write) = channel.split();
    let progress = budget.progress();
    let shared = Arc::new(Shared {
        inbox: Mutex::new(Inbox::new(budget.clone(), progress.clone())),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
        call: Arc::default(),
        ahead: Mutex::new(Ahead::new()),
        progress,
        budget: budget.clone(),
        cut,
    });
    let writer = Box::pin(write.make_writer());
    let pump = Pump {
        read,
        write,
        shared: shared.clone(),
        link: link.clone(),
        backlog: Backlog::new(budget, link.clone()),
        ending,
    };
    tasks.spawn("ssh channel", pump.run());
    ChannelStream { shared, link, writer, is_writing: false, wait: None, patience: None }
}

impl AsyncRead for ChannelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.reader.register(cx.waker());
        let mut inbox = self.shared.inbox.lock();
        let (mut taken, mut cost) = (0, 0);
        while buf.remaining() > 0 {
            let Some(first) = inbox.memory.front_mut() else { break };
            let count = first.len().min(buf.remaining());
            buf.put_slice(&first[..count]);
            first.advance(count);
            let is_used_up = first.is_empty();
            if is_used_up {
                inbox.memory.pop_front();
                cost += PIECE;
            }
            taken += count;
        }
        inbox.forget(cost + taken);
        if taken > 0 {
            self.shared.progress.note_taken(inbox.memory.is_empty());
        }
        let on_disk = inbox.on_disk;
        let failure = inbox.failed.or((inbox.severed && !on_disk).then_some(Failure::SessionEnded));
        let ended = inbox.ended && !on_disk;
        drop(inbox);
        if on_disk {
            self.shared.call.notify_one();
        }
        // What was received is given out before it is said how it ended.
        match failure {
            _ if taken > 0 || buf.remaining() == 0 => Poll::Ready(Ok(())),
            Some(failure) => Poll::Ready(Err(failure.into())),
            None if ended => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl ChannelStream {
    fn check_open(&self, cx: &Context<'_>) -> io::Result<()> {
        self.shared.writer.register(cx.waker());
        let inbox = self.shared.inbox.lock();
        match inbox.failed {
            Some(failure) => Err(failure.into()),
            None if inbox.closed => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }

    /// Waits until the agent has taken enough of what was sent before. The task wakes the writer.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut ahead = self.shared.ahead.lock();
            if !ahead.is_full(&self.link.learned) {
                drop(ahead);
                self.patience = None;
                return Poll::Ready(());
            }
            let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(ahead.patience())));
            ready!(patience.as_mut().poll(cx));
            ahead.grow(&self.link.learned);
            drop(ahead);
            self.patience = None;
        }
    }

    /// Waits for room in the session's transport.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wait.is_none() {
            if self.link.has_room() {
                return Poll::Ready(());
            }
            self.wait = Some(Box::pin(self.link.clone().room()));
        }
        if let Some(wait) = self.wait.as_mut() {
            ready!(wait.as_mut().poll(cx));
        }
        self.wait = None;
        Poll::Ready(())
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !self.is_writing {
            ready!(self.poll_taken(cx));
            ready!(self.poll_room(cx));
        }
        let written = self.writer.as_mut().poll_write(cx, buf);
        if let Poll::Ready(Ok(octets)) = written {
            self.shared.ahead.lock().note_sent(octets);
            self.link.asked.fetch_add(1, Ordering::Relaxed);
        }
        self.is_writing = written.is_pending();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.check_open(cx).is_err() {
            return Poll::Ready(Ok(()));
        }
        if self.shared.inbox.lock().finished {
            return Poll::Ready(Ok(()));
        }
        let done = ready!(self.writer.as_mut().poll_shutdown(cx));
        self.shared.inbox.lock().finished = true;
        Poll::Ready(done)
    }
}

impl Drop for ChannelStream {
    fn drop(&mut self) {
        let mut inbox = self.shared.inbox.lock();
        inbox.dropped = true;
        inbox.memory.clear();
        let all = inbox.length;
        inbox.forget(all);
        drop(inbox);
        self.shared.call.notify_one();
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure {
            Failure::SessionEnded => io::ErrorKind::ConnectionReset,
            Failure::TooSlow => io::ErrorKind::TimedOut,
            Failure::NoSpace => io::ErrorKind::StorageFull,
        };
        Self::new(kind, failure)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::Settings;

    #[test]
    fn waiting_for_the_disk_is_no_pause_of_the_visitor() {
        let limits = Settings::dev(8443, Path::new("unused")).limits;
        let budget = Budget::new(&limits, Duration::from_secs(1), std::env::temp_dir(), Arc::default());
        let progress = Progress::new(Instant::now() - Duration::from_secs(3));
        // All was taken long ago; more of it comes back from disk only now.
        progress.set_last(0);
        let mut inbox = Inbox::new(budget, progress.clone());
        inbox.on_disk = true;
        inbox.push(Bytes::from_static(b"late"));
        assert!(progress.idle() < Duration::from_secs(1));
        progress.note_taken(false);
        assert!(progress.idle() < Duration::from_secs(1));
        // What is there already is no new offer.
        progress.set_last(0);
        inbox.push(Bytes::from_static(b"more"));
        assert!(progress.idle() >= Duration::from_secs(3));
    }
}
