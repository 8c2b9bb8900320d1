//! The promises, each shown with real programs against the real binary.

mod admin;
mod channels;
mod classify;
mod config;
mod connect;
mod dev;
mod docs;
mod drain;
mod fair_share;
mod growth;
mod hostile;
mod http_visitors;
mod instructions;
mod keys;
mod limits;
mod odd_agents;
mod routes;
mod ssh_audit;
mod stalled_visitor;
mod support;
mod takeover;
mod tcp_forward;
mod tunnel_openssh;
mod tunnel_ssh2;
mod vectors;
mod websocket;
