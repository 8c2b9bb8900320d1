//! Wildcards, proved by records in the DNS: pebble asks a real resolver, which follows the zone above to
//! whoever holds the record.

use serde_json::Value;

use crate::support::gateway::{Gateway, Setup};
use crate::support::named::{KEY, Named};
use crate::support::pebble::{Pebble, PebbleSetup, directory, free_port, ordering};
use crate::support::visitor::Curl;

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
fn check(gateway: &Gateway, pebble: &Pebble) {
    for name in ["gw.test", "*.gw.test"] {
        let is_there =
            |record: &Value| record["message"] == "a certificate is there" && record["name"] == name;
        assert_eq!(gateway.wait_log("a certificate", is_there)["way"], "dns-01");
    }
    let root = pebble.root().display().to_string();
    let visit = |url| Curl::new(gateway).args(&["--cacert", &root]).get(url);
    assert_eq!(visit("https://gw.test/").status, 200);
    assert_eq!(visit("https://any-name.gw.test/").status, 502);
}

#[test]
fn a_wildcard_is_proved_by_our_own_answers() {
    let named = Named::start("edge A 127.0.0.2\n_acme-challenge NS edge");
    let (pebble, mut setup) = wildcard(&named, free_port());
    setup.set("dns.responder", vec![format!("127.0.0.2:{}", named.port)]);
    setup.set("dns.responder_name", "edge.gw.test");
    check(&setup.start(), &pebble);
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
    check(&gateway, &pebble);
    assert!(!gateway.stderr().contains(KEY));
}

#[test]
fn a_wildcard_is_proved_by_a_program() {
    let named = Named::start("");
    let (pebble, mut setup) = wildcard(&named, free_port());
    let hook = setup.path("hook");
    let script = format!(
        "#!/bin/sh\ncase $1 in present) what=add;; cleanup) what=delete;; esac\nprintf 'server 127.0.0.1 {}\\nupdate %s %s 1 TXT %s\\nsend\\n' $what $2 $3 | nsupdate -y hmac-sha256:oneport:{KEY}\n",
        named.port
    );
    std::fs::write(&hook, script).expect("writable");
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    setup.set("dns.exec", hook.to_str().expect("UTF-8"));
    setup.set("dns.servers", vec![named.address()]);
    check(&setup.start(), &pebble);
}
