//! What is said of what happened: the closed list of reasons, and how logs are written.

mod log;
mod reason;

pub use log::{LogFormat, init_logging};
pub use reason::{Reason, Side};
