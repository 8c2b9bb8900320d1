//! Agents' sessions: who they are, what they expose, and the way to it.
//!
//! Knows nothing of HTTP: visitors reach an agent through the [`Opener`](crate::registry::Opener)
//! that a session puts into the registry with each name it claims. All of the living with the
//! SSH library's ways is in [`transport`], [`channel`] and its pump.

mod ahead;
mod backlog;
pub mod budget;
pub mod channel;
mod commands;
pub mod ending;
pub mod forward;
mod goodbye;
mod greeting;
mod handler;
mod hold;
pub mod host_key;
mod opener;
mod place;
mod progress;
mod pump;
pub mod queue;
mod quota;
mod refusal;
mod screen;
mod server;
mod session;
mod sessions;
mod share;
pub mod spill;
mod terminal;
pub mod transport;
mod watch;
mod window;

pub use server::{AgentConnection, Ssh, Trust};
pub use sessions::SessionFacts;
