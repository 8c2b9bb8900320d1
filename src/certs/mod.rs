//! SNI → certificate and key: files given by the operator, and the development CA; and the records
//! in the DNS that prove names ([`dns`]).
//!
//! Refuses to guess: a name that no certificate covers gets none, and the edge says so with a
//! TLS alert.

pub mod acme;
mod challenges;
mod dev_ca;
mod disk;
pub mod dns;
mod files;
mod given;
mod lifetime;
mod store;

pub use challenges::{Answering, Challenges};
pub use dev_ca::{DevFiles, DevIssuer, ensure_dev_certificates};
pub use disk::{CertError, load_pair, parse_certificates, read_source};
pub use given::examine;
pub use lifetime::check_lifetimes;
pub use store::{CertStore, Served};
