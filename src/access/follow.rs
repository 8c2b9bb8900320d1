//! Keeps issuers' keys those in their files and at their URLs. A reading or fetch that fails keeps
//! the keys as they were.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::issuer::{Issuer, read};
use super::remote::{Remote, retry_after};
use crate::config::watch::{Complaint, FileWatch, Hangups, POLL, Places, off_thread, stamp};
use crate::net::Tasks;

/// How often the same failure is logged at most: it may last until somebody comes to work.
const REPEAT: Duration = Duration::from_secs(5 * 60);

/// Starts to follow an issuer's keys, until draining begins. Those that stand in the configuration
/// need it not, and one that is no longer configured needs it no more.
pub fn follow(issuer: &Arc<Issuer>, tasks: &Tasks) {
    let (drain, gone) = (tasks.drain_begun(), issuer.gone.clone());
    if let Some(path) = issuer.file().map(ToOwned::to_owned) {
        let issuer = issuer.clone();
        tasks.spawn("issuer's file", async move {
            tokio::select! {
                () = drain.cancelled() => {}
                () = gone.cancelled() => {}
                () = follow_file(&issuer, path) => {}
            }
        });
    } else if issuer.remote.is_some() {
        let issuer = issuer.clone();
        tasks.spawn("issuer's keys", async move {
            let Some(remote) = &issuer.remote else { return };
            tokio::select! {
                () = drain.cancelled() => {}
                () = gone.cancelled() => {}
                () = follow_url(&issuer, remote) => {}
            }
        });
    }
}

async fn follow_file(issuer: &Issuer, path: PathBuf) {
    let look = move || (Places::of(&path), stamp([path.clone()]));
    let mut watch = FileWatch::new("issuers' keys", look).await;
    let mut complaint = Complaint::default();
    loop {
        let settings = issuer.settings.clone();
        // `None` only when the runtime ends.
        let Some(keys) = off_thread(move || read(&settings)).await else { return };
        watch.was_read(keys.is_ok());
        match keys {
            Ok(keys) => {
                complaint = Complaint::default();
                announce(issuer, keys.len(), issuer.replace(keys));
            }
            Err(error) => {
                if complaint.is_news(&error, REPEAT) {
                    tracing::error!(%error, "keeping an issuer's keys as they were");
                }
            }
        }
        while !watch.is_due_within(POLL).await {}
    }
}

async fn follow_url(issuer: &Issuer, remote: &Remote) {
    let mut hangups = Hangups::listen();
    let mut complaint = Complaint::default();
    let mut failures = 0_u32;
    loop {
        let pause = match remote.fetch().await {
            Ok((keys, fresh)) => {
                (complaint, failures) = (Complaint::default(), 0);
                announce(issuer, keys.len(), issuer.replace(keys));
                fresh
            }
            Err(error) => {
                if complaint.is_news(&error, REPEAT) {
                    let name = &issuer.settings.name;
                    tracing::error!(issuer = name, error, "keeping an issuer's keys as they were");
                }
                failures = failures.saturating_add(1);
                retry_after(failures)
            }
        };
        remote.note_done();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = remote.called() => {}
            () = hangups.next() => {}
        }
    }
}

fn announce(issuer: &Issuer, count: usize, has_changed: bool) {
    if has_changed {
        tracing::info!(issuer = issuer.settings.name, keys = count, "an issuer's keys have changed");
    }
}
