//! A service that the configuration names, and how to connect to it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{BoxFuture, OpenError, Opener, TargetId};
use crate::config::{BackendAddr, RouteSettings};
use crate::net::{ByteStream, VisitorAddr, prepare_socket};

/// How long a service may take to accept a connection, looking up its name included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a route leads.
#[derive(Debug)]
pub struct Backend {
    /// This backend.
    pub id: TargetId,
    /// The route as people write it: host, and path if it has one.
    pub name: String,
    /// Where it listens.
    pub address: Arc<BackendAddr>,
    /// Cancelled when the route is taken out of the configuration.
    pub gone: CancellationToken,
}

impl Backend {
    /// Where a route leads.
    #[must_use]
    pub fn of(route: &RouteSettings) -> Self {
        let path = if route.path == "/" { "" } else { &route.path };
        Self {
            id: TargetId::next(),
            name: format!("{}{path}", route.host),
            address: Arc::new(route.to.clone()),
            gone: CancellationToken::new(),
        }
    }
}

impl Opener for Backend {
    fn open(&self, _: VisitorAddr) -> BoxFuture<'static, Result<ByteStream, OpenError>> {
        let address = self.address.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connect(&address)).await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(error)) => {
                    tracing::info!(service = %address, %error, "a route's service cannot be connected to");
                    Err(OpenError::Unreachable)
                }
                Err(_) => Err(OpenError::NoAnswer),
            }
        })
    }
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
