//! The client side. [`connect`] is what `ProxyCommand` runs: TLS with ALPN `ssh`, then bytes.
//!
//! Refuses a server that it cannot verify, unless told otherwise.

mod connect;
mod stdio;
mod tls;
mod token;

pub use connect::{CONNECT_TIMEOUT, ConnectError, ConnectOptions, connect, dial};
pub use stdio::Stdio;
pub use token::{SigningKey, TokenError};
