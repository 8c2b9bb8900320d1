//! The room's promises, each over real sockets: a visitor's bytes in, a service's bytes out.

#![allow(clippy::unwrap_used)]

mod h2;
mod injection;
mod packed;
mod quiet;
mod requests;
mod smuggling;
mod stalls;
mod streams;
mod support;
mod upgrades;
mod uploads;
