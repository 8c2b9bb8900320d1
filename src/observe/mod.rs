//! What is said of what happened: the closed list of reasons, how logs are written, and what is
//! counted.

mod exposition;
mod log;
mod metrics;
mod reason;

pub use exposition::{Now, OPENMETRICS, SshNow, openmetrics};
pub use log::{LogFormat, init_logging};
pub use metrics::{
    ByReason, Counter, EdgeMetrics, Histogram, HttpMetrics, Metrics, NetMetrics, Requests, SshMetrics,
};
pub use reason::{Reason, Side};
