//! What one preview must not do to others: below `/proxy/` they share a host, and everywhere a domain,
//! caches and the gateway's own paths.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use serde_json::{Value, json};
use toml::Table;

use crate::private::token_of;
use crate::support::SOON;
use crate::support::agent::{Agent, OpenSsh, host, node};
use crate::support::backend::{Backend, raw};
use crate::support::gateway::{Gateway, Setup};
use crate::support::visitor::{Curl, Response};

/// The label of `/web`.
const WEB: &str = "web-dzk582uo";

/// A service whose every answer has these fields.
fn service(fields: &'static str) -> SocketAddr {
    answering(move |_| ("200 OK", fields))
}

/// A service that asks everybody for a password who shows none.
fn with_a_password() -> SocketAddr {
    answering(|head| {
        let is_known = head.to_ascii_lowercase().contains("\r\nauthorization: basic ");
        if is_known {
            ("200 OK", "")
        } else {
            ("401 Unauthorized", "WWW-Authenticate: Basic realm=\"app\"\r\n")
        }
    })
}

/// A service that gives each head a status and fields.
pub(crate) fn answering(
    answer: impl Fn(&str) -> (&'static str, &'static str) + Send + Sync + 'static,
) -> SocketAddr {
    raw(move |mut stream, _| {
        let mut head = Vec::new();
        let mut octet = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut octet) {
                Ok(1) => head.push(octet[0]),
                _ => return,
            }
        }
        let (status, fields) = answer(&String::from_utf8_lossy(&head));
        let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 2\r\n{fields}\r\nok");
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn offer(gateway: &Gateway, request: &str, service: SocketAddr) -> Agent {
    OpenSsh::new(gateway).forward(request, service).start()
}

fn all(response: &Response, name: &str) -> Vec<String> {
    let fields = response.headers.iter().filter(|(known, _)| known == name);
    fields.map(|(_, value)| value.clone()).collect()
}

pub(crate) fn set_route(setup: &mut Setup, host: &str, to: SocketAddr) {
    let mut route = Table::new();
    route.insert("host".to_owned(), host.into());
    route.insert("to".to_owned(), format!("http://{to}").into());
    setup.set("routes", vec![toml::Value::from(route)]);
}

/// The values of a header that reached the service.
fn reached(response: &Response, name: &str) -> Vec<String> {
    assert_eq!(response.status, 200, "{}", response.text());
    let headers = response.json()["headers"].as_array().expect("a list").clone();
    let values = headers.iter().filter(|pair| pair[0] == name);
    values.map(|pair| pair[1].as_str().expect("text").to_owned()).collect()
}

fn proxied(path: &str) -> String {
    format!("https://gw.test/proxy/{WEB}{path}")
}

#[test]
fn below_a_path_each_service_has_its_own_cookies() {
    let fields = "Set-Cookie: operator_session=fixed; Path=/; Domain=gw.test\r\n\
        Set-Cookie: deep=1; path=/x/; HttpOnly; Path=/y\r\n\
        Set-Cookie: bare\r\n\
        Set-Cookie: __Host-strict=2; Secure; Path=/\r\n\
        Set-Cookie: relative=3; Path=x\r\n\
        Service-Worker-Allowed: /\r\nClear-Site-Data: \"storage\"\r\nNEL: {}\r\nReport-To: {}\r\n";
    let gateway = Gateway::start();
    let _agent = offer(&gateway, "/web", service(fields));
    let response = Curl::new(&gateway).get(&proxied("/"));
    let name = |rest: &str| format!("oneport-proxy.{WEB}.{rest}");
    let path = |rest: &str| format!("Path=/proxy/{WEB}{rest}");
    assert_eq!(
        all(&response, "set-cookie"),
        [
            format!("{}; {}", name("operator_session=fixed"), path("")),
            format!("{}; HttpOnly; {}", name("deep=1"), path("/y")),
            format!("{}; {}", name("=bare"), path("")),
            format!("{}; Secure; {}", name("__Host-strict=2"), path("")),
            format!("{}; {}", name("relative=3"), path("")),
        ]
    );
    for dropped in ["service-worker-allowed", "clear-site-data", "nel", "report-to"] {
        assert_eq!(response.header(dropped), None);
    }
    // As the visitor wrote it: browsers tell cases apart.
    let loud = Curl::new(&gateway).get("https://gw.test/proxy/WEB-dzk582uo/a");
    let first = format!("{}; Path=/proxy/WEB-dzk582uo", name("operator_session=fixed"));
    assert_eq!(all(&loud, "set-cookie").first(), Some(&first));
    // On its own host it does as it likes there.
    let own = Curl::new(&gateway).get(&format!("https://{}/", host("web")));
    assert_eq!(all(&own, "set-cookie")[3], "__Host-strict=2; Secure; Path=/");
    assert_eq!(own.header("service-worker-allowed"), Some("/"));
}

#[test]
fn below_a_path_no_service_gets_another_ones_cookies() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = offer(&gateway, "/web", backend.address());
    let mine = format!("oneport-proxy.{WEB}.a=1; b=2; oneport-proxy.{WEB}.=bare; oneport-proxy.{WEB}x.c=3");
    for version in ["--http1.1", "--http2"] {
        let cookies = ["Cookie: operator_session=S3CRET", &format!("Cookie: {mine}")];
        let curl = || Curl::new(&gateway).args(&[version]).header(cookies[0]).header(cookies[1]);
        assert_eq!(reached(&curl().get(&proxied("/echo")), "cookie"), ["a=1; bare"]);
        let own = reached(&curl().get(&format!("https://{}/echo", host("web"))), "cookie").join("; ");
        assert!(own.contains("operator_session=S3CRET") && own.contains("b=2"), "{own}");
    }
    let none = Curl::new(&gateway).header("Cookie: operator_session=S3CRET").get(&proxied("/echo"));
    assert_eq!(reached(&none, "cookie"), <[&str; 0]>::default());
    // A script whose path ends before the name's slash would be in charge of all of `/proxy/`.
    let worker = |path: &str| Curl::new(&gateway).header("Service-Worker: script").get(&proxied(path)).status;
    assert_eq!((worker(""), worker("?x"), worker("/echo")), (404, 404, 200));

    let mut setup = Setup::new();
    setup.set("access.isolate_cookies", false);
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = offer(&gateway, "/web", backend.address());
    let all = Curl::new(&gateway).header("Cookie: a=1").get(&proxied("/echo"));
    assert_eq!(reached(&all, "cookie"), ["a=1"]);
}

#[test]
fn below_a_path_no_service_has_browsers_ask_for_a_password() {
    let fields = "WWW-Authenticate: Basic realm=\"app\"\r\n\
        WWW-Authenticate: Bearer realm=\"a, b\", error=\"invalid_token\"\r\n\
        WWW-Authenticate: Bearer, Digest realm=\"app\", nonce=\"x\"\r\n\
        WWW-Authenticate: Negotiate\r\n";
    let start = |setup: Setup| {
        let gateway = setup.start();
        let agent = offer(&gateway, "/web", service(fields));
        (gateway, agent)
    };
    let (gateway, _agent) = start(Setup::new());
    let asked = |gateway, url: &str| all(&Curl::new(gateway).get(url), "www-authenticate");
    assert_eq!(asked(&gateway, &proxied("/")), ["Bearer realm=\"a, b\", error=\"invalid_token\""]);
    let record = gateway.wait_log("the change", |record| {
        record["detail"].as_str().is_some_and(|detail| detail.contains("challenge `Basic`"))
    });
    assert_eq!(record["reason"], "answered");
    assert_eq!(asked(&gateway, &format!("https://{}/", host("web"))).len(), 4);

    let mut setup = Setup::new();
    setup.set("access.isolate_cookies", false);
    let (gateway, _agent) = start(setup);
    assert_eq!(asked(&gateway, &proxied("/")).len(), 4);
}

#[test]
fn below_a_path_no_service_gets_what_a_browser_keeps_for_all() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = offer(&gateway, "/web", backend.address());
    let sent = |gateway, headers: &[&str], url: &str| {
        let curl = headers.iter().fold(Curl::new(gateway), |curl, header| curl.header(header));
        reached(&curl.get(url), "authorization")
    };
    let by_browser =
        ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site", "Origin: null"];
    let own = format!("https://{}/echo", host("web"));
    for kept in [
        "Basic YWRtaW46czNjcmV0",
        "bAsIc YWRtaW46czNjcmV0",
        "Digest username=\"\u{e9}\"",
        "NTLM TlRM",
        "Negotiate YII=",
    ] {
        let field = format!("Authorization: {kept}");
        for by in by_browser {
            assert_eq!(
                sent(&gateway, &[&field, by], &proxied("/echo")),
                <[&str; 0]>::default(),
                "{kept}, {by}"
            );
        }
        // A program's, such as Node's own `fetch`, and on the own host everybody's.
        assert_eq!(sent(&gateway, &[&field], &proxied("/echo")), [kept]);
        assert_eq!(sent(&gateway, &[&field, "Sec-Fetch-Mode: cors"], &proxied("/echo")), [kept]);
        assert_eq!(sent(&gateway, &[&field, by_browser[0], by_browser[3]], &own), [kept]);
    }
    let record = gateway.wait_log("what was withheld", |record| {
        record["detail"].as_str().is_some_and(|detail| detail.contains("withheld the browser's"))
    });
    assert_eq!(record["reason"], "answered");
    for script in ["Bearer of.the.app", "Token abc"] {
        let field = format!("Authorization: {script}");
        assert_eq!(sent(&gateway, &[&field, by_browser[1]], &proxied("/echo")), [script]);
    }
    let mut setup = Setup::new();
    setup.set("access.isolate_cookies", false);
    let gateway = setup.start();
    let _agent = offer(&gateway, "/web", backend.address());
    let field = "Authorization: Basic YWRtaW46czNjcmV0";
    assert_eq!(sent(&gateway, &[field, by_browser[0]], &proxied("/echo")).len(), 1);
}

/// A browser gives a password to a whole realm by itself, and to all below the folder of a page.
#[test]
fn a_browser_hands_no_password_from_one_service_to_the_next() {
    let mut setup = Setup::new();
    set_route(&mut setup, "gw.test", with_a_password());
    let (gateway, backend) = (setup.start(), Backend::start());
    let asks = offer(&gateway, "/asks", with_a_password());
    let other = OpenSsh::new(&gateway).key("ed25519b").forward("/evil", backend.address()).start();
    let own = asks.hello["tunnels"]["/asks"].as_str().expect("a URL");
    let below = |url: &str| url.replace("https://", "https://gw.test/proxy/").replace(".gw.test/", "/");
    let evil = below(other.hello["tunnels"]["/evil"].as_str().expect("a URL"));
    let seen = with_password(
        &gateway,
        ("admin", "s3cret"),
        &json!([
            { "open": below(own) },
            { "open": own },
            { "open": "https://gw.test/" },
            { "open": format!("{evil}echo") },
            { "fetch": format!("{evil}echo"), "method": "POST" },
            { "open": "https://gw.test/" },
        ]),
    );
    let statuses: Vec<_> = seen.iter().map(|step| step["status"].as_u64().expect("a number")).collect();
    // The one below the path cannot ask; the others can, and get it.
    assert_eq!(statuses, [401, 200, 200, 200, 200, 200], "{seen:?}");
    for got in &seen[3..5] {
        let got: Value = serde_json::from_str(got["text"].as_str().expect("text")).expect("JSON");
        let headers = got["headers"].as_array().expect("a list");
        assert!(headers.iter().any(|pair| pair[0] == "sec-fetch-site"), "{headers:?}");
        assert!(!headers.iter().any(|pair| pair[0] == "authorization"), "{headers:?}");
    }
}

/// What a person sees with a real browser who gives this name and password wherever asked.
pub(crate) fn with_password(gateway: &Gateway, (user, password): (&str, &str), steps: &Value) -> Vec<Value> {
    let port = gateway.address().port();
    let wanted = json!({ "port": port, "user": user, "password": password, "steps": steps });
    let said = node("browser_password.js", &wanted).finish(SOON);
    assert!(said.status.success(), "{said:?}\n{}", gateway.stderr());
    serde_json::from_str(&said.stdout).expect("a list")
}

#[test]
fn no_preview_clears_the_cookies_of_all() {
    let fields = "Clear-Site-Data: \"cache\", \"cookies\" ,\"storage\"\r\nClear-Site-Data: \"*\"\r\n";
    let gateway = Gateway::start();
    let _agent = offer(&gateway, "/web", service(fields));
    let url = format!("https://{}/", host("web"));
    assert_eq!(all(&Curl::new(&gateway).get(&url), "clear-site-data"), ["\"cache\", \"storage\""]);
    let record = gateway.wait_log("the change", |record| {
        record["detail"].as_str().is_some_and(|detail| detail.contains("Clear-Site-Data"))
    });
    assert_eq!(record["reason"], "answered");
    let mut setup = Setup::new();
    setup.set("access.isolate_cookies", false);
    let gateway = setup.start();
    let _agent = offer(&gateway, "/web", service(fields));
    assert_eq!(all(&Curl::new(&gateway).get(&url), "clear-site-data").len(), 2);
}

#[test]
fn no_cache_between_keeps_what_needed_a_login() {
    let gateway = Gateway::start();
    let bearer = format!("Authorization: Bearer {}", token_of("ed25519a", "EdDSA"));
    let inject = "inject=W3sic3JjIjoiaHR0cHM6Ly9zLnRlc3QvcyJ9XQ";
    for (number, (fields, left)) in [
        ("Cache-Control: public, max-age=60, S-MaxAge=600\r\n", &["max-age=60, private"][..]),
        ("Cache-Control: max-age=60\r\nCache-Control: public\r\n", &["max-age=60, private"]),
        ("Cache-Control: no-store\r\n", &["no-store"]),
        ("Cache-Control: private=\"set-cookie, x\", max-age=5\r\n", &["max-age=5, private"]),
        ("Cache-Control: no-cache=\"a, public\", Private\r\n", &["no-cache=\"a, public\", Private"]),
        ("X: y\r\n", &["private"]),
        ("Pragma: no-cache\r\n", &[]),
        ("CDN-Cache-Control: public\r\nSurrogate-Control: max-age=9\r\nEdge-CDN-Cache-Control: max-age=9\r\n", &["private"]),
        ("Content-Type: text/html\r\nCache-Control: public\r\n", &["private"]),
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!("/t{number}#access=private;{inject}");
        let agent = offer(&gateway, &request, service(fields));
        let url = agent.hello["tunnels"][request.as_str()].as_str().expect("a URL").to_owned();
        let response = Curl::new(&gateway).header(&bearer).get(&url);
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(all(&response, "cache-control"), left, "{fields}");
        for name in ["cdn-cache-control", "surrogate-control", "edge-cdn-cache-control"] {
            assert_eq!(response.header(name), None, "{fields}");
        }
        assert_eq!(response.text().contains("s.test"), fields.contains("text/html"), "{response:?}");
    }
    // What a service says is for the next neighbour only is out before the gateway's own is put in.
    let named = "Cache-Control: public\r\nConnection: cache-control, set-cookie\r\n";
    let agent = offer(&gateway, "/named#access=private", service(named));
    let url = agent.hello["tunnels"]["/named#access=private"].as_str().expect("a URL");
    for curl in [Curl::new(&gateway).http1(), Curl::new(&gateway).http2()] {
        assert_eq!(all(&curl.header(&bearer).get(url), "cache-control"), ["private"]);
    }
    let user = format!("x-preevy-profile-key:{}", token_of("ed25519a", "EdDSA"));
    let browser = Curl::new(&gateway).args(&["-u", &user]).header("Sec-Fetch-Mode: navigate").get(url);
    assert_eq!(all(&browser, "set-cookie").len(), 1, "{browser:?}");
    let _agent = offer(&gateway, "/web", service("Cache-Control: public, s-maxage=9\r\n"));
    let open = Curl::new(&gateway).get(&format!("https://{}/", host("web")));
    assert_eq!(open.header("cache-control"), Some("public, s-maxage=9"));
}

#[test]
fn a_guest_link_that_was_bent_on_its_way_reaches_no_service() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = offer(&gateway, "/web", backend.address());
    let own = format!("https://{}", host("web"));
    for path in ["/.oneport/guest?link=x", "//.oneport/guest?link=x", "/.oneport//guest/?link=x"] {
        let response = Curl::new(&gateway).get(&format!("{own}{path}"));
        assert_eq!(
            (response.status, response.header("location")),
            (303, Some(&*format!("{own}/"))),
            "{path}"
        );
        // Links are good on the preview's own host only.
        let response = Curl::new(&gateway).get(&proxied(path));
        let to = format!("{own}/.oneport/guest?link=x");
        assert_eq!((response.status, response.header("location")), (303, Some(&*to)), "{path}");
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
    }
    assert_eq!(backend.requests(), 0);
    for path in ["/.oneport/guests", "/x/.oneport/guest", "/.oneport/guest/x", "/.oneport", "/.oneport/login"]
    {
        assert_eq!(Curl::new(&gateway).get(&format!("{own}{path}")).status, 200, "{path}");
    }
}

#[test]
fn a_preview_sets_no_token_cookie_and_a_route_does() {
    let fields = "Set-Cookie: PREEVY-SAAS-jwt=x; Path=/\r\nSet-Cookie: a=1\r\n";
    let mut setup = Setup::new();
    set_route(&mut setup, "app.gw.test", service(fields));
    let gateway = setup.start();
    let _agent = offer(&gateway, "/web", service(fields));
    let set = |url: &str| all(&Curl::new(&gateway).get(url), "set-cookie");
    assert_eq!(set(&format!("https://{}/", host("web"))), ["a=1"]);
    assert_eq!(set("https://app.gw.test/").len(), 2);
}
