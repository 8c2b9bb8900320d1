//! Routing, headers, errors, reuse, records.

use std::sync::{Arc, Mutex};

use super::support::*;
use crate::access::AccessLevel;
use crate::observe::Reason;
use crate::registry::OpenError;

#[tokio::test]
async fn a_request_reaches_its_service_unchanged() {
    let gateway = Gateway::start(Port::H1).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    let answer = gateway
        .ask(
            "GET //tunnels/%2F/../x?a=b&c HTTP/1.1\r\nHost: WEB-abc.example.test:8443\r\nConnection: close, X-Hop\r\n\
             X-Hop: 1\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nVia: me\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\ndate: "), "{answer}");
    let seen = answer.split_once("\r\n\r\n").unwrap().1.to_lowercase();
    assert!(seen.starts_with("get //tunnels/%2f/../x?a=b&c http/1.1\r\n"), "{seen}");
    for field in [
        "host: web-abc.example.test:8443",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: https",
        "x-forwarded-port: 8443",
        "x-forwarded-host: web-abc.example.test:8443",
        "via: me",
    ] {
        assert!(seen.contains(&format!("\r\n{field}\r\n")), "{field} in {seen}");
    }
    for field in ["6.6.6.6", "x-hop", "connection", "forwarded: "] {
        assert!(!seen.contains(field), "{field} in {seen}");
    }
}

#[tokio::test]
async fn the_name_may_stand_in_the_path() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    for host in ["example.test", "elsewhere.net", "127.0.0.1:80"] {
        let request =
            format!("GET /proxy/web-abc//a?b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = gateway.ask(&request).await;
        assert!(answer.contains("GET //a?b HTTP/1.1\r\n"), "{answer}");
        assert!(answer.contains(&format!("host: {host}\r\n")), "{answer}");
        assert!(answer.contains("x-forwarded-proto: http\r\n"), "{answer}");
    }
    // HTTP/1.0 needs no host.
    let answer = gateway.ask("GET /proxy/web-abc/old HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains("GET /old HTTP/1.1\r\nhost: example.test\r\n"), "{answer}");
}

#[tokio::test]
async fn own_hosts_answer_for_themselves() {
    let gateway = Gateway::start(Port::Plain).await;
    for (host, path, status) in [
        ("auth.example.test", "/healthz", "200 OK"),
        ("api.example.test:8443", "/healthz", "200 OK"),
        ("api.example.test", "/nothing", "404 Not Found"),
        ("example.test", "/", "200 OK"),
        ("example.test", "/healthz", "404 Not Found"),
        ("elsewhere.net", "/", "404 Not Found"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = gateway.ask(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{host}{path}: {answer}");
    }
    let head = "HEAD /healthz HTTP/1.1\r\nHost: api.example.test\r\nConnection: close\r\n\r\n";
    let answer = gateway.ask(head).await;
    assert!(answer.contains("content-length: 3\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_missing_tunnel_is_told_in_the_form_asked_for() {
    let gateway = Gateway::start(Port::H1).await;
    let text = gateway.get("/?token=hush", "").await;
    assert!(text.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{text}");
    assert!(text.contains("cache-control: no-store\r\n"), "{text}");
    assert!(text.contains("No active tunnel found") && text.contains("reason: no-tunnel"), "{text}");
    let html = gateway.get("/", "Accept: text/html,*/*\r\n").await;
    assert!(html.contains("content-type: text/html; charset=utf-8\r\n"), "{html}");
    assert!(html.contains("No active tunnel found for `web-abc`"), "{html}");
    let json = gateway.get("/", "Accept: application/json\r\n").await;
    let body: serde_json::Value = serde_json::from_str(json.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert!(body["message"].as_str().unwrap().contains("No active tunnel found"));
    assert_eq!(body["reason"], "no-tunnel");
    assert!(body["id"].as_str().unwrap().starts_with('c'));
}

#[tokio::test]
async fn each_failure_of_the_agent_has_its_status_and_word() {
    for (error, status, word) in [
        (OpenError::TimedOut, "504", "agent-not-answering"),
        (OpenError::Refused, "502", "service-unreachable"),
        (OpenError::Gone, "502", "agent-gone"),
        (OpenError::Full, "503", "too-many-channels"),
        (OpenError::VisitorFull, "429", "too-many-channels"),
    ] {
        let gateway = Gateway::start(Port::Plain).await;
        let _lease = gateway.offer_with(Arc::new(Fails(error)), |_| {});
        let answer = gateway.get("/", "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(&format!("reason: {word}\n")), "{answer}");
    }
    for (says, word) in [("", "service-closed"), ("SSH-2.0-x\r\n\r\n", "service-not-http")] {
        let gateway = Gateway::start(Port::Plain).await;
        let service = Service::start(move |mut peer, _| async move {
            peer.head().await;
            peer.send(says).await;
        })
        .await;
        let _lease = gateway.offer(service.addr);
        let answer = gateway.get("/", "").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains(&format!("reason: {word}\n")), "{answer}");
    }
}

#[tokio::test]
async fn a_private_tunnel_asks_for_a_login_and_lets_preflights_through() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let _lease =
        gateway.offer_with(Arc::new(ToTcp(service.addr)), |tunnel| tunnel.access = AccessLevel::Private);
    let answer = gateway.get("/", "").await;
    assert!(answer.starts_with("HTTP/1.1 307 ") && answer.contains("login-required"), "{answer}");
    let fields = "Origin: https://a.test\r\nAccess-Control-Request-Method: PUT\r\nConnection: close";
    let preflight = format!("OPTIONS / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n");
    let answer = gateway.ask(&preflight).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_host_that_the_certificate_does_not_cover_gets_421() {
    let gateway = Gateway::start(Port::H1).await;
    let answer = gateway.ask("GET / HTTP/1.1\r\nHost: other.net\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("wrong-host"), "{answer}");
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_where_https_is() {
    let gateway = Gateway::start(Port::OnlyHttps).await;
    let answer = gateway.ask(&format!("GET /a?b=c HTTP/1.1\r\nHost: {HOST}:8443\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert!(answer.contains(&format!("location: https://{HOST}:8443/a?b=c\r\n")), "{answer}");
    for request in [
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\n\r\nabc"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer hush\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: a@b/c\r\n\r\n".to_owned(),
    ] {
        let answer = gateway.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("location"), "{answer}");
    }
}

#[tokio::test]
async fn connections_to_services_are_reused_only_when_it_is_safe() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    for _ in 0..3 {
        gateway.get("/", "").await;
    }
    assert_eq!(service.count(), 1, "a kept connection was not reused");
    // This service never reads bodies: with reuse, the next request would arrive as `abcdGET`.
    let answer = gateway.get("/", "Content-Length: 4\r\n\r\nabcd").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = gateway.get("/after", "").await;
    assert!(answer.contains("\r\n\r\nGET /after HTTP/1.1\r\n"), "{answer}");
    assert_eq!(service.count(), 2);
}

#[tokio::test]
async fn a_dead_kept_connection_is_retried_once_if_that_is_harmless() {
    let gateway = Gateway::start(Port::Plain).await;
    // Each connection answers once, then takes a second request and closes without a word.
    let service = Service::start(|mut peer, _| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let _ = peer.try_until("\r\n\r\n").await;
    })
    .await;
    let _lease = gateway.offer(service.addr);
    assert!(gateway.get("/", "").await.ends_with("ok"));
    assert!(gateway.get("/", "").await.ends_with("ok"));
    assert_eq!(service.count(), 2);
    let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let answer = gateway.ask(&post).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("service-closed"), "{answer}");
}

#[tokio::test]
async fn watchers_of_a_tunnel_hear_of_visits() {
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let lease = gateway.offer(service.addr);
    let mut visits = lease.tunnel().visits.watch();
    gateway.get("/seen?token=hush", "").await;
    let visit = visits.recv().await.unwrap();
    assert_eq!((visit.method.as_str(), &*visit.path, visit.status.as_u16()), ("GET", "/seen", 200));
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The fields of the records so far.
    fn records(&self) -> Vec<serde_json::Value> {
        let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["fields"].take();
        self.text().lines().map(parse).collect()
    }
}

fn capture() -> (Captured, tracing::subscriber::DefaultGuard) {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    (captured, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn a_request_leaves_one_record_without_secrets() {
    let (captured, _guard) = capture();
    let gateway = Gateway::start(Port::Plain).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    gateway.get("/a?token=hush", "Cookie: hush\r\n").await;
    assert!(!captured.text().contains("hush"), "{}", captured.text());
    let [fields] = &captured.records()[..] else { panic!("{}", captured.text()) };
    assert_eq!(fields["path"], "/a");
    assert_eq!(fields["status"], 200);
    assert_eq!(fields["reason"], "answered");
    assert_eq!(fields["tunnel"], "web-abc");
    assert_eq!(fields["host"], HOST);
    assert!(fields["bytes_out"].as_u64().unwrap() > 50);
}

#[tokio::test]
async fn the_id_in_an_error_page_is_that_of_the_record() {
    let (captured, _guard) = capture();
    let gateway = Gateway::start(Port::Plain).await;
    for request in ["GET / HTTP/1.1\r\nHost: x.example.test\r\nConnection: close\r\n\r\n", "GET /\r\n\r\n"] {
        let answer = gateway.ask(request).await;
        let id = answer.lines().find_map(|line| line.strip_prefix("request: ")).unwrap();
        let records = captured.records();
        let record = records.iter().find(|record| record["request"] == id).unwrap();
        assert!(answer.contains(&format!("reason: {}\n", record["reason"].as_str().unwrap())), "{answer}");
    }
    assert_eq!(captured.records().len(), 2);
}

#[tokio::test]
async fn a_record_says_who_left() {
    let (captured, _guard) = capture();
    let mut gateway = Gateway::start(Port::Plain).await;
    let service = Service::start(|mut peer, number| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        if number == 0 {
            let _ = peer.try_until("never").await;
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    let mut visitor = gateway.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    visitor.until("half").await;
    drop(visitor);
    gateway.ends.recv().await;
    gateway.get("/", "").await;
    gateway.ends.recv().await;
    let reasons: Vec<_> = captured.records().iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(reasons, ["visitor-left", "service-closed"]);
}

#[tokio::test]
async fn draining_ends_idle_connections_and_finishes_what_runs() {
    let mut gateway = Gateway::start(Port::Plain).await;
    let (service, go) = Service::in_two_parts().await;
    let _lease = gateway.offer(service.addr);
    let mut idle = gateway.visitor().await;
    idle.send("GET /healthz HTTP/1.1\r\nHost: api.example.test\r\n\r\n").await;
    idle.until("OK\n").await;
    let mut busy = gateway.visitor().await;
    busy.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    busy.until("\r\n\r\no").await;
    gateway.tasks.begin_drain();
    assert_eq!(idle.rest().await, "");
    assert_eq!(gateway.ends.recv().await, Some(Reason::Draining));
    go.send(true).unwrap();
    assert_eq!(busy.rest().await, "k");
}

#[tokio::test]
async fn a_kept_connection_to_a_service_is_closed_in_time() {
    const TIME: std::time::Duration = std::time::Duration::from_secs(1);
    let mut settings = settings();
    settings.http.upstream_idle_timeout = TIME;
    let gateway = Gateway::with(Port::Plain, settings).await;
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let service = Service::start(move |mut peer, _| {
        let ended = ended.clone();
        async move {
            while peer.try_until("\r\n\r\n").await.is_ok() {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
            ended.send(()).unwrap();
        }
    })
    .await;
    let _lease = gateway.offer(service.addr);
    // It was kept for the first time some while before the last.
    let begun = std::time::Instant::now();
    while begun.elapsed() < TIME / 5 {
        assert!(gateway.get("/", "").await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(service.count(), 1);
    let kept = std::time::Instant::now();
    tokio::time::timeout(LIMIT, end.recv()).await.unwrap();
    let kept = kept.elapsed();
    assert!(kept > TIME * 9 / 10 && kept < TIME * 3 / 2, "it was kept for {kept:?}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let mut settings = settings();
    settings.http.idle_timeout = std::time::Duration::from_millis(50);
    let mut gateway = Gateway::with(Port::Plain, settings).await;
    let mut visitor = gateway.visitor().await;
    visitor.send("GET /healthz HTTP/1.1\r\nHost: api.example.test\r\n\r\n").await;
    assert!(visitor.rest().await.ends_with("OK\n"));
    assert_eq!(gateway.ends.recv().await, Some(Reason::Idle));
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let mut settings = settings();
    settings.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let gateway = Gateway::with(Port::Plain, settings).await;
    let service = Service::echo_head().await;
    let _lease = gateway.offer(service.addr);
    let answer = gateway.get("/", "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n").await;
    assert!(answer.contains("x-forwarded-for: 203.0.113.9, 127.0.0.1\r\n"), "{answer}");
    assert!(answer.contains("x-forwarded-proto: https\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_may_have_as_many_header_fields_as_is_said() {
    let gateway = Gateway::start(Port::Plain).await;
    for (fields, status) in [(100, "200 OK"), (101, "502 Bad Gateway")] {
        let more = "x-one: 1\r\n".repeat(fields - 1);
        let service = Service::says(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{more}\r\nok")).await;
        let _lease = gateway.offer(service.addr);
        let answer = gateway.get("/", "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{fields}: {answer}");
    }
}
