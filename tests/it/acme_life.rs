//! The life of an ordered certificate: renewed by time and by the authority's word, kept over
//! restarts and kills, ordered once by two gateways.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::acme::{is_issued, visit, wait_issued};
use crate::support::backend::Backend;
use crate::support::front::{Front, Verdict, problem};
use crate::support::gateway::{Gateway, Setup};
use crate::support::pebble::{Names, Pebble, PebbleSetup, directory, free_port, ordering};
use crate::support::process::Process;
use crate::support::visitor::Curl;
use crate::support::{SOON, poll};

fn one(port: u16, pebble: &Pebble, names: &[&str]) -> Setup {
    ordering(port, names, vec![directory(&pebble.directory(), &pebble.server_root())])
}

fn through(port: u16, front: &Front) -> Setup {
    ordering(port, &["gw.test"], vec![directory(&front.directory(), &front.root())])
}

fn issued(gateway: &Gateway, name: &str) -> usize {
    gateway.log().iter().filter(|record| is_issued(record, name)).count()
}

/// How many certificates an authority has made.
fn made(pebble: &Pebble) -> usize {
    pebble.count("Issued certificate serial")
}

/// How many accounts it has.
fn accounts(pebble: &Pebble) -> usize {
    pebble.count("accounts in memory")
}

/// Leads `app.gw.test` to a service.
fn with_app(mut setup: Setup, backend: &Backend) -> Setup {
    let mut route = toml::Table::new();
    route.insert("host".to_owned(), "app.gw.test".into());
    route.insert("to".to_owned(), format!("http://{}", backend.address()).into());
    setup.set("routes", vec![toml::Value::from(route)]);
    setup
}

/// A visitor of `app.gw.test` whose answer ends when the backend lets go.
fn hold(gateway: &Gateway, pebble: &Pebble, backend: &Backend) -> Process {
    wait_issued(gateway, "app.gw.test");
    let root = pebble.root().display().to_string();
    let mut held: Command = Curl::new(gateway).args(&["--cacert", &root]).build("https://app.gw.test/held");
    let held = Process::start(&mut held);
    poll("the request at the service", SOON, || (backend.requests() > 0).then_some(()));
    held
}

#[test]
fn a_short_certificate_is_renewed_under_an_open_stream() {
    let (names, port, backend) = (Names::start(), free_port(), Backend::start());
    let pebble = PebbleSetup::new(&names, port, 1).set("certificateValidityPeriod", 4).start();
    let setup = one(port, &pebble, &["gw.test", "app.gw.test"]);
    let gateway = with_app(setup, &backend).start();
    let mut held = hold(&gateway, &pebble, &backend);
    poll("renewals", SOON, || (issued(&gateway, "app.gw.test") >= 3).then_some(()));
    assert_eq!(visit(&gateway, &pebble, "app.gw.test/small"), 200);
    backend.release();
    assert_eq!(held.finish(SOON).stdout, "let go");
    assert!(held.has_ended().is_some_and(|status| status.success()));
    // The one before stays beside it; older ones go.
    let folder = std::fs::read_dir(gateway.path("state/acme/names/app.gw.test")).expect("there");
    let numbered = folder.filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("00"))
    });
    assert_eq!(numbered.count(), 2);
}

/// Adds to a directory what pebble has not: where to ask for renewal windows.
fn with_renewal_info(body: &[u8]) -> Vec<u8> {
    let mut directory: Value = serde_json::from_slice(body).expect("a directory");
    let nonce = directory["newNonce"].as_str().expect("a URL").to_owned();
    directory["renewalInfo"] = nonce.replace("nonce-plz", "renewal-info").into();
    directory.to_string().into_bytes()
}

#[test]
fn the_authority_says_when_to_renew_and_open_streams_go_on() {
    let (names, port, backend) = (Names::start(), free_port(), Backend::start());
    // By its lifetime it is due after twenty seconds; it is not renewed before a tenth of it is over.
    let pebble = PebbleSetup::new(&names, port, 1).set("certificateValidityPeriod", 30).start();
    let front = Front::start(&pebble);
    let first = parking_lot::Mutex::<Vec<String>>::default();
    front.judge(move |_, request| match request.uri().path() {
        "/dir" => Verdict::Change(with_renewal_info),
        path if path.starts_with("/renewal-info/") => {
            // What was ordered first for each of the names is to be renewed at once, and nothing else.
            let mut first = first.lock();
            if first.len() < 2 && !first.iter().any(|known| known == path) {
                first.push(path.to_owned());
            }
            let is_first = first.iter().any(|known| known == path);
            let day = |days| {
                (OffsetDateTime::now_utc() + time::Duration::days(days)).format(&Rfc3339).expect("a date")
            };
            let (start, end) = if is_first { (day(-2), day(-1)) } else { (day(10), day(11)) };
            let body = json!({ "suggestedWindow": { "start": start, "end": end } });
            Verdict::Answer(http::Response::new(Bytes::from(body.to_string())))
        }
        _ => Verdict::Pass,
    });
    let directories = vec![directory(&front.directory(), &front.root())];
    let setup = ordering(port, &["gw.test", "app.gw.test"], directories);
    let gateway = with_app(setup, &backend).start();
    let mut held = hold(&gateway, &pebble, &backend);
    assert_eq!(issued(&gateway, "app.gw.test"), 1, "the stream is younger than the renewal");
    poll("the renewal", SOON, || (issued(&gateway, "app.gw.test") == 2).then_some(()));
    let status = || -> Option<Value> {
        let text = std::fs::read_to_string(gateway.path("state/acme/names/app.gw.test/status.json")).ok()?;
        serde_json::from_str(&text).ok()
    };
    let status = poll("the next window", SOON, || status().filter(|status| status["window"].is_object()));
    assert!(status["renew_at"].as_str() >= status["window"]["start"].as_str(), "{status}");
    assert!(status["renew_at"].as_str() <= status["window"]["end"].as_str(), "{status}");
    let small = visit(&gateway, &pebble, "app.gw.test/small");
    assert_eq!((issued(&gateway, "app.gw.test"), small), (2, 200));
    backend.release();
    assert_eq!(held.finish(SOON).stdout, "let go");
    assert!(held.has_ended().is_some_and(|status| status.success()));
}

#[test]
fn the_account_and_the_certificate_outlive_a_restart() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let gateway = one(port, &pebble, &["gw.test"]).start();
    wait_issued(&gateway, "gw.test");
    let account = || {
        let mut files = std::fs::read_dir(gateway.path("state/acme/accounts")).expect("there");
        let file = files.find_map(|entry| Some(entry.ok()?.path()).filter(|path| path.extension().is_some()));
        let text = std::fs::read_to_string(file.expect("an account")).expect("readable");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let before = account();
    assert_eq!(before["contact"], "operator@example.com");
    let mut setup = gateway.kill();
    setup.set("acme.names", vec!["gw.test", "more.test"]);
    setup.set("acme.email", "other@example.com");
    let gateway = setup.start();
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200, "it is there from the start");
    wait_issued(&gateway, "more.test");
    let mut files = std::fs::read_dir(gateway.path("state/acme/accounts")).expect("there");
    let file = files.find_map(|entry| Some(entry.ok()?.path()).filter(|path| path.extension().is_some()));
    let text = std::fs::read_to_string(file.expect("an account")).expect("readable");
    let after: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&before["id"], &before["key"]), (&after["id"], &after["key"]));
    assert_eq!(after["contact"], "other@example.com");
    assert_eq!((issued(&gateway, "gw.test"), made(&pebble)), (0, 2));
}

/// Kills the gateway as soon as the authority has heard its `step`th request, whose answer never
/// comes. Gives the setup back, and whether it came to that before there was a certificate.
fn kill_at(setup: Setup, front: &Front, step: usize) -> (Setup, bool) {
    front.judge(move |count, _| if count == step { Verdict::PassAndHold } else { Verdict::Pass });
    let gateway = setup.start();
    let is_held =
        poll("a step of the order", SOON, || match (front.requests() > step, issued(&gateway, "gw.test")) {
            (true, _) => Some(true),
            (false, 1..) => Some(false),
            (false, 0) => None,
        });
    (gateway.kill(), is_held)
}

#[test]
fn an_order_that_is_killed_at_every_step_gets_there() {
    let (names, port) = (Names::start(), free_port());
    let pebble = PebbleSetup::new(&names, port, 1).env("PEBBLE_WFE_NONCEREJECT", "0").start();
    let front = Front::start(&pebble);
    let mut setup = through(port, &front);
    let mut steps = 0;
    loop {
        let (left, is_held) = kill_at(setup, &front, steps);
        setup = left;
        if !is_held {
            break;
        }
        steps += 1;
        assert_eq!(
            status(&setup)["begun"],
            steps,
            "so that one that is killed for ever does not go on at once"
        );
    }
    assert!(steps >= 5, "only {steps} steps were seen");
    front.judge(|_, _| Verdict::Pass);
    let gateway = setup.start();
    poll("the certificate", SOON, || {
        Some(()).filter(|()| Curl::new(&gateway).call("https://gw.test/").exit == 60)
    });
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
    assert_eq!(made(&pebble), 1, "a certificate was ordered twice\n{}", pebble.process.out);
    assert_eq!(accounts(&pebble), 1, "{}", pebble.process.out);
}

#[test]
fn long_an_order_that_is_killed_once_at_any_step_is_gone_on_with() {
    let (names, port) = (Names::start(), free_port());
    let pebble = PebbleSetup::new(&names, port, 1).env("PEBBLE_WFE_NONCEREJECT", "0").start();
    let front = Front::start(&pebble);
    for step in 0.. {
        let before = made(&pebble);
        let (setup, is_held) = kill_at(through(port, &front), &front, step);
        if !is_held {
            assert!(step > 8, "only {step} steps were seen");
            break;
        }
        front.judge(|_, _| Verdict::Pass);
        let gateway = setup.start();
        wait_issued(&gateway, "gw.test");
        assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
        assert_eq!(made(&pebble) - before, 1, "killed at step {step}");
    }
}

fn in_folder(setup: &Setup, file: &str) -> PathBuf {
    setup.path("state/acme/names/gw.test").join(file)
}

/// What is noted of the name.
fn status(setup: &Setup) -> Value {
    let text = std::fs::read_to_string(in_folder(setup, "status.json")).expect("there");
    serde_json::from_str(&text).expect("JSON")
}

/// Changes a file in the name's folder.
fn edit(setup: &Setup, file: &str, key: &str, value: &str) {
    let path = in_folder(setup, file);
    let mut json: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("there")).expect("JSON");
    json[key] = value.into();
    std::fs::write(path, json.to_string()).expect("ours");
}

/// A gateway that was stopped after it had got its certificate, a long time ago as it seems, and has
/// to renew it.
fn with_due(port: u16, front: &Front) -> Setup {
    let gateway = through(port, front).start();
    wait_issued(&gateway, "gw.test");
    poll("the status", SOON, || {
        let text = std::fs::read_to_string(gateway.path("state/acme/names/gw.test/status.json")).ok()?;
        text.contains("\"ask_at\": \"").then_some(())
    });
    let setup = gateway.kill();
    make_due(&setup);
    setup
}

fn make_due(setup: &Setup) {
    edit(setup, "status.json", "renew_at", "2020-01-01T00:00:00Z");
    edit(setup, "current/certificate.json", "ordered", "2020-01-01T00:00:00Z");
}

#[test]
fn a_refusal_of_a_renewal_is_not_asked_for_twice() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    let setup = with_due(port, &front);
    let orders = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let count = orders.clone();
    // With a word of the certificate before, which this authority would take.
    front.judge(move |_, request| match request.uri().path() {
        "/dir" => Verdict::Change(with_renewal_info),
        "/order-plz" => {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Verdict::Answer(problem(429, "rateLimited", "too many certificates", 3600))
        }
        _ => Verdict::Pass,
    });
    let gateway = setup.start();
    gateway.wait_log("a failure", |record| record["fault"] == "rate-limited");
    assert_eq!(orders.load(std::sync::atomic::Ordering::SeqCst), 1);
}

/// A pair of files whose time is over.
fn ended(setup: &Setup, name: &str) -> (PathBuf, PathBuf) {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.not_before = OffsetDateTime::now_utc() - time::Duration::days(90);
    params.not_after = OffsetDateTime::now_utc() - time::Duration::days(1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let (cert_path, key_path) = (setup.path("old.pem"), setup.path("old.key"));
    std::fs::write(&cert_path, params.self_signed(&key).expect("signed").pem()).expect("ours");
    std::fs::write(&key_path, key.serialize_pem()).expect("ours");
    (cert_path, key_path)
}

/// As after a move from certbot, which left its files.
#[test]
fn a_file_that_has_ended_gives_way_to_what_is_ordered_and_a_new_one_wins_again() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let mut setup = one(port, &pebble, &["gw.test"]);
    let (cert, key) = ended(&setup, "gw.test");
    setup.certificates(&[(&cert, &key)]);
    let gateway = setup.start();
    wait_issued(&gateway, "gw.test");
    let told = |record: &Value| {
        record["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("the certificate in `tls.certificates`"))
    };
    gateway.wait_log("the end of the file", told);
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
    assert_eq!(gateway.log().iter().filter(|record| told(record)).count(), 1);
    let leaf = gateway.leaf("newer", &["gw.test"]);
    std::fs::rename(leaf.key, key).expect("ours");
    std::fs::rename(leaf.cert, cert).expect("ours");
    poll("the new file", SOON, || {
        let curl = Curl::new(&gateway).args(&["--cacert", &gateway.ca().display().to_string()]);
        Some(()).filter(|()| curl.call("https://gw.test/").exit == 0)
    });
}

#[test]
fn a_renewal_that_was_not_noted_is_not_made_again() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    let setup = with_due(port, &front);
    // What is there came after what is noted: the process was killed in between.
    edit(&setup, "status.json", "leaf", "0000000000000000");
    let gateway = setup.start();
    let path = gateway.path("state/acme/names/gw.test/status.json");
    poll("a new status", SOON, || {
        Some(()).filter(|()| !std::fs::read_to_string(&path).expect("there").contains("0000000000000000"))
    });
    assert_eq!(visit(&gateway, &pebble, "gw.test"), 200);
    let setup = gateway.kill();
    // And what is noted of it, counts.
    make_due(&setup);
    let gateway = setup.start();
    wait_issued(&gateway, "gw.test");
    assert_eq!(made(&pebble), 2);
}

#[test]
fn nothing_is_ordered_that_could_not_be_noted() {
    let (names, port) = (Names::start(), free_port());
    let pebble = Pebble::start(&names, port, 1);
    let front = Front::start(&pebble);
    let setup = through(port, &front);
    std::fs::create_dir_all(in_folder(&setup, "status.json")).expect("ours");
    let gateway = setup.start();
    let record = gateway.wait_log("a fault", |record| record["fault"] == "local");
    assert!(record["message"].as_str().is_some_and(|text| text.contains("status.json`")), "{record}");
    assert_eq!(front.requests(), 0);
}

#[test]
fn long_a_renewal_that_is_killed_at_any_step_is_gone_on_with_and_made_once() {
    let (names, port) = (Names::start(), free_port());
    let pebble = PebbleSetup::new(&names, port, 1).env("PEBBLE_WFE_NONCEREJECT", "0").start();
    let front = Front::start(&pebble);
    let mut setup = with_due(port, &front);
    for step in 0.. {
        let before = made(&pebble);
        let (left, is_held) = kill_at(setup, &front, step);
        if !is_held {
            assert!(step > 5, "only {step} steps were seen");
            break;
        }
        front.judge(|_, _| Verdict::Pass);
        let gateway = left.start();
        assert_eq!(visit(&gateway, &pebble, "gw.test"), 200, "the one before is shown");
        wait_issued(&gateway, "gw.test");
        assert_eq!(made(&pebble) - before, 1, "killed at step {step}");
        setup = gateway.kill();
        make_due(&setup);
    }
}

#[test]
fn two_gateways_with_one_folder_order_once() {
    let (names, port) = (Names::start(), free_port());
    let pebble = PebbleSetup::new(&names, port, 1)
        .without("PEBBLE_VA_NOSLEEP")
        .env("PEBBLE_VA_SLEEPTIME", "2")
        .start();
    let first = one(port, &pebble, &["gw.test"]).start();
    poll("the order", SOON, || first.path("state/acme/names/gw.test/order.json").exists().then_some(()));
    let mut setup = one(free_port(), &pebble, &["gw.test"]);
    setup.set("state_dir", first.path("state").to_str().expect("UTF-8"));
    let second = setup.start();
    wait_issued(&first, "gw.test");
    poll("the certificate at the second", Duration::from_secs(5), || {
        Some(()).filter(|()| Curl::new(&second).call("https://gw.test/").exit == 60)
    });
    assert_eq!((visit(&first, &pebble, "gw.test"), visit(&second, &pebble, "gw.test")), (200, 200));
    assert_eq!((made(&pebble), issued(&second, "gw.test")), (1, 0));
}
