//! Two agents and one name: a live holder keeps it, a dead one gives way at once.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::SOON;
use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::{self, Backend, nobody};
use crate::support::gateway::{Gateway, Setup};
use crate::support::poll;
use crate::support::visitor::{Curl, read_until};

fn url() -> String {
    format!("https://{}/", host("web"))
}

/// A service that says which one it is.
fn named(name: &'static str) -> std::net::SocketAddr {
    backend::raw(move |mut stream, _| {
        use std::io::Write as _;
        read_until(&mut stream, "\r\n\r\n");
        let answer =
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        let _ = stream.write_all(answer.as_bytes());
    })
}

#[test]
fn a_live_holder_keeps_its_name() {
    let gateway = Gateway::start();
    let mut first = Agent::web(&gateway, named("first"));
    let second = OpenSsh::new(&gateway).forward("/web", named("second")).run();
    assert_ne!(second.status.code(), Some(0), "{second:?}");
    let words = second.stdout.clone() + &second.stderr;
    assert!(words.contains("web-dzk582uo") && words.contains("another live session"), "{second:?}");
    gateway.wait_reason("name-taken");
    assert_eq!(Curl::new(&gateway).get(&url()).text(), "first");
    assert!(first.process.has_ended().is_none());
}

#[test]
fn another_key_has_another_name() {
    let gateway = Gateway::start();
    let _first = Agent::web(&gateway, named("first"));
    let _second = OpenSsh::new(&gateway).key("ed25519b").forward("/web", named("second")).start();
    assert_eq!(Curl::new(&gateway).get(&url()).text(), "first");
    assert_eq!(Curl::new(&gateway).get("https://web-pls54n3g.gw.test/").text(), "second");
}

#[test]
fn a_killed_agent_that_restarts_has_its_name_within_six_seconds() {
    let gateway = Gateway::start();
    let mut first = Agent::web(&gateway, named("first"));
    let before = Instant::now();
    first.kill();
    let second = Agent::web(&gateway, named("second"));
    assert_eq!(second.hello["tunnels"]["/web"], url());
    assert_eq!(Curl::new(&gateway).get(&url()).text(), "second");
    assert!(before.elapsed() < Duration::from_secs(6), "took {:?}", before.elapsed());
}

#[test]
fn a_suspended_agent_is_evicted_by_a_newcomer() {
    let gateway = Gateway::start();
    let mut first = Agent::web(&gateway, named("first"));
    // Its kernel keeps the TCP connection open and acknowledges everything.
    first.process.signal(Signal::STOP);
    let before = Instant::now();
    let _second = Agent::web(&gateway, named("second"));
    assert!(before.elapsed() < Duration::from_secs(8), "took {:?}", before.elapsed());
    assert_eq!(Curl::new(&gateway).get(&url()).text(), "second");
    gateway.wait_reason("taken-over");
    first.process.signal(Signal::CONT);
    first.process.exit(SOON);
    assert_eq!(Curl::new(&gateway).get(&url()).text(), "second", "the old session took the name along");
}

#[test]
fn a_suspended_agent_is_noticed_by_keep_alive() {
    let mut setup = Setup::new();
    setup.set("ssh.keepalive_interval", "1s");
    let gateway = setup.start();
    let first = Agent::web(&gateway, nobody());
    first.process.signal(Signal::STOP);
    gateway.wait_reason("agent-silent");
    poll("end of the tunnel", SOON, || {
        Curl::new(&gateway).get(&url()).text().contains("No active tunnel found").then_some(())
    });
}

#[test]
fn an_idle_agent_lives_on_by_keep_alive() {
    let mut setup = Setup::new();
    setup.set("ssh.keepalive_interval", "1s");
    let (gateway, backend) = (setup.start(), Backend::start());
    let mut agent = Agent::web(&gateway, backend.address());
    // Longer than three unanswered ones take to end a session.
    let end = Instant::now() + Duration::from_secs(6);
    poll("end of the wait", SOON, || (Instant::now() > end).then_some(()));
    assert!(agent.process.has_ended().is_none(), "{}", agent.process.err);
    assert_eq!(Curl::new(&gateway).get(&format!("{}small", url())).text(), "small");
}
