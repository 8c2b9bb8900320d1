//! What failed last, as `oneport check` tells of it, and how it is tried again at once.

use std::path::Path;

use super::fault::FaultKind;
use super::vault::{Status, Vault};
use super::{VaultError, off_thread};
use crate::certs::dns::Finding;
use crate::config::{AcmeSettings, Settings};
use crate::name::CertName;
use crate::observe::shell_word;

/// What helps once the fault is mended; empty where an authority would only be asked too often.
/// `file`: that of the configuration.
pub(super) fn at_once(name: &CertName, word: &str, when: &str, file: Option<&Path>) -> String {
    let waits = [FaultKind::RateLimited, FaultKind::AuthorityFailed];
    if waits.iter().any(|kind| kind.word() == word) {
        return String::new();
    }
    let config = file.map(|file| format!(" --config {}", shell_word(&file.display().to_string())));
    let name = shell_word(&name.to_string());
    format!("; {when}, `oneport certs renew {name}{}` tries at once", config.unwrap_or_default())
}

/// What failed last, and when it is tried again. `is_well`: a gateway runs here, and nothing else was
/// found that stands against an order.
pub(super) async fn last_faults(settings: &Settings, acme: &AcmeSettings, is_well: bool) -> Vec<Finding> {
    let vault = Vault::look(&settings.state_dir);
    let names = acme.names.clone();
    let (looked_at, file) = (names.clone(), settings.file.clone());
    let looked = off_thread(move || {
        // Those that were ordered on demand, too.
        let names = vault.ordered_names(&names);
        let statuses = names.iter().map(|name| Ok((name, vault.known_status(name)?)));
        let statuses: Vec<_> = statuses.collect::<Result<_, VaultError>>()?;
        Ok::<_, VaultError>(
            statuses
                .iter()
                .filter_map(|(name, status)| {
                    of_status(name, status, is_well && looked_at.contains(name), file.as_deref())
                })
                .collect(),
        )
    });
    match looked.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => vec![Finding::bad(error.to_string())],
        Err(fault) => vec![Finding::bad(fault.text)],
    }
}

fn of_status(name: &CertName, status: &Status, is_well: bool, file: Option<&Path>) -> Option<Finding> {
    let fault = status.fault.as_ref()?;
    let again = status.retry_at.map_or_else(|| "soon".to_owned(), minute);
    let when = if is_well { "all else is in order by now" } else { "when mended" };
    Some(Finding::bad(format!(
        "the last order for `{name}` failed at {} ({}), and is tried again at {again}: {}{}",
        minute(fault.at),
        fault.word,
        fault.text,
        at_once(name, &fault.word, when, file)
    )))
}

/// A time in UTC, to the minute.
fn minute(at: time::OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_copied() {
        let hint = |name: &str, file: Option<&str>| {
            let name = CertName::parse(name).expect("a name");
            at_once(&name, "wrong-dns", "when mended", file.map(Path::new))
        };
        let told = |command: &str| format!("; when mended, `oneport certs renew {command}` tries at once");
        assert_eq!(hint("gw.test", None), told("gw.test"));
        assert_eq!(hint("*.gw.test", Some("/etc/o.toml")), told("'*.gw.test' --config /etc/o.toml"));
        assert_eq!(hint("gw.test", Some("/it's/o.toml")), told(r"gw.test --config '/it'\''s/o.toml'"));
    }
}
