//! Where names lead now. [`crate::ssh`] claims names here, the configuration fixes others, and
//! [`crate::http`] looks them up; none of them knows of another. A claim is a [`Lease`]: dropping
//! it gives the name back.

mod backend;
mod claim;
mod cut;
mod routes;
mod target;
mod tunnel;
mod watch;

pub use backend::Backend;
pub use claim::{Lease, Registry, Taken};
pub use cut::{Cut, Open};
pub use routes::Routes;
pub use target::{Target, TargetId};
pub use tunnel::{BoxFuture, Holder, OpenError, Opener, Script, Tunnel, Visit};
pub use watch::Watched;
