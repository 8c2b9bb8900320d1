//! BIND, as the server of the zone `gw.test` and as a resolver that follows its NS records.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::SOON;
use super::process::Process;

/// The key `oneport`, by which it takes updates.
pub const KEY: &str = "c2VjcmV0LW9mLXRoZS10ZXN0cy1rZXktMzItb2N0ZXRz";

/// A running server on 127.0.0.1. It asks others at the same port, so that 127.0.0.2 can be one.
pub struct Named {
    pub port: u16,
    _dir: TempDir,
    _process: Process,
}

impl Named {
    /// `records` stand in the zone, besides its own.
    #[track_caller]
    pub fn start(records: &str) -> Self {
        let (port, dir) =
            (free_port(&["127.0.0.1", "127.0.0.2"]), tempfile::tempdir().expect("temporary folder"));
        let folder = dir.path().display();
        let head = "$TTL 60\n@ IN SOA ns1.gw.test. admin.gw.test. 1 60 60 600 1\n@ NS ns1.gw.test.\n";
        let config = format!(
            r#"
options {{
  directory "{folder}"; pid-file none; managed-keys-directory "{folder}"; session-keyfile "{folder}/session.key";
  port {port}; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  recursion yes; allow-query {{ any; }}; dnssec-validation no; empty-zones-enable no;
}};
controls {{ }};
key "oneport" {{ algorithm hmac-sha256; secret "{KEY}"; }};
zone "gw.test" {{ type primary; file "zone"; update-policy {{ grant oneport subdomain gw.test. TXT; }}; }};
zone "." {{ type primary; file "root"; }};
"#
        );
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).expect("writable");
        write("zone", format!("{head}ns1 A 127.0.0.1\n{records}\n"));
        write("root", format!("{head}gw.test. NS ns1.gw.test.\nns1.gw.test. A 127.0.0.1\n"));
        write("named.conf", config);
        let process =
            Process::start(Command::new("named").arg("-g").arg("-c").arg(dir.path().join("named.conf")));
        process.err.wait_for(" running\n", SOON);
        Self { port, _dir: dir, _process: process }
    }

    /// The TXT values at a name, as `dig` shows them; those that this server finds elsewhere, too.
    #[track_caller]
    pub fn texts(&self, name: &str) -> String {
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.1", "-p", &self.port.to_string(), "+short", name, "TXT"]);
        Process::run(&mut dig, SOON).stdout
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// A port that is free over UDP and TCP, on each of these addresses. None that the system gives to
/// outgoing connections, and another one for each process, since it is free only until it is bound.
pub fn free_port(ips: &[&str]) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let offset =
            std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = 20_000 + u16::try_from(offset).expect("small");
        let is_free =
            |ip: &&str| TcpListener::bind((*ip, port)).is_ok() && UdpSocket::bind((*ip, port)).is_ok();
        if ips.iter().all(is_free) {
            return port;
        }
    }
    panic!("no port is free");
}
