//! The promises, each shown with real programs against the real binary.

mod http_visitors;
mod support;
mod tcp_forward;
mod tunnel_openssh;
mod tunnel_ssh2;
mod vectors;
mod websocket;
