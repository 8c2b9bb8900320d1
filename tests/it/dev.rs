//! `oneport dev`, end to end, with exactly the commands that it prints.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::Signal;

use crate::support::SOON;
use crate::support::backend::Backend;
use crate::support::gateway::ONEPORT;
use crate::support::person::Person;
use crate::support::process::Process;

fn dev(person: &Person) -> Process {
    // The command line takes no port 0, because its URLs are meant to last.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let mut command = person.command(ONEPORT);
    Process::start(command.args(["dev", "--port", &port.to_string()]).current_dir(person.path("")))
}

/// The printed command that begins with these words, on as many lines as it has.
fn printed(dev: &Process, begin: &str) -> String {
    dev.out.wait(&format!("command with `{begin}`"), SOON, |said| {
        let text = said[said.find(begin)?..].replace("\\\n", " ");
        // A whole line only: its end may still be on its way.
        text.split_once('\n').map(|(line, _)| line.to_owned())
    })
}

fn shell(person: &Person, line: &str) -> Command {
    let mut command = person.command("sh");
    command.arg("-c").arg(line);
    command
}

#[test]
fn the_printed_commands_lead_to_the_first_preview() {
    let (person, backend) = (Person::new(), Backend::start());
    // A person has a key, and the service on port 3000. Here the service is where a port was free.
    let key = person.key("ed25519a");
    person.config(&format!("IdentityFile {}\n", key.display()));
    let dev = dev(&person);

    let ssh = printed(&dev, "ssh -o ProxyCommand")
        .replace("localhost:3000", &format!("127.0.0.1:{}", backend.address().port()));
    let ssh = Process::start(&mut shell(&person, &ssh));
    let url = ssh.out.wait("URL", SOON, |said| {
        let from = said.find("https://web-dzk582uo.localhost:")?;
        said[from..].split_whitespace().next().map(str::to_owned)
    });

    let curl = printed(&dev, "curl --cacert");
    assert!(
        curl.ends_with(&url),
        "the URL of the session is `{url}`, that of the printed command is in `{curl}`"
    );
    let output = Process::run(&mut shell(&person, &format!("{curl}small")), SOON);
    assert_eq!(output.stdout, "small", "{output:?}");
    assert!(printed(&dev, "https://web-").starts_with(&url));
}

/// On an account where no Chromium ever ran.
#[test]
fn the_printed_command_has_chromium_trust_the_authority() {
    let person = Person::new();
    let dev = dev(&person);
    let trust = printed(&dev, "mkdir -p $HOME/.pki/nssdb && certutil");
    let output = Process::run(&mut shell(&person, &trust), SOON);
    assert!(output.status.success(), "{output:?}");
    let listed = Process::run(&mut shell(&person, "certutil -d sql:$HOME/.pki/nssdb -L"), SOON);
    assert!(listed.stdout.contains("oneport-dev") && listed.stdout.contains("C,,"), "{listed:?}");
}

#[test]
fn a_port_that_is_taken_is_told_with_the_option_that_names_another() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let person = Person::new();
    let mut command = person.command(ONEPORT);
    let output = Process::run(command.args(["dev", "--port", &port]).current_dir(person.path("")), SOON);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.ends_with("or choose another with `--port`\n"), "{output:?}");
}

#[test]
fn the_authority_is_made_once_and_kept_safe() {
    let person = Person::new();
    let folder = person.path("certs/dev");
    let mut first = dev(&person);
    printed(&first, "curl --cacert");
    let ca = std::fs::read(folder.join("ca.pem")).expect("the authority's certificate");
    for entry in std::fs::read_dir(&folder).expect("certs/dev") {
        let path = entry.expect("certs/dev").path();
        let secret = std::fs::read_to_string(&path).is_ok_and(|text| text.contains("PRIVATE KEY"));
        let mode = std::fs::metadata(&path).expect("certs/dev").permissions().mode() & 0o777;
        assert!(!secret || mode == 0o600, "{} has the mode {mode:o}", path.display());
    }
    first.signal(Signal::TERM);
    assert_eq!(first.exit(SOON).code(), Some(0));
    let second = dev(&person);
    printed(&second, "curl --cacert");
    assert_eq!(std::fs::read(folder.join("ca.pem")).expect("the authority's certificate"), ca);
}
