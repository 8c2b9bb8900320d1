//! Who offers which name now. [`crate::ssh`] claims names here, [`crate::http`] looks them up;
//! neither knows of the other. A claim is a [`Lease`]: dropping it gives the name back.

mod claim;
mod cut;
mod tunnel;

pub use claim::{Lease, Registry, Taken};
pub use cut::Cut;
pub use tunnel::{BoxFuture, Holder, OpenError, Opener, Script, Tunnel, TunnelId, Visit};
