//! What is asked, and what is answered. Looks at method, host and path, and at nothing else.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;

use super::Admin;
use crate::name::HostName;
use crate::observe::{OPENMETRICS, openmetrics};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";
const PATHS: &str = "/metrics, /healthz, /readyz and /status";

type Answer = Response<Full<Bytes>>;

impl Admin {
    /// Answers a request. With `names`, only one that asks for this machine: a page on the web
    /// can have its own name lead to a loopback address, and read what it finds there.
    pub(super) async fn answer<B>(self: Arc<Self>, request: &Request<B>, names: bool) -> Answer {
        if names && !is_for_this_machine(request) {
            let what = "only this machine is served here: ask for `localhost` or a loopback address\n";
            return say(StatusCode::MISDIRECTED_REQUEST, TEXT, what);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = say(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are served here\n");
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => say(StatusCode::OK, OPENMETRICS, openmetrics(&self.of.metrics, self.now())),
            "/healthz" => say(StatusCode::OK, TEXT, "OK\n"),
            "/readyz" if self.of.draining.is_cancelled() => {
                say(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
            }
            "/readyz" => say(StatusCode::OK, TEXT, "OK\n"),
            "/status" => say(StatusCode::OK, JSON, format!("{:#}\n", self.status().await)),
            _ => say(
                StatusCode::NOT_FOUND,
                TEXT,
                format!("there is nothing under this path; there are {PATHS}\n"),
            ),
        }
    }
}

fn say(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Whether everything that says whom the request is for names this machine, and something does.
fn is_for_this_machine<B>(request: &Request<B>) -> bool {
    let hosts = request.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let mut named = hosts.chain(authority).peekable();
    named.peek().is_some() && named.all(is_this_machine)
}

fn is_this_machine(authority: &[u8]) -> bool {
    let host = std::str::from_utf8(authority).ok().and_then(|text| HostName::parse_authority(text).ok());
    let Some((host, _)) = host else { return false };
    let bare = host.as_str().trim_start_matches('[').trim_end_matches(']');
    host.as_str() == "localhost" || bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_this_machine() {
        for host in ["localhost", "LOCALHOST:9180", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:9180"] {
            assert!(is_this_machine(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "[::]",
            "192.0.2.1",
            "127.1",
            "2130706433",
            "localhost:x",
            "user@localhost",
            "\u{ff4c}ocalhost",
        ] {
            assert!(!is_this_machine(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn every_name_in_a_request_counts() {
        let request = |uri: &str, hosts: &[&str]| {
            let mut request = Request::get(uri);
            for host in hosts {
                request = request.header("host", *host);
            }
            is_for_this_machine(&request.body(()).expect("a request"))
        };
        assert!(request("/metrics", &["localhost:9180"]));
        assert!(!request("/metrics", &[]));
        assert!(!request("/metrics", &["localhost", "evil.example"]));
        assert!(!request("http://evil.example/metrics", &["localhost"]));
        assert!(!request("http://localhost/metrics", &["evil.example"]));
    }
}
