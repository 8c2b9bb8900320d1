//! What the commands do. Nothing else in the project writes to the standard streams.

mod certs;
mod check;
mod dev;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use oneport::agent::{self, ConnectOptions, Stdio};
use oneport::app::Bound;
use oneport::config::{Reading, Settings, Source};
use tokio::signal::unix::{SignalKind, signal};

pub use certs::{list as certs, renew as renew_certificate};
pub use check::run as check;
pub use dev::run as dev;
pub use token::{Whose, run as token};

/// How long a proxy may go on whose client has hung up: for what it has written before.
const FAREWELL: Duration = Duration::from_secs(2);
/// Exit code for a configuration that is not valid.
const EXIT_INVALID: u8 = 2;

/// Runs the gateway, or only looks at its configuration.
pub fn serve(config: Option<PathBuf>, check: bool) -> anyhow::Result<ExitCode> {
    let Some((source, reading, doubts)) = read(config) else { return Ok(ExitCode::from(EXIT_INVALID)) };
    doubts.iter().for_each(|doubt| tracing::warn!("{doubt}"));
    if check {
        oneport::app::warn_as_at_start(&reading.settings);
        print("the configuration is valid\n");
        return Ok(ExitCode::SUCCESS);
    }
    run_gateway(reading.settings.clone(), Some((source, reading)), |_| {})?;
    Ok(ExitCode::SUCCESS)
}

/// The settings, with the log set up by them; otherwise everything that is wrong has been said.
fn settings(config: Option<PathBuf>) -> Option<Settings> {
    read(config).map(|(_, reading, _)| reading.settings)
}

/// The same, with where they come from, and what is likely not meant.
fn read(config: Option<PathBuf>) -> Option<(Source, Reading, Vec<String>)> {
    // Not `env::vars`, which panics on a variable that is not UTF-8, be it ours or not.
    let env = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    let source = Source::new(config, env);
    let (reading, mut faults) = source.examine();
    let mut doubts = Vec::new();
    if let Some(Reading { settings, .. }) = &reading {
        faults.0.extend(start_log(settings).err().into_iter().flat_map(|more| more.0));
        let looked = oneport::app::validate(settings);
        faults.0.extend(looked.faults);
        doubts = looked.doubts;
    }
    match reading {
        Some(reading) if faults.0.is_empty() => Some((source, reading, doubts)),
        _ => {
            doubts.iter().for_each(|doubt| tracing::warn!("{doubt}"));
            say(&faults.to_string());
            None
        }
    }
}

/// Runs until a signal ends it.
fn run_gateway(
    settings: Settings,
    source: Option<(Source, Reading)>,
    ready: impl FnOnce(&Bound),
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    // Boxed, because the whole gateway is a large future for this thread's stack.
    let result = runtime.block_on(Box::pin(oneport::app::run(settings, source, ready)));
    // Dropping the runtime would wait for a disk that does not answer, for as long as that takes.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(result?)
}

fn start_log(settings: &Settings) -> Result<(), oneport::config::Faults> {
    oneport::observe::init_logging(settings.log.format, &settings.log.filter)
        .map_err(|what| oneport::config::Faults(vec![oneport::config::Fault::new("log.filter", what)]))
}

/// Is a ProxyCommand, and ends the process with it.
pub fn connect(target: &str, options: ConnectOptions) -> anyhow::Result<ExitCode> {
    if options.insecure {
        say(
            "oneport: WARNING: --insecure: not verifying the server. Whoever is on the way can read and change everything.",
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = agent::connect(target, &options, Stdio::of_process()) => outcome,
            () = hung_up() => Ok(()),
        }
    });
    let code = match outcome {
        Ok(()) => 0,
        Err(error) => {
            say(&format!("oneport: {error}"));
            1
        }
    };
    // Not by returning: a read from a terminal may hold a thread that the runtime would wait for.
    std::process::exit(code)
}

/// Some time after SIGHUP. OpenSSH sends it as soon as it has written its farewell, which would be lost
/// if the process ended there: the gateway would take the session for broken. What is still to come ends
/// with the end of the input.
async fn hung_up() {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return std::future::pending().await };
    hangups.recv().await;
    tokio::time::sleep(FAREWELL).await;
}

/// An error with what it came from. Most of them say that in their own words already: once is enough.
pub fn in_words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

/// Writes to standard error. One that is closed is nobody to tell.
pub fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes to standard output. One that is closed is nobody to tell.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
