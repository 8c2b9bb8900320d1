//! The promises, each shown with real programs against the real binary.

mod support;
