//! Rereads the configuration file when it changes, and at SIGHUP: lists of networks, issuers, the
//! provider of logins and secrets count from then on. A file with any fault changes nothing. All other
//! settings wait for a restart, and the log names those that do.

use std::path::{Path, PathBuf};

use crate::access::{
    Admission, IssuerError, Issuers, NetworksError, PlannedIssuers, PlannedLists, PlannedSessions, Sessions,
    SessionsError,
};
use crate::config::watch::{Complaint, FileWatch, POLL, Places, off_thread, stamp};
use crate::config::{AccessSettings, Faults, Reading, RouteSettings, Settings, Source};
use crate::net::Tasks;

/// The settings that are reread; those in a section, where a path ends in a dot.
const REREAD: [&str; 6] =
    ["networks.allow", "networks.deny", "ssh.allow", "ssh.deny", "access.issuer", "access.oidc."];
/// The routes, of which only the lists are reread.
const ROUTES: &str = "routes";
/// The secrets, which are reread where they are written out before and after.
const SECRETS: &str = "access.secrets";

/// What settings are put into while the gateway runs.
pub struct Reload {
    source: Source,
    admission: Admission,
    issuers: Issuers,
    sessions: Sessions,
}

/// What is to be, if all of it can be.
struct Plan {
    reading: Reading,
    lists: PlannedLists,
    issuers: PlannedIssuers,
    sessions: PlannedSessions,
}

/// Why all stays as it was.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("{0}")]
    Faults(Faults),
    #[error(transparent)]
    Networks(#[from] NetworksError),
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    #[error(transparent)]
    Sessions(#[from] SessionsError),
}

impl Reload {
    /// What is read again from there.
    pub fn new(source: Source, admission: &Admission, issuers: &Issuers, sessions: &Sessions) -> Self {
        let (admission, issuers, sessions) = (admission.clone(), issuers.clone(), sessions.clone());
        Self { source, admission, issuers, sessions }
    }

    /// Starts to reread the file, if there is one, until draining begins. `first` is what runs.
    pub fn watch(self, first: Reading, tasks: &Tasks) {
        let drain = tasks.drain_begun();
        let Some(file) = self.source.file().map(Path::to_owned) else { return };
        tasks.spawn("configuration", async move {
            tokio::select! {
                () = drain.cancelled() => {}
                () = self.follow(file, first) => {}
            }
        });
    }

    async fn follow(self, file: PathBuf, first: Reading) {
        let look = move || (Places::of(&file), stamp([file.clone()]));
        let mut watch = FileWatch::new("the configuration", look).await;
        let (mut complaint, mut told) = (Complaint::default(), Vec::new());
        loop {
            // First: something may have changed between the start and now.
            let plan = self.plan().await;
            // `None` only when the runtime ends.
            let Some(plan) = plan else { return };
            watch.was_read(plan.is_ok());
            match plan {
                Ok(plan) => {
                    complaint = Complaint::default();
                    told = self.put(plan, &first, told);
                }
                Err(error) => {
                    if complaint.is_news(&error, POLL * 30) {
                        tracing::error!(%error, "keeping the settings as they were");
                    }
                }
            }
            while !watch.is_due_within(POLL).await {}
        }
    }

    async fn plan(&self) -> Option<Result<Plan, ReloadError>> {
        let Self { source, admission, issuers, sessions } = self;
        let (source, admission) = (source.clone(), admission.clone());
        let (issuers, sessions) = (issuers.clone(), sessions.clone());
        off_thread(move || {
            let reading = source.read().map_err(ReloadError::Faults)?;
            let settings = &reading.settings;
            let (lists, issuers) = (admission.plan(settings)?, issuers.plan(&settings.access)?);
            let sessions = sessions.plan(&settings.access)?;
            Ok(Plan { reading, lists, issuers, sessions })
        })
        .await
    }

    /// The value is what waits for a restart, after that was said if it is news.
    fn put(&self, plan: Plan, first: &Reading, told: Vec<&'static str>) -> Vec<&'static str> {
        self.admission.put(plan.lists);
        self.issuers.put(plan.issuers);
        self.sessions.put(plan.sessions);
        let waiting = waiting(&plan.reading, first);
        if waiting != told && !waiting.is_empty() {
            let settings = waiting.join("`, `");
            tracing::warn!(
                "`{settings}` changed in the configuration; restart the gateway for that to count"
            );
        }
        waiting
    }
}

/// The settings that are others than those that run.
fn waiting(now: &Reading, first: &Reading) -> Vec<&'static str> {
    let (new, old) = (&now.settings, &first.settings);
    let is_waiting = |path: &&'static str| match *path {
        ROUTES => !are_same_routes(new, old),
        SECRETS => has_secrets(&new.access) != has_secrets(&old.access),
        path => !is_reread(path),
    };
    now.changed_since(first).into_iter().filter(is_waiting).collect()
}

fn is_reread(path: &str) -> bool {
    REREAD.iter().any(|reread| if reread.ends_with('.') { path.starts_with(reread) } else { path == *reread })
}

fn has_secrets(access: &AccessSettings) -> bool {
    !access.secrets.is_empty()
}

/// Whether routes are the same but for their lists of networks.
fn are_same_routes(one: &Settings, other: &Settings) -> bool {
    let bare = |route: &RouteSettings| {
        let mut route = route.clone();
        route.bounds.networks = Default::default();
        route
    };
    one.routes.iter().map(bare).eq(other.routes.iter().map(bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_whose_name_begins_as_anothers_is_none_that_is_reread() {
        for path in ["ssh.allow", "ssh.deny", "access.issuer", "access.oidc.client_id"] {
            assert!(is_reread(path), "{path}");
        }
        for path in ["ssh.allow_any_key", "ssh.authorized_keys", "networks.allowed", "access.share_max"] {
            assert!(!is_reread(path), "{path}");
        }
    }
}
