//! The single port. Read this first.
//!
//! A connection is accepted with a slot ([`crate::net`]), and one deadline runs until it is
//! known what it is: the first bytes tell TLS from plain SSH and plain HTTP, the ClientHello is
//! read (`hello`), ALPN decides, and without ALPN the first bytes within TLS do. Then it is
//! handed over, and this room forgets it.
//!
//! Refuses to look into what SSH and HTTP carry.

mod classify;
mod hello;
mod port;
mod tls;

pub use classify::{Opening, TlsClass, by_alpn, by_first_bytes};
pub use port::{Certificates, Edge};
