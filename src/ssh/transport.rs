//! What lies between the SSH library and the connection under it.
//!
//! The library writes out its whole buffer before it reads again, so two peers that both do so
//! dead-lock under load. Here writes go to a queue with its own task, so that a write never
//! waits and reads go on. Bounds: a soft mark, at which channels stop handing data over, and a
//! hard cap, at which the session ends. The same place holds the kill switch, the watchdog over
//! a peer that takes nothing, the counters, and the peer's version line.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::ahead::Learned;
use super::ending::ClosedFirst;
use super::hold::Holding;
use super::queue::{Queue, Queues};
use crate::net::{Duplex, Tasks};
use crate::observe::Reason;

/// Queued octets at which channels stop handing data over.
const SOFT_MARK: usize = 128 * 1024;
/// Queued octets at which the session ends. What a session may queue past the soft mark is one
/// packet of at most 32 KiB a channel, and the library's own messages.
const HARD_CAP: usize = 24 * 1024 * 1024;
/// How long the peer may take nothing while something is queued for it.
const STALL: Duration = Duration::from_secs(60);
/// How long a link that was cut still writes, and then says goodbye.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Longest version line (RFC 4253, section 4.2).
const VERSION_LINE: usize = 255;

/// The stream that the SSH library drives.
pub struct Transport<S> {
    read: ReadHalf<S>,
    link: Arc<Link>,
    /// The link's number among all.
    number: u64,
    /// Octets still to come from the library that were sent already.
    said: usize,
}

impl<S> Transport<S> {
    /// Swallows the next `count` octets that are written: they were sent already.
    pub fn have_said(&mut self, count: usize) {
        self.said = count;
    }
}

/// The connection under a session, as the rest of the room sees it.
#[derive(Debug, Default)]
pub struct Link {
    queue: Mutex<Queue>,
    /// Those of all sessions.
    queues: Arc<Queues>,
    more: Notify,
    drained: Notify,
    arrived: Notify,
    dead: AtomicBool,
    closed: CancellationToken,
    died: Mutex<Option<Reason>>,
    pub(super) reader: AtomicWaker,
    /// How many want nothing to be read.
    pub(super) holds: AtomicUsize,
    pub(super) holding: Mutex<Holding>,
    /// The key that its agent has shown.
    pub(super) agent: OnceLock<Arc<str>>,
    /// Octets that wait in memory for the disk, of all channels.
    pub(super) backlog: AtomicUsize,
    /// What uploads have learned of this agent.
    pub(super) learned: Learned,
    /// How often visitors' streams have sent something to this agent.
    pub(super) asked: AtomicU64,
    /// Channels that this side closed before the peer did.
    /// The channels that this side has closed before the peer did.
    pub closed_first: ClosedFirst,
    received: AtomicU64,
    sent: AtomicU64,
    version: Mutex<Vec<u8>>,
}

/// Puts a transport on a connection. Its writing task ends with the transport, or when the link
/// is cut. What waits counts among `queues`.
pub fn transport<S: Duplex + 'static>(
    io: S,
    tasks: &Tasks,
    queues: &Arc<Queues>,
) -> (Transport<S>, Arc<Link>) {
    let (read, write) = tokio::io::split(io);
    let link = Arc::new(Link { queues: queues.clone(), ..Link::default() });
    let number = queues.enter(&link);
    let writer = Writer(link.clone());
    tasks.spawn("ssh writer", async move { writer.0.write_out(write).await });
    (Transport { read, link: link.clone(), number, said: 0 }, link)
}

/// What is left when nobody writes any more counts no more.
struct Writer(Arc<Link>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.queue.lock().write_off(&self.0.queues);
    }
}

impl Link {
    /// Ends the connection: the library's next read fails. The first reason stays.
    pub fn cut(&self, reason: Reason) {
        self.died.lock().get_or_insert(reason);
        self.die();
        self.reader.wake();
    }

    /// Ends the connection, and what is not on its way yet is lost.
    pub(super) fn give_up(&self, reason: Reason) {
        self.cut(reason);
        self.queue.lock().write_off(&self.queues);
    }

    /// Octets that wait to be sent.
    pub(super) fn queued(&self) -> usize {
        self.queue.lock().length()
    }

    fn die(&self) {
        self.dead.store(true, Ordering::Release);
        self.closed.cancel();
        self.more.notify_one();
        self.drained.notify_waiters();
    }

    /// Resolves when the connection has ended or was cut. Cancel safe.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Notes why the connection is about to end, for those whose streams end with it.
    pub fn note_ending(&self, reason: Reason) {
        self.died.lock().get_or_insert(reason);
    }

    /// Why it was cut, if it was, or is about to end.
    pub fn cut_reason(&self) -> Option<Reason> {
        *self.died.lock()
    }

    /// Whether the connection has ended or was cut.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Whether more may be handed over now.
    pub fn has_room(&self) -> bool {
        self.is_dead() || self.queue.lock().length() < SOFT_MARK
    }

    /// Resolves when more may be handed over, or the link is dead. Cancel safe.
    pub async fn room(self: Arc<Self>) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.has_room() {
                return;
            }
            drained.await;
        }
    }

    /// Resolves when something more has arrived from the peer. Cancel safe.
    pub async fn received_more(&self) {
        self.arrived.notified().await;
    }

    /// Octets received from the peer, and sent to it.
    pub fn counts(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// The software in the peer's version line, such as `OpenSSH_9.2p1`; empty until it came.
    pub fn software(&self) -> String {
        let version = self.version.lock();
        let line = String::from_utf8_lossy(&version);
        let line = line.lines().find(|line| line.starts_with("SSH-")).unwrap_or_default();
        line.splitn(3, '-').nth(2).unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
    }

    /// Writes what is queued until the transport is finished; a link that was cut has
    /// [`LAST_WORDS`] for what is queued still.
    async fn write_out<S: Duplex>(&self, mut write: WriteHalf<S>) {
        tokio::select! {
            () = self.write_queue(&mut write) => {}
            () = async {
                self.closed().await;
                tokio::time::sleep(LAST_WORDS).await;
            } => {}
        }
        // A peer that is told why the session ends closes it. Closing first would break its next
        // write, and some clients then never read what they were told.
        let _ = tokio::time::timeout(LAST_WORDS, self.closed()).await;
        // The peer may be gone; then there is nobody to say goodbye to.
        let _ = tokio::time::timeout(LAST_WORDS, write.shutdown()).await;
    }

    async fn write_queue<S: Duplex>(&self, write: &mut WriteHalf<S>) {
        loop {
            let chunk = {
                let mut queue = self.queue.lock();
                let chunk = queue.waiting.split().freeze();
                queue.in_flight = chunk.len();
                if chunk.is_empty() && (queue.finished || self.is_dead()) {
                    return;
                }
                chunk
            };
            if chunk.is_empty() {
                self.forget_space();
                self.more.notified().await;
                continue;
            }
            if let Err(reason) = self.write_chunk(write, &chunk).await {
                return self.cut(reason);
            }
            self.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }

    /// An idle session keeps no buffer.
    fn forget_space(&self) {
        let mut queue = self.queue.lock();
        if queue.waiting.is_empty() {
            queue.waiting = bytes::BytesMut::new();
        }
    }

    /// Writes one chunk, and lets those who wait for room go on as it shrinks.
    async fn write_chunk<S: Duplex>(&self, write: &mut WriteHalf<S>, chunk: &[u8]) -> Result<(), Reason> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let written = tokio::time::timeout(STALL, write.write(rest))
                .await
                .map_err(|_| Reason::AgentStalled)?
                .map_err(|_| Reason::ConnectionLost)?;
            if written == 0 {
                return Err(Reason::ConnectionLost);
            }
            rest = &rest[written..];
            {
                let mut queue = self.queue.lock();
                queue.in_flight = rest.len();
                self.queues.count(&mut queue);
            }
            if self.has_room() {
                self.drained.notify_waiters();
            }
        }
        tokio::time::timeout(STALL, write.flush())
            .await
            .map_err(|_| Reason::AgentStalled)?
            .map_err(|_| Reason::ConnectionLost)
    }

    fn note_version(&self, bytes: &[u8]) {
        let mut version = self.version.lock();
        if version.starts_with(b"SSH-") && version.ends_with(b"\n") {
            return;
        }
        let room = VERSION_LINE.saturating_sub(version.len());
        version.extend_from_slice(&bytes[..bytes.len().min(room)]);
        // Only the line stays, once it is there.
        let line = version.split_inclusive(|&octet| octet == b'\n').find(|line| line.starts_with(b"SSH-"));
        if let Some(line) = line.filter(|line| line.ends_with(b"\n")) {
            *version = line.to_vec();
        }
    }
}

impl<S: Duplex> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.link.reader.register(cx.waker());
        if self.link.is_dead() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.link.holds.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.read).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = result {
            let new = &buf.filled()[before..];
            let earlier = self.link.received.fetch_add(new.len() as u64, Ordering::Relaxed);
            self.link.arrived.notify_waiters();
            if earlier < VERSION_LINE as u64 {
                self.link.note_version(new);
            }
        }
        result
    }
}

impl<S: Duplex> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.link.is_dead() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.said > 0 {
            let count = buf.len().min(self.said);
            self.said -= count;
            return Poll::Ready(Ok(count));
        }
        let mut queue = self.link.queue.lock();
        if queue.length() + buf.len() > HARD_CAP {
            drop(queue);
            self.link.give_up(Reason::AgentStalled);
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        queue.waiting.extend_from_slice(buf);
        self.link.queues.count(&mut queue);
        drop(queue);
        self.link.queues.keep_bound();
        self.link.more.notify_one();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.queue.lock().finished = true;
        self.link.more.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl<S> Drop for Transport<S> {
    fn drop(&mut self) {
        self.link.queues.leave(self.number);
        self.link.queue.lock().finished = true;
        self.link.die();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_write_never_waits_and_a_cut_ends_the_read() {
        let (near, mut far) = tokio::io::duplex(16);
        let tasks = Tasks::new();
        let (mut transport, link) = transport(near, &tasks, &Arc::default());
        let text = vec![b'x'; SOFT_MARK + 1];
        transport.write_all(&text).await.expect("queued");
        assert!(!link.has_room());
        let mut back = vec![0; text.len()];
        far.read_exact(&mut back).await.expect("open");
        link.clone().room().await;
        let mut line = [0; 27];
        let (wrote, read) =
            tokio::join!(far.write_all(b"SSH-2.0-Probe_1.0 comment\r\n"), transport.read_exact(&mut line));
        assert!(wrote.is_ok() && read.is_ok());
        assert_eq!(link.software(), "Probe_1.0 comment");
        let cutter = link.clone();
        let (read, ()) = tokio::join!(transport.read_u8(), async move { cutter.cut(Reason::TakenOver) });
        assert!(read.is_err());
        assert_eq!(link.cut_reason(), Some(Reason::TakenOver));
    }

    #[test]
    fn only_the_version_line_is_kept() {
        for pieces in [
            &["SSH-2.0-Probe_1.0 comment\r\n\0\0\u{2}list\n"][..],
            &["hello\n", "SSH-2.0-Pro", "be_1.0 comment\r", "\n", "more\n"],
        ] {
            let link = Link::default();
            for piece in pieces {
                link.note_version(piece.as_bytes());
            }
            assert_eq!(link.software(), "Probe_1.0 comment", "{pieces:?}");
            assert_eq!(link.version.lock().len(), "SSH-2.0-Probe_1.0 comment\r\n".len(), "{pieces:?}");
        }
        let link = Link::default();
        (0..100).for_each(|_| link.note_version(b"no version\n"));
        assert_eq!((link.software(), link.version.lock().len()), (String::new(), VERSION_LINE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut() {
        let (near, _far) = tokio::io::duplex(16);
        let tasks = Tasks::new();
        let (mut transport, link) = transport(near, &tasks, &Arc::default());
        transport.write_all(&[0; 64]).await.expect("queued");
        assert!(transport.read_u8().await.is_err());
        assert_eq!(link.cut_reason(), Some(Reason::AgentStalled));
    }

    #[tokio::test]
    async fn past_the_sum_who_has_left_most_is_cut() {
        let (tasks, queues) = (Tasks::new(), Arc::new(Queues::new(1 << 20)));
        let ((near, mut far), (other, _deaf)) = (tokio::io::duplex(16), tokio::io::duplex(16));
        let (mut first, link) = transport(near, &tasks, &queues);
        let (mut second, cut) = transport(other, &tasks, &queues);
        let text = vec![b'x'; 300 << 10];
        first.write_all(&text).await.expect("queued");
        second.write_all(&vec![b'x'; 700 << 10]).await.expect("queued");
        first.write_all(&text).await.expect("it has left less");
        assert_eq!((link.cut_reason(), cut.cut_reason()), (None, Some(Reason::AgentStalled)));
        assert!(second.write_all(b"x").await.is_err());
        let mut back = vec![0; 2 * text.len()];
        far.read_exact(&mut back).await.expect("open");
        first.write_all(&vec![b'x'; 900 << 10]).await.expect("there is space again");
        drop((first, second, far));
        tasks.begin_drain();
        tasks.all_ended().await;
        assert_eq!(queues.used(), 0, "not all was given back");
    }

    #[tokio::test]
    async fn one_session_queues_no_more_than_its_own_bound() {
        let (near, _far) = tokio::io::duplex(16);
        let (mut transport, link) = transport(near, &Tasks::new(), &Arc::default());
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..24 {
            transport.write_all(&piece).await.expect("queued");
        }
        assert!(transport.write_all(&piece).await.is_err());
        assert_eq!(link.cut_reason(), Some(Reason::AgentStalled));
        assert!(link.queued() <= 1 << 20, "what can never be sent is kept");
    }
}
