//! The gateway's own answers, as `dig` sees them, and through a resolver that a zone's NS record
//! leads here.

use std::net::SocketAddr;

use tokio::io::AsyncReadExt as _;

use super::servers::{dig, free_port, named, record, settings};
use crate::certs::dns::lookup::{Lookup, parse};
use crate::certs::dns::responder::Responder;
use crate::certs::dns::{ChallengeRecord, DnsProvider as _, propagation};
use crate::config::{ResponderSettings, Settings};
use crate::name::HostName;

const NAME: &str = "_acme-challenge.preview.test";

fn gateway() -> Settings {
    let mut gateway = Settings::dev(8443, std::path::Path::new("unused"));
    gateway.base.host = HostName::parse("preview.test").expect("a host name");
    gateway
}

fn start(listen: SocketAddr) -> (Responder, SocketAddr) {
    let host = HostName::parse("gw.preview.test").expect("a host name");
    let settings = ResponderSettings { listen: vec![listen], host };
    let (responder, bound) = Responder::start(&settings, &gateway()).expect("bound");
    (responder, bound[0])
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[tokio::test]
async fn both_values_are_shown_over_udp_and_tcp_in_the_case_that_was_asked_for() {
    let (responder, at) = start(any_port());
    responder.set(&record("first")).await.expect("set");
    responder.set(&record("second")).await.expect("set");
    for over in ["+notcp", "+tcp"] {
        let said = dig(at, &["+short", over, NAME, "TXT"]).await;
        assert_eq!(said, "\"first\"\n\"second\"\n");
    }
    let said = dig(at, &["+noall", "+answer", "+question", "_aCmE-ChAlLeNgE.pReViEw.TeSt", "TXT"]).await;
    assert_eq!(said.matches("_aCmE-ChAlLeNgE.pReViEw.TeSt.").count(), 3, "{said}");
    responder.cleanup(&record("first"), None).await.expect("removed");
    assert_eq!(dig(at, &["+short", NAME, "TXT"]).await, "\"second\"\n");
}

#[tokio::test]
async fn it_answers_as_the_server_of_a_zone_does() {
    let (_responder, at) = start(any_port());
    let ask = |arguments: &'static [&'static str]| dig(at, arguments);
    assert_eq!(ask(&["+short", NAME, "NS"]).await, "gw.preview.test.\n");
    assert!(ask(&["+short", NAME, "SOA"]).await.starts_with("gw.preview.test. hostmaster.gw.preview.test. "));
    for kind in ["CAA", "A", "AAAA", "DS", "DNSKEY", "TXT"] {
        let said = dig(at, &[NAME, kind]).await;
        assert!(said.contains("status: NOERROR") && said.contains("flags: qr aa rd;"), "{said}");
        assert!(said.contains("ANSWER: 0, AUTHORITY: 1") && said.contains("IN\tSOA\tgw."), "{said}");
    }
    let below = ask(&["below._acme-challenge.preview.test", "TXT"]).await;
    assert!(below.contains("status: NXDOMAIN") && below.contains("flags: qr aa"), "{below}");
    for refused in [&["preview.test", "A"][..], &["example.com", "TXT"], &["version.bind", "CH", "TXT"]] {
        let said = dig(at, refused).await;
        assert!(said.contains("status: REFUSED") && said.contains("flags: qr rd;"), "{said}");
    }
    let transfer = ask(&["+noall", "+comments", NAME, "AXFR"]).await;
    assert!(transfer.contains("Transfer failed"), "{transfer}");
    let version = ask(&["+edns=1", "+noednsnegotiation", NAME, "TXT"]).await;
    assert!(version.contains("status: BADVERS") && version.contains("EDNS: version: 0"), "{version}");
    let update = ask(&["+opcode=UPDATE", NAME, "SOA"]).await;
    assert!(update.contains("status: NOTIMP"), "{update}");
}

#[tokio::test]
async fn what_does_not_fit_is_fetched_over_tcp() {
    let (responder, at) = start(any_port());
    for index in 0..30 {
        responder.set(&record(&format!("{index:0>43}"))).await.expect("set");
    }
    let said = dig(at, &["+short", NAME, "TXT"]).await;
    assert_eq!(said.lines().count(), 30, "{said}");
    let said = dig(at, &["+ignore", NAME, "TXT"]).await;
    assert!(said.contains("flags: qr aa tc rd;"), "{said}");
}

/// BIND holds the zone above, and a resolver in it follows the NS record to the responder, as those
/// of certificate authorities do.
#[tokio::test]
async fn a_resolver_follows_the_delegation() {
    let port = free_port(&["127.0.0.1", "127.0.0.2"]);
    let records = "gw A 127.0.0.2\n_acme-challenge NS gw\n* A 192.0.2.1\n";
    let server = named(port, records, "").await;
    let (responder, at) = start(([127, 0, 0, 2], port).into());
    assert_eq!(at.port(), port);
    responder.set(&record("first")).await.expect("set");
    responder.set(&record("second")).await.expect("set");
    let said = dig(server.address, &["+short", NAME, "TXT"]).await;
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["\"first\"", "\"second\""]);
    // The checks before an order go the same way.
    let lookup = Lookup::new(&settings(server.address)).with_port(port);
    let name = parse(NAME).expect("a name");
    assert_eq!(lookup.zone_of(&name).await.expect("found"), name);
    let soon = std::time::Duration::from_secs(5);
    propagation::wait(&lookup, &name, "second", soon).await.expect("seen");
    let caa = dig(server.address, &[NAME, "CAA"]).await;
    assert!(caa.contains("status: NOERROR") && caa.contains("ANSWER: 0"), "{caa}");
}

/// An authority that is told to look before counts that against the name.
#[tokio::test]
async fn nobody_is_told_to_look_before_the_zone_above_leads_here() {
    let port = free_port(&["127.0.0.1", "127.0.0.2"]);
    let seen = async |records: &str, name: &str| {
        let server = named(port, records, "").await;
        let mut gateway = gateway();
        gateway.dns = settings(server.address);
        gateway.dns.timeout = std::time::Duration::from_millis(300);
        let settings = ResponderSettings {
            listen: vec![([127, 0, 0, 2], port).into()],
            host: HostName::parse("gw.preview.test").expect("a host name"),
        };
        let (mut responder, _) = Responder::start(&settings, &gateway).expect("bound");
        responder.lookup.set_port(port);
        let record = ChallengeRecord { name: name.to_owned(), value: "value".to_owned() };
        responder.set(&record).await.expect("set");
        responder.seen(&record).await.map_err(|error| error.to_string())
    };
    let said = seen("gw A 127.0.0.2\n", NAME).await.expect_err("no record");
    let wanted = "`_acme-challenge.preview.test` does not lead here (`ns1.preview.test` has no such record); add the record `_acme-challenge.preview.test. NS gw.preview.test.` in the zone above it";
    assert!(said.starts_with(wanted), "{said}");
    let said = seen("gw A 127.0.0.2\n_acme-challenge NS ns1\n", NAME).await.expect_err("elsewhere");
    assert!(said.contains("(`ns1.preview.test` leads to `ns1.preview.test`)"), "{said}");
    let app = "_acme-challenge.app.preview.test";
    let said = seen("gw A 127.0.0.2\n", app).await.expect_err("no record");
    let wanted = "add the record `_acme-challenge.app.preview.test. CNAME _acme-challenge.preview.test.`";
    assert!(said.contains(wanted), "{said}");
    // By the name in the settings, by another name of this host, and by a CNAME.
    let delegated = "gw A 127.0.0.2\n_acme-challenge NS gw\n_acme-challenge.app CNAME _acme-challenge\n";
    assert_eq!(seen(delegated, NAME).await, Ok(()));
    assert_eq!(seen(delegated, app).await, Ok(()));
    assert_eq!(seen("other A 127.0.0.2\n_acme-challenge NS other\n", NAME).await, Ok(()));
}

/// As listeners' lists, these are written for machines with and without IPv6.
#[tokio::test]
async fn an_address_of_a_kind_that_the_system_has_not_is_passed_over() {
    let settings = |listen: &[&str]| ResponderSettings {
        listen: listen.iter().map(|at| at.parse().expect("an address")).collect(),
        host: HostName::parse("gw.preview.test").expect("a host name"),
    };
    let started =
        |listen: &[&str]| Responder::start(&settings(listen), &gateway()).map(|(_, bound)| bound.len());
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    assert_eq!(started(&["127.0.0.1:0", "[::1]:0"]).ok(), Some(if has_ipv6 { 2 } else { 1 }));
    assert_eq!(started(&["[::1]:0"]).is_ok(), has_ipv6);
    // One that is nobody's is a fault all the same.
    assert!(started(&["127.0.0.1:0", "192.0.2.1:0"]).is_err());
}

#[tokio::test]
async fn a_held_port_is_told_of_with_what_to_do() {
    let (_responder, at) = start(any_port());
    let host = HostName::parse("gw.preview.test").expect("a host name");
    let settings = ResponderSettings { listen: vec![at], host };
    let gateway = Settings::dev(8443, std::path::Path::new("unused"));
    let said = Responder::start(&settings, &gateway).expect_err("held").to_string();
    assert!(said.contains("another program holds this port"), "{said}");
}

#[tokio::test]
async fn connections_are_bounded_and_end_with_the_responder() {
    let (responder, at) = start(any_port());
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(tokio::net::TcpStream::connect(at).await.expect("accepted"));
    }
    let mut over = tokio::net::TcpStream::connect(at).await.expect("accepted");
    assert_eq!(over.read(&mut [0]).await.unwrap_or(0), 0, "one too many was kept");
    drop(responder);
    for mut stream in held {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
}
