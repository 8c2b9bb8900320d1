//! Where people may come from, how often they may fail to log in, and how much they may ask for.
//! Loopback has many addresses: 127.0.0.1 is one visitor, 127.0.0.2 another.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use toml::Table;

use crate::permits::{Events, go_on, still_talks, switched_with, wait_records};
use crate::support::agent::{Agent, OpenSsh, Via, host, key_file, node, public_key};
use crate::support::backend::{Backend, nobody};
use crate::support::gateway::{Gateway, ONEPORT, Setup};
use crate::support::process::{Output, Process};
use crate::support::visitor::{self, Curl, Response, read_to_end};
use crate::support::{SOON, poll};

/// A visitor's address, and another one's.
const ONE: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";
/// Where agents come from who must not be counted with either.
const AGENTS: &str = "127.0.0.9";

/// A gateway that listens on IPv4 and IPv6, takes agents over plain TCP, and tells figures.
fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.set("listen", vec!["127.0.0.1:0", "[::1]:0"]).set("ssh.raw", true).with_figures();
    setup
}

fn file(setup: &Setup, name: &str, text: &str) -> (PathBuf, String) {
    let path = setup.path(name);
    std::fs::write(&path, text).expect("temporary folder");
    let item = format!("file:{}", path.display());
    (path, item)
}

fn url(path: &str) -> String {
    format!("https://{}{path}", host("web"))
}

fn get(gateway: &Gateway, from: &str, url: &str) -> Response {
    Curl::new(gateway).from(from).call(url)
}

/// An agent that offers `/web` with these parameters.
fn agent(gateway: &Gateway, parameters: &str, service: SocketAddr) -> Agent {
    OpenSsh::new(gateway).from(AGENTS).forward(&format!("/web{parameters}"), service).start()
}

fn is_refused(gateway: &Gateway, from: &str) -> bool {
    let response = get(gateway, from, "https://gw.test/");
    assert!(response.exit == 0 || response.status == 0, "{response:?}");
    response.exit != 0
}

fn figure(gateway: &Gateway, name: &str, reason: &str) -> u64 {
    gateway.figure(&format!("{name}{{reason=\"{reason}\"}}"))
}

#[track_caller]
fn is_denied(response: &Response) {
    assert_eq!(response.status, 403, "{response:?}");
    let text = response.text();
    assert!(text.contains("Your address may not come here") && text.contains("network-denied"), "{text}");
    assert!(!text.contains("127."), "a stranger is told of the lists: {text}");
}

#[test]
fn a_denied_network_is_closed_before_the_handshake_and_logged_with_its_rule() {
    let mut setup = setup();
    setup.set("networks.deny", vec!["127.0.0.0/29", "::1"]).set("networks.allow", vec![ONE]);
    setup.set("admin.listen", "127.0.0.1:0");
    let gateway = setup.start();
    assert!(!is_refused(&gateway, ONE), "the longer network does not win");
    for (from, rule) in [
        (OTHER, "127.0.0.0/29 in networks.deny"),
        ("127.0.0.9", "no network of networks.allow has it"),
        ("::1", "::1/128 in networks.deny"),
    ] {
        assert!(is_refused(&gateway, from), "{from} came in");
        let record = gateway.wait_log(rule, |record| record["rule"] == rule);
        assert_eq!(record["reason"], "network-denied");
        assert!(record["peer"].as_str().expect("text").contains(from), "{record}");
    }
    let ssh = OpenSsh::new(&gateway).from(OTHER).command("hello").run();
    assert!(!ssh.status.success() && !ssh.stdout.contains("clientId"), "{ssh:?}");
    assert_eq!(figure(&gateway, "oneport_connections_refused_total", "network-denied"), 4);
    // Nothing is read or said: not even an alert.
    let listener = gateway.address();
    let said = Process::run(
        Command::new("curl").args(["-sS", "--interface", OTHER, &format!("telnet://{listener}")]),
        SOON,
    );
    assert_eq!(said.stdout, "", "{said:?}");
}

#[test]
fn strangers_cannot_fill_the_log() {
    let mut setup = setup();
    setup.set("networks.deny", vec![ONE]);
    let gateway = setup.start();
    let started = Instant::now();
    for _ in 0..300 {
        let mut stream = visitor::tcp(&gateway);
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    poll("all counted", SOON, || {
        (gateway.figure("oneport_connections_refused_total{reason=\"network-denied\"}") >= 300).then_some(())
    });
    let records = gateway.log().iter().filter(|record| record["reason"] == "network-denied").count() as u64;
    let most = 10 * (started.elapsed().as_secs() + 2);
    assert!((1..=most).contains(&records), "{records} records for 300 connections");
}

#[test]
fn agents_are_told_before_they_log_in_and_visitors_may_come() {
    let mut setup = setup();
    setup.set("ssh.deny", vec![ONE]).set("plain.ssh", vec!["127.0.0.1:0"]);
    let gateway = setup.start();
    for via in [Via::Connect, Via::SClient { alpn: true }, Via::Raw, Via::PlainListener] {
        let args: &[&str] = if matches!(via, Via::Connect) { &["-o", "BatchMode=yes"] } else { &["-4"] };
        let output = OpenSsh::new(&gateway).via(via).args(args).command("hello").run();
        assert!(!output.status.success(), "{via:?}: {output:?}");
        let words =
            "the address 127.0.0.1 may not come here; ask the operator of this gateway (network-denied)";
        assert!(output.stderr.contains(words), "{via:?}: {output:?}");
        assert!(!output.stderr.contains("ssh.deny"), "a stranger is told of the lists: {output:?}");
    }
    gateway.wait_log("rule", |record| {
        record["message"] == "agent turned away" && record["rule"] == "127.0.0.1/32 in ssh.deny"
    });
    assert_eq!(figure(&gateway, "oneport_ssh_sessions_ended_total", "network-denied"), 4);
    assert!(OpenSsh::new(&gateway).from(OTHER).command("hello").run().status.success());
    assert!(!is_refused(&gateway, ONE));
}

#[test]
fn the_library_of_existing_agents_hears_the_words_too() {
    let mut setup = setup();
    setup.set("ssh.allow", vec!["192.0.2.0/24"]);
    let gateway = setup.start();
    let options = json!({
        "host": "127.0.0.1", "port": gateway.address().port(), "servername": "gw.test", "ca": gateway.ca(),
        "username": "me", "key": key_file(&gateway.path(""), "ed25519a"), "forwards": {},
    });
    let output = node("agent.js", &options).finish(SOON);
    assert!(output.stdout.contains("may not come here"), "{output:?}");
}

fn route(service: SocketAddr, more: &[(&str, toml::Value)]) -> toml::Value {
    let mut table = Table::new();
    table.insert("host".to_owned(), "app.gw.test".into());
    table.insert("to".to_owned(), format!("http://{service}").into());
    for (name, value) in more {
        table.insert((*name).to_owned(), value.clone());
    }
    table.into()
}

#[test]
fn a_route_has_lists_of_its_own_and_they_are_about_the_visitor() {
    let (mut setup, backend) = (setup(), Backend::start());
    let routes = [route(backend.address(), &[("allow", vec![OTHER, "203.0.113.0/24"].into())])];
    setup.set("routes", routes.to_vec()).set("http.trusted_proxies", vec!["127.0.0.3"]);
    let gateway = setup.start();
    let app = "https://app.gw.test/small";
    assert_eq!(get(&gateway, OTHER, app).text(), "small");
    for version in ["--http1.1", "--http2"] {
        is_denied(&Curl::new(&gateway).args(&[version]).get(app));
    }
    let record = gateway.wait_reason("network-denied");
    assert_eq!(record["detail"], "no network of allow of the route app.gw.test/ has it");
    let behind = |proxy: &str, visitor: &str| {
        Curl::new(&gateway).from(proxy).header(&format!("X-Forwarded-For: {visitor}")).get(app)
    };
    assert_eq!(behind("127.0.0.3", "203.0.113.9").status, 200);
    is_denied(&behind("127.0.0.3", "198.51.100.1"));
    is_denied(&behind(ONE, "203.0.113.9"));
    assert_eq!(get(&gateway, ONE, "https://gw.test/").status, 200, "other hosts are not meant");
    assert_eq!(backend.requests(), 2, "a denied request reached the service");
}

#[test]
fn behind_a_trusted_proxy_the_lists_of_the_port_are_about_the_visitor() {
    let mut setup = setup();
    setup.set("networks.deny", vec!["203.0.113.0/24", "127.0.0.4"]);
    setup.set("http.trusted_proxies", vec!["127.0.0.3", "127.0.0.4"]);
    let gateway = setup.start();
    let behind = |proxy: &str, visitor: &str| {
        let curl = Curl::new(&gateway).from(proxy);
        let curl =
            if visitor.is_empty() { curl } else { curl.header(&format!("X-Forwarded-For: {visitor}")) };
        curl.get("https://gw.test/")
    };
    assert_eq!(behind("127.0.0.3", "198.51.100.1").status, 200);
    is_denied(&behind("127.0.0.3", "203.0.113.1"));
    is_denied(&behind("127.0.0.3", "::ffff:203.0.113.1"));
    // The proxy itself, where it says of nobody else.
    assert_eq!(behind("127.0.0.4", "198.51.100.1").status, 200);
    is_denied(&behind("127.0.0.4", ""));
    // Agents come through it as well, and for them nobody speaks.
    let output = OpenSsh::new(&gateway).from("127.0.0.4").command("hello").run();
    assert!(output.stderr.contains("network-denied"), "{output:?}");
}

#[test]
fn an_agent_says_where_visitors_of_its_tunnel_may_come_from() {
    let (gateway, backend) = (setup().start(), Backend::start());
    let json = URL_SAFE_NO_PAD.encode(r#"["127.0.0.0/8","::1"]"#);
    let deny = URL_SAFE_NO_PAD.encode(r#"["127.0.0.2"]"#);
    for (parameters, may, may_not) in [
        ("#allow=127.0.0.2,127.0.0.4/32", OTHER, ONE),
        ("#deny=127.0.0.1/32", OTHER, ONE),
        (&format!("#allow={json};deny={deny}"), ONE, OTHER),
        (&format!("#deny={deny};access=private"), "::1", OTHER),
        (r"#allow=\:\:1", "::1", ONE),
    ] {
        let mut agent = agent(&gateway, parameters, backend.address());
        let seen = get(&gateway, may, &url("/small")).status;
        let wanted = if parameters.contains("private") { 307 } else { 200 };
        assert_eq!(seen, wanted, "{parameters}");
        // Before anybody is asked to log in.
        is_denied(&get(&gateway, may_not, &url("/small")));
        agent.kill();
        poll("the name to be free", SOON, || (gateway.figure("oneport_tunnels_open") == 0).then_some(()));
    }
    for (request, words) in [("/web#allow=10.0.0.0/33", "is not a network"), ("/web#deny=", "invalid deny")] {
        let output = OpenSsh::new(&gateway).forward(request, nobody()).run();
        assert!(output.stderr.contains(words) && output.stderr.contains("bad-forward"), "{output:?}");
    }
}

#[test]
fn a_file_of_networks_is_reread_and_a_broken_one_changes_nothing() {
    let mut setup = setup();
    let (path, item) = file(&setup, "blocked.txt", "# nobody yet\n");
    let (agents, agents_item) = file(&setup, "agents.txt", "127.0.0.0/8\n");
    setup.set("networks.deny", vec![item]).set("ssh.allow", vec![agents_item]);
    let gateway = setup.start();
    let write = |text: &str| std::fs::write(&path, text).expect("temporary folder");
    assert!(!is_refused(&gateway, OTHER));
    write("127.0.0.2 # from now on\n");
    poll("the list to count", SOON, || is_refused(&gateway, OTHER).then_some(()));
    gateway.wait_log("the line", |record| {
        record["rule"].as_str().is_some_and(|rule| rule.ends_with("blocked.txt:1)"))
    });
    write("127.0.0.1\n127.0.0.2\nexample.com\n");
    let complaint = gateway.wait_log("complaint", |record| {
        record["message"].as_str().is_some_and(|message| message.starts_with("keeping a list of networks"))
    });
    let error = complaint["error"].as_str().expect("text");
    assert!(error.contains("line 3 of `") && !error.contains("example.com"), "{error}");
    assert!(!is_refused(&gateway, ONE) && is_refused(&gateway, OTHER), "it did not stay as it was");
    std::fs::remove_file(&path).expect("temporary folder");
    gateway.wait_log("complaint", |record| {
        record["error"].as_str().is_some_and(|error| error.contains("cannot read networks"))
    });
    assert!(is_refused(&gateway, OTHER));
    write("127.0.0.3\n");
    poll("the list to count", SOON, || (!is_refused(&gateway, OTHER)).then_some(()));

    // A session that runs is ended when its agent may no longer come from where it is.
    let mut ended = OpenSsh::new(&gateway).from(OTHER).forward("/web", nobody()).start();
    let mut kept = OpenSsh::new(&gateway).from(AGENTS).key("ed25519b").forward("/web", nobody()).start();
    std::fs::write(&agents, "127.0.0.9\n").expect("temporary folder");
    let output = ended.process.finish(SOON);
    assert!(output.stderr.contains("agents may no longer come from your address"), "{output:?}");
    assert!(kept.process.has_ended().is_none());
}

#[test]
fn what_runs_of_an_address_that_may_no_longer_connect_ends() {
    let mut setup = setup();
    let (path, item) = file(&setup, "blocked.txt", "# nobody yet\n");
    setup.set("networks.deny", vec![item]);
    let (gateway, backend) = (setup.start(), Backend::start());
    let mut agent = agent(&gateway, "", backend.address());
    let events = |from: &str| {
        let of = |version| Curl::new(&gateway).from(from).args(&[version]);
        ["--http1.1", "--http2"].map(|version| Events::of(of(version), &url("/sse")))
    };
    let (mut ending, mut living) = (events(ONE), events(OTHER));
    let mut shell = switched_with(&gateway, "X-Nobody: 1");
    still_talks(&mut shell);
    let mut idle = visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).expect("a handshake");
    let before = backend.requests();
    let mut held = Process::start(&mut Curl::new(&gateway).from(ONE).build(&url("/held")));
    poll("the request to run", SOON, || (backend.requests() > before).then_some(()));

    std::fs::write(&path, "127.0.0.1\n").expect("temporary folder");
    ending.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut idle)), "");
    assert!(!held.finish(SOON).status.success());
    wait_records(&gateway, "/sse", "network-denied", 2);
    wait_records(&gateway, "/tcp", "network-denied", 1);
    wait_records(&gateway, "/held", "network-denied", 1);
    let record = gateway.wait_log("the rule", |record| record["path"] == "/tcp");
    assert!(record["detail"].as_str().is_some_and(|rule| rule.ends_with("blocked.txt:1)")), "{record}");
    gateway.wait_log("the connection", |record| {
        record["message"] == "connection ended" && record["reason"] == "network-denied"
    });
    assert!(agent.process.has_ended().is_none());
    go_on(&mut living, &backend);
}

#[test]
fn what_runs_of_a_visitor_who_may_no_longer_come_ends_and_nothing_else_on_the_connection() {
    let (mut setup, backend) = (setup(), Backend::start());
    let (blocked, item) = file(&setup, "blocked.txt", "");
    let (own, own_item) = file(&setup, "own.txt", "203.0.113.0/24\n");
    setup.set("networks.deny", vec![item]).set("http.trusted_proxies", vec![ONE]);
    setup.set("routes", vec![route(backend.address(), &[("allow", vec![own_item].into())])]);
    let gateway = setup.start();
    let _agent = agent(&gateway, "", backend.address());
    let app = "https://app.gw.test/sse";
    let behind = |visitor: &str| format!("X-Forwarded-For: {visitor}");
    let both = |visitor: &str, url: &str| {
        ["--http1.1", "--http2"].map(|version| Events::with(&gateway, &behind(visitor), version, url))
    };
    let mut ending = both("203.0.113.9", app);
    let [mut living, mut elsewhere] = [both("203.0.113.8", app), both("203.0.113.9", &url("/sse"))];
    let before = backend.requests();
    let held = Curl::new(&gateway).header(&behind("203.0.113.9")).args(&["-i"]);
    let mut held = Process::start(&mut held.build("https://app.gw.test/held"));
    poll("the request to run", SOON, || (backend.requests() > before).then_some(()));

    std::fs::write(&own, "203.0.113.8\n").expect("temporary folder");
    ending.iter_mut().for_each(Events::is_cut);
    let held = held.finish(SOON).stdout;
    assert!(held.contains(" 403") && held.contains("network-denied"), "{held}");
    wait_records(&gateway, "/sse", "network-denied", 2);

    // By the list of the port, though the proxy may connect.
    let mut shell = switched_with(&gateway, &behind("203.0.113.9"));
    let mut other = switched_with(&gateway, &behind("203.0.113.8"));
    std::fs::write(&blocked, "203.0.113.9\n").expect("temporary folder");
    elsewhere.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    wait_records(&gateway, "/sse", "network-denied", 4);
    wait_records(&gateway, "/tcp", "network-denied", 1);
    still_talks(&mut other);
    go_on(&mut living, &backend);
}

#[test]
fn what_a_trusted_proxy_says_is_read_in_all_its_forms_or_not_believed() {
    let (mut setup, backend) = (setup(), Backend::start());
    setup
        .set("networks.deny", vec!["203.0.113.0/24", "2001:db8::/32"])
        .set("http.trusted_proxies", vec![ONE]);
    let gateway = setup.start();
    let _agent = agent(&gateway, "", backend.address());
    let from = |gateway: &Gateway, chain: &str| {
        Curl::new(gateway).header(&format!("X-Forwarded-For: {chain}")).get(&url("/echo"))
    };
    for denied in [
        "203.0.113.7",
        "203.0.113.7:4444",
        "\"203.0.113.7\"",
        "\"203.0.113.7:4444\"",
        "198.51.100.1, 203.0.113.7:1",
        "2001:db8::7",
        "[2001:db8::7]",
        "[2001:db8::7]:4444",
        "\"[2001:db8::7]:4444\"",
        "\u{e9}, 203.0.113.7",
    ] {
        is_denied(&from(&gateway, denied));
    }
    for allowed in ["198.51.100.1:80", "[2001:db9::1]:443", "203.0.113.7, 198.51.100.1"] {
        assert_eq!(from(&gateway, allowed).status, 200, "{allowed}");
    }
    for unread in
        ["unknown", "_hidden", "198.51.100.1:x", "[2001:db9::1", "198.51.100.1,", "198.51.100.1, unknown"]
    {
        let response = from(&gateway, unread);
        assert_eq!(response.status, 403, "{unread}: {response:?}");
        assert!(response.text().contains("cannot be told where you come from"), "{}", response.text());
    }
    gateway.wait_log("what it was", |record| {
        record["detail"].as_str().is_some_and(|detail| detail.contains("`_hidden`"))
    });
    // Without it, the proxy speaks for itself.
    assert_eq!(get(&gateway, ONE, &url("/echo")).status, 200);

    // Where only some things have lists, all else goes on.
    let mut setup = self::setup();
    setup.set("http.trusted_proxies", vec![ONE]);
    setup.set("routes", vec![route(backend.address(), &[("deny", vec!["203.0.113.0/24"].into())])]);
    let gateway = setup.start();
    let _agent = agent(&gateway, "", backend.address());
    let _listed =
        OpenSsh::new(&gateway).from(AGENTS).forward("/listed#deny=203.0.113.0/24", backend.address()).start();
    let at = |url: &str| Curl::new(&gateway).header("X-Forwarded-For: unknown").get(url).status;
    assert_eq!(at(&url("/echo")), 200);
    assert_eq!((at("https://app.gw.test/echo"), at(&format!("https://{}/echo", host("listed")))), (403, 403));
}

#[test]
fn a_broken_file_of_networks_is_found_before_the_start() {
    let mut setup = setup();
    let (_, item) = file(&setup, "blocked.txt", "10.0.0.0/8\n10.0.0.0/99\n");
    setup.set("networks.deny", vec![item]);
    let output = Process::run(setup.command().arg("--check"), SOON);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stderr.contains("line 2 of `") && !output.stderr.contains("10.0.0.0/99"), "{output:?}");
}

/// A private tunnel behind a gateway on which three failed logins are too many.
struct House {
    gateway: Gateway,
    _backend: Backend,
    _agent: Agent,
    token: String,
}

impl House {
    fn new(adjust: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = setup();
        setup.set("access.fail_max", 4).set("access.fail_slow_after", 2);
        adjust(&mut setup);
        let (gateway, backend) = (setup.start(), Backend::start());
        let agent = agent(&gateway, "#access=private", backend.address());
        let key = key_file(&gateway.path(""), "ed25519a");
        let token = Process::run(Command::new(ONEPORT).arg("token").arg("--key").arg(key), SOON);
        let token = token.stdout.trim().to_owned();
        Self { gateway, _backend: backend, _agent: agent, token }
    }

    fn ask(&self, from: &str, token: &str) -> Response {
        let curl = Curl::new(&self.gateway).from(from);
        curl.header(&format!("Authorization: Bearer {token}")).get(&url("/small"))
    }

    /// The right token with another signature.
    fn wrong(&self) -> String {
        let (rest, signature) = self.token.rsplit_once('.').expect("a token");
        format!("{rest}.{}", signature.chars().rev().collect::<String>())
    }
}

#[test]
fn wrong_tokens_are_answered_later_and_then_not_at_all() {
    let house = House::new(|_| {});
    let (gateway, wrong) = (&house.gateway, house.wrong());
    // Nothing shown, and a cookie, which any page below the same domain can set, are no failures.
    for _ in 0..6 {
        assert_eq!(get(gateway, OTHER, &url("/small")).status, 307);
        let curl = Curl::new(gateway).from(OTHER).header(&format!("Cookie: preevy-saas-jwt={wrong}"));
        assert_eq!(curl.get(&url("/small")).status, 307);
    }
    for _ in 0..2 {
        assert_eq!(house.ask(OTHER, &wrong).status, 401);
    }
    let started = Instant::now();
    assert_eq!(house.ask(OTHER, &wrong).status, 401);
    assert!(started.elapsed().as_millis() >= 100, "it was not slowed");
    let locked = house.ask(OTHER, &wrong);
    assert_eq!(locked.status, 429, "{locked:?}");
    let after: u64 = locked.header("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1..=601).contains(&after), "{after}");
    assert!(locked.text().contains("too-many-failures"), "{}", locked.text());
    // The right one does not help now, or trying would go on; it does elsewhere.
    assert_eq!(house.ask(OTHER, &house.token).status, 429);
    assert_eq!(house.ask(ONE, &house.token).text(), "small");
    // And whatever is sent is told nothing.
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let foreign = format!("{}.{}.AAAA", part(r#"{"alg":"EdDSA"}"#), part(r#"{"iss":"app"}"#));
    assert_eq!(house.ask(ONE, &foreign).status, 401);
    for token in [&*foreign, "of.no.use"] {
        assert_eq!(house.ask(OTHER, token).status, 429, "{token}");
    }
    let form =
        Curl::new(gateway).from(OTHER).header("Origin: https://auth.gw.test").header("Accept: text/html");
    let form =
        form.args(&["--data-urlencode", &format!("token={foreign}")]).get("https://auth.gw.test/login");
    assert_eq!(form.status, 429, "{form:?}");
    // The gateway's own hosts ask for the same.
    let api = |from: &str| {
        let curl = Curl::new(gateway).from(from).header(&format!("Authorization: Bearer {}", house.token));
        curl.get("https://api.gw.test/profiles/x/tunnels").status
    };
    assert_eq!((api(OTHER), api(ONE)), (429, 404));
    // Somebody known by a login, and who needs none, go on.
    let cookie = Curl::new(gateway).from(OTHER).header(&format!("Cookie: preevy-saas-jwt={}", house.token));
    assert_eq!(cookie.get(&url("/small")).text(), "small");
    assert_eq!(get(gateway, OTHER, "https://gw.test/").status, 200);
    assert_eq!(gateway.figure("oneport_logins_failed_total{by=\"http\"}"), 4);
    assert_eq!(gateway.figure("oneport_addresses_locked_out_total"), 1);
}

#[test]
fn pages_shut_out_neither_tools_nor_people_nor_agents() {
    let house = House::new(|_| {});
    let gateway = &house.gateway;
    let ask = |header: &str, token: &str| {
        let curl = Curl::new(gateway).from(OTHER).header(header);
        curl.header(&format!("Authorization: Bearer {token}")).get(&url("/small"))
    };
    let wrong = house.wrong();
    // Whatever a browser says by which a page is known, it is one kind.
    let by_page = ["Sec-Fetch-Site: same-origin", "Origin: https://gw.test", "Sec-Fetch-Site: cross-site"];
    let statuses = by_page.map(|header| ask(header, &wrong).status);
    assert_eq!(statuses, [401; 3]);
    let locked = ask(by_page[0], &wrong);
    assert!(locked.status == 429 && locked.text().contains("that web pages sent"), "{locked:?}");
    gateway.wait_log("the kind", |record| record["by"] == "page" && record["seconds"] == 600);
    for header in by_page {
        assert_eq!(ask(header, &house.token).status, 429, "{header}");
    }
    // The last is what Node's own `fetch` sends, which is no browser's.
    for no_page in ["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Mode: cors"] {
        assert_eq!(ask(no_page, &house.token).text(), "small", "{no_page}");
    }
    assert_eq!(house.ask(OTHER, &house.token).text(), "small");
    let form = Curl::new(gateway).from(OTHER).header("Origin: https://auth.gw.test");
    let form = form.header("Sec-Fetch-Site: same-origin").header("Accept: text/html");
    let field = format!("token={}", house.token);
    let form = form.args(&["--data-urlencode", &field]).get("https://auth.gw.test/login");
    assert_eq!(form.status, 200, "{form:?}");
    assert_eq!(gateway.figure("oneport_logins_failed_total{by=\"http\"}"), 4);
    assert!(OpenSsh::new(gateway).from(OTHER).command("hello").run().status.success());
}

#[test]
fn tools_and_agents_do_not_shut_each_other_out() {
    let house = House::new(|setup| {
        let list = setup.path("authorized_keys");
        std::fs::write(&list, public_key("ed25519a")).expect("temporary folder");
        setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", list.to_str().expect("UTF-8"));
    });
    let gateway = &house.gateway;
    let hello = |from: &str, key: &str| OpenSsh::new(gateway).from(from).key(key).command("hello").run();
    let is_locked = |output: &Output| output.stderr.contains("too-many-failures");
    for _ in 0..4 {
        hello(ONE, "ed25519b");
    }
    gateway.wait_log("the lock", |record| record["by"] == "ssh" && record["address"] == ONE);
    let right = hello(ONE, "ed25519a");
    assert!(is_locked(&right) && right.stderr.contains("too many logins"), "{right:?}");
    assert_eq!(house.ask(ONE, &house.token).text(), "small");
    let wrong = house.wrong();
    let statuses: Vec<u16> = (0..4).map(|_| house.ask(OTHER, &wrong).status).collect();
    assert_eq!(statuses, [401, 401, 401, 429]);
    gateway.wait_log("the lock", |record| record["by"] == "token" && record["address"] == OTHER);
    assert!(hello(OTHER, "ed25519a").status.success());
}

#[test]
fn tokens_in_the_form_of_the_login_page_count_as_well() {
    let house = House::new(|_| {});
    let send = |from: &str, token: &str| {
        let curl = Curl::new(&house.gateway).from(from).header("Origin: https://auth.gw.test");
        let field = format!("token={token}");
        curl.header("Accept: text/html").args(&["--data-urlencode", &field]).get("https://auth.gw.test/login")
    };
    // What a service gives its own visitors is no guess, wherever it is shown.
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let foreign = format!("{}.{}.AAAA", part(r#"{"alg":"EdDSA"}"#), part(r#"{"iss":"app"}"#));
    for _ in 0..5 {
        for response in [send(OTHER, &foreign), house.ask(OTHER, &foreign)] {
            assert_eq!(response.status, 401);
            assert!(response.text().contains("is not known here"), "{}", response.text());
        }
    }
    let wrong = house.wrong();
    for _ in 0..3 {
        assert_eq!(send(OTHER, &wrong).status, 401);
    }
    let locked = send(OTHER, &wrong);
    assert!(locked.status == 429 && locked.header("retry-after").is_some(), "{locked:?}");
    assert!(locked.text().contains("too-many-failures"), "{}", locked.text());
    let right = send(OTHER, &house.token);
    assert!(right.status == 429 && right.header("set-cookie").is_none(), "{right:?}");
    assert_eq!(house.ask(OTHER, &house.token).status, 429);
    assert_eq!(send(ONE, &house.token).status, 200);
}

#[test]
fn what_a_service_asks_its_own_visitors_for_is_no_failed_login() {
    let house = House::new(|_| {});
    let gateway = &house.gateway;
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let no_issuer = format!("Bearer {}.{}.AAAA", part(r#"{"alg":"EdDSA"}"#), part(r#"{"sub":"ann"}"#));
    let ask = |from: &str, authorization: &str, more: &str| {
        let curl = Curl::new(gateway).from(from).header(&format!("Authorization: {authorization}"));
        curl.header(more).get(&url("/echo"))
    };
    let long = format!("Bearer {}", "x".repeat(9000));
    for own in ["Bearer ghp_opaque", "Bearer a.b.c", &no_issuer, &long, &basic("admin:secret")] {
        for _ in 0..5 {
            let response = ask(OTHER, own, "X-Nobody: 1");
            assert_eq!(response.status, 401, "{own}: {response:?}");
        }
        // It is the service's where a cookie lets the visitor in.
        let known = ask(OTHER, own, &format!("Cookie: preevy-saas-jwt={}", house.token));
        assert!(known.status == 200 && known.text().contains(own), "{own}: {known:?}");
    }
    assert_eq!(gateway.figure("oneport_logins_failed_total{by=\"http\"}"), 0);
    assert_eq!(house.ask(OTHER, &house.token).status, 200);
    // Under the user name that stands for tokens it can be for nobody else.
    for _ in 0..3 {
        assert_eq!(ask(OTHER, &basic("x-preevy-profile-key:guess"), "X-Nobody: 1").status, 401);
    }
    assert_eq!(ask(OTHER, &basic("x-preevy-profile-key:guess"), "X-Nobody: 1").status, 429);
}

#[test]
fn an_address_is_let_in_again_in_the_end() {
    let house = House::new(|setup| {
        setup.set("access.fail_lockout", "2s").set("access.fail_max", 1);
    });
    assert_eq!(house.ask(OTHER, &house.wrong()).status, 429);
    assert_eq!(house.ask(OTHER, &house.token).status, 429);
    poll("the end of it", SOON, || (house.ask(OTHER, &house.token).status == 200).then_some(()));
}

#[test]
fn an_address_with_a_live_session_is_not_locked_out() {
    let house = House::new(|_| {});
    for _ in 0..8 {
        assert_eq!(house.ask(AGENTS, &house.wrong()).status, 401);
    }
    assert_eq!(house.ask(AGENTS, &house.token).text(), "small");
    assert!(OpenSsh::new(&house.gateway).from(AGENTS).command("hello").run().status.success());
}

#[test]
fn agents_whose_keys_are_not_listed_are_refused_in_the_end() {
    let mut setup = setup();
    let list = setup.path("authorized_keys");
    std::fs::write(&list, public_key("ed25519a")).expect("temporary folder");
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", list.to_str().expect("UTF-8"));
    setup.set("access.fail_max", 3);
    let gateway = setup.start();
    let hello = |from: &str, key: &str| OpenSsh::new(&gateway).from(from).key(key).command("hello").run();
    for number in 0..3 {
        let output = hello(ONE, "ed25519b");
        assert!(output.stderr.contains("is not allowed here"), "{number}: {output:?}");
        poll("the failure to count", SOON, || {
            (gateway.figure("oneport_logins_failed_total{by=\"ssh\"}") > number).then_some(())
        });
    }
    let output = hello(ONE, "ed25519a");
    assert!(output.stderr.contains("too many logins from the address 127.0.0.1 have failed"), "{output:?}");
    gateway.wait_reason("too-many-failures");
    // Two keys in one session are one login, and one that ends well is no failed one.
    let second = key_file(&gateway.path(""), "ed25519a");
    for _ in 0..4 {
        let ssh = OpenSsh::new(&gateway).from(OTHER).key("ed25519b");
        let output = ssh.args(&["-i", second.to_str().expect("UTF-8")]).command("hello").run();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn too_many_requests_of_an_address_are_answered_429() {
    let mut setup = setup();
    setup.set("limits.visitor_requests_per_second", 1).set("limits.visitor_requests_burst", 3);
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = agent(&gateway, "", backend.address());
    let statuses: Vec<u16> = (0..5).map(|_| get(&gateway, ONE, &url("/small")).status).collect();
    assert!(statuses.starts_with(&[200; 3]) && statuses.contains(&429), "{statuses:?}");
    let refused = poll("a refusal", SOON, || {
        let response = get(&gateway, ONE, &url("/small"));
        (response.status == 429).then_some(response)
    });
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text().contains("too-many-requests"), "{}", refused.text());
    assert_eq!(get(&gateway, OTHER, &url("/small")).status, 200);
    assert_eq!(get(&gateway, "::1", &url("/small")).status, 200);
    poll("the next second", SOON, || (get(&gateway, ONE, &url("/small")).status == 200).then_some(()));
}

#[test]
fn requests_count_before_it_is_known_whether_they_are_allowed() {
    let mut setup = setup();
    setup.set("limits.visitor_requests_per_second", 1).set("limits.visitor_requests_burst", 3);
    setup.set("limits.tunnel_requests_per_second", 1).set("limits.tunnel_requests_burst", 3);
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = agent(&gateway, "#access=private", backend.address());
    let asked = |from: &str, url: &str, header: &str| {
        let asked = (0..6).map(|_| Curl::new(&gateway).from(from).header(header).get(url).status);
        asked.collect::<Vec<u16>>()
    };
    let is_limited = |statuses: Vec<u16>, first: u16| {
        assert!(statuses.starts_with(&[first; 3]) && statuses.contains(&429), "{statuses:?}");
    };
    is_limited(asked("127.0.1.1", &url("/small"), "X: y"), 307);
    is_limited(asked("127.0.1.2", &url("/small"), "Authorization: Bearer x"), 401);
    is_limited(asked("127.0.1.3", "https://auth.gw.test/login", "Accept: text/html"), 200);
    is_limited(asked("127.0.1.4", "https://auth.gw.test/logout", "Accept: text/html"), 200);
    is_limited(asked("127.0.1.5", "https://api.gw.test/profiles/x/tunnels", "X: y"), 404);
    is_limited(asked("127.0.1.6", "https://gw.test/", "X: y"), 200);
    is_limited(asked("127.0.1.7", "https://nobody-x.gw.test/", "X: y"), 502);
    is_limited(asked("127.0.1.8", &url("/.oneport/guest?link=x"), "X: y"), 403);
    assert_eq!(asked("127.0.1.9", "https://api.gw.test/healthz", "X: y"), [200; 6]);
    // What was refused took nothing from who may come.
    let key = key_file(&gateway.path(""), "ed25519a");
    let token = Process::run(Command::new(ONEPORT).arg("token").arg("--key").arg(key), SOON);
    let bearer = format!("Authorization: Bearer {}", token.stdout.trim());
    is_limited(asked("127.0.1.10", &url("/small"), &bearer), 200);
}

#[test]
fn preflights_without_a_login_take_nothing_from_who_has_one() {
    let house = House::new(|setup| {
        setup.set("limits.tunnel_requests_per_second", 1).set("limits.tunnel_requests_burst", 3);
    });
    let preflight = || {
        let curl = Curl::new(&house.gateway).from(OTHER).args(&["-X", "OPTIONS"]);
        curl.header("Origin: https://other.test").header("Access-Control-Request-Method: PUT")
    };
    let is_limited = |ask: &dyn Fn() -> u16| {
        let statuses: Vec<u16> = (0..6).map(|_| ask()).collect();
        assert!(statuses.starts_with(&[200; 3]) && statuses.contains(&429), "{statuses:?}");
    };
    // The service is kept from both.
    is_limited(&|| preflight().get(&url("/preflight")).status);
    is_limited(&|| house.ask(OTHER, &house.token).status);
    // With a login, one is a request as any other.
    let cookie = format!("Cookie: preevy-saas-jwt={}", house.token);
    let refused = || preflight().header(&cookie).get(&url("/preflight"));
    let refused = poll("a refusal", SOON, || Some(refused()).filter(|response| response.status == 429));
    assert!(refused.text().contains("too-many-requests"), "{refused:?}");
}

#[test]
fn so_many_requests_run_at_the_same_time() {
    let (mut setup, backend) = (setup(), Backend::start());
    setup.set("limits.tunnel_requests_running", 1);
    let own: &[(&str, toml::Value)] =
        &[("requests_running", 0.into()), ("visitor_requests_running", 1.into())];
    setup.set("routes", vec![route(backend.address(), own)]);
    let gateway = setup.start();
    let _agent = agent(&gateway, "", backend.address());
    let app = "https://app.gw.test";
    let cases: [(&str, &[&str]); 2] = [(&url(""), &[ONE, OTHER]), (app, &[ONE])];
    for (host, refused) in cases {
        let before = backend.requests();
        let mut held = Process::start(&mut Curl::new(&gateway).build(&format!("{host}/held")));
        poll("the request to run", SOON, || (backend.requests() > before).then_some(()));
        for from in refused {
            let response = get(&gateway, from, &format!("{host}/small"));
            assert_eq!(response.status, 429, "{host} from {from}: {response:?}");
            assert!(response.text().contains("at the same time"), "{}", response.text());
        }
        if host == app {
            assert_eq!(get(&gateway, OTHER, &format!("{host}/small")).status, 200);
        }
        backend.release();
        held.finish(SOON);
        poll("a free place", SOON, || {
            (get(&gateway, ONE, &format!("{host}/small")).status == 200).then_some(())
        });
    }
}

#[test]
fn a_key_has_so_many_sessions_and_tunnels() {
    let mut setup = setup();
    setup.set("ssh.max_sessions_per_key", 2).set("ssh.max_tunnels_per_key", 3);
    let gateway = setup.start();
    let first = OpenSsh::new(&gateway).forward("/a", nobody()).forward("/b", nobody()).start();
    // One more tunnel is all that is left; the one after it is refused in words.
    let over = OpenSsh::new(&gateway).forward("/c", nobody()).forward("/d", nobody()).run();
    let words = "your key offers 3 tunnels over all of its sessions";
    assert!(over.stderr.contains(words) && over.stderr.contains("too-many-tunnels"), "{over:?}");
    let _second = poll("room again", SOON, || {
        let output = OpenSsh::new(&gateway).forward("/c", nobody()).args(&["-f", "-N"]).spawn();
        Some(output)
    });
    poll("all tunnels", SOON, || (gateway.figure("oneport_tunnels_open") == 3).then_some(()));
    let third = OpenSsh::new(&gateway).command("hello").run();
    assert!(!third.status.success(), "{third:?}");
    assert!(
        third.stderr.contains("as many sessions as one may") && third.stderr.contains("too-many-sessions"),
        "{third:?}"
    );
    assert_eq!(figure(&gateway, "oneport_ssh_sessions_ended_total", "too-many-sessions"), 1);
    assert!(OpenSsh::new(&gateway).key("ed25519b").command("hello").run().status.success());
    drop(first);
    poll("room for a session", SOON, || {
        OpenSsh::new(&gateway).command("hello").run().status.success().then_some(())
    });
}

#[test]
fn a_dead_session_does_not_keep_its_key_out() {
    let mut setup = setup();
    setup.set("ssh.max_sessions_per_key", 1).set("ssh.keepalive_interval", "1h");
    let gateway = setup.start();
    let first = OpenSsh::new(&gateway).via(Via::Raw).forward("/web", nobody()).start();
    first.process.signal(rustix::process::Signal::STOP);
    let second = OpenSsh::new(&gateway).command("hello").run();
    first.process.signal(rustix::process::Signal::CONT);
    assert!(second.status.success(), "{second:?}");
    gateway.wait_reason("taken-over");
}
