//! Whether what the settings name can be used: looks into the files, which the configuration
//! itself does not. `serve` and `serve --check` ask the same.

use crate::access::AgentKeys;
use crate::certs::load_pair;
use crate::config::{Fault, Faults, PemSource, Settings};
use crate::ssh::host_key;

/// Looks at every file that the settings name. Reads files: not for a busy task.
///
/// # Errors
/// Everything that is wrong.
pub fn validate(settings: &Settings) -> Result<(), Faults> {
    let mut faults = Vec::new();
    check_certificates(settings, &mut faults);
    check_state_dir(settings, &mut faults);
    check_host_key(settings, &mut faults);
    check_agent_keys(settings, &mut faults);
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
}

fn check_certificates(settings: &Settings, faults: &mut Vec<Fault>) {
    let mut names = Vec::new();
    for pair in &settings.tls.certificates {
        match load_pair(pair) {
            Ok(served) => names.extend(served.names.iter().cloned()),
            Err(error) => faults.push(Fault::new("tls.certificates", error.to_string())),
        }
    }
    let without_names = settings.listen.is_empty() || settings.tls.dev_ca.is_some();
    if !faults.is_empty() || without_names || names.is_empty() || settings.base.is_stand_in() {
        return;
    }
    let base = &settings.base.host;
    let tunnels = format!("*.{base}");
    let has_base = names.iter().any(|name| base.is_covered_by(name));
    let has_tunnels = names.contains(&tunnels);
    if !has_base && !has_tunnels {
        let what = format!(
            "no certificate covers `{base}` or `{tunnels}`, but `{}`; add one for both",
            names.join("`, `")
        );
        faults.push(Fault::new("tls.certificates", what));
    } else if !has_tunnels {
        tracing::warn!(
            "no certificate covers `{tunnels}`; only previews with their own name in one can be visited"
        );
    } else if !has_base {
        tracing::warn!("no certificate covers `{base}`; agents that connect to it will refuse");
    }
}

fn check_state_dir(settings: &Settings, faults: &mut Vec<Fault>) {
    let path = &settings.state_dir;
    if std::fs::metadata(path).is_ok_and(|facts| !facts.is_dir()) {
        let what = format!("`{}` is not a folder; name one, or remove the file", path.display());
        faults.push(Fault::new("state_dir", what));
    }
}

fn check_host_key(settings: &Settings, faults: &mut Vec<Fault>) {
    if let PemSource::File(path) = &settings.ssh.host_key
        && matches!(path.try_exists(), Ok(false))
    {
        // Made on the first start.
        return;
    }
    if let Err(error) = host_key::load(&settings.ssh.host_key) {
        faults.push(Fault::new("ssh.host_key", error.to_string()));
    }
}

fn check_agent_keys(settings: &Settings, faults: &mut Vec<Fault>) {
    match AgentKeys::open(settings.ssh.authorized_keys.as_deref(), settings.ssh.any_key) {
        Ok(keys) if keys.is_empty() && settings.ssh.authorized_keys.is_some() => {
            tracing::warn!("`ssh.authorized_keys` holds no key; no agent can connect until it does");
        }
        Ok(_) => {}
        Err(error) => faults.push(Fault::new("ssh.authorized_keys", error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::ensure_dev_certificates;
    use crate::config::AnyKey;
    use crate::name::HostName;

    #[test]
    fn all_files_are_looked_at() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let files = ensure_dev_certificates(&dir.path().join("dev")).expect("made");
        let mut settings = Settings::dev(8443, &dir.path().join("dev"));
        settings.tls.certificates = vec![files.leaf_pair()];
        assert!(validate(&settings).is_ok());

        settings.base.host = HostName::parse("preview.example.com").expect("valid");
        let faults = validate(&settings).expect_err("wrong names").to_string();
        assert!(faults.contains("no certificate covers `preview.example.com`"), "{faults}");

        settings.tls.certificates[0].key = PemSource::File(files.ca_key);
        settings.state_dir = files.cert;
        settings.ssh.host_key = PemSource::Inline("junk".to_owned());
        settings.ssh.any_key = AnyKey::No;
        settings.ssh.authorized_keys = Some(dir.path().join("absent"));
        let faults = validate(&settings).expect_err("all wrong");
        let places: Vec<&str> = faults.0.iter().map(|fault| fault.place.as_str()).collect();
        assert_eq!(places, ["tls.certificates", "state_dir", "ssh.host_key", "ssh.authorized_keys"]);
    }
}
