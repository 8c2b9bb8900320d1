//! The two body types: what goes up to a service, and what comes down to a visitor. Both pass
//! frames on as they come, and keep account.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::SetOnce;
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use super::exchange::Exchange;
use super::record::{Record, Upload};
use super::rewrite::Injected;
use super::stall::Stall;
use crate::access::Hold;
use crate::net::Tasks;
use crate::observe::{Metrics, Reason};
use crate::registry::Cut;

/// How long the rest of an upload is still taken after its answer, over HTTP/2. Many clients
/// take a stream that is reset for a failure, even when they have the answer.
const LINGER: Duration = Duration::from_secs(3);

/// A request's body on its way to a service. Fails when the service waits for more of it and
/// nothing comes for the idle time, unless the answer has begun: from then on the answer says
/// how long the request lives.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    body: Option<(Incoming, Arc<Upload>)>,
    linger: Option<Tasks>,
    idle: Duration,
    /// Runs out when nothing came for the idle time; `None` while nobody waits.
    stall: Option<Pin<Box<Sleep>>>,
    metrics: Option<Arc<Metrics>>,
}

impl Outgoing {
    /// Passes `body` on; the account is `None` when there is nothing to pass. With `linger`, what
    /// is left when this is dropped is still taken for a while, and thrown away.
    pub(super) fn new(
        body: Incoming,
        linger: Option<&Tasks>,
        idle: Duration,
        metrics: &Arc<Metrics>,
    ) -> (Self, Option<Arc<Upload>>) {
        if body.is_end_stream() {
            return (Self::default(), None);
        }
        let upload = Arc::<Upload>::default();
        let body = Some((body, upload.clone()));
        let metrics = Some(metrics.clone());
        (Self { body, linger: linger.cloned(), idle, stall: None, metrics }, Some(upload))
    }
}

/// Waits for the idle time. The value is the error that the upload ends with.
fn poll_stalled(
    stall: &mut Option<Pin<Box<Sleep>>>,
    idle: Duration,
    upload: &Upload,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    if upload.answered.load(Ordering::Acquire) {
        *stall = None;
        return Poll::Pending;
    }
    ready!(stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle))).as_mut().poll(cx));
    upload.stalled.store(true, Ordering::Release);
    Poll::Ready(io::ErrorKind::TimedOut.into())
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Some(tasks) = self.linger.take()
            && let Some((mut body, _)) = self.body.take()
            && !body.is_end_stream()
        {
            tasks.spawn("rest of an upload", async move {
                let rest = async { while let Some(Ok(_)) = body.frame().await {} };
                // Over time, the stream is reset without an error (RFC 9113, section 8.1).
                let _ = tokio::time::timeout(LINGER, rest).await;
            });
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Self { body: Some((body, upload)), idle, stall, metrics, .. } = &mut *self else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            return poll_stalled(stall, *idle, upload, cx).map(|error| Some(Err(error)));
        };
        *stall = None;
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                upload.octets.fetch_add(length as u64, Ordering::Relaxed);
                if let Some(metrics) = metrics {
                    metrics.http.received.add(length as u64);
                }
                if frame.is_trailers() || body.is_end_stream() {
                    upload.ended.store(true, Ordering::Release);
                }
            }
            None => upload.ended.store(true, Ordering::Release),
            Some(Err(error)) if is_malformed(error) => upload.malformed.store(true, Ordering::Release),
            Some(Err(_)) => upload.cut.store(true, Ordering::Release),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), |(body, _)| body.size_hint())
    }
}

/// Whether a body broke its framing, rather than ending early.
fn is_malformed(error: &hyper::Error) -> bool {
    matches!(io_kind(error), Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput))
}

/// The kind of the I/O error that is the innermost cause of another error, if it is not the system's.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut source = Some(error);
    let mut kind = None;
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            // What the system says of a socket is not what our own streams say.
            kind = Some(io.kind()).filter(|_| io.raw_os_error().is_none());
            // An I/O error's own source is that of what it wraps.
            source = io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
        } else {
            source = cause.source();
        }
    }
    kind
}

/// Why a stream broke off, where its error says so. What those of an opener fail with is documented
/// there.
pub(super) fn reason_of(error: &io::Error) -> Option<Reason> {
    match io_kind(error)? {
        io::ErrorKind::TimedOut => Some(Reason::VisitorTooSlow),
        io::ErrorKind::StorageFull => Some(Reason::NoSpace),
        _ => None,
    }
}

/// An answer's body on its way to a visitor. It owns the request's record, and what the answer
/// comes from; both end with it.
#[derive(Debug)]
pub(super) struct Answer {
    kind: Kind,
    /// Shared with what runs when the answer is cut.
    record: Slot,
    /// What the record says when the body went out whole.
    outcome: Reason,
    /// How it ended, once that was seen: whole (`true`) or broken off. A body of unknown length
    /// says only then that it has ended.
    ended: Option<bool>,
    /// Keeps the time that the visitor may take nothing, over HTTP/2.
    stall: Option<Arc<Stall>>,
    /// How long the visit is allowed; `None`: without end.
    hold: Option<Hold>,
    /// Waits for that.
    watch: Option<AbortHandle>,
}

/// A record until it is written.
type Slot = Arc<Mutex<Option<Box<Record>>>>;

#[derive(Debug)]
enum Kind {
    Own(Bytes),
    Relayed(Exchange),
    Injected(Box<Injected>, Cut),
}

impl Answer {
    /// The gateway's own words.
    pub(super) fn own(text: Bytes) -> Self {
        Self::new(Kind::Own(text), Reason::OwnAnswer)
    }

    /// A service's body, as it comes.
    pub(super) fn relayed(body: Exchange) -> Self {
        Self::new(Kind::Relayed(body), Reason::Answered)
    }

    /// A service's page with scripts put in; `cut` tells when the stream that it comes on is cut.
    pub(super) fn injected(body: Injected, cut: Cut) -> Self {
        Self::new(Kind::Injected(Box::new(body), cut), Reason::Answered)
    }

    fn new(kind: Kind, outcome: Reason) -> Self {
        Self { kind, record: Slot::default(), outcome, ended: None, stall: None, hold: None, watch: None }
    }

    /// The same, to be cut when the visit is no longer allowed.
    pub(super) fn held(mut self, hold: Option<&Hold>) -> Self {
        self.hold = hold.cloned();
        self
    }

    /// Gives the body its request's record, to be written when the body ends. When the answer is
    /// cut because too much of it is unread, or the visit is no longer allowed, the record is written
    /// then; nothing else can stop a parser that waits for the visitor to take something. Over HTTP/2 the stream ends, and
    /// what other answers have left on their way still goes out. Over HTTP/1.1 the connection is of
    /// no more use, and `over` gets the reason.
    pub(super) fn with_record(
        mut self,
        record: Box<Record>,
        outcome: Reason,
        over: &Arc<SetOnce<Reason>>,
    ) -> Self {
        let tasks = self.hold.as_ref().map(|_| record.tasks().clone());
        let stay = record.stay.clone();
        *self.record.lock() = Some(record);
        self.outcome = outcome;
        self.stall = Stall::current();
        if let Some(stall) = &self.stall {
            stall.answer();
        }
        let cut = match &self.kind {
            Kind::Own(_) => None,
            Kind::Relayed(body) => body.cut(),
            Kind::Injected(_, cut) => Some(cut),
        };
        if let Some(cut) = cut {
            cut.on_cut(self.ender(over));
        }
        if let Some(stay) = stay
            && !self.is_end_stream()
        {
            stay.on_over(self.ender(over));
        }
        if let (Some(hold), Some(tasks)) = (self.hold.take(), tasks)
            && !self.is_end_stream()
        {
            let end = self.ender(over);
            let task = tasks.spawn("permit", async move { end(hold.over().await) });
            self.watch = Some(task.abort_handle());
        }
        self
    }

    /// What cuts the answer from outside.
    fn ender(&self, over: &Arc<SetOnce<Reason>>) -> impl FnOnce(Reason) + Send + 'static {
        let (slot, over, stall) = (Arc::downgrade(&self.record), over.clone(), self.stall.clone());
        move |why| {
            if let Some(stall) = stall {
                return stall.end(why);
            }
            let record = slot.upgrade().and_then(|slot| slot.lock().take());
            let Some(mut record) = record else { return };
            record.reason = why;
            drop(record);
            // What was told first stays.
            let _ = over.set(why);
        }
    }

    /// The length of the gateway's own words, which are then dropped: for HEAD.
    pub(super) fn take_own(&mut self) -> Option<usize> {
        match &mut self.kind {
            Kind::Own(text) => Some(std::mem::take(text).len()),
            _ => None,
        }
    }

    fn note_error(&mut self, error: &io::Error) {
        if let Some(mut record) = self.record.lock().take() {
            tracing::debug!(request = %record.id, %error, "an answer ended early");
            // The stream breaks as well when it is cut, and which is seen first is chance.
            let cut = self.stall.as_ref().and_then(|stall| stall.over());
            record.reason = cut.or_else(|| reason_of(error)).unwrap_or(match io_kind(error) {
                Some(io::ErrorKind::ConnectionReset) => Reason::AgentGone,
                _ => Reason::ServiceClosed,
            });
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = match &mut self.kind {
            Kind::Own(text) if text.is_empty() => Poll::Ready(None),
            Kind::Own(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Kind::Relayed(body) => Pin::new(body).poll_frame(cx),
            Kind::Injected(body, _) => body.poll_data(cx).map_ok(Frame::data),
        };
        let Poll::Ready(frame) = polled else {
            if let Some(stall) = &self.stall {
                stall.note(None);
            }
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                if let Some(record) = &mut *self.record.lock() {
                    record.sent(length as u64);
                }
                if let Some(stall) = &self.stall {
                    stall.note(Some(length));
                }
            }
            Some(Err(error)) => {
                self.ended = Some(false);
                self.note_error(error);
            }
            None => self.ended = Some(true),
        }
        if matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
            self.ended = Some(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(text) => text.is_empty(),
            Kind::Relayed(body) => body.is_end_stream(),
            Kind::Injected(body, _) => body.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(text) => SizeHint::with_exact(text.len() as u64),
            Kind::Relayed(body) => body.size_hint(),
            Kind::Injected(..) => SizeHint::default(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
        let complete = self.ended.unwrap_or_else(|| self.is_end_stream());
        // What it came on is free, or cut, by the time that the record is written.
        self.kind = Kind::Own(Bytes::new());
        if let Some(mut record) = self.record.lock().take() {
            let cut = self.stall.as_ref().and_then(|stall| stall.over());
            let seen = if complete { self.outcome } else { Reason::VisitorLeft };
            record.reason = cut.unwrap_or(seen);
        }
    }
}
