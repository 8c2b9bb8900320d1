//! What somebody stumbles over who sets a gateway up for the first time: it is said, with the cure, and
//! nothing secret is shown.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::support::SOON;
use crate::support::agent::{OpenSsh, key_file, public_key};
use crate::support::gateway::{Setup, bare, oneport};
use crate::support::named::free_port;
use crate::support::pebble::ordering;
use crate::support::process::{Output, Process};

#[track_caller]
fn serve_check(setup: &Setup) -> Output {
    Process::run(setup.command().arg("--check"), SOON)
}

#[track_caller]
fn faults(setup: &Setup) -> String {
    let output = serve_check(setup);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    output.stderr
}

/// The lines of a private key that nobody else may see.
fn secret_lines(pem: &str) -> Vec<&str> {
    pem.lines().filter(|line| !line.is_empty() && !line.starts_with("-----")).collect()
}

#[test]
fn the_example_will_do_once_three_things_are_replaced() {
    let setup = Setup::new();
    let keys = setup.path("authorized_keys");
    std::fs::write(&keys, public_key("ed25519a")).expect("temporary folder");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/oneport.toml");
    let mut text = std::fs::read_to_string(example).expect("readable");
    for (old, new) in [
        ("\nbase_url = \"https://preview.example.com\"", "\nbase_url = \"https://gw.test\""),
        ("\nemail = \"admin@example.com\"", "\nemail = \"operator@gw.test\""),
        ("/etc/oneport/authorized_keys", keys.to_str().expect("UTF-8")),
    ] {
        assert_eq!(text.matches(old).count(), 1, "`{old}` is not there once");
        text = text.replace(old, new);
    }
    let path = setup.path("example.toml");
    std::fs::write(&path, text).expect("temporary folder");
    let mut command = bare();
    command.args(["serve", "--check", "--config"]).arg(&path).env("ONEPORT_STATE_DIR", setup.path("state"));
    let output = Process::run(&mut command, SOON);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stderr, "", "{output:?}");
}

#[test]
fn a_certificate_file_that_is_not_needed_may_be_left_out() {
    let mut setup = Setup::new();
    let absent = setup.path("absent.pem");
    setup.certificates(&[(&absent, &absent)]).set("acme.email", "operator@gw.test");
    let said = faults(&setup);
    assert!(said.contains("leave `tls.certificates` out if `acme.email` is to order them"), "{said}");
}

#[test]
fn previews_without_encryption_are_warned_of() {
    let said = |address: &str| {
        let mut setup = Setup::new();
        setup.set("plain.http", vec![address]);
        let output = serve_check(&setup);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        output.stderr
    };
    assert!(said("0.0.0.0:8080").contains("`plain.http` serves previews without encryption"));
    assert_eq!(said("127.0.0.1:8080"), "");
    let mut setup = Setup::new();
    setup.set("base_url", "http://gw.test").set("acme.email", "operator@gw.test");
    let output = serve_check(&setup);
    assert!(
        output.status.success() && output.stderr.contains("`base_url` begins with `http://`"),
        "{output:?}"
    );
}

#[test]
fn a_private_key_in_the_place_of_public_ones_is_told_and_not_shown() {
    let mut setup = Setup::new();
    let path = key_file(setup.dir.path(), "ed25519a");
    let pem = std::fs::read_to_string(&path).expect("a key");
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", path.to_str().expect("UTF-8"));
    let said = faults(&setup);
    let wanted = format!("ssh.authorized_keys: `{}`: this is a private key; name its `.pub`", path.display());
    assert!(said.contains(&wanted), "{said}");
    assert!(!secret_lines(&pem).iter().any(|line| said.contains(line)), "{said}");
}

#[test]
fn what_else_is_in_a_folder_of_keys_is_not_shown() {
    let mut setup = Setup::new();
    let folder = setup.path("ssh");
    std::fs::create_dir(&folder).expect("temporary folder");
    let pem = std::fs::read_to_string(key_file(&folder, "ed25519a")).expect("a key");
    std::fs::write(folder.join("id.pub"), public_key("ed25519b")).expect("temporary folder");
    // Without the line that tells what it is.
    let piece = secret_lines(&pem).join("=x\n");
    let odd = format!(
        "{piece}\nssh-secret AAAA\nfrom=\"secret/8\" ssh-rsa AAAA\nexpiry-time=\"secret\" ssh-rsa AAAA\nsecret=\"x\" {}\n",
        public_key("rsa2048")
    );
    std::fs::write(folder.join("notes"), odd).expect("temporary folder");
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", folder.to_str().expect("UTF-8"));
    let gateway = setup.start();
    assert!(OpenSsh::new(&gateway).key("ed25519b").command("hello").run().status.success());
    let log = gateway.stderr();
    assert!(log.contains("is a private key, and left out") && log.contains("notes:1"), "{log}");
    let pieces: Vec<_> =
        secret_lines(&pem).iter().filter_map(|line| line.get(..16)).map(str::to_ascii_lowercase).collect();
    let shown = log.to_ascii_lowercase();
    assert!(!pieces.iter().any(|piece| shown.contains(piece)) && !shown.contains("secret"), "{log}");
}

#[test]
fn a_key_on_one_line_is_not_shown() {
    let mut setup = Setup::new();
    let pem = std::fs::read_to_string(setup.path("leaf.key")).expect("made by openssl");
    let (cert, key) = (setup.path("leaf.pem"), setup.path("flat.key"));
    std::fs::write(&key, pem.replace('\n', " ")).expect("temporary folder");
    setup.certificates(&[(&cert, &key)]);
    let said = faults(&setup);
    assert!(said.contains("flat.key` is not in PEM form"), "{said}");
    // The library would write it down octet by octet.
    let octets = format!("{:?}", pem.lines().nth(1).expect("a line").as_bytes());
    let octets = octets.trim_matches(['[', ']']);
    assert!(!secret_lines(&pem).iter().any(|line| said.contains(line)) && !said.contains(octets), "{said}");
    // The text itself where its file's path should be.
    let mut command = setup.command();
    command.arg("--check").env("ONEPORT_TLS_CERTIFICATES", format!("{}:{pem}", cert.display()));
    let output = Process::run(&mut command, SOON);
    assert!(output.stderr.contains("a PEM text where a path should be"), "{output:?}");
    assert!(!secret_lines(&pem).iter().any(|line| output.stderr.contains(line)), "{output:?}");
}

#[test]
fn every_list_of_networks_that_is_missing_is_told_with_its_setting() {
    let mut setup = Setup::new();
    setup.set("networks.allow", vec!["file:a.txt"]).set("networks.deny", vec!["file:b.txt", "file:c.txt"]);
    setup.set("ssh.allow", vec!["file:d.txt"]);
    let route = toml::toml! {
        host = "app.gw.test"
        to = "http://127.0.0.1:1"
        deny = ["file:e.txt"]
    };
    setup.set("routes", vec![toml::Value::Table(route)]);
    let said = faults(&setup);
    for (place, file) in [
        ("networks.allow: ", "a.txt"),
        ("networks.deny: ", "b.txt"),
        ("networks.deny: ", "c.txt"),
        ("ssh.allow: ", "d.txt"),
        ("routes: deny of the route app.gw.test", "e.txt"),
    ] {
        assert!(said.lines().any(|line| line.starts_with(place) && line.contains(file)), "{file}: {said}");
    }
}

#[test]
fn files_without_a_secret_that_can_be_used_are_told() {
    let mut setup = Setup::new();
    let (empty, odd) = (setup.path("empty"), setup.path("odd"));
    std::fs::write(&empty, "\n").expect("temporary folder");
    std::fs::write(&odd, "secret \"c2VjcmV0\";\n").expect("temporary folder");
    setup.set("access.oidc.issuer", "https://id.gw.test").set("access.oidc.client_id", "oneport");
    setup.set("access.oidc.client_secret_file", empty.to_str().expect("UTF-8"));
    let rule = toml::toml! {
        domain = "gw.test"
        profiles = ["*"]
    };
    setup.set("access.oidc.allow", vec![toml::Value::Table(rule)]);
    setup.set("dns.rfc2136.server", "192.0.2.1").set("dns.rfc2136.key_name", "oneport");
    setup.set("dns.rfc2136.key_secret_file", odd.to_str().expect("UTF-8"));
    let said = faults(&setup);
    assert!(
        said.contains(&format!("access.oidc: `{}` is empty; write the client's secret", empty.display())),
        "{said}"
    );
    let line = said.lines().find(|line| line.starts_with("dns.rfc2136.key_secret_file: "));
    let is_told =
        |line: &str| line.contains("between the quotes") && line.contains(odd.to_str().expect("UTF-8"));
    assert!(line.is_some_and(is_told) && !said.contains("c2VjcmV0"), "{said}");
}

#[test]
fn looking_makes_nothing_that_the_gateway_could_not_write_to() {
    let setup = ordering(free_port(&["127.0.0.1"]), &["gw.test"], vec!["https://localhost:1/dir".into()]);
    let path = setup.write();
    let path = path.to_str().expect("UTF-8");
    let listed = oneport(&["certs", "--config", path]);
    assert!(listed.status.success() && listed.stdout.contains("not there yet"), "{listed:?}");
    let renewed = oneport(&["certs", "renew", "gw.test", "--config", path]);
    assert!(
        !renewed.status.success() && renewed.stderr.contains("no gateway has run with the"),
        "{renewed:?}"
    );
    assert!(!setup.path("state").exists(), "something was made");
    // What stands in the way is named.
    std::fs::create_dir(setup.path("state")).expect("temporary folder");
    std::fs::write(setup.path("state/acme"), "").expect("temporary folder");
    let output = Process::run(&mut setup.command(), SOON);
    let wanted = format!("let the gateway's user write to `{}`", setup.path("state/acme").display());
    assert!(output.stderr.contains(&wanted), "{output:?}");
}

#[test]
fn a_renewal_that_the_gateway_cannot_write_down_is_not_waited_for_in_silence() {
    let setup = ordering(free_port(&["127.0.0.1"]), &["gw.test"], vec!["https://localhost:1/dir".into()]);
    let gateway = setup.start();
    gateway.wait_log("a fault", |record| record["fault"] == "directory-unreachable");
    // Its notes cannot be read any more.
    let status = gateway.path("state/acme/names/gw.test/status.json");
    std::fs::remove_file(&status).expect("ours");
    std::fs::create_dir(&status).expect("ours");
    let mut command = bare();
    command.args(["certs", "renew", "gw.test", "--config"]).arg(gateway.path("oneport.toml"));
    let renewal = Process::start(&mut command);
    renewal.err.wait_for("the gateway has taken the request up; waiting for what comes of it", SOON);
}

#[test]
fn a_port_that_is_taken_is_told_once() {
    let mut setup = Setup::new();
    let port = free_port(&["127.0.0.1"]);
    let _other = TcpListener::bind(("127.0.0.1", port)).expect("free");
    setup.set("dns.responder", vec![format!("127.0.0.1:{port}")]);
    let output = Process::run(&mut setup.command(), SOON);
    assert_eq!(output.stderr.matches("another program holds this port").count(), 1, "{output:?}");
}

#[test]
fn a_certificate_of_ones_own_for_the_previews_needs_no_records() {
    let setup = Setup::new();
    let path = setup.write();
    let output = oneport(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.stdout, "ok    nothing is ordered, and no record is needed\n", "{output:?}");
}

#[test]
fn a_file_that_is_no_key_is_not_shown_by_who_makes_tokens() {
    let setup = Setup::new();
    let path = setup.path("secret");
    std::fs::write(&path, "ssh-hunter2 hunter2\n").expect("temporary folder");
    let mut command: Command = bare();
    command.args(["token", "--key"]).arg(&path);
    let output = Process::run(&mut command, SOON);
    assert!(!output.status.success() && output.stderr.contains("holds no SSH key"), "{output:?}");
    assert!(!output.stderr.contains("hunter2"), "{output:?}");
}

/// All but what depends on other programs, on what was ordered before and on what the process may have.
#[test]
fn whatever_the_start_warns_of_is_told_before_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut setup = Setup::new();
    let host_key = key_file(setup.dir.path(), "ed25519a");
    let leaf = setup.ca.leaf_between("old", &["gw.test"], -9, -2);
    let open = [&host_key, &leaf.key];
    open.iter().for_each(|path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("ours");
    });
    let keys = setup.path("authorized_keys");
    std::fs::write(&keys, "ssh-odd AAAA\n").expect("temporary folder");
    let issuer = toml::Table::from_iter([
        ("name".to_owned(), toml::Value::from("https://id.test")),
        ("key".to_owned(), setup.path("issuer.pem").display().to_string().into()),
    ]);
    let mut openssl = Command::new("openssl");
    openssl
        .args(["pkey", "-pubout", "-in"])
        .arg(setup.path("leaf.key"))
        .arg("-out")
        .arg(setup.path("issuer.pem"));
    assert!(Process::run(&mut openssl, SOON).status.success());
    setup.certificates(&[(&leaf.cert, &leaf.key)]);
    setup.set("access.issuer", vec![issuer]);
    setup.set("ssh.host_key", host_key.to_str().expect("UTF-8")).set("tls.default", "nope.test");
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", keys.to_str().expect("UTF-8"));
    // Written out as `access.secrets`, it would be a fault.
    let command = || {
        let mut command = setup.command();
        command.env("COOKIE_SECRETS", "short");
        command
    };
    let checked = Process::run(command().arg("--check"), SOON);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert!(!setup.path("state").exists(), "something was made");
    let warnings = |log: &str| -> std::collections::BTreeSet<String> {
        let records = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let records = records.filter(|record| record["level"] == "WARN");
        let texts = records.map(|record| record["message"].as_str().expect("text").to_owned());
        texts.filter(|text| !text.contains("file descriptors")).collect()
    };
    let command = command();
    let gateway = setup.start_with(command);
    // What comes last at the start.
    gateway.wait_log("the issuer's", |record| record["issuer"] == "https://id.test");
    let told = warnings(&checked.stderr);
    assert_eq!(told, warnings(&gateway.stderr()));
    for wanted in [
        "old.pem` ended at",
        "no certificate covers `nope.test`, so `tls.default` has nothing to show; name one that is covered (`gw.test`)",
        "no certificate covers the previews",
        "an issuer has no `audience`",
        "cookie secret has fewer than",
        "read or change the SSH host key",
        "read or change the private key of a certificate",
        "holds no key",
        "line of agents' keys is left out",
    ] {
        assert!(told.iter().any(|warning| warning.contains(wanted)), "`{wanted}` is not in {told:#?}");
    }
}

/// Its certificate may be ordered when somebody first comes.
#[test]
fn a_default_that_may_be_ordered_later_is_no_mistake() {
    let mut setup = ordering(free_port(&["127.0.0.1"]), &["gw.test"], vec!["https://localhost:1/dir".into()]);
    let said = |setup: &Setup| serve_check(setup).stderr;
    setup.set("tls.default", "web-dzk582uo.gw.test").set("acme.on_demand", true);
    assert!(!said(&setup).contains("tls.default"), "{}", said(&setup));
    setup.set("tls.default", "elsewhere.test");
    assert!(said(&setup).contains("`elsewhere.test`, so `tls.default`"), "{}", said(&setup));
    setup.set("tls.default", "gw.test");
    assert!(!said(&setup).contains("tls.default"), "{}", said(&setup));
}
