//! Whether what the settings name can be used: looks into the files, which the configuration
//! itself does not. `serve` and `serve --check` ask the same.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::access::{Admission, AgentKeys, Issuers, Oidc, Seals};
use crate::certs::{CertError, acme, dns, examine};
use crate::config::{AdminListen, Fault, PemSource, Settings};
use crate::name::HostName;
use crate::ssh::host_key;

/// What was found in the files and in what the settings say together.
#[derive(Debug, Default)]
pub struct Looked {
    /// What keeps the gateway from starting.
    pub faults: Vec<Fault>,
    /// What does not, but is likely not meant: a sentence each.
    pub doubts: Vec<String>,
}

/// Looks at every file that the settings name. Reads files: not for a busy task.
#[must_use]
pub fn validate(settings: &Settings) -> Looked {
    let mut looked = Looked::default();
    check_certificates(settings, &mut looked);
    let Looked { faults, doubts } = &mut looked;
    check_state_dir(settings, faults);
    check_host_key(settings, faults);
    check_agent_keys(settings, faults, doubts);
    if let Err(error) = Issuers::open(&settings.access) {
        faults.push(Fault::new("access.issuer", error.to_string()));
    }
    check_secrets(settings, faults);
    let oidc = settings.access.oidc.as_ref();
    if let Some(Err(error)) = oidc.map(|oidc| Oidc::open(oidc, settings.base.login_url())) {
        faults.push(Fault::new("access.oidc", error.to_string()));
    }
    faults.extend(Admission::examine(settings));
    doubt_networks(settings, doubts);
    doubt_plain_text(settings, doubts);
    check_admin(settings, faults);
    faults.extend(dns::check_files(&settings.dns));
    looked
}

fn check_certificates(settings: &Settings, looked: &mut Looked) {
    let mut names = Vec::new();
    let faults = &mut looked.faults;
    for source in &settings.tls.certificates {
        let (broken, covered) = examine(source);
        names.extend(covered);
        faults.extend(broken.iter().map(|error| Fault::new("tls.certificates", said(error))));
    }
    if let Some(ordered) = &settings.acme {
        names.extend(ordered.names.iter().map(ToString::to_string));
        faults
            .extend(acme::faulty_roots(ordered).into_iter().map(|what| Fault::new("acme.directories", what)));
    }
    let without_names = settings.listen.is_empty() || settings.tls.dev_ca.is_some();
    if faults.is_empty() && !without_names && !names.is_empty() && !settings.base.is_stand_in() {
        check_coverage(settings, &names, looked);
    }
}

/// Whether there are certificates for the names that are used: these, and what is ordered on demand.
fn check_coverage(settings: &Settings, names: &[String], looked: &mut Looked) {
    let Looked { faults, doubts } = looked;
    let covers = |host: &HostName| names.iter().any(|name| host.is_covered_by(name));
    let all = || names.join("`, `");
    let is_on_demand = settings.acme.as_ref().is_some_and(|acme| acme.on_demand.is_some());
    for route in settings.routes.iter().filter(|route| !covers(&route.host)) {
        doubts.push(format!("no certificate covers `{}`, which has a route; add one", route.host));
    }
    let base = &settings.base.host;
    if let Some(host) = settings.tls.default.as_ref().filter(|host| !covers(host)) {
        let has_route = settings.routes.iter().any(|route| route.host == *host);
        // Its certificate may be ordered once somebody comes.
        if !(is_on_demand && (has_route || host.label_under(base).is_some())) {
            doubts.push(format!(
                "no certificate covers `{host}`, so `tls.default` has nothing to show; name one that is covered (`{}`), add a certificate, or leave it out",
                all()
            ));
        }
    }
    let tunnels = format!("*.{base}");
    let has_base = covers(base);
    let has_tunnels = names.contains(&tunnels);
    if !has_base && !has_tunnels {
        let what =
            format!("no certificate covers `{base}` or `{tunnels}`, but `{}`; add one for both", all());
        let place = if settings.acme.is_some() { "acme.names" } else { "tls.certificates" };
        faults.push(Fault::new(place, what));
    } else if !has_tunnels && !is_on_demand {
        let cure = if settings.acme.is_some() {
            "a way under `[dns]` has it ordered (docs/dns.md)"
        } else {
            "add one to `tls.certificates`, or have it ordered (docs/certificates.md)"
        };
        doubts.push(format!(
            "no certificate covers the previews, `{tunnels}`; only those with their own name in one can be visited; {cure}"
        ));
    } else if !has_base {
        doubts.push(format!("no certificate covers `{base}`; agents that connect to it will refuse"));
    }
}

/// A fault of a certificate's file. Where there is none, it may be that none is needed.
fn said(error: &CertError) -> String {
    let is_absent =
        matches!(error, CertError::Unreadable { error, .. } if error.kind() == io::ErrorKind::NotFound);
    let hint =
        if is_absent { ", or leave `tls.certificates` out if `acme.email` is to order them" } else { "" };
    format!("{error}{hint}")
}

/// What may be meant, but is often not.
fn doubt_plain_text(settings: &Settings, doubts: &mut Vec<String>) {
    let is_near = |address: &SocketAddr| address.ip().is_loopback();
    if settings.base.https
        && let Some(address) = settings.plain_http.iter().find(|address| !is_near(address))
    {
        doubts.push(format!(
            "`plain.http` serves previews without encryption to whoever reaches `{address}`, which is meant for a proxy in front that ends TLS; to lead visitors to HTTPS and answer `http-01`, write that address into `listen` instead"
        ));
    }
    if !settings.base.https && settings.acme.is_some() {
        doubts.push("`acme.email` has certificates ordered, but `base_url` begins with `http://`, so that agents are told URLs without encryption; write `https://` there".to_owned());
    }
}

fn doubt_networks(settings: &Settings, doubts: &mut Vec<String>) {
    if settings.acme.is_some() && settings.dns.way.is_none() && !settings.networks.allow.is_empty() {
        doubts.push("`networks.allow` keeps certificate authorities out, who come from anywhere to see a name proved; set a way under `[dns]` (docs/dns.md), or use `ssh.allow` and lists of routes and tunnels instead".to_owned());
    }
}

fn check_state_dir(settings: &Settings, faults: &mut Vec<Fault>) {
    if let Err(what) = can_be_folder(&settings.state_dir) {
        let what = format!("{what}, or set `state_dir` to a folder that this user can write to");
        faults.push(Fault::new("state_dir", what));
    }
}

fn check_host_key(settings: &Settings, faults: &mut Vec<Fault>) {
    if let PemSource::File(path) = &settings.ssh.host_key
        && is_absent(path)
    {
        // Made on the first start. What is wrong with the state folder has been said.
        if !path.starts_with(&settings.state_dir)
            && let Err(what) = can_be_folder(folder_of(path))
        {
            let path = path.display();
            let what = format!("no key can be made at `{path}`: {what}, or set it to a key that exists");
            faults.push(Fault::new("ssh.host_key", what));
        }
        return;
    }
    if let Err(error) = host_key::load(&settings.ssh.host_key) {
        faults.push(Fault::new("ssh.host_key", error.to_string()));
    }
}

fn check_secrets(settings: &Settings, faults: &mut Vec<Fault>) {
    const PLACE: &str = "access.secrets_file";
    let path = &settings.access.secrets_file;
    if let Err(error) = Seals::check(&settings.access) {
        faults.push(Fault::new(PLACE, error.to_string()));
    } else if settings.access.secrets.is_empty()
        && is_absent(path)
        && !path.starts_with(&settings.state_dir)
        && let Err(what) = can_be_folder(folder_of(path))
    {
        let path = path.display();
        faults.push(Fault::new(
            PLACE,
            format!("no secret can be made at `{path}`: {what}, or set it to a file that exists"),
        ));
    }
}

fn check_admin(settings: &Settings, faults: &mut Vec<Fault>) {
    let Some(AdminListen::Unix(path)) = &settings.admin else { return };
    let folder = folder_of(path);
    // Not made by the gateway: who may go through it is the operator's to say.
    if !folder.is_dir() {
        let what = format!("there is no folder `{}` for the socket; make it", folder.display());
        faults.push(Fault::new("admin.listen", what));
    }
}

/// Whether nothing is there, not even a link that leads nowhere.
fn is_absent(path: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    fs::symlink_metadata(path).is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether there is a folder that can be written to, or can be made. Leaves no trace.
fn can_be_folder(path: &Path) -> Result<(), String> {
    let mut nearest = path;
    while is_absent(nearest) && nearest != Path::new(".") {
        nearest = folder_of(nearest);
    }
    let shown = nearest.display();
    let cannot = if nearest == path {
        String::new()
    } else {
        format!("the folder `{}` cannot be made: ", path.display())
    };
    match fs::metadata(nearest) {
        Err(error) if nearest.is_symlink() => {
            Err(format!("{cannot}the link `{shown}` does not lead to a folder ({error}); remove it"))
        }
        Err(error) => Err(format!("{cannot}`{shown}` cannot be looked at ({error}); let this user in there")),
        Ok(facts) if !facts.is_dir() => Err(format!("{cannot}`{shown}` is not a folder; remove it")),
        // By trying, because rights do not tell: not every file system takes files.
        Ok(_) => tempfile::tempfile_in(nearest).map(drop).map_err(|error| {
            format!("{cannot}`{shown}` cannot be written to ({error}); make it writable for this user")
        }),
    }
}

fn check_agent_keys(settings: &Settings, faults: &mut Vec<Fault>, doubts: &mut Vec<String>) {
    match AgentKeys::open(settings.ssh.authorized_keys.as_deref(), settings.ssh.any_key) {
        Ok(keys) if keys.is_empty() && settings.ssh.authorized_keys.is_some() => {
            doubts.push("`ssh.authorized_keys` holds no key; no agent can connect until it does".to_owned());
        }
        Ok(_) => {}
        Err(error) => faults.push(Fault::new("ssh.authorized_keys", error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::ensure_dev_certificates;
    use crate::config::{AnyKey, Faults, PemPair};
    use crate::name::HostName;

    #[test]
    fn all_files_are_looked_at() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let files = ensure_dev_certificates(&dir.path().join("dev")).expect("made");
        let mut settings = Settings::dev(8443, &dir.path().join("dev"));
        settings.tls.certificates = vec![files.leaf_pair().into()];
        settings.admin = Some(AdminListen::Unix(dir.path().join("admin.sock")));
        assert!(validate(&settings).faults.is_empty());

        settings.base.host = HostName::parse("preview.example.com").expect("valid");
        let faults = Faults(validate(&settings).faults).to_string();
        assert!(faults.contains("no certificate covers `preview.example.com`"), "{faults}");

        let mismatched = PemPair { key: PemSource::File(files.ca_key.clone()), ..files.leaf_pair() };
        settings.tls.certificates = vec![mismatched.into()];
        settings.state_dir = files.cert;
        settings.ssh.host_key = PemSource::Inline("junk".to_owned());
        settings.ssh.any_key = AnyKey::No;
        settings.ssh.authorized_keys = Some(dir.path().join("absent"));
        settings.admin = Some(AdminListen::Unix(dir.path().join("absent/admin.sock")));
        let faults = validate(&settings).faults;
        let places: Vec<&str> = faults.iter().map(|fault| fault.place.as_str()).collect();
        assert_eq!(
            places,
            ["tls.certificates", "state_dir", "ssh.host_key", "ssh.authorized_keys", "admin.listen"]
        );
    }
    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| dir.path().join(name);
        assert_eq!(can_be_folder(&at("deep/er")), Ok(()));
        assert_eq!(can_be_folder(Path::new("target-that-is-not-there")), Ok(()));
        assert!(!at("deep").exists());
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0, "it left something");

        fs::write(at("file"), "").expect("writable");
        std::os::unix::fs::symlink("nowhere", at("link")).expect("linkable");
        let fault = |path: &Path| can_be_folder(path).expect_err("it cannot");
        let file = fault(&at("file/deep/er"));
        assert!(file.contains("file` is not a folder; remove it"), "{file}");
        let link = fault(&at("link"));
        assert!(link.contains("link` does not lead to a folder"), "{link}");
        let foreign = fault(Path::new("/proc/x/y"));
        assert!(foreign.starts_with("the folder `/proc/x/y` cannot be made: `/proc` cannot be"), "{foreign}");
    }
}
