//! What a name leads to now: all that [`crate::http`] knows of whom it forwards to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::{Backend, Opener, Tunnel};
use crate::access::Bounds;

/// Names one target; never used twice within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetId(u64);

impl TargetId {
    /// The next unused id.
    #[must_use]
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Where requests for a name go. Clones share it.
#[derive(Clone, Debug)]
pub enum Target {
    /// To an agent's service.
    Tunnel(Arc<Tunnel>),
    /// To a service that the configuration names.
    Route(Arc<Backend>),
}

impl Target {
    /// This target and no later one of the same name.
    #[must_use]
    pub fn id(&self) -> TargetId {
        match self {
            Self::Tunnel(tunnel) => tunnel.id,
            Self::Route(backend) => backend.id,
        }
    }

    /// Whether both are offered by the same session, and so share what it can carry.
    #[must_use]
    pub fn shares_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tunnel(one), Self::Tunnel(other)) => {
                std::ptr::addr_eq(&raw const *one.holder, &raw const *other.holder)
            }
            _ => self.id() == other.id(),
        }
    }

    /// What it is called in records.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Tunnel(tunnel) => tunnel.name.as_str(),
            Self::Route(backend) => &backend.name,
        }
    }

    /// What its visitors are held to.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        match self {
            Self::Tunnel(tunnel) => &tunnel.bounds,
            Self::Route(backend) => &backend.bounds,
        }
    }

    /// How to get bytes to it.
    #[must_use]
    pub fn opener(&self) -> &dyn Opener {
        match self {
            Self::Tunnel(tunnel) => &*tunnel.opener,
            Self::Route(backend) => &**backend,
        }
    }

    /// Cancelled when the name no longer leads there.
    #[must_use]
    pub fn gone(&self) -> &CancellationToken {
        match self {
            Self::Tunnel(tunnel) => &tunnel.gone,
            Self::Route(backend) => &backend.gone,
        }
    }
}
