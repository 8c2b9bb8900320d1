//! The end: what runs is finished, nothing begins, and nobody waits for ever.

use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::SOON;
use crate::support::agent::{Agent, host};
use crate::support::backend::Backend;
use crate::support::front::{Front, Verdict};
use crate::support::gateway::{Gateway, Setup};
use crate::support::pebble::{Names, Pebble, directory, free_port, ordering};
use crate::support::poll;
use crate::support::process::Process;
use crate::support::visitor::Curl;

/// A gateway with a download that waits in the middle.
struct Busy {
    gateway: Gateway,
    backend: Backend,
    agent: Agent,
    download: Process,
}

impl Busy {
    fn new(setup: Setup, version: &str) -> Self {
        let (gateway, backend) = (setup.start(), Backend::start());
        let agent = Agent::web(&gateway, backend.address());
        let url = format!("https://{}/gated", host("web"));
        let download = Process::start(&mut Curl::new(&gateway).args(&[version, "-N"]).build(&url));
        download.out.wait_for("first ", SOON);
        Self { gateway, backend, agent, download }
    }

    fn signal_and_wait(&self) {
        self.gateway.signal(Signal::TERM);
        poll("refusal of new connections", SOON, || {
            TcpStream::connect(self.gateway.address()).is_err().then_some(())
        });
    }
}

fn finishes_what_runs(version: &str) {
    let mut busy = Busy::new(Setup::new(), version);
    busy.signal_and_wait();
    assert!(busy.download.has_ended().is_none(), "cut at once: {}", busy.download.err);
    assert!(busy.gateway.is_running());
    busy.backend.release();
    busy.download.out.wait_for("second ", SOON);
    busy.backend.release();
    let output = busy.download.finish(SOON);
    assert_eq!(output.stdout, "first second third", "{output:?}");
    assert!(output.status.success(), "{output:?}");
    let end = busy.gateway.finish(SOON);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    busy.agent.process.exit(SOON);
    let told = busy.agent.process.err.to_string();
    assert!(told.contains("shutting down"), "the agent was not told: {told:?}");
}

#[test]
fn a_running_download_is_finished_over_http1() {
    finishes_what_runs("--http1.1");
}

#[test]
fn a_running_download_is_finished_over_http2() {
    finishes_what_runs("--http2");
}

#[test]
fn what_does_not_finish_in_time_is_cut() {
    let mut setup = Setup::new();
    setup.set("drain_timeout", "1s");
    let mut busy = Busy::new(setup, "--http1.1");
    let before = Instant::now();
    busy.gateway.signal(Signal::TERM);
    assert_eq!(busy.gateway.finish(SOON).status.code(), Some(0));
    let took = before.elapsed();
    assert!(took > Duration::from_millis(800) && took < Duration::from_secs(8), "after {took:?}");
    assert!(!busy.download.finish(SOON).status.success(), "half an answer was passed off as a whole one");
}

#[test]
fn a_second_signal_cuts_now() {
    let mut busy = Busy::new(Setup::new(), "--http1.1");
    busy.signal_and_wait();
    assert!(busy.gateway.is_running());
    let before = Instant::now();
    busy.gateway.signal(Signal::TERM);
    busy.gateway.finish(SOON);
    assert!(before.elapsed() < Duration::from_secs(5), "after {:?}", before.elapsed());
}

#[test]
fn an_idle_gateway_ends_at_once() {
    let (mut gateway, backend) = (Gateway::start(), Backend::start());
    let mut agent = Agent::web(&gateway, backend.address());
    // An idle kept connection of a visitor, too.
    let mut visitor =
        crate::support::visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).expect("a handshake");
    let before = Instant::now();
    gateway.signal(Signal::INT);
    assert_eq!(gateway.finish(SOON).status.code(), Some(0));
    assert!(before.elapsed() < Duration::from_secs(8), "after {:?}", before.elapsed());
    agent.process.exit(SOON);
    crate::support::visitor::read_to_end(&mut visitor);
}

/// No authority that comes to look would be let in.
#[test]
fn orders_are_cut_when_draining_begins_and_are_no_failures() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    let (reached, is_reached) = mpsc::channel();
    let (open, opened) = mpsc::channel::<()>();
    let opened = std::sync::Mutex::new(opened);
    front.judge(move |_, request| {
        if request.uri().path() == "/order-plz" {
            let _ = reached.send(());
            // Until the test ends at the latest.
            let _ = opened.lock().expect("one at a time").recv();
        }
        Verdict::Pass
    });
    let mut setup = ordering(port, &["slow.test"], vec![directory(&front.directory(), &front.root())]);
    let leaf = setup.ca.leaf("own", &["gw.test", "*.gw.test", "localhost"]);
    setup.certificates(&[(&leaf.cert, &leaf.key)]);
    let mut busy = Busy::new(setup, "--http1.1");
    is_reached.recv_timeout(SOON).expect("the order begins");
    let folder = busy.gateway.path("state/acme/names/slow.test");
    let lock = std::fs::File::open(folder.join("lock")).expect("there");
    assert!(lock.try_lock().is_err(), "nobody orders");
    busy.signal_and_wait();
    poll("the end of the order", SOON, || lock.try_lock().ok());
    assert!(busy.gateway.is_running() && busy.download.has_ended().is_none());
    drop(open);
    for _ in 0..2 {
        busy.backend.release();
    }
    assert_eq!(busy.gateway.finish(SOON).status.code(), Some(0));
    let status = std::fs::read_to_string(folder.join("status.json")).expect("there");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert!(status["fault"].is_null() && status["begun"] == 1, "{status}");
}
