//! Many visitors who take nothing: past the budgets those are cut, with their reason, who have
//! taken nothing for longest, and nobody else notices.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::agent::{OpenSsh, host, web};
use crate::support::backend::big_sha256;
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::{Download, Kept, Latency, MIB, Visitors, settled};
use crate::support::machine::Machine;
use crate::support::{SOON, poll};

/// What everybody's answers may take on disk, in MiB.
const BUDGET: u64 = 64;
/// What one of them downloads, in MiB.
const EACH: usize = 8;
/// How many begin to stall at a time: among these nobody can say who took something last.
const WAVE: usize = 8;
/// Visitors who take little, but go on taking.
const READERS: usize = 3;
/// What they may add to the gateway's memory in all, and what each of them costs beside that:
/// a socket and TLS's state.
const GROWTH: u64 = 16 * MIB;
const GROWTH_EACH: u64 = 32 * 1024;

/// The address of one of many visitors.
fn address(number: usize) -> IpAddr {
    let number = u8::try_from(number).expect("few visitors");
    Ipv4Addr::new(127, 1, number / 100, number % 100 + 1).into()
}

/// The addresses of those whose request for `/big` has ended, with the reason.
fn ended(gateway: &Gateway) -> BTreeSet<(IpAddr, String)> {
    let of_one = |record: &serde_json::Value| {
        let is_one = record["message"] == "request" && record["path"] == "/big";
        let address = record["visitor"].as_str().filter(|_| is_one)?.parse().expect("an address");
        Some((address, record["reason"].as_str().expect("a reason").to_owned()))
    };
    gateway.log().iter().filter_map(of_one).collect()
}

/// Takes a little now and then until told to go on, less and less after the first time; then all,
/// and the value is its checksum.
fn take_little(mut download: Download, pause: Duration) -> (Sender<()>, JoinHandle<String>) {
    let (tell, told) = channel();
    let thread = std::thread::spawn(move || {
        let pauses = std::iter::repeat_n(pause.min(Duration::from_millis(20)), 128);
        for pause in pauses.chain(std::iter::repeat(pause)) {
            if told.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            download.take(16 * 1024).expect("a visitor who reads is not cut");
        }
        download.finish(None)
    });
    (tell, thread)
}

/// How long small requests take through two agents, one after the other, while `goes_on` holds.
fn both_while(first: &mut Kept, second: &mut Kept, goes_on: impl Fn() -> bool) -> (Latency, Latency) {
    let (mut of_first, mut of_second, machine) = (Vec::new(), Vec::new(), Machine::look());
    while goes_on() {
        of_first.push(first.small());
        of_second.push(second.small());
    }
    (Latency::of(of_first, &machine), Latency::of(of_second, &machine))
}

fn many_stalled(waves: usize) {
    let mut setup = Setup::new();
    let budget = format!("{BUDGET}MiB");
    setup.set("limits.buffer_disk", budget.clone()).set("limits.buffer_disk_per_stream", budget);
    setup.set("limits.buffer_memory", "64KiB");
    let (gateway, backend, _agent) = web(setup);
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut kept = Kept::new(&gateway, &host("web"));
    // Nobody stalls there, and what the machine has to do beside it is the same.
    let _other = OpenSsh::new(&gateway).key("ed25519b").forward("/web", backend.address()).start();
    let mut other = Kept::new(&gateway, "web-pls54n3g.gw.test");
    visitors.download("/big?mb=4").finish(None);
    for _ in 0..200 {
        kept.small();
        other.small();
    }
    let memory = gateway.memory();
    gateway.forget_peak();

    let path = format!("/big?mb={EACH}");
    let download = |number| visitors.download_from(address(number), &path).expect("let in");
    // These come first, and have not taken all when the others are through.
    let pause = Duration::from_millis(4) * u32::try_from(waves).expect("few");
    let readers: Vec<_> = (0..READERS).map(|number| take_little(download(number), pause)).collect();
    let is_over = AtomicBool::new(false);
    let (mut stalled, (latency, elsewhere), disk) = std::thread::scope(|scope| {
        let latency = scope.spawn(|| both_while(&mut kept, &mut other, || !is_over.load(Ordering::Relaxed)));
        let disk = scope.spawn(|| {
            let mut most = 0;
            poll("the end", 30 * SOON, || {
                most = most.max(gateway.unnamed_files().1);
                is_over.load(Ordering::Relaxed).then_some(most)
            })
        });
        let mut stalled = Vec::new();
        for wave in 0..waves {
            let first = READERS + wave * WAVE;
            stalled.extend((first..first + WAVE).map(|number| (wave, number, download(number))));
            settled(&gateway, 0);
        }
        is_over.store(true, Ordering::Relaxed);
        (stalled, latency.join().expect("they are served"), disk.join().expect("it runs"))
    });
    let grown = gateway.memory_peak().saturating_sub(memory);
    let (ended, full) = (ended(&gateway), gateway.unnamed_files().1);
    latency.assert_hardly_more_than(&elsewhere);
    assert!(disk <= BUDGET * MIB + MIB, "{disk} octets on disk");
    let most = GROWTH + (READERS + waves * WAVE) as u64 * GROWTH_EACH;
    assert!(grown <= most, "grown by {grown} octets");

    // Everybody who was cut knows why, and nobody was without need.
    let is_cut = |number| ended.contains(&(address(number), "visitor-too-slow".to_owned()));
    let cut: Vec<_> =
        stalled.iter().filter(|(_, number, _)| is_cut(*number)).map(|(wave, ..)| *wave).collect();
    let others = ended.iter().filter(|(_, reason)| reason != "answered").count() - cut.len();
    assert_eq!(others, 0, "others have ended as well: {ended:?}");
    assert!(full >= (BUDGET - ((1 + READERS) * EACH) as u64) * MIB, "{full} octets are left on disk");
    let last_cut = cut.iter().max().expect("the budget is passed");
    let sum = big_sha256(EACH);
    for (wave, number, download) in &mut stalled {
        let whole = download.take(EACH << 20);
        assert_eq!(whole.is_err(), is_cut(*number), "visitor {number} of wave {wave}: {whole:?}");
        assert!(
            whole.is_err() || *wave >= *last_cut,
            "visitor {number} of wave {wave}, and {cut:?} were cut"
        );
    }
    for (_, _, download) in stalled.into_iter().filter(|(.., download)| download.is_whole()) {
        assert_eq!(download.finish(None), sum);
    }
    for (tell, reader) in readers {
        drop(tell);
        assert_eq!(reader.join().expect("a visitor who reads is not cut"), sum);
    }
}

#[test]
fn past_the_budget_who_took_nothing_for_longest_is_cut() {
    many_stalled(5);
}

#[test]
fn long_past_the_budget_200_stalled_visitors() {
    many_stalled(25);
}

#[test]
fn stalled_visitors_of_one_address_reach_its_limit() {
    let mut setup = Setup::new();
    setup.set("limits.connections_per_address", 20);
    let (gateway, _backend, _agent) = web(setup);
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
fn visitors_leave(rounds: usize) {
    let mut setup = Setup::new();
    setup.set("ssh.max_channels", 16).set("http.upstream_idle_max", 0);
    let (gateway, _backend, _agent) = web(setup);
    let visitors = Visitors::of(&gateway, &host("web"));
    for _ in 0..rounds {
        // As many as may be, and all leave at once.
        let left: Vec<_> = (0..12)
            .map(|number| visitors.download_from(address(number), "/big?mb=64").expect("let in"))
            .collect();
        drop(left);
        let mut kept = Kept::new(&gateway, &host("web"));
        kept.latency(5);
    }
    let refused = |record: &serde_json::Value| record["reason"] == "too-many-channels";
    assert!(!gateway.log().iter().any(refused), "{}", gateway.stderr());
}

#[test]
fn visitors_who_leave_downloads_lock_nobody_out() {
    visitors_leave(9);
}

/// As many as one session carries without giving its agent more time to close.
#[test]
fn long_600_visitors_who_leave_downloads_lock_nobody_out() {
    visitors_leave(50);
}
