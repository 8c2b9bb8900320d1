//! Streams of one agent share its connection fairly: a bulk transfer adds little to what small
//! requests take, whichever way it goes.

use std::time::Duration;

use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::Backend;
use crate::support::gateway::Gateway;
use crate::support::load::{Bulk, Kept, Latency, Visitors};

/// What sharing the agent's connection with a bulk transfer may add to the slowest of a hundred
/// small requests.
const ADDED: Duration = Duration::from_millis(10);
/// Requests in a round, and rounds of each kind.
const REQUESTS: usize = 150;
const ROUNDS: usize = 4;

/// Small requests to one agent, beside a bulk transfer through the same one and, for comparison,
/// through another: that one takes as much of the machine.
fn small_beside_bulk(bulk: fn(&Visitors) -> Bulk) {
    let (gateway, small, large) = (Gateway::start(), Backend::start(), Backend::start());
    let _agent: Agent =
        OpenSsh::new(&gateway).forward("/web", small.address()).forward("/bulk", large.address()).start();
    let _other = OpenSsh::new(&gateway).key("ed25519b").forward("/bulk", large.address()).start();
    let other_host = "bulk-pls54n3g.gw.test";
    let mut kept = Kept::new(&gateway, &host("web"));
    let idle = kept.latency(REQUESTS);
    let mut round = |host: &str| {
        let _bulk = bulk(&Visitors::of(&gateway, host));
        kept.latency(REQUESTS)
    };
    let (mut apart, mut together) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        apart.push(round(other_host));
        together.push(round(&host("bulk")));
    }
    let (apart, together) = (Latency::best(&apart), Latency::best(&together));
    assert!(together.p99 < apart.p99 + ADDED, "idle {idle:?}, apart {apart:?}, together {together:?}");
}

#[test]
fn small_requests_beside_a_bulk_download() {
    small_beside_bulk(Bulk::down);
}

#[test]
fn small_requests_beside_a_bulk_upload() {
    small_beside_bulk(Bulk::up);
}
