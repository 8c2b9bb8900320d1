//! oneport: a single-port edge gateway.
//!
//! One TCP listener ends TLS and splits what arrives by ALPN, SNI and first bytes: agents'
//! SSH sessions, visitors' HTTPS, and refusals in plain words for everything else.
//!
//! The way of a byte: [`app`] starts the listeners, [`edge`] finds out what a connection is,
//! [`ssh`] keeps agents' sessions, [`http`] serves visitors. The last two never import each
//! other; they meet in the [`registry`] through its [`Opener`](registry::Opener).
//!
//! The rooms, in the order of their imports (a file imports only from rooms above its own):
//!
//! | room | one job |
//! |---|---|
//! | [`name`] | host names, tunnel names, client ids: parsed once, pure |
//! | [`observe`] | logs, records, reasons, redaction |
//! | [`net`] | bind, accept, connection slots, tasks; the two-way copy |
//! | [`config`] | what was written → what it means |
//! | [`access`] | the only decision: who may do what |
//! | [`registry`] | who offers which name now |
//! | [`certs`] | SNI → certificate and key; records that prove names |
//! | [`agent`] | the client side: `oneport connect` |
//! | [`ssh`] | agents' sessions on the gateway |
//! | [`http`] | visitors' requests |
//! | [`edge`] | the single port: accept → class → hand over |
//! | [`admin`] | figures, health and status, for those who run the gateway |
//! | [`app`] | composition root: provision → run → drain |

pub mod access;
pub mod admin;
pub mod agent;
pub mod app;
pub mod certs;
pub mod config;
pub mod edge;
pub mod http;
pub mod name;
pub mod net;
pub mod observe;
pub mod registry;
pub mod ssh;
