//! The command line: `dev`, `serve`, `check`, `certs`, `connect`, `token`.

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use oneport::agent::ConnectOptions;

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
        /// Only say whether the configuration is valid, and what is likely not meant; exit code 2 if it is
        /// not valid.
        #[arg(long)]
        check: bool,
    },
    /// List certificates: for which names, from whom, until when, how proved, when renewed, and what
    /// went wrong last.
    Certs {
        #[command(subcommand)]
        action: Option<CertsAction>,
        /// Configuration file (TOML). Environment variables win over it.
        #[arg(long, value_name = "FILE", global = true)]
        config: Option<PathBuf>,
    },
    /// Print a token that opens the private tunnels of an agent's key.
    Token {
        /// The agent's private key, or its public half where an ssh-agent has the key. Default: the key
        /// that `ssh` itself would try first, by its configuration and the ssh-agent.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// The host that the agent names to `ssh`, where `ssh` takes another key for it than for others.
        #[arg(long, value_name = "HOST", conflicts_with = "key")]
        host: Option<String>,
        /// How long the token is valid, such as `15m` or `30d`.
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = token_time)]
        ttl: Duration,
        /// Print the key's profile id instead.
        #[arg(long)]
        profile: bool,
    },
    /// Say which DNS record is needed, and whether certificates can be had; exit code 1 if not.
    ///
    /// Looks at certificate files, the DNS, the ports, CAA records, the directories, and what failed last.
    /// Orders nothing.
    /// Where another server holds the records, a value is set at `_acme-challenge.HOST` and removed.
    Check {
        /// Configuration file (TOML). Environment variables win over it.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
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

#[derive(Debug, Subcommand)]
enum CertsAction {
    /// Have the running gateway renew a certificate now, and wait for it.
    Renew {
        /// What the certificate is for: `example.com` or `*.example.com`.
        name: String,
    },
}

/// How long a token is valid: one that has ended when it is made is a mistake.
fn token_time(text: &str) -> Result<Duration, String> {
    let time = oneport::config::parse_duration(text)?;
    if time.as_secs() == 0 {
        return Err("a token must be valid for a second at least; write such as `15m`".to_owned());
    }
    Ok(time)
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Dev { port, state_dir } => cli::dev(port, &state_dir).map(|()| ExitCode::SUCCESS),
        Command::Serve { config, check } => cli::serve(config, check),
        Command::Certs { action: None, config } => cli::certs(config),
        Command::Certs { action: Some(CertsAction::Renew { name }), config } => {
            cli::renew_certificate(config, &name)
        }
        Command::Token { key, host, ttl, profile } => {
            let whose = key.as_deref().map_or(cli::Whose::Ssh(host.as_deref()), cli::Whose::Key);
            cli::token(&whose, ttl, profile)
        }
        Command::Check { config } => cli::check(config),
        Command::Connect { target, ca, insecure, servername } => {
            cli::connect(&target, ConnectOptions { ca, insecure, server_name: servername })
        }
    };
    outcome.unwrap_or_else(|error| {
        cli::say(&format!("oneport: {}", cli::in_words(&error)));
        ExitCode::FAILURE
    })
}
