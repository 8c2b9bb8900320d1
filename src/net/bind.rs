//! Binding listeners and sockets, with errors that say what to do; and what every connection is set to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, UdpSocket};

/// Connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;

/// Unsent octets in the kernel above which a socket does not count as writable.
const NOTSENT_LOWAT: u32 = 128 * 1024;
/// Silence after which the kernel asks whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// `EAFNOSUPPORT` on Linux.
const EAFNOSUPPORT: i32 = 97;

/// Whether what a listener accepts is set as the listener is.
pub const INHERITED: bool = cfg!(target_os = "linux");

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program listens there.
    #[error("cannot listen on `{0}`: another program holds this port; stop it, or choose another port")]
    InUse(SocketAddr),
    /// The port needs a privilege.
    #[error(
        "cannot listen on `{0}`: this needs a privilege; grant CAP_NET_BIND_SERVICE, or use a port from 1024 up"
    )]
    Privileged(SocketAddr),
    /// The address is not one of this machine's.
    #[error(
        "cannot listen on `{0}`: this machine has no such address; use one of its own, `0.0.0.0` or `[::]`"
    )]
    NoSuchAddress(SocketAddr),
    /// The system has no IPv6, and this is one of its general addresses.
    #[error("cannot listen on `{0}`: this system has no IPv6; take the address out of the list")]
    NoIpv6(SocketAddr),
    /// Something else.
    #[error("cannot listen on `{0}`: {1}")]
    Other(SocketAddr, io::Error),
}

/// Binds a TCP listener. An IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can be
/// listed side by side on every system.
///
/// # Errors
/// When the operating system refuses. Must be called within a tokio runtime.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    open(address).map_err(|error| explain(address, error))
}

/// Binds a UDP socket, with the same understanding of IPv6.
///
/// # Errors
/// When the operating system refuses. Must be called within a tokio runtime.
pub fn bind_udp(address: SocketAddr) -> Result<UdpSocket, BindError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|error| explain(address, error))
}

fn explain(address: SocketAddr, error: io::Error) -> BindError {
    let general_v6 = address.is_ipv6() && (address.ip().is_unspecified() || address.ip().is_loopback());
    match error.kind() {
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported if general_v6 => {
            BindError::NoIpv6(address)
        }
        // What the standard library has no kind for: "address family not supported".
        _ if general_v6 && error.raw_os_error() == Some(EAFNOSUPPORT) => BindError::NoIpv6(address),
        io::ErrorKind::AddrInUse => BindError::InUse(address),
        io::ErrorKind::PermissionDenied => BindError::Privileged(address),
        io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress(address),
        _ => BindError::Other(address, error),
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Restarting must not wait for old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    prepare_socket(&socket);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets what every connection needs. It only fails on a socket that is already dead, and then so
/// does the rest.
///
/// On Linux, what a listener accepts inherits all of it, which saves five system calls a
/// connection.
pub fn prepare_socket(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    // Small answers must not wait for an acknowledgement (Nagle's algorithm).
    let _ = socket.set_tcp_nodelay(true);
    // What waits for a slow peer waits here, where it can still be put in order, and not in a
    // kernel queue of megabytes that answers and keep-alives would stand behind.
    let _ = socket.set_tcp_notsent_lowat(NOTSENT_LOWAT);
    // A peer that vanished without a word is noticed where nothing is being written to it.
    let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    let _ = socket.set_tcp_keepalive(&probes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_is_prepared() {
        let listener = bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (accepted, _client) = tokio::join!(listener.accept(), tokio::net::TcpStream::connect(address));
        let (accepted, _) = accepted.expect("a connection");
        if !INHERITED {
            prepare_socket(&accepted);
        }
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("open") && socket.keepalive().expect("open"));
        assert_eq!(socket.tcp_notsent_lowat().expect("open"), NOTSENT_LOWAT);
        assert_eq!(socket.tcp_keepalive_time().expect("open"), KEEPALIVE);
    }
}
