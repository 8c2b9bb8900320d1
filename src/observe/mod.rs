//! What is said of what happened: the closed list of reasons, how logs are written, what is counted,
//! and how a command in a sentence is quoted.

mod exposition;
mod log;
mod metrics;
mod reason;
mod shell;
mod sparse;

pub use exposition::{Now, OPENMETRICS, SshNow, openmetrics};
pub use log::{LogFormat, init_logging, shown_time};
pub use metrics::{
    AccessMetrics, ByReason, Counter, EdgeMetrics, Histogram, HttpMetrics, Metrics, NetMetrics, Requests,
    SshMetrics,
};
pub use reason::{Reason, Side};
pub use shell::shell_word;
pub use sparse::Sparse;
