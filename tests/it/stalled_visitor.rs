//! A visitor who stops reading never stops the others, not even those of the same agent; what
//! they have not taken waits within its bounds, and goes when they go.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;

use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::{Backend, big_sha256};
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::{Download, Kept, Latency, Visitors};
use crate::support::process::Process;
use crate::support::visitor::{Curl, tls_async};
use crate::support::{SOON, poll, sha256};

const MIB: u64 = 1 << 20;
/// What three stalled downloads may add to the gateway's memory.
const GROWTH: u64 = 16 * MIB;

/// Small requests may take this much longer beside others' stalled downloads.
#[track_caller]
fn assert_no_slower(before: Latency, now: Latency) {
    let most = before.p99.mul_f64(1.5) + Duration::from_millis(20);
    assert!(now.p99 <= most, "before {before:?}, now {now:?}");
}

/// Waits until what the gateway keeps on disk has grown to `least`, and no further for a while.
#[track_caller]
fn settled(gateway: &Gateway, least: u64) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    poll("files that no longer grow", 5 * SOON, || {
        let (_, octets) = gateway.unnamed_files();
        if octets != last {
            (last, since) = (octets, Instant::now());
        }
        (octets >= least && since.elapsed() > Duration::from_millis(300)).then_some(octets)
    })
}

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

fn files_of(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

fn three_stalled(mb: usize) {
    let mut setup = Setup::new();
    setup.set("ssh.keepalive_interval", "1s");
    let (gateway, backend) = (setup.start(), Backend::start());
    let control = gateway.path("control");
    let mut agent = agent_with_control(&gateway, backend.address(), &control);
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut kept = Kept::new(&gateway, &host("web"));
    // Everything has run once before memory is looked at.
    visitors.download("/big?mb=4").finish(None);
    let before = kept.latency(500);
    let memory = gateway.memory();
    gateway.forget_peak();

    let path = format!("/big?mb={mb}");
    let stalled: Vec<_> = (0..3).map(|_| visitors.download(&path)).collect();
    let started = Instant::now();
    let filling = kept.latency(500);
    // All of it but what sockets hold.
    let disk = settled(&gateway, 3 * (mb as u64 - 8) * MIB);
    let full = kept.latency(500);
    assert_no_slower(before, full);
    assert_no_slower(before, filling);
    assert!(disk <= 3 * (mb as u64 + 1) * MIB, "{disk} octets on disk");

    // The session lives on as before.
    forward_more(&control, "/late", backend.address());
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("late"))).text(), "small");
    poll("several keep-alives", SOON, || (started.elapsed() > Duration::from_secs(4)).then_some(()));
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

#[test]
fn three_stalled_downloads_slow_nobody_and_take_little_memory() {
    three_stalled(64);
}

#[test]
fn long_three_stalled_downloads_of_256_mib() {
    three_stalled(256);
}

#[test]
fn what_waits_goes_with_its_visitor_and_with_the_gateway() {
    let (mut gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let visitors = Visitors::of(&gateway, &host("web"));
    let state = gateway.path("state");
    let files = files_of(&state);
    let stalled = visitors.download("/big?mb=32");
    settled(&gateway, 24 * MIB);
    drop(stalled);
    poll("files gone", SOON, || (gateway.unnamed_files() == (0, 0)).then_some(()));
    let _stalled = visitors.download("/big?mb=32");
    settled(&gateway, 24 * MIB);
    assert_eq!(files_of(&state), files, "what waits has a name");
    gateway.signal(Signal::KILL);
    gateway.finish(SOON);
    assert_eq!(files_of(&state), files);
}

#[test]
fn a_dead_agent_gives_way_beside_stalled_downloads() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let first = Agent::web(&gateway, backend.address());
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
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut kept = Kept::new(&gateway, &host("web"));
    let before = kept.latency(500);
    let download = visitors.download(&format!("/big?mb={mb}"));
    let reader = std::thread::spawn(move || download.finish(Some(rate)));
    let meanwhile = kept.latency_while(|| !reader.is_finished());
    assert_eq!(reader.join().expect("reads all"), big_sha256(mb));
    assert_no_slower(before, meanwhile);
}

#[test]
fn a_slow_visitor_gets_everything_and_slows_nobody() {
    slow(16, 4_000_000);
}

#[test]
fn long_a_slow_visitor_gets_512_mib() {
    slow(512, 20_000_000);
}

#[test]
fn a_stalled_h2_stream_stops_no_other_of_its_connection() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let stream = tls_async(&gateway, &host("web"), &["h2"]).await;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("h2");
        tokio::spawn(connection);
        let mut get = async |path: &str| {
            let url = format!("https://{}{path}", host("web"));
            let request = http::Request::get(url).body(Empty::<Bytes>::new()).expect("a request");
            let answer = tokio::time::timeout(SOON, sender.send_request(request)).await;
            answer.expect("an answer in time").expect("an answer").into_body()
        };
        // Its window is used up, and not given back.
        let stalled = get("/big?mb=16").await;
        settled(&gateway, 12 * MIB);
        for _ in 0..20 {
            let small = get("/small").await.collect().await.expect("an answer");
            assert_eq!(small.to_bytes(), "small");
        }
        let rest = stalled.collect().await.expect("the download goes on").to_bytes();
        assert_eq!(sha256(&rest), big_sha256(16));
    });
}

#[test]
fn a_stalled_h2_stream_is_recorded_when_it_is_cut() {
    let mut setup = Setup::new();
    setup.set("limits.buffer_disk_per_stream", "8MiB");
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let stream = tls_async(&gateway, &host("web"), &["h2"]).await;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("h2");
        tokio::spawn(connection);
        let url = format!("https://{}/big?mb=32", host("web"));
        let request = http::Request::get(url).body(Empty::<Bytes>::new()).expect("a request");
        let stalled = sender.send_request(request).await.expect("an answer").into_body();
        gateway.wait_reason("visitor-too-slow");
        assert!(stalled.collect().await.is_err(), "the answer was passed off as whole");
    });
    poll("files gone", SOON, || (gateway.unnamed_files() == (0, 0)).then_some(()));
}

#[test]
fn visitors_with_no_window_do_not_hold_an_agents_channels() {
    let mut setup = Setup::new();
    setup.set("ssh.max_channels", 8).set("http.send_timeout", "1s");
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let stream = tls_async(&gateway, &host("web"), &["h2"]).await;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let h2 = builder.initial_stream_window_size(0).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = h2.expect("h2");
        tokio::spawn(connection);
        let mut stalled = Vec::new();
        // Their length is not known, so that their end is not either.
        for _ in 0..8 {
            let url = format!("https://{}/trailers", host("web"));
            let request = http::Request::get(url).body(Empty::<Bytes>::new()).expect("a request");
            stalled.push(sender.send_request(request).await.expect("an answer"));
        }
        poll("channels that are free again", SOON, || {
            let answer = Curl::new(&gateway).get(&format!("https://{}/small", host("web")));
            (answer.text() == "small").then_some(())
        });
        gateway.wait_reason("visitor-too-slow");
        for answer in stalled {
            assert!(answer.into_body().collect().await.is_err(), "an answer was passed off as whole");
        }
    });
}

/// The address of one of many visitors.
fn address(number: usize) -> std::net::IpAddr {
    let number = u8::try_from(number).expect("few visitors");
    std::net::Ipv4Addr::new(127, 1, number / 100, number % 100 + 1).into()
}

/// How many requests for `/big` ended for this reason.
fn cut(gateway: &Gateway, reason: &str) -> usize {
    let is_one = |record: &&serde_json::Value| {
        record["message"] == "request" && record["path"] == "/big" && record["reason"] == reason
    };
    gateway.log().iter().filter(is_one).count()
}

fn many_stalled(count: usize, mb: usize) {
    let mut setup = Setup::new();
    let budget = 32 * MIB;
    setup.set("limits.buffer_disk", "32MiB").set("limits.buffer_disk_per_stream", "32MiB");
    setup.set("limits.buffer_memory", "64KiB");
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut kept = Kept::new(&gateway, &host("web"));
    let (path, sum) = (format!("/big?mb={mb}"), big_sha256(mb));
    let download = |number| visitors.download_from(address(number), &path).expect("let in");
    // These come first and take little, but go on taking.
    let readers: Vec<_> = (0..3)
        .map(|number| {
            let mut reader = download(number);
            let gone_on = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                while gone_on
                    .1
                    .recv_timeout(Duration::from_millis(20))
                    .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    reader.take(16 * 1024).expect("a visitor who reads is not cut");
                }
                reader.finish(None)
            });
            (gone_on.0, thread)
        })
        .collect();
    let mut stalled: Vec<Download> = Vec::new();
    let mut peak = 0;
    for number in 3..count {
        stalled.push(download(number));
        peak = peak.max(gateway.unnamed_files().1);
    }
    let enough = count * mb * 3 / 4 - 3 * (budget / MIB) as usize;
    poll("visitors cut", 2 * SOON, || (cut(&gateway, "visitor-too-slow") * mb >= enough).then_some(()));
    assert!(peak <= budget + 2 * MIB, "{peak} octets on disk");
    kept.latency(50);
    for (tell, reader) in readers {
        drop(tell);
        assert_eq!(reader.join().expect("a visitor who reads is not cut"), sum);
    }
    // Those who were cut are those who came first; who came last still has all.
    let last = stalled.pop().expect("many");
    assert_eq!(last.finish(None), sum);
    let mut first = stalled.remove(0);
    assert!(first.take(mb << 20).is_err(), "the first to stall was not cut");
}

#[test]
fn past_the_budget_who_took_nothing_for_longest_is_cut() {
    many_stalled(40, 8);
}

#[test]
fn long_past_the_budget_200_stalled_visitors() {
    many_stalled(200, 8);
}

#[test]
fn stalled_visitors_of_one_address_reach_its_limit() {
    let mut setup = Setup::new();
    setup.set("limits.connections_per_address", 20);
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).forward("/web", backend.address()).start();
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut let_in = Vec::new();
    let mut refused = 0;
    for _ in 0..200 {
        match visitors.download_from(address(0), "/big?mb=4") {
            Ok(download) => let_in.push(download),
            Err(_) => refused += 1,
        }
    }
    assert_eq!((let_in.len(), refused), (20, 180));
    gateway.wait_reason("too-many-connections");
    // Everybody else is served, and those who were let in lose nothing.
    let sum = big_sha256(4);
    let other = visitors.download_from(address(1), "/big?mb=4").expect("another address is let in");
    assert_eq!(other.finish(None), sum);
    assert_eq!(let_in.swap_remove(0).finish(None), sum);
}

/// Who goes away in the middle of a download gives the channel back at once, whatever the agent
/// still has to send on it.
#[test]
fn visitors_who_leave_downloads_lock_nobody_out() {
    let mut setup = Setup::new();
    setup.set("ssh.max_channels", 16).set("http.upstream_idle_max", 0);
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = agent_with_control(&gateway, backend.address(), &gateway.path("control"));
    let visitors = Visitors::of(&gateway, &host("web"));
    for _ in 0..4 {
        // As many as may be, and all leave at once.
        let left: Vec<_> = (0..12).map(|_| visitors.download("/big?mb=64")).collect();
        drop(left);
        let mut kept = Kept::new(&gateway, &host("web"));
        kept.latency(5);
    }
    let refused = |record: &serde_json::Value| record["reason"] == "too-many-channels";
    assert!(!gateway.log().iter().any(refused), "{}", gateway.stderr());
}

/// A stream that was silent for longer than anybody may take nothing is not stalled.
#[test]
fn who_had_nothing_to_take_is_not_taken_for_stalled() {
    let mut setup = Setup::new();
    setup.set("http.send_timeout", "1s");
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
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
