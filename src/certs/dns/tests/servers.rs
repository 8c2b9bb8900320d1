//! Real DNS servers on ports of their own, and `dig`.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hickory_proto::op::Message;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::certs::dns::{ChallengeRecord, DnsError, DnsProvider};
use crate::config::DnsSettings;

const SOON: Duration = Duration::from_secs(20);

/// The key that servers take updates by.
pub(super) const KEY: &str = "c2VjcmV0LW9mLXRoZS10ZXN0cy1rZXktMzItb2N0ZXRz";

/// A running server; ends when dropped.
pub(super) struct DnsServer {
    pub(super) address: SocketAddr,
    _dir: TempDir,
    _child: Child,
}

/// A port that is free, over UDP and TCP, on each of these addresses. None that the system gives to
/// outgoing connections, and another one for each process, since it is free only until it is bound.
pub(super) fn free_port(ips: &[&str]) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(97).wrapping_add(step) % 12_000;
        let port = 20_000 + u16::try_from(offset).expect("small");
        let is_free =
            |ip: &&str| TcpListener::bind((*ip, port)).is_ok() && UdpSocket::bind((*ip, port)).is_ok();
        if ips.iter().all(is_free) {
            return port;
        }
    }
    panic!("no port is free");
}

/// BIND, holding `preview.test` with these records, and taking updates signed with the key
/// `oneport` for anything and with `other` for nothing. `more` is further configuration.
pub(super) async fn named(port: u16, records: &str, more: &str) -> DnsServer {
    let dir = tempfile::tempdir().expect("temporary folder");
    let folder = dir.path().display();
    let zone =
        format!("$TTL 60\n@ IN SOA ns1 hostmaster 1 60 60 600 1\n@ NS ns1\nns1 A 127.0.0.1\n{records}\n");
    std::fs::write(dir.path().join("preview.test.zone"), zone).expect("writable");
    let config = format!(
        r#"
options {{
  directory "{folder}"; pid-file none; managed-keys-directory "{folder}"; session-keyfile "{folder}/session.key";
  port {port}; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  recursion yes; allow-query {{ any; }}; dnssec-validation no; empty-zones-enable no;
}};
controls {{ }};
key "oneport" {{ algorithm hmac-sha256; secret "{KEY}"; }};
key "oneport512" {{ algorithm hmac-sha512; secret "{KEY}"; }};
key "other" {{ algorithm hmac-sha256; secret "{KEY}"; }};
zone "preview.test" {{
  type primary; file "preview.test.zone";
  update-policy {{ grant oneport subdomain preview.test. TXT; grant oneport512 subdomain preview.test. TXT; }};
}};
zone "." {{ type primary; file "root.zone"; }};
{more}
"#
    );
    let root = "$TTL 60\n. IN SOA ns1.preview.test. hostmaster.preview.test. 1 60 60 600 1\n. NS ns1.preview.test.\npreview.test. NS ns1.preview.test.\nns1.preview.test. A 127.0.0.1\n";
    std::fs::write(dir.path().join("root.zone"), root).expect("writable");
    std::fs::write(dir.path().join("named.conf"), config).expect("writable");
    let mut command = Command::new("named");
    command.arg("-g").arg("-c").arg(dir.path().join("named.conf"));
    let child = start(command, |line| line.ends_with(" running"), "bind9").await;
    DnsServer { address: ([127, 0, 0, 1], port).into(), _dir: dir, _child: child }
}

/// Knot, holding `preview.test`, taking updates signed with the key `oneport`.
pub(super) async fn knotd(ip: [u8; 4], port: u16) -> DnsServer {
    let at = std::net::IpAddr::from(ip);
    let dir = tempfile::tempdir().expect("temporary folder");
    let folder = dir.path().display();
    let zone = "$TTL 60\n@ IN SOA ns1 hostmaster 1 60 60 600 1\n@ NS ns1\nns1 A 127.0.0.1\n";
    std::fs::write(dir.path().join("preview.test.zone"), zone).expect("writable");
    let config = format!(
        r#"
server:
    listen: {at}@{port}
    rundir: "{folder}"
database:
    storage: "{folder}"
log:
  - target: stderr
    any: info
key:
  - id: oneport
    algorithm: hmac-sha256
    secret: {KEY}
acl:
  - id: updates
    key: oneport
    action: update
zone:
  - domain: preview.test
    storage: "{folder}"
    file: preview.test.zone
    acl: updates
"#
    );
    std::fs::write(dir.path().join("knot.conf"), config).expect("writable");
    let mut command = Command::new("knotd");
    command.arg("-c").arg(dir.path().join("knot.conf"));
    let child = start(command, |line| line.contains("server started"), "knot").await;
    DnsServer { address: (at, port).into(), _dir: dir, _child: child }
}

async fn start(mut command: Command, is_ready: fn(&str) -> bool, package: &str) -> Child {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start `{name}`: {error}; install {package}, or run ./test"));
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut said = String::new();
    let heard = tokio::time::timeout(SOON, async {
        while let Ok(Some(line)) = lines.next_line().await {
            said.push_str(&line);
            said.push('\n');
            if is_ready(line.trim_end()) {
                return true;
            }
        }
        false
    });
    assert_eq!(heard.await, Ok(true), "`{name}` is not ready:\n{said}");
    // Read on, or it would stop at a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

/// Stands before a resolver, and notes for which names it is asked.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    pub(super) async fn start(resolver: SocketAddr) -> Self {
        let bind = async || tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let (front, back) = (bind().await, bind().await);
        back.connect(resolver).await.expect("loopback");
        let relay = Self { address: front.local_addr().expect("bound"), asked: Arc::default() };
        let asked = relay.asked.clone();
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok((count, peer)) = front.recv_from(&mut bytes).await {
                let message = Message::from_vec(&bytes[..count]).expect("a request");
                asked.lock().extend(message.queries.iter().map(|query| query.name.to_ascii()));
                back.send(&bytes[..count]).await.expect("sent");
                let count = back.recv(&mut bytes).await.expect("an answer");
                front.send_to(&bytes[..count], peer).await.expect("sent");
            }
        });
        relay
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

/// What `dig` says, as short as these arguments ask for.
pub(super) async fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    let mut command = Command::new("dig");
    command.arg(format!("@{}", server.ip())).args(["-p", &server.port().to_string()]);
    command.args(["+tries=1", "+time=5"]).args(arguments).kill_on_drop(true);
    let output = tokio::time::timeout(SOON, command.output())
        .await
        .expect("dig ends")
        .expect("dig is installed: install bind9-dnsutils, or run ./test");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Settings that ask this server, whoever sets records.
pub(super) fn settings(resolver: SocketAddr) -> DnsSettings {
    DnsSettings { way: None, resolver: vec![resolver], servers: vec![], timeout: Duration::from_secs(10) }
}

pub(super) fn record(value: &str) -> ChallengeRecord {
    ChallengeRecord { name: "_acme-challenge.preview.test".to_owned(), value: value.to_owned() }
}

/// Writes a program that `sh` runs.
pub(super) fn script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, format!("#!/bin/sh\n{body}\n")).expect("writable");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("ours");
}

/// Sets a value and waits until it is seen; gives what to tell when it is removed.
pub(super) async fn present(
    provider: &dyn DnsProvider,
    record: &ChallengeRecord,
) -> Result<Option<String>, DnsError> {
    let memo = provider.set(record).await?;
    provider.seen(record).await?;
    Ok(memo)
}
