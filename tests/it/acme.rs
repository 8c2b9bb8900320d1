//! Certificates come by themselves, from pebble: a real ACME server.

use std::time::Duration;

use serde_json::Value;

use crate::support::gateway::{Gateway, Setup};
use crate::support::pebble::{Names, Pebble, PebbleSetup, directory, free_port, ordering};
use crate::support::visitor::Curl;

/// Waits until the gateway says that it has a certificate for this name.
#[track_caller]
pub fn wait_issued(gateway: &Gateway, name: &str) -> Value {
    gateway.wait_log("a certificate", |record| is_issued(record, name))
}

pub fn is_issued(record: &Value, name: &str) -> bool {
    record["message"] == "a certificate is there" && record["name"] == name
}

/// A visit that trusts what the authority makes and nothing else.
#[track_caller]
pub fn visit(gateway: &Gateway, pebble: &Pebble, host: &str) -> u16 {
    let root = pebble.root().display().to_string();
    let response = Curl::new(gateway).args(&["--cacert", &root]).get(&format!("https://{host}/"));
    response.status
}

fn one(port: u16, pebble: &Pebble, name: &str) -> Setup {
    ordering(port, &[name], vec![directory(&pebble.directory(), &pebble.server_root())])
}

#[test]
fn an_address_is_all_that_is_needed() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let mut setup = one(port, &pebble, "gw.test");
    setup.unset("acme", "names");
    let gateway = setup.start();
    for host in ["gw.test", "auth.gw.test", "api.gw.test"] {
        let record = wait_issued(&gateway, host);
        assert_eq!(record["way"], "tls-alpn-01", "{record}");
    }
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
    assert_eq!(visit(&gateway, &pebble, "auth.gw.test"), 404);
    let probe = gateway.wait_log("the probe", |record| {
        record["message"] == "a certificate authority's probe was answered" && record["name"] == "api.gw.test"
    });
    assert_eq!(probe["level"], "INFO");
    // Whoever may read the folder can use the files.
    let chain = std::fs::read_to_string(gateway.path("state/acme/names/gw.test/current/fullchain.pem"));
    assert_eq!(chain.expect("there").matches("BEGIN CERTIFICATE").count(), 2);
}

#[test]
fn a_slow_strict_authority_that_refuses_every_second_nonce_will_do() {
    let (names, port) = (Names::start(), free_port());
    let pebble = PebbleSetup::new(&names, port, 1)
        .without("PEBBLE_VA_NOSLEEP")
        .env("PEBBLE_VA_SLEEPTIME", "2")
        .env("PEBBLE_WFE_NONCEREJECT", "50")
        .start();
    let gateway = one(port, &pebble, "gw.test").start();
    wait_issued(&gateway, "gw.test");
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
}

#[test]
fn http_01_is_answered_before_the_redirect() {
    let (names, port, plain) = (Names::start(), free_port(), free_port());
    let pebble = Pebble::start(&names, port, plain);
    let mut setup = one(port, &pebble, "gw.test");
    setup.set("plain.http", vec![format!("127.0.0.1:{plain}")]);
    setup.set("acme.challenges", vec!["http-01"]);
    let gateway = setup.start();
    assert_eq!(wait_issued(&gateway, "gw.test")["way"], "http-01");
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
}

/// What the single port answers on port 80, where nobody but root may listen; a plain listener elsewhere
/// has the way be tried.
#[test]
fn http_01_is_answered_on_the_single_port() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, 1, port);
    let mut setup = one(port, &pebble, "gw.test");
    setup.set("plain.http", vec!["127.0.0.1:0"]);
    setup.set("acme.challenges", vec!["http-01"]);
    let gateway = setup.start();
    assert_eq!(wait_issued(&gateway, "gw.test")["way"], "http-01");
}

#[test]
fn a_way_that_fails_falls_to_the_next_and_says_why() {
    let (names, port, plain) = (Names::start(), free_port(), free_port());
    // Nobody listens where it looks for TLS.
    let pebble = Pebble::start(&names, free_port(), plain);
    let mut setup = one(port, &pebble, "gw.test");
    setup.set("plain.http", vec![format!("127.0.0.1:{plain}")]);
    let gateway = setup.start();
    assert_eq!(wait_issued(&gateway, "gw.test")["way"], "http-01");
    let record = gateway.wait_log("the reason", |record| record["fault"] == "unreachable");
    let text = record["message"].as_str().expect("text");
    assert!(
        text.contains("cannot reach `gw.test` on port 443") && text.contains("trying http-01 next"),
        "{text}"
    );
}

#[test]
fn one_name_that_always_fails_holds_up_no_other() {
    let (names, port) = (Names::start(), free_port());
    names.lead("bad.gw.test", [127, 0, 0, 9].into());
    let pebble = Pebble::start(&names, port, 1);
    let directories = vec![directory(&pebble.directory(), &pebble.server_root())];
    // More than are ordered at once, and before it in the row.
    let others: Vec<String> = (0..20).map(|number| format!("bad-{number}.test")).collect();
    others.iter().for_each(|name| names.lead(name, [127, 0, 0, 9].into()));
    let all: Vec<&str> = others.iter().map(String::as_str).chain(["bad.gw.test", "gw.test"]).collect();
    let mut setup = ordering(port, &all, directories);
    setup.with_figures();
    let mut gateway = setup.start();
    wait_issued(&gateway, "gw.test");
    let failed = |gateway: &Gateway| {
        gateway.wait_log("the failure", |record| record["failures"] == 1 && record["name"] == "bad.gw.test")
    };
    let record = failed(&gateway);
    assert!(record["message"].as_str().is_some_and(|text| text.contains("127.0.0.9")), "{record}");
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
    // Told of in the status, and remembered: after a restart it is not tried again before its time.
    let status = std::fs::read_to_string(gateway.path("state/acme/names/bad.gw.test/status.json"));
    let status: Value = serde_json::from_str(&status.expect("there")).expect("JSON");
    assert_eq!(
        (&status["failures"], &status["fault"]["fault"]),
        (&1.into(), &"unreachable".into()),
        "{status}"
    );
    let all: Value = serde_json::from_str(&gateway.admin("/status")).expect("JSON");
    let told = |name: &str| {
        let mut orders = all["orders"].as_array().expect("a list").iter();
        orders.find(|order| order["name"] == name).unwrap_or_else(|| panic!("no `{name}` in {all}"))
    };
    let (good, bad) = (told("gw.test"), told("bad.gw.test"));
    assert_eq!((&good["proof"], &good["fault"]), (&"tls-alpn-01".into(), &Value::Null), "{good}");
    assert!(good["renewal"].is_string() && good["not_after"].is_string(), "{good}");
    assert_eq!((&bad["failures"], &bad["not_after"]), (&1.into(), &Value::Null), "{bad}");
    assert_eq!(bad["fault"]["fault"], "unreachable");
    assert!(bad["fault"]["text"].as_str().is_some_and(|text| text.contains("127.0.0.9")), "{bad}");
    assert!(bad["retry"].is_string(), "{bad}");
    gateway = gateway.restart();
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
    gateway.wait_log("the decision", |record| {
        record["name"] == "bad.gw.test" && record["level"] == "INFO" && record["fault"] == "unreachable"
    });
    let is_begun = |record: &&Value| {
        record["message"] == "ordering a certificate"
            && (record["name"] == "bad.gw.test" || record["name"] == "gw.test")
    };
    let orders = gateway.log().iter().filter(is_begun).count();
    assert_eq!(orders, 0, "{}", gateway.stderr());
}

/// A configuration whose authority takes so many seconds to look.
fn slow(seconds: &str) -> (Setup, Pebble, Names) {
    let (names, port) = (Names::start(), free_port());
    let pebble = PebbleSetup::new(&names, port, 1).without("PEBBLE_VA_NOSLEEP");
    let pebble = pebble.env("PEBBLE_VA_SLEEPTIME", seconds).start();
    (one(port, &pebble, "gw.test"), pebble, names)
}

#[test]
fn a_connection_waits_for_its_certificate() {
    let (setup, pebble, _names) = slow("2");
    assert_eq!(visit(&setup.start(), &pebble, "gw.test"), 200);
}

#[test]
fn a_connection_waits_for_its_certificate_no_longer_than_it_may() {
    let (mut setup, pebble, _names) = slow("4");
    setup.set("limits.handshake_timeout", "1500ms");
    let gateway = setup.start();
    let early = Curl::new(&gateway).call("https://gw.test/");
    assert!(early.exit != 0 && early.stderr.contains("unrecognized name"), "{early:?}");
    let said = gateway.wait_reason("no-certificate");
    assert!(said["detail"].as_str().expect("words").contains("is being ordered"), "{said}");
    wait_issued(&gateway, "gw.test");
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
}

#[test]
fn files_of_the_operator_win() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let directories = vec![directory(&pebble.directory(), &pebble.server_root())];
    let mut setup = ordering(port, &["gw.test", "other.test"], directories);
    let leaf = setup.ca.leaf("own", &["gw.test"]);
    setup.certificates(&[(&leaf.cert, &leaf.key)]);
    let gateway = setup.start();
    wait_issued(&gateway, "other.test");
    assert_eq!(Curl::new(&gateway).get("https://gw.test/").status, 200);
    assert_eq!(visit(&gateway, &pebble, "other.test"), 404);
    assert!(!gateway.path("state/acme/names/gw.test/order.json").exists());
    assert!(!gateway.log().iter().any(|record| is_issued(record, "gw.test")));
}

#[test]
fn a_name_is_ordered_as_soon_as_the_operators_files_are_gone() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let mut setup = one(port, &pebble, "gw.test");
    let (own, other) = (setup.ca.leaf("own", &["gw.test"]), setup.ca.leaf("other", &["other.test"]));
    setup.certificates(&[(&own.cert, &own.key)]);
    let gateway = setup.start();
    assert_eq!(Curl::new(&gateway).get("https://gw.test/").status, 200);
    std::fs::rename(&other.key, &own.key).expect("ours");
    std::fs::rename(&other.cert, &own.cert).expect("ours");
    wait_issued(&gateway, "gw.test");
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
}

#[test]
fn an_rsa_key_can_be_asked_for() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let mut setup = one(port, &pebble, "gw.test");
    setup.set("acme.key_type", "rsa2048");
    let gateway = setup.start();
    gateway.wait_log_within(Duration::from_secs(40), "a certificate", |record| is_issued(record, "gw.test"));
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
}
