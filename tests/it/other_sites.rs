//! What a browser keeps for a preview counts only for pages of that preview and of its agent's others:
//! all below the base host are one site to browsers, so that they send it along for everybody's pages.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::isolation::{answering, set_route, with_password};
use crate::issuers::{token_for, with_issuer};
use crate::login::{House, Jar, url};
use crate::support::SOON;
use crate::support::agent::{OpenSsh, host, node};
use crate::support::gateway::Setup;
use crate::support::visitor::{Curl, Response, read_until, tls};

impl House {
    /// Where a page of the other agent's comes from.
    fn stranger(&self) -> String {
        self.other("/open", "")
    }

    fn post(&self, headers: &[&str]) -> u16 {
        let curl = Curl::new(&self.gateway).args(&["-d", "a=b"]);
        headers.iter().fold(curl, |curl, header| curl.header(header)).get(&url("web", "/echo")).status
    }

    /// The status of an upgrade over HTTP/1.1.
    fn upgrade(&self, headers: &[&str]) -> u16 {
        let mut stream = tls(&self.gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
        let headers = headers.join("\r\n");
        let head = format!(
            "GET /tcp HTTP/1.1\r\nHost: {}\r\n{headers}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
            host("web")
        );
        stream.write_all(head.as_bytes()).expect("open");
        let head = read_until(&mut stream, "\r\n\r\n");
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
    }

    /// What becomes of a WebSocket over HTTP/2 to the agent's tunnel `ws`.
    fn websocket(&self, cookie: &str, origin: &str) -> Value {
        let options = json!({
            "port": self.gateway.address().port(), "ca": self.gateway.ca(), "host": host("ws"), "path": "/ws",
            "headers": { "cookie": cookie.trim_start_matches("Cookie: "), "origin": origin },
        });
        let output = node("h2_ws_client.js", &options).finish(SOON);
        serde_json::from_str(output.stdout.trim()).unwrap_or_else(|_| panic!("{output:?}"))
    }
}

fn visit_cookie(jar: &Jar<'_>, name: &str) -> String {
    format!("Cookie: __Host-oneport-visit={}", jar.cookie(&host(name), "visit"))
}

#[test]
fn another_previews_page_can_neither_post_nor_open_a_websocket_with_a_login() {
    let house = House::new();
    let jar = house.jar("jar");
    let token = house.token("ed25519a");
    jar.login(&url("web", "/echo"), &token);
    let cookie = visit_cookie(&jar, "web");
    let own = url("web", "");
    for evil in [
        house.stranger(),
        house.other("/shut#access=private", ""),
        "https://attacker.example".to_owned(),
        "https://auth.gw.test".to_owned(),
        "https://gw.test".to_owned(),
        "null".to_owned(),
        String::new(),
        own.replace("https", "http"),
        format!("{own}:8443"),
        format!("{own}."),
        format!("{own}.attacker.example"),
        format!("{own} {}", house.stranger()),
        format!("{own}/"),
    ] {
        // An empty field, as curl writes it.
        let origin = if evil.is_empty() { "Origin;".to_owned() } else { format!("Origin: {evil}") };
        assert_eq!(house.post(&[&cookie, &origin]), 403, "{evil}");
        let origin = origin.replace(';', ":");
        assert_eq!(house.upgrade(&[&cookie, &origin]), 403, "{evil}");
    }
    assert_eq!(house.upgrade(&[&cookie, &format!("Origin: {own}"), "Origin: https://evil.test"]), 403);
    let refused = Curl::new(&house.gateway).args(&["-X", "DELETE"]).header(&cookie);
    let refused = refused.header(&format!("Origin: {}", house.stranger())).get(&url("web", "/echo"));
    assert!(
        refused.text().contains("other-site") && refused.text().contains(&house.stranger()),
        "{refused:?}"
    );
    house.gateway.wait_reason("other-site");
    // The preview's own pages, those of the same agent's, and programs.
    for good in [own, url("api", "").to_uppercase().replace("HTTPS", "https")] {
        let origin = format!("Origin: {good}");
        assert_eq!(
            (house.post(&[&cookie, &origin]), house.upgrade(&[&cookie, &origin])),
            (200, 101),
            "{good}"
        );
    }
    assert_eq!((house.post(&[&cookie]), house.upgrade(&[&cookie])), (200, 101));
    // Forms of a page of its own that wants no referrer, but none of a frame that may do nothing.
    let of = |site: &str| house.post(&[&cookie, "Origin: null", &format!("Sec-Fetch-Site: {site}")]);
    assert_eq!(["same-origin", "same-site", "cross-site", "none"].map(of), [200, 403, 403, 403]);
    let evil = format!("Origin: {}", house.stranger());
    // Browsers keep passwords, too; programs have no `Origin`.
    let basic = format!("x-preevy-profile-key:{token}");
    let basic = format!("Authorization: Basic {}", STANDARD.encode(basic));
    assert_eq!((house.post(&[&basic, &evil]), house.upgrade(&[&basic, &evil])), (403, 403));
    assert_eq!((house.post(&[&basic]), house.upgrade(&[&basic])), (200, 101));
    // Who shows a token in the request itself has it.
    let bearer = format!("Authorization: Bearer {token}");
    for headers in [&[&*bearer, &evil][..], &[&bearer, &evil, &cookie]] {
        assert_eq!((house.post(headers), house.upgrade(headers)), (200, 101));
    }
    assert_eq!(house.post(&["Authorization: Bearer of.the.app", &evil, &cookie]), 403);
}

/// Some services, development servers first, let pages of every origin read what they answer.
#[test]
fn another_previews_page_reads_nothing_with_a_login() {
    let house = House::new();
    let jar = house.jar("jar");
    let token = house.token("ed25519a");
    jar.login(&url("web", "/echo"), &token);
    let cookie = visit_cookie(&jar, "web");
    let (own, evil) = (format!("Origin: {}", url("api", "")), format!("Origin: {}", house.stranger()));
    let ask = |headers: &[&str]| {
        let curl = headers.iter().fold(Curl::new(&house.gateway), |curl, header| curl.header(header));
        curl.get(&url("web", "/echo")).status
    };
    assert_eq!((ask(&[&cookie, &evil]), ask(&[&cookie, "Origin: null"])), (403, 403));
    assert_eq!(ask(&[&cookie, "Origin: null", "Sec-Fetch-Site: same-origin"]), 200);
    let basic = format!("Authorization: Basic {}", STANDARD.encode(format!("x-preevy-profile-key:{token}")));
    assert_eq!((ask(&[&basic, &evil]), ask(&[&basic, &own]), ask(&[&basic])), (403, 200, 200));
    assert_eq!((ask(&[&cookie, &own]), ask(&[&cookie])), (200, 200));
    // What is opened in the window after another site's form, where old browsers name that.
    assert_eq!(ask(&[&cookie, &evil, "Sec-Fetch-Mode: navigate"]), 200);
    for mode in ["cors", "no-cors", "same-origin", "websocket"] {
        assert_eq!(ask(&[&cookie, &evil, &format!("Sec-Fetch-Mode: {mode}")]), 403, "{mode}");
    }
    // Who shows a token in the request itself has it.
    assert_eq!(ask(&[&cookie, &evil, &format!("Authorization: Bearer {token}")]), 200);
    // With a login or without, a preflight is a preflight.
    let preflight = |cookie: &str| {
        let curl = Curl::new(&house.gateway).args(&["-X", "OPTIONS"]).header(cookie).header(&evil);
        curl.header("Access-Control-Request-Method: PUT").get(&url("web", "/echo")).status
    };
    assert_eq!((preflight(&cookie), preflight("Cookie: own=1")), (200, 200));
}

/// All tunnels are of one origin there, so that what a browser keeps for one, it sends for the pages of all.
#[test]
fn below_a_path_no_page_uses_a_password_that_the_browser_keeps() {
    let house = House::new();
    let user = format!("x-preevy-profile-key:{}", house.token("ed25519a"));
    let below = format!("https://gw.test/proxy/{}", host("web").trim_end_matches(".gw.test"));
    let ask = |arguments: &[&str], headers: &[&str], path: &str| {
        let curl = Curl::new(&house.gateway).args(arguments);
        headers.iter().fold(curl, |curl, header| curl.header(header)).get(&format!("{below}{path}"))
    };
    let asks_for_one = |response: &Response| {
        response.headers.iter().any(|(name, value)| name == "www-authenticate" && value.starts_with("Basic"))
    };
    let hinted = "/echo?a=b&_preevy_auth_hint=basic";
    let basic = ["-u", &user];
    for by in [
        &["Origin: https://gw.test"][..],
        &["Sec-Fetch-Mode: cors", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Dest: empty"],
        &["Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: none"],
    ] {
        for arguments in [&basic[..], &["-u", &user, "-d", "a=b"], &["-u", "x-preevy-profile-key:x"]] {
            for path in ["/echo", hinted] {
                let refused = ask(arguments, by, path);
                let seen = (refused.status, refused.header("location"), asks_for_one(&refused));
                assert_eq!(seen, (401, None, false), "{by:?}, {refused:?}");
                let says = |text: &str| refused.text().contains(text);
                assert!(says("own host") && says(&format!("{},", url("web", path))), "{refused:?}");
            }
        }
    }
    // Programs go on, Node's own `fetch` too, and so does whoever shows a token in the request itself.
    for program in [&[][..], &["Sec-Fetch-Mode: cors"]] {
        assert_eq!(["/echo", hinted].map(|path| ask(&basic, program, path).status), [200, 200]);
    }
    assert_eq!(ask(&["-u", &user, "-d", "a=b"], &[], "/echo").status, 200);
    let bearer = format!("Authorization: Bearer {}", house.token("ed25519a"));
    assert_eq!(ask(&[], &[&bearer, "Origin: https://gw.test"], "/echo").status, 200);
    // Who is to be asked is asked on the tunnel's own host.
    for path in [hinted, "//evil.test?_preevy_auth_hint=basic"] {
        let sent = ask(&[], &["Sec-Fetch-Mode: navigate"], path);
        let to = url("web", path);
        let seen = (sent.status, sent.header("location"), sent.header("www-authenticate"));
        assert_eq!(seen, (307, Some(&*to), None), "{sent:?}");
        let asked = Curl::new(&house.gateway).get(&to);
        assert!(asked.status == 401 && asks_for_one(&asked), "{asked:?}");
    }
    let posted = ask(&["-d", "a=b"], &[], hinted);
    assert_eq!((posted.status, posted.header("location"), asks_for_one(&posted)), (401, None, false));
    let unknown = ask(&["-u", "admin:s3cret"], &[], hinted);
    assert_eq!((unknown.status, unknown.header("location"), asks_for_one(&unknown)), (401, None, false));
    assert!(unknown.text().contains(&url("web", hinted)), "{unknown:?}");
}

/// The same with a real browser, which sends the password by itself where it was given once.
#[test]
fn a_browser_gives_its_password_on_the_previews_own_host() {
    let mut setup = Setup::new();
    // Something on the base host that asks once, so that the browser keeps it for that host. It gets none.
    let has_asked = AtomicBool::new(false);
    let asks = answering(move |_| match has_asked.swap(true, Ordering::SeqCst) {
        true => ("200 OK", ""),
        false => ("401 Unauthorized", "WWW-Authenticate: Basic realm=\"app\"\r\n"),
    });
    set_route(&mut setup, "gw.test", asks);
    let house = House::of(setup);
    let token = house.token("ed25519a");
    let below = |url: &str| url.replace("https://", "https://gw.test/proxy/").replace(".gw.test/", "/");
    let hinted = url("web", "/echo?_preevy_auth_hint=basic");
    let seen = with_password(
        &house.gateway,
        ("x-preevy-profile-key", &token),
        &json!([
            { "open": below(&hinted) },
            { "open": "https://gw.test/" },
            { "open": below(&house.other("/open", "/echo")) },
            { "fetch": below(&url("web", "/echo")), "method": "GET" },
            { "fetch": below(&url("web", "/echo")), "method": "POST" },
        ]),
    );
    let seen: Vec<_> = seen.iter().map(|step| (step["status"].as_u64(), step["url"].as_str())).collect();
    assert_eq!(seen[0].1, Some(&*hinted), "{seen:?}");
    let statuses: Vec<_> = seen.iter().filter_map(|(status, _)| *status).collect();
    assert_eq!(statuses, [200, 200, 200, 401, 401], "{seen:?}");
}

#[test]
fn nor_over_http2_nor_by_a_guest_link_nor_by_the_cookie_of_the_hosted_service() {
    let mut setup = Setup::new();
    with_issuer(&mut setup);
    let house = House::of(setup);
    let sockets = node("ws_backend.js", &Value::Null);
    let port: u16 = sockets.out.wait("the port", SOON, |said| said.trim().parse().ok());
    let to: SocketAddr = ([127, 0, 0, 1], port).into();
    let _more = OpenSsh::new(&house.gateway).forward("/ws#access=private", to).start();
    let jar = house.jar("jar");
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    jar.go(&url("ws", "/"));
    let cookie = visit_cookie(&jar, "ws");
    let refused = house.websocket(&cookie, &house.stranger());
    assert_eq!(refused["status"], 403, "{refused}");
    assert!(refused["body"].as_str().expect("a body").contains("other-site"), "{refused}");
    let good = house.websocket(&cookie, &url("ws", ""));
    assert_eq!(good["text"], "over h2", "{good}");

    let shared = OpenSsh::new(&house.gateway).command("share web").run();
    let shared: Value = serde_json::from_str(shared.stdout.trim()).expect("JSON");
    let (_, link) = shared["url"].as_str().expect("a URL").split_once("link=").expect("a link");
    let (evil, own) = (format!("Origin: {}", house.stranger()), format!("Origin: {}", url("web", "")));
    let cookies =
        [format!("__Host-oneport-guest={link}"), format!("preevy-saas-jwt={}", token_for("ed25519a"))];
    for cookie in cookies {
        let cookie = format!("Cookie: {cookie}");
        assert_eq!((house.post(&[&cookie, &evil]), house.upgrade(&[&cookie, &evil])), (403, 403), "{cookie}");
        assert_eq!((house.post(&[&cookie, &own]), house.upgrade(&[&cookie, &own])), (200, 101), "{cookie}");
        // Below a path, where pages of all agents are of one origin, none of that counts.
        let path = format!("https://gw.test/proxy/{}/echo", host("web").trim_end_matches(".gw.test"));
        let post = Curl::new(&house.gateway).args(&["-d", "a=b"]).header(&cookie);
        assert_eq!(post.header("Origin: https://gw.test").get(&path).status, 401, "{cookie}");
        assert_eq!(Curl::new(&house.gateway).header(&cookie).get(&path).status, 307, "{cookie}");
    }
}
