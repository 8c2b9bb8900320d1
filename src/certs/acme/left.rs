//! Records in the DNS that stand for an order, noted beside it before they are set: those that a process
//! left which ended in the midst are removed by the next. Those that could not be removed are kept in mind
//! in a file of their own, until they are.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, FaultKind};
use super::notes::{disk, try_read, write};
use super::vault::{Lock, Vault, VaultError};
use super::{off_thread, wait_for_lock};
use crate::certs::dns::{ChallengeRecord, DnsProvider};
use crate::certs::files;
use crate::name::CertName;
use crate::net::Tasks;

/// Those of orders that are over, in the vault.
const LEFT: &str = "records.json";
/// How many of them are kept in mind.
const LEFT_MAX: usize = 200;
/// First and longest pause between two tries to remove them.
const AGAIN: (Duration, Duration) = (Duration::from_secs(60 * 60), Duration::from_secs(24 * 60 * 60));

/// A record that stands, or may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    pub(super) name: String,
    pub(super) value: String,
    /// What must be told when it is removed; unknown until it is set.
    pub(super) memo: Option<String>,
}

impl Left {
    pub(super) fn record(&self) -> ChallengeRecord {
        ChallengeRecord { name: self.name.clone(), value: self.value.clone() }
    }
}

/// Notes a record beside the unfinished order of a name, or that there is none.
pub(super) async fn note(vault: &Vault, name: &CertName, left: Option<Left>) -> Result<(), Fault> {
    let (vault, name) = (vault.clone(), name.clone());
    Ok(off_thread(move || vault.change_pending(&name, |pending| pending.record = left)).await??)
}

/// Removes a record, and notes that. One that cannot be removed now is kept in mind for later.
pub(super) async fn remove(dns: &dyn DnsProvider, vault: &Vault, name: &CertName, left: &Left) {
    if let Err(error) = dns.cleanup(&left.record(), left.memo.as_deref()).await {
        tracing::warn!(record = left.name, "{error}; it is tried again later");
        let kept = left.clone();
        if let Err(fault) = change(vault, move |all| add(all, kept)).await {
            // Then the note beside the order stays.
            return tracing::warn!(record = left.name, "{}", fault.text);
        }
    }
    if let Err(fault) = note(vault, name, None).await {
        tracing::debug!(%name, "{}", fault.text);
    }
}

/// What is kept in mind of a record that is to be set again; it is not removed any more.
pub(super) async fn take_over(vault: &Vault, record: &ChallengeRecord) -> Result<Option<Left>, Fault> {
    let record = record.clone();
    let found = all(vault).await?.into_iter().find(|left| left.record() == record);
    if found.is_some() {
        change(vault, move |all| all.retain(|left| left.record() != record)).await?;
    }
    Ok(found)
}

/// Removes what is left of orders that nobody goes on with: for names that are not in the settings any
/// more; and what could not be removed before, for as long as that fails.
pub(super) fn follow(tasks: &Tasks, vault: &Vault, dns: Arc<dyn DnsProvider>, kept: Vec<CertName>) {
    let vault = vault.clone();
    tasks.spawn("records that were left", async move {
        remove_orphans(&vault, &*dns, &kept).await;
        let mut pause = AGAIN.0;
        loop {
            let is_some_left = remove_left(&vault, &*dns).await;
            pause = if is_some_left { (pause * 2).min(AGAIN.1) } else { AGAIN.0 };
            tokio::time::sleep(pause).await;
        }
    });
}

async fn remove_orphans(vault: &Vault, dns: &dyn DnsProvider, kept: &[CertName]) {
    let all = vault.clone();
    let names = off_thread(move || all.names()).await.unwrap_or_default();
    for name in names.into_iter().filter(|name| !kept.contains(name)) {
        let (look, locked) = (vault.clone(), name.clone());
        let found = off_thread(move || {
            // Another process that is ordering it removes its own.
            let lock = look.lock(&locked)?;
            Ok::<_, Fault>(lock.zip(look.pending(&locked)?.and_then(|pending| pending.record)))
        });
        if let Ok(Ok(Some((_lock, left)))) = found.await {
            remove(dns, vault, &name, &left).await;
        }
    }
}

/// Tries once more; says whether any is left still.
async fn remove_left(vault: &Vault, dns: &dyn DnsProvider) -> bool {
    let all = all(vault).await.unwrap_or_else(|fault| {
        tracing::warn!("{}", fault.text);
        Vec::new()
    });
    let mut is_some_left = false;
    for left in all {
        if let Err(error) = dns.cleanup(&left.record(), left.memo.as_deref()).await {
            tracing::info!(record = left.name, "{error}; it is tried again later");
            is_some_left = true;
            continue;
        }
        tracing::info!(record = left.name, "a record that was left is removed");
        if let Err(fault) = change(vault, move |all| all.retain(|other| *other != left)).await {
            tracing::warn!("{}", fault.text);
        }
    }
    is_some_left
}

async fn all(vault: &Vault) -> Result<Vec<Left>, Fault> {
    let vault = vault.clone();
    Ok(off_thread(move || vault.left()).await??)
}

/// Changes what is kept in mind, one process after the other.
async fn change(vault: &Vault, change: impl FnOnce(&mut Vec<Left>) + Send + 'static) -> Result<(), Fault> {
    let shared = vault.clone();
    let Some(lock) = wait_for_lock(move || shared.lock_left()).await? else {
        let text =
            "another process holds `acme/records.lock` in `state_dir`, and does not go on; see what it does";
        return Err(Fault::new(FaultKind::Local, text));
    };
    let vault = vault.clone();
    Ok(off_thread(move || vault.change_left(change, &lock)).await??)
}

/// Keeps one in mind. Past the bound the oldest goes.
fn add(all: &mut Vec<Left>, left: Left) {
    all.retain(|other| other.record() != left.record());
    if all.len() >= LEFT_MAX {
        let oldest = all.remove(0);
        tracing::warn!(
            record = oldest.name,
            value = oldest.value,
            "too many records were left; this one is not removed any more: remove it by hand"
        );
    }
    all.push(left);
}

impl Vault {
    /// Records of orders that are over, which could not be removed.
    fn left(&self) -> Result<Vec<Left>, VaultError> {
        Ok(try_read(&self.at(LEFT))?.unwrap_or_default())
    }

    fn change_left(&self, change: impl FnOnce(&mut Vec<Left>), _held: &Lock) -> Result<(), VaultError> {
        let mut all = self.left()?;
        change(&mut all);
        if all.is_empty() {
            let path = self.at(LEFT);
            return files::remove(&path).map_err(|error| disk(&path, error));
        }
        write(&self.at(LEFT), &all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_kept_in_mind_once_and_within_a_bound() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let vault = Vault::open(dir.path()).expect("made");
        let left = |value: usize| Left {
            name: "_acme-challenge.a.test".into(),
            value: value.to_string(),
            memo: None,
        };
        let lock = vault.lock_left().expect("lockable").expect("free");
        for value in [1, 2, 1] {
            vault.change_left(|all| add(all, left(value)), &lock).expect("written");
        }
        assert_eq!(vault.left().expect("readable"), [left(2), left(1)]);
        vault
            .change_left(|all| (3..LEFT_MAX + 3).for_each(|value| add(all, left(value))), &lock)
            .expect("written");
        let all = vault.left().expect("readable");
        assert_eq!((all.len(), &all[0]), (LEFT_MAX, &left(3)));
        vault.change_left(Vec::clear, &lock).expect("written");
        assert!(!dir.path().join("acme").join(LEFT).exists());
    }
}
