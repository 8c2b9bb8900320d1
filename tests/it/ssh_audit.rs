//! `ssh-audit` finds nothing to fail or to warn of.

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
    let found: Vec<&str> =
        output.stdout.lines().filter(|line| line.contains("[fail]") || line.contains("[warn]")).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(output.stdout.contains("mlkem768x25519-sha256"), "no post-quantum exchange: {output:?}");
    assert!(output.stdout.contains("kex-strict"), "no strict exchange: {output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
