//! The vectors of the agent contract, all of them: what existing agents compute, we compute.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use oneport::access::{AccessLevel, Identity};
use oneport::name::{ClientId, TunnelName};
use oneport::registry::Script;
use oneport::ssh::forward;
use russh::keys::{PublicKey, PublicKeyBase64 as _};
use serde_json::{Value, json};

use crate::support::agent::OpenSsh;
use crate::support::backend::Backend;
use crate::support::gateway::Gateway;
use crate::support::vectors;
use crate::support::visitor::Curl;

fn list(name: &str) -> Vec<Value> {
    let list = vectors()[name].as_array().expect("a list").clone();
    assert!(!list.is_empty(), "no vectors `{name}`");
    list
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no text `{name}` in {value}"))
}

fn public_key(key: &Value) -> PublicKey {
    PublicKey::from_openssh(text(key, "openssh_public_key")).expect("a public key")
}

#[test]
fn keys_have_the_client_ids_that_agents_expect() {
    for key in list("keys") {
        let identity = Identity::of(&public_key(&key));
        assert_eq!(identity.client_id.as_str(), text(&key, "client_id"), "{}", key["name"]);
        let blob = public_key(&key).public_key_bytes();
        assert_eq!(ClientId::from_key_blob(&blob), identity.client_id);
    }
}

#[test]
fn keys_have_the_thumbprints_that_agents_expect() {
    for key in list("keys") {
        let thumbprint = Identity::of(&public_key(&key)).thumbprint.expect("this kind has a JWK");
        assert_eq!(thumbprint.as_str(), text(&key, "thumbprint_uri"), "{}", key["name"]);
    }
}

#[test]
fn tunnels_have_the_names_that_agents_expect() {
    // The vectors' client ids come from keys that are not in the file. Names depend on nothing
    // of an id but its length, so a key that is there stands in for each.
    let stand_in = Identity::of(&public_key(&list("keys")[0])).client_id;
    for vector in list("tunnel_names") {
        let id = text(&vector, "client_id");
        assert_eq!(id.len(), stand_in.as_str().len());
        let name = TunnelName::derive(text(&vector, "path"), &stand_in);
        let head = text(&vector, "name").strip_suffix(id).expect("the id ends the name");
        assert_eq!(name.as_str(), format!("{head}{stand_in}"), "{}", vector["path"]);
    }
}

#[test]
fn forward_requests_are_understood_or_refused_as_agents_expect() {
    for vector in list("forward_requests") {
        let request = text(&vector, "request");
        let parsed = forward::parse(request);
        if vector.get("error").is_some() {
            let error = parsed.err().unwrap_or_else(|| panic!("`{request}` was understood"));
            assert!(error.to_string().len() > 20, "`{error}` does not say why");
            continue;
        }
        let parsed = parsed.unwrap_or_else(|error| panic!("`{request}` was refused: {error}"));
        let expected = &vector["parsed"];
        assert_eq!(parsed.path, text(expected, "path"), "{request}");
        let access =
            if text(expected, "access") == "private" { AccessLevel::Private } else { AccessLevel::Public };
        assert_eq!(parsed.access, access, "{request}");
        let meta = expected.get("meta").and_then(Value::as_object).cloned().unwrap_or_default();
        assert_eq!(parsed.meta, meta, "{request}");
        let scripts: Vec<Value> = parsed.inject.iter().map(script).collect();
        let inject = expected.get("inject").and_then(Value::as_array).cloned().unwrap_or_default();
        assert_eq!(scripts.len(), inject.len(), "{request}");
        for (script, mut expected) in scripts.iter().zip(inject) {
            // A pattern that JavaScript prints with `\/` matches the same as ours with `/`.
            if let Some(pattern) =
                expected.get("pathRegex").and_then(Value::as_str).map(|p| p.replace("\\/", "/"))
            {
                expected["pathRegex"] = json!(pattern);
            }
            assert_eq!(*script, expected, "{request}");
        }
    }
}

fn script(script: &Script) -> Value {
    let mut value = json!({ "src": script.src });
    if script.is_async {
        value["async"] = json!(true);
    }
    if script.defer {
        value["defer"] = json!(true);
    }
    if let Some(path) = &script.path {
        value["pathRegex"] = json!(path.as_str().replace("\\/", "/"));
    }
    value
}

#[test]
fn injected_documents_have_the_etags_and_elements_that_browsers_hold() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let etags = list("injection_etags");
    let request = |index: usize, spec: &Value| {
        format!("/etag{index}#inject={}", URL_SAFE_NO_PAD.encode(spec.to_string()))
    };
    let mut agent = OpenSsh::new(&gateway);
    for (index, vector) in etags.iter().enumerate() {
        agent = agent.forward(&request(index, &vector["spec"]), backend.address());
    }
    let _agent = agent.start();
    for (index, vector) in etags.iter().enumerate() {
        let url = format!("https://etag{index}-dzk582uo.gw.test/html-etag");
        let response = Curl::new(&gateway).get(&url);
        let etag = format!("\"v1+preevy:{}\"", text(vector, "etag"));
        assert_eq!(response.header("etag"), Some(etag.as_str()), "{response:?}");
        let expected = format!("<html><head>{}</head><body></body></html>", text(vector, "scriptElements"));
        assert_eq!(response.text(), expected);
        let again = Curl::new(&gateway).header(&format!("If-None-Match: {etag}")).get(&url);
        assert_eq!(again.status, 304, "the suffix was not taken off: {again:?}");
    }
}
