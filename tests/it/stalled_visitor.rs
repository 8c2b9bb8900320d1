//! A visitor who stops reading never stops the others, not even those of the same agent; what
//! they have not taken waits within its bounds, and goes when they go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::agent::{Agent, OpenSsh, host, web};
use crate::support::backend::{Backend, big_sha256};
use crate::support::gateway::{Gateway, Setup, unnamed_files};
use crate::support::load::{Kept, MIB, Visitors, settled};
use crate::support::process::Process;
use crate::support::visitor::Curl;
use crate::support::{SOON, poll};

/// What three stalled downloads may add to the gateway's memory.
const GROWTH: u64 = 16 * MIB;
/// How long a session is looked at in which nothing moves: longer than the keep-alives may go
/// unanswered, which are sent each second then.
const QUIET: Duration = Duration::from_secs(6);

/// An OpenSSH agent that takes more forwards while it runs.
fn agent_with_control(gateway: &Gateway, backend: SocketAddr, control: &Path) -> Agent {
    let control = control.display().to_string();
    OpenSsh::new(gateway).forward("/web", backend).args(&["-M", "-S", &control]).start()
}

/// Asks a running agent for one more forward.
fn forward_more(control: &Path, request: &str, to: SocketAddr) {
    let forward = format!("{request}:{}:{}", to.ip(), to.port());
    let mut command = Command::new("ssh");
    command.arg("-S").arg(control).args(["-O", "forward", "-R", &forward, "localhost"]);
    let said = Process::run(&mut command, SOON);
    assert!(said.status.success(), "{said:?}");
}

/// All files below a folder, with their sizes.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("a file").path();
        match std::fs::symlink_metadata(&path).expect("it lasts") {
            data if data.is_dir() => files.extend(files_below(&path)),
            data => drop(files.insert(path, data.len())),
        }
    }
    files
}

fn three_stalled(mb: usize) {
    let mut setup = Setup::new();
    setup.set("ssh.keepalive_interval", "1s").with_figures();
    let (gateway, backend) = (setup.start(), Backend::start());
    let control = gateway.path("control");
    let mut agent = agent_with_control(&gateway, backend.address(), &control);
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut kept = Kept::new(&gateway, &host("web"));
    // Everything has run once before memory is looked at.
    visitors.download("/big?mb=4").finish(None);
    let before = kept.calm_latency(500);
    let memory = gateway.memory();
    gateway.forget_peak();

    let path = format!("/big?mb={mb}");
    let stalled: Vec<_> = (0..3).map(|_| visitors.download(&path)).collect();
    let filling = kept.latency(500);
    // All of it but what sockets hold.
    let disk = settled(&gateway, 3 * (mb as u64 - 8) * MIB);
    let full = kept.calm_latency(500);
    full.assert_hardly_more_than(&before);
    filling.assert_hardly_more_than(&before);
    assert!(disk <= 3 * (mb as u64 + 1) * MIB, "{disk} octets on disk");

    // The session lives on as before.
    forward_more(&control, "/late", backend.address());
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("late"))).text(), "small");
    stays_alive(&gateway);
    assert!(agent.process.has_ended().is_none(), "{}", agent.process.err);
    let grown = gateway.memory_peak().saturating_sub(memory);
    assert!(grown <= GROWTH, "grown by {grown} octets");

    let expect = big_sha256(mb);
    let readers: Vec<_> =
        stalled.into_iter().map(|stalled| std::thread::spawn(move || stalled.finish(None))).collect();
    for reader in readers {
        assert_eq!(reader.join().expect("the download goes on"), expect);
    }
    let grown = gateway.memory_peak().saturating_sub(memory);
    assert!(grown <= GROWTH, "grown by {grown} octets in the end");
    poll("files gone", SOON, || (gateway.unnamed_files() == (0, 0)).then_some(()));
}

/// Looks on while nothing but keep-alives and their answers moves between agent and gateway. Any
/// other octet would count as a sign of life as well.
#[track_caller]
fn stays_alive(gateway: &Gateway) {
    let received = || gateway.figure("oneport_ssh_received_bytes_total");
    let disk = gateway.unnamed_files();
    let (before, start) = (received(), Instant::now());
    poll("six quiet seconds", SOON, || (start.elapsed() > QUIET).then_some(()));
    let came = received() - before;
    // An answer takes some forty octets, and there is one each second.
    assert!((5 * 16..5 * 1024).contains(&came), "{came} octets came from the agent");
    assert_eq!(gateway.unnamed_files(), disk);
    assert_eq!(gateway.figure("oneport_ssh_sessions_open"), 1);
    assert!(!gateway.log().iter().any(|record| record["message"] == "session ended"));
}

#[test]
fn three_stalled_downloads_slow_nobody_and_take_little_memory() {
    three_stalled(32);
}

#[test]
fn long_three_stalled_downloads_of_256_mib() {
    three_stalled(256);
}

#[test]
fn what_waits_goes_with_its_visitor_and_with_the_gateway() {
    let (mut gateway, _backend, _agent) = web(Setup::new());
    let visitors = Visitors::of(&gateway, &host("web"));
    let files = files_below(&gateway.path(""));
    let stalled = visitors.download("/big?mb=32");
    settled(&gateway, 24 * MIB);
    drop(stalled);
    poll("files gone", SOON, || (gateway.unnamed_files() == (0, 0)).then_some(()));
    let _stalled = visitors.download("/big?mb=32");
    settled(&gateway, 24 * MIB);
    assert_eq!(files_below(&gateway.path("")), files, "what waits has a name");
    // Nothing but the process holds them, so that the kernel frees them with it, whatever happens.
    let (count, links) = gateway.links_to_unnamed_files();
    assert!(count >= 3 && links == 0, "{links} links to {count} files");
    gateway.signal(Signal::KILL);
    gateway.finish(SOON);
    assert_eq!(files_below(&gateway.path("")), files);
    assert_eq!(unnamed_files(&gateway.path("state"), "*"), Vec::<PathBuf>::new(), "somebody else holds them");
}

#[test]
fn what_stalled_visitors_pull_is_counted() {
    let mut setup = Setup::new();
    setup.with_figures().set("limits.buffer_memory", "256KiB");
    let (gateway, _backend, _agent) = web(setup);
    let visitors = Visitors::of(&gateway, &host("web"));
    let written = || gateway.figure("oneport_spill_written_bytes_total");
    // Who takes everything pulls nothing beyond memory.
    assert_eq!(Kept::new(&gateway, &host("web")).latency(10).count, 10);
    assert_eq!(written(), 0);
    let mut counted = 0;
    for number in 1..=3 {
        let stalled = visitors.download("/big?mb=24");
        let on_disk = settled(&gateway, 16 * MIB);
        let (new, now) = (written() - counted, gateway.figure("oneport_spill_disk_bytes"));
        // The last file ends within a block.
        assert!(on_disk.abs_diff(now) <= 64 * 1024, "visitor {number}: {now} counted, {on_disk} on disk");
        // What went to disk before the visitor stalled may have come back.
        assert!((now..now + MIB).contains(&new), "visitor {number}: {now} on disk, {new} counted");
        assert_eq!(stalled.finish(None), big_sha256(24));
        poll("files gone", SOON, || (gateway.figure("oneport_spill_disk_bytes") == 0).then_some(()));
        counted = written();
    }
}

#[test]
fn a_dead_agent_gives_way_beside_stalled_downloads() {
    let (gateway, backend, first) = web(Setup::new());
    let visitors = Visitors::of(&gateway, &host("web"));
    let _stalled: Vec<_> = (0..3).map(|_| visitors.download("/big?mb=16")).collect();
    settled(&gateway, 3 * 8 * MIB);
    // A live one keeps its name.
    let rival = OpenSsh::new(&gateway).forward("/web", backend.address()).run();
    assert_ne!(rival.status.code(), Some(0), "{rival:?}");
    gateway.wait_reason("name-taken");
    first.process.signal(Signal::STOP);
    let before = Instant::now();
    let _second = Agent::web(&gateway, backend.address());
    assert!(before.elapsed() < Duration::from_secs(8), "took {:?}", before.elapsed());
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
}

fn slow(mb: usize, rate: usize) {
    let (gateway, _backend, _agent) = web(Setup::new());
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut kept = Kept::new(&gateway, &host("web"));
    let before = kept.calm_latency(500);
    let download = visitors.download(&format!("/big?mb={mb}"));
    let reader = std::thread::spawn(move || download.finish(Some(rate)));
    let meanwhile = kept.latency_while(|| !reader.is_finished());
    assert_eq!(reader.join().expect("reads all"), big_sha256(mb));
    meanwhile.assert_hardly_more_than(&before);
}

#[test]
fn a_slow_visitor_gets_everything_and_slows_nobody() {
    slow(16, 4_000_000);
}

/// As promised: this takes as long as it must.
#[test]
fn long_a_slow_visitor_gets_512_mib_at_1_mib_a_second() {
    slow(512, 1 << 20);
}

/// A stream that was silent for longer than anybody may take nothing is not stalled.
#[test]
fn who_had_nothing_to_take_is_not_taken_for_stalled() {
    let mut setup = Setup::new();
    setup.set("http.send_timeout", "1s");
    let (gateway, backend, _agent) = web(setup);
    let url = format!("https://{}/sse", host("web"));
    let mut readers: Vec<_> =
        (0..20).map(|_| Process::start(&mut Curl::new(&gateway).args(&["-N"]).build(&url))).collect();
    for reader in &readers {
        reader.out.wait_for("data: one\n\n", SOON);
    }
    let silent = Instant::now();
    poll("a silence longer than the limit", SOON, || {
        (silent.elapsed() > Duration::from_secs(3)).then_some(())
    });
    for _ in &readers {
        backend.release();
    }
    for reader in &mut readers {
        let output = reader.finish(SOON);
        assert!(output.status.success() && output.stdout.contains("data: two"), "{output:?}");
    }
}
