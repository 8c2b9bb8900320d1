//! Byte streams: a stream that gives back what was peeked, and the only two-way copy.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

/// Size of each direction's buffer in [`copy_both`] while much moves, in octets: one TLS record.
const COPY_BUFFER: usize = 16 * 1024;
/// Its size while little moves: most switched streams are idle most of the time.
const COPY_BUFFER_IDLE: usize = 1024;

/// A two-way byte stream of any kind.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An owned two-way byte stream whose kind no longer matters.
pub type ByteStream = Box<dyn Duplex>;

/// A stream that first gives back the bytes that were read to look at them.
#[derive(Debug)]
pub struct Replay<S> {
    head: Bytes,
    stream: S,
}

impl<S> Replay<S> {
    /// Puts `head` in front of what `stream` still holds.
    pub fn new(head: Bytes, stream: S) -> Self {
        Self { head, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..count]);
        self.head.advance(count);
        if self.head.is_empty() {
            // Even an empty part keeps the whole of its buffer.
            self.head = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A stream that holds something, such as a permit, for as long as it lives.
#[derive(Debug)]
pub struct Held<S, G> {
    stream: S,
    _guard: G,
}

impl<S, G> Held<S, G> {
    /// Lets `stream` hold `guard`.
    pub fn new(stream: S, guard: G) -> Self {
        Self { stream, _guard: guard }
    }
}

impl<S: AsyncRead + Unpin, G: Unpin> AsyncRead for Held<S, G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, G: Unpin> AsyncWrite for Held<S, G> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Why a two-way copy ended.
#[derive(Debug)]
pub enum CopyEnd {
    /// Both sides said that they were done.
    Finished,
    /// Nothing moved in either direction for the whole idle time.
    Idle,
    /// It was told to stop.
    Stopped,
    /// A read or a write failed.
    Failed(io::Error),
}

/// What a two-way copy did.
#[derive(Debug)]
pub struct CopyOutcome {
    /// Octets that went from the first stream to the second.
    pub forth: u64,
    /// Octets that went from the second stream to the first.
    pub back: u64,
    /// Why it ended.
    pub end: CopyEnd,
}

/// Copies both ways until both directions have ended, one fails, or nothing moves for `idle`.
///
/// An end of input on one side is passed on as a shutdown of the other side's writing half and
/// leaves the opposite direction running (half-close). Neither stream is closed at the end
/// otherwise: dropping them is the caller's. Cancel safe in that dropping the future only drops
/// what was in its buffers.
pub async fn copy_both(first: impl Duplex, second: impl Duplex, idle: Duration) -> CopyOutcome {
    copy_both_until(first, second, idle, std::future::pending()).await
}

/// Does as [`copy_both`], and stops as well when `stop` resolves.
pub async fn copy_both_until(
    first: impl Duplex,
    second: impl Duplex,
    idle: Duration,
    stop: impl Future<Output = ()>,
) -> CopyOutcome {
    let (first_read, first_write) = tokio::io::split(first);
    let (second_read, second_write) = tokio::io::split(second);
    let started = Instant::now();
    let last_move = Arc::new(AtomicU64::new(0));
    let (mut forth, mut back) = (0, 0);
    let end = {
        let copies = async {
            tokio::try_join!(
                copy_one(first_read, second_write, &mut forth, started, &last_move),
                copy_one(second_read, first_write, &mut back, started, &last_move),
            )
        };
        tokio::select! {
            result = copies => match result {
                Ok(_) => CopyEnd::Finished,
                Err(error) => CopyEnd::Failed(error),
            },
            () = until_idle(idle, started, &last_move) => CopyEnd::Idle,
            () = stop => CopyEnd::Stopped,
        }
    };
    CopyOutcome { forth, back, end }
}

async fn copy_one(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &mut u64,
    started: Instant,
    last_move: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BUFFER_IDLE];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        *count += length as u64;
        let now = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        last_move.store(now, Ordering::Relaxed);
        if length == buffer.len() && length < COPY_BUFFER {
            buffer = vec![0; COPY_BUFFER];
        } else if length <= COPY_BUFFER_IDLE && buffer.len() > COPY_BUFFER_IDLE {
            buffer = vec![0; COPY_BUFFER_IDLE];
        }
    }
}

async fn until_idle(idle: Duration, started: Instant, last_move: &AtomicU64) {
    loop {
        let moved = started + Duration::from_millis(last_move.load(Ordering::Relaxed));
        if moved.elapsed() >= idle {
            return;
        }
        tokio::time::sleep_until(moved + idle).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replay_gives_the_head_first_and_lets_it_go() {
        let head = Bytes::from(b"abc".to_vec());
        let mut stream = Replay::new(head.clone(), &b"def"[..]);
        let mut all = String::new();
        stream.read_to_string(&mut all).await.expect("in memory");
        assert_eq!(all, "abcdef");
        assert!(head.is_unique(), "its buffer is kept");
    }

    #[tokio::test]
    async fn half_close_leaves_the_other_direction_open() {
        let (mut left, left_far) = tokio::io::duplex(64);
        let (mut right, right_far) = tokio::io::duplex(64);
        let copy = copy_both(left_far, right_far, Duration::from_secs(5));
        let peers = async {
            left.write_all(b"question").await.expect("open");
            left.shutdown().await.expect("open");
            let mut question = String::new();
            right.read_to_string(&mut question).await.expect("open");
            right.write_all(b"answer").await.expect("still open");
            drop(right);
            let mut answer = String::new();
            left.read_to_string(&mut answer).await.expect("open");
            (question, answer)
        };
        let (outcome, texts) = tokio::join!(copy, peers);
        assert_eq!(texts, ("question".to_owned(), "answer".to_owned()));
        assert_eq!((outcome.forth, outcome.back), (8, 6));
        assert!(matches!(outcome.end, CopyEnd::Finished));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_counts_from_the_last_byte() {
        let (mut left, left_far) = tokio::io::duplex(64);
        let (_right, right_far) = tokio::io::duplex(64);
        let copy = tokio::time::timeout(
            Duration::from_secs(60),
            copy_both(left_far, right_far, Duration::from_secs(10)),
        );
        let peer = async {
            tokio::time::sleep(Duration::from_secs(8)).await;
            left.write_all(b"x").await.expect("open");
            Instant::now()
        };
        let (outcome, wrote) = tokio::join!(copy, peer);
        assert!(matches!(outcome.expect("ends").end, CopyEnd::Idle));
        assert_eq!(wrote.elapsed().as_secs(), 10);
    }
}
