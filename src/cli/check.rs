//! `oneport check`: whether what the gateway needs from the world is there, tried from the outside in.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use oneport::access::check_issuers;
use oneport::certs::dns::Finding;
use oneport::certs::{acme, dns};

use super::{EXIT_INVALID, print, settings};

/// Tells the records to add, looks, and tells each finding on a line of its own.
pub fn run(config: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let Some(settings) = settings(config) else { return Ok(ExitCode::from(EXIT_INVALID)) };
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
        let mut found = Box::pin(dns::check(&settings)).await;
        found.extend(Box::pin(acme::check(&settings)).await);
        found.extend(Box::pin(check_issuers(&settings.access)).await.into_iter().map(|found| {
            let is_good = found.is_ok();
            Finding { is_good, what: found.unwrap_or_else(|what| what) }
        }));
        found
    });
    runtime.shutdown_background();
    for finding in &found {
        print(&format!("{}  {}\n", if finding.is_good { "ok  " } else { "FAIL" }, finding.what));
    }
    let is_good = found.iter().all(|finding| finding.is_good);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
