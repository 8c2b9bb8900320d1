//! The only decision: (who, what, from where) → [`Permit`] or [`Denial`]; for agents' keys,
//! [`AgentKeys::check`].

mod authorized_keys;
mod identity;
mod keys;
mod visit;

pub use identity::Identity;
pub use keys::{AgentKeys, KeyRefusal, KeysError};
pub use visit::{AccessLevel, Denial, Permit, Request, visit};
