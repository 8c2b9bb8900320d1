//! What visitors are promised of HTTP: both versions, streams both ways, headers, routes, and
//! answers in words.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use crate::support::agent::{Agent, OpenSsh, host, node};
use crate::support::backend::{self, Backend, big_sha256, nobody};
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::visitor::{self, Curl, Response, raw_request, read_to_end, read_until};
use crate::support::{SOON, poll, sha256};

/// A gateway with an agent whose `web` is the usual backend.
struct House {
    gateway: Gateway,
    backend: Backend,
    _agent: Agent,
}

impl House {
    fn new() -> Self {
        Self::with(Setup::new())
    }

    fn with(setup: Setup) -> Self {
        let (gateway, backend) = (setup.start(), Backend::start());
        let agent = Agent::web(&gateway, backend.address());
        Self { gateway, backend, _agent: agent }
    }

    fn curl(&self) -> Curl<'_> {
        Curl::new(&self.gateway)
    }

    fn raw(&self, request: &str) -> String {
        raw_request(&self.gateway, &host("web"), request.as_bytes())
    }
}

fn url(path: &str) -> String {
    format!("https://{}{path}", host("web"))
}

/// All values of a request header, as the backend saw them.
fn seen<'a>(echo: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = echo["headers"].as_array().expect("a list");
    headers.iter().filter(|header| header[0] == name).filter_map(|header| header[1].as_str()).collect()
}

/// Moves that many megabytes down and up through `web`, and compares checksums.
pub fn moves_megabytes(gateway: &Gateway, mb: usize, version: &str) {
    let down = Curl::new(gateway).args(&[version]).get(&url(&format!("/big?mb={mb}")));
    assert_eq!(down.status, 200, "{}", down.stderr);
    assert_eq!(down.body.len(), mb * 1024 * 1024);
    assert_eq!(sha256(&down.body), big_sha256(mb));

    let file = gateway.path("upload");
    backend::big_file(&file, mb);
    let data = format!("@{}", file.display());
    let up = Curl::new(gateway).args(&[version, "--data-binary", &data]).get(&url("/upload"));
    let up = up.json();
    assert_eq!(up["length"], mb * 1024 * 1024);
    assert_eq!(up["sha256"], big_sha256(mb));
    // Again with chunks: the length is not known beforehand.
    let up = Curl::new(gateway)
        .args(&[version, "-X", "POST", "-T", &file.display().to_string(), "-H", "Transfer-Encoding: chunked"])
        .get(&url("/upload"));
    assert_eq!(up.json()["sha256"], big_sha256(mb));
}

#[test]
fn http1_moves_a_hundred_megabytes_each_way() {
    moves_megabytes(&House::new().gateway, 100, "--http1.1");
}

#[test]
fn http2_moves_a_hundred_megabytes_each_way() {
    moves_megabytes(&House::new().gateway, 100, "--http2");
}

#[test]
fn both_versions_are_spoken_as_asked() {
    let house = House::new();
    assert_eq!(house.curl().http1().get(&url("/small")).version, "1.1");
    let response = house.curl().http2().get(&url("/small"));
    assert_eq!((response.version.as_str(), response.text().as_str()), ("2", "small"));
}

/// The first event must be there while the stream still runs.
fn events_arrive_one_by_one(version: &str) {
    let house = House::new();
    let mut curl = Process::start(&mut house.curl().args(&[version, "-N"]).build(&url("/sse")));
    let first = curl.out.wait_for("data: one\n\n", SOON);
    assert!(!first.contains("two"), "{first}");
    assert!(curl.has_ended().is_none(), "the stream ended: {}", curl.err);
    house.backend.release();
    curl.out.wait_for("data: two\n\n", SOON);
    assert!(curl.finish(SOON).status.success());
}

#[test]
fn server_sent_events_over_http1() {
    events_arrive_one_by_one("--http1.1");
}

#[test]
fn server_sent_events_over_http2() {
    events_arrive_one_by_one("--http2");
}

#[test]
fn a_long_poll_is_waited_for() {
    let house = House::new();
    let mut curl = Process::start(&mut house.curl().build(&url("/held")));
    poll("the request at the backend", SOON, || (house.backend.requests() > 0).then_some(()));
    assert!(curl.has_ended().is_none());
    house.backend.release();
    assert_eq!(curl.finish(SOON).stdout, "let go");
}

#[test]
fn an_upload_reaches_the_backend_while_it_is_sent() {
    // The backend answers each piece; a gateway that holds the body back would wait for ever.
    let address = backend::raw(|mut stream, _| {
        read_until(&mut stream, "\r\n\r\n");
        read_until(&mut stream, "one");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nONE\r\n");
        read_until(&mut stream, "two");
        let _ = stream.write_all(b"3\r\nTWO\r\n0\r\n\r\n");
        read_to_end(&mut stream);
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    let mut stream = visitor::tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
    let head =
        format!("POST / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n", host("web"));
    stream.write_all(head.as_bytes()).expect("open");
    read_until(&mut stream, "ONE");
    stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").expect("open");
    read_until(&mut stream, "TWO");
}

#[test]
fn trailers_pass_both_ways() {
    let house = House::new();
    let request = format!(
        "POST /upload HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n",
        host("web")
    );
    let answer = house.raw(&request);
    assert!(answer.contains(r#"[["x-sum","42"]]"#), "{answer}");
    let request = format!(
        "GET /trailers HTTP/1.1\r\nHost: {}\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n",
        host("web")
    );
    let answer = house.raw(&request);
    assert!(answer.to_lowercase().ends_with("0\r\nx-checksum: abc\r\n\r\n"), "{answer:?}");
    let answer = house.curl().http2().header("TE: trailers").get(&url("/trailers"));
    assert_eq!(answer.header("x-checksum"), Some("abc"), "{answer:?}");
}

#[test]
fn expect_continue_is_answered_by_the_service() {
    let house = House::new();
    let upload = |expect: &str| {
        house
            .curl()
            .http1()
            .args(&["-v", "--expect100-timeout", "15", "-H", expect, "-d", "abc"])
            .get(&url("/upload"))
    };
    let response = upload("Expect: 100-continue");
    assert!(response.stderr.contains("HTTP/1.1 100"), "no interim answer: {}", response.stderr);
    assert_eq!(response.json()["length"], 3);
    assert!(response.headers.len() > 1 && upload("Expect:").json()["length"] == 3);
}

#[test]
fn a_refused_expect_spares_the_upload() {
    let house = House::new();
    let response = house
        .curl()
        .http1()
        .args(&["--expect100-timeout", "15", "-H", "Expect: 100-continue", "-d", "abc"])
        .get(&url("/early"));
    assert_eq!(response.status, 413);
}

#[test]
fn an_early_answer_to_an_unfinished_upload() {
    let house = House::new();
    let file = house.gateway.path("upload");
    backend::big_file(&file, 32);
    let data = format!("@{}", file.display());
    let response = house.curl().http1().args(&["-H", "Expect:", "--data-binary", &data]).call(&url("/early"));
    assert_eq!(response.status, 413, "{response:?}");
    // The connection to the service was in the middle of a body: the next request needs another.
    assert_eq!(house.curl().get(&url("/small")).text(), "small");

    // Not with curl: several versions lose the answer when the stream is reset behind it.
    let (port, ca) = (house.gateway.address().port(), house.gateway.ca());
    let options = json!({ "port": port, "ca": ca, "host": host("web"), "path": "/early", "mb": 32 });
    let output = node("h2_upload.js", &options).finish(SOON);
    let result: Value = serde_json::from_str(output.stdout.trim()).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((&result["status"], &result["error"]), (&json!(413), &Value::Null), "{result}");
    assert_eq!(house.curl().get(&url("/small")).text(), "small");
}

#[test]
fn head_and_no_content_have_no_body() {
    let house = House::new();
    for version in ["--http1.1", "--http2"] {
        let head = house.curl().args(&[version, "-I"]).get(&url("/big?mb=1"));
        assert_eq!((head.status, head.header("content-length")), (200, Some("1048576")), "{version}");
        assert_eq!(house.curl().args(&[version]).get(&url("/no-content")).status, 204);
        assert_eq!(house.curl().args(&[version]).get(&url("/small")).text(), "small");
    }
}

#[test]
fn connections_to_the_service_are_reused() {
    let house = House::new();
    for _ in 0..6 {
        assert_eq!(house.curl().get(&url("/small")).text(), "small");
    }
    assert_eq!(house.backend.requests(), 6);
    assert!(house.backend.connections() <= 2, "{} connections for 6 requests", house.backend.connections());
}

#[test]
fn a_kept_connection_that_died_is_replaced() {
    // Answers once on each connection, promises to keep it, and closes it.
    let address = backend::raw(|mut stream, _| {
        read_until(&mut stream, "\r\n\r\n");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    for _ in 0..10 {
        assert_eq!(Curl::new(&gateway).get(&url("/")).text(), "ok");
    }
}

#[test]
fn a_request_that_may_have_been_done_is_not_sent_twice() {
    let posts = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = posts.clone();
    // Keeps the connection after a GET, and closes it without a word once it has read a POST.
    let address = backend::raw(move |mut stream, _| {
        loop {
            let mut first = [0];
            if !matches!(stream.read(&mut first), Ok(1)) {
                return;
            }
            let head = read_until(&mut stream, "\r\n\r\n");
            if head.starts_with("OST") {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    assert_eq!(Curl::new(&gateway).get(&url("/")).text(), "ok");
    let response = Curl::new(&gateway).args(&["-d", "pay"]).get(&url("/"));
    assert_eq!(response.status, 502, "{response:?}");
    assert!(response.text().contains("service-closed"), "{}", response.text());
    assert_eq!(posts.load(std::sync::atomic::Ordering::SeqCst), 1);
}

/// A body on a GET that the service ignores must not become the next visitor's request.
#[test]
fn a_body_that_the_service_ignores_does_not_poison_the_connection() {
    let address = backend::raw(|mut stream, _| {
        loop {
            let mut first = [0];
            if !matches!(stream.read(&mut first), Ok(1)) {
                return;
            }
            let head = String::from_utf8_lossy(&first).into_owned() + &read_until(&mut stream, "\r\n\r\n");
            let line = head.lines().next().unwrap_or_default().to_owned();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    for _ in 0..4 {
        Curl::new(&gateway).args(&["-X", "GET", "-d", "abcd"]).get(&url("/with-a-body"));
        assert_eq!(Curl::new(&gateway).get(&url("/next")).text(), "GET /next HTTP/1.1");
    }
}

#[test]
fn forwarding_headers_are_rebuilt() {
    let house = House::new();
    for version in ["--http1.1", "--http2"] {
        let echo = house
            .curl()
            .args(&[version])
            .header("X-Forwarded-For: 6.6.6.6")
            .header("X-Forwarded-Host: evil.test")
            .header("X-Forwarded-Proto: gopher")
            .header("X-Forwarded-Port: 1")
            .header("Forwarded: for=6.6.6.6")
            .header("X-Real-IP: 6.6.6.6")
            .get(&url("/echo"))
            .json();
        assert_eq!(seen(&echo, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen(&echo, "x-forwarded-host"), [host("web")]);
        assert_eq!(seen(&echo, "x-forwarded-proto"), ["https"]);
        assert_eq!(seen(&echo, "x-forwarded-port").len(), 1);
        assert_ne!(seen(&echo, "x-forwarded-port"), ["1"]);
        assert_eq!(seen(&echo, "host"), [host("web")]);
        assert!(seen(&echo, "via").is_empty());
        assert!(!echo.to_string().contains("6.6.6.6"), "{echo}");
    }
}

#[test]
fn a_trusted_proxy_is_believed() {
    let mut setup = Setup::new();
    setup.set("http.trusted_proxies", vec!["127.0.0.0/8"]);
    let house = House::with(setup);
    let echo = house.curl().header("X-Forwarded-For: 9.9.9.9").get(&url("/echo")).json();
    assert_eq!(seen(&echo, "x-forwarded-for").join(", "), "9.9.9.9, 127.0.0.1");
}

#[test]
fn hop_by_hop_headers_end_here() {
    let house = House::new();
    let echo = house
        .curl()
        .http1()
        .header("Connection: x-secret-hop, keep-alive")
        .header("X-Secret-Hop: 1")
        .header("Keep-Alive: timeout=5")
        .header("Proxy-Connection: keep-alive")
        .header("X-Kept: 1")
        .get(&url("/echo"))
        .json();
    for name in ["x-secret-hop", "keep-alive", "proxy-connection"] {
        assert!(seen(&echo, name).is_empty(), "`{name}` went on: {echo}");
    }
    assert_eq!(seen(&echo, "x-kept"), ["1"]);

    let response = house.curl().http2().get(&url("/hop"));
    for name in ["x-mine", "keep-alive", "connection", "proxy-authenticate", "proxy-authentication-info"] {
        assert_eq!(response.header(name), None, "`{name}` came back");
    }
    assert_eq!(response.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"), "Date is the service's");
}

#[test]
fn paths_are_passed_on_unchanged() {
    let house = House::new();
    for path in ["//tunnels", "/a/../b", "/%2e%2e/x", "/a%2Fb?q=%20&r", "/?", "/;v=1"] {
        for version in ["--http1.1", "--http2"] {
            assert_eq!(house.curl().args(&[version]).get(&url(path)).json()["target"], path, "{version}");
        }
    }
}

#[test]
fn proxy_paths_lead_to_tunnels_on_the_base_host() {
    let house = House::new();
    let base = "https://gw.test/proxy/web-dzk582uo";
    for (path, target) in [("/rest/of?x=1", "/rest/of?x=1"), ("/", "/"), ("//tunnels", "//tunnels")] {
        assert_eq!(house.curl().get(&format!("{base}{path}")).json()["target"], target);
    }
    assert_eq!(house.curl().get(base).json()["target"], "/");
    assert_eq!(house.curl().get(&format!("{base}?x=1")).json()["target"], "/?x=1");
    let missing = house.curl().get("https://gw.test/proxy/nobody-dzk582uo/x");
    assert_eq!(missing.status, 502);
    // On a tunnel's own host it is a path like any other.
    assert_eq!(house.curl().get(&url("/proxy/web-dzk582uo/x")).json()["target"], "/proxy/web-dzk582uo/x");
}

#[test]
fn own_hosts_answer() {
    let gateway = Gateway::start();
    for host in ["auth.gw.test", "api.gw.test"] {
        assert_eq!(Curl::new(&gateway).get(&format!("https://{host}/healthz")).status, 200, "{host}");
    }
}

#[test]
fn a_browser_may_share_one_connection_but_not_for_a_host_outside_the_certificate() {
    let house = House::new();
    let shared = format!("GET /small HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("web"));
    let answer = raw_request(&house.gateway, "another.gw.test", shared.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = raw_request(
        &house.gateway,
        &host("web"),
        b"GET / HTTP/1.1\r\nHost: elsewhere.test\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    assert!(answer.contains("wrong-host"), "{answer}");
}

#[test]
fn no_tunnel_is_said_to_each_in_their_own_way() {
    let gateway = Gateway::start();
    let url = "https://nobody-dzk582uo.gw.test/";
    let ask = |accept: &str| Curl::new(&gateway).header(&format!("Accept: {accept}")).get(url);
    let kind = |response: &Response| response.header("content-type").unwrap_or_default().to_owned();

    let page = ask("text/html,application/xhtml+xml,*/*;q=0.8");
    assert_eq!(page.status, 502);
    assert!(
        kind(&page).starts_with("text/html") && page.text().contains("No active tunnel found"),
        "{page:?}"
    );
    assert!(page.text().contains("no-tunnel"), "{}", page.text());

    let json = ask("application/json");
    assert_eq!(json.status, 502);
    assert!(kind(&json).starts_with("application/json"), "{json:?}");
    assert!(json.json()["message"].as_str().expect("a message").contains("No active tunnel found"));

    let plain = ask("*/*");
    assert_eq!(plain.status, 502);
    assert!(
        kind(&plain).starts_with("text/plain") && plain.text().contains("No active tunnel found"),
        "{plain:?}"
    );
    assert!(!plain.text().contains('<'), "{}", plain.text());
    let record = gateway.wait_reason("no-tunnel");
    let id = ["id", "request", "request_id", "req"].iter().find_map(|name| record[*name].as_str());
    let id = id.unwrap_or_else(|| panic!("no id in the record {record}"));
    assert!(
        [page.text(), json.text(), plain.text()].iter().any(|text| text.contains(id)),
        "the page does not show `{id}`"
    );
}

#[test]
fn an_error_page_does_not_run_what_a_visitor_wrote() {
    let gateway = Gateway::start();
    let page = Curl::new(&gateway)
        .header("Accept: text/html")
        .get("https://gw.test/proxy/%3Cscript%3Ealert(1)%3C/%3Cscript%3Ealert(2)?%3Cscript%3Ealert(3)");
    assert!(!page.text().contains("<script>alert"), "{}", page.text());
}

#[test]
fn a_service_that_is_not_there() {
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, nobody());
    let response = Curl::new(&gateway).get(&url("/"));
    assert_eq!(response.status, 502);
    assert!(response.text().contains("could not reach its service"), "{}", response.text());
    assert!(response.text().contains("service-unreachable"), "{}", response.text());
}

#[test]
fn a_service_that_does_not_speak_http() {
    does_not_speak_http(|stream| {
        read_until(stream, "\r\n\r\n");
        let _ = stream.write_all(b"-ERR unknown command `GET`\r\n");
    });
}

#[test]
fn a_service_that_does_not_speak_http_and_speaks_first() {
    does_not_speak_http(|stream| {
        let _ = stream.write_all(b"220 mail.test ESMTP\r\n");
    });
}

fn does_not_speak_http(greet: impl Fn(&mut std::net::TcpStream) + Send + Sync + 'static) {
    let address = backend::raw(move |mut stream, _| {
        greet(&mut stream);
        read_to_end(&mut stream);
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    let response = Curl::new(&gateway).get(&url("/"));
    assert_eq!(response.status, 502);
    assert!(response.text().contains("service-not-http"), "{}", response.text());
}

#[test]
fn a_private_tunnel_keeps_strangers_out() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address()).start();
    let response = Curl::new(&gateway).get(&url("/small"));
    assert!(matches!(response.status, 307 | 401 | 403), "{response:?}");
    assert_eq!(backend.requests(), 0);
}

#[test]
fn requests_that_smuggle_get_400_and_the_connection_closes() {
    let house = House::new();
    let host = host("web");
    let after = format!("GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let cases = [
        (
            "both lengths",
            format!(
                "POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "two content lengths",
            format!(
                "POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"
            ),
        ),
        (
            "a list of lengths",
            format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4, 5\r\n\r\nabcde"),
        ),
        (
            "a signed length",
            format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: +4\r\n\r\nabcd"),
        ),
        (
            "another coding",
            format!(
                "POST /upload HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "a coding that is none",
            format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "chunked twice",
            format!(
                "POST /upload HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "a coding in HTTP/1.0",
            format!("POST /upload HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "space before the colon",
            format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length : 4\r\n\r\nabcd"),
        ),
        ("a folded line", format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-A: b\r\n c\r\n\r\n")),
        ("bare line feeds", format!("GET / HTTP/1.1\nHost: {host}\n\n")),
        ("one bare line feed", format!("GET / HTTP/1.1\r\nHost: {host}\nX-A: b\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\nX-A: b\r\n\r\n".to_owned()),
        ("two hosts", format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: gw.test\r\n\r\n")),
        ("another authority", format!("GET https://gw.test/ HTTP/1.1\r\nHost: {host}\r\n\r\n")),
        ("a NUL", format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-A: a\0b\r\n\r\n")),
        ("no request at all", "\r\n\r\nhello\r\n\r\n".to_owned()),
        ("a host that is none", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned()),
    ];
    for (what, request) in &cases {
        let answer = house.raw(&format!("{request}{after}"));
        assert!(answer.starts_with("HTTP/1.1 400"), "{what}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: went on after it: {answer:?}");
    }
    assert_eq!(house.backend.requests(), 0, "a request went on to the service");
}

#[test]
fn bad_chunks_end_the_connection() {
    let house = House::new();
    let head =
        format!("POST /upload HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n", host("web"));
    let after = format!("GET /smuggled HTTP/1.1\r\nHost: {}\r\n\r\n", host("web"));
    for body in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "-1\r\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "3;\n\r\nabc\r\n0\r\n\r\n",
    ] {
        let answer = house.raw(&format!("{head}{body}{after}"));
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer:?}");
        assert!(!answer.contains("smuggled"), "{body:?}: {answer:?}");
    }
}

#[test]
fn a_service_that_breaks_off_is_not_passed_off_as_a_whole_answer() {
    let address = backend::raw(|mut stream, _| {
        read_until(&mut stream, "\r\n\r\n");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    for version in ["--http1.1", "--http2"] {
        let response = Curl::new(&gateway).args(&[version]).call(&url("/"));
        assert_ne!(response.exit, 0, "{version}: {response:?}");
    }
}

#[test]
fn each_request_has_one_record_without_its_query() {
    let house = House::new();
    house.curl().header("Authorization: Bearer topsecret").get(&url("/echo/path?token=topsecret"));
    let record = house.gateway.wait_log("the access record", |record| {
        record.to_string().contains("/echo/path") && record["reason"] == "answered"
    });
    assert_eq!(record["status"].to_string().trim_matches('"'), "200", "{record}");
    assert!(!house.gateway.stderr().contains("topsecret"), "a secret is in the log");
    let records = house.gateway.log();
    let of_it = records.iter().filter(|record| record.to_string().contains("/echo/path")).count();
    assert_eq!(of_it, 1, "{}", house.gateway.stderr());
}

#[test]
fn a_visitor_who_leaves_ends_the_work_for_them() {
    let (gone, left) = std::sync::mpsc::channel();
    let address = backend::raw(move |mut stream, _| {
        read_until(&mut stream, "\r\n\r\n");
        let _ = gone.send(());
        read_to_end(&mut stream);
        let _ = gone.send(());
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    let mut stream = visitor::tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("web")).as_bytes()).expect("open");
    left.recv_timeout(SOON).expect("the service is asked");
    drop(stream);
    left.recv_timeout(SOON).expect("the service is told");
    gateway.wait_reason("visitor-left");
}
