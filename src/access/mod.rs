//! The only decision: (who, what, from where) → [`Permit`] or [`Denial`].

mod identity;
mod visit;

pub use identity::Identity;
pub use visit::{AccessLevel, Denial, Permit, visit};
