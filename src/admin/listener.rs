//! Where the admin listens: a loopback address, or a unix socket that only this user may open.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::config::AdminListen;
use crate::net::{BindError, ByteStream, bind, prepare_socket};

/// Connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 16;
/// Pause after an accept error.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the admin cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be had.
    #[error(transparent)]
    Address(#[from] BindError),
    /// Somebody listens on the socket.
    #[error("cannot listen on `{0}`: another program does; stop it, or set `admin.listen` to another path")]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("cannot listen on `{0}`: there is something that is no socket; move it, or choose another path")]
    NoSocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on `{0}`: {1}; its folder must exist, and this user may write there")]
    Socket(PathBuf, io::Error),
}

/// Accepts connections.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    place: String,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Begins to listen. The second value is the socket's file, if it is one. Must be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn bind(place: &AdminListen) -> Result<(Self, Option<SocketFile>), AdminError> {
        match place {
            AdminListen::Tcp(address) => {
                let listener = bind(*address)?;
                let place = listener.local_addr().unwrap_or(*address).to_string();
                Ok((Self { kind: Kind::Tcp(listener), place }, None))
            }
            AdminListen::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                let place = format!("unix:{}", path.display());
                Ok((Self { kind: Kind::Unix(listener), place }, Some(file)))
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether a host name can lead here, as it can to an address.
    pub(super) fn is_open_to_names(&self) -> bool {
        matches!(self.kind, Kind::Tcp(_))
    }

    /// The next connection. An error is only waited out. Cancel safe.
    pub(super) async fn accept(&self) -> ByteStream {
        loop {
            let accepted = match &self.kind {
                Kind::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    prepare_socket(&stream);
                    Box::new(stream) as ByteStream
                }),
                Kind::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| Box::new(stream) as ByteStream)
                }
            };
            match accepted {
                Ok(stream) => return stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept an admin connection; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// The file of a unix socket; dropping it removes it, unless another program's lies there by now.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: Option<(u64, u64)>,
    /// Keeps the socket listening, and with it the inode from being used again.
    _socket: Socket,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && identity(&self.path) == self.id {
            // Failing means that it is gone, or stays to be replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|facts| (facts.dev(), facts.ino()))
}

/// Makes the socket. One that a killed gateway left behind is replaced.
fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), AdminError> {
    let failed = |error| AdminError::Socket(path.to_owned(), error);
    let address = SockAddr::unix(path).map_err(failed)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(failed(error));
        }
        remove_stale(path, &address)?;
        socket.bind(&address).map_err(failed)?;
    }
    let second = socket.try_clone().map_err(failed)?;
    let file = SocketFile { path: path.to_owned(), id: identity(path), _socket: second };
    // Nobody can connect before it listens, so there is no moment at which others could.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    let listener = UnixListener::from_std(socket.into()).map_err(failed)?;
    Ok((listener, file))
}

/// Removes a socket that nobody listens on, and nothing else.
fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), AdminError> {
    let failed = |error| AdminError::Socket(path.to_owned(), error);
    // Not through links: what they lead to is not ours to remove.
    let facts = fs::symlink_metadata(path).map_err(failed)?;
    if !facts.file_type().is_socket() {
        return Err(AdminError::NoSocket(path.to_owned()));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // Whoever listens may be too busy to accept, and must not be waited for.
    probe.set_nonblocking(true).map_err(failed)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the admin socket of a gateway that has ended");
            fs::remove_file(path).map_err(failed)
        }
        _ => Err(AdminError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_ones_own_and_goes_in_the_end() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("admin.sock");
        let (listener, file) = bind_unix(&path).expect("free");
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind_unix(&path), Err(AdminError::InUse(_))), "taken from a living program");
        drop((listener, file));
        assert!(!path.exists());

        // As after a kill: the file is there, and nobody behind it.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("free"));
        let (_listener, file) = bind_unix(&path).expect("stale");
        fs::remove_file(&path).expect("there");
        let (_other, others) = bind_unix(&path).expect("free again");
        drop(file);
        assert!(path.exists(), "removed another's socket");
        drop(others);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("precious");
        fs::write(&path, "data").expect("written");
        assert!(matches!(bind_unix(&path), Err(AdminError::NoSocket(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        assert!(matches!(bind_unix(&link), Err(AdminError::NoSocket(_))));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "data");
        assert!(matches!(bind_unix(&dir.path().join("no/folder")), Err(AdminError::Socket(..))));
    }
}
