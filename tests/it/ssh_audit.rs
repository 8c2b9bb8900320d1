//! `ssh-audit` finds nothing to fail or to warn of.

use std::process::Command;

use crate::support::SOON;
use crate::support::gateway::Setup;
use crate::support::process::Process;

#[test]
fn nothing_to_fail_or_to_warn_of() {
    let mut setup = Setup::new();
    setup.set("plain.ssh", vec!["127.0.0.1:0"]);
    let gateway = setup.start();
    let address = gateway.address_of("plain-ssh");
    let port = address.port().to_string();
    let mut command = Command::new("ssh-audit");
    command.args(["--no-colors", "--skip-rate-test", "-p", &port, "127.0.0.1"]);
    let mut output = Process::run(&mut command, SOON);
    if output.stderr.contains("skip-rate-test") || output.stdout.contains("skip-rate-test") {
        // Versions that do not know the option have no such test.
        let arguments = ["-n", "-p", &port, "127.0.0.1"];
        output = Process::run(Command::new("ssh-audit").args(arguments), SOON);
    }
    let found: Vec<&str> =
        output.stdout.lines().filter(|line| line.contains("[fail]") || line.contains("[warn]")).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(output.stdout.contains("mlkem768x25519-sha256"), "no post-quantum exchange: {output:?}");
    assert!(output.stdout.contains("kex-strict"), "no strict exchange: {output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
