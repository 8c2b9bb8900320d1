//! A service that the configuration names, and how to connect to it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{BoxFuture, Cut, Open, OpenError, Opener, TargetId};
use crate::access::Bounds;
use crate::config::{BackendAddr, RouteSettings};
use crate::net::{ByteStream, Held, Slot, Slots, SlotsFull, VisitorAddr, prepare_socket};

/// How long a service may take to accept a connection, looking up its name included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a visitor waits for the place of a connection that is just being given back.
const ROOM: Duration = Duration::from_millis(500);

/// Where a route leads.
#[derive(Debug)]
pub struct Backend {
    /// This backend.
    pub id: TargetId,
    /// The route as people write it: host, and path if it has one.
    pub name: String,
    /// What visitors are held to.
    pub bounds: Bounds,
    /// Where it listens.
    pub address: Arc<BackendAddr>,
    /// Cancelled when the route is taken out of the configuration.
    pub gone: CancellationToken,
    /// Connections that may still be opened.
    free: Arc<Semaphore>,
    /// The connections that visitors use, as they are shared among these.
    in_use: Slots,
}

impl Backend {
    /// Where a route leads; at most `most` connections are open to it at once.
    #[must_use]
    pub fn of(route: &RouteSettings, bounds: Bounds, most: usize) -> Self {
        let path = if route.path == "/" { "" } else { &route.path };
        Self {
            id: TargetId::next(),
            name: format!("{}{path}", route.host),
            bounds,
            address: Arc::new(route.to.clone()),
            gone: CancellationToken::new(),
            free: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            in_use: Slots::fair(most),
        }
    }
}

impl Opener for Backend {
    fn open(&self, visitor: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        self.open_with(visitor, Cut::default())
    }

    fn open_with(&self, _: VisitorAddr, cut: Cut) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        let (address, free) = (self.address.clone(), self.free.clone());
        Box::pin(async move {
            let permit = tokio::time::timeout(ROOM, free.acquire_owned()).await;
            let Ok(Ok(permit)) = permit else { return Err(OpenError::Busy) };
            let open = Open::new(permit, cut);
            match tokio::time::timeout(CONNECT_TIMEOUT, connect(&address)).await {
                Ok(Ok(stream)) => Ok(Box::new(Held::new(stream, open)) as ByteStream),
                Ok(Err(error)) if is_want_of_descriptors(&error) => {
                    tracing::error!(service = %address, %error, "no file descriptor left for a route");
                    Err(OpenError::NoDescriptors)
                }
                Ok(Err(error)) => {
                    tracing::info!(service = %address, %error, "a route's service cannot be connected to");
                    Err(OpenError::Unreachable)
                }
                Err(_) => Err(OpenError::NoAnswer),
            }
        })
    }

    fn admit(&self, visitor: VisitorAddr) -> Result<Option<Slot>, OpenError> {
        self.in_use.take(visitor.0).map(Some).map_err(|full| match full {
            SlotsFull::Total(_) => OpenError::Busy,
            SlotsFull::Address(_) => OpenError::VisitorBusy,
        })
    }

    fn has_room(&self) -> bool {
        self.free.available_permits() > 0
    }
}

/// `EMFILE` and `ENFILE`, which the standard library has no kind for.
fn is_want_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

async fn connect(address: &BackendAddr) -> io::Result<ByteStream> {
    match address {
        BackendAddr::Tcp { host, port } => {
            let host = host.as_str().trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, *port)).await?;
            prepare_socket(&stream);
            Ok(Box::new(stream))
        }
        BackendAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}
