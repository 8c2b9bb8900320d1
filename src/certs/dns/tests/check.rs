//! What `oneport check` finds, with BIND as the zone above and as the resolver.

use std::net::SocketAddr;

use super::servers::{DnsServer, KEY, dig, free_port, named, settings};
use crate::certs::dns::DnsError;
use crate::certs::dns::check::{check_with, records_to_add};
use crate::certs::dns::lookup::{Lookup, parse};
use crate::certs::dns::propagation::wait;
use crate::certs::dns::responder::Responder;
use crate::config::{DnsWay, ResponderSettings, Rfc2136Settings, Secret, SecretSource, Settings, TsigHash};
use crate::name::HostName;

fn host(name: &str) -> HostName {
    HostName::parse(name).expect("a host name")
}

/// A gateway for `preview.test` that asks this server.
fn gateway(server: &DnsServer, way: DnsWay) -> Settings {
    let mut gateway = Settings::dev(8443, std::path::Path::new("unused"));
    gateway.base.host = host("preview.test");
    gateway.dns = settings(server.address);
    gateway.dns.way = Some(way);
    gateway
}

fn responder(port: u16) -> DnsWay {
    let listen = vec![SocketAddr::from(([127, 0, 0, 2], port))];
    DnsWay::Responder(ResponderSettings { listen, host: host("gw.preview.test") })
}

/// What is found, one line each.
async fn found(gateway: &Settings, port: u16) -> String {
    let lookup = Lookup::new(&gateway.dns).with_port(port);
    let found = check_with(gateway, &lookup).await;
    let lines = found
        .iter()
        .map(|finding| format!("{} {}\n", if finding.is_bad() { "FAIL" } else { "ok" }, finding.what));
    lines.collect()
}

async fn responder_found(records: &str) -> String {
    let port = free_port(&["127.0.0.1", "127.0.0.2"]);
    let server = named(port, records, "").await;
    let gateway = gateway(&server, responder(port));
    assert_eq!(records_to_add(&gateway), ["_acme-challenge.preview.test. NS gw.preview.test."]);
    found(&gateway, port).await.replace(&format!(":{port}"), ":53")
}

#[tokio::test]
async fn all_is_well() {
    let said = responder_found("gw A 127.0.0.2\n_acme-challenge NS gw").await;
    let wanted = "ok the name server `ns1.preview.test` of `preview.test` has the record `_acme-challenge.preview.test. NS gw.preview.test.`
ok the responder answers at `127.0.0.2:53` over UDP
ok the responder answers at `127.0.0.2:53` over TCP
ok resolvers get the answers for `_acme-challenge.preview.test` from here
";
    assert_eq!(said, wanted);
}

/// Whoever runs `oneport check` may not listen where the gateway may: the answers decide.
#[tokio::test]
async fn what_only_this_command_may_not_do_is_no_fault() {
    let port = free_port(&["127.0.0.1", "127.0.0.2"]);
    let server = named(port, "gw A 127.0.0.2\n_acme-challenge NS gw", "").await;
    let gateway_of = |listen: &str| {
        let mut gateway = gateway(&server, responder(port));
        if let Some(DnsWay::Responder(responder)) = &mut gateway.dns.way {
            responder.listen = vec![SocketAddr::new(listen.parse().expect("an address"), port)];
        }
        gateway
    };
    let elsewhere = gateway_of("192.0.2.1");
    let said = found(&elsewhere, port).await;
    assert!(said.starts_with("FAIL the DNS responder cannot listen on `192.0.2.1:"), "{said}");
    let DnsWay::Responder(running) = responder(port) else { unreachable!() };
    let _running = Responder::start(&running, &gateway_of("127.0.0.2")).expect("bound");
    let said = found(&elsewhere, port).await;
    assert!(!said.contains("FAIL") && said.contains("ok the responder answers"), "{said}");
}

#[tokio::test]
async fn a_missing_record_is_told_as_it_is_to_be_written() {
    let said = responder_found("gw A 127.0.0.2\n* A 127.0.0.2").await;
    assert!(said.starts_with("FAIL the name server `ns1.preview.test` of `preview.test` does not lead here; add the record `_acme-challenge.preview.test. NS gw.preview.test.` there\n"), "{said}");
    let said = responder_found("gw A 127.0.0.2\n* CNAME gw").await;
    assert!(
        said.starts_with("FAIL the name server `ns1.preview.test` of `preview.test` does not lead here"),
        "{said}"
    );
    let said = responder_found("gw A 127.0.0.2\nold A 127.0.0.3\n_acme-challenge NS old").await;
    assert!(said.contains("to `old.preview.test`; let its only NS record be `_acme-challenge"), "{said}");
    let said = responder_found("_acme-challenge NS gw.elsewhere.test.").await;
    assert!(said.contains("`gw.preview.test` has no address; add its A or AAAA record"), "{said}");
}

#[tokio::test]
async fn a_closed_port_is_told_of() {
    let said = responder_found("gw A 127.0.0.3\n_acme-challenge NS gw").await;
    assert!(
        said.contains("FAIL no answer at `127.0.0.3:53` over UDP; let it through the firewall"),
        "{said}"
    );
    assert!(said.contains("FAIL no answer at `127.0.0.3:53` over TCP"), "{said}");
    assert!(!said.contains("resolvers"), "{said}");
    // Another DNS server stands there.
    let said = responder_found("gw A 127.0.0.1\n_acme-challenge NS gw").await;
    assert!(said.contains("FAIL another DNS server answers at `127.0.0.1:53` over UDP; stop it"), "{said}");
}

#[tokio::test]
async fn a_port_that_another_program_holds_is_told_of() {
    let port = free_port(&["127.0.0.1", "127.0.0.2"]);
    let server = named(port, "gw A 127.0.0.2\n_acme-challenge NS gw", "").await;
    let _other = std::net::TcpListener::bind(("127.0.0.2", port)).expect("free");
    let said = found(&gateway(&server, responder(port)), port).await;
    assert!(said.starts_with("FAIL the DNS responder cannot listen on `127.0.0.2:"), "{said}");
    assert!(said.contains("over UDP, since another program holds the port; stop it"), "{said}");
    assert!(!said.contains("firewall"), "{said}");
}

/// The time that is set is the time that a record has.
#[tokio::test]
async fn a_record_is_waited_for_as_long_as_the_settings_say() {
    let server = named(free_port(&["127.0.0.1"]), "", "").await;
    let mut dns = settings(server.address);
    dns.servers = vec![server.address];
    let limit = std::time::Duration::from_millis(750);
    let name = parse("_acme-challenge.preview.test").expect("a name");
    let waited = wait(&Lookup::new(&dns), &name, "value", limit).await.expect_err("nobody set it");
    assert!(matches!(waited, DnsError::NotSeen { waited, .. } if waited >= limit), "{waited:?}");
}

#[tokio::test]
async fn other_ways_are_tried() {
    let server = named(free_port(&["127.0.0.1"]), "", "").await;
    let update = |secret| {
        DnsWay::Rfc2136(Rfc2136Settings {
            host: host("127.0.0.1"),
            port: server.address.port(),
            zone: None,
            key_name: host("oneport"),
            key_secret: SecretSource::Inline(Secret::new(secret)),
            algorithm: TsigHash::Sha256,
        })
    };
    let try_it = async |secret| {
        let mut gateway = gateway(&server, update(secret));
        gateway.dns.servers = vec![server.address];
        found(&gateway, server.address.port()).await
    };
    let said = try_it(KEY).await;
    assert_eq!(
        said,
        "ok a value at `_acme-challenge.preview.test` was set, seen at the zone's own servers, and removed\n"
    );
    let left = dig(server.address, &["+short", "_acme-challenge.preview.test", "TXT"]).await;
    assert_eq!(left, "");
    assert!(try_it("d3Jvbmc=").await.contains("(BADSIG)"));
}
