//! What an agent can carry is shared: no visitor takes so much of it that others find nothing, and
//! what is kept for reuse is in nobody's way.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};

use crate::support::agent::{OpenSsh, host, web};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::load::{H2, Kept};
use crate::support::visitor::{Curl, read_until, tls};
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

fn small(gateway: &Gateway, name: &str, from: IpAddr) -> u16 {
    let curl = Curl::new(gateway).args(&["--interface", &from.to_string()]);
    curl.get(&format!("https://{}/small", host(name))).status
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
    let switch = || {
        let mut stream = tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("connects");
        let request = format!(
            "GET /tcp HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
            host("web")
        );
        stream.write_all(request.as_bytes()).expect("open");
        let head = read_until(&mut stream, "\r\n\r\n");
        (stream, head)
    };
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
