//! What is written: all faults at once, and the old container's environment.

use crate::support::SOON;
use crate::support::agent::{OpenSsh, Via, host};
use crate::support::backend::Backend;
use crate::support::gateway::{Setup, bare, oneport};
use crate::support::named::free_port;
use crate::support::process::Process;
use crate::support::visitor::Curl;

#[test]
fn check_is_silent_about_what_is_right() {
    let setup = Setup::new();
    let path = setup.write();
    let output = oneport(&["serve", "--check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn check_names_all_faults_at_once_each_with_its_place() {
    let mut setup = Setup::new();
    setup
        .set("base_url", "ftp://gw.test")
        .set("listen", vec!["127.0.0.1"])
        .set("drain_timeout", "soon")
        .set("ssh.authorised_keys", "keys")
        .set("ssh.raw", "maybe")
        .set("limits.connections", -1)
        .set("http.trusted_proxies", vec!["10.0.0.0/99"]);
    let missing = setup.path("missing.pem");
    setup.certificates(&[(&missing, &missing)]);
    let path = setup.write();
    let output = oneport(&["serve", "--check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = output.stdout.clone() + &output.stderr;
    for place in [
        "base_url",
        "listen",
        "drain_timeout",
        "ssh.authorised_keys",
        "ssh.raw",
        "limits.connections",
        "http.trusted_proxies",
        "missing.pem",
    ] {
        assert!(said.contains(place), "`{place}` is not named:\n{said}");
    }
    assert!(said.contains("ssh.authorized_keys"), "the nearest name is not offered:\n{said}");
}

#[test]
fn check_tries_the_places_where_something_is_made() {
    let mut setup = Setup::new();
    setup.set("ssh.host_key", "/proc/key");
    let mut command = setup.command();
    command.arg("--check").env("ONEPORT_STATE_DIR", "/proc/x");
    let output = Process::run(&mut command, SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    for start in ["state_dir: the folder `/proc/x` cannot", "ssh.host_key: no key can be made at `/proc/key`"]
    {
        let said = output.stderr.lines().find(|line| line.starts_with(start));
        assert!(said.is_some_and(|line| line.contains("make it writable")), "{output:?}");
    }
}

#[test]
fn serve_refuses_the_same_faults() {
    let mut setup = Setup::new();
    setup.set("ssh.raw", "maybe");
    let output = Process::run(&mut setup.command(), SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stderr.contains("ssh.raw"), "{output:?}");
}

#[test]
fn serve_asks_whose_keys_may_connect() {
    let mut setup = Setup::new();
    setup.unset("ssh", "allow_any_key");
    let output = Process::run(&mut setup.command(), SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        output.stderr.contains("ssh.authorized_keys") && output.stderr.contains("ssh.allow_any_key"),
        "{output:?}"
    );
}

#[test]
fn a_file_that_is_not_there_is_said() {
    let output = oneport(&["serve", "--config", "/nowhere/oneport.toml"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stderr.contains("/nowhere/oneport.toml"), "{output:?}");
}

#[test]
fn the_environment_alone_will_do() {
    let setup = Setup::new();
    let mut command = bare();
    command
        .arg("serve")
        .current_dir(setup.dir.path())
        .env("ONEPORT_BASE_URL", "https://gw.test")
        .env("ONEPORT_LISTEN", "127.0.0.1:0")
        .env("ONEPORT_STATE_DIR", setup.path("state"))
        .env("ONEPORT_SSH_ALLOW_ANY_KEY", "true")
        .env("ONEPORT_TLS_CERTIFICATES", format!("{0}/leaf.pem:{0}/leaf.key", setup.dir.path().display()))
        .env("ONEPORT_LOG_FORMAT", "json");
    let (gateway, backend) = (setup.start_with(command), Backend::start());
    let _agent = OpenSsh::new(&gateway).forward("/web", backend.address()).start();
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
}

#[test]
fn the_environment_comes_before_the_file() {
    let mut setup = Setup::new();
    setup.set("base_url", "https://file.test");
    let mut command = setup.command();
    command.env("ONEPORT_BASE_URL", "https://gw.test");
    let gateway = setup.start_with(command);
    let output = OpenSsh::new(&gateway).command("tunnel-url web").run();
    assert!(output.stdout.contains("web-dzk582uo.gw.test"), "{output:?}");
}

#[test]
fn a_variable_with_a_typing_mistake_is_refused() {
    let setup = Setup::new();
    let mut command = setup.command();
    command.env("ONEPORT_SSH_ALOW_ANY_KEY", "true");
    let output = Process::run(&mut command, SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stderr.contains("ONEPORT_SSH_ALLOW_ANY_KEY"), "{output:?}");
}

/// Ports that were free a moment ago: the old variables cannot ask for any free one.
fn free_ports(count: usize) -> Vec<u16> {
    (0..count).map(|_| free_port(&["127.0.0.1", "0.0.0.0"])).collect()
}

#[test]
fn the_old_containers_environment_starts_it_once_the_keys_question_is_answered() {
    let setup = Setup::new();
    let ports = free_ports(3);
    let host_key = crate::support::agent::key_file(setup.dir.path(), "ed25519b");
    let pem = |name: &str| std::fs::read_to_string(setup.path(name)).expect("made by openssl");
    let mut command = bare();
    command
        .arg("serve")
        .current_dir(setup.dir.path())
        .env("BASE_URL", "https://gw.test")
        .env("PORT", ports[0].to_string())
        .env("SSH_PORT", ports[1].to_string())
        .env("TLS_PORT", ports[2].to_string())
        .env("SSH_HOSTNAMES", "gw.test,ssh.gw.test")
        .env("SSH_HOST_KEY_PATH", host_key)
        .env("TLS_CERT", pem("leaf.pem"))
        .env("TLS_KEY", pem("leaf.key"))
        .env("COOKIE_SECRETS", "first-secret-of-cookies second-secret-of-cookies")
        .env("SAAS_BASE_URL", "https://app.gw.test")
        .env("ONEPORT_LOG_FORMAT", "json");
    let refused = Process::run(&mut command, SOON);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("ssh.allow_any_key"), "{refused:?}");
    assert!(!refused.stderr.contains("secret-of-cookies"), "{refused:?}");

    command.env("ONEPORT_SSH_ALLOW_ANY_KEY", "true");
    let (gateway, backend) = (setup.start_with(command), Backend::start());
    assert_eq!(gateway.address_of("plain-http").port(), ports[0]);
    let _agent = OpenSsh::new(&gateway).via(Via::PlainListener).forward("/web", backend.address()).start();
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
    let plain = format!("{}:{}", host("web"), ports[0]);
    let connect = format!("{plain}:127.0.0.1:{}", ports[0]);
    let output = Process::run(
        std::process::Command::new("curl").args([
            "-sS",
            "--connect-to",
            &connect,
            &format!("http://{plain}/small"),
        ]),
        SOON,
    );
    assert_eq!(output.stdout, "small", "{output:?}");
    assert!(!gateway.stderr().contains("PRIVATE KEY") && !gateway.stderr().contains("secret-of-cookies"));
}

#[test]
fn a_host_key_is_made_once_and_kept() {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = Setup::new();
    let key = setup.path("state").join("ssh_host_ed25519_key");
    let first = Process::start(&mut setup.command());
    first.err.wait_for("listening", SOON);
    let made = std::fs::read(&key).expect("a host key");
    let mode = std::fs::metadata(&key).expect("a host key").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    drop(first);
    let second = Process::start(&mut setup.command());
    second.err.wait_for("listening", SOON);
    assert_eq!(std::fs::read(&key).expect("a host key"), made);
}

#[test]
fn help_and_version() {
    let help = oneport(&["--help"]);
    assert!(help.status.success());
    for command in ["dev", "serve", "check", "connect"] {
        assert!(help.stdout.contains(command), "`{command}` is not in the help: {}", help.stdout);
    }
    assert!(oneport(&["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(oneport(&["no-such-command"]).status.code(), Some(2));
}
