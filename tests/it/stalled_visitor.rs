//! A visitor who stops reading never stops the others, not even those of the same agent; what
//! they have not taken waits within its bounds, and goes when they go.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::{Backend, big_sha256, raw};
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::{Kept, Visitors};
use crate::support::visitor::Curl;
use crate::support::{SOON, poll};

const MIB: u64 = 1 << 20;

/// Waits until what the gateway keeps on disk has not grown for a moment, and is at least `least`.
fn settled(gateway: &Gateway, least: u64) -> u64 {
    let mut last = 0;
    let mut same = 0;
    poll("files that no longer grow", 10 * SOON, || {
        let (_, octets) = gateway.unnamed_files();
        same = if octets == last { same + 1 } else { 0 };
        last = octets;
        (octets >= least && same > 20).then_some(octets)
    })
}

fn three_stalled(mb: usize) {
    let mut setup = Setup::new();
    setup.set("ssh.keepalive_interval", "1s");
    let (gateway, backend) = (setup.start(), Backend::start());
    let mut agent = Agent::web(&gateway, backend.address());
    let mut kept = Kept::new(&gateway, &host("web"));
    let visitors = Visitors::of(&gateway, &host("web"));
    // Everything has run once before memory is looked at.
    visitors.download("/big?mb=4").finish(None);
    let before = kept.latency(1000);
    let memory = gateway.memory();
    gateway.forget_peak();
    let path = format!("/big?mb={mb}");
    let stalled: Vec<_> = (0..3).map(|_| visitors.download(&path)).collect();
    let during = kept.latency(1000);
    let disk = settled(&gateway, (mb as u64 - 16) * MIB);
    let stalling = kept.latency(1000);
    eprintln!(
        "{before:?} {during:?} {stalling:?} disk {disk} grown {} {}",
        (gateway.memory_peak() - memory) >> 10,
        (gateway.memory() as i64 - memory as i64) >> 10
    );
    let expect = big_sha256(mb);
    let readers: Vec<_> = stalled.into_iter().map(|d| std::thread::spawn(move || d.finish(None))).collect();
    for reader in readers {
        assert_eq!(reader.join().expect("reads on"), expect);
    }
    eprintln!("peak {}", (gateway.memory_peak() - memory) >> 10);
}

#[test]
fn three() {
    three_stalled(64);
}

#[test]
fn long_three() {
    three_stalled(256);
}
