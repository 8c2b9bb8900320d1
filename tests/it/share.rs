//! Guest links: who has one sees one private preview without an account, until it ends or is taken
//! back, and nothing else.

use std::path::PathBuf;

use serde_json::Value;

use crate::permits::{Events, go_on, still_talks, switched_with, wait_records};
use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Output;
use crate::support::visitor::{Curl, Response, read_to_end};
use crate::support::{SOON, poll};

const OTHER: &str = "ed25519b";

/// A gateway, an agent with two private tunnels and a public one, and another agent with a private
/// one.
struct House {
    gateway: Gateway,
    backend: Backend,
    _agent: Agent,
    other: Agent,
}

impl House {
    fn of(setup: Setup) -> Self {
        let (gateway, backend) = (setup.start(), Backend::start());
        let agent = OpenSsh::new(&gateway)
            .forward("/web#access=private", backend.address())
            .forward("/api#access=private", backend.address())
            .forward("/open", backend.address())
            .start();
        let other =
            OpenSsh::new(&gateway).key(OTHER).forward("/web#access=private", backend.address()).start();
        Self { gateway, backend, _agent: agent, other }
    }

    fn new() -> Self {
        Self::of(Setup::new())
    }

    fn share(&self, what: &str) -> Link {
        share(&self.gateway, what)
    }

    /// One step, with this cookie jar.
    fn step(&self, jar: &str, url: &str) -> Response {
        curl(&self.gateway, jar).get(url)
    }

    fn other_host(&self) -> String {
        let url = self.other.hello["tunnels"]["/web#access=private"].as_str().expect("a URL");
        url.trim_start_matches("https://").trim_end_matches('/').to_owned()
    }
}

struct Link {
    id: String,
    url: String,
    until: String,
}

fn ask(gateway: &Gateway, key: &str, command: &str) -> Output {
    OpenSsh::new(gateway).key(key).command(command).run()
}

#[track_caller]
fn said(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_str(output.stdout.strip_suffix("\r\n").expect("a line")).expect("JSON")
}

#[track_caller]
fn share(gateway: &Gateway, what: &str) -> Link {
    let answer = said(&ask(gateway, "ed25519a", &format!("share {what}")));
    let text = |name: &str| answer[name].as_str().expect("text").to_owned();
    Link { id: text("id"), url: text("url"), until: text("until") }
}

fn jar_file(gateway: &Gateway, jar: &str) -> PathBuf {
    gateway.path(jar)
}

fn curl<'a>(gateway: &'a Gateway, jar: &str) -> Curl<'a> {
    let file = jar_file(gateway, jar);
    let file = file.to_str().expect("UTF-8");
    Curl::new(gateway).args(&["-b", file, "-c", file]).header("Accept: text/html")
}

fn url(name: &str, path: &str) -> String {
    format!("https://{}{path}", host(name))
}

/// The cookie of a guest, as a line of a request's head.
fn guest_cookie(link: &Link) -> String {
    format!("Cookie: __Host-oneport-guest={}", link.url.split_once("link=").expect("a link").1)
}

#[track_caller]
fn refused(response: &Response, reason: &str, why: &str) {
    assert_eq!(response.status, 403, "{response:?}");
    assert!(response.text().contains(reason) && response.text().contains(why), "{response:?}");
    assert!(response.header("set-cookie").is_none() && response.header("location").is_none(), "{response:?}");
}

#[test]
fn a_link_opens_one_preview_for_who_has_it() {
    let house = House::new();
    let link = house.share("web 2h");
    assert!(link.url.starts_with(&url("web", "/.oneport/guest?link=")), "{}", link.url);
    // Programs that look at links use nothing up, and scanners see nothing of the service.
    let requests = house.backend.requests();
    assert_eq!(curl(&house.gateway, "bot").args(&["-I"]).get(&link.url).status, 303);
    let first = house.step("guest", &link.url);
    assert_eq!((first.status, first.header("location")), (303, Some(url("web", "/").as_str())), "{first:?}");
    assert_eq!(house.backend.requests(), requests);
    house
        .gateway
        .wait_log("guest", |record| record["message"] == "a guest came" && record["link"] == *link.id);
    for (name, value) in [("referrer-policy", "no-referrer"), ("cache-control", "no-store")] {
        assert_eq!(first.header(name), Some(value), "{first:?}");
    }
    let cookie = first.header("set-cookie").expect("a cookie");
    assert!(
        cookie.starts_with("__Host-oneport-guest=") && cookie.contains("; HttpOnly; SameSite=Lax; Secure")
    );
    let age = cookie.split_once("Max-Age=").and_then(|(_, rest)| rest.split(';').next()?.parse().ok());
    assert!(age.is_some_and(|age: u64| age > 7000 && age <= 7200), "{cookie}");
    // The preview is there, and its service sees nothing of it; its own `Authorization` passes.
    let page = curl(&house.gateway, "guest").header("Authorization: Bearer of.the.app");
    let page = page.header("Cookie: own=1").get(&url("web", "/echo"));
    let headers = page.json()["headers"].to_string();
    assert!(page.status == 200 && !headers.contains("oneport") && headers.contains("of.the.app"), "{page:?}");
    assert!(headers.contains("own=1"), "{headers}");
    // Nothing else is.
    for elsewhere in [
        url("api", "/echo"),
        format!("https://{}/echo", house.other_host()),
        "https://gw.test/proxy/web-dzk582uo/echo".to_owned(),
    ] {
        let with = Curl::new(&house.gateway).header(&guest_cookie(&link)).header("Accept: text/html");
        assert_eq!(with.get(&elsewhere).status, 307, "{elsewhere}");
    }
    let list = "https://api.gw.test/profiles/urn:ietf:params:oauth:jwk-thumbprint:sha-256:x/tunnels";
    assert_eq!(Curl::new(&house.gateway).header(&guest_cookie(&link)).get(list).status, 404);
    // Again, from another browser, and onto a page; never to another host.
    let deep = format!("{}&returnPath=%2Fecho%3Fa%3Db", link.url);
    assert_eq!(house.step("second", &deep).header("location"), Some(url("web", "/echo?a=b").as_str()));
    for evil in ["%2F%2Fevil.test", "https:%2F%2Fevil.test", "%2F%5Cevil.test", "@evil.test"] {
        let response = house.step("evil", &format!("{}&returnPath={evil}", link.url));
        assert_eq!(response.header("location"), Some(url("web", "/").as_str()), "{evil}");
    }
    // Who sends `Authorization` is told, and sent nowhere.
    let told = curl(&house.gateway, "told").header("Authorization: Bearer x").get(&link.url);
    assert!(
        told.status == 200 && told.header("location").is_none() && told.text().contains(&url("web", "/"))
    );
    let secret = link.url.split_once("link=").expect("a link").1;
    assert!(!house.gateway.stderr().contains(secret), "{}", house.gateway.stderr());
}

#[test]
fn a_link_that_is_not_whole_or_for_another_opens_nothing() {
    let house = House::new();
    let link = house.share("web").url;
    for name in ["api", "web"] {
        for cut in 1..3 {
            let bad = &link[..link.len() - cut].replace(&host("web"), &host(name));
            refused(&house.step("a", bad), "bad-link", "not whole, or is not for this preview");
        }
    }
    let mut changed = link.clone().into_bytes();
    let at = changed.len() - 40;
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    refused(&house.step("a", &String::from_utf8(changed).expect("text")), "bad-link", "not whole");
    refused(&house.step("a", &link.replace(&host("web"), &host("api"))), "bad-link", "not for this preview");
    refused(
        &house.step("a", &link.replace(&host("web"), &house.other_host())),
        "bad-link",
        "not for this preview",
    );
    refused(&house.step("a", &url("web", "/.oneport/guest")), "bad-link", "not whole");
    // A public preview needs none, and its service sees no link.
    let requests = house.backend.requests();
    let open = house.step("a", &link.replace(&host("web"), &host("open")));
    assert_eq!((open.status, open.header("location")), (303, Some(url("open", "/").as_str())), "{open:?}");
    assert!(open.header("set-cookie").is_none() && house.backend.requests() == requests);
    let post = curl(&house.gateway, "a").args(&["-X", "POST"]).get(&link);
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn what_is_shared_is_listed_and_taken_back_by_its_owner_alone() {
    let house = House::new();
    let gateway = &house.gateway;
    let (first, second) = (house.share("web 1h"), house.share("/web#access=private 2h"));
    let third = house.share("web-dzk582uo 3h");
    assert!(third.url.starts_with(&url("web", "/")), "{}", third.url);
    let fourth = house.share(&format!("{} 4h", url("web", "/page?a=b")));
    assert!(fourth.url.starts_with(&url("web", "/.oneport/")), "{}", fourth.url);
    let list = said(&ask(gateway, "ed25519a", "shares"));
    let ids: Vec<_> = list.as_array().expect("a list").iter().map(|share| share["id"].clone()).collect();
    assert_eq!(ids, [&*first.id, &second.id, &third.id, &fourth.id]);
    assert_eq!(
        (&list[0]["url"], &list[0]["until"]),
        (&Value::from(url("web", "/")), &Value::from(&*first.until))
    );
    // Another key neither sees nor ends them, and shares nothing of this key's.
    assert_eq!(said(&ask(gateway, OTHER, "shares")), Value::Array(Vec::new()));
    let stranger = ask(gateway, OTHER, &format!("unshare {}", first.id));
    assert_eq!(stranger.status.code(), Some(1), "{stranger:?}");
    assert!(
        stranger.stderr.contains("your key has no guest link") && stranger.stdout.is_empty(),
        "{stranger:?}"
    );
    assert_eq!(said(&ask(gateway, OTHER, "unshare all")), Value::Array(Vec::new()));
    let theirs = ask(gateway, OTHER, "share web-dzk582uo");
    let theirs = (said(&theirs)["url"].as_str().expect("a URL").to_owned(), theirs.stderr);
    assert!(!theirs.0.contains(&host("web")) && theirs.1.contains("does not offer"), "{theirs:?}");
    let open = ask(gateway, "ed25519a", "share open");
    assert!(open.stderr.contains("is public") && open.status.success(), "{open:?}");
    for (bad, why) in [
        ("share web 31d", "at most `30d`"),
        ("share web 0s", "at least `1s`"),
        ("share web soon", "is not a time"),
        ("share", "share NAME TIME"),
        ("share --help", "is not the name of a preview"),
        ("share https://web.other.test/", "is not the URL of a preview here"),
        ("unshare x", "is not the id"),
    ] {
        let output = ask(gateway, "ed25519a", bad);
        assert!(output.status.code() == Some(1) && output.stderr.contains(why), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    assert_eq!(
        said(&ask(gateway, "ed25519a", &format!("unshare {}", first.id))),
        Value::from(vec![&*first.id])
    );
    refused(&house.step("a", &first.url), "link-ended", "was taken back");
    assert_eq!(house.step("b", &second.url).status, 303);
    assert_eq!(said(&ask(gateway, "ed25519a", "unshare all")).as_array().map(Vec::len), Some(4));
    assert_eq!(said(&ask(gateway, "ed25519a", "shares")), Value::Array(Vec::new()));
    refused(&house.step("b", &second.url), "link-ended", "was taken back");
    // The cookie of a link that was taken back is as good as none.
    assert_eq!(house.step("b", &url("web", "/echo")).status, 307);
}

#[test]
fn what_a_link_opened_ends_with_it_and_nothing_else_does() {
    let house = House::new();
    let gateway = &house.gateway;
    let (ends, lives) = (house.share("web 1h"), house.share("web 1h"));
    let open = |link: &Link| {
        let cookie = guest_cookie(link);
        let events = ["--http1.1", "--http2"].map(|v| Events::with(gateway, &cookie, v, &url("web", "/sse")));
        (events, switched_with(gateway, &cookie))
    };
    let (mut ending, mut shell) = open(&ends);
    let (mut living, mut other) = open(&lives);
    still_talks(&mut shell);
    said(&ask(gateway, "ed25519a", &format!("unshare {}", ends.id)));
    ending.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    wait_records(gateway, "/sse", "link-ended", 2);
    wait_records(gateway, "/tcp", "link-ended", 1);
    still_talks(&mut other);
    go_on(&mut living, &house.backend);

    let short = house.share("web 2s");
    let mut by_short = switched_with(gateway, &guest_cookie(&short));
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut by_short)), "");
    wait_records(gateway, "/tcp", "permit-expired", 1);
    let over = poll("the end of the link", SOON, || {
        let answer = house.step("a", &short.url);
        (answer.status == 403).then_some(answer)
    });
    refused(&over, "link-ended", &format!("ended at {}", short.until));
    still_talks(&mut other);
}

#[test]
fn links_outlive_a_restart_and_those_taken_back_do_not_return() {
    let mut setup = Setup::new();
    setup.set("access.share_max", "3h");
    let house = House::of(setup);
    let (kept, gone) = (house.share("web 3h"), house.share("web 3h"));
    said(&ask(&house.gateway, "ed25519a", &format!("unshare {}", gone.id)));
    let House { gateway, backend, .. } = house;
    let gateway = gateway.restart();
    let _agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address()).start();
    assert_eq!(
        curl(&gateway, "a").args(&["-L"]).get(&format!("{}&returnPath=/small", kept.url)).text(),
        "small"
    );
    refused(&curl(&gateway, "b").get(&gone.url), "link-ended", "was taken back");
    assert_eq!(said(&ask(&gateway, "ed25519a", "shares")).as_array().map(Vec::len), Some(1));
    let file = gateway.path("state").join("shares");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("the list").permissions());
    assert_eq!(mode & 0o777, 0o600);
    // What opens a link is not in there.
    let text = std::fs::read_to_string(&file).expect("the list");
    assert!(
        !text.contains(kept.url.split_once("link=").expect("a link").1)
            // Where it was made is, for what one address may have made.
            && text.ends_with(" 127.0.0.1\n")
            && text.lines().count() == 1,
        "{text}"
    );
}

#[test]
fn a_gateway_may_give_no_links() {
    let mut setup = Setup::new();
    setup.set("access.share_max", "0s");
    let gateway = setup.start();
    let output = ask(&gateway, "ed25519a", "share web");
    assert!(output.status.code() == Some(1) && output.stderr.contains("gives no guest links"), "{output:?}");
}

#[test]
fn an_operator_ends_the_links_of_all_by_giving_none_any_more() {
    let house = House::new();
    let link = house.share("web 2d");
    let House { gateway, backend, .. } = house;
    let restart = |gateway: Gateway, max: &str| {
        let mut setup = gateway.kill();
        setup.set("access.share_max", max);
        let gateway = setup.start();
        let agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address()).start();
        (gateway, agent)
    };
    let (gateway, agent) = restart(gateway, "1h");
    let cut = curl(&gateway, "a").get(&link.url);
    let cookie = cut.header("set-cookie").expect("a cookie");
    let age = cookie.split_once("Max-Age=").and_then(|(_, rest)| rest.split(';').next()?.parse().ok());
    assert!(age.is_some_and(|age: u64| age > 3000 && age <= 3600), "{cookie}");
    assert_eq!(curl(&gateway, "a").get(&url("web", "/echo")).status, 200);
    drop(agent);
    let (gateway, agent) = restart(gateway, "0s");
    refused(&curl(&gateway, "b").get(&link.url), "link-ended", "gives no guest links any more");
    assert_eq!(curl(&gateway, "a").get(&url("web", "/echo")).status, 307);
    drop(agent);
    // Nor are they back when new ones may be made.
    let (gateway, _agent) = restart(gateway, "30d");
    refused(&curl(&gateway, "b").get(&link.url), "link-ended", "was taken back");
}
