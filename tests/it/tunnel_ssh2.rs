//! Existing agents are written with Node's `ssh2`: the same protocol, byte for byte.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::agent::{key_file, node, vector_key};
use crate::support::backend::{Backend, nobody};
use crate::support::gateway::{Gateway, Setup};
use crate::support::poll;
use crate::support::process::Process;
use crate::support::visitor::Curl;

/// An agent with these forwards, ready when this returns, and what happened until then.
fn agent(gateway: &Gateway, key: &str, more: Value) -> (Process, Vec<Value>) {
    let mut options = json!({
        "host": "127.0.0.1",
        "port": gateway.address().port(),
        "servername": "gw.test",
        "ca": gateway.ca(),
        "username": "my-env",
        "key": key_file(&gateway.path(""), key),
        "exec": ["hello"],
    });
    for (name, value) in more.as_object().expect("options") {
        options[name] = value.clone();
    }
    let process = node("agent.js", &options);
    process.out.wait_for("\"ready\"", SOON);
    let said = events(&process);
    (process, said)
}

fn events(process: &Process) -> Vec<Value> {
    process.out.to_string().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn event<'a>(events: &'a [Value], name: &str) -> &'a Value {
    events.iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("no `{name}` in {events:?}"))
}

fn serves_with_key(key: &str) {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let request = "/web-3000#access=public";
    let (process, said) = agent(&gateway, key, json!({ "forwards": { request: backend.address().port() } }));
    assert_eq!(event(&said, "tls")["alpn"], "ssh");
    let hello = event(&said, "exec");
    assert_eq!(hello["code"], 0);
    let hello = hello["stdout"].as_str().expect("text").strip_suffix("\r\n").expect("CRLF");
    let hello: Value = serde_json::from_str(hello).expect("JSON");
    let id = vector_key(key)["client_id"].as_str().expect("text").to_owned();
    assert_eq!(hello["clientId"], id);
    let url = format!("https://web-3000-{id}.gw.test/");
    assert_eq!(hello["tunnels"], json!({ request: url }));

    let response = Curl::new(&gateway).get(&format!("{url}echo"));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(event(&events(&process), "channel")["path"], request, "not byte for byte what was asked for");
}

#[test]
fn with_an_ed25519_key() {
    serves_with_key("ed25519a");
}

#[test]
fn with_rsa_keys() {
    serves_with_key("rsa2048");
    serves_with_key("rsa3072");
}

#[test]
fn with_ecdsa_keys() {
    serves_with_key("ecdsa256");
    serves_with_key("ecdsa384");
}

#[test]
fn over_the_plain_listener() {
    let mut setup = Setup::new();
    setup.set("plain.ssh", vec!["127.0.0.1:0"]);
    let (gateway, backend) = (setup.start(), Backend::start());
    let port = gateway.address_of("plain-ssh").port();
    let more = json!({ "port": port, "ca": null, "forwards": { "/web": backend.address().port() } });
    let (_process, _) = agent(&gateway, "ed25519a", more);
    assert_eq!(Curl::new(&gateway).get("https://web-dzk582uo.gw.test/small").text(), "small");
}

#[test]
fn refusals_and_cancel() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let port = backend.address().port();
    let more = json!({
        "forwards": { "/web": port, "/bad#access=secret": port, "/other": port },
        "again": ["/web"],
        "exec": ["hello", "no-such-command"],
        "cancel": "/web",
    });
    let (process, said) = agent(&gateway, "ed25519a", more);
    let refused: Vec<&Value> =
        said.iter().filter(|event| event["event"] == "refused").map(|event| &event["id"]).collect();
    assert_eq!(refused, ["/bad#access=secret", "/web"], "{said:?}");
    let unknown = said.iter().find(|event| event["command"] == "no-such-command").expect("its end");
    assert_eq!((&unknown["event"], &unknown["code"]), (&json!("exec"), &json!(127)), "{said:?}");
    process.out.wait_for("\"cancelled\"", SOON);
    assert!(event(&events(&process), "cancelled").get("error").is_none_or(Value::is_null));
    poll("end of the tunnel", SOON, || {
        (Curl::new(&gateway).get("https://web-dzk582uo.gw.test/small").status == 502).then_some(())
    });
    assert_eq!(Curl::new(&gateway).get("https://other-dzk582uo.gw.test/small").status, 200);
}

#[test]
fn a_hundred_megabytes_each_way() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let (_process, _) =
        agent(&gateway, "ed25519a", json!({ "forwards": { "/web": backend.address().port() } }));
    super::http_visitors::moves_megabytes(&gateway, 100, "--http1.1");
}

#[test]
fn a_service_that_is_not_there() {
    let gateway = Gateway::start();
    let gone: SocketAddr = nobody();
    let (_process, _) = agent(&gateway, "ed25519a", json!({ "forwards": { "/web": gone.port() } }));
    let response = Curl::new(&gateway).get("https://web-dzk582uo.gw.test/");
    assert_eq!(response.status, 502);
    assert!(response.text().contains("could not reach its service"), "{}", response.text());
}
