//! What is said of what happened: the closed list of reasons, how logs are written, and what is
//! counted.

mod exposition;
mod log;
mod metrics;
mod reason;
mod sparse;

pub use exposition::{Now, OPENMETRICS, SshNow, openmetrics};
pub use log::{LogFormat, init_logging, shown_time};
pub use metrics::{
    AccessMetrics, ByReason, Counter, EdgeMetrics, Histogram, HttpMetrics, Metrics, NetMetrics, Requests,
    SshMetrics,
};
pub use reason::{Reason, Side};
pub use sparse::Sparse;
