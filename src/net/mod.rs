//! Sockets and the tasks that own them: bind, accept, connection slots, byte copies; and requests to
//! other people's servers.
//!
//! Refuses to know what arrives: what a connection carries is [`crate::edge`]'s to find out.

mod accept;
mod any_certificate;
mod bind;
mod fetch;
mod io;
mod pem;
mod slots;
mod tasks;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

pub use accept::accept_loop;
pub use any_certificate::AnyCertificate;
pub use bind::{BindError, bind, bind_udp, prepare_socket};
pub use fetch::{Fetch, FetchError, FetchOptions};
pub use io::{ByteStream, CopyEnd, CopyOutcome, Duplex, Held, Replay, copy_both, copy_both_until};
pub use pem::pem_fault;
pub use slots::{Slot, Slots, SlotsFull, address_group};
pub use tasks::{Isolated, Tasks};

/// The other end of the TCP connection, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

impl PeerAddr {
    /// The address without the port; an IPv4-mapped IPv6 address as the IPv4 address it is.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.0.ip().to_canonical()
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip(), self.0.port()).fmt(f)
    }
}

/// Who a request came from: the peer, or what a trusted proxy said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VisitorAddr(pub IpAddr);

impl fmt::Display for VisitorAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one accepted connection in logs and error pages; unique within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(u64);

impl ConnId {
    /// The next unused id.
    #[must_use]
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{:x}", self.0)
    }
}
