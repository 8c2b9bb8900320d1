//! One HTTP/1.1 connection to a service: requests up, and what comes down.
//!
//! The connection is no task of its own, because two tasks on two threads would wake each other
//! several times a request. Whoever waits for something on it drives it: the request's task until
//! the answer has been read, and the pool's keeper while it is idle. Only when an answer comes
//! before the request has gone out whole does it become a task: then both directions go on, whatever
//! the visitor takes.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::{AbortHandle, coop};

use super::bell::Bell;
use super::body::Outgoing;
use crate::net::{ByteStream, Slot, Tasks};
use crate::registry::{BoxFuture, Cut};

/// Octets that one connection to a service may buffer, each way.
const BUFFER_MAX: usize = 128 * 1024;

/// One HTTP/1.1 connection to a service. Dropping it cuts the connection.
pub(super) struct Link {
    sender: SendRequest<Outgoing>,
    /// Until it has ended, or has become a task.
    connection: Option<BoxFuture<'static, ()>>,
    task: Option<AbortHandle>,
    /// Says that there is something to do on the connection.
    bell: Bell,
    signs: Arc<Signs>,
    cut: Cut,
}

/// Why a request got no answer from a link.
#[derive(Debug)]
pub(super) struct SendFailed {
    /// What the client said.
    pub(super) error: hyper::Error,
    /// The request, if nothing of it was sent.
    pub(super) unsent: Option<Request<Outgoing>>,
    /// Whether any octet came, of an answer or unasked.
    pub(super) heard: bool,
}

impl Link {
    /// Begins HTTP/1.1 on a new stream, of which `cut` tells.
    ///
    /// # Errors
    /// None that is known of: nothing is sent yet.
    pub(super) async fn new(stream: ByteStream, cut: Cut) -> Result<Self, hyper::Error> {
        let signs = Arc::<Signs>::default();
        let wire = Wire { stream, signs: signs.clone(), write_failed: false };
        let (sender, connection) =
            http1::Builder::new().max_buf_size(BUFFER_MAX).handshake(TokioIo::new(wire)).await?;
        let connection: BoxFuture<'static, ()> = Box::pin(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a service ended with an error");
            }
        });
        Ok(Self { sender, connection: Some(connection), task: None, bell: Bell::new(), signs, cut })
    }

    /// Notes by whose right the connection is used from now on.
    pub(super) fn used_by(&self, slot: Option<Arc<Slot>>) {
        self.cut.used_by(slot);
    }

    /// Sends a request, and waits for the head of its answer; there is no limit, because long
    /// polls have none. Dropping the future cuts the connection.
    pub(super) async fn send(
        mut self,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Self), SendFailed> {
        // What was heard before was the last answer.
        self.signs.heard.store(false, Ordering::Relaxed);
        let mut answer = pin!(self.sender.try_send_request(request));
        let answered = std::future::poll_fn(|cx| {
            self.drive(cx);
            poll_driven(cx, |cx| answer.as_mut().poll(cx))
        });
        match answered.await {
            Ok(response) => Ok((response, self)),
            Err(mut failed) => {
                let heard = self.signs.heard.load(Ordering::Relaxed);
                let unsent = failed.take_message();
                Err(SendFailed { error: failed.into_error(), unsent, heard })
            }
        }
    }

    /// Does what there is to do on the connection, and has the task woken when there is more.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        self.bell.wakes(cx.waker());
        self.turn();
    }

    /// Has nobody woken any more, and does what there is left to do now.
    pub(super) fn settle(&mut self) {
        self.bell.wakes_nobody();
        self.turn();
    }

    fn turn(&mut self) {
        if self.bell.take()
            && let Some(connection) = &mut self.connection
            && connection.as_mut().poll(&mut Context::from_waker(self.bell.ring())).is_ready()
        {
            // Whoever waits for something on it is told so by the drop.
            self.connection = None;
        }
    }

    /// Has this one woken from now on.
    pub(super) fn belong_to(&self, keeper: &Waker) {
        self.bell.wakes(keeper);
        if self.bell.is_rung() {
            keeper.wake_by_ref();
        }
    }

    /// Whether it can take a request. One that its service has closed cannot.
    pub(super) fn is_free(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// What tells when the stream under it is cut.
    pub(super) fn cut(&self) -> &Cut {
        &self.cut
    }

    /// Whether something of the request waits for the service to take it.
    pub(super) fn is_writing(&self) -> bool {
        self.signs.unsent.load(Ordering::Relaxed)
    }

    /// Whether a task of its own drives it.
    pub(super) fn is_task(&self) -> bool {
        self.task.is_some()
    }

    /// Lets the task of its own go on without the link. The value tells when the stream is cut.
    pub(super) fn let_go(mut self) -> Cut {
        self.task = None;
        self.cut.clone()
    }

    /// Lets a task of its own drive it from now on, until the link is dropped.
    pub(super) fn become_task(&mut self, tasks: &Tasks) {
        if let Some(connection) = self.connection.take() {
            self.bell.wakes_nobody();
            self.task = Some(tasks.spawn("connection to a service", connection).abort_handle());
        }
    }

    /// The next frame of the answer that comes on it.
    pub(super) fn poll_body(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        if self.task.is_some() {
            return Pin::new(body).poll_frame(cx);
        }
        // Taking a frame rings, because there is room for the next then. Whoever took it asks for that
        // one anyway, and need not be woken.
        self.bell.wakes_nobody();
        let was_rung = self.bell.is_rung();
        if let Poll::Ready(frame) = poll_driven(cx, |cx| Pin::new(&mut *body).poll_frame(cx)) {
            if !was_rung && body.is_end_stream() {
                // No next one: there is nothing to do. Should the service have closed just now, the next
                // request finds out.
                self.bell.take();
            }
            return Poll::Ready(frame);
        }
        self.drive(cx);
        poll_driven(cx, |cx| Pin::new(body).poll_frame(cx))
    }
}

/// Polls what nothing but the connection makes ready, which is driven by the task that polls: it need
/// not be woken for it.
fn poll_driven<T>(cx: &Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    let polled = poll(&mut Context::from_waker(Waker::noop()));
    if polled.is_pending() && !coop::has_budget_remaining() {
        // It may be ready, and the task has only had its turn.
        cx.waker().wake_by_ref();
    }
    polled
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("task", &self.task).field("bell", &self.bell).finish_non_exhaustive()
    }
}

/// What a connection's parser and its link tell each other.
#[derive(Debug, Default)]
struct Signs {
    /// Whether anything came since the last request.
    heard: AtomicBool,
    /// Whether something waits for the service to take it.
    unsent: AtomicBool,
}

/// A service's stream that notes whether anything was heard on it, and whether something waits to be
/// taken. A failed write is kept back until reading ends too: a service may answer an upload early and
/// close, and the answer counts.
struct Wire {
    stream: ByteStream,
    signs: Arc<Signs>,
    write_failed: bool,
}

impl Wire {
    fn hush<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            // The reading half wakes the task when it ends, and ends the connection then.
            Poll::Ready(Err(_)) => {
                self.write_failed = true;
                Poll::Pending
            }
            Poll::Pending => {
                self.signs.unsent.store(true, Ordering::Relaxed);
                Poll::Pending
            }
            ready @ Poll::Ready(Ok(_)) => ready,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.signs.heard.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.hush(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        // The parser flushes only when it has nothing left to write.
        if result.is_ready() {
            self.signs.unsent.store(false, Ordering::Relaxed);
        }
        self.hush(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.hush(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
