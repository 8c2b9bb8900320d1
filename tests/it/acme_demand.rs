//! Certificates that are ordered when somebody first asks for them, and what the operator sees of
//! all certificates.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::acme::{visit, wait_issued};
use crate::support::agent::{Agent, OpenSsh, Via, host};
use crate::support::backend::Backend;
use crate::support::front::{Front, Verdict};
use crate::support::gateway::{Gateway, ONEPORT, Setup};
use crate::support::pebble::{Names, Pebble, directory, free_port, ordering};
use crate::support::process::{Output, Process};
use crate::support::visitor::{Curl, tls, tls_config};
use crate::support::{SOON, poll};

/// Clients that knock at once.
const CROWD: usize = 1000;

/// A configuration that orders for the base host only, and takes agents without TLS.
fn without_wildcard(port: u16, directory: toml::Value) -> Setup {
    let mut setup = ordering(port, &["gw.test"], vec![directory]);
    setup.set("plain.ssh", vec!["127.0.0.1:0"]);
    setup
}

fn of(pebble: &Pebble) -> toml::Value {
    directory(&pebble.directory(), &pebble.server_root())
}

fn offer(gateway: &Gateway, name: &str, backend: &Backend) -> Agent {
    OpenSsh::new(gateway).via(Via::PlainListener).forward(&format!("/{name}"), backend.address()).start()
}

fn made(pebble: &Pebble) -> usize {
    pebble.count("Issued certificate serial")
}

fn refusal(gateway: &Gateway, host: &str) -> Value {
    assert!(tls(gateway, Some(host), &["http/1.1"]).is_err(), "`{host}` has a certificate");
    gateway.wait_log("the refusal", |record| record["reason"] == "no-certificate" && record["sni"] == host)
}

/// How many of so many handshakes at once came to an end.
fn knock(gateway: &Gateway, pebble: &Pebble, host: &str) -> usize {
    let config = tokio_rustls::TlsConnector::from(Arc::new(tls_config(pebble.root(), &["http/1.1"])));
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let address = gateway.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let one = || {
            let (config, name) = (config.clone(), name.clone());
            async move { config.connect(name, TcpStream::connect(address).await?).await.map(drop) }
        };
        let done =
            tokio::time::timeout(SOON, futures_util::future::join_all((0..CROWD).map(|_| one()))).await;
        done.expect("in time").into_iter().filter(std::io::Result::is_ok).count()
    })
}

#[test]
fn a_preview_gets_its_certificate_at_the_first_knock_and_a_crowd_gets_one() {
    let (names, port, backend) = (Names::start(), free_port(), Backend::start());
    let pebble = Pebble::start(&names, port, 1);
    let mut setup = without_wildcard(port, of(&pebble));
    setup.set("limits.connections_per_address", 4 * i64::try_from(CROWD).expect("small"));
    let gateway = setup.start();
    wait_issued(&gateway, "gw.test");
    // Nobody offers it.
    let stranger = refusal(&gateway, &host("web"));
    assert!(
        stranger["detail"].as_str().expect("words").contains("nothing is offered under it"),
        "{stranger}"
    );
    assert!(refusal(&gateway, "other.example")["detail"].is_string());
    assert_eq!(made(&pebble), 1);

    let _agent = offer(&gateway, "web", &backend);
    assert_eq!(knock(&gateway, &pebble, &host("web")), CROWD);
    wait_issued(&gateway, &host("web"));
    assert_eq!(made(&pebble), 2, "one order for all");
    assert_eq!(visit(&gateway, &pebble, &format!("{}/small", host("web"))), 200);
}

#[test]
fn orders_on_demand_are_bounded_also_over_a_restart() {
    let (names, port, backend) = (Names::start(), free_port(), Backend::start());
    let pebble = Pebble::start(&names, port, 1);
    let mut setup = without_wildcard(port, of(&pebble));
    setup.set("acme.on_demand_per_week", 1);
    let gateway = setup.start();
    let _one = offer(&gateway, "one", &backend);
    let _two = offer(&gateway, "two", &backend);
    assert_eq!(visit(&gateway, &pebble, &format!("{}/small", host("one"))), 200);
    let limited = refusal(&gateway, &host("two"));
    let detail = limited["detail"].as_str().expect("words").to_owned();
    assert!(detail.contains("1 a week are the most (`acme.on_demand_per_week`)"), "{detail}");
    let noted = gateway.path("state/acme/on-demand.json");
    let begun = || serde_json::from_str::<Vec<i64>>(&std::fs::read_to_string(&noted).ok()?).ok();
    poll("the note", SOON, || begun().filter(|begun| begun.len() == 1));

    let gateway = gateway.restart();
    let _one = offer(&gateway, "one", &backend);
    let _two = offer(&gateway, "two", &backend);
    // What was ordered before costs nothing.
    assert_eq!(visit(&gateway, &pebble, &format!("{}/small", host("one"))), 200);
    refusal(&gateway, &host("two"));
    assert_eq!(made(&pebble), 2);
}

/// What failed before is not ordered before its time, and what is not ordered costs nothing.
#[test]
fn only_orders_that_are_begun_count() {
    let (names, port, backend) = (Names::start(), free_port(), Backend::start());
    let pebble = Pebble::start(&names, port, 1);
    names.lead(&host("one"), "127.0.0.9".parse().expect("literal"));
    let mut setup = without_wildcard(port, of(&pebble));
    setup.set("acme.on_demand_per_week", 2);
    let mut gateway = setup.start();
    let mut agent = offer(&gateway, "one", &backend);
    refusal(&gateway, &host("one"));
    for _ in 0..2 {
        drop(agent);
        gateway = gateway.restart();
        agent = offer(&gateway, "one", &backend);
        let limited = refusal(&gateway, &host("one"));
        let detail = limited["detail"].as_str().expect("words");
        assert!(detail.contains("cannot reach") && !detail.contains("are the most"), "{detail}");
    }
    let _two = offer(&gateway, "two", &backend);
    assert_eq!(visit(&gateway, &pebble, &format!("{}/small", host("two"))), 200);
}

#[test]
fn while_it_is_being_made_the_page_says_so() {
    let (names, port, backend) = (Names::start(), free_port(), Backend::start());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    let mut setup = without_wildcard(port, directory(&front.directory(), &front.root()));
    setup.set("tls.default", "gw.test");
    setup.set("limits.handshake_timeout", "2s");
    let gateway = setup.start();
    wait_issued(&gateway, "gw.test");
    front.judge(|_, _| Verdict::PassAndHold);
    let _agent = offer(&gateway, "web", &backend);
    let response = Curl::new(&gateway).args(&["-k"]).get(&format!("https://{}/small", host("web")));
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.text().contains("is being ordered") && response.text().contains("no-certificate"));
    assert_eq!(response.header("retry-after"), Some("10"));
    assert_eq!(backend.requests(), 0);
}

fn certs(config: &Path, arguments: &[&str]) -> Output {
    Process::run(Command::new(ONEPORT).arg("certs").args(arguments).arg("--config").arg(config), SOON)
}

#[test]
fn certificates_are_listed_and_renewed_by_hand() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let mut setup = ordering(port, &["gw.test", "bad.test", "own.test"], vec![of(&pebble)]);
    let own = setup.ca.leaf("own", &["own.test"]);
    setup.certificates(&[(&own.cert, &own.key)]);
    names.lead("bad.test", "127.0.0.9".parse().expect("literal"));
    let gateway = setup.start();
    let config = gateway.path("oneport.toml");
    wait_issued(&gateway, "gw.test");
    gateway.wait_log("the fault", |record| record["name"] == "bad.test" && record["level"] == "WARN");

    let listed = certs(&config, &[]);
    assert!(listed.status.success(), "{listed:?}");
    let block = |name: &str| {
        let mut blocks = listed.stdout.split("\n\n");
        blocks
            .find(|block| block.trim_start().starts_with(name))
            .unwrap_or_else(|| panic!("no {name} in {listed:?}"))
    };
    assert!(block("own.test").contains("a file of the operator's"), "{listed:?}");
    let good = block("gw.test");
    for part in ["issuer   Pebble", "ends     20", "proof    tls-alpn-01", "renewal  20"] {
        assert!(good.contains(part), "`{part}` is not in {good}");
    }
    let bad = block("bad.test");
    assert!(bad.contains("not there yet") && bad.contains("fault ") && bad.contains("retry "), "{bad}");

    let before = made(&pebble);
    let renewed = certs(&config, &["renew", "gw.test"]);
    assert!(renewed.status.success() && renewed.stdout.contains("tls-alpn-01"), "{renewed:?}");
    assert_eq!(made(&pebble), before + 1);
    let failed = certs(&config, &["renew", "bad.test"]);
    assert!(!failed.status.success() && failed.stderr.contains("was not renewed"), "{failed:?}");
    let own = certs(&config, &["renew", "own.test"]);
    assert!(own.stderr.contains("a certificate in `tls.certificates` covers `own.test`"), "{own:?}");
    let unknown = certs(&config, &["renew", "nobody.test"]);
    assert!(unknown.stderr.contains("no certificate is ordered for `nobody.test`"), "{unknown:?}");
    let _setup = gateway.kill();
    let alone = certs(&config, &["renew", "gw.test"]);
    assert!(!alone.status.success() && alone.stderr.contains("no gateway took the request up"), "{alone:?}");
}
