//! Claiming and looking up names.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{TargetId, Tunnel};
use crate::name::{Thumbprint, TunnelName};

/// All tunnels that exist now. Clones share the contents.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    tunnels: Arc<RwLock<Tunnels>>,
}

/// Changed in one place each, so that both always hold the same tunnels.
#[derive(Debug, Default)]
struct Tunnels {
    by_name: HashMap<TunnelName, Arc<Tunnel>>,
    /// Of those whose key has a profile.
    by_profile: HashMap<Thumbprint, HashMap<TunnelName, Arc<Tunnel>>>,
}

/// The name is held already.
#[derive(Debug)]
pub struct Taken {
    /// Who holds it.
    pub by: Arc<Tunnel>,
    /// The claim that failed, for another try.
    pub claim: Box<Tunnel>,
}

/// A claimed name; dropping it gives the name back and cancels [`Tunnel::gone`].
#[derive(Debug)]
#[must_use = "dropping a lease gives the name back"]
pub struct Lease {
    registry: Registry,
    tunnel: Arc<Tunnel>,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Claims the tunnel's name.
    ///
    /// # Errors
    /// When the name is held; the claim comes back with the holder.
    pub fn claim(&self, claim: Tunnel) -> Result<Lease, Taken> {
        let mut tunnels = self.tunnels.write();
        if let Some(by) = tunnels.by_name.get(&claim.name) {
            return Err(Taken { by: by.clone(), claim: Box::new(claim) });
        }
        let tunnel = Arc::new(claim);
        tunnels.insert(&tunnel);
        Ok(Lease { registry: self.clone(), tunnel })
    }

    /// Takes the name from a holder that was found dead. Its lease, dropped later, does nothing.
    pub fn evict(&self, dead: &Tunnel) {
        self.remove(dead.id, &dead.name);
        dead.gone.cancel();
    }

    /// The tunnel of this name.
    #[must_use]
    pub fn look_up(&self, name: &TunnelName) -> Option<Arc<Tunnel>> {
        self.tunnels.read().by_name.get(name).cloned()
    }

    /// The tunnels of one profile, by their names. Looks at these only.
    #[must_use]
    pub fn of_profile(&self, profile: &str) -> Vec<Arc<Tunnel>> {
        let mut all: Vec<_> = {
            let tunnels = self.tunnels.read();
            tunnels.by_profile.get(profile).into_iter().flat_map(HashMap::values).cloned().collect()
        };
        all.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// How many tunnels there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tunnels.read().by_name.len()
    }

    fn remove(&self, id: TargetId, name: &TunnelName) {
        let mut tunnels = self.tunnels.write();
        if tunnels.by_name.get(name).is_some_and(|held| held.id == id) {
            tunnels.remove(name);
        }
    }
}

impl Tunnels {
    fn insert(&mut self, tunnel: &Arc<Tunnel>) {
        self.by_name.insert(tunnel.name.clone(), tunnel.clone());
        if let Some(profile) = &tunnel.owner.thumbprint {
            let its = self.by_profile.entry(profile.clone()).or_default();
            its.insert(tunnel.name.clone(), tunnel.clone());
        }
    }

    fn remove(&mut self, name: &TunnelName) {
        let Some(tunnel) = self.by_name.remove(name) else { return };
        if let Some(profile) = &tunnel.owner.thumbprint
            && let Some(its) = self.by_profile.get_mut(profile)
        {
            its.remove(name);
            if its.is_empty() {
                self.by_profile.remove(profile);
            }
        }
    }
}

impl Lease {
    /// The tunnel that was claimed.
    #[must_use]
    pub fn tunnel(&self) -> &Arc<Tunnel> {
        &self.tunnel
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.registry.remove(self.tunnel.id, &self.tunnel.name);
        self.tunnel.gone.cancel();
    }
}
