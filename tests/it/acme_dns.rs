//! Wildcards, proved by records in the DNS: pebble asks a real resolver, which follows the zone above to
//! whoever holds the record.

use std::path::Path;

use serde_json::Value;

use crate::acme::wait_issued;
use crate::support::gateway::{Gateway, Setup};
use crate::support::named::{KEY, Named};
use crate::support::pebble::{Pebble, PebbleSetup, directory, free_port, ordering};
use crate::support::visitor::Curl;
use crate::support::{SOON, poll};

/// Orders for `gw.test` and all names below it, by records only.
fn wildcard(named: &Named, port: u16) -> (Pebble, Setup) {
    let pebble = PebbleSetup::new(named, port, 1).start();
    let directories = vec![directory(&pebble.directory(), &pebble.server_root())];
    let mut setup = ordering(port, &["gw.test", "*.gw.test"], directories);
    setup.set("acme.challenges", vec!["dns-01"]);
    setup.set("dns.resolver", vec![named.address()]);
    (pebble, setup)
}

#[track_caller]
fn check(gateway: &Gateway, pebble: &Pebble, named: &Named) {
    for name in ["gw.test", "*.gw.test"] {
        let is_there =
            |record: &Value| record["message"] == "a certificate is there" && record["name"] == name;
        assert_eq!(gateway.wait_log("a certificate", is_there)["way"], "dns-01");
    }
    let root = pebble.root().display().to_string();
    let visit = |url| Curl::new(gateway).args(&["--cacert", &root]).get(url);
    assert_eq!(visit("https://gw.test/").status, 200);
    assert_eq!(visit("https://any-name.gw.test/").status, 502);
    // A resolver may remember them for the rest of the second.
    poll("the records' end", SOON, || named.texts("_acme-challenge.gw.test").is_empty().then_some(()));
}

/// A program that can `change add NAME. VALUE` and `change delete NAME. VALUE`.
fn script(path: &Path, named: &Named, body: &str) {
    let change = format!(
        "change() {{ printf 'server 127.0.0.1 {}\\nupdate %s %s 1 TXT %s\\nsend\\n' $1 $2 $3 | nsupdate -y hmac-sha256:oneport:{KEY}; }}",
        named.port
    );
    std::fs::write(path, format!("#!/bin/sh\n{change}\n{body}\n")).expect("writable");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
}

#[test]
fn a_wildcard_is_proved_by_our_own_answers() {
    let named = Named::start("edge A 127.0.0.2\n_acme-challenge NS edge");
    let (pebble, mut setup) = wildcard(&named, free_port());
    setup.set("dns.responder", vec![format!("127.0.0.2:{}", named.port)]);
    setup.set("dns.responder_name", "edge.gw.test");
    check(&setup.start(), &pebble, &named);
}

#[test]
fn a_wildcard_is_proved_by_dynamic_update() {
    let named = Named::start("");
    let (pebble, mut setup) = wildcard(&named, free_port());
    setup.set("dns.rfc2136.server", named.address());
    setup.set("dns.rfc2136.key_name", "oneport");
    setup.set("dns.rfc2136.key_secret", KEY);
    setup.set("dns.servers", vec![named.address()]);
    let gateway = setup.start();
    check(&gateway, &pebble, &named);
    assert!(!gateway.stderr().contains(KEY));
}

#[test]
fn a_wildcard_is_proved_by_a_program() {
    let named = Named::start("");
    let (pebble, mut setup) = wildcard(&named, free_port());
    let hook = setup.path("hook");
    let body = "case $1 in present) change add $2 $3;; cleanup) change delete $2 $3;; esac";
    script(&hook, &named, body);
    setup.set("dns.exec", hook.to_str().expect("UTF-8"));
    setup.set("dns.servers", vec![named.address()]);
    check(&setup.start(), &pebble, &named);
}

/// Certbot's hooks, whose second needs what the first said. Proves `*.gw.test` only, at a slow authority.
fn hooked(named: &Named) -> (Pebble, Setup) {
    let port = free_port();
    let pebble =
        PebbleSetup::new(named, port, 1).without("PEBBLE_VA_NOSLEEP").env("PEBBLE_VA_SLEEPTIME", "2").start();
    let directories = vec![directory(&pebble.directory(), &pebble.server_root())];
    let mut setup = ordering(port, &["*.gw.test"], directories);
    setup.set("acme.challenges", vec!["dns-01"]);
    setup.set("dns.resolver", vec![named.address()]);
    setup.set("dns.servers", vec![named.address()]);
    let (auth, cleanup) = (setup.path("auth"), setup.path("cleanup"));
    let name = "_acme-challenge.$CERTBOT_DOMAIN.";
    script(&auth, named, &format!("change add {name} $CERTBOT_VALIDATION && echo id-$CERTBOT_VALIDATION"));
    let body = format!(
        "[ \"$CERTBOT_AUTH_OUTPUT\" = id-$CERTBOT_VALIDATION ] || exit 7\nchange delete {name} $CERTBOT_VALIDATION"
    );
    script(&cleanup, named, &body);
    setup.set("dns.exec", auth.to_str().expect("UTF-8"));
    setup.set("dns.exec_cleanup", cleanup.to_str().expect("UTF-8"));
    setup.set("dns.exec_style", "certbot");
    (pebble, setup)
}

/// Kills the gateway while its record stands and the authority is to look at it.
#[track_caller]
fn kill_while_it_stands(gateway: Gateway, named: &Named) -> Setup {
    let path = gateway.path("state/acme/names/wildcard+gw.test/order.json");
    poll("the record", SOON, || {
        let order: Value = serde_json::from_str(&std::fs::read_to_string(&path).ok()?).ok()?;
        order["record"]["memo"].as_str().filter(|memo| memo.starts_with("id-")).map(drop)
    });
    assert_ne!(named.texts("_acme-challenge.gw.test"), "");
    gateway.kill()
}

#[test]
fn a_record_that_a_killed_process_left_is_removed_by_the_next() {
    let named = Named::start("");
    let (_pebble, setup) = hooked(&named);
    let setup = kill_while_it_stands(setup.start(), &named);
    let gateway = setup.start();
    wait_issued(&gateway, "*.gw.test");
    assert_eq!(named.texts("_acme-challenge.gw.test"), "", "a record was left\n{}", gateway.stderr());
}

#[test]
fn a_record_that_was_left_for_a_name_that_is_no_longer_ordered_is_removed() {
    let named = Named::start("");
    let (_pebble, setup) = hooked(&named);
    let mut setup = kill_while_it_stands(setup.start(), &named);
    setup.set("acme.names", vec!["gw.test"]);
    setup.set("acme.challenges", vec!["tls-alpn-01"]);
    let gateway = setup.start();
    poll("the record's end", SOON, || named.texts("_acme-challenge.gw.test").is_empty().then_some(()));
    drop(gateway);
}

#[test]
fn a_record_that_could_not_be_removed_is_removed_later() {
    let named = Named::start("");
    let (_pebble, mut setup) = wildcard(&named, free_port());
    setup.set("acme.names", vec!["*.gw.test"]);
    let (hook, may) = (setup.path("hook"), setup.path("may"));
    let may_not = format!("[ -e {} ] || exit 5", may.display());
    let body =
        format!("case $1 in present) change add $2 $3;; cleanup) {may_not}; change delete $2 $3;; esac");
    script(&hook, &named, &body);
    setup.set("dns.exec", hook.to_str().expect("UTF-8"));
    setup.set("dns.servers", vec![named.address()]);
    let gateway = setup.start();
    wait_issued(&gateway, "*.gw.test");
    assert_ne!(named.texts("_acme-challenge.gw.test"), "");
    let kept = gateway.path("state/acme/records.json");
    assert!(kept.exists(), "it is forgotten");
    std::fs::write(may, "").expect("ours");
    let gateway = gateway.restart();
    poll("the record's end", SOON, || named.texts("_acme-challenge.gw.test").is_empty().then_some(()));
    poll("the end of the note", SOON, || (!kept.exists()).then_some(()));
    drop(gateway);
}

/// A new user, whose NS record is not there yet, costs no failed validation.
#[test]
fn no_authority_is_asked_before_the_zone_above_leads_here() {
    let named = Named::start("edge A 127.0.0.2");
    let (pebble, mut setup) = wildcard(&named, free_port());
    setup.set("acme.names", vec!["*.gw.test"]);
    setup.set("dns.responder", vec![format!("127.0.0.2:{}", named.port)]);
    setup.set("dns.responder_name", "edge.gw.test");
    setup.set("dns.servers", vec![named.address()]);
    setup.set("dns.timeout", "1s");
    let gateway = setup.start();
    let record = gateway.wait_log("no certificate", |record| record["fault"] == "dns-not-set");
    let said = record["message"].as_str().expect("a text");
    assert!(said.contains("add the record `_acme-challenge.gw.test. NS edge.gw.test.`"), "{said}");
    assert_eq!(pebble.count("Pulled a task from the Tasks queue"), 0, "{}", pebble.process.out);
}
