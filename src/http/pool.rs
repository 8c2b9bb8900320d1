//! Connections to services that are kept for reuse, and the rules of when they may be.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::body::Outgoing;
use super::record::Upload;
use crate::net::{ByteStream, Tasks};
use crate::observe::{Metrics, Reason};
use crate::registry::{Cut, Target, TargetId};

/// Octets that one connection to a service may buffer, each way.
const BUFFER_MAX: usize = 128 * 1024;
/// Header fields that an answer may have.
const FIELDS_MAX: usize = 512;
/// How long a kept connection may take to say that it is free. It is, unless its task has not
/// had its turn yet.
const READY_TIMEOUT: Duration = Duration::from_millis(500);

/// Idle connections to services, by target. Clones share the contents.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    idle: Mutex<HashMap<TargetId, Vec<(Link, Instant)>>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
    idle_max: usize,
    idle_timeout: Duration,
}

/// One HTTP/1.1 connection to a service.
#[derive(Debug)]
pub(super) struct Link {
    sender: SendRequest<Outgoing>,
    heard: Arc<AtomicBool>,
    cut: Cut,
    driver: JoinHandle<()>,
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

/// An answer that is being read. Dropping it cuts the connection it comes on; [`finish`] keeps
/// the connection, if it may be kept.
///
/// [`finish`]: Exchange::finish
#[derive(Debug)]
pub(super) struct Exchange {
    link: Option<Link>,
    upload: Option<Arc<Upload>>,
    keep: bool,
    target: Target,
    pool: Pool,
}

impl Pool {
    /// Keeps at most `idle_max` idle connections a target, each for at most `idle_timeout`.
    pub(super) fn new(tasks: Tasks, metrics: Arc<Metrics>, idle_max: usize, idle_timeout: Duration) -> Self {
        let drain = tasks.drain_begun();
        Self(Arc::new(Inner { idle: Mutex::default(), tasks, metrics, drain, idle_max, idle_timeout }))
    }

    /// The connection that was used last, if one is left that still lives.
    pub(super) async fn take(&self, target: &Target) -> Option<Link> {
        loop {
            let mut link = {
                let mut idle = self.0.idle.lock();
                let links = idle.get_mut(&target.id())?;
                let (link, since) = links.pop()?;
                if since.elapsed() >= self.0.idle_timeout {
                    // Those below it are older still.
                    links.clear();
                    return None;
                }
                link
            };
            // What was heard before was the last answer.
            link.heard.store(false, Ordering::Relaxed);
            if !link.sender.is_closed()
                && matches!(tokio::time::timeout(READY_TIMEOUT, link.sender.ready()).await, Ok(Ok(())))
            {
                self.0.metrics.http.upstream_reused.one();
                return Some(link);
            }
        }
    }

    /// Begins HTTP/1.1 on a new stream, of which `cut` tells.
    pub(super) async fn connect(&self, stream: ByteStream, cut: Cut) -> Result<Link, hyper::Error> {
        let heard = Arc::new(AtomicBool::new(false));
        let wire = Wire { stream, heard: heard.clone(), write_failed: false };
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .max_headers(FIELDS_MAX)
            .handshake(TokioIo::new(wire))
            .await?;
        let driver = self.0.tasks.spawn("connection to a service", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a service ended with an error");
            }
        });
        self.0.metrics.http.upstream_opened.one();
        Ok(Link { sender, heard, cut, driver })
    }

    fn give_back(&self, link: Link, target: &Target) {
        link.cut.forget();
        let inner = &self.0;
        let over = target.gone().is_cancelled() || inner.drain.is_cancelled();
        if over || inner.idle_max == 0 || link.sender.is_closed() {
            return;
        }
        let mut idle = inner.idle.lock();
        let first = !idle.contains_key(&target.id());
        let links = idle.entry(target.id()).or_default();
        if links.len() < inner.idle_max {
            links.push((link, Instant::now()));
        }
        drop(idle);
        if first {
            let (pool, target) = (self.clone(), target.clone());
            inner.tasks.spawn("keeper of idle connections", async move { pool.keep(&target).await });
        }
    }

    /// Drops a target's idle connections in time, until none is left.
    async fn keep(&self, target: &Target) {
        loop {
            let over = tokio::select! {
                () = target.gone().cancelled() => true,
                () = self.0.drain.cancelled() => true,
                () = tokio::time::sleep(self.0.idle_timeout) => false,
            };
            let mut idle = self.0.idle.lock();
            let Some(links) = idle.get_mut(&target.id()) else { return };
            links.retain(|(_, since)| !over && since.elapsed() < self.0.idle_timeout);
            if links.is_empty() {
                idle.remove(&target.id());
                return;
            }
        }
    }

    /// Pairs a link with what is being read from it. `keep`: whether the link may be used again
    /// once both sides are done.
    pub(super) fn exchange(
        &self,
        link: Link,
        target: &Target,
        upload: Option<Arc<Upload>>,
        keep: bool,
    ) -> Exchange {
        if let Some(upload) = &upload {
            upload.answered.store(true, Ordering::Release);
        }
        Exchange { link: Some(link), upload, keep, target: target.clone(), pool: self.clone() }
    }
}

impl Link {
    /// Sends a request, and waits for the head of its answer; there is no limit, because long
    /// polls have none. Dropping the future cuts the connection.
    pub(super) async fn send(
        mut self,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Self), SendFailed> {
        let mut cut = CutOnDrop(Some(self.driver.abort_handle()));
        match self.sender.try_send_request(request).await {
            Ok(response) => {
                cut.0 = None;
                Ok((response, self))
            }
            Err(mut failed) => {
                let heard = self.heard.load(Ordering::Relaxed);
                let unsent = failed.take_message();
                Err(SendFailed { error: failed.into_error(), unsent, heard })
            }
        }
    }
}

/// Ends a link's connection when its request is given up half-way.
struct CutOnDrop(Option<AbortHandle>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(driver) = &self.0 {
            driver.abort();
        }
    }
}

impl Exchange {
    /// Says that the answer was read whole. Whether the connection is kept depends on the request:
    /// what is left of one that was not sent whole would be read as the next.
    pub(super) fn finish(mut self) {
        if self.keep
            && self.is_sent()
            && let Some(link) = self.link.take()
        {
            self.pool.give_back(link, &self.target);
        }
    }

    /// Has `act` run when the stream under it is cut because too much of the answer is unread.
    pub(super) fn on_cut(&self, act: impl FnOnce(Reason) + Send + 'static) {
        if let Some(link) = &self.link {
            link.cut.on_cut(act);
        }
    }

    /// Whether the request was sent whole, so that an answer that was read whole is the end.
    pub(super) fn is_sent(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.ended.load(Ordering::Acquire))
    }

    /// Lets go of a connection that speaks another protocol now. The value tells when the stream
    /// under it is cut.
    pub(super) fn switched(mut self) -> Cut {
        self.link.take().map(|link| link.cut.clone()).unwrap_or_default()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.driver.abort();
        }
    }
}

/// A service's stream that notes whether anything was heard on it. A failed write is kept back
/// until reading ends too: a service may answer an upload early and close, and the answer counts.
struct Wire {
    stream: ByteStream,
    heard: Arc<AtomicBool>,
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
            other => other,
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
            self.heard.store(true, Ordering::Relaxed);
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
