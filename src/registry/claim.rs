//! Claiming and looking up names.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{TargetId, Tunnel};
use crate::name::TunnelName;

/// All tunnels that exist now. Clones share the contents.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    tunnels: Arc<RwLock<HashMap<TunnelName, Arc<Tunnel>>>>,
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
        if let Some(by) = tunnels.get(&claim.name) {
            return Err(Taken { by: by.clone(), claim: Box::new(claim) });
        }
        let tunnel = Arc::new(claim);
        tunnels.insert(tunnel.name.clone(), tunnel.clone());
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
        self.tunnels.read().get(name).cloned()
    }

    /// The tunnels of one profile, by their names. Looks at every tunnel: not for each request.
    #[must_use]
    pub fn of_profile(&self, profile: &str) -> Vec<Arc<Tunnel>> {
        let is_its = |tunnel: &&Arc<Tunnel>| {
            tunnel.owner.thumbprint.as_ref().is_some_and(|own| own.as_str() == profile)
        };
        let mut all: Vec<_> = self.tunnels.read().values().filter(is_its).cloned().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// How many tunnels there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tunnels.read().len()
    }

    fn remove(&self, id: TargetId, name: &TunnelName) {
        let mut tunnels = self.tunnels.write();
        if tunnels.get(name).is_some_and(|held| held.id == id) {
            tunnels.remove(name);
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
