//! Agents that answer late, refuse, close too early or move much both ways: no session dies of
//! it, and nobody hangs. The agent here is the SSH library's own client, which does what OpenSSH
//! never would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use russh::client::Msg;
use russh::{Channel, ChannelOpenFailure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::support::agent::{Agent, host};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::library_agent::{LibraryAgent, Visit};
use crate::support::visitor::{Curl, Response, Tls, read_to_end, read_until, tls};
use crate::support::{SOON, poll};

/// More than what the sockets and the memory on the way hold.
const LONG: usize = 24 << 20;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

/// Switches protocols and sends back what comes.
async fn echo_all(visit: Visit) {
    visit.reply.accept().await;
    echo(visit.channel).await;
}

async fn echo(channel: Channel<Msg>) {
    let mut stream = channel.into_stream();
    let mut head = vec![0; 4096];
    let mut length = 0;
    while !head[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut head[length..]).await {
            Ok(0) | Err(_) => return,
            Ok(count) => length += count,
        }
    }
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    if stream.write_all(switch).await.is_err() {
        return;
    }
    let (mut read, mut write) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

fn gateway() -> Gateway {
    let mut setup = Setup::new();
    setup.set("ssh.open_timeout", "1s");
    setup.start()
}

fn visit(gateway: &Gateway) -> Response {
    Curl::new(gateway)
        .args(&["--max-time", "20"])
        .header("Accept: application/json")
        .get(&format!("https://{}/", host("web")))
}

fn assert_served(gateway: &Gateway) {
    let response = visit(gateway);
    assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{response:?}");
    let ended = |record: &serde_json::Value| record["message"] == "session ended";
    assert!(!gateway.log().iter().any(ended), "the session ended: {}", gateway.stderr());
}

#[test]
fn a_late_answer_to_a_channel_open_ends_nothing() {
    let gateway = gateway();
    let late = Arc::new(Semaphore::new(0));
    let may = late.clone();
    let agent = LibraryAgent::start(&gateway, "/web", move |visit| {
        let may = may.clone();
        async move {
            if visit.number > 0 {
                return visit.answer_and_end(ANSWER).await;
            }
            may.acquire().await.expect("never closed").forget();
            visit.reply.accept().await;
            // Nobody waits for it any more: it must be ended by the gateway.
            let mut rest = Vec::new();
            let _ = visit.channel.into_stream().read_to_end(&mut rest).await;
        }
    });
    let response = visit(&gateway);
    assert_eq!(response.status, 504, "{response:?}");
    assert_eq!(response.json()["reason"], "agent-not-answering");
    assert_served(&gateway);
    late.add_permits(1);
    // The channel that nobody waits for is ended, and the session goes on.
    poll("both channels to end", SOON, || (agent.ended() == 2).then_some(()));
    assert_served(&gateway);
}

#[test]
fn a_refused_channel_is_a_502_with_its_reason() {
    let gateway = gateway();
    let agent = LibraryAgent::start(&gateway, "/web", |visit| async move {
        match visit.number {
            0 => visit.reply.reject(ChannelOpenFailure::ConnectFailed).await,
            _ => visit.answer_and_end(ANSWER).await,
        }
    });
    let response = visit(&gateway);
    assert_eq!(response.status, 502, "{response:?}");
    assert_eq!(response.json()["reason"], "service-unreachable");
    assert!(response.text().contains("could not reach its service"), "{response:?}");
    assert_served(&gateway);
    assert_eq!(agent.opened(), 2);
}

#[test]
fn a_channel_that_the_agent_closes_at_once_hangs_nobody() {
    let gateway = gateway();
    let _agent = LibraryAgent::start(&gateway, "/web", |visit| async move {
        if visit.number > 0 {
            return visit.answer_and_end(ANSWER).await;
        }
        visit.reply.accept().await;
        let _ = visit.channel.close().await;
    });
    let before = Instant::now();
    // An upload that the agent takes nothing of.
    let body = gateway.path("upload");
    std::fs::write(&body, vec![7; 8 << 20]).expect("temporary folder");
    let data = format!("@{}", body.display());
    let response = Curl::new(&gateway)
        .args(&["--max-time", "20", "--data-binary", &data])
        .get(&format!("https://{}/upload", host("web")));
    assert_eq!(response.status, 502, "{response:?}");
    assert!(before.elapsed() < Duration::from_secs(10), "took {:?}", before.elapsed());
    assert_served(&gateway);
}

#[test]
fn bulk_both_ways_on_many_channels_never_dead_locks() {
    const STREAMS: usize = 16;
    const OCTETS: usize = 8 << 20;
    let gateway = gateway();
    let agent = LibraryAgent::start(&gateway, "/web", echo_all);
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..STREAMS)
            .map(|index| {
                let gateway = &gateway;
                scope.spawn(move || {
                    let mut stream = tls(gateway, Some(&host("web")), &["http/1.1"]).expect("connects");
                    let request = format!(
                        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
                        host("web")
                    );
                    std::io::Write::write_all(&mut stream, request.as_bytes()).expect("open");
                    read_until(&mut stream, "\r\n\r\n");
                    both_ways(stream, index as u8, OCTETS);
                })
            })
            .collect();
        for stream in streams {
            stream.join().expect("all came back");
        }
    });
    assert_eq!(agent.opened(), STREAMS);
    drop(agent.runtime);
}

/// Sends and reads at the same time, as one and the other can go on.
fn both_ways(mut stream: Tls, byte: u8, octets: usize) {
    let (mut sent, mut got) = (0, 0);
    stream.sock.set_nonblocking(true).expect("a socket");
    let piece = vec![byte; 64 * 1024];
    let mut back = vec![0; 64 * 1024];
    let before = Instant::now();
    while got < octets {
        assert!(before.elapsed() < Duration::from_secs(60), "{sent} octets sent, {got} came back");
        let mut moved = false;
        if sent < octets {
            match std::io::Write::write(&mut stream, &piece[..piece.len().min(octets - sent)]) {
                Ok(count) => (sent, moved) = (sent + count, true),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        match std::io::Read::read(&mut stream, &mut back) {
            Ok(0) => panic!("closed after {got} octets"),
            Ok(count) => {
                assert!(back[..count].iter().all(|b| *b == byte), "somebody else's bytes");
                (got, moved) = (got + count, true);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        if !moved {
            std::thread::yield_now();
        }
    }
}

#[test]
fn what_an_agent_sent_before_it_left_reaches_a_slow_visitor() {
    let gateway = gateway();
    let sent_all = Arc::new(Semaphore::new(0));
    let done = sent_all.clone();
    let agent = LibraryAgent::start(&gateway, "/web", move |visit| {
        let done = done.clone();
        async move {
            visit.reply.accept().await;
            let mut stream = visit.channel.into_stream();
            let mut asked = vec![0; 4096];
            let _ = stream.read(&mut asked).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&vec![b'x'; LONG]).await;
            done.add_permits(1);
            std::future::pending::<()>().await;
        }
    });
    let mut stream = tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("connects");
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("web"));
    std::io::Write::write_all(&mut stream, request.as_bytes()).expect("open");
    let mut got = read_until(&mut stream, "\r\n\r\n").split_once("\r\n\r\n").expect("a head").1.len();
    agent.runtime.block_on(async {
        let sent = tokio::time::timeout(SOON, sent_all.acquire()).await;
        sent.unwrap_or_else(|_| panic!("the agent cannot send: {}", gateway.stderr()))
            .expect("never closed")
            .forget();
        // Its answer comes after all that was sent before it has arrived.
        agent.handle.streamlocal_forward("/last").await.expect("still there");
        agent.handle.disconnect(russh::Disconnect::ByApplication, "", "").await.expect("still there");
    });
    gateway.wait_log("end of the session", |record| record["message"] == "session ended");
    let mut piece = vec![0; 64 * 1024];
    while got < LONG {
        match std::io::Read::read(&mut stream, &mut piece) {
            Ok(count @ 1..) => got += count,
            end => panic!("{end:?} after {got} of {LONG} octets: {}", gateway.stderr()),
        }
    }
}

#[test]
fn a_download_ends_when_its_agent_dies() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let mut agent = Agent::web(&gateway, backend.address());
    let mut stream = tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("connects");
    let request = format!("GET /gated HTTP/1.1\r\nHost: {}\r\n\r\n", host("web"));
    std::io::Write::write_all(&mut stream, request.as_bytes()).expect("open");
    backend.release();
    read_until(&mut stream, "\r\n\r\n");
    agent.kill();
    let rest = String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned();
    assert!(!rest.ends_with("0\r\n\r\n"), "passed off as whole: {rest:?}");
    gateway.wait_reason("agent-gone");
}

#[test]
fn two_agents_that_ask_for_each_others_names_both_live_on() {
    let gateway = gateway();
    let first = LibraryAgent::start(&gateway, "/web", echo_all);
    let second = LibraryAgent::start(&gateway, "/other", echo_all);
    // Each waits within its own session for the other's sign of life.
    let (one, two) = first.runtime.block_on(async {
        tokio::join!(first.handle.streamlocal_forward("/other"), second.handle.streamlocal_forward("/web"))
    });
    assert!(one.is_err() && two.is_err(), "a live holder lost its name");
    let ended = |record: &serde_json::Value| record["message"] == "session ended";
    assert!(!gateway.log().iter().any(ended), "{}", gateway.stderr());
    first.runtime.block_on(first.handle.streamlocal_forward("/third")).expect("the session lives on");
    second.runtime.block_on(second.handle.streamlocal_forward("/fourth")).expect("the session lives on");
}

#[test]
fn an_agent_may_ask_as_often_as_it_likes() {
    let gateway = gateway();
    let agent = LibraryAgent::start(&gateway, "/web", echo_all);
    for number in 0..40 {
        let said = agent.runtime.block_on(async {
            let mut channel = agent.handle.channel_open_session().await.expect("a channel");
            channel.exec(true, "tunnel-url /a").await.expect("taken");
            let mut said = Vec::new();
            while let Some(message) = channel.wait().await {
                if let russh::ChannelMsg::Data { data } = message {
                    said.extend_from_slice(&data);
                }
            }
            String::from_utf8(said).expect("JSON")
        });
        assert!(said.contains("https://a-dzk582uo.gw.test/"), "call {number}: {said:?}");
    }
}

#[test]
fn what_an_agent_writes_cannot_forge_the_log() {
    let mut setup = Setup::new();
    setup.set("log.format", "text");
    let gateway = setup.start();
    let agent = LibraryAgent::start(&gateway, "/web", echo_all);
    for request in ["/q#bad\n2026-01-01T00:00:00Z ERROR forged \u{1b}[2J", "/r#meta=c2VjcmV0", "/web"] {
        assert!(agent.runtime.block_on(agent.handle.streamlocal_forward(request)).is_err(), "{request:?}");
    }
    let log = poll("the refusals", SOON, || {
        let log = gateway.stderr();
        log.contains("duplicate-forward").then_some(log)
    });
    assert!(log.contains("bad-forward"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01")), "a forged record: {log}");
    assert!(!log.contains('\u{1b}') && !log.contains("c2VjcmV0"), "{log}");
}

/// Session channels that one session may have open.
const TERMINALS: usize = 8;

/// Opens session channels with a command each whose answers are never taken; how many were let in.
fn ask_and_take_nothing(agent: &LibraryAgent, count: usize) -> Vec<Channel<Msg>> {
    let mut asked = Vec::new();
    agent.runtime.block_on(async {
        for _ in 0..count {
            let Ok(channel) = agent.handle.channel_open_session().await else { continue };
            channel.exec(true, "tunnel-url /a").await.expect("open");
            asked.push(channel);
            // By the answer to this, a refusal, the command before it was taken. No name is held: who holds
            // one is not closed.
            let _ = agent.handle.streamlocal_forward("/x#unknown=1").await;
        }
    });
    asked
}

fn takes_nothing() -> russh::client::Config {
    russh::client::Config { window_size: 0, ..russh::client::Config::default() }
}

#[test]
fn commands_whose_answers_are_not_taken_hold_their_places() {
    let gateway = gateway();
    let agent = LibraryAgent::that_stays(&gateway, takes_nothing());
    let asked = ask_and_take_nothing(&agent, 4 * TERMINALS);
    assert_eq!(asked.len(), TERMINALS, "so many were let in");
    // A channel that its client closes gives its place back at once.
    agent.runtime.block_on(asked[0].close()).expect("open");
    poll("a place", SOON, || (ask_and_take_nothing(&agent, 1).len() == 1).then_some(()));
}

/// A client has a minute for each piece of an answer.
#[test]
fn long_commands_whose_answers_are_not_taken_are_closed() {
    let mut setup = Setup::new();
    setup.with_figures();
    let gateway = setup.start();
    let agent = LibraryAgent::that_stays(&gateway, takes_nothing());
    assert_eq!(ask_and_take_nothing(&agent, 4 * TERMINALS).len(), TERMINALS);
    poll("closed channels", 4 * SOON, || {
        let closed = gateway.figure("oneport_ssh_channels_closed_first_total");
        (closed == TERMINALS as u64).then_some(())
    });
    poll("places", SOON, || (ask_and_take_nothing(&agent, 1).len() == 1).then_some(()));
}

#[test]
fn who_is_refused_a_forward_and_stays_all_the_same_is_cut_off() {
    let gateway = gateway();
    let openssh = russh::SshId::Standard("SSH-2.0-OpenSSH_9.2".into());
    let config = russh::client::Config { client_id: openssh, ..russh::client::Config::default() };
    let agent = LibraryAgent::that_stays(&gateway, config);
    agent.runtime.block_on(agent.handle.streamlocal_forward("/web")).expect("forwards");
    assert!(agent.runtime.block_on(agent.handle.streamlocal_forward("/bad#nonsense")).is_err());
    // Nobody is led there any more.
    poll("the name to be free", SOON, || (visit(&gateway).json()["reason"] == "no-tunnel").then_some(()));
    gateway.wait_log("end of the session", |record| record["message"] == "session ended");
    poll("the end of the connection", SOON, || agent.is_cut_off().then_some(()));
}
