//! The command line: `dev`, `serve`, `connect`.

mod dev;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use oneport::agent::{ConnectOptions, Stdio, connect};
use oneport::app::Bound;
use oneport::config::Settings;

/// Exit code for a configuration that is not valid.
const EXIT_INVALID: u8 = 2;

/// A single-port edge gateway: agents' SSH tunnels in, visitors' HTTPS in, previews out.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try it on this machine: no configuration, own certificates, loopback only.
    Dev {
        /// Port to listen on, on 127.0.0.1 and [::1].
        #[arg(long, default_value_t = 8443, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Folder for the development certificates and keys; made if absent.
        #[arg(long, default_value = "certs/dev", value_name = "DIR")]
        state_dir: PathBuf,
    },
    /// Run the gateway.
    Serve {
        /// Configuration file (TOML). Environment variables win over it; with them none is needed.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Only say whether the configuration is valid; exit code 2 if not.
        #[arg(long)]
        check: bool,
    },
    /// Be OpenSSH's ProxyCommand: TLS to HOST:PORT, then standard input and output.
    Connect {
        /// Where to; in a ProxyCommand write `%h:%p`.
        #[arg(value_name = "HOST:PORT")]
        target: String,
        /// Trust only the authorities in this PEM file, instead of the system's.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Do not verify who the server is.
        #[arg(long, conflicts_with = "ca")]
        insecure: bool,
        /// Name to ask for and to verify, instead of HOST.
        #[arg(long, value_name = "NAME")]
        servername: Option<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Dev { port, state_dir } => dev::run(port, &state_dir).map(|()| ExitCode::SUCCESS),
        Command::Serve { config, check } => serve(config, check),
        Command::Connect { target, ca, insecure, servername } => {
            run_connect(&target, ConnectOptions { ca, insecure, server_name: servername })
        }
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("oneport: {error:#}"));
        ExitCode::FAILURE
    })
}

fn serve(config: Option<PathBuf>, check: bool) -> anyhow::Result<ExitCode> {
    // Not `env::vars`, which panics on a variable that is not UTF-8, be it ours or not.
    let env = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    let valid = oneport::config::load(config.as_deref(), env).and_then(|settings| {
        start_log(&settings)?;
        oneport::app::validate(&settings)?;
        Ok(settings)
    });
    let settings = match valid {
        Ok(settings) => settings,
        Err(faults) => {
            say(&faults.to_string());
            return Ok(ExitCode::from(EXIT_INVALID));
        }
    };
    if check {
        print("the configuration is valid\n");
        return Ok(ExitCode::SUCCESS);
    }
    if settings.login.is_given() {
        tracing::warn!(
            "COOKIE_SECRETS and SAAS_* have no effect yet: logging in to private tunnels is still to come"
        );
    }
    run_gateway(settings, |_| {})?;
    Ok(ExitCode::SUCCESS)
}

fn run_gateway(settings: Settings, ready: impl FnOnce(&Bound)) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    // Boxed, because the whole gateway is a large future for this thread's stack.
    runtime.block_on(Box::pin(oneport::app::run(settings, ready)))?;
    Ok(())
}

fn start_log(settings: &Settings) -> Result<(), oneport::config::Faults> {
    oneport::observe::init_logging(settings.log.format, &settings.log.filter)
        .map_err(|what| oneport::config::Faults(vec![oneport::config::Fault::new("log.filter", what)]))
}

fn run_connect(target: &str, options: ConnectOptions) -> anyhow::Result<ExitCode> {
    if options.insecure {
        say(
            "oneport: WARNING: --insecure: not verifying the server. Whoever is on the way can read and change everything.",
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async { connect(target, &options, Stdio::of_process()).await });
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

/// Writes to standard error. One that is closed is nobody to tell.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes to standard output. One that is closed is nobody to tell.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
