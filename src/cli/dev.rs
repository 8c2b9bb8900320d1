//! `oneport dev`: certificates, settings, and what to copy.

use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use oneport::access::Identity;
use oneport::certs::ensure_dev_certificates;
use oneport::config::{Settings, TlsSettings};
use oneport::name::TunnelName;
use russh::keys::PublicKey;

/// The port that is exposed in the example.
const EXAMPLE_PORT: u16 = 3000;
/// The name under which it is exposed.
const EXAMPLE_NAME: &str = "web";
/// Goes on with a command in the next line, indented below its first.
const NEXT_LINE: &str = " \\\n      ";
/// Keys that OpenSSH makes, in the order in which one is taken for the example.
const KEY_FILES: &[&str] = &["id_ed25519", "id_ecdsa", "id_rsa"];

/// Runs the gateway for this machine alone.
pub fn run(port: u16, state_dir: &Path) -> anyhow::Result<()> {
    let mut settings = Settings::dev(port, state_dir);
    if let Ok(filter) = std::env::var("ONEPORT_LOG_FILTER") {
        settings.log.filter = filter;
    }
    oneport::observe::init_logging(settings.log.format, &settings.log.filter).map_err(anyhow::Error::msg)?;
    let files = ensure_dev_certificates(state_dir)?;
    settings.tls = TlsSettings {
        certificates: vec![files.leaf_pair().into()],
        dev_ca: Some(files.ca_pair()),
        default: None,
    };
    if !has_ipv6_loopback() {
        tracing::info!("this machine has no [::1]; listening on 127.0.0.1 only");
        settings.listen.retain(SocketAddr::is_ipv4);
    }
    let guide = Guide {
        program: std::env::current_exe().context("cannot find out where this program is")?,
        folder: state_dir.canonicalize().context("cannot find the state folder")?,
        port,
        key: find_key(),
        is_mac: cfg!(target_os = "macos"),
    };
    super::run_gateway(settings, None, |_| super::print(&guide.text()))
}

fn has_ipv6_loopback() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// The person's key: where its private half is, and the public half.
fn find_key() -> Option<(PathBuf, PublicKey)> {
    let folder = PathBuf::from(std::env::var_os("HOME")?).join(".ssh");
    KEY_FILES.iter().find_map(|name| {
        let private = folder.join(name);
        let public = std::fs::read_to_string(private.with_extension("pub")).ok()?;
        let key = PublicKey::from_openssh(public.trim()).ok()?;
        private.exists().then_some((private, key))
    })
}

/// What a person needs to get going.
struct Guide {
    program: PathBuf,
    folder: PathBuf,
    port: u16,
    key: Option<(PathBuf, PublicKey)>,
    is_mac: bool,
}

impl Guide {
    fn text(&self) -> String {
        let (url, ca) = (self.url(), quote(&self.ca().display().to_string()));
        let mut text = String::new();
        let _ = write!(text, "\noneport listens on localhost:{}\n", self.port);
        if self.key.is_none() {
            text.push_str("\nMake an SSH key, as there is none yet:\n\n  ssh-keygen -t ed25519\n");
        }
        let _ = write!(text, "\nExpose local port {EXAMPLE_PORT}:\n\n  {}\n", self.ssh_command());
        let _ = write!(text, "\nOpen it:\n\n  {url}\n");
        if self.key.is_none() {
            text.push_str("  (CLIENTID stands for your key; the session above shows the whole address)\n");
        }
        let _ = write!(text, "\nTrust its certificates, which are good for localhost only:\n\n");
        let _ = writeln!(text, "  curl      curl --cacert {ca} {url}");
        let (browser, system) = if self.is_mac {
            (
                None,
                format!(
                    "sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {ca}"
                ),
            )
        } else {
            (
                Some(format!("certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n oneport-dev -i {ca}")),
                format!(
                    "sudo cp {ca} /usr/local/share/ca-certificates/oneport-dev.crt && sudo update-ca-certificates"
                ),
            )
        };
        if let Some(browser) = browser {
            let _ = writeln!(text, "  Chromium  {browser}");
        }
        let _ = writeln!(text, "  system    {system}");
        text.push_str("\nCtrl-C ends it.\n\n");
        text
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// With the host key kept beside the certificates, so that deleting the folder forgets it,
    /// and with the very key whose id is in the URL.
    fn ssh_command(&self) -> String {
        let percent = |path: &Path| quote(&path.display().to_string()).replace('%', "%%");
        let proxy = format!("{} connect %h:%p --ca {}", percent(&self.program), percent(&self.ca()));
        let known_hosts = percent(&self.folder.join("known_hosts"));
        let identity = match &self.key {
            Some((path, _)) => {
                format!("-o IdentitiesOnly=yes -i {}{NEXT_LINE}", quote(&path.display().to_string()))
            }
            None => String::new(),
        };
        format!(
            "ssh -o ProxyCommand={}{NEXT_LINE}-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={known_hosts}{NEXT_LINE}{identity}-p {} -R /{EXAMPLE_NAME}:localhost:{EXAMPLE_PORT} me@localhost",
            quote(&proxy),
            self.port
        )
    }

    fn url(&self) -> String {
        let label = match &self.key {
            Some((_, key)) => TunnelName::derive(EXAMPLE_NAME, &Identity::of(key).client_id).to_string(),
            None => format!("{EXAMPLE_NAME}-CLIENTID"),
        };
        let port = if self.port == 443 { String::new() } else { format!(":{}", self.port) };
        format!("https://{label}.localhost{port}/")
    }
}

/// A word as a POSIX shell takes it, in the plainest quotes that hold it.
fn quote(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if text.chars().all(|c| is_plain(c) || c == ' ') {
        return format!("\"{text}\"");
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn guide(folder: &str) -> Guide {
        Guide {
            program: "/usr/bin/oneport".into(),
            folder: folder.into(),
            port: 8443,
            key: Some(("/home/me/.ssh/id_ed25519".into(), PublicKey::from_openssh(KEY).expect("valid"))),
            is_mac: false,
        }
    }

    #[test]
    fn commands_can_be_copied() {
        let command = guide("/w/certs/dev").ssh_command();
        assert!(
            command.starts_with(
                "ssh -o ProxyCommand=\"/usr/bin/oneport connect %h:%p --ca /w/certs/dev/ca.pem\" "
            ),
            "{command}"
        );
        let text = guide("/w/certs/dev").text();
        let id = Identity::of(&PublicKey::from_openssh(KEY).expect("valid")).client_id;
        assert!(text.contains(&format!("\n  https://web-{id}.localhost:8443/\n")), "{text}");
        assert!(text.contains("curl --cacert /w/certs/dev/ca.pem https://web-"), "{text}");
    }

    #[test]
    fn odd_paths_survive_two_shells() {
        let command = guide("/it's 100%").ssh_command();
        let printed = std::process::Command::new("sh")
            .args(["-c", &command.replacen("ssh ", "printf '%s\\n' ", 1)])
            .output()
            .expect("a shell");
        let words = String::from_utf8(printed.stdout).expect("text");
        let proxy = words.lines().find_map(|line| line.strip_prefix("ProxyCommand=")).expect("the option");
        // OpenSSH turns `%%` into `%`, then gives the text to a shell.
        let inner = proxy.replace("%%", "%").replacen("/usr/bin/oneport", "printf '%s\\n'", 1);
        let printed = std::process::Command::new("sh").args(["-c", &inner]).output().expect("a shell");
        let words = String::from_utf8(printed.stdout).expect("text");
        assert_eq!(words.lines().last(), Some("/it's 100%/ca.pem"));
    }

    #[test]
    fn without_a_key_it_says_how_to_make_one() {
        let text = Guide { key: None, ..guide("/w") }.text();
        assert!(text.contains("ssh-keygen") && text.contains("web-CLIENTID.localhost"), "{text}");
    }
}
