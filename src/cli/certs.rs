//! `oneport certs`: what certificates there are, and `oneport certs renew NAME`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use oneport::certs::acme::{Kept, Ordered, Status, Vault};
use oneport::certs::{CertStore, Served};
use oneport::config::Settings;
use oneport::name::CertName;
use oneport::observe::shown_time;
use time::OffsetDateTime;

use super::{EXIT_INVALID, print, say, settings};

/// How long a renewal is waited for: slow DNS servers take minutes.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How soon a running gateway takes a request up, where the system sends it no word.
const TAKEN_UP: Duration = Duration::from_secs(15);
/// How long it is waited without a word.
const UNTOLD: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// Prints a block for each certificate.
pub fn list(config: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let Some(settings) = settings(config) else { return Ok(ExitCode::from(EXIT_INVALID)) };
    let mut blocks = Vec::new();
    for served in CertStore::from_settings(&settings)?.all() {
        blocks.push(block(&served.names.join(" "), Some((&served, "a file of the operator's")), None));
    }
    if let Some(vault) = vault(&settings) {
        for name in vault.ordered_names(configured(&settings)) {
            let Ordered { name, kept, status } = vault.ordered(name)?;
            let shown = kept.as_ref().map(|kept| (&*kept.served, kept.about.way.as_str()));
            blocks.push(block(&name.to_string(), shown, Some((&status, kept.is_some()))));
        }
    }
    if blocks.is_empty() {
        say("no certificates: neither `tls.certificates` nor `acme.email` is set");
    }
    print(&blocks.join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// Has the running gateway renew one, and tells what came of it.
pub fn renew(config: Option<PathBuf>, name: &str) -> anyhow::Result<ExitCode> {
    let Some(settings) = settings(config) else { return Ok(ExitCode::from(EXIT_INVALID)) };
    let name = CertName::parse(name)?;
    let Some(vault) = vault(&settings) else {
        anyhow::bail!("no certificates are ordered here: `acme.email` is not set");
    };
    let known = vault.ordered_names(configured(&settings));
    if !known.contains(&name) {
        let known: Vec<_> = known.iter().map(ToString::to_string).collect();
        anyhow::bail!("no certificate is ordered for `{name}`, but for `{}`", known.join("`, `"));
    }
    if CertStore::from_settings(&settings)?.file_for(&name).is_some_and(|file| !file.has_ended()) {
        anyhow::bail!(
            "a certificate in `tls.certificates` covers `{name}`, so none is ordered; renew that one where it comes from, and the gateway takes it up"
        );
    }
    if !vault.takes_requests() {
        anyhow::bail!(
            "no gateway has run with the `state_dir` `{}`; start it, and it orders by itself",
            settings.state_dir.display()
        );
    }
    let before = vault.load(&name)?;
    let begun = OffsetDateTime::now_utc();
    vault.request(&name)?;
    let start = Instant::now();
    let mut is_told = false;
    while start.elapsed() < PATIENCE {
        std::thread::sleep(PAUSE);
        if vault.is_requested(&name) {
            if start.elapsed() > TAKEN_UP {
                vault.withdraw(&name)?;
                anyhow::bail!(
                    "no gateway took the request up; is one running with the `state_dir` `{}`?",
                    settings.state_dir.display()
                );
            }
            continue;
        }
        if let Some(kept) = vault.load(&name)?.filter(|kept| is_another(kept, before.as_ref())) {
            print(&block(&name.to_string(), Some((&kept.served, &kept.about.way)), None));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(fault) = vault.status(&name).fault.filter(|fault| fault.at >= begun) {
            anyhow::bail!("`{name}` was not renewed: {}", fault.text);
        }
        // A gateway that cannot read or write its folder cannot say so there.
        if start.elapsed() > UNTOLD && !is_told {
            is_told = true;
            say(&format!(
                "the gateway has taken the request up; waiting for what comes of it, for 10 min at most. Its log says what it does for `{name}`, and what keeps it from it"
            ));
        }
    }
    anyhow::bail!("`{name}` is still being renewed after 10 min; see the gateway's log")
}

fn is_another(kept: &Kept, before: Option<&Kept>) -> bool {
    before.is_none_or(|before| before.served.key.cert.first() != kept.served.key.cert.first())
}

fn vault(settings: &Settings) -> Option<Vault> {
    settings.acme.as_ref().map(|_| Vault::look(&settings.state_dir))
}

/// The names that are to have a certificate from the start on.
fn configured(settings: &Settings) -> &[CertName] {
    settings.acme.as_ref().map_or(&[], |acme| &acme.names)
}

fn block(name: &str, shown: Option<(&Served, &str)>, status: Option<(&Status, bool)>) -> String {
    let mut text = format!("{name}\n");
    let mut line = |what: &str, value: &str| text.push_str(&format!("  {what:<8} {value}\n"));
    match shown {
        Some((served, way)) => {
            line("issuer", &served.issuer);
            line("ends", &in_words(served.not_after));
            line("proof", way);
        }
        None => line("ends", "not there yet"),
    }
    if let Some((status, is_there)) = status {
        if let Some(renewal) = status.renew_at.filter(|_| is_there) {
            line("renewal", &in_words(renewal));
        }
        if let Some(fault) = &status.fault {
            line("fault", &format!("{}: {}", in_words(fault.at), fault.text));
            if let Some(retry) = status.retry_at {
                line("retry", &in_words(retry));
            }
        }
    }
    text
}

/// The time, to the second, and how far away it is.
fn in_words(at: OffsetDateTime) -> String {
    let shown = shown_time(at);
    let away = at - OffsetDateTime::now_utc();
    let (days, hours) = (away.whole_days().unsigned_abs(), away.whole_hours().unsigned_abs());
    let length = match (days, hours) {
        (2.., _) => format!("{days} days"),
        (_, 2..) => format!("{hours} h"),
        _ => format!("{} min", away.whole_minutes().unsigned_abs()),
    };
    if away.is_negative() { format!("{shown}, {length} ago") } else { format!("{shown}, in {length}") }
}
