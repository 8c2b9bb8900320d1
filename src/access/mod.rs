//! The only decision: (who, what, from where) → [`Permit`] or [`Denial`]; for agents' keys,
//! [`AgentKeys::check`].

mod authorized_keys;
mod identity;
mod issuers;
mod key_files;
mod keys;
mod token;
mod visit;

pub use identity::Identity;
pub use issuers::{IssuerError, Issuers};
pub use key_files::KeysError;
pub use keys::{AgentKeys, KeyRefusal};
pub use token::{Claims, TokenFault};
pub use visit::{AccessLevel, Credentials, Denial, Host, Permit, Request, Way, authenticate, visit};
