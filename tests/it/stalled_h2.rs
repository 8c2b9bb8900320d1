//! HTTP/2 streams that are not taken stop no other of their connection, and hold nothing for ever.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::support::agent::{OpenSsh, host, web};
use crate::support::backend::{Backend, big_sha256, raw};
use crate::support::gateway::Setup;
use crate::support::load::{H2, MIB, settled};
use crate::support::visitor::Curl;
use crate::support::{SOON, poll, sha256};

#[test]
fn a_stalled_h2_stream_stops_no_other_of_its_connection() {
    let (gateway, _backend, _agent) = web(Setup::new());
    let visitor = H2::connect(&gateway, &host("web"), None);
    // Its window is used up, and not given back.
    let stalled = visitor.get("/big?mb=16");
    settled(&gateway, 12 * MIB);
    for _ in 0..20 {
        assert_eq!(visitor.rest(visitor.get("/small")).expect("an answer"), "small");
    }
    let rest = visitor.rest(stalled).expect("the download goes on");
    assert_eq!(sha256(&rest), big_sha256(16));
}

#[test]
fn a_stalled_h2_stream_is_recorded_when_it_is_cut() {
    let mut setup = Setup::new();
    setup.set("limits.buffer_disk_per_stream", "8MiB");
    let (gateway, _backend, _agent) = web(setup);
    let visitor = H2::connect(&gateway, &host("web"), None);
    let stalled = visitor.get("/big?mb=32");
    gateway.wait_reason("visitor-too-slow");
    assert!(visitor.rest(stalled).is_err(), "the answer was passed off as whole");
    poll("files gone", SOON, || (gateway.unnamed_files() == (0, 0)).then_some(()));
}

#[test]
fn visitors_with_no_window_do_not_hold_an_agents_channels() {
    let mut setup = Setup::new();
    setup.set("ssh.max_channels", 8).set("http.send_timeout", "1s");
    let (gateway, _backend, _agent) = web(setup);
    let visitor = H2::connect(&gateway, &host("web"), Some(0));
    // Their length is not known, so that their end is not either.
    let stalled: Vec<_> = (0..8).map(|_| visitor.get("/trailers")).collect();
    poll("channels that are free again", SOON, || {
        let answer = Curl::new(&gateway).get(&format!("https://{}/small", host("web")));
        (answer.text() == "small").then_some(())
    });
    gateway.wait_reason("visitor-too-slow");
    for answer in stalled {
        assert!(visitor.rest(answer).is_err(), "an answer was passed off as whole");
    }
}

#[test]
fn stalled_h2_uploads_stop_no_other_of_their_connection() {
    let mut setup = Setup::new();
    setup.with_figures();
    let (gateway, backend) = (setup.start(), Backend::start());
    // Takes connections, and reads nothing from them.
    let deaf = raw(|stream, _| {
        std::thread::sleep(Duration::from_secs(600));
        drop(stream);
    });
    let _agent = OpenSsh::new(&gateway).forward("/web", backend.address()).forward("/deaf", deaf).start();
    let visitor = H2::connect(&gateway, &host("web"), None);
    // More than what the sockets and windows on the way hold.
    let body = Bytes::from(vec![b'u'; 64 << 20]);
    let stalled: Vec<_> = (0..10).map(|_| visitor.upload(&host("deaf"), body.clone())).collect();
    let sent = || gateway.figure("oneport_ssh_sent_bytes_total");
    let (mut last, mut since) = (0, Instant::now());
    poll("uploads that go no further", SOON, || {
        let now = sent();
        // Keep-alives go on.
        if now > last + 4096 {
            (last, since) = (now, Instant::now());
        }
        (now > MIB && since.elapsed() > Duration::from_millis(500)).then_some(())
    });
    let small = body.slice(..4 << 20);
    let answer = visitor.uploaded(visitor.upload(&host("web"), small.clone())).expect("an answer");
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(answer["sha256"], sha256(&small));
    assert!(stalled.iter().all(|upload| !upload.is_over()), "they were not stalled");
}
