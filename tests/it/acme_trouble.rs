//! What goes wrong when certificates are ordered: a second authority takes over, limits are kept,
//! and everything is said in one sentence with what to do.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::acme::{visit, wait_issued};
use crate::support::front::{Front, Verdict, problem};
use crate::support::gateway::{Gateway, ONEPORT, Setup};
use crate::support::pebble::{Names, Pebble, PebbleSetup, directory, free_port, ordering};
use crate::support::process::{Output, Process};
use crate::support::{SOON, poll};

/// Waits for the record of a failed attempt.
#[track_caller]
fn wait_failed(gateway: &Gateway, fault: &str) -> String {
    let record = gateway.wait_log("a failure", |record| record["failures"] == 1);
    assert_eq!(record["fault"], fault, "{record}");
    record["message"].as_str().expect("text").to_owned()
}

fn one(port: u16, url: &str, root: &std::path::Path) -> Setup {
    ordering(port, &["gw.test"], vec![directory(url, root)])
}

#[test]
fn a_second_authority_takes_over_when_the_first_is_down() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let dead = format!("https://localhost:{}/dir", free_port());
    let directories =
        vec![directory(&dead, &pebble.server_root()), directory(&pebble.directory(), &pebble.server_root())];
    let gateway = ordering(port, &["gw.test"], directories).start();
    wait_issued(&gateway, "gw.test");
    let record = gateway.wait_log("the reason", |record| record["fault"] == "directory-unreachable");
    let text = record["message"].as_str().expect("text");
    assert!(text.contains("cannot be reached") && text.contains("trying the next directory"), "{text}");
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
}

#[test]
fn a_second_authority_takes_over_when_the_first_limits_us() {
    let (names, port) = (Names::start(), free_port());
    let (limited, other) = (Pebble::start(&names, port, 1), Pebble::start(&names, port, 1));
    let front = Front::start(&limited);
    front.judge(|_, request| match request.uri().path() {
        "/order-plz" => Verdict::Answer(problem(429, "rateLimited", "too many certificates", 3600)),
        _ => Verdict::Pass,
    });
    let directories = vec![
        directory(&front.directory(), &front.root()),
        directory(&other.directory(), &other.server_root()),
    ];
    let gateway = ordering(port, &["gw.test"], directories).start();
    wait_issued(&gateway, "gw.test");
    let record = gateway.wait_log("the reason", |record| record["fault"] == "rate-limited");
    let text = record["message"].as_str().expect("text");
    assert!(text.contains("limits what may be ordered (too many certificates)"), "{text}");
    assert_eq!(visit(&gateway, &other, "gw.test"), 200);
    poll("the limit in the status", SOON, || {
        (status(&gateway)["limited"].as_object()?.len() == 1).then_some(())
    });
}

#[test]
fn a_limit_is_kept_for_as_long_as_the_authority_says() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    front.judge(|_, request| match request.uri().path() {
        "/order-plz" => Verdict::Answer(problem(429, "rateLimited", "too many certificates", 7200)),
        _ => Verdict::Pass,
    });
    let gateway = one(port, &front.directory(), &front.root()).start();
    wait_failed(&gateway, "rate-limited");
    let left = poll("the status", SOON, || minutes_left(&gateway));
    assert!((118..=127).contains(&left), "{left} minutes");
    let before = front.requests();
    let gateway = gateway.restart();
    let record = gateway.wait_log("the decision", |record| {
        record["message"].as_str().is_some_and(|text| text.starts_with("not ordered again before its time"))
    });
    assert_eq!((&record["name"], &record["fault"]), (&"gw.test".into(), &"rate-limited".into()), "{record}");
    assert_eq!(before, front.requests(), "it asked again");
    // Other settings are tried at once, in case they help.
    let mut setup = gateway.kill();
    front.judge(|_, _| Verdict::Pass);
    setup.set("acme.email", "other@example.com");
    let gateway = setup.start();
    // The authority's own limit stays, whatever the settings.
    let record = gateway.wait_log("a failure", |record| record["failures"] == 2);
    assert!(
        record["message"].as_str().is_some_and(|text| text.contains("wants to be left alone")),
        "{record}"
    );
}

#[test]
fn accounts_that_must_be_bound_are() {
    let (names, port) = (Names::start(), free_port());
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let pebble = PebbleSetup::new(&names, port, 1)
        .set("externalAccountBindingRequired", true)
        .set("externalAccountMACKeys", serde_json::json!({ "kid-1": key }))
        .start();
    let unbound = directory(&pebble.directory(), &pebble.server_root());
    let bound = |key: &str| {
        let mut bound = unbound.clone();
        let table = bound.as_table_mut().expect("a table");
        table.insert("eab_key_id".to_owned(), "kid-1".into());
        table.insert("eab_key".to_owned(), key.into());
        vec![bound]
    };
    let gateway = ordering(port, &["gw.test"], vec![unbound.clone()]).start();
    let text = wait_failed(&gateway, "not-bound");
    assert!(text.contains("write its `eab_key_id` and `eab_key`"), "{text}");
    // Each change of the settings is tried at once, in the folder that remembers what failed.
    let mut setup = gateway.kill();
    setup.set("acme.directories", bound("c29tZSBvdGhlciBrZXk"));
    let gateway = setup.start();
    gateway.wait_log("a failure", |record| record["failures"] == 2);
    let mut setup = gateway.kill();
    setup.set("acme.directories", bound(key));
    let gateway = setup.start();
    wait_issued(&gateway, "gw.test");
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
    assert!(!gateway.stderr().contains(key));
}

#[test]
fn an_account_that_was_closed_is_told_from_a_name_that_leads_elsewhere() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    front.judge(|_, request| match request.uri().path() {
        "/order-plz" => Verdict::Answer(problem(401, "unauthorized", "account is deactivated", 0)),
        _ => Verdict::Pass,
    });
    let gateway = one(port, &front.directory(), &front.root()).start();
    let text = wait_failed(&gateway, "not-bound");
    assert!(text.contains("remove its file below `acme/accounts`"), "{text}");
}

#[test]
fn a_proof_that_failed_is_not_tried_again_for_a_quarter_of_an_hour() {
    let (names, port) = (Names::start(), free_port());
    // Nobody listens where it looks.
    let pebble = Pebble::start(&names, free_port(), free_port());
    let mut setup = one(port, &pebble.directory(), &pebble.server_root());
    setup.set("plain.http", vec!["127.0.0.1:0"]);
    let gateway = setup.start();
    wait_failed(&gateway, "unreachable");
    // By two ways.
    let left = poll("the status", SOON, || minutes_left(&gateway));
    assert!((29..=38).contains(&left), "{left} minutes");
}

#[test]
fn an_absurd_answer_does_not_end_what_keeps_a_name() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    front.judge(|_, request| match request.uri().path() {
        path if path.starts_with("/my-order/") => Verdict::WithHeader("retry-after", "18446744073709551615"),
        _ => Verdict::Pass,
    });
    let gateway = one(port, &front.directory(), &front.root()).start();
    // It takes the authority at its word, within reason, and goes on later.
    gateway.wait_log("the end of the attempt", |record| {
        record["failures"] == 1 || crate::acme::is_issued(record, "gw.test")
    });
    assert!(!gateway.stderr().contains("panic"), "{}", gateway.stderr());
}

#[test]
fn nothing_is_asked_without_tls() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    front.judge(|_, request| match request.uri().path() {
        "/dir" => {
            Verdict::Change(|body| String::from_utf8_lossy(body).replace("https://", "http://").into_bytes())
        }
        _ => Verdict::Pass,
    });
    let gateway = one(port, &front.directory(), &front.root()).start();
    let text = wait_failed(&gateway, "authority-failed");
    assert!(text.contains("a URL that is not https"), "{text}");
    assert_eq!(front.requests(), 1);
}

#[test]
fn every_trouble_is_one_sentence_with_what_to_do() {
    let (names, port) = (Names::start(), free_port());
    let pebble = PebbleSetup::new(&names, port, 1).set("domainBlocklist", vec!["blocked.test"]).start();
    let url = pebble.directory();
    let stranger = Pebble::start(&names, port, 1);

    let gateway = one(port, &url, &stranger.server_root()).start();
    let text = wait_failed(&gateway, "directory-unreachable");
    let setting = "name its authority in `root` of the directory in `acme.directories`";
    assert!(text.contains("cannot be trusted") && text.contains(setting), "{text}");
    drop(gateway);

    let gateway = one(port, &url.replace("/dir", "/nowhere"), &pebble.server_root()).start();
    let text = wait_failed(&gateway, "directory-unreachable");
    assert!(text.contains("there is no ACME server") && text.contains("(status 404)"), "{text}");
    drop(gateway);

    let directories = vec![directory(&url, &pebble.server_root())];
    let gateway = ordering(port, &["gw.test", "blocked.test"], directories).start();
    let text = wait_failed(&gateway, "rejected");
    assert!(text.contains("does not issue for `blocked.test`") && text.contains("`acme.names`"), "{text}");
    drop(gateway);

    let mut setup = one(port, &url, &pebble.server_root());
    setup.set("acme.challenges", vec!["http-01"]);
    let output = Process::run(&mut setup.command(), SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stderr.contains("`http-01` needs port 80 in `listen`"), "{output:?}");
}

#[test]
fn a_name_without_an_address_is_told_from_another_refusal() {
    let (names, port) = (Names::start(), free_port());
    names.tell("set-default-ipv4", &serde_json::json!({ "ip": "" }));
    let pebble = Pebble::start(&names, port, 1);
    let gateway = one(port, &pebble.directory(), &pebble.server_root()).start();
    let text = wait_failed(&gateway, "wrong-dns");
    assert!(text.contains("finds no address of `gw.test`") && text.contains("A or AAAA record"), "{text}");
}

#[test]
fn an_address_that_the_authority_does_not_take_is_named() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    front.judge(|_, request| match request.uri().path() {
        path if path.starts_with("/my-account/") => {
            Verdict::Answer(problem(400, "invalidContact", "the domain has no MX record", 0))
        }
        _ => Verdict::Pass,
    });
    let gateway = one(port, &front.directory(), &front.root()).start();
    let text = wait_failed(&gateway, "bad-contact");
    assert!(text.contains("`operator@example.com`") && text.contains("`acme.email`"), "{text}");
}

#[test]
fn a_root_that_is_not_there_is_found_before_the_start() {
    let setup = one(free_port(), "https://ca.test/dir", std::path::Path::new("/absent/root.pem"));
    let output = Process::run(setup.command().arg("--check"), SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        output.stderr.contains("acme.directories: the root `/absent/root.pem` cannot be read"),
        "{output:?}"
    );
}

/// What is done by hand while the gateway runs.
#[track_caller]
fn renew(gateway: &Gateway, name: &str) -> Output {
    let config = gateway.path("oneport.toml");
    Process::run(Command::new(ONEPORT).args(["certs", "renew", name, "--config"]).arg(config), SOON)
}

#[test]
fn a_root_that_was_replaced_counts_without_a_restart() {
    let (names, port) = (Names::start(), free_port());
    let (pebble, stranger) = (Pebble::start(&names, port, 1), Pebble::start(&names, port, 1));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path().join("root.pem");
    std::fs::copy(stranger.server_root(), &root).expect("ours");
    let gateway = one(port, &pebble.directory(), &root).start();
    let text = wait_failed(&gateway, "directory-unreachable");
    assert!(text.contains("cannot be trusted"), "{text}");
    let again = renew(&gateway, "gw.test");
    assert!(again.stderr.contains("cannot be trusted"), "{again:?}");
    std::fs::copy(pebble.server_root(), &root).expect("ours");
    let renewed = renew(&gateway, "gw.test");
    assert!(renewed.status.success(), "{renewed:?}");
}

#[test]
fn authorities_of_the_system_that_were_replaced_count_for_cloudflare_without_a_restart() {
    let (names, port) = (Names::start(), free_port());
    let (pebble, stranger) = (Pebble::start(&names, port, 1), Pebble::start(&names, port, 1));
    let mut setup =
        ordering(port, &["*.gw.test"], vec![directory(&pebble.directory(), &pebble.server_root())]);
    setup.set("dns.cloudflare.token", "token");
    // Any server of HTTPS will do: what it says is no answer of the API's.
    setup.set("dns.cloudflare.api", pebble.directory().trim_end_matches("/dir"));
    setup.set("dns.resolver", vec![format!("127.0.0.1:{}", names.port)]);
    setup.set("dns.servers", vec![format!("127.0.0.1:{}", names.port)]);
    let trusted = setup.path("trusted.pem");
    std::fs::copy(stranger.server_root(), &trusted).expect("ours");
    let mut command = setup.command();
    command.env("SSL_CERT_FILE", &trusted).env_remove("SSL_CERT_DIR");
    let gateway = setup.start_with(command);
    let text = wait_failed(&gateway, "dns-not-set");
    assert!(text.contains("cannot be trusted"), "{text}");
    std::fs::copy(pebble.server_root(), &trusted).expect("ours");
    let said = renew(&gateway, "*.gw.test");
    assert!(said.stderr.contains("Cloudflare did not list the zones"), "{said:?}");
}

#[test]
fn an_account_that_is_not_known_any_more_is_made_anew_also_with_a_new_address() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    let gateway = one(port, &front.directory(), &front.root()).start();
    wait_issued(&gateway, "gw.test");
    let mut setup = gateway.kill();
    let first = std::sync::OnceLock::<String>::new();
    front.judge(move |_, request| match request.uri().path() {
        path if path.starts_with("/my-account/") && first.get_or_init(|| path.to_owned()) == path => {
            Verdict::Answer(problem(400, "accountDoesNotExist", "unable to find account", 0))
        }
        _ => Verdict::Pass,
    });
    setup.set("acme.email", "other@example.com");
    setup.set("acme.names", vec!["gw.test", "b.test"]);
    let gateway = setup.start();
    wait_failed(&gateway, "no-account");
    let renewed = renew(&gateway, "b.test");
    assert!(renewed.status.success(), "{renewed:?}");
}

#[test]
fn a_limit_on_what_all_need_is_told_to_one_and_kept_by_all() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    let asked = Arc::<AtomicUsize>::default();
    let count = asked.clone();
    front.judge(move |_, request| match request.uri().path() {
        "/sign-me-up" => {
            count.fetch_add(1, Ordering::SeqCst);
            Verdict::Answer(problem(429, "rateLimited", "too many accounts", 7200))
        }
        _ => Verdict::Pass,
    });
    let all = ["gw.test", "a.test", "b.test", "c.test"];
    let gateway = ordering(port, &all, vec![directory(&front.directory(), &front.root())]).start();
    for name in all {
        let record =
            gateway.wait_log("a failure", |record| record["failures"] == 1 && record["name"] == name);
        assert_eq!(record["fault"], "rate-limited", "{record}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "each asked by itself");
    let left = poll("the status", SOON, || minutes_left(&gateway));
    assert!((118..=127).contains(&left), "{left} minutes");
}

#[test]
fn a_gateway_keeps_to_the_pause_of_another_with_the_same_folder() {
    let (names, port) = (Names::start(), free_port());
    // Nobody listens where it looks.
    let pebble = Pebble::start(&names, free_port(), free_port());
    let first = one(port, &pebble.directory(), &pebble.server_root()).start();
    wait_failed(&first, "unreachable");
    poll("the status", SOON, || minutes_left(&first));
    let looked = pebble.count("Pulled a task from the Tasks queue");
    let mut setup = one(free_port(), &pebble.directory(), &pebble.server_root());
    setup.set("state_dir", first.path("state").to_str().expect("UTF-8"));
    let second = setup.start();
    let record = second.wait_log("the decision", |record| record["name"] == "gw.test");
    let text = record["message"].as_str().expect("text");
    assert!(text.starts_with("not ordered again before its time"), "{record}");
    assert_eq!(pebble.count("Pulled a task from the Tasks queue"), looked);
}

/// How long the name is left alone after a failure; `None` while that is not written.
fn minutes_left(gateway: &Gateway) -> Option<i64> {
    let status = status(gateway);
    status["fault"].as_object()?;
    let at = OffsetDateTime::parse(status["retry_at"].as_str()?, &Rfc3339).expect("a date");
    Some((at - OffsetDateTime::now_utc()).whole_minutes())
}

fn status(gateway: &Gateway) -> Value {
    let text = std::fs::read_to_string(gateway.path("state/acme/names/gw.test/status.json")).expect("there");
    serde_json::from_str(&text).expect("JSON")
}
