//! Dynamic updates, taken by BIND and by Knot.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::servers::{DnsServer, KEY, Relay, dig, free_port, knotd, named, present, record, settings};
use crate::certs::dns::rfc2136::Rfc2136;
use crate::certs::dns::{ChallengeRecord, DnsProvider as _};
use crate::config::{Rfc2136Settings, Secret, SecretSource, TsigHash};
use crate::name::HostName;

fn update_settings(server: SocketAddr) -> Rfc2136Settings {
    Rfc2136Settings {
        host: HostName::parse(&server.ip().to_string()).expect("an address"),
        port: server.port(),
        zone: None,
        key_name: HostName::parse("oneport").expect("a name"),
        key_secret: SecretSource::Inline(Secret::new(KEY)),
        algorithm: TsigHash::Sha256,
    }
}

fn provider(server: SocketAddr, change: impl FnOnce(&mut Rfc2136Settings)) -> Rfc2136 {
    let mut update = update_settings(server);
    change(&mut update);
    Rfc2136::new(&update, &settings(server)).with_port(server.port())
}

async fn texts(server: SocketAddr, name: &str) -> Vec<String> {
    let said = dig(server, &["+short", "+norecurse", name, "TXT"]).await;
    let mut lines: Vec<String> = said.lines().map(|line| line.trim_matches('"').to_owned()).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn two_values_stand_side_by_side_at_bind_and_go_one_by_one() {
    let server = named(free_port(&["127.0.0.1"]), "", "").await;
    let by256 = provider(server.address, |_| {});
    let by512 = provider(server.address, |update| {
        update.key_name = HostName::parse("ONEPORT512").expect("a name");
        update.algorithm = TsigHash::Sha512;
        update.zone = Some(HostName::parse("preview.test").expect("a name"));
    });
    present(&by256, &record("first")).await.expect("set");
    present(&by512, &record("second")).await.expect("set");
    // Setting it again is no error.
    present(&by256, &record("first")).await.expect("set");
    assert_eq!(texts(server.address, "_acme-challenge.preview.test").await, ["first", "second"]);
    by256.cleanup(&record("first"), None).await.expect("removed");
    assert_eq!(texts(server.address, "_acme-challenge.preview.test").await, ["second"]);
    by512.cleanup(&record("second"), None).await.expect("removed");
    by512.cleanup(&record("second"), None).await.expect("removed already");
    assert_eq!(texts(server.address, "_acme-challenge.preview.test").await, [""; 0]);
}

/// A resolver that saw the first value alone must have forgotten it when the second is to be looked at.
#[tokio::test]
async fn what_resolvers_remember_is_waited_for() {
    let server = named(free_port(&["127.0.0.1"]), "", "").await;
    let provider = provider(server.address, |_| {});
    let timed = async |value| {
        let start = Instant::now();
        present(&provider, &record(value)).await.expect("set");
        start.elapsed()
    };
    let second = Duration::from_secs(1);
    assert!(timed("first").await < second);
    assert!(timed("second").await >= second);
    provider.cleanup(&record("first"), None).await.expect("removed");
    provider.cleanup(&record("second"), None).await.expect("removed");
    assert!(timed("third").await >= second);
}

#[tokio::test]
async fn a_cname_is_followed() {
    let records = "_acme-challenge.app CNAME elsewhere.challenges\nelsewhere.challenges CNAME there\n";
    let server = named(free_port(&["127.0.0.1"]), records, "").await;
    let provider = provider(server.address, |_| {});
    let app = ChallengeRecord { name: "_acme-challenge.app.preview.test".into(), value: "value".into() };
    present(&provider, &app).await.expect("set");
    assert_eq!(texts(server.address, "there.preview.test").await, ["value"]);
    provider.cleanup(&app, None).await.expect("removed");
    assert_eq!(texts(server.address, "there.preview.test").await, [""; 0]);
}

#[tokio::test]
async fn knot_takes_updates_too() {
    let server = knotd([127, 0, 0, 1], free_port(&["127.0.0.1"])).await;
    let mut settings = settings(server.address);
    settings.servers = vec![server.address];
    // It resolves nothing itself, but knows its own zone.
    let provider = Rfc2136::new(&update_settings(server.address), &settings);
    present(&provider, &record("first")).await.expect("set");
    present(&provider, &record("second")).await.expect("set");
    assert_eq!(texts(server.address, "_acme-challenge.preview.test").await, ["first", "second"]);
    provider.cleanup(&record("second"), None).await.expect("removed");
    assert_eq!(texts(server.address, "_acme-challenge.preview.test").await, ["first"]);
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let server = named(free_port(&["127.0.0.1"]), "", "").await;
    let said = |change: fn(&mut Rfc2136Settings), name: &'static str| {
        let provider = provider(server.address, change);
        async move {
            let record = ChallengeRecord { name: name.to_owned(), value: "value".to_owned() };
            present(&provider, &record).await.expect_err("refused").to_string()
        }
    };
    let name = "_acme-challenge.preview.test";
    let unknown = said(|update| update.key_name = HostName::parse("nobody").expect("a name"), name).await;
    assert!(unknown.contains("does not know the key `nobody` with `hmac-sha256` (BADKEY)"), "{unknown}");
    let algorithm = said(|update| update.algorithm = TsigHash::Sha512, name).await;
    assert!(algorithm.contains("`hmac-sha512` (BADKEY)"), "{algorithm}");
    let secret = said(|update| update.key_secret = SecretSource::Inline(Secret::new("d3Jvbmc=")), name).await;
    assert!(secret.contains("another secret for the key `oneport` (BADSIG)"), "{secret}");
    assert!(!secret.contains("d3Jvbmc"), "{secret}");
    let refused = said(|update| update.key_name = HostName::parse("other").expect("a name"), name).await;
    assert!(
        refused.contains("does not let the key `other` change") && refused.contains("REFUSED"),
        "{refused}"
    );
    let zone = said(
        |update| update.zone = Some(HostName::parse("_acme-challenge.preview.test").expect("a name")),
        name,
    )
    .await;
    assert!(zone.contains("NOTAUTH"), "{zone}");
    let outside =
        said(|update| update.zone = Some(HostName::parse("example.com").expect("a name")), name).await;
    assert!(outside.contains("does not lie in the zone `example.com`"), "{outside}");
    let port = free_port(&["127.0.0.1"]);
    let silent = provider(server.address, |update| update.port = port);
    let silent = present(&silent, &record("x")).await.expect_err("nobody there").to_string();
    assert!(silent.contains("cannot be asked: no answer; check `dns.rfc2136.server`"), "{silent}");
    let absent =
        provider(server.address, |update| update.key_secret = SecretSource::File("/absent/key".into()));
    let absent = present(&absent, &record("x")).await.expect_err("no file").to_string();
    assert!(absent.contains("`/absent/key` cannot be read"), "{absent}");
}

/// A secondary that does not take the zone over: it says that there is no such record.
#[tokio::test]
async fn a_record_that_a_server_does_not_show_is_waited_for_and_then_told_of() {
    let port = free_port(&["127.0.0.1", "127.0.0.2"]);
    let server = named(port, "@ NS ns2\nns2 A 127.0.0.2\n", "").await;
    let _secondary = knotd([127, 0, 0, 2], port).await;
    let said =
        present(&in_a_second(&server, port), &record("value")).await.expect_err("not seen").to_string();
    assert!(said.contains("`ns2.preview.test` (127.0.0.2): no TXT record"), "{said}");
    assert!(!said.contains("`ns1.preview.test`"), "{said}");
}

/// Authorities pass over a server that is dead, and one whose name nobody finds.
#[tokio::test]
async fn dead_and_broken_name_servers_hold_nothing_up_for_ever() {
    let port = free_port(&["127.0.0.1", "127.0.0.2"]);
    // Nobody listens there; and the zone of the other cannot be loaded.
    let records = "@ NS ns2\nns2 A 127.0.0.2\n@ NS ns.broken.test.\n";
    let broken = "zone \"broken.test\" { type primary; file \"absent\"; };";
    let server = named(port, records, broken).await;
    let asked = dig(server.address, &["ns.broken.test", "A"]).await;
    assert!(asked.contains("SERVFAIL"), "{asked}");
    let provider = in_a_second(&server, port);
    present(&provider, &record("value")).await.expect("seen at the one that lives");
    assert_eq!(texts(server.address, "_acme-challenge.preview.test").await, ["value"]);
}

/// Names that a wildcard covers are not that wildcard's target.
#[tokio::test]
async fn a_wildcard_alias_is_not_followed() {
    let server = named(free_port(&["127.0.0.1"]), "@ A 192.0.2.1\n* CNAME @\n", "").await;
    let provider = provider(server.address, |_| {});
    present(&provider, &record("value")).await.expect("set");
    assert_eq!(texts(server.address, "_acme-challenge.preview.test").await, ["value"]);
    assert_eq!(texts(server.address, "preview.test").await, [""; 0]);
    provider.cleanup(&record("value"), None).await.expect("removed");
    let left = texts(server.address, "_acme-challenge.preview.test").await;
    assert!(!left.contains(&"value".to_owned()), "{left:?}");
}

/// Gives a record one second to be seen.
fn in_a_second(server: &DnsServer, port: u16) -> Rfc2136 {
    let mut settings = settings(server.address);
    settings.timeout = Duration::from_secs(1);
    Rfc2136::new(&update_settings(server.address), &settings).with_port(port)
}

/// What a resolver does not know, it remembers not to know; an authority may ask the same one.
#[tokio::test]
async fn no_resolver_is_asked_for_a_record_that_is_not_there_yet() {
    let records = "_acme-challenge.app CNAME there.challenges\n";
    let server = named(free_port(&["127.0.0.1"]), records, "").await;
    let relay = Relay::start(server.address).await;
    let update = update_settings(server.address);
    let provider = Rfc2136::new(&update, &settings(relay.address)).with_port(server.address.port());
    let app = ChallengeRecord { name: "_acme-challenge.app.preview.test".into(), value: "value".into() };
    for record in [record("value"), app] {
        present(&provider, &record).await.expect("set");
        provider.cleanup(&record, None).await.expect("removed");
    }
    let asked = relay.asked();
    assert!(asked.contains(&"preview.test.".to_owned()), "{asked:?}");
    let early = |name: &&String| name.contains("_acme-challenge") || name.starts_with("there.");
    assert_eq!(asked.iter().find(early), None, "{asked:?}");
}
