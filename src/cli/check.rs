//! `oneport check`: whether what the gateway needs from the world is there, tried from the outside in.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use oneport::access::{check_issuers, check_provider};
use oneport::certs::dns::{Finding, Outcome};
use oneport::certs::{acme, check_lifetimes, dns};
use oneport::config::Reading;

use super::{EXIT_INVALID, print, read};

/// Tells the records to add, looks, and tells each finding on a line of its own.
pub fn run(config: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let Some((_, Reading { settings, .. }, doubts)) = read(config) else {
        return Ok(ExitCode::from(EXIT_INVALID));
    };
    let records = dns::records_to_add(&settings);
    if !records.is_empty() {
        let base = &settings.base.host;
        print(&format!(
            "For `*.{base}`, this record must stand in the DNS, in the zone that holds `{base}`:\n"
        ));
        print(&format!("\n    {}\n\n", records.join("\n    ")));
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let found = runtime.block_on(async {
        let doubts = doubts.into_iter().map(|what| Finding { outcome: Outcome::Note, what });
        let mut found: Vec<Finding> = doubts.chain(check_lifetimes(&settings)).collect();
        found.extend(Box::pin(dns::check(&settings)).await);
        let more = Box::pin(acme::check(&settings, &found)).await;
        found.extend(more);
        let mut vouching = Box::pin(check_issuers(&settings.access)).await;
        vouching.extend(Box::pin(check_provider(&settings.access)).await);
        found.extend(vouching.into_iter().map(|found| {
            let outcome = if found.is_ok() { Outcome::Good } else { Outcome::Bad };
            Finding { outcome, what: found.unwrap_or_else(|what| what) }
        }));
        found
    });
    runtime.shutdown_background();
    for finding in &found {
        print(&format!("{}  {}\n", word(finding.outcome), finding.what));
    }
    let count = |outcome| found.iter().filter(|finding| finding.outcome == outcome).count();
    let (notes, faults) = (count(Outcome::Note), count(Outcome::Bad));
    if found.is_empty() {
        print("ok    nothing is ordered, and no record is needed\n");
    } else if notes > 0 {
        print(&format!("{notes} note{}\n", if notes == 1 { "" } else { "s" }));
    }
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a line begins with.
const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Good => "ok  ",
        Outcome::Note => "note",
        Outcome::Bad => "FAIL",
    }
}
