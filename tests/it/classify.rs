//! The single port: what a connection is taken for, and what is refused, in which words.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use crate::support::agent::{Agent, host};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::poll;
use crate::support::visitor::{self, read_to_end, read_until};

/// Longer than the gateway may take for what it does at once.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn alpn_decides_first() {
    let gateway = Gateway::start();
    // Even with a name under which a silent client is an SSH client, and the other way round.
    let mut ssh = visitor::tls(&gateway, Some("any.gw.test"), &["ssh"]).expect("a handshake");
    assert_eq!(ssh.conn.alpn_protocol(), Some(&b"ssh"[..]));
    assert!(read_until(&mut ssh, "\n").starts_with("SSH-2.0-"));

    let mut http = visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).expect("a handshake");
    http.write_all(b"GET / HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n\r\n").expect("open");
    assert!(read_until(&mut http, "\r\n").starts_with("HTTP/1.1 "));

    let h2 = visitor::tls(&gateway, Some("gw.test"), &["h2", "http/1.1"]).expect("a handshake");
    assert_eq!(h2.conn.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn without_alpn_the_first_bytes_decide() {
    let gateway = Gateway::start();
    let mut ssh = visitor::tls(&gateway, Some("any.gw.test"), &[]).expect("a handshake");
    ssh.write_all(b"SSH-2.0-test\r\n").expect("open");
    assert!(read_until(&mut ssh, "\n").starts_with("SSH-2.0-"));

    // A browser on the base host gets HTTP, and not an SSH banner.
    let mut http = visitor::tls(&gateway, Some("gw.test"), &[]).expect("a handshake");
    http.write_all(b"GET / HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n\r\n").expect("open");
    assert!(read_until(&mut http, "\r\n").starts_with("HTTP/1.1 "));
}

#[test]
fn first_bytes_may_come_one_by_one() {
    let gateway = Gateway::start();
    let mut ssh = visitor::tls(&gateway, Some("any.gw.test"), &[]).expect("a handshake");
    for octet in b"SSH-2.0-test\r\n" {
        ssh.write_all(&[*octet]).expect("open");
        ssh.flush().expect("open");
    }
    assert!(read_until(&mut ssh, "\n").starts_with("SSH-2.0-"));
}

#[test]
fn a_silent_client_under_an_ssh_name_is_spoken_to_first() {
    let gateway = Gateway::start();
    let before = Instant::now();
    let mut silent = visitor::tls(&gateway, Some("gw.test"), &[]).expect("a handshake");
    assert!(read_until(&mut silent, "\n").starts_with("SSH-2.0-"));
    let took = before.elapsed();
    assert!(took > Duration::from_millis(700) && took < AT_ONCE, "after {took:?}");
}

#[test]
fn a_silent_client_under_another_name_is_cut_at_the_deadline() {
    let mut setup = Setup::new();
    setup.set("limits.handshake_timeout", "2s");
    let gateway = setup.start();
    let mut silent = visitor::tls(&gateway, Some("any.gw.test"), &[]).expect("a handshake");
    let before = Instant::now();
    assert_eq!(read_to_end(&mut silent), b"");
    assert!(before.elapsed() < AT_ONCE);
    gateway.wait_reason("handshake-timeout");
}

/// The alert in an error of a handshake, in words.
#[track_caller]
fn alert(result: io::Result<visitor::Tls>) -> String {
    match result {
        Ok(_) => panic!("the handshake was finished"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn no_common_protocol_is_an_alert() {
    let gateway = Gateway::start();
    let words = alert(visitor::tls(&gateway, Some("gw.test"), &["imap", "ftp"]));
    assert!(words.contains("NoApplicationProtocol"), "{words}");
    gateway.wait_reason("no-common-protocol");
}

#[test]
fn a_certificate_authoritys_probe_is_refused() {
    let gateway = Gateway::start();
    alert(visitor::tls(&gateway, Some("gw.test"), &["acme-tls/1"]));
    gateway.wait_reason("no-such-challenge");
}

#[test]
fn an_unknown_name_is_an_alert() {
    let gateway = Gateway::start();
    let words = alert(visitor::tls(&gateway, Some("elsewhere.test"), &["http/1.1"]));
    assert!(words.contains("UnrecognisedName") || words.contains("UnrecognizedName"), "{words}");
}

#[test]
fn no_name_is_allowed() {
    let gateway = Gateway::start();
    let mut http = visitor::tls(&gateway, None, &["http/1.1"]).expect("a handshake");
    http.write_all(b"GET / HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n\r\n").expect("open");
    assert!(read_until(&mut http, "\r\n").starts_with("HTTP/1.1 "));
    let mut ssh = visitor::tls(&gateway, None, &["ssh"]).expect("a handshake");
    assert!(read_until(&mut ssh, "\n").starts_with("SSH-2.0-"));
}

/// A client and its ClientHello, which was not sent yet.
fn hello(gateway: &Gateway) -> (ClientConnection, Vec<u8>) {
    let mut client = visitor::tls_client(gateway.ca(), Some("gw.test"), &["http/1.1"]);
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("in memory");
    (client, hello)
}

#[track_caller]
fn goes_on(client: ClientConnection, stream: TcpStream) {
    let mut stream = StreamOwned::new(client, stream);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n\r\n").expect("a handshake");
    assert!(read_until(&mut stream, "\r\n").starts_with("HTTP/1.1 "));
}

#[test]
fn a_hello_in_many_segments_works() {
    let gateway = Gateway::start();
    let (client, hello) = hello(&gateway);
    let mut stream = visitor::tcp(&gateway);
    for piece in hello.chunks(100) {
        stream.write_all(piece).expect("open");
        stream.flush().expect("open");
        std::thread::yield_now();
    }
    goes_on(client, stream);
}

#[test]
fn a_hello_byte_by_byte_works_within_the_deadline() {
    let gateway = Gateway::start();
    let (client, hello) = hello(&gateway);
    let mut stream = visitor::tcp(&gateway);
    for octet in hello {
        stream.write_all(&[octet]).expect("open");
    }
    goes_on(client, stream);
}

#[test]
fn a_hello_in_many_records_works() {
    let gateway = Gateway::start();
    let (client, hello) = hello(&gateway);
    // A record: type, version, length (RFC 8446, section 5.1). The same handshake message in
    // records of 200 octets.
    let (head, message) = hello.split_at(5);
    assert_eq!(usize::from(u16::from_be_bytes([head[3], head[4]])), message.len(), "one record");
    let mut stream = visitor::tcp(&gateway);
    for piece in message.chunks(200) {
        let length = u16::try_from(piece.len()).expect("short").to_be_bytes();
        stream.write_all(&[head[0], head[1], head[2], length[0], length[1]]).expect("open");
        stream.write_all(piece).expect("open");
    }
    goes_on(client, stream);
}

#[test]
fn a_slow_hello_is_cut_at_the_deadline() {
    let mut setup = Setup::new();
    setup.set("limits.handshake_timeout", "1s").set("limits.silence_timeout", "500ms");
    let gateway = setup.start();
    let (_client, hello) = hello(&gateway);
    let mut stream = visitor::tcp(&gateway);
    let before = Instant::now();
    let mut octets = hello.iter();
    // One octet a turn: many times the deadline for the whole.
    poll("end of the connection", AT_ONCE, || {
        stream.write_all(&[*octets.next().expect("enough")]).is_err().then_some(())
    });
    assert!(before.elapsed() > Duration::from_millis(800), "after {:?}", before.elapsed());
    gateway.wait_reason("handshake-timeout");
}

#[test]
fn a_connection_that_says_nothing_is_cut_at_the_deadline() {
    let mut setup = Setup::new();
    setup.set("limits.handshake_timeout", "1s").set("limits.silence_timeout", "500ms");
    let gateway = setup.start();
    let before = Instant::now();
    assert_eq!(read_to_end(&mut visitor::tcp(&gateway)), b"");
    assert!(before.elapsed() < AT_ONCE);
}

#[test]
fn a_hello_without_end_is_refused() {
    let gateway = Gateway::start();
    let mut stream = visitor::tcp(&gateway);
    // A handshake message that says it has 16 MiB, in full records.
    let mut sent = 0;
    let mut first = vec![1, 0xff, 0xff, 0xff];
    first.resize(16 * 1024, 0);
    let before = Instant::now();
    while sent < 2 << 20 {
        if stream.write_all(&[22, 3, 1, 0x40, 0]).and_then(|()| stream.write_all(&first)).is_err() {
            break;
        }
        sent += first.len();
        first.fill(0);
    }
    read_to_end(&mut stream);
    assert!(before.elapsed() < AT_ONCE, "only the deadline ended it");
}

/// What the single port answers to these bytes without TLS.
fn plain(gateway: &Gateway, bytes: &str) -> String {
    let mut stream = visitor::tcp(gateway);
    stream.write_all(bytes.as_bytes()).expect("open");
    String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned()
}

#[test]
fn plain_http_is_sent_to_https() {
    let gateway = Gateway::start();
    for method in ["GET", "HEAD"] {
        let answer = plain(&gateway, &format!("{method} /a/b?c=d HTTP/1.1\r\nHost: web.gw.test\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        assert!(answer.to_lowercase().contains("location: https://web.gw.test/a/b?c=d\r\n"), "{answer}");
    }
}

#[test]
fn plain_http_with_a_secret_or_a_body_is_told_to_use_https() {
    let gateway = Gateway::start();
    for request in [
        "GET / HTTP/1.1\r\nHost: web.gw.test\r\nAuthorization: Bearer x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web.gw.test\r\nContent-Length: 3\r\n\r\nabc",
        "DELETE / HTTP/1.1\r\nHost: web.gw.test\r\n\r\n",
    ] {
        let answer = plain(&gateway, request);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.to_lowercase().contains("https") && answer.contains("plain-http"), "{answer}");
    }
}

#[test]
fn plain_ssh_is_closed_unless_allowed() {
    let gateway = Gateway::start();
    assert_eq!(plain(&gateway, "SSH-2.0-OpenSSH_9.2\r\n"), "", "SSH stays hidden behind TLS");
    gateway.wait_reason("plain-ssh");

    let mut setup = Setup::new();
    setup.set("ssh.raw", true);
    let gateway = setup.start();
    let mut stream = visitor::tcp(&gateway);
    stream.write_all(b"SSH-2.0-test\r\n").expect("open");
    assert!(read_until(&mut stream, "\n").starts_with("SSH-2.0-"));
}

#[test]
fn anything_else_is_closed() {
    let gateway = Gateway::start();
    let words = ["EHLO mail.test\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"];
    for garbage in ["\0\0\0\0\0\0\0\0\0\0", "\u{80}abcdefgh"].into_iter().chain(words) {
        let before = Instant::now();
        let answer = plain(&gateway, garbage);
        assert!(answer.is_empty(), "{garbage:?}: {answer:?}");
        assert!(before.elapsed() < AT_ONCE, "{garbage:?}: only the deadline ended it");
    }
    gateway.wait_reason("unknown-protocol");
    // And the gateway goes on.
    assert!(visitor::tls(&gateway, Some("gw.test"), &["ssh"]).is_ok());
}

#[test]
fn broken_tls_is_closed_and_said() {
    let gateway = Gateway::start();
    let mut stream = visitor::tcp(&gateway);
    // A record that says it is a ClientHello, and is not.
    stream.write_all(&[22, 3, 1, 0, 8, 1, 0, 0, 4, 9, 9, 9, 9]).expect("open");
    read_to_end(&mut stream);
    gateway.wait_reason("tls-failed");
}

#[test]
fn both_tls_versions_and_the_post_quantum_exchange() {
    use crate::support::SOON;
    use crate::support::process::Process;
    let gateway = Gateway::start();
    let connect = |more: &[&str]| {
        let port = gateway.address().port();
        let ca = gateway.ca();
        let mut command = std::process::Command::new("openssl");
        command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "gw.test"]);
        command.args(["-alpn", "http/1.1", "-verify_return_error", "-CAfile"]).arg(ca).args(more);
        Process::run(&mut command, SOON)
    };
    assert!(connect(&["-tls1_3"]).stdout.contains("TLSv1.3"));
    assert!(connect(&["-tls1_2"]).stdout.contains("TLSv1.2"));
    let old = connect(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(!old.status.success(), "TLS 1.1 was spoken: {old:?}");

    let client = visitor::tls(&gateway, Some("gw.test"), &["http/1.1"]).expect("a handshake");
    let group = client.conn.negotiated_key_exchange_group().expect("TLS 1.3").name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn a_session_is_resumed_by_its_ticket() {
    use std::sync::Arc;
    let gateway = Gateway::start();
    let config = Arc::new(visitor::tls_config(gateway.ca(), &["http/1.1"]));
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let name = "gw.test".try_into().expect("a host name");
        let client = ClientConnection::new(config.clone(), name).expect("a client");
        let mut stream = StreamOwned::new(client, visitor::tcp(&gateway));
        stream.write_all(b"GET / HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n\r\n").expect("open");
        // The tickets come behind the handshake.
        let _ = stream.read(&mut [0; 64]).expect("an answer");
        kinds.push(stream.conn.handshake_kind());
    }
    assert_eq!(kinds[1], Some(rustls::HandshakeKind::Resumed), "{kinds:?}");
}

#[test]
fn agents_and_visitors_share_the_port() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let request = format!("GET /small HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("web"));
    let answer = visitor::raw_request(&gateway, &host("web"), request.as_bytes());
    assert!(answer.ends_with("small"), "{answer}");
}
