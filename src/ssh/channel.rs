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
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::spill::{Budget, Spill, SpillError};
use super::transport::Link;
use crate::net::Tasks;
use crate::observe::Reason;

/// How long the peer may take to close a channel that nobody uses any more.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Octets that may still arrive on such a channel before it is closed from this side.
const CLOSE_DISCARD: usize = 256 * 1024;

type Writer = Pin<Box<dyn AsyncWrite + Send>>;
type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The owner's end of a channel.
pub struct ChannelStream {
    shared: Arc<Shared>,
    link: Arc<Link>,
    writer: Writer,
    wait: Option<Wait>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Wakes the task: the owner wants more from disk, or is gone.
    call: Arc<Notify>,
}

#[derive(Default)]
struct Inbox {
    memory: VecDeque<Bytes>,
    length: usize,
    /// Whether more lies on disk, behind what is in memory.
    on_disk: bool,
    /// The peer will send no more.
    ended: bool,
    /// The peer takes no more.
    closed: bool,
    /// The session ended under the channel: what came before it counts, but it is not all.
    severed: bool,
    failed: Option<Failure>,
    /// The peer was told that no more is coming.
    finished: bool,
    dropped: bool,
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

/// Makes a stream of an open channel. `permit` is held until the channel is closed.
pub fn stream(
    channel: Channel<Msg>,
    link: Arc<Link>,
    budget: Arc<Budget>,
    tasks: &Tasks,
    permit: OwnedSemaphorePermit,
) -> ChannelStream {
    let (read, write) = channel.split();
    let shared = Arc::new(Shared {
        inbox: Mutex::default(),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
        call: Arc::default(),
    });
    let writer = Box::pin(write.make_writer());
    let pump = Pump { read, write, shared: shared.clone(), budget, spill: None };
    tasks.spawn("ssh channel", async move {
        pump.run().await;
        drop(permit);
    });
    ChannelStream { shared, link, writer, wait: None }
}

/// Takes what arrives, so that the session's loop never waits for this channel's owner.
struct Pump {
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    shared: Arc<Shared>,
    budget: Arc<Budget>,
    spill: Option<Box<Spill>>,
}

enum Step {
    Message(Option<ChannelMsg>),
    Called,
}

impl Pump {
    async fn run(mut self) {
        let mut peer_open = true;
        loop {
            let step = if peer_open {
                tokio::select! {
                    message = self.read.wait() => Step::Message(message),
                    () = self.shared.call.notified() => Step::Called,
                }
            } else {
                self.shared.call.notified().await;
                Step::Called
            };
            let kept = match step {
                Step::Message(Some(ChannelMsg::Data { data })) => self.keep(data).await,
                Step::Message(Some(ChannelMsg::Eof)) => self.note(|inbox| inbox.ended = true),
                Step::Message(Some(ChannelMsg::Close)) => {
                    peer_open = false;
                    self.note(|inbox| (inbox.ended, inbox.closed) = (true, true))
                }
                Step::Message(None) => {
                    peer_open = false;
                    self.note(|inbox| {
                        inbox.closed = true;
                        inbox.severed = !inbox.ended;
                    })
                }
                Step::Message(Some(_)) => Ok(()),
                Step::Called => self.refill().await,
            };
            if let Err(failure) = kept {
                self.spill = None;
                let _ = self.note(|inbox| {
                    inbox.failed.get_or_insert(failure);
                });
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
            let fits = inbox.length as u64 + data.len() as u64 <= self.budget.memory_per_stream();
            if !inbox.on_disk && (fits || inbox.memory.is_empty()) {
                inbox.length += data.len();
                inbox.memory.push_back(data);
                drop(inbox);
                self.shared.reader.wake();
                return Ok(());
            }
            inbox.on_disk = true;
        }
        self.on_disk(move |spill| spill.append(&data)).await
    }

    /// Moves from disk into memory while there is little there.
    async fn refill(&mut self) -> Result<(), Failure> {
        while {
            let inbox = self.shared.inbox.lock();
            inbox.on_disk && !inbox.dropped && (inbox.length as u64) < self.budget.memory_per_stream() / 2
        } {
            let (data, empty) = self.on_disk(|spill| Ok((spill.take()?, spill.is_empty()))).await?;
            let _ = self.note(|inbox| {
                inbox.length += data.len();
                inbox.memory.push_back(data);
                inbox.on_disk = !empty;
            });
            if empty {
                self.spill = None;
            }
        }
        if self.spill.as_ref().is_some_and(|spill| spill.is_cut()) {
            return Err(Failure::TooSlow);
        }
        Ok(())
    }

    /// Runs a blocking step on the stream's part on disk.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&mut Spill) -> Result<T, SpillError> + Send + 'static,
    ) -> Result<T, Failure> {
        let fresh = || Box::new(Spill::new(self.budget.clone(), self.shared.call.clone()));
        let mut spill = self.spill.take().unwrap_or_else(fresh);
        let done = tokio::task::spawn_blocking(move || (step(&mut spill), spill)).await;
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
            tracing::debug!(discarded, "closing a channel that the agent left open");
            let _ = self.write.close().await;
            // The library still sends what was queued for this channel; take it until it ends.
            let _ =
                tokio::time::timeout(CLOSE_WAIT, async { while self.read.wait().await.is_some() {} }).await;
        }
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.reader.register(cx.waker());
        let mut inbox = self.shared.inbox.lock();
        let mut taken = 0;
        while buf.remaining() > 0 {
            let Some(first) = inbox.memory.front_mut() else { break };
            let count = first.len().min(buf.remaining());
            buf.put_slice(&first[..count]);
            first.advance(count);
            if first.is_empty() {
                inbox.memory.pop_front();
            }
            taken += count;
        }
        inbox.length -= taken;
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
        ready!(self.poll_room(cx));
        self.writer.as_mut().poll_write(cx, buf)
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
        inbox.length = 0;
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
