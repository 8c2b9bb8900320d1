//! An answer that comes on a link, and when the link is of use again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::link::Link;
use super::pool::Pool;
use super::record::Upload;
use crate::registry::{Cut, Target};

/// How long the end of a broken body is kept back. With it the connection's end, and whatever has not
/// left by then, is thrown away.
pub(super) const FAREWELL: Duration = Duration::from_millis(100);

/// An answer's body, as it comes on a link. When it was read whole, the link goes back to its pool,
/// if it may be kept; dropping it earlier cuts the connection.
#[derive(Debug)]
pub(super) struct Exchange {
    body: Incoming,
    /// Whether the end was seen. A body of unknown length says only then that it has ended.
    ended: bool,
    /// Whether something was given out that has had no time to go out.
    fresh: bool,
    /// It broke off; this is said when what came before has had time to go out.
    broken: Option<(io::Error, Pin<Box<Sleep>>)>,
    link: Option<Link>,
    upload: Option<Arc<Upload>>,
    keep: bool,
    target: Target,
    pool: Pool,
}

impl Exchange {
    /// Pairs a link with what is being read from it. `keep`: whether the link may be used again once
    /// both sides are done. It is not, in any case, when the answer comes before the request was sent:
    /// the service may leave the rest unread, and what a visitor sends then would be read as the next
    /// visitor's request.
    pub(super) fn new(
        body: Incoming,
        mut link: Link,
        target: &Target,
        upload: Option<Arc<Upload>>,
        keep: bool,
        pool: &Pool,
    ) -> Self {
        if let Some(upload) = &upload {
            upload.answered.store(true, Ordering::Release);
        }
        let is_sent = is_sent(upload.as_deref());
        if !is_sent || link.is_writing() {
            // The answer is read only as the visitor takes it; the rest of the request must not wait
            // for that.
            link.become_task(pool.tasks());
        }
        Self {
            body,
            ended: false,
            fresh: true,
            broken: None,
            link: Some(link),
            upload,
            keep: keep && is_sent,
            target: target.clone(),
            pool: pool.clone(),
        }
    }

    /// What tells when the stream under it is cut because too much of the answer is unread; none, when
    /// all of it was read.
    pub(super) fn cut(&self) -> Option<&Cut> {
        self.link.as_ref().map(Link::cut)
    }

    /// Lets go of a connection that speaks another protocol now. The value tells when the stream
    /// under it is cut.
    pub(super) fn switched(mut self) -> Cut {
        let Some(mut link) = self.link.take() else { return Cut::default() };
        // What is left is to hand the stream over, if even that.
        link.become_task(self.pool.tasks());
        link.let_go()
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let polled = match &mut self.link {
            Some(link) => link.poll_body(&mut self.body, cx),
            None => Pin::new(&mut self.body).poll_frame(cx),
        };
        match &polled {
            Poll::Pending => self.fresh = false,
            Poll::Ready(Some(Err(_))) => {}
            Poll::Ready(frame) => {
                self.fresh = true;
                self.ended |= !matches!(frame, Some(Ok(frame)) if frame.is_data());
                self.release();
            }
        }
        polled
    }

    /// Lets go of the link as soon as all of the answer was read, and the request was sent whole: the
    /// visitor may take long.
    fn release(&mut self) {
        if self.is_end_stream()
            && is_sent(self.upload.as_deref())
            && let Some(link) = self.link.take()
            && self.keep
            && !link.is_task()
        {
            self.pool.give_back(link, &self.target);
        }
    }
}

impl Body for Exchange {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.broken.is_none() {
            match ready!(self.poll_body(cx)) {
                Some(Err(error)) => {
                    self.link = None;
                    let pause = if self.fresh { FAREWELL } else { Duration::ZERO };
                    self.broken = Some((io::Error::other(error), Box::pin(tokio::time::sleep(pause))));
                }
                other => return Poll::Ready(other.map(|frame| frame.map_err(io::Error::other))),
            }
        }
        if let Some((_, pause)) = &mut self.broken {
            ready!(pause.as_mut().poll(cx));
        }
        Poll::Ready(self.broken.take().map(|(error, _)| Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.release();
    }
}

fn is_sent(upload: Option<&Upload>) -> bool {
    upload.is_none_or(Upload::is_ended)
}
