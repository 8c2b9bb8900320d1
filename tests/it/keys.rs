//! Whose keys may connect, and what those hear whose may not.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::SOON;
use crate::support::agent::{OpenSsh, public_key};
use crate::support::backend::nobody;
use crate::support::gateway::{Gateway, Setup};
use crate::support::poll;
use crate::support::process::{Output, Process};

/// A gateway with a list of keys, and where the list is.
fn with_list(lines: &str) -> (Gateway, PathBuf) {
    let mut setup = Setup::new();
    let list = setup.path("authorized_keys");
    std::fs::write(&list, lines).expect("temporary folder");
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", list.to_str().expect("UTF-8"));
    (setup.start(), list)
}

fn hello(gateway: &Gateway, key: &str) -> Output {
    OpenSsh::new(gateway).key(key).command("hello").run()
}

#[track_caller]
fn is_refused(output: &Output, word: &str) {
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.contains("oneport:") && output.stderr.contains(word), "a bare refusal: {output:?}");
}

#[test]
fn listed_keys_connect_and_others_hear_why_not() {
    let list = format!("# people\n\n{} me@example\n{}\n", public_key("ed25519a"), public_key("rsa2048"));
    let (gateway, _) = with_list(&list);
    assert!(hello(&gateway, "ed25519a").status.success());
    assert!(hello(&gateway, "rsa2048").status.success());
    let output = hello(&gateway, "ed25519b");
    is_refused(&output, "not allowed");
    is_refused(&output, "SHA256:");
    gateway.wait_reason("key-not-allowed");
}

#[test]
fn from_is_honoured() {
    let list = format!(
        "from=\"10.0.0.0/8,!127.0.0.1\" {}\nfrom=\"127.0.0.0/8\" {}\n",
        public_key("ed25519a"),
        public_key("ed25519b")
    );
    let (gateway, _) = with_list(&list);
    is_refused(&hello(&gateway, "ed25519a"), "address");
    assert!(hello(&gateway, "ed25519b").status.success());
}

#[test]
fn expiry_time_is_honoured() {
    let list = format!(
        "expiry-time=\"20200101\" {}\nexpiry-time=\"20990101120000Z\" {}\n",
        public_key("ed25519a"),
        public_key("ed25519b")
    );
    let (gateway, _) = with_list(&list);
    is_refused(&hello(&gateway, "ed25519a"), "until");
    assert!(hello(&gateway, "ed25519b").status.success());
}

#[test]
fn the_list_is_reread_and_a_removed_key_ends_its_sessions() {
    let both = format!("{}\n{}\n", public_key("ed25519a"), public_key("ed25519b"));
    let (gateway, list) = with_list(&both);
    let mut removed = OpenSsh::new(&gateway).forward("/web", nobody()).start();
    let mut kept = OpenSsh::new(&gateway).key("ed25519b").forward("/web", nobody()).start();
    std::fs::write(&list, format!("{}\n{}\n", public_key("ed25519b"), public_key("ecdsa256")))
        .expect("temporary folder");
    removed.process.exit(SOON);
    gateway.wait_reason("key-removed");
    is_refused(&hello(&gateway, "ed25519a"), "not allowed");
    assert!(kept.process.has_ended().is_none(), "{}", kept.process.err);
    poll("new key being taken", SOON, || hello(&gateway, "ecdsa256").status.success().then_some(()));
}

#[test]
fn a_list_replaced_by_rename_is_reread() {
    let (gateway, list) = with_list(&format!("{}\n", public_key("ed25519a")));
    let fresh = gateway.path("fresh");
    std::fs::write(&fresh, format!("{}\n", public_key("ed25519b"))).expect("temporary folder");
    std::fs::rename(&fresh, &list).expect("temporary folder");
    poll("new list", SOON, || hello(&gateway, "ed25519b").status.success().then_some(()));
    is_refused(&hello(&gateway, "ed25519a"), "not allowed");
}

#[test]
fn a_key_is_removed_though_the_first_reading_fails() {
    let (gateway, list) = with_list(&format!("{}\n", public_key("ed25519a")));
    let mut removed = OpenSsh::new(&gateway).forward("/web", nobody()).start();
    let without_descriptors = gateway.without_descriptors();
    std::fs::write(&list, "# all gone\n").expect("temporary folder");
    gateway.wait_log("failed reading", is_complaint);
    drop(without_descriptors);
    removed.process.exit(SOON);
    gateway.wait_reason("key-removed");
    is_refused(&hello(&gateway, "ed25519a"), "not allowed");
}

fn is_complaint(record: &Value) -> bool {
    record["message"].as_str().is_some_and(|message| message.starts_with("keeping agents' keys"))
}

fn is_word_of_a_bad_line(record: &Value) -> bool {
    record["message"].as_str().is_some_and(|message| message.starts_with("this line of agents' keys"))
}

/// A gateway that writes its log next to the list of keys.
fn with_log_beside_the_list() -> (Gateway, PathBuf, impl Fn() -> Vec<Value>) {
    let mut setup = Setup::new();
    let (list, log) = (setup.path("authorized_keys"), setup.path("oneport.log"));
    std::fs::write(&list, "a bad line\n").expect("temporary folder");
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", list.to_str().expect("UTF-8"));
    let served = setup.command();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>&1 | tee oneport.log >&2"]).current_dir(setup.dir.path());
    command.arg(served.get_program()).args(served.get_args());
    let gateway = setup.start_with(command);
    let records = move || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    (gateway, list, records)
}

#[test]
fn a_log_beside_the_list_is_no_reason_to_read_it_again() {
    let (gateway, list, records) = with_log_beside_the_list();
    let times = |of: fn(&Value) -> bool, count: usize| {
        poll("enough records", SOON, || {
            let times: Vec<_> = records().iter().filter(|record| of(record)).map(time_of).collect();
            (times.len() >= count).then_some(times)
        })
    };
    // By looking at what is wrong, by opening, and by beginning to watch; each is written to the log.
    let read = times(is_word_of_a_bad_line, 3);
    std::fs::remove_file(&list).expect("temporary folder");
    let tried = times(is_complaint, 2);
    let apart = (tried[1] - tried[0]).as_seconds_f64();
    assert!(apart > 9.0, "the same failure was logged again after {apart} s");
    assert_eq!(records().iter().filter(|record| is_word_of_a_bad_line(record)).count(), read.len());
    assert!(gateway.stderr().contains("authorized_keys"));
}

#[test]
fn sighup_has_the_list_read_again_though_nothing_has_changed() {
    let (gateway, _) = with_list(&format!("a bad line\n{}\n", public_key("ed25519a")));
    let read = || gateway.log().iter().filter(|record| is_word_of_a_bad_line(record)).count();
    // By looking at what is wrong, by opening, and by beginning to watch.
    poll("three readings", SOON, || (read() == 3).then_some(()));
    gateway.signal(Signal::HUP);
    poll("another reading", SOON, || (read() == 4).then_some(()));
    assert!(hello(&gateway, "ed25519a").status.success());
}

fn time_of(record: &Value) -> OffsetDateTime {
    let text = record["timestamp"].as_str().expect("every record has a time");
    OffsetDateTime::parse(text, &Rfc3339).expect("RFC 3339")
}

#[test]
fn a_folder_of_lists() {
    let mut setup = Setup::new();
    let folder = setup.path("keys");
    std::fs::create_dir(&folder).expect("temporary folder");
    std::fs::write(folder.join("alice"), public_key("ed25519a")).expect("temporary folder");
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", folder.to_str().expect("UTF-8"));
    let gateway = setup.start();
    assert!(hello(&gateway, "ed25519a").status.success());
    is_refused(&hello(&gateway, "ed25519b"), "not allowed");
    std::fs::write(folder.join("bob"), public_key("ed25519b")).expect("temporary folder");
    poll("second list", SOON, || hello(&gateway, "ed25519b").status.success().then_some(()));
}

#[test]
fn other_ways_to_log_in_are_not_offered() {
    let gateway = Gateway::start();
    let output = OpenSsh::new(&gateway)
        .args(&[
            "-o",
            "PreferredAuthentications=none,password,keyboard-interactive",
            "-o",
            "PubkeyAuthentication=no",
        ])
        .command("hello")
        .run();
    assert_ne!(output.status.code(), Some(0));
    assert!(output.stderr.contains("(publickey)"), "{output:?}");
}

#[test]
fn a_client_has_six_attempts() {
    let (gateway, _) = with_list(&format!("{}\n", public_key("ed25519a")));
    let mut ssh = OpenSsh::new(&gateway).key("ed25519b").command("hello");
    for number in 0..8 {
        let file = gateway.path(&format!("attempt-{number}")).display().to_string();
        let made =
            Process::run(Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f", &file]), SOON);
        assert!(made.status.success(), "{made:?}");
        ssh = ssh.args(&["-i", &file]);
    }
    let output = ssh.run();
    assert_ne!(output.status.code(), Some(0));
    assert!(output.stderr.contains("Too many authentication"), "{output:?}");
    gateway.wait_reason("too-many-attempts");
    let refused = gateway.log().iter().filter(|record| record["reason"] == "key-not-allowed").count();
    assert!(refused <= 6, "{refused} keys were looked at");
}
