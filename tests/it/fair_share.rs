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
/// Rounds of which the middle one counts.
const ROUNDS: usize = 7;
/// Rounds that are made at most, to find so many in which the machine was not busy with something
/// else.
const ROUNDS_MAX: usize = 11;
/// The part of the machine that others may take for it not to be busy.
const LITTLE: f64 = 0.15;

/// What small requests took, in the same round, beside less and beside more.
type Round = (Latency, Latency);

/// Compares them in so many rounds, of which those count in which the machine was least busy.
fn compare(mut round: impl FnMut() -> Round) {
    let busy = |(less, more): &Round| less.others.max(more.others);
    let mut rounds = Vec::new();
    while rounds.len() < ROUNDS_MAX && rounds.iter().filter(|round| busy(round) < LITTLE).count() < ROUNDS {
        rounds.push(round());
    }
    rounds.sort_by(|one, other| busy(one).total_cmp(&busy(other)));
    rounds.truncate(ROUNDS);
    // Everything takes as many times longer as the machine had less time for it.
    let added =
        |(less, more): &Round| more.p99.saturating_sub(less.p99).mul_f64(less.left().min(more.left()));
    let added = median(rounds.iter().map(added).collect());
    let is_telling = rounds.iter().all(|(less, more)| less.is_telling() && more.is_telling());
    let verdict = if is_telling { "too long" } else { "the machine is too busy to tell" };
    assert!(added <= ADDED, "{verdict}: {added:?} were added; without and with: {rounds:?}");
}

/// Small requests to one agent, beside a bulk transfer through the same one and, for comparison,
/// through another: that one takes as much of the machine.
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
        kept.calm_latency(REQUESTS)
    };
    compare(|| (beside(other_host), beside(&host("bulk"))));
}

/// The same beside a bulk transfer through the same agent, and beside nothing at all.
fn small_beside_bulk_and_beside_nothing(bulk: fn(&Visitors) -> Bulk) {
    let (gateway, small, large) = (Gateway::start(), Backend::start(), Backend::start());
    let _agent: Agent =
        OpenSsh::new(&gateway).forward("/web", small.address()).forward("/bulk", large.address()).start();
    let visitors = Visitors::of(&gateway, &host("bulk"));
    let mut kept = Kept::new(&gateway, &host("web"));
    kept.latency(REQUESTS);
    compare(|| {
        let alone = kept.calm_latency(REQUESTS);
        let _bulk = bulk(&visitors);
        (alone, kept.calm_latency(REQUESTS))
    });
}

#[test]
fn small_requests_beside_a_bulk_download() {
    small_beside_bulk(Bulk::down);
}

#[test]
fn small_requests_beside_a_bulk_upload() {
    small_beside_bulk(Bulk::up);
}

#[test]
fn small_requests_beside_a_bulk_download_and_beside_nothing() {
    small_beside_bulk_and_beside_nothing(Bulk::down);
}
