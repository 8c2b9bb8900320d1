//! How many sessions a key has, and how many tunnels it offers over all of them. Remembers keys only
//! while they have something.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::SshSettings;

/// What there are quotas of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// Sessions.
    Sessions,
    /// Tunnels.
    Tunnels,
}

/// What each key has. Clones share it.
#[derive(Clone, Debug)]
pub struct Quotas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sessions: usize,
    tunnels: usize,
    /// By what it is, and the key's fingerprint.
    held: Mutex<HashMap<(Of, Arc<str>), usize>>,
}

/// The key has as many as it may: so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full(pub usize);

/// One session or tunnel of a key; dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    quotas: Quotas,
    what: (Of, Arc<str>),
}

impl Quotas {
    /// The quotas that the settings name.
    #[must_use]
    pub fn new(settings: &SshSettings) -> Self {
        let (sessions, tunnels) = (settings.max_sessions_per_key, settings.max_tunnels_per_key);
        Self(Arc::new(Inner { sessions, tunnels, held: Mutex::default() }))
    }

    /// Takes one more for a key. `None` where there is no quota, and nothing is counted.
    ///
    /// # Errors
    /// When the key has as many as it may.
    pub fn take(&self, of: Of, fingerprint: &Arc<str>) -> Result<Option<Share>, Full> {
        let most = match of {
            Of::Sessions => self.0.sessions,
            Of::Tunnels => self.0.tunnels,
        };
        if most == 0 {
            return Ok(None);
        }
        let what = (of, fingerprint.clone());
        let mut held = self.0.held.lock();
        match held.entry(what.clone()) {
            Entry::Occupied(entry) if *entry.get() >= most => return Err(Full(most)),
            entry => *entry.or_insert(0) += 1,
        }
        Ok(Some(Share { quotas: self.clone(), what }))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.quotas.0.held.lock();
        if let Some(count) = held.get_mut(&self.what) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_and_nothing_stays() {
        let inner = Inner { sessions: 1, tunnels: 0, held: Mutex::default() };
        let quotas = Quotas(Arc::new(inner));
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let held = quotas.take(Of::Sessions, &one).expect("free");
        assert_eq!(quotas.take(Of::Sessions, &one).map(drop), Err(Full(1)));
        assert!(quotas.take(Of::Sessions, &other).is_ok());
        assert!(quotas.take(Of::Tunnels, &one).expect("no quota").is_none());
        drop(held);
        assert!(quotas.take(Of::Sessions, &one).is_ok());
        assert!(quotas.0.held.lock().is_empty());
    }
}
