//! News for whoever watches; next to nothing is kept while nobody does.

use std::sync::{Arc, OnceLock};

use tokio::sync::broadcast;

/// News that a watcher may be behind; past it the oldest are dropped.
const KEPT: usize = 64;

/// Where news of one kind comes from. Clones share the watchers.
#[derive(Clone, Debug)]
pub struct Watched<T>(Arc<OnceLock<broadcast::Sender<T>>>);

impl<T> Default for Watched<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Watched<T> {
    /// Watches from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<T> {
        self.0.get_or_init(|| broadcast::Sender::new(KEPT)).subscribe()
    }

    /// Tells those who watch; `news` is made only if anybody does. Whether anybody did.
    pub fn tell(&self, news: impl FnOnce() -> T) -> bool {
        // An error means that the last watcher has just left.
        self.0.get().is_some_and(|sender| sender.receiver_count() > 0 && sender.send(news()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_made_for_watchers_only() {
        let watched = Watched::default();
        assert!(!watched.tell(|| unreachable!("nobody watches yet")));
        let mut watcher = watched.watch();
        assert!(watched.clone().tell(|| 7));
        assert_eq!(watcher.try_recv(), Ok(7));
        drop(watcher);
        assert!(!watched.tell(|| unreachable!("nobody watches any more")));
    }
}
