//! `oneport check`: the record to add, and what is wrong, each with what to do.

use crate::support::SOON;
use crate::support::gateway::{Setup, oneport};
use crate::support::process::Process;

#[test]
fn without_a_way_to_set_records_it_says_so() {
    let setup = Setup::new();
    let path = setup.write();
    let output = oneport(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        output.stdout.starts_with("ok    nobody is there to set DNS records, so `*.gw.test`"),
        "{output:?}"
    );
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
