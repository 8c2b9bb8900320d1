//! A disk without space costs those whose unread answers need it, with that as the reason, and
//! nobody else.

use std::net::{IpAddr, Ipv4Addr};

use crate::support::agent::{Agent, host};
use crate::support::backend::{Backend, big_sha256};
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::{Kept, MIB, Visitors, settled};
use crate::support::{SOON, poll};

/// The disk, in MiB; the budgets are far larger.
const DISK: usize = 24;
/// Visitors who fill it together, and what each downloads, in MiB: there is space for two.
const CROWD: u8 = 8;
const EACH: usize = 10;

/// Why the download of a visitor ended, once it has.
fn reason(gateway: &Gateway, from: IpAddr) -> Option<String> {
    let is_one = |record: &&serde_json::Value| {
        record["message"] == "request" && record["path"] == "/big" && record["visitor"] == from.to_string()
    };
    let log = gateway.log();
    log.iter().find(is_one).map(|record| record["reason"].as_str().expect("a reason").to_owned())
}

#[test]
fn a_full_disk_cuts_those_who_need_it_and_nobody_else() {
    let mut setup = Setup::new();
    setup.with_figures();
    let (gateway, backend) = (setup.start_on_small_disk(DISK), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let visitors = Visitors::of(&gateway, &host("web"));
    let mut kept = Kept::new(&gateway, &host("web"));
    let from = |number: u8| IpAddr::from(Ipv4Addr::new(127, 2, 0, number));
    let stall = |number, mb| visitors.download_from(from(number), &format!("/big?mb={mb}")).expect("let in");
    let cut = || gateway.figure("oneport_spill_streams_cut_total{reason=\"no-space\"}");
    let wait = |number| {
        let reason = poll("the end of a download", SOON, || reason(&gateway, from(number)));
        assert_eq!(reason, "no-space", "visitor {number}");
    };

    let mut first = stall(1, 16);
    poll("an answer on disk", SOON, || (gateway.figure("oneport_spill_disk_bytes") > 12 * MIB).then_some(()));
    assert_eq!(cut(), 0);
    // There is no space for both: who has taken nothing for longest makes room.
    let second = stall(2, 16);
    wait(1);
    assert_eq!(cut(), 1);
    assert!(first.take(16 << 20).is_err(), "a part was passed off as the whole");
    // Whoever needs no disk goes on, and so does who had found room.
    kept.latency(100);
    let whole = visitors.clone().eager().download("/big?mb=4");
    assert_eq!(whole.finish(None), big_sha256(4));
    assert_eq!(second.finish(None), big_sha256(16));
    // Alone, one can still be too much.
    let _third = stall(3, 2 * DISK);
    wait(3);
    assert_eq!(cut(), 2);
    assert_eq!(gateway.figure("oneport_spill_streams_cut_total{reason=\"visitor-too-slow\"}"), 0);
    kept.latency(100);
    assert_eq!(visitors.download("/big?mb=4").finish(None), big_sha256(4));
    assert_eq!(gateway.figure("oneport_ssh_sessions_open"), 1);
    poll("space given back", SOON, || (gateway.figure("oneport_spill_disk_bytes") == 0).then_some(()));
}

#[test]
fn of_those_who_fill_a_disk_together_no_more_are_cut_than_must_be() {
    let mut setup = Setup::new();
    setup.with_figures().set("limits.buffer_memory", "64KiB");
    let (gateway, backend) = (setup.start_on_small_disk(DISK), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let visitors = Visitors::of(&gateway, &host("web"));
    let stalled: Vec<_> = (0..CROWD).map(|_| visitors.download(&format!("/big?mb={EACH}"))).collect();
    let cut = || gateway.figure("oneport_spill_streams_cut_total{reason=\"no-space\"}");
    let must = u64::from(CROWD) - 2;
    poll("space for those who are left", SOON, || {
        (settled(&gateway, MIB) <= (2 * EACH as u64 + 1) * MIB && cut() >= must).then_some(())
    });
    assert_eq!(cut(), must, "{}", gateway.stderr());
    assert_eq!(gateway.figure("oneport_spill_streams_cut_total{reason=\"visitor-too-slow\"}"), 0);
    let mut whole = 0;
    for mut download in stalled {
        if download.take(EACH << 20).is_ok() {
            assert_eq!(download.finish(None), big_sha256(EACH));
            whole += 1;
        }
    }
    assert_eq!(whole, 2);
}
