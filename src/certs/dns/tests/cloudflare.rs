//! Cloudflare's API, spoken by an HTTP server that keeps its records in a real DNS server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::servers::{dig, present, record};
use crate::certs::dns::DnsProvider as _;
use crate::certs::dns::cloudflare::Cloudflare;
use crate::certs::dns::responder::Responder;
use crate::config::{CloudflareSettings, DnsSettings, ResponderSettings, Secret, SecretSource, Settings};
use crate::name::HostName;
use crate::net::Tasks;

const TOKEN: &str = "token-of-the-tests";
const NAME: &str = "_acme-challenge.preview.test";

/// The API, and the DNS server where its records can be seen.
struct Api {
    url: String,
    dns: SocketAddr,
    tasks: Tasks,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.tasks.cut();
    }
}

struct State {
    responder: Responder,
    records: Mutex<Vec<(u64, String)>>,
}

impl Api {
    async fn start() -> Self {
        let host = |name| HostName::parse(name).expect("a host name");
        let mut gateway = Settings::dev(8443, std::path::Path::new("unused"));
        gateway.base.host = host("preview.test");
        let settings =
            ResponderSettings { listen: vec![([127, 0, 0, 1], 0).into()], host: host("gw.preview.test") };
        let (responder, bound) = Responder::start(&settings, &gateway).expect("bound");
        let state = Arc::new(State { responder, records: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/client/v4", listener.local_addr().expect("bound"));
        let tasks = Tasks::new();
        let owner = tasks.clone();
        tasks.spawn("test server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                owner.spawn("test connection", async move {
                    let service = hyper::service::service_fn(move |request| answer(state.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { url, dns: bound[0], tasks }
    }

    fn provider(&self, token: &str) -> Cloudflare {
        let token = SecretSource::Inline(Secret::new(token));
        let settings = CloudflareSettings { token, api: self.url.clone() };
        let dns = DnsSettings {
            way: None,
            resolver: vec![self.dns],
            servers: vec![self.dns],
            timeout: Duration::from_secs(10),
        };
        Cloudflare::new(&settings, &dns).expect("made")
    }

    async fn shown(&self) -> String {
        dig(self.dns, &["+short", NAME, "TXT"]).await
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let (status, said) = reply(&state, &head, &body).await;
    let mut response = Response::new(Full::new(Bytes::from(said.to_string())));
    *response.status_mut() = status;
    Ok(response)
}

async fn reply(state: &State, head: &http::request::Parts, body: &[u8]) -> (StatusCode, Value) {
    let good = |result: Value| (StatusCode::OK, json!({ "success": true, "errors": [], "result": result }));
    let bad = |status, code: u64, message: &str| {
        let errors = json!([{ "code": code, "message": message }]);
        (status, json!({ "success": false, "errors": errors, "result": null }))
    };
    match head.headers.get("authorization").and_then(|value| value.to_str().ok()) {
        Some("Bearer token-of-the-tests") => {}
        Some("Bearer busy") => return bad(StatusCode::TOO_MANY_REQUESTS, 971, "Please wait"),
        Some("Bearer broken") => return (StatusCode::BAD_GATEWAY, json!("oops")),
        _ => return bad(StatusCode::FORBIDDEN, 9109, "Invalid access token"),
    }
    let path = head.uri.path().strip_prefix("/client/v4").expect("the path of the API");
    let query = head.uri.query().unwrap_or_default();
    let records = "/zones/z1/dns_records";
    match (&head.method, path) {
        (&Method::GET, "/zones") => good(match query {
            "name=preview.test" => json!([{ "id": "z1", "name": "preview.test" }]),
            _ => json!([]),
        }),
        (&Method::POST, path) if path == records => {
            let body: Value = serde_json::from_slice(body).expect("JSON");
            assert_eq!((&body["type"], &body["name"]), (&json!("TXT"), &json!(NAME)));
            let value = body["content"].as_str().expect("a text").trim_matches('"').to_owned();
            if state.records.lock().iter().any(|(_, there)| *there == value) {
                return bad(StatusCode::BAD_REQUEST, 81058, "An identical record already exists.");
            }
            state.responder.set(&record(&value)).await.expect("set");
            let id = state.records.lock().len() as u64 + 100;
            state.records.lock().push((id, value.clone()));
            good(json!({ "id": id.to_string(), "content": format!("\"{value}\"") }))
        }
        (&Method::GET, path) if path == records => {
            assert!(query.contains("type=TXT") && query.ends_with(&format!("name={NAME}")), "{query}");
            let all = state.records.lock().clone();
            let all = all
                .iter()
                .map(|(id, value)| json!({ "id": id.to_string(), "content": format!("\"{value}\"") }));
            good(all.collect())
        }
        (&Method::DELETE, path) if path.starts_with(records) => {
            let id: u64 = path.rsplit('/').next().and_then(|id| id.parse().ok()).expect("an id");
            let at = state.records.lock().iter().position(|(there, _)| *there == id).expect("a record");
            let (_, value) = state.records.lock().remove(at);
            state.responder.cleanup(&record(&value), None).await.expect("removed");
            good(json!({ "id": id.to_string() }))
        }
        other => panic!("not asked for by us: {other:?}"),
    }
}

#[tokio::test]
async fn values_come_and_go_one_by_one() {
    let api = Api::start().await;
    let provider = api.provider(TOKEN);
    present(&provider, &record("first")).await.expect("set");
    present(&provider, &record("second")).await.expect("set");
    present(&provider, &record("second")).await.expect("there already");
    assert_eq!(api.shown().await, "\"first\"\n\"second\"\n");
    // As after a restart.
    let provider = api.provider(TOKEN);
    provider.cleanup(&record("first"), None).await.expect("removed");
    provider.cleanup(&record("first"), None).await.expect("removed already");
    assert_eq!(api.shown().await, "\"second\"\n");
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let api = Api::start().await;
    let said = |token: &'static str| {
        let provider = api.provider(token);
        async move { present(&provider, &record("value")).await.expect_err("refused").to_string() }
    };
    let bad = said("wrong").await;
    assert!(bad.contains("does not take the token (Invalid access token (9109)); make one"), "{bad}");
    assert!(!bad.contains("wrong"), "{bad}");
    assert!(said("busy").await.contains("asked too often for now (Please wait (971))"));
    let broken = said("broken").await;
    assert!(broken.contains("did not list the zones: it said nothing") && broken.contains("502"), "{broken}");
    assert!(said("two\nlines").await.contains("holds what no token does"));
    let settings = CloudflareSettings {
        token: SecretSource::File("/absent/token".into()),
        api: "http://127.0.0.1:1".to_owned(),
    };
    let dns = DnsSettings {
        way: None,
        resolver: vec![api.dns],
        servers: vec![api.dns],
        timeout: Duration::from_secs(10),
    };
    let absent = Cloudflare::new(&settings, &dns).expect("made").set(&record("value")).await;
    assert!(absent.expect_err("no file").to_string().contains("`/absent/token` cannot be read"));
}
