//! Upgrades: WebSocket over both versions, `tcp` for shells, half-close, refusals.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::agent::{Agent, host, node};
use crate::support::backend::{self, Backend};
use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::visitor::{self, Curl, half_close, read_to_end, read_until};

/// A WebSocket echo, written with the `ws` package.
fn echo() -> (Process, std::net::SocketAddr) {
    let process = node("ws_backend.js", &json!({}));
    let port: u16 = process.out.wait("port", SOON, |said| said.trim().parse().ok());
    (process, ([127, 0, 0, 1], port).into())
}

fn visit(script: &str, gateway: &Gateway, path: &str) -> Value {
    let options =
        json!({ "port": gateway.address().port(), "ca": gateway.ca(), "host": host("web"), "path": path });
    let output = node(script, &options).finish(SOON);
    serde_json::from_str(output.stdout.trim()).unwrap_or_else(|_| panic!("{output:?}"))
}

#[test]
fn over_http1() {
    let gateway = Gateway::start();
    let (_echo, address) = echo();
    let _agent = Agent::web(&gateway, address);
    let result = visit("ws_client.js", &gateway, "/ws?x=1");
    assert_eq!(result["hello"]["url"], "/ws?x=1", "{result}");
    assert_eq!(result["hello"]["host"], host("web"));
    assert_eq!(result["hello"]["proto"], "https");
    assert_eq!(result["text"], "grüß dich");
    assert_eq!(result["protocol"], "echo.v1");
    assert_eq!(result["large"], true);
}

#[test]
fn over_http2() {
    let gateway = Gateway::start();
    let (_echo, address) = echo();
    let _agent = Agent::web(&gateway, address);
    let result = visit("h2_ws_client.js", &gateway, "/ws?x=2");
    assert_eq!(result["status"], 200, "{result}");
    assert_eq!(result["hello"]["url"], "/ws?x=2");
    assert_eq!(result["hello"]["method"], "GET");
    assert_eq!(result["text"], "over h2");
    assert_eq!(result["protocol"], "echo.v1");
    assert_eq!((&result["accept"], &result["connection"]), (&Value::Null, &Value::Null), "{result}");
}

#[test]
fn a_refused_websocket_is_an_ordinary_answer() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let result = visit("ws_client.js", &gateway, "/no-upgrade");
    assert_eq!(result["refused"], 403, "{result}");
    assert_eq!(result["body"], "no upgrade for you");
    let result = visit("h2_ws_client.js", &gateway, "/no-upgrade");
    assert_eq!(result["status"], 403, "{result}");
    assert_eq!(result["body"], "no upgrade for you");
}

#[test]
fn an_upgrade_to_nobody_is_an_ordinary_answer() {
    let gateway = Gateway::start();
    let result = visit("ws_client.js", &gateway, "/ws");
    assert_eq!(result["refused"], 502, "{result}");
    let result = visit("h2_ws_client.js", &gateway, "/ws");
    assert_eq!(result["status"], 502, "{result}");
}

/// A stream upgraded to `tcp` at the backend's `/tcp`.
fn upgraded(gateway: &Gateway) -> visitor::Tls {
    let mut stream = visitor::tls(gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
    let request =
        format!("POST /tcp HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", host("web"));
    stream.write_all(request.as_bytes()).expect("open");
    let head = read_until(&mut stream, "\r\n\r\n").to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("upgrade: tcp") && head.contains("connection: upgrade"), "{head}");
    stream
}

#[test]
fn tcp_with_half_close() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let mut stream = upgraded(&gateway);
    stream.write_all(b"hello").expect("open");
    assert_eq!(read_until(&mut stream, "HELLO"), "HELLO");
    half_close(&mut stream);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut stream)), "bye after 5");
}

#[test]
fn bytes_sent_right_behind_an_upgrade_are_not_lost() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let mut stream = visitor::tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
    let request = format!(
        "GET /tcp HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly",
        host("web")
    );
    stream.write_all(request.as_bytes()).expect("open");
    read_until(&mut stream, "\r\n\r\n");
    assert_eq!(read_until(&mut stream, "EARLY"), "EARLY");
}

#[test]
fn bytes_sent_right_behind_the_services_answer_are_not_lost() {
    let address = backend::raw(|mut stream, _| {
        read_until(&mut stream, "\r\n\r\n");
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nprompt> ",
        );
        read_to_end(&mut stream);
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    let mut stream = upgraded(&gateway);
    assert_eq!(read_until(&mut stream, "prompt> "), "prompt> ");
}

#[test]
fn a_refused_upgrade_leaves_the_connection_good() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let response = Curl::new(&gateway)
        .http1()
        .header("Connection: Upgrade")
        .header("Upgrade: tcp")
        .get(&format!("https://{}/no-upgrade", host("web")));
    assert_eq!((response.status, response.text().as_str()), (403, "no upgrade for you"));
}

#[test]
fn each_upgrade_has_its_record() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let mut stream = upgraded(&gateway);
    half_close(&mut stream);
    read_to_end(&mut stream);
    gateway.wait_log("the record of the upgrade", |record| {
        record["status"].to_string().trim_matches('"') == "101" && record.to_string().contains("/tcp")
    });
}
