//! The single port.
