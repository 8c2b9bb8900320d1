//! Where records go: text for people, JSON for machines; always on standard error.

use std::io::IsTerminal as _;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing_subscriber::EnvFilter;

/// How a log record is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line that a person reads.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error.
///
/// `filter` is in the syntax of `tracing`'s `EnvFilter`, such as `info` or `oneport::ssh=debug`.
/// Does nothing when logging was started before.
///
/// # Errors
/// When `filter` cannot be parsed.
pub fn init_logging(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("`{filter}` is not a log filter: {error}; write a level such as `info`"))?
        // The SSH library logs peers' trouble as errors; our own records say it with the reason.
        .add_directive("russh=off".parse().map_err(|error| format!("built-in filter: {error}"))?);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Failing means that a subscriber is set already, which the doc allows.
    let _ = match format {
        LogFormat::Text => subscriber.with_target(false).try_init(),
        LogFormat::Json => {
            subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
    };
    Ok(())
}

/// A time as it stands in logs and answers (RFC 3339), to the second.
#[must_use]
pub fn shown_time(at: OffsetDateTime) -> String {
    // Fails only for years that no clock of ours shows.
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}
