//! Stands between the wire and the HTTP/1.1 parser, and lets whole, unambiguous heads through.
//!
//! A head that [`head`](super::head) refuses is never shown to the parser. In its place the
//! parser gets a head of our own, and the [`Gate`] tells the service which request that is and
//! what was wrong: so a refusal is answered in its turn, by the same code as any other error.
//! Bodies are only counted, not looked at: the guard must know where the next head begins.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use super::head::{Chunks, Fault, Finder, Follows, check};
use crate::net::Duplex;

/// Octets taken off the wire while it is open whether a request switches protocols.
const HELD_MAX: usize = 8 * 1024;
/// Octets that a waiting connection has room for; most heads of programs fit.
const HEAD_FIRST: usize = 512;
/// Stands in for a refused head.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// What the guard and the service tell each other.
#[derive(Debug, Default)]
pub(super) struct Gate {
    begun: AtomicU64,
    answered: AtomicU64,
    switched: AtomicBool,
    is_refused: AtomicBool,
    refusal: Mutex<Option<(u64, Fault)>>,
    waker: AtomicWaker,
}

impl Gate {
    /// Counts a request; the first is 1. When the guard refused this one, says why.
    pub(super) fn begin(&self) -> (u64, Option<Fault>) {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.is_refused.load(Ordering::Acquire) {
            return (number, None);
        }
        let refusal = *self.refusal.lock();
        (number, refusal.filter(|(refused, _)| *refused == number).map(|(_, fault)| fault))
    }

    /// Says that the oldest request without an answer has one, and whether it switches protocols.
    pub(super) fn answer(&self, switches: bool) {
        if switches {
            self.switched.store(true, Ordering::Relaxed);
        }
        self.answered.fetch_add(1, Ordering::Release);
        self.waker.wake();
    }
}

/// The wire, as far as the parser may see it.
pub(super) struct Guard<S> {
    wire: S,
    gate: Arc<Gate>,
    state: State,
    finder: Finder,
    /// The beginning of a head, or what came before it was known what it is.
    held: BytesMut,
    /// Checked, and waiting for the parser to take it.
    ready: Bytes,
    heads: u64,
    head_max: usize,
    head_timeout: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum State {
    Head,
    Body(u64),
    Chunked(Chunks),
    /// A body was malformed.
    Broken(Fault),
    /// A protocol switch was asked for and not yet answered.
    Undecided,
    /// Another protocol.
    Switched,
    /// A head was refused; the stand-in was passed on (`true`) or not yet.
    Refused(bool),
}

impl<S: Duplex> Guard<S> {
    /// Guards `wire`. A head may have `head_max` octets, and take `head_timeout` from its first.
    pub(super) fn new(wire: S, head_max: usize, head_timeout: Duration) -> (Self, Arc<Gate>) {
        let gate = Arc::<Gate>::default();
        let guard = Self {
            wire,
            gate: gate.clone(),
            state: State::Head,
            finder: Finder::default(),
            held: BytesMut::new(),
            ready: Bytes::new(),
            heads: 0,
            head_max,
            head_timeout,
            deadline: None,
        };
        (guard, gate)
    }

    /// Whether everything that was received belongs to requests that were read whole.
    pub(super) fn is_between_requests(&self) -> bool {
        matches!(self.state, State::Head) && self.held.is_empty() && self.ready.is_empty()
    }

    /// Whether what comes next is a head, or the rest of one.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Gives back what the parser has read and not used.
    pub(super) fn put_back(&mut self, unused: Bytes) {
        if !unused.is_empty() {
            let mut all = BytesMut::from(&unused[..]);
            all.extend_from_slice(&self.ready);
            self.ready = all.freeze();
        }
    }

    /// Waits for the first bytes of the next request, while no parser does. `false`: the visitor has
    /// closed. Cancel safe.
    ///
    /// # Errors
    /// When the wire fails.
    pub(super) async fn woken(&mut self) -> io::Result<bool> {
        self.held.reserve(HEAD_FIRST);
        if poll_fn(|cx| poll_read_buf(Pin::new(&mut self.wire), cx, &mut self.held)).await? == 0 {
            return Ok(false);
        }
        self.deadline = Some(Box::pin(tokio::time::sleep(self.head_timeout)));
        self.inspect_held();
        Ok(true)
    }

    /// The wire itself, to read on without looking.
    pub(super) fn into_inner(self) -> S {
        self.wire
    }

    /// Looks at new bytes: so many, from the first, may go on to the parser. The rest, if any, is
    /// held or was refused.
    fn inspect(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.state {
                State::Head => match self.finder.find(rest) {
                    // An empty line in front of a request; the parser skips it as well.
                    Ok(Some(2)) => at += 2,
                    Ok(Some(length)) if length > self.head_max => return self.refuse(Fault::TooLarge, at),
                    Ok(Some(length)) => match check(&rest[..length]) {
                        Ok(follows) => {
                            at += length;
                            self.begin(follows);
                        }
                        Err(fault) => return self.refuse(fault, at),
                    },
                    Ok(None) if rest.len() > self.head_max => return self.refuse(Fault::TooLarge, at),
                    Ok(None) => return self.hold(rest, at),
                    Err(fault) => return self.refuse(fault, at),
                },
                State::Body(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    at += count;
                    *left -= count as u64;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Chunked(chunks) => match chunks.feed(rest) {
                    Ok((count, ended)) => {
                        at += count;
                        if ended {
                            self.state = State::Head;
                        }
                    }
                    Err(fault) => {
                        self.state = State::Broken(fault);
                        return at;
                    }
                },
                State::Undecided => return self.hold(rest, at),
                State::Switched => return bytes.len(),
                State::Broken(_) | State::Refused(_) => return at,
            }
        }
        at
    }

    fn begin(&mut self, follows: Follows) {
        self.heads += 1;
        self.deadline = None;
        self.state = match follows {
            Follows::Head => State::Head,
            Follows::Length(length) => State::Body(length),
            Follows::Chunked => State::Chunked(Chunks::new()),
            Follows::Perhaps => State::Undecided,
        };
    }

    fn hold(&mut self, rest: &[u8], passed: usize) -> usize {
        self.held.extend_from_slice(rest);
        if matches!(self.state, State::Head) && self.deadline.is_none() {
            self.deadline = Some(Box::pin(tokio::time::sleep(self.head_timeout)));
        }
        passed
    }

    fn refuse(&mut self, fault: Fault, passed: usize) -> usize {
        *self.gate.refusal.lock() = Some((self.heads + 1, fault));
        self.gate.is_refused.store(true, Ordering::Release);
        self.state = State::Refused(false);
        self.held = BytesMut::new();
        self.deadline = None;
        passed
    }

    /// Looks again at what is held, now that there is more of it or that it is known what it is.
    fn inspect_held(&mut self) {
        if matches!(self.state, State::Head) && matches!(self.finder.find(&self.held), Ok(None)) {
            if self.held.len() > self.head_max {
                self.refuse(Fault::TooLarge, 0);
            }
            return;
        }
        self.finder = Finder::default();
        // What was waited for is there; the next head has its own time.
        self.deadline = None;
        let mut held = std::mem::take(&mut self.held);
        let passed = self.inspect(&held);
        held.truncate(passed);
        self.ready = held.freeze();
    }

    /// Waits for the rest of a head. `Ready(true)`: the wire has ended.
    fn poll_more_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match poll_read_buf(Pin::new(&mut self.wire), cx, &mut self.held) {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(true)),
            Poll::Ready(Ok(_)) => {
                self.inspect_held();
                Poll::Ready(Ok(false))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if let Some(deadline) = &mut self.deadline {
                    ready!(deadline.as_mut().poll(cx));
                    self.refuse(Fault::TooSlow, 0);
                    return Poll::Ready(Ok(false));
                }
                Poll::Pending
            }
        }
    }

    /// Waits for the answer to a request that wants to switch. Reads a little meanwhile, to learn
    /// whether the visitor left. `Ready(true)`: it did, or that could not be learnt for too long.
    fn poll_decided(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.gate.waker.register(cx.waker());
        if self.gate.answered.load(Ordering::Acquire) >= self.heads {
            let switched = self.gate.switched.load(Ordering::Relaxed);
            self.state = if switched { State::Switched } else { State::Head };
            self.deadline = None;
            if !self.held.is_empty() {
                self.finder = Finder::default();
                self.inspect_held();
                if matches!(self.state, State::Head) && !self.held.is_empty() && self.deadline.is_none() {
                    self.deadline = Some(Box::pin(tokio::time::sleep(self.head_timeout)));
                }
            }
            return Poll::Ready(Ok(false));
        }
        while self.held.len() < HELD_MAX {
            if ready!(poll_read_buf(Pin::new(&mut self.wire), cx, &mut self.held))? == 0 {
                if self.held.is_empty() {
                    return Poll::Ready(Ok(true));
                }
                // What was sent before the end may still be for the other protocol.
                break;
            }
        }
        // Nothing shows any more whether the visitor is still there.
        let limit = self.head_timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Ok(true))
    }
}

impl<S: Duplex> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                let count = this.ready.len().min(buf.remaining());
                buf.put_slice(&this.ready[..count]);
                this.ready.advance(count);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Switched => return Pin::new(&mut this.wire).poll_read(cx, buf),
                State::Refused(false) => {
                    this.ready = Bytes::from_static(STAND_IN);
                    this.state = State::Refused(true);
                    continue;
                }
                // The answer closes the connection; nothing more is read.
                State::Refused(true) => return Poll::Pending,
                State::Broken(fault) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
                }
                State::Undecided => {
                    if ready!(this.poll_decided(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                State::Head if !this.held.is_empty() => {
                    if ready!(this.poll_more_head(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                State::Head | State::Body(_) | State::Chunked(_) => {}
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.wire).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            let passed = this.inspect(&buf.filled()[before..]);
            buf.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: Duplex> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const GET: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

    async fn through(pieces: &[&[u8]]) -> (String, Arc<Gate>) {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let (mut guard, gate) = Guard::new(far, 1024, Duration::from_secs(5));
        let mut seen = Vec::new();
        for piece in pieces {
            near.write_all(piece).await.expect("in memory");
            let mut buf = [0; 4096];
            // Whatever is there now; a held head gives nothing yet.
            while let Ok(read) = tokio::time::timeout(Duration::from_millis(1), guard.read(&mut buf)).await {
                match read {
                    Ok(1..) => seen.extend_from_slice(&buf[..read.expect("just matched")]),
                    _ => break,
                }
            }
        }
        (String::from_utf8(seen).expect("ASCII"), gate)
    }

    #[tokio::test(start_paused = true)]
    async fn heads_and_bodies_pass_unchanged_however_they_are_cut() {
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\n";
        let sized = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nA : b\n";
        let all = format!("{GET}{chunked}{sized}\r\n{GET}");
        for size in [1, 2, 7, 30, 1000] {
            let pieces: Vec<_> = all.as_bytes().chunks(size).collect();
            assert_eq!(through(&pieces).await.0, all, "in pieces of {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_head_becomes_the_stand_in_in_its_turn() {
        for bad in ["GET / HTTP/1.1\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost : a\r\n\r\n"] {
            let (seen, gate) = through(&[format!("{GET}{bad}{GET}").as_bytes()]).await;
            assert_eq!(seen, format!("{GET}{}", std::str::from_utf8(STAND_IN).expect("ASCII")));
            assert_eq!(gate.begin(), (1, None));
            assert!(gate.begin().1.is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_or_endless_head_is_refused() {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let (mut guard, gate) = Guard::new(far, 1024, Duration::from_secs(5));
        near.write_all(b"GET / HT").await.expect("in memory");
        let mut buf = [0; 128];
        assert_eq!(guard.read(&mut buf).await.expect("stand-in"), STAND_IN.len());
        assert_eq!(gate.begin(), (1, Some(Fault::TooSlow)));
        let (_, gate) = through(&["x".repeat(2000).as_bytes()]).await;
        assert_eq!(gate.begin(), (1, Some(Fault::TooLarge)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_an_upgrade_waits_for_the_answer() {
        for switches in [false, true] {
            let (mut near, far) = tokio::io::duplex(1024);
            let (mut guard, gate) = Guard::new(far, 1024, Duration::from_secs(5));
            let ask = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: tcp\r\n\r\n";
            let next = if switches { "any\nthing" } else { GET };
            near.write_all(format!("{ask}{next}").as_bytes()).await.expect("in memory");
            let mut buf = [0; 1024];
            assert_eq!(guard.read(&mut buf).await.expect("head"), ask.len());
            let early = tokio::time::timeout(Duration::from_secs(1), guard.read(&mut buf)).await;
            assert!(early.is_err(), "passed before the answer");
            gate.answer(switches);
            let count = guard.read(&mut buf).await.expect("released");
            assert_eq!(&buf[..count], next.as_bytes());
        }
    }
}
