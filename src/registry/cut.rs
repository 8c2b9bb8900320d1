//! Word from whoever opened a stream that it was cut, for an owner who does not read just then.

use std::sync::Arc;

use parking_lot::Mutex;

type Act = Box<dyn FnOnce() + Send>;

/// Tells the owner of a stream that the stream was cut because too much of it was unread. Its
/// reads fail as well, but an owner whose own visitor takes nothing does not read. Clones share it.
#[derive(Clone, Default)]
pub struct Cut(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    is_cut: bool,
    act: Option<Act>,
}

impl Cut {
    /// The stream was cut.
    pub fn tell(&self) {
        let act = {
            let mut state = self.0.lock();
            state.is_cut = true;
            state.act.take()
        };
        if let Some(act) = act {
            act();
        }
    }

    /// Has `act` run when the stream is cut, instead of what was to run before; at once if it is
    /// cut already. `act` must not wait.
    pub fn on_cut(&self, act: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        if state.is_cut {
            drop(state);
            return act();
        }
        state.act = Some(Box::new(act));
    }

    /// Has nothing run any more.
    pub fn forget(&self) {
        let act = self.0.lock().act.take();
        drop(act);
    }
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cut").field(&self.0.lock().is_cut).finish()
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
            move || {
                ran.fetch_add(amount, Ordering::Relaxed);
            }
        };
        cut.on_cut(add(100));
        cut.forget();
        cut.on_cut(add(10));
        cut.on_cut(add(1));
        cut.tell();
        cut.tell();
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        cut.on_cut(add(1000));
        assert_eq!(ran.load(Ordering::Relaxed), 1001);
    }
}
