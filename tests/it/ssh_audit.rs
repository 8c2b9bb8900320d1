//! `ssh-audit` finds nothing to fail or to warn of.
//!
//! But one thing: its newest versions warn of every key exchange that is not post-quantum. The
//! agents in the field (OpenSSH before 9.9, Node's `ssh2`) know no other than curve25519, which
//! therefore stands last.

use std::process::Command;

use crate::support::gateway::Setup;
use crate::support::process::Process;
use crate::support::{SOON, test_file};

#[test]
fn nothing_to_fail_or_to_warn_of() {
    let mut setup = Setup::new();
    setup.set("plain.ssh", vec!["127.0.0.1:0"]);
    let gateway = setup.start();
    let address = gateway.address_of("plain-ssh");
    let port = address.port().to_string();
    let program = test_file("python/venv/bin/ssh-audit");
    assert!(program.exists(), "{} is missing; install with: ./test", program.display());
    // The rate test measures how fast connections are taken: what the limits are for.
    let arguments = ["--no-colors", "--skip-rate-test", "-p", &port, "127.0.0.1"];
    let output = Process::run(Command::new(program).args(arguments), SOON);
    let expected = |line: &str| {
        line.starts_with("(kex) curve25519-sha256")
            && line.ends_with("does not provide protection against post-quantum attacks")
    };
    let found: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| line.contains("[fail]") || line.contains("[warn]"))
        .filter(|line| !expected(line.trim_end()))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(output.stdout.contains("mlkem768x25519-sha256"), "no post-quantum exchange: {output:?}");
    assert!(output.stdout.contains("kex-strict"), "no strict exchange: {output:?}");
    // 2: warnings, of which all are listed above.
    assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
}
