//! What whoever opened a stream and its owner tell each other beside the stream: that it was cut, for
//! an owner who does not read just then; and by whose right it is used.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use crate::net::Slot;
use crate::observe::Reason;

type Act = Box<dyn FnOnce(Reason) + Send>;

/// Tells the owner of a stream that the stream was cut: too much of it was unread, what was unread
/// could not be kept, or the agent's key was taken off the list. Its reads fail as well, but an owner whose own visitor takes
/// nothing does not read. Clones share it.
#[derive(Clone, Default)]
pub struct Cut(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    why: Option<Reason>,
    act: Option<Act>,
    slot: Option<Arc<Slot>>,
}

impl Cut {
    /// The stream was cut for this reason. The first one stays.
    pub fn tell(&self, why: Reason) {
        let act = {
            let mut state = self.0.lock();
            state.why.get_or_insert(why);
            state.act.take()
        };
        if let Some(act) = act {
            act(why);
        }
    }

    /// Why the stream was cut, if it was.
    #[must_use]
    pub fn why(&self) -> Option<Reason> {
        self.0.lock().why
    }

    /// Has `act` run when the stream is cut, instead of what was to run before; at once if it is
    /// cut already. `act` must not wait.
    pub fn on_cut(&self, act: impl FnOnce(Reason) + Send + 'static) {
        let mut state = self.0.lock();
        if let Some(why) = state.why {
            drop(state);
            return act(why);
        }
        state.act = Some(Box::new(act));
    }

    /// Notes by whose right the stream is used from now on; nobody's while it is kept for reuse. Whoever
    /// opened it lets the right go when what the stream took is free again, which may be later than
    /// its end.
    pub fn used_by(&self, slot: Option<Arc<Slot>>) {
        let before = std::mem::replace(&mut self.0.lock().slot, slot);
        drop(before);
    }

    /// Has nothing run any more.
    pub fn forget(&self) {
        let act = self.0.lock().act.take();
        drop(act);
    }
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cut").field(&self.0.lock().why).finish()
    }
}

/// Counts a stream as open, and as its visitor's.
#[derive(Debug)]
pub struct Open {
    permit: Option<OwnedSemaphorePermit>,
    cut: Cut,
}

impl Open {
    /// By this permit; `cut` knows whose stream it is.
    #[must_use]
    pub fn new(permit: OwnedSemaphorePermit, cut: Cut) -> Self {
        Self { permit: Some(permit), cut }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Who finds the visitor's right free finds a stream as well.
        drop(self.permit.take());
        self.cut.used_by(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_last_act_runs_once_even_when_it_comes_late() {
        let (cut, ran) = (Cut::default(), Arc::new(AtomicU32::new(0)));
        let add = |amount| {
            let ran = ran.clone();
            move |why| {
                assert_eq!(why, Reason::NoSpace);
                ran.fetch_add(amount, Ordering::Relaxed);
            }
        };
        cut.on_cut(add(100));
        cut.forget();
        cut.on_cut(add(10));
        cut.on_cut(add(1));
        assert_eq!(cut.why(), None);
        cut.tell(Reason::NoSpace);
        cut.tell(Reason::VisitorTooSlow);
        assert_eq!(cut.why(), Some(Reason::NoSpace));
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        cut.on_cut(add(1000));
        assert_eq!(ran.load(Ordering::Relaxed), 1001);
    }
}
