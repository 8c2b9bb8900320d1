//! What an agent or a route's service can carry is shared: no visitor takes so much of it that others
//! find nothing, and what is kept for reuse is in nobody's way.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};

use toml::Table;

use crate::support::agent::{OpenSsh, host, web};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::{H2, Kept};
use crate::support::process::Process;
use crate::support::visitor::{Curl, Tls, read_until, tls};
use crate::support::{SOON, poll};

/// Channels of the one session in these tests.
const CHANNELS: usize = 16;
/// How many of them one address may use alone.
const HALF: usize = CHANNELS / 2;
/// Another visitor's address.
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 9, 0, 1));

fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.set("ssh.max_channels", i64::try_from(CHANNELS).expect("few")).with_figures();
    setup
}

/// The host of the route in these tests.
const APP: &str = "app.gw.test";

/// A gateway with a route to a service that may have so many connections.
fn with_route(most: usize) -> (Setup, Backend) {
    let (mut setup, backend) = (Setup::new(), Backend::start());
    let mut route = Table::new();
    route.insert("host".to_owned(), APP.into());
    route.insert("to".to_owned(), format!("http://{}", backend.address()).into());
    setup.set("routes", vec![toml::Value::from(route)]);
    setup.set("http.upstream_max", i64::try_from(most).expect("few"));
    (setup, backend)
}

fn small(gateway: &Gateway, name: &str, from: IpAddr) -> u16 {
    small_at(gateway, &host(name), from)
}

fn small_at(gateway: &Gateway, host: &str, from: IpAddr) -> u16 {
    let curl = Curl::new(gateway).args(&["--interface", &from.to_string()]);
    curl.get(&format!("https://{host}/small")).status
}

/// Has a stream switched; the value is the head of the answer as well.
fn switch(gateway: &Gateway, host: &str) -> (Tls, String) {
    let mut stream = tls(gateway, Some(host), &["http/1.1"]).expect("connects");
    let request = format!("GET /tcp HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("open");
    let head = read_until(&mut stream, "\r\n\r\n");
    (stream, head)
}

#[test]
fn one_visitor_leaves_channels_of_an_agent_for_others() {
    let (gateway, backend, _agent) = web(setup());
    // Neither the requests of one connection nor those of several add up to more.
    let visitors: Vec<_> = (0..4).map(|_| H2::connect(&gateway, &host("web"), None)).collect();
    let answers: Vec<_> = visitors.iter().flat_map(|visitor| visitor.ask("/gated", 8)).collect();
    let of = |status: u16| answers.iter().filter(|answer| answer.status() == status).count();
    assert_eq!((of(200), of(429)), (HALF, 4 * 8 - HALF));
    let refused = gateway.wait_reason("too-many-channels");
    assert!(refused["detail"].as_str().is_some_and(|text| text.contains("your address")), "{refused}");
    assert_eq!(small(&gateway, "web", Ipv4Addr::LOCALHOST.into()), 429);
    // Nobody else notices.
    assert_eq!(small(&gateway, "web", OTHER), 200);
    // What ends is free again.
    for _ in 0..2 * HALF {
        backend.release();
    }
    for (visitor, answer) in visitors.iter().flat_map(|visitor| [visitor; 8]).zip(answers) {
        if answer.status() == 200 {
            assert_eq!(visitor.rest(answer.into_body()).expect("an answer"), "first second third");
        }
    }
    assert_eq!(small(&gateway, "web", Ipv4Addr::LOCALHOST.into()), 200);
}

#[test]
fn a_kept_channel_counts_for_who_uses_it_now() {
    let (gateway, backend, _agent) = web(setup());
    let first = H2::connect(&gateway, &host("web"), None);
    let second = H2::connect_from(OTHER, &gateway, &host("web"), None);
    let held = first.ask("/gated", HALF);
    for _ in 0..2 * HALF {
        backend.release();
    }
    for answer in held {
        first.rest(answer.into_body()).expect("an answer");
    }
    // The second visitor has all channels that the first one had opened, and no more.
    let held = second.ask("/gated", HALF + 1);
    assert_eq!(held.iter().filter(|answer| answer.status() == 429).count(), 1);
    assert_eq!(gateway.figure("oneport_ssh_channels_open"), HALF as u64);
    assert_eq!(first.statuses("/small", 1, 200), 1, "the channels count for who opened them");
}

#[test]
fn a_switched_stream_counts_until_it_ends() {
    let (gateway, _backend, _agent) = web(setup());
    let switch = || switch(&gateway, &host("web"));
    let mut held: Vec<_> = (0..HALF).map(|_| switch()).collect();
    assert!(held.iter().all(|(_, head)| head.starts_with("HTTP/1.1 101 ")), "{:?}", held[0].1);
    assert!(switch().1.starts_with("HTTP/1.1 429 "));
    let (stream, _) = &mut held[0];
    stream.write_all(b"loud").expect("open");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("an echo");
    assert_eq!(&answer, b"LOUD");
    drop(held);
    poll("a free channel", SOON, || switch().1.starts_with("HTTP/1.1 101 ").then_some(()));
}

#[test]
fn channels_that_are_kept_unused_lock_no_tunnel_out() {
    let (gateway, backend) = (setup().start(), Backend::start());
    let names = ["a", "b", "c", "d", "e"];
    let mut agent = OpenSsh::new(&gateway);
    for name in names {
        agent = agent.forward(&format!("/{name}"), backend.address());
    }
    let _agent = agent.start();
    for name in &names[..4] {
        let visitor = H2::connect(&gateway, &host(name), None);
        let held = visitor.ask("/gated", CHANNELS / 4);
        for _ in 0..CHANNELS / 2 {
            backend.release();
        }
        for answer in held {
            assert_eq!(visitor.rest(answer.into_body()).expect("an answer"), "first second third");
        }
    }
    assert_eq!(gateway.figure("oneport_ssh_channels_open"), CHANNELS as u64, "they are not kept");
    for _ in 0..3 {
        assert_eq!(small(&gateway, "e", OTHER), 200);
    }
    // The oldest went, and all others are kept.
    let opened = || gateway.figure("oneport_upstream_connections_opened_total");
    let before = opened();
    Kept::new(&gateway, &host("d")).small();
    assert_eq!(opened(), before);
    let open = || gateway.figure("oneport_ssh_channels_open");
    poll("one channel for another", SOON, || (open() == CHANNELS as u64).then_some(()));
}

#[test]
fn one_visitor_leaves_connections_to_a_service_for_others() {
    let (setup, backend) = with_route(CHANNELS);
    let gateway = setup.start();
    let visitors: Vec<_> = (0..4).map(|_| H2::connect(&gateway, APP, None)).collect();
    let answers: Vec<_> = visitors.iter().flat_map(|visitor| visitor.ask("/gated", 8)).collect();
    let of = |status: u16| answers.iter().filter(|answer| answer.status() == status).count();
    assert_eq!((of(200), of(429)), (HALF, 4 * 8 - HALF));
    let refused = gateway.wait_reason("backend-full");
    assert!(refused["detail"].as_str().is_some_and(|text| text.contains("your address")), "{refused}");
    assert!(switch(&gateway, APP).1.starts_with("HTTP/1.1 429 "));
    // Nobody else notices, and takes no more than a share either.
    assert_eq!(small_at(&gateway, APP, OTHER), 200);
    let other = H2::connect_from(OTHER, &gateway, APP, None);
    let held = other.ask("/gated", HALF);
    assert_eq!(held.iter().filter(|answer| answer.status() == 200).count(), HALF / 2);
    // What ends is free again, whether it is read to its end or left.
    drop(visitors);
    drop(answers);
    poll("a free connection", SOON, || switch(&gateway, APP).1.starts_with("HTTP/1.1 101 ").then_some(()));
    // The requests that were left wait at the service as well.
    for _ in 0..2 * CHANNELS {
        backend.release();
    }
    for answer in held.into_iter().filter(|answer| answer.status() == 200) {
        assert_eq!(other.rest(answer.into_body()).expect("an answer"), "first second third");
    }
    // The kept connections count for nobody.
    let first = H2::connect(&gateway, APP, None);
    assert_eq!(first.statuses("/gated", HALF, 200), HALF as u64);
}

#[test]
fn a_switched_stream_to_a_service_counts_until_it_ends() {
    let (setup, _backend) = with_route(4);
    let gateway = setup.start();
    let switch = || switch(&gateway, APP);
    let held = [switch(), switch()];
    assert!(held.iter().all(|(_, head)| head.starts_with("HTTP/1.1 101 ")), "{:?}", held[0].1);
    assert!(switch().1.starts_with("HTTP/1.1 429 "));
    assert_eq!(small_at(&gateway, APP, OTHER), 200);
    drop(held);
    poll("a free connection", SOON, || switch().1.starts_with("HTTP/1.1 101 ").then_some(()));
}

#[test]
fn behind_a_trusted_proxy_each_visitor_has_a_share_of_a_services_connections() {
    let (mut setup, backend) = with_route(4);
    setup.set("http.trusted_proxies", vec!["127.0.0.3"]);
    let gateway = setup.start();
    let behind =
        |visitor: &str| Curl::new(&gateway).from("127.0.0.3").header(&format!("X-Forwarded-For: {visitor}"));
    let url = |path: &str| format!("https://{APP}{path}");
    let mut held: Vec<_> = (1..=2)
        .map(|count| {
            let process = Process::start(&mut behind("203.0.113.9").build(&url("/held")));
            poll("the request at the service", SOON, || (backend.requests() == count).then_some(()));
            process
        })
        .collect();
    let refused = behind("203.0.113.9").get(&url("/small"));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(behind("203.0.113.10").get(&url("/small")).text(), "small");
    // Whom no proxy speaks for has a share of their own as well.
    assert_eq!(small_at(&gateway, APP, OTHER), 200);
    for _ in &held {
        backend.release();
    }
    for process in &mut held {
        assert_eq!(process.finish(SOON).stdout, "let go");
    }
    assert_eq!(behind("203.0.113.9").get(&url("/small")).text(), "small");
}
