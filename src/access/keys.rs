//! Which keys may connect as agents. The list is read from a file or a folder, and reread when
//! it changes; a reading that fails keeps the list as it was.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use russh::keys::{HashAlg, PublicKey};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::key_files::{KeysError, List, look, read_all};
use crate::config::AnyKey;
use crate::config::watch::{Complaint, FileWatch, POLL, off_thread};
use crate::net::Tasks;

/// The keys of agents. Clones share the list.
#[derive(Clone, Debug)]
pub struct AgentKeys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: Option<PathBuf>,
    any: AnyKey,
    list: ArcSwap<List>,
    changes: watch::Sender<u64>,
}

/// Why a key may not connect, in words for the person who holds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// Nobody listed it.
    #[error(
        "the key {fingerprint} is not allowed here; ask the operator to add its public half to the authorized keys"
    )]
    NotListed {
        /// `SHA256:…`.
        fingerprint: String,
    },
    /// Listed, but not for this address.
    #[error(
        "the key {fingerprint} is allowed, but not from the address {from}; ask the operator to widen its `from=` option"
    )]
    WrongAddress {
        /// `SHA256:…`.
        fingerprint: String,
        /// Where the agent is.
        from: IpAddr,
    },
    /// Listed, but no longer.
    #[error("the key {fingerprint} was allowed until {at}; ask the operator to renew it")]
    Expired {
        /// `SHA256:…`.
        fingerprint: String,
        /// When it ended.
        at: OffsetDateTime,
    },
    /// Any key is allowed, but only from this machine.
    #[error("the key {fingerprint} may connect only from this machine itself, and {from} is another one")]
    OnlyLoopback {
        /// `SHA256:…`.
        fingerprint: String,
        /// Where the agent is.
        from: IpAddr,
    },
}

impl AgentKeys {
    /// Reads the list at `path`: a file, or a folder of which every regular file counts whose
    /// name does not begin with `.` or end with `~`. Does not notice changes until
    /// [`AgentKeys::watch`] is called. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When something there cannot be read. A malformed line is only warned about.
    pub fn open(path: Option<&Path>, any: AnyKey) -> Result<Self, KeysError> {
        let list = path.map(read_all).transpose()?.unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            path: path.map(Path::to_owned),
            any,
            list: ArcSwap::from_pointee(list),
            changes: watch::Sender::new(0),
        })))
    }

    /// Decides whether this key may connect from this address, now. To be asked again for a
    /// running session whenever [`AgentKeys::changes`] says so.
    ///
    /// # Errors
    /// When it may not, with a sentence for its holder.
    pub fn check(&self, key: &PublicKey, from: IpAddr) -> Result<(), KeyRefusal> {
        self.check_at(key, from, OffsetDateTime::now_utc())
    }

    /// Changes its value when the list has changed or a key has expired. Nothing is missed
    /// between two looks: mark it as seen first, then check.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// How many keys are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.list.load().len()
    }

    /// Whether no key is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts to reread the list when it changes, until draining begins.
    pub fn watch(&self, tasks: &Tasks) {
        if let Some(path) = self.0.path.clone() {
            let (keys, drain) = (self.clone(), tasks.drain_begun());
            tasks.spawn("agents' keys", async move {
                tokio::select! {
                    () = drain.cancelled() => {}
                    () = keys.follow(path) => {}
                }
            });
        }
    }

    fn check_at(&self, key: &PublicKey, from: IpAddr, now: OffsetDateTime) -> Result<(), KeyRefusal> {
        let from = from.to_canonical();
        match self.0.any {
            AnyKey::Yes => return Ok(()),
            AnyKey::OnLoopback if from.is_loopback() => return Ok(()),
            AnyKey::OnLoopback | AnyKey::No => {}
        }
        let fingerprint = || key.fingerprint(HashAlg::Sha256).to_string();
        let list = self.0.list.load();
        let mut refusal = None;
        for entry in list.get(key.key_data()).into_iter().flatten() {
            match entry.expires {
                Some(at) if at <= now => {
                    refusal = Some(KeyRefusal::Expired { fingerprint: fingerprint(), at })
                }
                _ if !entry.allows_from(from) => {
                    refusal = Some(KeyRefusal::WrongAddress { fingerprint: fingerprint(), from });
                }
                _ => return Ok(()),
            }
        }
        Err(refusal.unwrap_or_else(|| {
            let fingerprint = fingerprint();
            if self.0.any == AnyKey::OnLoopback && self.0.path.is_none() {
                KeyRefusal::OnlyLoopback { fingerprint, from }
            } else {
                KeyRefusal::NotListed { fingerprint }
            }
        }))
    }

    /// Rereads on word from the system, on changed file times, and after a failed reading; tells
    /// of expired keys.
    async fn follow(self, path: PathBuf) {
        let at = path.clone();
        let mut watch = FileWatch::new("agents' keys", move || look(&at)).await;
        let mut complaint = Complaint::default();
        let mut looked = OffsetDateTime::now_utc();
        // Something may have changed between `open` and now.
        watch.was_read(self.reread(&path, &mut complaint).await);
        loop {
            let wait = self.next_expiry(looked).map_or(POLL, |left| left.min(POLL));
            if watch.is_due_within(wait).await {
                // Only what was read is done with: a key that was taken out while, say, no file
                // could be opened must not stay for good.
                watch.was_read(self.reread(&path, &mut complaint).await);
            }
            let now = OffsetDateTime::now_utc();
            if self.expired_between(looked, now) {
                self.bump();
            }
            looked = now;
        }
    }

    /// Whether the list was read. If not, it stays as it was.
    async fn reread(&self, path: &Path, complaint: &mut Complaint) -> bool {
        let read = off_thread({
            let path = path.to_owned();
            move || read_all(&path)
        })
        .await;
        match read {
            Some(Ok(list)) => {
                *complaint = Complaint::default();
                if list != **self.0.list.load() {
                    tracing::info!(path = %path.display(), keys = list.len(), "agents' keys have changed");
                    self.0.list.store(Arc::new(list));
                    self.bump();
                }
                true
            }
            Some(Err(error)) => {
                if complaint.is_news(&error, POLL) {
                    tracing::error!(%error, "keeping agents' keys as they were");
                }
                false
            }
            None => {
                tracing::error!("reading agents' keys was cut short; keeping them as they were");
                false
            }
        }
    }

    fn bump(&self) {
        self.0.changes.send_modify(|generation| *generation += 1);
    }

    fn next_expiry(&self, after: OffsetDateTime) -> Option<Duration> {
        let list = self.0.list.load();
        let next =
            list.values().flatten().filter_map(|entry| entry.expires).filter(|at| *at > after).min()?;
        Duration::try_from(next - OffsetDateTime::now_utc()).ok().or(Some(Duration::ZERO))
    }

    fn expired_between(&self, after: OffsetDateTime, until: OffsetDateTime) -> bool {
        let list = self.0.list.load();
        list.values().flatten().filter_map(|entry| entry.expires).any(|at| after < at && at <= until)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FIRST: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn key(line: &str) -> PublicKey {
        PublicKey::from_openssh(line).expect("valid key")
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("writable");
    }

    #[test]
    fn any_key_and_no_key() {
        let key = key(FIRST);
        let keys = |any| AgentKeys::open(None, any).expect("nothing to read");
        assert_eq!(keys(AnyKey::Yes).check(&key, REMOTE), Ok(()));
        assert_eq!(keys(AnyKey::OnLoopback).check(&key, "::1".parse().expect("literal")), Ok(()));
        assert_eq!(
            keys(AnyKey::OnLoopback).check(&key, "::ffff:127.0.0.1".parse().expect("literal")),
            Ok(())
        );
        let refusal = keys(AnyKey::OnLoopback).check(&key, REMOTE).expect_err("must refuse");
        assert!(matches!(refusal, KeyRefusal::OnlyLoopback { .. }));
        let refusal = keys(AnyKey::No).check(&key, LOCAL).expect_err("must refuse").to_string();
        assert!(refusal.starts_with("the key SHA256:"), "{refusal}");
    }

    #[test]
    fn refusals_say_why() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("keys");
        let check = |text: &str| {
            write(&path, text);
            AgentKeys::open(Some(&path), AnyKey::No).expect("readable").check(&key(FIRST), REMOTE)
        };
        assert_eq!(check(&format!("junk\n{FIRST} me\n")), Ok(()));
        assert!(matches!(check("# none\n"), Err(KeyRefusal::NotListed { .. })));
        assert!(matches!(check(&format!("from=\"10.*\" {FIRST}")), Err(KeyRefusal::WrongAddress { .. })));
        let expired = format!("expiry-time=\"20200101Z\" {FIRST}");
        assert!(matches!(check(&expired), Err(KeyRefusal::Expired { .. })));
        assert_eq!(check(&format!("{expired}\nexpiry-time=\"29990101Z\" {FIRST}")), Ok(()));
        assert!(AgentKeys::open(Some(&dir.path().join("absent")), AnyKey::No).is_err());
    }

    #[test]
    fn a_folder_counts_its_plain_files() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let keys = || AgentKeys::open(Some(dir.path()), AnyKey::No).expect("readable");
        write(&dir.path().join(".hidden"), FIRST);
        write(&dir.path().join("backup~"), FIRST);
        fs::create_dir(dir.path().join("sub")).expect("makable");
        assert!(keys().is_empty());
        write(&dir.path().join("team"), FIRST);
        assert_eq!(keys().check(&key(FIRST), REMOTE), Ok(()));
    }

    async fn changed(changes: &mut watch::Receiver<u64>) {
        tokio::time::timeout(Duration::from_secs(30), changes.changed())
            .await
            .expect("a change in time")
            .expect("the keys live");
    }

    #[tokio::test]
    async fn rereads_after_writing_renaming_and_link_swaps() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("keys");
        write(&path, FIRST);
        let keys = AgentKeys::open(Some(&path), AnyKey::No).expect("readable");
        let mut changes = keys.changes();
        let tasks = Tasks::new();
        keys.watch(&tasks);
        let is_allowed = || keys.check(&key(FIRST), REMOTE).is_ok();

        write(&path, "# all gone\n");
        changed(&mut changes).await;
        assert!(!is_allowed());

        let next = dir.path().join("next");
        write(&next, FIRST);
        fs::rename(&next, &path).expect("same folder");
        changed(&mut changes).await;
        assert!(is_allowed());

        let (empty, link) = (dir.path().join("empty"), dir.path().join("link"));
        write(&empty, "");
        std::os::unix::fs::symlink(&empty, &link).expect("linkable");
        fs::rename(&link, &path).expect("same folder");
        changed(&mut changes).await;
        assert!(!is_allowed());
        tasks.begin_drain();
        tasks.all_ended().await;
    }

    #[tokio::test]
    async fn a_failed_reading_keeps_the_list_and_expiry_is_told() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("keys");
        let soon = OffsetDateTime::now_utc() + Duration::from_secs(2);
        let soon = soon
            .format(time::macros::format_description!("[year][month][day][hour][minute][second]Z"))
            .expect("formattable");
        write(&path, &format!("expiry-time=\"{soon}\" {FIRST}"));
        let keys = AgentKeys::open(Some(&path), AnyKey::No).expect("readable");
        assert_eq!(keys.check(&key(FIRST), REMOTE), Ok(()));
        let mut changes = keys.changes();
        keys.watch(&Tasks::new());
        fs::remove_file(&path).expect("removable");
        changed(&mut changes).await;
        assert_eq!(keys.len(), 1, "the list must stay");
        assert!(matches!(keys.check(&key(FIRST), REMOTE), Err(KeyRefusal::Expired { .. })));
    }
}
