//! The only decision: (who, what, from where) → [`Permit`] or [`Denial`]; for agents' keys,
//! [`AgentKeys::check`].

mod authorized_keys;
mod identity;
mod key_files;
mod keys;
mod visit;

pub use identity::Identity;
pub use key_files::KeysError;
pub use keys::{AgentKeys, KeyRefusal};
pub use visit::{AccessLevel, Denial, Permit, Request, visit};
