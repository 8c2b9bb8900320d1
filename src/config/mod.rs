//! The configuration: what was written (`file`, `env`) → what it means ([`Settings`]).
//!
//! Refuses what it does not know, and finds all faults at once. Looks into no file but its own:
//! whether certificates and keys can be used is looked at by [`crate::app`].

mod acme;
mod dns;
mod env;
mod fault;
mod file;
#[cfg(test)]
mod golden;
mod issuers;
mod list;
mod nearest;
mod networks;
mod oidc;
mod private;
mod resolve;
mod routes;
mod setting;
mod settings;
mod source;
mod value;
pub mod watch;
mod written;

use std::path::Path;

pub use acme::{AcmeSettings, ChallengeWay, DirectorySettings, EabSettings, KeyType, OnDemandSettings};
pub use dns::{
    CloudflareSettings, DnsSettings, DnsWay, ExecSettings, ExecStyle, ResponderSettings, Rfc2136Settings,
    SecretSource, TsigHash,
};
pub use fault::{Fault, Faults};
pub use list::SETTINGS;
pub use networks::{
    FailureSettings, NetworkSettings, NetworkSource, OwnRate, RateSettings, RequestLimits, RouteBounds,
};
pub use oidc::{OidcProfiles, OidcRule, OidcSettings, OidcWho};
pub use private::Shared;
pub use setting::Setting;
pub use settings::{
    AccessSettings, AdminListen, AnyKey, BackendAddr, BaseUrl, CertificateSource, HttpSettings, IssuerKeys,
    IssuerSettings, JwksUrl, Limits, LogSettings, PemPair, PemSource, RouteSettings, Secret, Settings,
    SshSettings, TlsSettings,
};
pub use source::{Reading, Source};

/// Reads a duration as settings have it, such as `30s` or `1h30m`.
///
/// # Errors
/// When it is none, in words.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    value::duration(&written::Value::Text(text.to_owned()))
}

/// Reads a network as settings have it: `10.0.0.0/8`, `2001:db8::/32`, or one address.
///
/// # Errors
/// When it is none, in words.
pub fn parse_network(text: &str) -> Result<ipnet::IpNet, String> {
    value::parse_network(text)
}

/// Reads the file, if one is given, and the environment, which wins; also what was written. Goes on
/// after faults. `None` when nothing could be understood.
fn read(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> (Option<(Settings, source::Given)>, Faults) {
    let (from_env, env_faults) = env::read(env);
    let (mut written, mut faults) = match file.map(file::read) {
        None => Default::default(),
        Some(Ok(read)) => read,
        Some(Err(mut broken)) => {
            broken.0.extend(env_faults);
            return (None, broken);
        }
    };
    written.override_with(from_env);
    faults.extend(env_faults);
    let given = source::Given::of(&written);
    let (mut settings, faults) = resolve::resolve(written, faults);
    settings.file = file.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
    (Some((settings, given)), faults)
}

impl Settings {
    /// What `oneport dev` runs with: `https://localhost:PORT`, loopback only, any key from
    /// there. Certificates are left to be added once they are made. `port` must not be 0.
    #[must_use]
    pub fn dev(port: u16, state_dir: &Path) -> Self {
        let mut written = written::Written::default();
        written.set_text("base_url", "--port", format!("https://localhost:{}", port.max(1)));
        written.set_text("listen", "--port", format!("127.0.0.1:{port},[::1]:{port}"));
        written.set_text("state_dir", "--state-dir", "certs/dev");
        written.set_text("ssh.allow_any_key", "dev", "true");
        // All that the two addresses of loopback may hold, so that no small limit is worth a warning.
        written.set_text("limits.connections", "dev", "2000");
        // Any pair will do until the real one is there: without one there is nothing to listen with.
        written.set_text("tls.certificates", "dev", "cert:key");
        // Nothing in it depends on input but the port, which fits: there are no faults.
        let (mut settings, _) = resolve::resolve(written, Vec::new());
        settings.state_dir = state_dir.to_owned();
        settings.ssh.host_key = PemSource::File(state_dir.join("ssh_host_ed25519_key"));
        settings.ssh.any_key = AnyKey::OnLoopback;
        settings.access.secrets_file = state_dir.join("cookie_secrets");
        settings.tls = TlsSettings::default();
        settings
    }
}
