//! Lets the answers of one HTTP/2 connection that become ready together go out together.
//!
//! Each stream's task wakes the connection, which would write, and seal a TLS record, for each
//! answer alone. Here what is to be flushed waits until the tasks that are ready now have had
//! their turn: no timer, so that an answer on its own goes out at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Octets that wait at most: what fits in one TLS record.
const WAITING_MAX: usize = 16 * 1024;

/// A stream whose small writes wait for each other.
#[derive(Debug)]
pub(super) struct Cork<S> {
    io: S,
    waiting: BytesMut,
    /// Whether others have had their turn since something began to wait.
    yielded: bool,
}

impl<S> Cork<S> {
    /// Nothing waits yet.
    pub(super) fn new(io: S) -> Self {
        Self { io, waiting: BytesMut::new(), yielded: false }
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.waiting.advance(count),
            }
        }
        self.yielded = false;
        if self.waiting.capacity() > 0 {
            // An idle connection keeps no buffer.
            self.waiting = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cork<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.waiting.len() + length > WAITING_MAX {
            ready!(self.poll_drain(cx))?;
        }
        if length > WAITING_MAX {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            self.waiting.extend_from_slice(buf);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() && !self.yielded && super::streams::mode() == 1 {
            self.yielded = true;
            // The runtime puts a task that wakes itself behind all that are ready.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_ready_together_goes_out_together() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut cork = Cork::new(near);
        cork.write_all(b"one ").await.expect("open");
        let mut seen = [0; 64];
        let both = async {
            let flushed = std::future::poll_fn(|cx| Pin::new(&mut cork).poll_flush(cx));
            tokio::pin!(flushed);
            assert!(futures_util::poll!(&mut flushed).is_pending(), "others get their turn");
            flushed.await.expect("open");
        };
        let (_, count) = tokio::join!(both, far.read(&mut seen));
        assert_eq!(&seen[..count.expect("open")], b"one ");
        // More than may wait goes out in order, and as it is.
        cork.write_all(b"two ").await.expect("open");
        cork.write_all(&[b'x'; WAITING_MAX + 1]).await.expect("open");
        cork.shutdown().await.expect("open");
        let mut all = Vec::new();
        drop(cork);
        far.read_to_end(&mut all).await.expect("open");
        assert!(all.starts_with(b"two x") && all.len() == 4 + WAITING_MAX + 1);
    }
}
