//! Names that the configuration fixes: over TCP and unix sockets, beside tunnels, with every
//! fault in words.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};
use toml::Table;

use crate::support::agent::{Agent, host, node};
use crate::support::backend::{Backend, big_sha256, nobody};
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::visitor::{Curl, raw_request};
use crate::support::{SOON, poll, sha256};

fn route(host: &str, path: &str, to: &str) -> toml::Value {
    let mut table = Table::new();
    for (name, value) in [("host", host), ("path", path), ("to", to)] {
        table.insert(name.to_owned(), value.into());
    }
    table.into()
}

fn to_tcp(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn gateway(routes: Vec<toml::Value>) -> Gateway {
    let mut setup = Setup::new();
    setup.set("routes", routes);
    setup.start()
}

/// A unix socket in front of a service, which ends with the test's folder.
fn unix_socket(path: &Path, service: SocketAddr) {
    let listener = UnixListener::bind(path).expect("a temporary path");
    std::thread::spawn(move || {
        for visitor in listener.incoming().map_while(Result::ok) {
            let service = TcpStream::connect(service).expect("the service listens");
            let (other_visitor, other_service) =
                (visitor.try_clone().expect("open"), service.try_clone().expect("open"));
            std::thread::spawn(move || carry(visitor, service));
            std::thread::spawn(move || carry_back(other_service, other_visitor));
        }
    });
}

fn carry(mut from: UnixStream, mut to: TcpStream) {
    // Either side may leave at any time.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

fn carry_back(mut from: TcpStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn a_route_leads_to_its_service_beside_tunnels() {
    let (fixed, offered) = (Backend::start(), Backend::start());
    let gateway = gateway(vec![route("app.gw.test", "/", &to_tcp(fixed.address()))]);
    let _agent = Agent::web(&gateway, offered.address());
    for version in ["--http1.1", "--http2"] {
        let response = Curl::new(&gateway).args(&[version]).get("https://app.gw.test/echo?x=%2F");
        let echo: Value = serde_json::from_str(&response.text()).expect("JSON");
        assert_eq!((response.status, &echo["target"]), (200, &json!("/echo?x=%2F")), "{echo}");
        let headers = echo["headers"].to_string();
        assert!(headers.contains(r#"["host","app.gw.test"]"#), "{headers}");
        assert!(headers.contains(r#"["x-forwarded-proto","https"]"#), "{headers}");
    }
    assert_eq!(fixed.connections(), 1, "the connection is kept and used again");
    let big = Curl::new(&gateway).get("https://app.gw.test/big?mb=16");
    assert_eq!(sha256(&big.body), big_sha256(16));
    let before = fixed.requests();
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
    assert_eq!(fixed.requests(), before);
    let record = gateway.wait_log("request", |record| {
        record["message"] == "request" && record["route"] == "app.gw.test" && record["path"] == "/big"
    });
    assert_eq!(record["reason"], "answered", "{record}");
}

#[test]
fn the_longest_path_leads_and_a_unix_socket_serves() {
    let (app, api) = (Backend::start(), Backend::start());
    let mut setup = Setup::new();
    unix_socket(&setup.path("api.sock"), api.address());
    setup.set(
        "routes",
        vec![
            route("app.gw.test", "/", &to_tcp(app.address())),
            // Relative to the configuration file's folder.
            route("app.gw.test", "/api", "unix:api.sock"),
        ],
    );
    let gateway = setup.start();
    let ask = |path: &str| Curl::new(&gateway).get(&format!("https://app.gw.test{path}")).status;
    assert_eq!((ask("/small"), app.requests(), api.requests()), (200, 1, 0));
    ask("/api/small");
    assert_eq!((app.requests(), api.requests()), (1, 1));
    ask("/apis");
    assert_eq!((app.requests(), api.requests()), (2, 1));
}

#[test]
fn a_websocket_passes_through_a_route() {
    let echo = node("ws_backend.js", &json!({}));
    let port: u16 = echo.out.wait("port", SOON, |said| said.trim().parse().ok());
    let gateway = gateway(vec![route("app.gw.test", "/", &format!("http://127.0.0.1:{port}"))]);
    let options = json!({
        "port": gateway.address().port(), "ca": gateway.ca(), "host": "app.gw.test", "path": "/ws?x=1",
    });
    let output = node("ws_client.js", &options).finish(SOON);
    let result: Value = serde_json::from_str(output.stdout.trim()).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((&result["hello"]["url"], &result["large"]), (&json!("/ws?x=1"), &json!(true)), "{result}");
}

#[test]
fn a_service_that_is_not_there_is_told_of_in_words() {
    let gateway = gateway(vec![
        route("tcp.gw.test", "/", &to_tcp(nobody())),
        route("unix.gw.test", "/", "unix:no-such.sock"),
        route("name.gw.test", "/", "http://no-such-host.invalid:1"),
    ]);
    for name in ["tcp", "unix", "name"] {
        let answer = raw_request(
            &gateway,
            &format!("{name}.gw.test"),
            format!(
                "GET / HTTP/1.1\r\nHost: {name}.gw.test\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"
            )
            .as_bytes(),
        );
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert!(
            answer.contains("backend-unreachable") && answer.contains(&format!("`{name}.gw.test`")),
            "{answer}"
        );
    }
    assert_eq!(gateway.wait_reason("backend-unreachable")["at_fault"], "service");
}

#[test]
fn a_service_with_as_many_connections_as_it_may_have_is_told_of_in_words() {
    let backend = Backend::start();
    let mut setup = Setup::new();
    setup.set("routes", vec![route("app.gw.test", "/", &to_tcp(backend.address()))]);
    setup.set("http.upstream_max", 1);
    let gateway = setup.start();
    let mut held = Process::start(&mut Curl::new(&gateway).build("https://app.gw.test/held"));
    poll("the request at the service", SOON, || (backend.requests() > 0).then_some(()));
    let refused = Curl::new(&gateway).get("https://app.gw.test/small");
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("backend-full"), "{}", refused.text());
    backend.release();
    assert_eq!(held.finish(SOON).stdout, "let go");
    assert_eq!(Curl::new(&gateway).get("https://app.gw.test/small").text(), "small");
}

#[test]
fn an_agents_page_never_comes_under_a_routes_host() {
    let (fixed, offered) = (Backend::start(), Backend::start());
    let gateway = gateway(vec![route("app.gw.test", "/api", &to_tcp(fixed.address()))]);
    let _agent = Agent::web(&gateway, offered.address());
    let name = host("web");
    let path = format!("/proxy/{}/small", name.split('.').next().expect("a label"));
    assert_eq!(Curl::new(&gateway).get(&format!("https://gw.test{path}")).text(), "small");
    let refused = Curl::new(&gateway).header("Cookie: secret=1").get(&format!("https://app.gw.test{path}"));
    assert_eq!(offered.requests(), 1, "{}", refused.text());
}

#[test]
fn a_name_without_a_certificate_is_told_of_at_the_start() {
    let gateway = gateway(vec![route("elsewhere.example", "/", "http://127.0.0.1:1")]);
    gateway.wait_log("a warning", |record| {
        record["message"]
            .as_str()
            .is_some_and(|text| text.contains("no certificate covers `elsewhere.example`"))
    });
}
