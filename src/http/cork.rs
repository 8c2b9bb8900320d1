//! Lets the answers of one HTTP/2 connection that become ready together go out together.
//!
//! The parser flushes after each frame, which would be a write, and a TLS record, an answer. Here what
//! it writes waits, and whoever polls the parser drains it afterwards.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Octets that wait at most: what fits in one TLS record.
const WAITING_MAX: usize = 16 * 1024;

/// A stream whose small writes wait for each other. Clones share it: one is the parser's, and one
/// is drained. To flush it does nothing.
#[derive(Debug)]
pub(super) struct Cork<S>(Arc<Mutex<Corked<S>>>);

#[derive(Debug)]
struct Corked<S> {
    io: S,
    waiting: BytesMut,
    /// Whether something was written that was not flushed.
    dirty: bool,
    failed: Option<io::Error>,
}

impl<S> Clone for Cork<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Cork<S> {
    /// Nothing waits yet.
    pub(super) fn new(io: S) -> Self {
        Self(Arc::new(Mutex::new(Corked { io, waiting: BytesMut::new(), dirty: false, failed: None })))
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Writes and flushes what waits. When that fails, the parser is told at its next flush. Cancel
    /// safe.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut corked = self.0.lock();
        if corked.dirty
            && let Err(error) = ready!(corked.poll_drain(cx))
        {
            corked.failed = Some(error);
            cx.waker().wake_by_ref();
        }
        Poll::Ready(())
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_waiting(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.dirty = false;
        Poll::Ready(Ok(()))
    }

    fn poll_write_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.waiting.advance(count),
            }
        }
        if self.waiting.capacity() > 0 {
            // An idle connection keeps no buffer.
            self.waiting = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cork<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut corked = self.0.lock();
        corked.dirty = true;
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if corked.waiting.len() + length > WAITING_MAX {
            ready!(corked.poll_write_waiting(cx))?;
        }
        if length > WAITING_MAX {
            return Pin::new(&mut corked.io).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            corked.waiting.extend_from_slice(buf);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().failed.take().map_or(Ok(()), Err))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut corked = self.0.lock();
        ready!(corked.poll_drain(cx))?;
        Pin::new(&mut corked.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_ready_together_goes_out_together() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut cork = Cork::new(near);
        cork.write_all(b"one ").await.expect("open");
        cork.flush().await.expect("open");
        cork.write_all(b"two ").await.expect("open");
        let mut seen = [0; 64];
        assert!(far.read(&mut seen).now_or_never().is_none(), "nothing goes out before it is drained");
        std::future::poll_fn(|cx| cork.poll_drain(cx)).await;
        let count = far.read(&mut seen).await.expect("open");
        assert_eq!(&seen[..count], b"one two ");
        // More than may wait goes out in order, and as it is.
        cork.write_all(b"three ").await.expect("open");
        cork.write_all(&[b'x'; WAITING_MAX + 1]).await.expect("open");
        cork.shutdown().await.expect("open");
        let mut all = Vec::new();
        drop(cork);
        far.read_to_end(&mut all).await.expect("open");
        assert!(all.starts_with(b"three x") && all.len() == 6 + WAITING_MAX + 1);
    }

    #[tokio::test]
    async fn the_parser_hears_of_what_failed_later() {
        let (near, far) = tokio::io::duplex(64);
        let mut cork = Cork::new(near);
        cork.write_all(b"one").await.expect("it waits");
        drop(far);
        std::future::poll_fn(|cx| cork.poll_drain(cx)).await;
        cork.flush().await.expect_err("nobody is there");
    }
}
