//! The configuration: what was written (`file`, `env`) → what it means ([`Settings`]).

mod settings;

pub use settings::{
    AnyKey, BaseUrl, HttpSettings, Limits, LogSettings, PemPair, PemSource, Settings, SshSettings,
    TlsSettings,
};
