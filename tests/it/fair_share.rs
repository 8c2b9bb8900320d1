//! Streams of one agent share its connection fairly: a bulk transfer adds little to what small
//! requests take, whichever way it goes.

use std::time::Duration;

use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::Backend;
use crate::support::gateway::Gateway;
use crate::support::load::{Bulk, Kept, Latency, Visitors, median};

/// What sharing the agent's connection with a bulk transfer may add to the slowest of a hundred
/// small requests.
const ADDED: Duration = Duration::from_millis(10);
/// Requests in a round, whose slowest hundredth is looked at.
const REQUESTS: usize = 150;
/// Rounds, of which the middle one counts: a machine that is busy with something else shows in
/// some of them, an unfair share in most.
const ROUNDS: usize = 7;

/// Small requests to one agent, beside a bulk transfer through the same one and, for comparison in
/// the same round, through another: that one takes as much of the machine.
fn small_beside_bulk(bulk: fn(&Visitors) -> Bulk) {
    let (gateway, small, large) = (Gateway::start(), Backend::start(), Backend::start());
    let _agent: Agent =
        OpenSsh::new(&gateway).forward("/web", small.address()).forward("/bulk", large.address()).start();
    let _other = OpenSsh::new(&gateway).key("ed25519b").forward("/bulk", large.address()).start();
    let other_host = "bulk-pls54n3g.gw.test";
    let mut kept = Kept::new(&gateway, &host("web"));
    kept.latency(REQUESTS);
    let mut beside = |host: &str| {
        let _bulk = bulk(&Visitors::of(&gateway, host));
        kept.latency(REQUESTS)
    };
    let rounds: Vec<_> = (0..ROUNDS).map(|_| (beside(other_host), beside(&host("bulk")))).collect();
    let added = |(apart, together): &(Latency, Latency)| together.p99.saturating_sub(apart.p99);
    let added = median(rounds.iter().map(added).collect());
    assert!(added <= ADDED, "{added:?} were added; apart and together: {rounds:?}");
}

#[test]
fn small_requests_beside_a_bulk_download() {
    small_beside_bulk(Bulk::down);
}

#[test]
fn small_requests_beside_a_bulk_upload() {
    small_beside_bulk(Bulk::up);
}
