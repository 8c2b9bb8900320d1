//! `oneport dev`: certificates, settings, and what to copy.

use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use oneport::access::Identity;
use oneport::agent::{SshSettings, usual_keys};
use oneport::app::AppError;
use oneport::certs::ensure_dev_certificates;
use oneport::config::{Settings, TlsSettings};
use oneport::name::TunnelName;
use oneport::net::BindError;
use oneport::observe::shell_word;
use russh::keys::PublicKey;

/// The port that is exposed in the example.
const EXAMPLE_PORT: u16 = 3000;
/// The name under which it is exposed.
const EXAMPLE_NAME: &str = "web";
/// Whom `ssh` is told to be, and where.
const USER_AT_HOST: &str = "me@localhost";
/// Goes on with a command in the next line, indented below its first.
const NEXT_LINE: &str = " \\\n      ";

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
        key: find_key(port)?,
        is_mac: cfg!(target_os = "macos"),
    };
    super::run_gateway(settings, None, |_| super::print(&guide.text())).map_err(in_dev)
}

/// What here has an option of its own to cure it.
fn in_dev(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(AppError::Bind(BindError::InUse(address))) => anyhow::anyhow!(
            "cannot listen on `{address}`: another program holds this port; stop it, or choose another with `--port`"
        ),
        _ => error,
    }
}

fn has_ipv6_loopback() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// The key that `ssh` tries first with the printed command, as far as that is known.
fn find_key(port: u16) -> anyhow::Result<Option<Key>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let keys = runtime.block_on(async {
        let settings = SshSettings::of(Some(USER_AT_HOST), Some(port)).await;
        // The printed command will say it, too.
        let settings = settings.unwrap_or_else(|error| {
            tracing::warn!(%error, "looking for a key in the usual places");
            SshSettings::without_ssh()
        });
        usual_keys(&settings).await
    });
    Ok(keys.first().map(|key| Key { file: key.file().map(Path::to_owned), public: key.public().cloned() }))
}

/// A key of the person's.
struct Key {
    /// Its file; `None`: only the ssh-agent has it.
    file: Option<PathBuf>,
    /// `None`: not known without its passphrase.
    public: Option<PublicKey>,
}

/// What a person needs to get going.
struct Guide {
    program: PathBuf,
    folder: PathBuf,
    port: u16,
    key: Option<Key>,
    is_mac: bool,
}

impl Guide {
    fn text(&self) -> String {
        let (url, ca) = (self.url(), shell_word(&self.ca().display().to_string()));
        let mut text = String::new();
        let _ = write!(text, "\noneport listens on localhost:{}\n", self.port);
        if self.key.is_none() {
            text.push_str("\nMake an SSH key, as there is none yet:\n\n  ssh-keygen -t ed25519\n");
        }
        let _ = write!(text, "\nExpose local port {EXAMPLE_PORT}:\n\n  {}\n", self.ssh_command());
        let _ = write!(text, "\nOpen it:\n\n  {url}\n");
        if self.public().is_none() {
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
                Some(format!(
                    "mkdir -p $HOME/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n oneport-dev -i {ca}"
                )),
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

    fn public(&self) -> Option<&PublicKey> {
        self.key.as_ref()?.public.as_ref()
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// With the host key kept beside the certificates, so that deleting the folder forgets it,
    /// and with the very key whose id is in the URL.
    fn ssh_command(&self) -> String {
        let percent = |path: &Path| shell_word(&path.display().to_string()).replace('%', "%%");
        let proxy = format!("{} connect %h:%p --ca {}", percent(&self.program), percent(&self.ca()));
        let known_hosts = percent(&self.folder.join("known_hosts"));
        let file = self.key.as_ref().and_then(|key| key.file.as_ref());
        let identity = file.map_or_else(String::new, |path| {
            format!("-o IdentitiesOnly=yes -i {}{NEXT_LINE}", shell_word(&path.display().to_string()))
        });
        format!(
            "ssh -o ProxyCommand={}{NEXT_LINE}-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={known_hosts}{NEXT_LINE}{identity}-p {} -R /{EXAMPLE_NAME}:localhost:{EXAMPLE_PORT} {USER_AT_HOST}",
            shell_word(&proxy),
            self.port
        )
    }

    fn url(&self) -> String {
        let label = match self.public() {
            Some(key) => TunnelName::derive(EXAMPLE_NAME, &Identity::of(key).client_id).to_string(),
            None => format!("{EXAMPLE_NAME}-CLIENTID"),
        };
        let port = if self.port == 443 { String::new() } else { format!(":{}", self.port) };
        format!("https://{label}.localhost{port}/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    fn public() -> Option<PublicKey> {
        Some(PublicKey::from_openssh(KEY).expect("valid"))
    }

    fn guide(folder: &str) -> Guide {
        Guide {
            program: "/usr/bin/oneport".into(),
            folder: folder.into(),
            port: 8443,
            key: Some(Key { file: Some("/home/me/.ssh/id_ed25519".into()), public: public() }),
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
        // One of the ssh-agent's is a key, too.
        let key = Some(Key { file: None, public: public() });
        let text = Guide { key, ..guide("/w") }.text();
        let id = Identity::of(&public().expect("a key")).client_id;
        assert!(!text.contains("ssh-keygen") && !text.contains("IdentitiesOnly"), "{text}");
        assert!(text.contains(&format!("https://web-{id}.localhost")), "{text}");
    }
}
