//! The visits that run on a connection. Lists of networks change, and a visit ends whose visitor may
//! no longer come from where they are; so does the connection, if nobody may connect from there.

use std::future::{pending, poll_fn};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::service::Session;
use crate::access::{Admission, NetworkDenial};
use crate::net::VisitorAddr;
use crate::observe::Reason;
use crate::registry::Target;

type Act = Box<dyn FnOnce(Reason) + Send>;

/// The visits that run on one connection: as many as it has requests open.
#[derive(Debug, Default)]
pub(super) struct Stays(Mutex<Vec<Arc<Stay>>>);

/// A visit that runs, until its record is written.
pub(super) struct Stay {
    visitor: VisitorAddr,
    target: Target,
    over: OnceLock<NetworkDenial>,
    /// Who waits for that.
    task: AtomicWaker,
    act: Mutex<Option<Act>>,
}

impl Stays {
    /// Notes that a visit begins. It may be over at once: whoever may come is to be asked only
    /// before this.
    pub(super) fn begin(&self, visitor: VisitorAddr, target: &Target, admission: &Admission) -> Arc<Stay> {
        let (over, task, act) = Default::default();
        let stay = Arc::new(Stay { visitor, target: target.clone(), over, task, act });
        self.0.lock().push(stay.clone());
        stay.look(admission);
        stay
    }

    /// Notes that one has ended.
    pub(super) fn end(&self, ended: &Arc<Stay>) {
        let mut running = self.0.lock();
        let index = running.iter().position(|stay| Arc::ptr_eq(stay, ended));
        let ended = index.map(|index| running.swap_remove(index));
        drop(running);
        drop(ended);
    }

    fn look(&self, admission: &Admission) {
        let running = self.0.lock().clone();
        running.iter().for_each(|stay| stay.look(admission));
    }
}

impl Stay {
    /// Waits until the visitor may no longer be here. For one at a time. Cancel safe.
    pub(super) async fn over(&self) -> &NetworkDenial {
        poll_fn(|cx| self.poll_over(cx)).await
    }

    /// The same.
    pub(super) fn poll_over(&self, cx: &Context<'_>) -> Poll<&NetworkDenial> {
        self.task.register(cx.waker());
        self.denied().map_or(Poll::Pending, Poll::Ready)
    }

    /// Why the visitor may no longer be here, if so.
    pub(super) fn denied(&self) -> Option<&NetworkDenial> {
        self.over.get()
    }

    /// Has `act` run when the visitor may no longer be here; at once if so already. `act` must not
    /// wait.
    pub(super) fn on_over(&self, act: impl FnOnce(Reason) + Send + 'static) {
        *self.act.lock() = Some(Box::new(act));
        if self.denied().is_some() {
            self.act();
        }
    }

    fn look(&self, admission: &Admission) {
        let Err(denial) = admission.visit(self.target.bounds(), self.visitor) else { return };
        if self.over.set(denial).is_ok() {
            self.task.wake();
            self.act();
        }
    }

    fn act(&self) {
        let act = self.act.lock().take();
        if let Some(act) = act {
            act(Reason::NetworkDenied);
        }
    }
}

impl std::fmt::Debug for Stay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stay")
            .field("visitor", &self.visitor)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// Ends visits as they become denied, and resolves when the connection is. Cancel safe.
pub(super) async fn until_denied(session: &Session) -> Reason {
    let admission = session.http.admission();
    let mut changes = admission.changes();
    loop {
        session.activity.stays.look(admission);
        if let Err(denial) = admission.still_connected(session.conn.peer.ip()) {
            tracing::info!(conn = %session.conn.id, rule = %denial.by, "nobody may connect from there any more");
            // The parser is of no more use: nobody is to be read on.
            let _ = session.cut.set(Reason::NetworkDenied);
            return Reason::NetworkDenied;
        }
        if changes.changed().await.is_err() {
            // Lists live as long as the gateway.
            pending::<()>().await;
        }
    }
}
