//! The admin listener: figures that are true and well-formed, health, status, and nobody from
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::agent::{Agent, OpenSsh, host, key_file};
use crate::support::backend::{Backend, nobody};
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::visitor::{self, Curl, half_close, read_to_end, read_until};
use crate::support::{SOON, poll};

/// What curl got from the admin.
#[derive(Debug)]
struct Told {
    status: u16,
    head: String,
    body: String,
}

fn with_admin() -> Gateway {
    let mut setup = Setup::new();
    setup.set("admin.listen", "127.0.0.1:0");
    setup.start()
}

fn curl(arguments: &[&str]) -> Told {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "30", "-D", "-", "--path-as-is"]).args(arguments);
    let output = Process::run(&mut command, SOON);
    let (head, body) = output.stdout.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Told { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// Asks the admin, with more arguments for curl.
fn ask(gateway: &Gateway, path: &str, arguments: &[&str]) -> Told {
    let url = format!("http://{}{path}", gateway.address_of("admin"));
    curl(&[arguments, &[&url]].concat())
}

fn status(gateway: &Gateway) -> Value {
    serde_json::from_str(&ask(gateway, "/status", &[]).body).expect("JSON")
}

fn metrics(gateway: &Gateway) -> Exposition {
    let told = ask(gateway, "/metrics", &[]);
    assert_eq!(told.status, 200, "{told:?}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(told.head.contains(kind), "{}", told.head);
    Exposition::parse(&told.body).unwrap_or_else(|fault| panic!("{fault}\n{}", told.body))
}

/// A page of figures, read strictly (OpenMetrics 1.0).
#[derive(Debug, Default)]
struct Exposition {
    /// Types by the family's name.
    families: BTreeMap<String, String>,
    /// Values by the sample's name and labels, as written.
    samples: BTreeMap<String, f64>,
}

impl Exposition {
    fn parse(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("no `# EOF` at the end")?;
        let mut page = Self::default();
        let mut family = String::new();
        let mut told = BTreeSet::new();
        for line in body.lines() {
            let fault = |what: &str| format!("{what}: {line}");
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let word = (words.next(), words.next(), words.next());
                let (Some(kind), Some(name), Some(value)) = word else { return Err(fault("too short")) };
                if name != family {
                    if page.families.contains_key(name) {
                        return Err(fault("a family in two places"));
                    }
                    name.clone_into(&mut family);
                    told.clear();
                }
                let is_fit = match kind {
                    "TYPE" => {
                        page.families.insert(name.to_owned(), value.to_owned());
                        ["counter", "gauge", "histogram", "info"].contains(&value)
                    }
                    "UNIT" => name.ends_with(&format!("_{value}")),
                    "HELP" => !value.is_empty(),
                    _ => false,
                };
                if !is_fit || !told.insert(kind.to_owned()) || !is_name(name) {
                    return Err(fault("no proper description"));
                }
            } else {
                page.sample(line, &family).map_err(|what| fault(&what))?;
            }
        }
        page.check_histograms()?;
        Ok(page)
    }

    fn sample(&mut self, line: &str, family: &str) -> Result<(), String> {
        let (key, value) = line.rsplit_once(' ').ok_or("no value")?;
        let (name, labels) = match key.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').ok_or("labels without an end")?),
            None => (key, ""),
        };
        let kind = self.families.get(family).ok_or("a sample before its type")?;
        let suffix = name.strip_prefix(family).ok_or("a sample of another family")?;
        let is_fit = match kind.as_str() {
            "counter" => suffix == "_total",
            "gauge" => suffix.is_empty(),
            "info" => suffix == "_info",
            _ => ["_bucket", "_sum", "_count"].contains(&suffix),
        };
        if !is_fit {
            return Err(format!("`{suffix}` is no ending for a {kind}"));
        }
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (name, value) = label.split_once('=').ok_or("a label without a value")?;
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let value = value.ok_or("a label's value without quotes")?;
            if !is_name(name) || value.is_empty() || value.contains(['"', '\\', '\n']) {
                return Err("an odd label".to_owned());
            }
        }
        let value: f64 = value.parse().map_err(|_| "no number")?;
        if !value.is_finite() || value < 0.0 {
            return Err("not a figure that can be".to_owned());
        }
        match self.samples.insert(key.to_owned(), value) {
            Some(_) => Err("a sample twice".to_owned()),
            None => Ok(()),
        }
    }

    /// Buckets add up, and the last is all.
    fn check_histograms(&self) -> Result<(), String> {
        for name in self.families.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
            let mut buckets: Vec<(f64, f64)> = Vec::new();
            for (key, value) in &self.samples {
                let Some(rest) = key.strip_prefix(&format!("{name}_bucket{{le=\"")) else { continue };
                let bound = rest.trim_end_matches("\"}").replace("+Inf", "inf");
                buckets.push((bound.parse().map_err(|_| format!("no bound: {key}"))?, *value));
            }
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            let last = buckets.last().ok_or("no buckets")?;
            let count = self.samples.get(&format!("{name}_count")).ok_or("no count")?;
            let adds_up = buckets.is_sorted_by(|one, other| one.1 <= other.1);
            if !adds_up || !last.0.is_infinite() || last.1 != *count {
                return Err(format!("the buckets of {name} do not add up: {buckets:?}"));
            }
        }
        Ok(())
    }

    /// A sample; one that is not there has not happened.
    fn get(&self, key: &str) -> f64 {
        self.samples.get(key).copied().unwrap_or_default()
    }

    /// Families as they are looked for: by the name of their samples.
    fn names(&self) -> BTreeMap<String, String> {
        let named = |(name, kind): (&String, &String)| {
            let ending = match kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (format!("{name}{ending}"), kind.clone())
        };
        self.families.iter().map(named).collect()
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[test]
fn the_parser_is_strict() {
    let page = |samples: &str| format!("# HELP oneport_x X\n# TYPE oneport_x counter\n{samples}# EOF\n");
    assert!(Exposition::parse(&page("oneport_x_total{reason=\"a\"} 1\noneport_x_total 2\n")).is_ok());
    for bad in [
        "oneport_x 1\n",
        "oneport_x_total -1\n",
        "oneport_x_total\n",
        "oneport_x_total 1\noneport_x_total 1\n",
        "oneport_x_total{reason=a} 1\n",
        "oneport_y_total 1\n",
        "# TYPE oneport_x counter\n",
    ] {
        assert!(Exposition::parse(&page(bad)).is_err(), "{bad}");
    }
    assert!(Exposition::parse("# HELP oneport_x X\n").is_err());
}

/// Waits until a figure is as expected.
#[track_caller]
fn wait(gateway: &Gateway, key: &str, value: f64) -> Exposition {
    poll(&format!("{key} {value}"), SOON, || {
        let page = metrics(gateway);
        (page.get(key) == value).then_some(page)
    })
}

#[test]
fn figures_move_with_what_happens() {
    let (gateway, backend) = (with_admin(), Backend::start());
    let before = metrics(&gateway);
    assert_eq!(before.get("oneport_connections_accepted_total"), 0.0);
    assert!(before.get("oneport_certificate_end_seconds") > before.get("oneport_start_time_seconds"));

    let agent = Agent::web(&gateway, backend.address());
    let page = metrics(&gateway);
    for key in ["oneport_tunnels_open", "oneport_tunnels_opened_total", "oneport_ssh_sessions_open"] {
        assert_eq!(page.get(key), 1.0, "{key}");
    }
    assert_eq!(page.get("oneport_connections_identified_total{class=\"ssh\"}"), 1.0);
    assert!(page.get("oneport_ssh_received_bytes_total") > 1000.0);
    assert!(page.get("oneport_ssh_sent_bytes_total") > 1000.0);

    let base = format!("https://{}", host("web"));
    for _ in 0..3 {
        assert_eq!(Curl::new(&gateway).http2().get(&format!("{base}/small")).text(), "small");
    }
    Curl::new(&gateway).http1().args(&["-d", "0123456789"]).get(&format!("{base}/small"));
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/", host("nobody"))).status, 502);
    let page = wait(&gateway, "oneport_visitor_connections_ended_total{reason=\"finished\"}", 5.0);
    let answered = "oneport_http_requests_total{reason=\"answered\",status=\"2xx\"}";
    assert_eq!(page.get(answered), 4.0);
    assert_eq!(page.get("oneport_http_requests_total{reason=\"no-tunnel\",status=\"5xx\"}"), 1.0);
    assert_eq!(page.get("oneport_http_requests_running"), 0.0);
    assert_eq!(page.get("oneport_http_received_bytes_total"), 10.0);
    assert!(page.get("oneport_http_sent_bytes_total") > 20.0);
    let upstream = page.get("oneport_upstream_connections_opened_total");
    assert!(upstream >= 1.0);
    assert_eq!(upstream + page.get("oneport_upstream_connections_reused_total"), 4.0);
    assert_eq!(page.get("oneport_ssh_channels_opened_total"), upstream);
    assert_eq!(page.get("oneport_connections_identified_total{class=\"http\"}"), 5.0);
    assert_eq!(page.get("oneport_tls_handshakes_total{version=\"1.3\"}"), 6.0);
    assert_eq!(page.get("oneport_connection_identification_seconds_count"), 6.0);

    visitor::tcp(&gateway).write_all(b"\0\0\0\0").expect("open");
    let page = wait(&gateway, "oneport_connections_refused_total{reason=\"unknown-protocol\"}", 1.0);
    assert_eq!(page.get("oneport_connections_accepted_total"), 7.0);

    drop(agent);
    let page = wait(&gateway, "oneport_ssh_sessions_open", 0.0);
    assert_eq!(page.get("oneport_tunnels_open"), 0.0);
    assert!(page.get("oneport_ssh_received_bytes_total") > 1000.0, "forgotten with the session");
    let page = wait(&gateway, "oneport_connections_open", 0.0);
    let ended = page.samples.iter().filter(|(key, _)| key.starts_with("oneport_ssh_sessions_ended_total"));
    assert_eq!(ended.map(|(_, count)| count).sum::<f64>(), 1.0);
}

#[test]
fn running_requests_and_refusals_are_seen() {
    let mut setup = Setup::new();
    let key = key_file(setup.dir.path(), "ed25519a").with_extension("pub");
    std::fs::write(&key, crate::support::agent::public_key("ed25519a")).expect("temporary folder");
    setup.set("admin.listen", "127.0.0.1:0").set("ssh.authorized_keys", key.to_str().expect("UTF-8"));
    setup.unset("ssh", "allow_any_key");
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).forward("/web", backend.address()).forward("/gone", nobody()).start();
    let url = format!("https://{}/gated", host("web"));
    let mut download = Process::start(&mut Curl::new(&gateway).args(&["-N"]).build(&url));
    download.out.wait_for("first ", SOON);
    let page = metrics(&gateway);
    assert_eq!(page.get("oneport_http_requests_running"), 1.0);
    assert_eq!(page.get("oneport_ssh_channels_open"), 1.0);
    assert_eq!(page.get("oneport_http_sent_bytes_total"), 6.0, "seen only in the end");
    backend.release();
    backend.release();
    download.finish(SOON);

    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/", host("gone"))).status, 502);
    wait(&gateway, "oneport_http_requests_total{reason=\"service-unreachable\",status=\"5xx\"}", 1.0);
    OpenSsh::new(&gateway).key("ed25519b").run();
    assert!(metrics(&gateway).get("oneport_ssh_keys_refused_total") >= 1.0);
    OpenSsh::new(&gateway).forward("/web", backend.address()).run();
    wait(&gateway, "oneport_ssh_forwards_refused_total{reason=\"name-taken\"}", 1.0);
}

#[test]
fn switched_streams_are_counted() {
    let (gateway, backend) = (with_admin(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let mut stream = visitor::tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
    let request =
        format!("POST /tcp HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", host("web"));
    stream.write_all(request.as_bytes()).expect("open");
    read_until(&mut stream, "\r\n\r\n");
    stream.write_all(b"hello").expect("open");
    assert_eq!(read_until(&mut stream, "HELLO"), "HELLO");
    let page = metrics(&gateway);
    assert_eq!(page.get("oneport_http_upgraded_open"), 1.0);
    assert_eq!(page.get("oneport_http_requests_running"), 1.0);
    half_close(&mut stream);
    let rest = read_to_end(&mut stream);
    let page = wait(&gateway, "oneport_http_upgraded_open", 0.0);
    assert_eq!(page.get("oneport_http_upgraded_total"), 1.0);
    assert_eq!(page.get("oneport_http_received_bytes_total"), 5.0);
    assert_eq!(page.get("oneport_http_sent_bytes_total"), 5.0 + rest.len() as f64);
    assert_eq!(page.get("oneport_http_requests_total{reason=\"finished\",status=\"1xx\"}"), 1.0);
}

#[test]
fn every_figure_is_explained() {
    let page = metrics(&with_admin());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `oneport_"));
    let explained: BTreeMap<String, String> = rows
        .map(|row| {
            let mut cells = row.split('|').map(str::trim);
            let (name, kind) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
            (format!("oneport_{}", name.trim_end_matches('`')), kind.to_owned())
        })
        .collect();
    assert_eq!(page.names(), explained, "left: what is told; right: what docs/metrics.md explains");
}

#[test]
fn the_status_says_who_is_there() {
    let (gateway, backend) = (with_admin(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let status = status(&gateway);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["draining"], false);
    assert_eq!((&status["connections"], &status["tunnels"]), (&1.into(), &1.into()));
    assert_eq!(status["limits"]["channels_per_session"], 512);
    assert_eq!(status["certificates"][0]["names"][0], "gw.test");
    let end = status["certificates"][0]["not_after"].as_str().expect("a time");
    assert!(end.contains('T') && end.ends_with('Z'), "{end}");
    let session = &status["sessions"][0];
    assert_eq!(session["user"], "me");
    assert_eq!(session["tunnels"][0]["name"], "web-dzk582uo");
    assert_eq!(session["tunnels"][0]["access"], "public");
    assert!(session["key"].as_str().is_some_and(|key| key.starts_with("SHA256:")), "{session}");
    assert!(session["software"].as_str().is_some_and(|software| software.starts_with("OpenSSH_")));
    assert!(session["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")));
}

#[test]
fn health_and_what_is_not_served() {
    let gateway = with_admin();
    for path in ["/healthz", "/readyz", "/readyz?verbose"] {
        assert_eq!(ask(&gateway, path, &[]).status, 200, "{path}");
    }
    let head = ask(&gateway, "/metrics", &["-I", "-o", "/dev/null"]);
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(ask(&gateway, "/", &[]).status, 404);
    let refused = ask(&gateway, "/metrics", &["-X", "POST", "-d", "x"]);
    assert_eq!(refused.status, 405);
    assert!(refused.head.contains("allow: get, head"), "{}", refused.head);
    let long = format!("X-Long: {}", "a".repeat(32 * 1024));
    assert_eq!(ask(&gateway, "/healthz", &["-H", &long]).status, 431);
}

#[test]
fn a_page_of_elsewhere_learns_nothing() {
    let gateway = with_admin();
    let port = gateway.address_of("admin").port();
    let evil = format!("rebound.example:{port}:127.0.0.1");
    let refused = curl(&["--resolve", &evil, &format!("http://rebound.example:{port}/status")]);
    assert_eq!(refused.status, 421, "{refused:?}");
    assert!(!refused.body.contains("version"), "{refused:?}");
    assert_eq!(ask(&gateway, "/status", &["-H", "Host: evil.example"]).status, 421);
    assert_eq!(ask(&gateway, "/status", &["-H", "Host:", "--http1.0"]).status, 421);
    let named = curl(&[&format!("http://localhost:{port}/status")]);
    assert_eq!(named.status, 200, "{named:?}");
}

#[test]
fn whoever_holds_connections_is_let_go() {
    let gateway = with_admin();
    let address = gateway.address_of("admin");
    // More than may be there at once: those past it are closed unheard.
    let mut held: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(address).expect("it listens")).collect();
    let mut last = held.pop().expect("forty");
    last.set_read_timeout(Some(SOON)).expect("a socket");
    assert!(matches!(last.read(&mut [0]), Ok(0) | Err(_)));
    held.truncate(16);
    held[0].write_all(b"GET /metr").expect("open");
    for stream in &mut held {
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        read_to_end(stream);
    }
    assert_eq!(ask(&gateway, "/healthz", &[]).status, 200);
}

#[test]
fn it_goes_on_while_the_gateway_drains() {
    let (mut gateway, backend) = (with_admin(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let url = format!("https://{}/gated", host("web"));
    let mut download = Process::start(&mut Curl::new(&gateway).args(&["-N"]).build(&url));
    download.out.wait_for("first ", SOON);
    assert_eq!(ask(&gateway, "/readyz", &[]).status, 200);
    gateway.signal(Signal::TERM);
    poll("that it is not ready", SOON, || (ask(&gateway, "/readyz", &[]).status == 503).then_some(()));
    assert_eq!(ask(&gateway, "/healthz", &[]).status, 200);
    assert_eq!(status(&gateway)["draining"], true);
    assert_eq!(metrics(&gateway).get("oneport_http_requests_running"), 1.0);
    backend.release();
    backend.release();
    download.finish(SOON);
    assert_eq!(gateway.finish(SOON).status.code(), Some(0));
}

fn on_socket(path: &Path) -> Gateway {
    let mut setup = Setup::new();
    setup.set("admin.listen", format!("unix:{}", path.display()));
    setup.start()
}

fn ask_socket(path: &Path, what: &str, arguments: &[&str]) -> Told {
    let path = path.to_str().expect("UTF-8");
    curl(&[&["--unix-socket", path], arguments, &[&format!("http://gateway{what}")]].concat())
}

#[test]
fn a_unix_socket_is_for_its_user_and_outlives_a_kill() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path: PathBuf = dir.path().join("admin.sock");
    let mut gateway = on_socket(&path);
    gateway.wait_log("admin listener", |record| record["what"] == "admin");
    assert_eq!(std::fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
    assert_eq!(ask_socket(&path, "/healthz", &[]).status, 200);
    // No name leads to a socket, so no name is asked for.
    let told = ask_socket(&path, "/metrics", &["-H", "Host:"]);
    Exposition::parse(&told.body).expect("well-formed");

    let mut setup = Setup::new();
    setup.set("admin.listen", format!("unix:{}", path.display()));
    let second = Process::run(&mut setup.command(), SOON);
    assert!(!second.status.success());
    assert!(second.stderr.contains("another program"), "{}", second.stderr);
    assert_eq!(ask_socket(&path, "/healthz", &[]).status, 200, "the second took it");

    gateway.signal(Signal::KILL);
    gateway.finish(SOON);
    assert!(path.exists());
    let mut gateway = on_socket(&path);
    assert_eq!(ask_socket(&path, "/readyz", &[]).status, 200);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.finish(SOON).status.code(), Some(0));
    assert!(!path.exists(), "the socket was left");
}
