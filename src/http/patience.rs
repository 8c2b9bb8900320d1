//! A visitor's connection that fails when the visitor takes nothing of what is written for too
//! long: whoever holds a slot, a channel and buffers must make use of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Whether something waits for the visitor to take it, and how often that has changed.
#[derive(Debug, Default)]
pub(super) struct Unsent(AtomicU64);

impl Unsent {
    /// Whether something waits now.
    pub(super) fn is_any(&self) -> bool {
        self.changes() % 2 == 1
    }

    /// How often something began to wait, or ended to.
    pub(super) fn changes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Something begins to wait, or what waited is taken.
    pub(super) fn change(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A stream whose writes end with [`io::ErrorKind::TimedOut`] when nothing is taken for a while.
/// Reading is not timed.
#[derive(Debug)]
pub(super) struct Patience<S> {
    io: S,
    limit: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Whether the last write, or flush, still waits.
    unsent: Arc<Unsent>,
}

impl<S> Patience<S> {
    /// Waits for at most `limit` at a time, and says in `unsent` whether it waits.
    pub(super) fn new(io: S, limit: Duration, unsent: Arc<Unsent>) -> Self {
        Self { io, limit, waiting: None, unsent }
    }

    fn bound<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if self.waiting.take().is_some() {
                self.unsent.change();
            }
            return result;
        }
        let (limit, unsent) = (self.limit, &self.unsent);
        let waiting = self.waiting.get_or_insert_with(|| {
            unsent.change();
            Box::pin(tokio::time::sleep(limit))
        });
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.bound(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.bound(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_shutdown(cx);
        self.bound(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.bound(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_write_that_moves_nothing_runs_out_of_time() {
        let (near, mut far) = tokio::io::duplex(4);
        let mut near = Patience::new(near, Duration::from_secs(10), Arc::default());
        let slow = async {
            let mut piece = [0; 4];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                far.read_exact(&mut piece).await.expect("open");
            }
        };
        let (wrote, ()) = tokio::join!(near.write_all(&[1; 16]), slow);
        wrote.expect("each piece was taken in time");
        let stalled = near.write_all(&[1; 16]).await.expect_err("nobody reads");
        assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
    }
}
