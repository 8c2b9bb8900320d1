//! Runs the streams of an HTTP/2 connection in the connection's own task.
//!
//! Streams that are tasks of their own wake the connection, and are woken by it, across threads. Here
//! all of them that are ready have their turn before the connection writes, so that their answers go
//! out together.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use super::bell::Bell;
use super::cork::Cork;
use super::patience::Unsent;
use super::stall::Watched;
use crate::net::Isolated;

type Stream = Isolated<Watched>;

/// Takes the streams that the parser begins. Clones share them.
#[derive(Clone)]
pub(super) struct Streams {
    begun: Arc<Mutex<Vec<Stream>>>,
    limit: Duration,
    unsent: Arc<Unsent>,
}

impl Streams {
    /// Lets streams stand still for at most `limit`, or longer while `unsent` says that the
    /// connection is full.
    pub(super) fn new(limit: Duration, unsent: Arc<Unsent>) -> Self {
        Self { begun: Arc::default(), limit, unsent }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let stream = Watched::new(stream, self.limit, self.unsent.clone());
        self.begun.lock().push(Isolated::new("http/2 stream", stream));
    }
}

/// A connection with its streams. They end with it.
pub(super) struct Together<C, S> {
    connection: C,
    /// What the connection writes to.
    io: Cork<S>,
    /// Says that the connection is to be polled.
    bell: Bell,
    running: FuturesUnordered<Stream>,
    /// Says that one of the streams is to be polled.
    running_bell: Bell,
    streams: Streams,
}

impl<C, S> Together<C, S> {
    /// The connection that begins `streams`, and writes to `io`.
    pub(super) fn new(connection: C, io: Cork<S>, streams: Streams) -> Self {
        let running = FuturesUnordered::new();
        Self { connection, io, bell: Bell::new(), running, running_bell: Bell::new(), streams }
    }

    /// The connection, to tell it something. It is polled afterwards.
    pub(super) fn connection(&mut self) -> &mut C {
        self.bell.ring().wake_by_ref();
        &mut self.connection
    }

    /// Gives every stream that is ready its turn.
    fn run_streams(&mut self) {
        self.begin_streams();
        if self.running_bell.take() {
            let mut cx = Context::from_waker(self.running_bell.ring());
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(&mut cx) {}
        }
        // A stream that switches protocols begins one more.
        self.begin_streams();
    }

    fn begin_streams(&mut self) {
        let begun = std::mem::take(&mut *self.streams.begun.lock());
        if !begun.is_empty() {
            self.running_bell.ring().wake_by_ref();
            self.running.extend(begun);
        }
    }
}

impl<C: Future + Unpin, S: AsyncWrite + Unpin> Together<C, S> {
    fn turn(&mut self) -> Poll<C::Output> {
        let is_due = self.bell.is_rung();
        self.run_streams();
        // When it is only streams that have something for the connection, other tasks have their turn
        // first: more answers may be on their way.
        if !is_due || !self.bell.take() {
            return Poll::Pending;
        }
        let mut cx = Context::from_waker(self.bell.ring());
        let polled = Pin::new(&mut self.connection).poll(&mut cx);
        // When there is no room for all of it, the connection is polled again as soon as there is.
        let _ = self.io.poll_drain(&mut cx);
        if polled.is_pending() {
            self.run_streams();
        }
        polled
    }
}

impl<C: Future + Unpin, S: AsyncWrite + Unpin> Future for Together<C, S> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = &mut *self;
        this.bell.wakes_nobody();
        this.running_bell.wakes_nobody();
        if let Poll::Ready(end) = this.turn() {
            return Poll::Ready(end);
        }
        this.bell.wakes(cx.waker());
        this.running_bell.wakes(cx.waker());
        if this.bell.is_rung() || this.running_bell.is_rung() {
            // Other tasks have their turn first.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
