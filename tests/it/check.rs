//! `oneport check`: the record to add, and what is wrong, each with what to do.

use std::path::Path;
use std::process::Command;

use crate::acme::wait_issued;
use crate::support::front::{Front, Verdict, problem};
use crate::support::gateway::{ONEPORT, Setup, bare, oneport, without_settings};
use crate::support::named::{KEY, Named, free_port as free_port_at};
use crate::support::pebble::{PebbleSetup, directory, free_port, ordering};
use crate::support::process::{Output, Process};
use crate::support::{SOON, poll};

#[test]
fn without_a_way_to_set_records_it_says_so() {
    let mut setup = ordering(free_port(), &["gw.test"], vec!["https://localhost:1/dir".into()]);
    setup.set("dns.resolver", vec!["127.0.0.1:1"]); // where nobody is
    let output = check(&setup.write());
    let wanted = "note  nobody is there to set DNS records, so `*.gw.test` cannot be proved";
    assert!(output.stdout.contains(wanted), "{output:?}");
}

/// Nothing has to be proved there.
#[test]
fn where_nothing_is_ordered_it_speaks_of_files_and_not_of_records() {
    let mut setup = Setup::new();
    let leaf = setup.ca.leaf("one", &["gw.test"]);
    setup.certificates(&[(&leaf.cert, &leaf.key)]);
    let output = check(&setup.write());
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""), "{output:?}");
    assert!(
        output.stdout.starts_with("note  no certificate covers the previews, `*.gw.test`; "),
        "{output:?}"
    );
    assert!(!output.stdout.contains("DNS") && output.stdout.ends_with("\n1 note\n"), "{output:?}");
}

/// Certificates of these days for all names, in `serve --check` and `check`.
fn with_files(days: &[(&str, i64, i64)]) -> (Output, Output) {
    let mut setup = Setup::new();
    let names = ["gw.test", "*.gw.test"];
    let leaves: Vec<_> =
        days.iter().map(|(file, from, to)| setup.ca.leaf_between(file, &names, *from, *to)).collect();
    let pairs: Vec<_> = leaves.iter().map(|leaf| (leaf.cert.as_path(), leaf.key.as_path())).collect();
    setup.certificates(&pairs);
    (Process::run(setup.command().arg("--check"), SOON), check(&setup.write()))
}

/// The day, as it stands in a sentence.
fn day(days: i64) -> String {
    (time::OffsetDateTime::now_utc() + time::Duration::days(days)).date().to_string()
}

#[test]
fn a_certificate_whose_time_is_over_is_told_before_clients_tell() {
    let (serve, looked) = with_files(&[("old", -30, -1)]);
    let wanted = format!("old.pem` ended at {}T", day(-1));
    // The rest of the gateway is better up than down.
    assert_eq!((serve.status.code(), serve.stderr.matches(&wanted).count()), (Some(0), 1), "{serve:?}");
    assert_eq!(looked.status.code(), Some(1), "{looked:?}");
    let line = looked.stdout.lines().find(|line| line.starts_with("FAIL  the certificate in `"));
    let line = line.unwrap_or_else(|| panic!("{looked:?}"));
    assert!(line.contains(&wanted) && line.contains("put a new one in its place"), "{line}");
    assert!(looked.stdout.ends_with(line) || looked.stdout.ends_with(&format!("{line}\n")), "{looked:?}");
}

#[test]
fn so_is_one_that_ends_soon_has_not_begun_or_is_not_needed() {
    let (serve, looked) = with_files(&[("soon", -80, 5)]);
    let wanted = format!("soon.pem` ends at {}T", day(5));
    assert!(serve.status.success() && serve.stderr.contains(&wanted), "{serve:?}");
    assert_eq!(looked.status.code(), Some(0), "{looked:?}");
    assert!(looked.stdout.starts_with("note  ") && looked.stdout.contains(&wanted), "{looked:?}");

    let (serve, looked) = with_files(&[("early", 1, 90)]);
    let wanted = format!("early.pem` begins to be valid at {}T", day(1));
    assert!(serve.status.success() && serve.stderr.contains(&wanted), "{serve:?}");
    assert!(looked.stdout.starts_with("FAIL  ") && looked.stdout.contains(&wanted), "{looked:?}");

    let (_, looked) = with_files(&[("old", -30, -1), ("new", -1, 89)]);
    assert_eq!(looked.status.code(), Some(0), "{looked:?}");
    assert!(looked.stdout.contains("; others cover its names, so that it may as well"), "{looked:?}");

    let (serve, looked) = with_files(&[("fine", -1, 89)]);
    assert_eq!(serve.stderr, "", "{serve:?}");
    assert_eq!(looked.stdout, "ok    nothing is ordered, and no record is needed\n", "{looked:?}");
}

#[test]
fn the_record_to_add_is_told_and_what_is_wrong_fails() {
    let mut setup = Setup::new();
    setup.set("dns.responder", vec!["127.0.0.1:0"]);
    setup.set("dns.responder_name", "edge.gw.test");
    setup.set("dns.resolver", vec!["127.0.0.1:1"]); // where nobody is
    let path = setup.write();
    let output = oneport(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.contains("\n    _acme-challenge.gw.test. NS edge.gw.test.\n"), "{output:?}");
    let faults = output.stdout.lines().filter(|line| line.starts_with("FAIL  no DNS resolver tells the "));
    assert_eq!(faults.count(), 2, "{output:?}");
}

#[test]
fn a_program_is_tried_and_what_it_said_is_told() {
    let mut setup = Setup::new();
    setup.set("dns.exec", "/bin/false");
    let mut command = setup.command();
    let output = Process::run(command.args(["--check"]), SOON);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let path = setup.write();
    let output = oneport(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let wanted =
        "FAIL  the program `/bin/false` failed to present the record (exit status 1): it said nothing;";
    assert!(output.stdout.starts_with(wanted), "{output:?}");
}

#[test]
fn files_that_cannot_be_used_are_faults_of_the_configuration() {
    let mut setup = Setup::new();
    let hook = setup.path("hook");
    std::fs::write(&hook, "").expect("writable");
    setup.set("dns.exec", hook.to_str().expect("UTF-8"));
    let output = Process::run(setup.command().arg("--check"), SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let wanted = format!("dns.exec: `{}` may not be executed; make it executable", hook.display());
    assert!(output.stderr.starts_with(&wanted), "{output:?}");
}

/// Orders for these names on a port of loopback, by records at this server.
fn by_update(named: &Named, port: u16, names: &[&str], directories: Vec<toml::Value>) -> Setup {
    let mut setup = ordering(port, names, directories);
    setup.set("base_url", format!("https://gw.test:{port}"));
    setup.set("acme.challenges", vec!["dns-01"]);
    setup.set("dns.resolver", vec![named.address()]);
    setup.set("dns.servers", vec![named.address()]);
    setup.set("dns.rfc2136.server", named.address());
    setup.set("dns.rfc2136.key_name", "oneport");
    setup.set("dns.rfc2136.key_secret", KEY);
    setup
}

#[track_caller]
fn check(config: &Path) -> Output {
    oneport(&["check", "--config", config.to_str().expect("UTF-8")])
}

#[test]
fn all_that_an_order_needs_is_looked_at() {
    let named = Named::start("@ A 127.0.0.1\n@ CAA 0 issue \"ca.test\"");
    let port = free_port();
    let pebble = PebbleSetup::new(&named, port, 1).start();
    let directories = vec![directory(&pebble.directory(), &pebble.server_root())];
    let setup = by_update(&named, port, &["gw.test", "*.gw.test"], directories);
    // Before the first start, and while it runs.
    let before = check(&setup.write());
    assert_eq!(before.status.code(), Some(0), "{before:?}");
    assert!(!setup.path("state").exists(), "something was made");
    assert_eq!(pebble.count("accounts in memory"), 0, "an account was made");
    let through = format!("note  connections get through to `127.0.0.1:{port}` for `gw.test`; who answers");
    assert!(before.stdout.contains(&through), "{before:?}");
    assert!(before.stdout.contains("\nnote  no gateway runs here: its port is free; "), "{before:?}");
    let gateway = setup.start();
    wait_issued(&gateway, "*.gw.test");
    wait_issued(&gateway, "gw.test");
    let output = check(&gateway.path("oneport.toml"));
    let wanted = format!(
        "ok    the directory `{}` answers
ok    `gw.test` is at `127.0.0.1` (this machine's)
ok    oneport answers at `127.0.0.1:{port}` for `gw.test`
note  the CAA records of `gw.test` allow some to issue for `gw.test`; `{authority}` does not say under which name, so see that it is among them
note  the CAA records of `gw.test` allow some to issue for `*.gw.test`; `{authority}` does not say under which name, so see that it is among them
2 notes
",
        pebble.directory(),
        authority = pebble.directory().trim_start_matches("https://").trim_end_matches("/dir"),
    );
    assert!(output.stdout.ends_with(&wanted), "{}", output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn what_stands_against_an_order_is_told_with_what_to_do() {
    // `app` leads to where nobody listens, and no authority may issue for `caa`.
    let records = "@ A 192.0.2.1\napp A 127.0.0.3\ncaa A 127.0.0.3\ncaa CAA 0 issue \";\"";
    let (named, port) = (Named::start(records), free_port());
    let directories = vec![toml::Value::from("https://localhost:1/dir")];
    let names = ["gw.test", "*.gw.test", "app.gw.test", "caa.gw.test", "gone.gw.test"];
    let gateway = by_update(&named, port, &names, directories).start();
    gateway.wait_log("a fault", |record| {
        record["fault"] == "directory-unreachable" && record["name"] == "app.gw.test"
    });
    let output = check(&gateway.path("oneport.toml"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let config = gateway.path("oneport.toml").display().to_string();
    let hint = format!("; when mended, `oneport certs renew app.gw.test --config {config}` tries at once\n");
    let refused = format!("FAIL  `app.gw.test` cannot be reached at `127.0.0.3:{port}` (Connection refused");
    for wanted in [
        "FAIL  the directory `https://localhost:1/dir` cannot be used: `localhost:1` cannot be reached",
        "note  `gw.test` is at `192.0.2.1` (not this machine's own); where it is not that of a router",
        &refused,
        "FAIL  `gone.gw.test` has no address; make an A or AAAA record that leads to this host",
        "FAIL  a CAA record of `caa.gw.test` forbids `localhost:1` to issue for `caa.gw.test` (`issue \";\"`); add `caa.gw.test. CAA 0 issue ",
        "ok    no CAA record limits who may issue for `*.gw.test`",
        "FAIL  the last order for `app.gw.test` failed at ",
        " (directory-unreachable), and is tried again at ",
        &hint,
    ] {
        assert!(output.stdout.contains(wanted), "`{wanted}` is not in\n{}", output.stdout);
    }
}

#[test]
fn another_server_is_told_from_a_directory() {
    let named = Named::start("@ A 127.0.0.1");
    let port = free_port();
    let pebble = PebbleSetup::new(&named, port, 1).start();
    let url = |path: &str| pebble.directory().replace("/dir", path);
    let directories = vec![
        directory(&url("/absent"), &pebble.server_root()),
        toml::Value::from(pebble.directory()), // whose root nobody named
    ];
    let setup = by_update(&named, port, &["gw.test"], directories);
    // What holds the port speaks no TLS.
    let _other = std::net::TcpListener::bind(("127.0.0.1", port)).expect("free");
    let output = check(&setup.write());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let silent = format!("FAIL  what listens at `127.0.0.1:{port}` for `gw.test` does not answer a TLS");
    for wanted in [
        format!("FAIL  there is no ACME server at `{}` (status 404); check the URL", url("/absent")),
        format!("FAIL  the directory `{}` cannot be used: `localhost:", pebble.directory()),
        silent,
    ] {
        assert!(output.stdout.contains(&wanted), "`{wanted}` is not in\n{}", output.stdout);
    }
    assert!(output.stdout.contains("cannot be trusted"), "{}", output.stdout);
}

/// A name that leads to a server which speaks TLS, but is none of ours; and a gateway without any
/// certificate, which is.
#[test]
fn another_server_of_tls_is_told_from_the_gateway() {
    let named = Named::start("@ A 127.0.0.1\napp A 127.0.0.2");
    let port = free_port_at(&["127.0.0.1", "127.0.0.2"]);
    let directories = vec![toml::Value::from("https://localhost:1/dir")];
    let setup = by_update(&named, port, &["gw.test", "app.gw.test"], directories);
    let gateway = setup.start();
    gateway.wait_log("a fault", |record| record["name"] == "gw.test" && record["level"] == "WARN");
    let leaf = gateway.leaf("other", &["app.gw.test"]);
    let listen = format!("127.0.0.2:{port}");
    let mut command = Command::new("openssl");
    command
        .args(["s_server", "-quiet", "-accept", &listen])
        .arg("-cert")
        .arg(&leaf.cert)
        .arg("-key")
        .arg(&leaf.key);
    let looked = |command: &mut Command| {
        let _other = Process::start(command);
        poll("the other server", SOON, || std::net::TcpStream::connect(&listen).ok());
        check(&gateway.path("oneport.toml")).stdout
    };
    let said = looked(&mut command);
    let ours = format!("ok    oneport answers at `127.0.0.1:{port}` for `gw.test`\n");
    let other = format!("FAIL  another server than oneport answers at `{listen}` for `app.gw.test`: it ");
    assert!(said.contains(&ours) && said.contains(&other), "{said}");
    // One that knows only other names.
    let own = gateway.leaf("own", &["else.test"]);
    command
        .args(["-servername", "else.test", "-servername_fatal"])
        .arg("-cert2")
        .arg(own.cert)
        .arg("-key2")
        .arg(own.key);
    let said = looked(&mut command);
    assert!(said.contains(&other), "{said}");
}

/// A bare name is a file beside the configuration, and not one of the folders of `PATH`.
#[test]
fn a_program_beside_the_configuration_is_run() {
    let mut setup = Setup::new();
    let hook = setup.path("false");
    std::fs::write(&hook, "#!/bin/sh\necho the right one >&2\nexit 5\n").expect("writable");
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    setup.set("dns.exec", "false");
    let folder = setup.write().parent().expect("a folder").to_owned();
    let mut command: Command = bare();
    command.args(["check", "--config", "oneport.toml"]).current_dir(folder);
    let output = Process::run(&mut command, SOON);
    assert!(output.stdout.contains("(exit status 5): `the right one`"), "{output:?}");
}

/// The fault is over, and the gateway would wait for its time.
#[test]
fn what_was_mended_is_told_to_be_tried_at_once() {
    let named = Named::start("@ A 127.0.0.1");
    let port = free_port();
    let pebble = PebbleSetup::new(&named, port, 1).start();
    let front = Front::start(&pebble);
    front.judge(|_, request| match request.uri().path() {
        "/order-plz" => Verdict::Answer(problem(403, "rejectedIdentifier", "not yet", 0)),
        _ => Verdict::Pass,
    });
    let setup = by_update(&named, port, &["gw.test"], vec![directory(&front.directory(), &front.root())]);
    let gateway = setup.start();
    let record = gateway.wait_log("a failure", |record| record["failures"] == 1);
    let config = gateway.path("oneport.toml");
    let config = config.to_str().expect("UTF-8");
    let hint = format!("`oneport certs renew gw.test --config {config}` tries at once");
    let told = format!("; when mended, {hint}");
    assert!(record["message"].as_str().is_some_and(|text| text.ends_with(&told)), "{record}");
    let output = check(&gateway.path("oneport.toml"));
    let told = format!("; all else is in order by now, {hint}\n");
    assert!(output.stdout.contains(&told), "{output:?}");
    front.judge(|_, _| Verdict::Pass);
    // As it stands there, from anywhere.
    let command = hint.split('`').nth(1).expect("a command").strip_prefix("oneport ").expect("ours");
    let mut shell = without_settings("sh");
    shell.args(["-c", &format!("exec \"$0\" {command}"), ONEPORT]).current_dir("/");
    let renewed = Process::run(&mut shell, SOON);
    assert!(renewed.status.success(), "{renewed:?}");
}
