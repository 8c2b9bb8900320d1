//! How a directory is reached, for all names that are ordered there; and when all leave it alone: one
//! who found nobody there, or was told to stay away, tells the others.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::client::fetch_with;
use super::fault::{Fault, FaultKind};
use super::off_thread;
use crate::config::DirectorySettings;
use crate::net::Fetch;

/// How long nobody asks a directory again that could not be reached, or that does not say how long it
/// wants to be left alone.
const CLOSED: Duration = Duration::from_secs(60);
/// How long a directory with trouble of its own is left alone at most.
const TROUBLE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How a directory is reached.
#[derive(Debug, Default)]
pub(super) struct Door {
    /// Made when first needed, and anew after nobody was there whom it trusts.
    client: Mutex<Option<Fetch>>,
    /// Why nobody is to ask, and until when. Others need not find out by themselves.
    closed: Mutex<Option<(Instant, Fault)>>,
}

impl Door {
    /// Why nobody is to ask now.
    pub(super) fn is_closed(&self) -> Option<Fault> {
        let closed = self.closed.lock();
        let (until, fault) = closed.as_ref()?;
        let left = until.saturating_duration_since(Instant::now());
        let retry_after = fault.retry_after.map(|_| left);
        (!left.is_zero()).then(|| Fault { retry_after, proofs: 0, ..fault.clone() })
    }

    /// Notes that nobody is there, or that nobody is to ask, if that is what the fault says.
    pub(super) fn close(&self, fault: Fault) -> Fault {
        let Some(pause) = pause_of_all(&fault) else { return fault };
        if fault.kind == FaultKind::DirectoryUnreachable {
            // Whom the system trusts is read anew: it may have been out of date.
            *self.client.lock() = None;
        }
        let mut closed = self.closed.lock();
        let until = Instant::now() + pause;
        if closed.as_ref().is_none_or(|(before, _)| *before < until) {
            *closed = Some((until, fault.clone()));
        }
        fault
    }

    /// Lets everybody ask again: somebody may have mended what was wrong.
    pub(super) fn open(&self) {
        *self.closed.lock() = None;
    }

    /// The HTTP client, whose connections are kept between attempts.
    pub(super) async fn client(&self, directory: &DirectorySettings) -> Result<Fetch, Fault> {
        if let Some(client) = self.client.lock().clone() {
            return Ok(client);
        }
        let root = directory.root.clone();
        let made = off_thread(move || fetch_with(root.as_deref())).await?;
        let made = made.map_err(|text| Fault::new(FaultKind::DirectoryUnreachable, text))?;
        Ok(self.client.lock().insert(made).clone())
    }
}

/// How long a fault is a reason for nobody to ask; `None` where it is about one name alone.
fn pause_of_all(fault: &Fault) -> Option<Duration> {
    match fault.kind {
        FaultKind::DirectoryUnreachable => Some(CLOSED),
        FaultKind::AuthorityFailed => Some(fault.retry_after?.min(TROUBLE_MAX)),
        FaultKind::RateLimited if fault.is_general => Some(fault.retry_after.unwrap_or(CLOSED)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: FaultKind, retry_after: Option<u64>, is_general: bool) -> Fault {
        let retry_after = retry_after.map(Duration::from_secs);
        Fault { retry_after, is_general, ..Fault::new(kind, "why") }
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_is_down_is_asked_once_a_minute() {
        let door = Door::default();
        let down = fault(FaultKind::DirectoryUnreachable, None, false);
        door.close(down.clone());
        assert_eq!(door.is_closed(), Some(down));
        tokio::time::advance(CLOSED).await;
        assert!(door.is_closed().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_authority_says_to_one_counts_for_all() {
        use FaultKind::{AuthorityFailed, RateLimited, Rejected};
        let closed_for = |kind, retry_after, is_general| {
            let door = Door::default();
            door.close(fault(kind, retry_after, is_general));
            door.is_closed().map(|fault| fault.retry_after.map(|left| left.as_secs()))
        };
        assert_eq!(closed_for(AuthorityFailed, Some(3600), false), Some(Some(3600)));
        assert_eq!(closed_for(AuthorityFailed, Some(1 << 40), false), Some(Some(24 * 3600)));
        assert_eq!(closed_for(AuthorityFailed, None, false), None);
        assert_eq!(closed_for(RateLimited, Some(7200), true), Some(Some(7200)));
        assert_eq!(closed_for(RateLimited, None, true), Some(None));
        assert_eq!(closed_for(RateLimited, Some(7200), false), None, "one name's limit");
        assert_eq!(closed_for(Rejected, Some(7200), false), None);
        // The longer of two counts, and what is left of it is told.
        let door = Door::default();
        door.close(fault(AuthorityFailed, Some(100), false));
        door.close(fault(AuthorityFailed, Some(10), false));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(door.is_closed().and_then(|fault| fault.retry_after), Some(Duration::from_secs(40)));
        door.open();
        assert!(door.is_closed().is_none());
    }

    #[tokio::test]
    async fn the_client_is_made_anew_after_nobody_was_there() {
        let door = Door::default();
        let directory = DirectorySettings { url: "https://ca.test/dir".to_owned(), root: None, eab: None };
        door.client(&directory).await.expect("made");
        door.close(fault(FaultKind::AuthorityFailed, Some(1), false));
        assert!(door.client.lock().is_some());
        door.close(fault(FaultKind::DirectoryUnreachable, None, false));
        assert!(door.client.lock().is_none());
    }
}
