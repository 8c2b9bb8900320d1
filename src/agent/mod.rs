//! The client side. [`connect`] is what `ProxyCommand` runs: TLS with ALPN `ssh`, then bytes.
//! [`SigningKey`] makes tokens, and [`usual_keys`] knows which key `ssh` would take.
//!
//! Refuses a server that it cannot verify, unless told otherwise.

mod connect;
mod ssh_settings;
mod stdio;
mod tls;
mod token;
mod usual;

pub use connect::{CONNECT_TIMEOUT, ConnectError, ConnectOptions, connect, dial};
pub use ssh_settings::{SshFault, SshSettings};
pub use stdio::Stdio;
pub use token::{SigningKey, TokenError};
pub use usual::{UsualKey, public_half, usual_keys};
