//! One session carries any number of channels, one after the other, and a channel that goes wrong
//! ends nothing but itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use russh::ChannelOpenFailure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::{Backend, raw};
use crate::support::gateway::{Gateway, Setup};
use crate::support::library_agent::{LibraryAgent, Visit};
use crate::support::load::{H2, Kept, MIB, Visitors, download_many};
use crate::support::visitor::Curl;
use crate::support::{SOON, poll};

const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nsmall";
const ONE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall";
/// What the SSH library loses of a channel that the gateway closes before the agent, in octets, with
/// what a debug build and the allocator add.
const LOST: u64 = 4608;
/// After how many of these a session ends when nobody is being served, and in any case.
const MANY: u64 = 3072;
/// How many of these there may be before the agent is given more time to close.
const FREELY: u64 = 1024;
const MAX: u64 = 4096;

/// Answers one request, and ends what it sends before the gateway does.
async fn agent_first(visit: Visit) {
    visit.answer_and_end(LAST).await;
}

/// Answers one request, and waits for the gateway to end what it sends.
async fn gateway_first(visit: Visit) {
    visit.reply.accept().await;
    let mut stream = visit.channel.into_stream();
    let mut heard = vec![0; 4096];
    let _ = stream.read(&mut heard).await;
    let _ = stream.write_all(ONE).await;
    while matches!(stream.read(&mut heard).await, Ok(1..)) {}
}

/// OpenSSH asks for new keys itself, so that the library does not have to.
#[test]
fn new_keys_that_the_agent_asks_for_harm_nobody() {
    let mut setup = Setup::new();
    // Which it would not survive.
    setup.set("ssh.rekey_after", "16MiB");
    let (gateway, backend) = (setup.start(), Backend::start());
    for cipher in ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"] {
        let args = ["-v", "-c", cipher, "-o", "RekeyLimit=8M"];
        let agent = OpenSsh::new(&gateway).forward("/web", backend.address()).args(&args).start();
        for count in [1, 48, 32] {
            download_many(&gateway, &host("web"), count);
        }
        let changes = agent.process.err.to_string().matches("SSH2_MSG_NEWKEYS received").count();
        // One at the start, and one for every eight mebibytes of 192.
        assert!((15..40).contains(&changes), "{changes} changes of keys with {cipher}");
    }
}

/// Refuses every third channel, closes every third one unanswered, and writes after its own close.
async fn odd(visit: Visit) {
    match visit.number % 3 {
        0 => visit.reply.reject(ChannelOpenFailure::ConnectFailed).await,
        1 => {
            visit.reply.accept().await;
            let _ = visit.channel.close().await;
            // After the close nothing of it counts any more.
            let _ = visit.channel.data(&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"[..]).await;
            let _ = visit.channel.eof().await;
        }
        _ => agent_first(visit).await,
    }
}

/// Begins an answer, and goes on whatever the gateway says, until that closes the channel: the first
/// such channel sends as much as it may, the others nothing more.
async fn endless(visit: Visit) {
    visit.reply.accept().await;
    let (mut read, write) = visit.channel.split();
    let _ = read.wait().await;
    let _ = write.data(&b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"[..]).await;
    if visit.number == 0 {
        let mut to = write.make_writer();
        let piece = vec![b'x'; 64 * 1024];
        while to.write_all(&piece).await.is_ok() {}
    }
    while !matches!(read.wait().await, None | Some(russh::ChannelMsg::Close)) {}
}

/// Opens and closes channels one after the other, and looks at memory when the first of them are
/// through and in the end.
fn many_channels(agent: impl Fn(&Gateway) -> LibraryAgent, warm_up: usize, count: usize) {
    let mut setup = Setup::new();
    setup.set("http.upstream_idle_max", 0).set("log.filter", "info,oneport::http=warn").with_figures();
    let gateway = setup.start();
    let agent = agent(&gateway);
    let mut kept = Kept::new(&gateway, &host("web"));
    let mut through = |count: usize| {
        while agent.ended() < count {
            kept.small();
        }
        gateway.memory()
    };
    let before = through(warm_up);
    let after = through(count);
    agent.assert_lives(&gateway);
    assert_eq!(gateway.figure("oneport_ssh_channels_closed_first_total"), 0);
    // The SSH library loses 3.5 KB of each channel that is closed in the wrong order.
    let most = (count - warm_up) as u64 * 512;
    let grown = after.saturating_sub(before);
    assert!(grown <= most.max(1 << 20), "grown by {grown} octets over {} channels", count - warm_up);
}

fn agent_closes(gateway: &Gateway) -> LibraryAgent {
    LibraryAgent::start(gateway, "/web", agent_first)
}

fn gateway_ends(gateway: &Gateway) -> LibraryAgent {
    LibraryAgent::start(gateway, "/web", gateway_first)
}

#[test]
fn memory_is_flat_over_channels_that_the_agent_closes_first() {
    many_channels(agent_closes, 500, 2000);
}

#[test]
fn memory_is_flat_over_channels_that_the_gateway_ends_first() {
    many_channels(gateway_ends, 500, 2000);
}

#[test]
fn long_memory_is_flat_over_10000_channels_that_the_agent_closes_first() {
    many_channels(agent_closes, 2000, 10_000);
}

#[test]
fn long_memory_is_flat_over_10000_channels_that_the_gateway_ends_first() {
    many_channels(gateway_ends, 2000, 10_000);
}

/// Has visitors leave answers in their middle, which the agent never ends, until so many channels
/// were closed from the gateway's side.
fn leave_until(gateway: &Gateway, visitor: &H2, count: u64) {
    let closed = || gateway.figure("oneport_ssh_channels_closed_first_total");
    loop {
        let left = count.saturating_sub(closed());
        if left == 0 {
            return;
        }
        let asked = left.min(96).next_multiple_of(8);
        // One for whom no channel is free does not count.
        let begun: u64 = (0..asked / 8).map(|_| visitor.statuses("/", 8, 200)).sum();
        // Those that may wait for the agent are closed later.
        let expected = (count - left + begun).saturating_sub(16);
        poll("channels closed", SOON, || (closed() >= expected.min(count)).then_some(()));
    }
}

#[test]
fn what_channels_cost_that_the_gateway_closes_first_is_bounded() {
    let mut setup = Setup::new();
    setup.set("ssh.max_channels", 64).set("http.upstream_idle_max", 0).with_figures();
    // The agent has no more than a moment, later on too.
    setup.set("log.filter", "info,oneport::http=warn").set("ssh.close_timeout", "1ms");
    let gateway = setup.start();
    let closed = || gateway.figure("oneport_ssh_channels_closed_first_total");
    let visitor = H2::connect(&gateway, &host("web"), None);
    let has_ended = |record: &&serde_json::Value| record["reason"] == "session-used-up";
    let ends = || gateway.log().iter().filter(has_ended).count();
    let mut peaks = Vec::new();
    for (session, most) in [MANY, MAX].into_iter().enumerate() {
        let agent = LibraryAgent::start(&gateway, "/web", endless);
        let earlier = closed();
        leave_until(&gateway, &visitor, earlier + 1000);
        let before = gateway.memory();
        leave_until(&gateway, &visitor, earlier + 2500);
        let grown = gateway.memory().saturating_sub(before);
        assert!(grown <= 1500 * LOST, "grown by {grown} octets over 1500 channels");
        leave_until(&gateway, &visitor, earlier + MANY - 50);
        assert_eq!(ends(), session, "the session ended too early");
        // Somebody is being served during the second session.
        let served = (session == 1).then(|| visitor.get("/"));
        poll("the session's end", 2 * SOON, || {
            drop(visitor.get_many("/", 8));
            (ends() > session).then_some(())
        });
        drop(served);
        let carried = closed() - earlier;
        assert!((most..most + 64).contains(&carried), "{carried} were closed in session {session}");
        peaks.push(gateway.memory());
        drop(agent);
    }
    // The second session takes the space that the first has left.
    assert!(peaks[1] <= peaks[0] + (MAX - MANY) * LOST + 2 * MIB, "{peaks:?}");
}

/// Begins an answer, and closes the channel when it was told of its end, and is let.
async fn late(visit: Visit, told: Arc<AtomicUsize>, may_close: CancellationToken) {
    visit.reply.accept().await;
    let (mut read, write) = visit.channel.split();
    // An answer that comes before its request is not taken for one.
    let _ = read.wait().await;
    let _ = write.data(&b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"[..]).await;
    loop {
        match read.wait().await {
            None | Some(russh::ChannelMsg::Close) => return,
            Some(russh::ChannelMsg::Eof) => break,
            Some(_) => {}
        }
    }
    told.fetch_add(1, Ordering::Relaxed);
    tokio::select! {
        () = may_close.cancelled() => { let _ = write.close().await; }
        () = async { while !matches!(read.wait().await, None | Some(russh::ChannelMsg::Close)) {} } => {}
    }
}

#[test]
fn a_session_that_has_cost_much_waits_much_longer_for_its_agent() {
    const TIMEOUT: Duration = Duration::from_millis(50);
    let mut setup = Setup::new();
    setup.set("ssh.max_channels", 16).set("http.upstream_idle_max", 0).with_figures();
    setup.set("log.filter", "info,oneport::http=warn").set("ssh.close_timeout", "50ms");
    let gateway = setup.start();
    let may_close = CancellationToken::new();
    let told = Arc::new(AtomicUsize::new(0));
    let (of, may) = (told.clone(), may_close.clone());
    let agent = LibraryAgent::start(&gateway, "/web", move |visit| late(visit, of.clone(), may.clone()));
    let visitor = H2::connect(&gateway, &host("web"), None);
    leave_until(&gateway, &visitor, FREELY);
    poll("the last to be closed", SOON, || (agent.ended() == agent.opened()).then_some(()));
    let closed = || gateway.figure("oneport_ssh_channels_closed_first_total");
    let (before, told_before) = (closed(), told.load(Ordering::Relaxed));
    // Two thirds of them wait as those did before; the others count as open, and as their visitor's.
    for batch in 1..=3 {
        drop(visitor.get_many("/", 8));
        let all = told_before + batch * 8;
        poll("all to be told", SOON, || (told.load(Ordering::Relaxed) == all).then_some(()));
    }
    let asked = Instant::now();
    poll("more than the usual time", SOON, || {
        assert_eq!(visitor.statuses("/", 1, 429), 1, "the agent was not waited for");
        (asked.elapsed() > 3 * TIMEOUT).then_some(())
    });
    let other = H2::connect_from([127, 9, 0, 1].into(), &gateway, &host("web"), None);
    assert_eq!(other.statuses("/", 1, 200), 1, "one visitor has all channels");
    assert_eq!(closed(), before);
    may_close.cancel();
    poll("the agent to close them", SOON, || (agent.ended() == agent.opened()).then_some(()));
    // The gateway hears of it a little later.
    poll("a free channel", SOON, || (visitor.statuses("/", 1, 200) == 1).then_some(()));
    assert_eq!(closed(), before);
    agent.assert_lives(&gateway);
}

#[test]
fn refused_and_closed_channels_hang_nobody_and_end_nothing() {
    let gateway = Gateway::start();
    let agent = LibraryAgent::start(&gateway, "/web", odd);
    let url = format!("https://{}/small", host("web"));
    let mut answered = 0;
    for _ in 0..30 {
        let before = Instant::now();
        let response = Curl::new(&gateway).args(&["--max-time", "20"]).get(&url);
        assert!(matches!(response.status, 200 | 502), "{response:?}");
        assert!(response.status == 502 || response.text() == "small", "{response:?}");
        assert!(before.elapsed() < Duration::from_secs(5), "took {:?}", before.elapsed());
        answered += usize::from(response.status == 200);
    }
    assert!(answered >= 10, "{answered} of 30 were answered");
    poll("channels ended", SOON, || (agent.ended() >= 30).then_some(()));
    agent.assert_lives(&gateway);
}

/// How much of an upload is sent at most to see it stall.
const UPLOAD: usize = 64 << 20;

#[test]
fn an_upload_that_nobody_reads_stalls_only_itself() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    // Takes connections, and reads nothing from them.
    let deaf = raw(|stream, _| {
        std::thread::sleep(Duration::from_secs(600));
        drop(stream);
    });
    let _agent: Agent =
        OpenSsh::new(&gateway).forward("/web", backend.address()).forward("/deaf", deaf).start();
    let mut kept = Kept::new(&gateway, &host("web"));
    let before = kept.calm_latency(500);
    let memory = gateway.memory();
    gateway.forget_peak();
    let visitors = Visitors::of(&gateway, &host("deaf")).eager();
    let mut uploads = Vec::new();
    for _ in 0..3 {
        let mut stream = visitors.upload("/", UPLOAD);
        // TLS looks for something to read as well when it cannot write.
        for limit in [std::net::TcpStream::set_read_timeout, std::net::TcpStream::set_write_timeout] {
            limit(&stream.sock, Some(Duration::from_millis(150))).expect("a socket");
        }
        let piece = vec![0; 64 * 1024];
        let mut sent = 0;
        while std::io::Write::write_all(&mut stream, &piece).is_ok() {
            sent += piece.len();
            assert!(sent < UPLOAD, "nobody reads, and yet all of it was taken");
        }
        uploads.push(stream);
    }
    kept.calm_latency(500).assert_hardly_more_than(&before);
    // Another upload through the same agent goes on.
    let file = gateway.path("upload");
    crate::support::backend::big_file(&file, 8);
    let data = format!("@{}", file.display());
    let url = format!("https://{}/upload", host("web"));
    let response = Curl::new(&gateway).args(&["--max-time", "20", "--data-binary", &data]).get(&url);
    assert_eq!(response.json()["sha256"], crate::support::backend::big_sha256(8));
    let grown = gateway.memory_peak().saturating_sub(memory);
    assert!(grown <= 16 << 20, "grown by {grown} octets");
}
