//! `oneport token` without a key's name takes the one that `ssh` does: the session's own client id is the
//! judge of it.

use serde_json::Value;

use crate::private::{House, profile};
use crate::support::SOON;
use crate::support::agent::{public_key, vector_key};
use crate::support::gateway::{Gateway, ONEPORT, Setup};
use crate::support::named::free_port;
use crate::support::person::Person;
use crate::support::process::{Output, Process};

/// Which key `ssh` logs in with.
#[track_caller]
fn taken_by_ssh(person: &Person, gateway: &Gateway, host: &str) -> String {
    let mut ssh = person.command("ssh");
    ssh.args(["-T", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    ssh.args(["-o", "HostName=localhost", "-p", &gateway.address().port().to_string()]);
    let output = Process::run(ssh.args([&format!("me@{host}"), "hello"]), SOON);
    let hello: Value = serde_json::from_str(output.stdout.trim()).unwrap_or_else(|_| panic!("{output:?}"));
    hello["clientId"].as_str().expect("an id").to_owned()
}

#[track_caller]
fn token(person: &Person, arguments: &[&str]) -> Output {
    Process::run(person.command(ONEPORT).arg("token").args(arguments), SOON)
}

/// That `ssh` and `oneport token` take this key.
#[track_caller]
fn both_take(person: &Person, gateway: &Gateway, key: &str, host: Option<&str>) -> Output {
    let id = vector_key(key)["client_id"].as_str().expect("an id").to_owned();
    assert_eq!(taken_by_ssh(person, gateway, host.unwrap_or("localhost")), id, "what ssh takes");
    let mut arguments = vec!["--profile"];
    arguments.extend(host.iter().flat_map(|host| ["--host", host]));
    let output = token(person, &arguments);
    assert_eq!(output.stdout.trim(), profile(key), "{output:?}");
    output
}

fn gateway() -> Gateway {
    let mut setup = Setup::new();
    setup.set("ssh.raw", true);
    setup.start()
}

#[test]
fn the_key_is_the_one_that_ssh_logs_in_with() {
    let gateway = gateway();
    let (a, b) = ("ed25519a", "ed25519b");
    // Of the ssh-agent alone, and before a file that it does not hold.
    let person = Person::new().with_agent(&[b]);
    let said = both_take(&person, &gateway, b, None).stderr;
    assert_eq!(said, "", "there is only one");
    let file = person.key(a).display().to_string();
    person.config(&format!("IdentityFile {file}\n"));
    let said = both_take(&person, &gateway, b, None).stderr;
    assert!(said.contains("of the ssh-agent (SHA256:") && said.contains("`--key FILE`"), "{said}");
    // Where the configuration says otherwise: for all hosts, and for one.
    person.config(&format!("IdentityFile {file}\nIdentitiesOnly yes\n"));
    both_take(&person, &gateway, a, None);
    person.config(&format!("IdentityFile {file}\nIdentityAgent none\n"));
    both_take(&person, &gateway, a, None);
    person.config(&format!("Host gw\nIdentityFile {file}\nIdentitiesOnly yes\n"));
    both_take(&person, &gateway, b, None);
    both_take(&person, &gateway, a, Some("gw"));
    // No file of a private key, but of the public one of a key that is not first.
    let person = Person::new().with_agent(&[b, a]);
    both_take(&person, &gateway, b, None);
    let public = person.path("named.pub");
    std::fs::write(&public, public_key(a)).expect("temporary folder");
    person.config(&format!("IdentityFile {}\n", public.display()));
    let said = both_take(&person, &gateway, a, None).stderr;
    assert!(said.contains("named.pub`, which the ssh-agent holds"), "{said}");
    // Kinds that `ssh` does not take are passed over.
    let person = Person::new().with_agent(&[a, "rsa2048"]);
    person.config("PubkeyAcceptedAlgorithms rsa-sha2-512\n");
    both_take(&person, &gateway, "rsa2048", None);
    // Files alone, in the order of the configuration; those that are not there are passed over.
    let person = Person::new();
    let (a_file, b_file) = (person.key(a), person.key(b));
    let text = format!(
        "IdentityFile /absent\nIdentityFile {}\nIdentityFile {}\n",
        b_file.display(),
        a_file.display()
    );
    person.config(&text);
    both_take(&person, &gateway, b, None);
    let none = token(&Person::new(), &[]);
    assert!(!none.status.success() && none.stderr.contains("no key: the ssh-agent holds none"), "{none:?}");
}

#[test]
fn its_token_opens_what_the_agent_offers_and_another_is_told_how_to() {
    let house = House::new(); // whose agent has the key `ed25519a`
    let person = Person::new().with_agent(&["ed25519a"]);
    let made = token(&person, &[]);
    assert_eq!(house.bearer(made.stdout.trim()).status, 200, "{made:?}");
    let other = token(&Person::new().with_agent(&["ed25519b", "ed25519a"]), &[]);
    let refused = house.bearer(other.stdout.trim());
    assert_eq!(refused.status, 401, "{refused:?}");
    assert!(
        refused.text().contains("`oneport token --key FILE`, with the key that the agent uses"),
        "{refused:?}"
    );
}

/// Or the token would be of a key that `ssh` never shows.
#[test]
fn what_ssh_does_not_understand_is_said() {
    let person = Person::new();
    person.config("IdentityFil x\n");
    let output = token(&person, &["--host", "gw"]);
    assert!(output.stderr.starts_with("oneport: `ssh -G gw` failed: `"), "{output:?}");
    assert!(output.stderr.contains("or a key with `--key`"), "{output:?}");
    // A key that is named needs no `ssh` to find the ssh-agent.
    let person = person.with_agent(&["ed25519a"]);
    let public = person.path("named.pub");
    std::fs::write(&public, public_key("ed25519a")).expect("temporary folder");
    let output = token(&person, &["--key", &public.display().to_string()]);
    assert!(output.status.success() && output.stdout.matches('.').count() == 2, "{output:?}");
}

/// Whatever stands in a name of a host, `ssh` takes it for one.
#[test]
fn a_host_is_no_option() {
    let person = Person::new();
    let made = person.path("made");
    let host = format!("--host=-oLocalCommand=touch {}", made.display());
    let output = token(&person, &["--profile", &host]);
    assert!(!output.status.success(), "{output:?}");
    assert!(!made.exists());
}

#[test]
fn dev_knows_the_key_of_an_ssh_agent() {
    let person = Person::new().with_agent(&["ed25519b"]);
    let port = free_port(&["127.0.0.1"]);
    let mut dev = person.command(ONEPORT);
    let dev = Process::start(dev.args(["dev", "--port", &port.to_string()]).current_dir(person.path("")));
    let said = dev.out.wait_for("Ctrl-C ends it.", SOON);
    let id = vector_key("ed25519b")["client_id"].as_str().expect("an id").to_owned();
    assert!(said.contains(&format!("https://web-{id}.localhost:{port}/")), "{said}");
    assert!(!said.contains("ssh-keygen") && !said.contains("IdentitiesOnly"), "{said}");
}

/// Who has named the public half is told how to get at the other.
#[test]
fn without_an_ssh_agent_a_public_half_is_not_enough_and_the_cure_is_named() {
    let person = Person::new();
    let (private, public) = (person.key("ed25519a"), person.path("key-ed25519a.pub"));
    std::fs::write(&public, public_key("ed25519a")).expect("temporary folder");
    let (private, public) = (private.display().to_string(), public.display().to_string());
    let unset = token(&person, &["--key", &public]);
    let cure = format!(
        "to sign with `{public}`; start one with `eval \"$(ssh-agent)\"` and `ssh-add {private}`, or name the private key: `--key {private}`\n"
    );
    assert_eq!(unset.stderr, format!("oneport: no ssh-agent runs here (`SSH_AUTH_SOCK` is not set) {cure}"));
    // Nobody listens there any more.
    let dead = person.path("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bound"));
    for (socket, why) in [(dead, "Connection refused"), (person.path("absent"), "No such file")] {
        let mut command = person.command(ONEPORT);
        command.args(["token", "--key", &public]).env("SSH_AUTH_SOCK", &socket);
        let output = Process::run(&mut command, SOON);
        let start = format!("oneport: no ssh-agent answers at `{}` ({why}", socket.display());
        assert!(output.stderr.starts_with(&start) && output.stderr.ends_with(&cure), "{output:?}");
    }
    // One that runs, and has another key.
    let other = Person::new().with_agent(&["ed25519b"]);
    let refused = token(&other, &["--key", &public]);
    assert!(refused.stderr.contains(&format!("; add the key with `ssh-add {private}`")), "{refused:?}");
}

/// As variables and web forms leave it.
#[test]
fn a_private_key_that_is_not_whole_is_told_from_one_that_is_none() {
    let person = Person::new();
    let pem = std::fs::read_to_string(person.key("ed25519a")).expect("a key");
    let file = person.path("broken");
    let said = |text: &str| {
        std::fs::write(&file, text).expect("temporary folder");
        token(&person, &["--key", file.to_str().expect("UTF-8")])
    };
    let lines: Vec<&str> = pem.lines().collect();
    let cut = lines[..lines.len() - 2].join("\n");
    let middle = [&lines[..2], &lines[lines.len() - 1..]].concat().join("\n");
    for broken in [pem.replace('\n', " "), pem.replace('\n', ""), pem.replace('\n', "\\n"), cut, middle] {
        let output = said(&broken);
        assert!(output.stderr.contains("is not whole; keep its line breaks"), "{output:?} of {broken:?}");
        assert!(!lines[1..4].iter().any(|line| output.stderr.contains(line)), "{output:?}");
    }
    for fine in [pem.replace('\n', "\r\n"), pem.trim().to_owned()] {
        assert!(said(&fine).status.success());
    }
    assert!(said("hello").stderr.contains("is neither a private key nor a `.pub` file"));
}

#[test]
fn a_token_that_would_be_over_at_once_is_not_made() {
    let person = Person::new();
    let key = person.key("ed25519a").display().to_string();
    for ttl in ["0s", "0"] {
        let output = token(&person, &["--key", &key, "--ttl", ttl]);
        assert_eq!((output.status.code(), output.stdout.as_str()), (Some(2), ""), "{output:?}");
    }
    let output = token(&person, &["--key", &key, "--ttl", "0s"]);
    assert!(output.stderr.contains("a token must be valid for a second at least"), "{output:?}");
}
