//! Records in the DNS that stand for an order, noted beside it before they are set: those that a process
//! left which ended in the midst are removed by the next.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::off_thread;
use super::vault::Vault;
use crate::certs::dns::{ChallengeRecord, DnsProvider};
use crate::name::CertName;
use crate::net::Tasks;

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

/// Removes a record, and notes that. One that cannot be removed now stays noted.
pub(super) async fn remove(dns: &dyn DnsProvider, vault: &Vault, name: &CertName, left: &Left) {
    match dns.cleanup(&left.record(), left.memo.as_deref()).await {
        Ok(()) => {
            if let Err(fault) = note(vault, name, None).await {
                tracing::debug!(%name, "{}", fault.text);
            }
        }
        Err(error) => tracing::warn!(record = left.name, "{error}"),
    }
}

/// Removes what is left of orders that nobody goes on with: for names that are not in the settings any
/// more.
pub(super) fn remove_orphans(tasks: &Tasks, vault: &Vault, dns: Arc<dyn DnsProvider>, kept: Vec<CertName>) {
    let vault = vault.clone();
    tasks.spawn("records that were left", async move {
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
                remove(&*dns, &vault, &name, &left).await;
            }
        }
    });
}
