//! The only decision: (who, what, from where) → [`Permit`] or [`Denial`]; for agents' keys,
//! [`AgentKeys::check`].

mod authorized_keys;
mod codes;
mod follow;
mod hold;
mod identity;
mod issuer;
mod issuers;
mod keep;
mod key_files;
mod key_set;
mod keys;
mod logouts;
mod oidc;
mod oidc_rules;
mod remote;
mod seal;
mod session;
mod shares;
mod token;
mod verdicts;
mod verifying_key;
mod visit;

pub use codes::CodeFault;
pub use hold::{Basis, Hold};
pub use identity::Identity;
pub use issuer::IssuerError;
pub use issuers::{Issuers, Refused};
pub use key_files::KeysError;
pub use keys::{AgentKeys, KeyRefusal};
pub use oidc::{Begun, Oidc, OidcError, OidcFault};
pub use seal::{Purpose, SealError, Seals, random_text};
pub use session::{Known, Origin, Sees, Session, Sessions, SessionsError};
pub use shares::{GUEST_PATH, Guest, LinkFault, Share, ShareFault, ShareId, Shares};
pub use token::{Claims, TokenFault, brief};
pub use verdicts::{Maker, Verdict};
pub use visit::{AccessLevel, Credentials, Denial, Host, Permit, Request, Way, authenticate, prepare, visit};
