//! Bounds on connections, checked before any work is done for them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use rustix::process::Rlimit;
use serde_json::Value;

use crate::support::SOON;
use crate::support::agent::{Agent, host};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::poll;
use crate::support::visitor::{self, Curl, read_to_end, read_until};

fn with(limit: &str, value: i64) -> Gateway {
    let mut setup = Setup::new();
    setup.set(limit, value);
    setup.start()
}

/// Takes `count` slots and proves that they are taken: each is a finished handshake.
fn take(gateway: &Gateway, count: usize) -> Vec<visitor::Tls> {
    (0..count).map(|_| visitor::tls(gateway, Some("gw.test"), &["http/1.1"]).expect("a free slot")).collect()
}

fn is_closed(mut stream: TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}

fn one_too_many(limit: &str) {
    let gateway = with(limit, 3);
    let mut taken = take(&gateway, 3);
    assert!(is_closed(visitor::tcp(&gateway)), "a connection over the limit was kept");
    gateway.wait_reason("too-many-connections");
    taken.pop();
    poll("slot given back", SOON, || visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).ok());
}

#[test]
fn connections_in_all() {
    one_too_many("limits.connections");
}

#[test]
fn connections_from_one_address() {
    one_too_many("limits.connections_per_address");
}

#[test]
fn a_head_may_not_be_endless() {
    let mut setup = Setup::new();
    setup.set("limits.header_bytes", "16KiB");
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let long = "a".repeat(32 * 1024);
    for version in ["--http1.1", "--http2"] {
        let response = Curl::new(&gateway)
            .args(&[version])
            .header(&format!("X-Long: {long}"))
            .call(&format!("https://{}/small", host("web")));
        assert!(response.status == 431 || response.exit != 0, "{version}: {}", response.status);
    }
    assert_eq!(backend.requests(), 0);
}

#[test]
fn a_head_may_not_take_for_ever() {
    let mut setup = Setup::new();
    // Being idle is another thing.
    setup.set("limits.handshake_timeout", "2s").set("http.idle_timeout", "60s");
    let gateway = setup.start();
    let mut stream = visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).expect("a handshake");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: gw.test\r\nX-A").expect("open");
    let rest = read_to_end(&mut stream);
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
}

#[test]
fn an_idle_visitor_is_let_go() {
    let mut setup = Setup::new();
    setup.set("http.idle_timeout", "1s");
    let gateway = setup.start();
    let mut stream = visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).expect("a handshake");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: gw.test\r\n\r\n").expect("open");
    read_until(&mut stream, "\r\n\r\n");
    read_to_end(&mut stream);
}

#[test]
fn an_unauthenticated_session_ends() {
    let mut setup = Setup::new();
    setup.set("ssh.login_timeout", "1s");
    let gateway = setup.start();
    let mut ssh = visitor::tls(&gateway, Some("gw.test"), &["ssh"]).expect("a handshake");
    ssh.write_all(b"SSH-2.0-slow\r\n").expect("open");
    read_to_end(&mut ssh);
    gateway.wait_reason("login-timeout");
}

/// A gateway that was started by a shell which first runs `limit`.
fn limited(setup: Setup, limit: &str) -> Gateway {
    let served = setup.command();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]);
    command.arg(served.get_program()).args(served.get_args());
    if let Some(folder) = served.get_current_dir() {
        command.current_dir(folder);
    }
    setup.start_with(command)
}

fn is_accept_error(record: &Value) -> bool {
    record["message"].as_str().is_some_and(|message| message.starts_with("cannot accept"))
}

#[test]
fn connections_leave_file_descriptors_for_the_rest() {
    let mut setup = Setup::new();
    setup.set("limits.connections", 100);
    let mut gateway = limited(setup, "ulimit -n 48");
    let warning = gateway.wait_log("warning", |record| record["level"] == "WARN");
    let warning = warning["message"].as_str().expect("text").to_owned();
    for part in ["100", "48", "LimitNOFILE"] {
        assert!(warning.contains(part), "`{part}` is not in: {warning}");
    }
    let held: Vec<_> = (0..64).map(|_| visitor::tcp(&gateway)).collect();
    gateway.wait_reason("too-many-connections");
    drop(held);
    poll("connection again", SOON, || visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).ok());
    assert!(gateway.is_running());
    assert!(!gateway.log().iter().any(is_accept_error), "descriptors ran out: {}", gateway.stderr());
    assert_eq!(gateway.stderr().matches("LimitNOFILE").count(), 1);
}

#[test]
fn the_soft_limit_of_file_descriptors_is_raised() {
    let gateway = limited(Setup::new(), "ulimit -S -n 64");
    let Rlimit { current, maximum } = gateway.without_descriptors().before();
    assert_eq!(current, maximum);
    assert_ne!(current, Some(64));
}

#[test]
fn file_descriptors_may_run_out_and_come_back() {
    let mut gateway = Gateway::start();
    let without_descriptors = gateway.without_descriptors();
    let held: Vec<_> = (0..8).map(|_| visitor::tcp(&gateway)).collect();
    // The second comes after a pause, and with it the loop has gone on after an error.
    poll("accept errors", SOON, || {
        (gateway.log().iter().filter(|record| is_accept_error(record)).count() > 2).then_some(())
    });
    drop((without_descriptors, held));
    poll("connection again", SOON, || visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).ok());
    assert!(gateway.is_running());
    let pauses: Vec<_> =
        gateway.log().iter().filter_map(|record| record["pause_ms"].as_str()?.parse::<u64>().ok()).collect();
    // A loop that spins would have written thousands.
    assert!(pauses.len() < 50, "{} accept errors in the log", pauses.len());
    assert!(pauses.is_sorted() && pauses[0] < pauses[1], "the pauses do not grow: {pauses:?}");
}

#[test]
fn a_visitor_who_says_nothing_after_the_handshake_is_let_go() {
    for alpn in ["h2", "http/1.1"] {
        let mut setup = Setup::new();
        setup.set("http.idle_timeout", "1s");
        let gateway = setup.start();
        let mut stream = visitor::tls(&gateway, Some("gw.test"), &[alpn]).expect("a handshake");
        read_to_end(&mut stream);
        gateway.wait_reason("idle");
    }
}

#[test]
fn a_visitor_who_takes_nothing_is_let_go_in_the_end() {
    let mut setup = Setup::new();
    setup.set("http.send_timeout", "1s");
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let mut stream = visitor::tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
    let request = format!("GET /big?mb=64 HTTP/1.1\r\nHost: {}\r\n\r\n", host("web"));
    stream.write_all(request.as_bytes()).expect("open");
    gateway.wait_log("end of the request", |record| {
        record["message"] == "request" && record["path"] == "/big" && record["reason"] != "answered"
    });
    gateway.wait_log("end of the connection", |record| record["message"] == "connection ended");
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
}
