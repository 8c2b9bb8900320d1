//! What failed last, as `oneport check` tells of it, and how it is tried again at once.

use super::fault::FaultKind;
use super::vault::{Status, Vault};
use super::{VaultError, off_thread};
use crate::certs::dns::Finding;
use crate::config::{AcmeSettings, Settings};
use crate::name::CertName;

/// What helps once the fault is mended; empty where an authority would only be asked too often.
pub(super) fn at_once(name: &CertName, word: &str, when: &str) -> String {
    let waits = [FaultKind::RateLimited, FaultKind::AuthorityFailed];
    if waits.iter().any(|kind| kind.word() == word) {
        return String::new();
    }
    // A shell would look for files.
    let quote = if name.is_wildcard() { "'" } else { "" };
    format!("; {when}, `oneport certs renew {quote}{name}{quote}` tries at once")
}

/// What failed last, and when it is tried again. `is_well`: a gateway runs here, and nothing else was
/// found that stands against an order.
pub(super) async fn last_faults(settings: &Settings, acme: &AcmeSettings, is_well: bool) -> Vec<Finding> {
    let vault = Vault::look(&settings.state_dir);
    let names = acme.names.clone();
    let looked_at = names.clone();
    let looked = off_thread(move || {
        // Those that were ordered on demand, too.
        let names = vault.ordered_names(&names);
        let statuses = names.iter().map(|name| Ok((name, vault.known_status(name)?)));
        let statuses: Vec<_> = statuses.collect::<Result<_, VaultError>>()?;
        Ok::<_, VaultError>(
            statuses
                .iter()
                .filter_map(|(name, status)| of_status(name, status, is_well && looked_at.contains(name)))
                .collect(),
        )
    });
    match looked.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => vec![Finding::bad(error.to_string())],
        Err(fault) => vec![Finding::bad(fault.text)],
    }
}

fn of_status(name: &CertName, status: &Status, is_well: bool) -> Option<Finding> {
    let fault = status.fault.as_ref()?;
    let again = status.retry_at.map_or_else(|| "soon".to_owned(), minute);
    let when = if is_well { "all else is in order by now" } else { "when mended" };
    Some(Finding::bad(format!(
        "the last order for `{name}` failed at {} ({}), and is tried again at {again}: {}{}",
        minute(fault.at),
        fault.word,
        fault.text,
        at_once(name, &fault.word, when)
    )))
}

/// A time in UTC, to the minute.
fn minute(at: time::OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute())
}
