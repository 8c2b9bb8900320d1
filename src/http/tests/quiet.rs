//! A connection that is quiet keeps nothing but its wire, and nobody notices.

use std::time::Duration;

use super::support::*;
use crate::observe::Reason;

/// Longer than a connection waits for before it counts as quiet.
const LONG: Duration = Duration::from_millis(1200);
const ASK: &str = "GET /healthz HTTP/1.1\r\nHost: api.example.test\r\n\r\n";

#[tokio::test]
async fn a_quiet_connection_serves_the_next_request_however_it_is_cut() {
    let gateway = Gateway::start(Port::H1).await;
    let mut visitor = gateway.visitor().await;
    for (first, rest) in [("", ASK), ("G", &ASK[1..]), (&ASK[..30], &ASK[30..]), ("\r\n", ASK)] {
        visitor.send(ASK).await;
        visitor.until("OK\n").await;
        tokio::time::sleep(LONG).await;
        visitor.send(first).await;
        tokio::task::yield_now().await;
        visitor.send(rest).await;
        visitor.until("OK\n").await;
    }
    // Two at once, and what is no request at all.
    tokio::time::sleep(LONG).await;
    visitor.send(format!("{ASK}{ASK}")).await;
    visitor.until("OK\n").await;
    visitor.until("OK\n").await;
    tokio::time::sleep(LONG).await;
    visitor.send("GET / HTTP/1.1\nHost: a\r\n\r\n").await;
    assert!(visitor.rest().await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn a_quiet_connection_ends_when_its_time_is_over_and_when_the_visitor_goes() {
    let mut settings = settings();
    settings.http.idle_timeout = LONG * 2;
    let mut gateway = Gateway::with(Port::H1, settings).await;
    let mut idle = gateway.visitor().await;
    idle.send(ASK).await;
    assert!(idle.rest().await.ends_with("OK\n"));
    assert_eq!(gateway.ends.recv().await, Some(Reason::Idle));

    let mut gone = gateway.visitor().await;
    gone.send(ASK).await;
    gone.until("OK\n").await;
    tokio::time::sleep(LONG).await;
    drop(gone);
    assert_eq!(gateway.ends.recv().await, Some(Reason::Finished));
}

#[tokio::test]
async fn a_quiet_connection_ends_when_the_gateway_does() {
    let mut gateway = Gateway::start(Port::H1).await;
    let mut visitor = gateway.visitor().await;
    visitor.send(ASK).await;
    visitor.until("OK\n").await;
    tokio::time::sleep(LONG).await;
    gateway.tasks.begin_drain();
    assert_eq!(visitor.rest().await, "");
    assert_eq!(gateway.ends.recv().await, Some(Reason::Draining));
}

#[tokio::test]
async fn a_head_that_stays_incomplete_is_refused_after_a_quiet_time_as_well() {
    let mut settings = settings();
    settings.limits.handshake_timeout = LONG * 2;
    let gateway = Gateway::with(Port::H1, settings).await;
    let mut visitor = gateway.visitor().await;
    visitor.send(ASK).await;
    visitor.until("OK\n").await;
    tokio::time::sleep(LONG).await;
    visitor.send(&ASK[..20]).await;
    assert!(visitor.rest().await.starts_with("HTTP/1.1 408"));
}
