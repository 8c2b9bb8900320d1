//! A tunnel: how to get bytes to it, and who holds it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use regex::Regex;
use tokio_util::sync::CancellationToken;

use super::{Cut, TargetId, Watched};
use crate::access::{AccessLevel, Bounds, Identity};
use crate::name::TunnelName;
use crate::net::{ByteStream, Slot, VisitorAddr};
use crate::observe::Reason;

/// A boxed future, for traits that must be objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Gets a byte stream to a target. An agent's SSH session is one kind; the HTTP side never
/// knows which kind it holds.
pub trait Opener: Send + Sync {
    /// Opens a new stream on behalf of `visitor`.
    ///
    /// Dropping the future gives the request up; whatever arrives late is closed by the opener.
    /// Has its own deadline. A stream fails with [`std::io::ErrorKind::TimedOut`] when it was cut
    /// because too much of it was unread, with `ConnectionReset` when what it ran over ended, and
    /// with `StorageFull` when the gateway could not keep what was unread.
    fn open(&self, visitor: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>>;

    /// Does as [`Opener::open`], and tells by `cut` when the stream is cut. One that cuts none need
    /// not have it.
    fn open_with(
        &self,
        visitor: VisitorAddr,
        _cut: Cut,
    ) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        self.open(visitor)
    }

    /// The right to use one of its streams, a new one or one that was kept, for as long as `visitor`
    /// does. `None` where nothing is counted.
    ///
    /// # Errors
    /// When as many are in use as may be, in all or by this visitor.
    fn admit(&self, _visitor: VisitorAddr) -> Result<Option<Slot>, OpenError> {
        Ok(None)
    }

    /// Whether a new stream can be had at once. If not, one that is kept unused may be in the way;
    /// after it was dropped, [`Opener::open_with`] waits a moment for its place.
    fn has_room(&self) -> bool {
        true
    }
}

/// Why no stream could be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The agent did not answer in time.
    #[error("the agent did not answer within its time")]
    TimedOut,
    /// The agent answered that it cannot reach its service.
    #[error("the agent could not reach its service")]
    Refused,
    /// The agent's session has ended.
    #[error("the agent's session has ended")]
    Gone,
    /// The session has as many channels as it may.
    #[error("the agent has too many open channels")]
    Full,
    /// The visitor's address uses as many of the session's channels as one may.
    #[error("the visitor's address uses too many of the agent's channels")]
    VisitorFull,
    /// A route's service refused the connection, or there is no such address.
    #[error("the route's service cannot be connected to")]
    Unreachable,
    /// A route's service did not accept the connection in time.
    #[error("the route's service did not accept a connection within its time")]
    NoAnswer,
    /// A route's service has as many connections as it may.
    #[error("the route's service has too many open connections")]
    Busy,
    /// The visitor's address uses as many of the connections to a route's service as one may.
    #[error("the visitor's address uses too many of the route's connections")]
    VisitorBusy,
    /// The gateway has no file descriptor left.
    #[error("there is no file descriptor left")]
    NoDescriptors,
}

impl OpenError {
    /// The word for it.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::TimedOut => Reason::AgentNotAnswering,
            Self::Refused => Reason::ServiceUnreachable,
            Self::Gone => Reason::AgentGone,
            Self::Full | Self::VisitorFull => Reason::TooManyChannels,
            Self::Unreachable => Reason::BackendUnreachable,
            Self::NoAnswer => Reason::BackendNotAnswering,
            Self::Busy | Self::VisitorBusy => Reason::BackendFull,
            Self::NoDescriptors => Reason::NoDescriptors,
        }
    }
}

/// The session behind a tunnel, as far as a rival for its name must know it.
pub trait Holder: Send + Sync {
    /// Whether the agent still answers; decided within 5 s.
    fn is_alive(&self) -> BoxFuture<'static, bool>;
    /// Ends the session.
    fn end(&self, reason: Reason);
}

/// A script to put into HTML answers.
#[derive(Clone, Debug)]
pub struct Script {
    /// The `src` attribute.
    pub src: String,
    /// Whether to add `async`.
    pub is_async: bool,
    /// Whether to add `defer`.
    pub defer: bool,
    /// Only for request paths that match; `None`: for all.
    pub path: Option<Regex>,
}

/// A request that a visitor made, as a watcher of the tunnel sees it.
#[derive(Clone, Debug)]
pub struct Visit {
    /// The tunnel visited.
    pub tunnel: TunnelName,
    /// The request's method.
    pub method: http::Method,
    /// The path, without the query (it may hold secrets).
    pub path: Arc<str>,
    /// The status that the visitor got.
    pub status: http::StatusCode,
    /// From the request's head until the answer's head, in milliseconds.
    pub millis: u64,
}

/// A name offered by an agent.
pub struct Tunnel {
    /// This claim.
    pub id: TargetId,
    /// The public name.
    pub name: TunnelName,
    /// What the agent asked for, byte for byte; it comes back in each channel open.
    pub request_id: Arc<str>,
    /// The agent's user name: the environment.
    pub env_id: Arc<str>,
    /// The agent's key.
    pub owner: Identity,
    /// Who may visit.
    pub access: AccessLevel,
    /// What visitors are held to.
    pub bounds: Bounds,
    /// Free data of the agent's, shown in the API.
    pub meta: serde_json::Map<String, serde_json::Value>,
    /// Scripts to put into HTML answers.
    pub inject: Arc<[Script]>,
    /// How to get bytes to it.
    pub opener: Arc<dyn Opener>,
    /// Who holds it.
    pub holder: Arc<dyn Holder>,
    /// What visitors asked for, for those who watch; tunnels of one session share it.
    pub visits: Watched<Visit>,
    /// Cancelled when the lease ends.
    pub gone: CancellationToken,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}
