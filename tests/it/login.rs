//! Logins with a browser: one opens all previews of a profile, it ends everywhere at once, and
//! nothing of it reaches a service, another preview or another site.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::issuers::{order, set_of, token_for, with_issuer};
use crate::permits::{Events, go_on, still_talks, switched_with, wait_records};
use crate::private::jose;
use crate::support::agent::{Agent, OpenSsh, host, key_file, node};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::visitor::{Curl, Response, read_to_end};
use crate::support::{SOON, gateway::ONEPORT, poll};

const AUTH: &str = "https://auth.gw.test";
/// The default key's client id, and that of the other.
const OTHER: &str = "ed25519b";
/// What a browser could be known by.
const MARK: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// A gateway; an agent with two private tunnels, and another agent with a public and a private one.
pub(crate) struct House {
    pub(crate) gateway: Gateway,
    backend: Backend,
    _agent: Agent,
    other: Agent,
}

/// A browser's cookies, in curl's hands.
pub(crate) struct Jar<'a> {
    gateway: &'a Gateway,
    file: PathBuf,
}

impl House {
    /// Where people log in at the hosted service that existing agents know.
    fn hosted(setup: Setup) -> Self {
        let mut command = setup.command();
        command.env("SAAS_BASE_URL", "https://app.test");
        let (gateway, backend) = (setup.start_with(command), Backend::start());
        let agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address()).start();
        let other = OpenSsh::new(&gateway).key(OTHER).forward("/open", backend.address()).start();
        Self { gateway, backend, _agent: agent, other }
    }

    pub(crate) fn new() -> Self {
        Self::of(Setup::new())
    }

    pub(crate) fn of(setup: Setup) -> Self {
        let (gateway, backend) = (setup.start(), Backend::start());
        let agent = OpenSsh::new(&gateway)
            .forward("/web#access=private", backend.address())
            .forward("/api#access=private", backend.address())
            .start();
        let other = OpenSsh::new(&gateway)
            .key(OTHER)
            .forward("/open", backend.address())
            .forward("/shut#access=private", backend.address())
            .start();
        Self { gateway, backend, _agent: agent, other }
    }

    pub(crate) fn jar(&self, name: &str) -> Jar<'_> {
        Jar { gateway: &self.gateway, file: self.gateway.path(name) }
    }

    pub(crate) fn other(&self, request: &str, path: &str) -> String {
        let url = self.other.hello["tunnels"][request].as_str().expect("a URL");
        format!("{}{path}", url.trim_end_matches('/'))
    }

    pub(crate) fn token(&self, key: &str) -> String {
        let mut command = std::process::Command::new(ONEPORT);
        command.arg("token").arg("--key").arg(key_file(self.gateway.path("").as_path(), key));
        Process::run(&mut command, SOON).stdout.trim().to_owned()
    }
}

impl Jar<'_> {
    fn curl(&self) -> Curl<'_> {
        let file = self.file.to_str().expect("UTF-8");
        Curl::new(self.gateway).args(&["-b", file, "-c", file]).header("Accept: text/html")
    }

    /// A tab that knows nothing of what others are answered; what it is told to keep is for [`keep`].
    fn tab(&self) -> Curl<'_> {
        let file = self.file.to_str().expect("UTF-8");
        Curl::new(self.gateway).args(&["-b", file]).header("Accept: text/html")
    }

    /// Follows redirects, as a browser does.
    pub(crate) fn go(&self, url: &str) -> Response {
        self.curl().args(&["-L", "--max-redirs", "10"]).get(url)
    }

    /// One step only.
    pub(crate) fn step(&self, url: &str) -> Response {
        self.curl().get(url)
    }

    /// Sends the login form of a page, and goes where that leads.
    fn send(&self, page: &Response, token: &str) -> Response {
        self.form(page, token).args(&["-L"]).get(&format!("{AUTH}/login"))
    }

    fn form(&self, page: &Response, token: &str) -> Curl<'_> {
        let text = page.text();
        let mut curl = self.curl().header(&format!("Origin: {AUTH}")).header("Sec-Fetch-Mode: navigate");
        for part in text.split("<input type=hidden name=").skip(1) {
            let (name, rest) = part.split_once(" value=\"").expect("a value");
            let value = rest.split_once('"').expect("its end").0.replace("&amp;", "&").replace("&#39;", "'");
            curl = curl.args(&["--data-urlencode", &format!("{name}={value}")]);
        }
        curl.args(&["--data-urlencode", &format!("token={token}")])
    }

    /// Logs in for a URL, and gives the answer there.
    pub(crate) fn login(&self, url: &str, token: &str) -> Response {
        let page = self.go(url);
        assert!(page.status == 200 && page.text().contains("<form method=post"), "{page:?}");
        self.send(&page, token)
    }

    /// The lines of the jar for a host: those for programs only are marked.
    fn cookies(&self, host: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let lines = text.lines().map(|line| line.trim_start_matches("#HttpOnly_"));
        lines.filter(|line| line.starts_with(&format!("{host}\t"))).map(str::to_owned).collect()
    }

    /// The value of a cookie.
    pub(crate) fn cookie(&self, host: &str, name: &str) -> String {
        let line = self.cookies(host).into_iter().find(|line| line.contains(name)).expect("the cookie");
        line.rsplit('\t').next().expect("a value").to_owned()
    }
}

/// Does in a jar what a host's answer says of cookies. curl itself reads its jar once more before it writes
/// it, so that of several that are taken away all but one are back.
pub(crate) fn keep(file: &Path, host: &str, answer: &Response) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (_, value) in answer.headers.iter().filter(|(name, _)| name == "set-cookie") {
        let (pair, rest) = value.split_once("; ").expect("attributes");
        let (name, value) = pair.split_once('=').expect("a name");
        let domain = rest.split("; ").find_map(|part| part.strip_prefix("Domain="));
        let (place, below) =
            domain.map_or((host.to_owned(), "FALSE"), |domain| (format!(".{domain}"), "TRUE"));
        let is_same = |line: &String| {
            let fields: Vec<&str> = line.trim_start_matches("#HttpOnly_").split('\t').collect();
            fields.first() == Some(&&*place) && fields.get(5) == Some(&name)
        };
        lines.retain(|line| !is_same(line));
        if !rest.contains("Max-Age=0") {
            let end = crate::private::now() + 600;
            lines.push(format!("#HttpOnly_{place}\t{below}\t/\tTRUE\t{end}\t{name}\t{value}"));
        }
    }
    std::fs::write(file, lines.join("\n") + "\n").expect("writable");
}

pub(crate) fn url(name: &str, path: &str) -> String {
    format!("https://{}{path}", host(name))
}

/// What of the cookies and `Authorization` reached the service.
fn reached(response: &Response) -> Vec<String> {
    assert_eq!(response.status, 200, "{}", response.text());
    let headers: Value = response.json()["headers"].clone();
    let pairs = headers.as_array().expect("a list").iter();
    let secret = pairs.filter(|pair| pair[0] == "cookie" || pair[0] == "authorization");
    secret.map(|pair| pair[1].as_str().expect("text").to_owned()).collect()
}

#[test]
fn one_login_opens_all_previews_of_a_profile_and_no_others() {
    let house = House::new();
    let jar = house.jar("jar");
    let first = jar.login(&url("web", "/echo?a=b&c=%2F"), &house.token("ed25519a"));
    assert_eq!(first.json()["target"], "/echo?a=b&c=%2F", "{first:?}");
    assert_eq!(reached(&first), <[String; 0]>::default());
    for line in jar.cookies(&host("web")).iter().chain(&jar.cookies("auth.gw.test")) {
        // Only for this host, for all paths, over HTTPS only.
        assert!(line.contains("\tFALSE\t/\tTRUE\t") && line.contains("\t__Host-oneport-"), "{line}");
    }
    // Without being asked again; and the services' own cookies and logins pass.
    let second = jar.go(&url("api", "/echo"));
    assert_eq!(reached(&second), <[String; 0]>::default());
    let app = jar.curl().header("Authorization: Bearer of.the.app").get(&url("api", "/echo"));
    assert_eq!(reached(&app), ["Bearer of.the.app"]);
    // Another's previews: the public one sees nothing of it, the private one stays shut.
    let all = [jar.cookie(&host("web"), "visit"), jar.cookie(&host("web"), "browser")]
        .join("; __Host-oneport-visit=");
    let other = house.other("/open", "/echo");
    let seen = jar.curl().header(&format!("Cookie: __Host-oneport-visit={all}; own=1")).get(&other);
    assert_eq!(reached(&seen), ["own=1"]);
    let shut = jar.go(&house.other("/shut#access=private", "/echo"));
    assert!(shut.status == 403 && shut.text().contains("may not see this preview"), "{shut:?}");
    // Somebody else's cookie is worth nothing on another host.
    let stolen = format!("Cookie: __Host-oneport-visit={}", jar.cookie(&host("web"), "visit"));
    assert_eq!(Curl::new(&house.gateway).header(&stolen).get(&url("web", "/echo")).status, 200);
    assert_eq!(Curl::new(&house.gateway).header(&stolen).get(&url("api", "/echo")).status, 307);
    let log = house.gateway.stderr();
    assert!(!log.contains(&jar.cookie("auth.gw.test", "login")) && !log.contains("code="), "{log}");
}

#[test]
fn a_logout_ends_the_session_everywhere_also_after_a_restart() {
    let house = House::new();
    let jar = house.jar("jar");
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    let logout = format!("{AUTH}/logout");
    let page = jar.step(&logout);
    assert!(page.text().contains("<form method=post action=/logout>"), "{page:?}");
    // Looking is no logout, and neither is another site's form.
    for origin in ["https://evil.test", "https://open-k.gw.test", "null"] {
        let forged = jar.curl().args(&["-X", "POST"]).header(&format!("Origin: {origin}")).get(&logout);
        assert_eq!(forged.status, 403, "{forged:?}");
    }
    assert_eq!(jar.curl().args(&["-X", "POST"]).get(&logout).status, 403);
    assert_eq!(jar.step(&url("web", "/echo")).status, 200);
    let (login, visit) = (jar.cookie("auth.gw.test", "login"), jar.cookie(&host("web"), "visit"));
    let out = jar.curl().args(&["-X", "POST"]).header(&format!("Origin: {AUTH}")).get(&logout);
    assert!(out.status == 200 && out.text().contains("You are logged out"), "{out:?}");
    let taken = out.header("set-cookie").expect("the cookie is taken away");
    assert!(taken.starts_with("__Host-oneport-login-"), "{taken}");
    assert!(taken.contains("=; Path=/; Max-Age=0;"), "{taken}");
    assert_eq!(jar.step(&url("web", "/echo")).status, 307);
    let House { gateway, backend, .. } = house;
    let gateway = gateway.restart();
    let _agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address()).start();
    let with = |cookie: &str| Curl::new(&gateway).header(&format!("Cookie: __Host-oneport-{cookie}"));
    assert_eq!(with(&format!("visit={visit}")).get(&url("web", "/echo")).status, 307);
    let page = with(&format!("login={login}")).header("Accept: text/html").get(&format!("{AUTH}/login"));
    assert!(page.text().contains("<form"), "{page:?}");
}

/// One browser, two logins after each other: the page says that it is logged out of all previews.
#[test]
fn a_logout_ends_also_what_an_earlier_login_of_the_same_browser_opened() {
    let house = House::new();
    let jar = house.jar("jar");
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    let cookie = format!("Cookie: __Host-oneport-visit={}", jar.cookie(&host("web"), "visit"));
    let mut events = Events::with(&house.gateway, &cookie, "--http2", &url("web", "/sse"));
    let shut = house.other("/shut#access=private", "/echo");
    let page = jar.go(&shut);
    assert!(page.status == 403 && page.text().contains("<form method=post"), "{page:?}");
    assert_eq!(jar.send(&page, &house.token(OTHER)).status, 200);
    // Neither login is in the way of the other.
    assert_eq!((jar.step(&url("web", "/echo")).status, jar.step(&shut).status), (200, 200));
    // Another browser's logins are its own.
    let bystander = house.jar("bystander");
    bystander.login(&url("web", "/echo"), &house.token("ed25519a"));
    assert_eq!(logout(&jar).status, 200);
    events.is_cut();
    assert_eq!((jar.step(&url("web", "/echo")).status, jar.step(&shut).status), (307, 307));
    assert_eq!(Curl::new(&house.gateway).header(&cookie).get(&url("web", "/echo")).status, 307);
    assert_eq!(bystander.step(&url("web", "/echo")).status, 200);
    // What was ended is not begun again by the next login.
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    assert_eq!(Curl::new(&house.gateway).header(&cookie).get(&url("web", "/echo")).status, 307);
}

/// As when a browser opens its tabs again: none has what another is answered.
#[test]
fn logins_that_begin_at_the_same_moment_spoil_nothing_and_end_together() {
    let house = House::new();
    let jar = house.jar("jar");
    let token = format!("Cookie: preevy-saas-jwt={}", house.token("ed25519a"));
    let tabs = [("web", "/echo?1"), ("web", "/echo?2"), ("api", "/echo")];
    // All are sent to the login, before any has a cookie of its preview; then all come from there.
    let sent = tabs.map(|(name, path)| (name, jar.tab().get(&url(name, path))));
    sent.iter().for_each(|(name, answer)| keep(&jar.file, &host(name), answer));
    let location = |answer: &Response| answer.header("location").expect("a way").to_owned();
    let begun = sent.map(|(_, answer)| jar.tab().header(&token).get(&location(&answer)));
    begun.iter().for_each(|answer| keep(&jar.file, "auth.gw.test", answer));
    for ((_, path), answer) in tabs.iter().zip(&begun) {
        let there = jar.go(&location(answer));
        assert!(there.status == 200 && there.json()["target"] == *path, "{there:?}");
    }
    let cookies = ["web", "api"].map(|name| jar.cookie(&host(name), "visit"));
    let first = format!("Cookie: __Host-oneport-visit={}", cookies[0]);
    let mut events = Events::with(&house.gateway, &first, "--http2", &url("web", "/sse"));
    let out = logout(&jar);
    assert!(out.status == 200 && out.text().contains("of all previews"), "{out:?}");
    assert!(jar.cookies("auth.gw.test").is_empty(), "{:?}", jar.cookies("auth.gw.test"));
    events.is_cut();
    for (name, cookie) in ["web", "api"].into_iter().zip(&cookies) {
        let with = format!("Cookie: __Host-oneport-visit={cookie}");
        assert_eq!(Curl::new(&house.gateway).header(&with).get(&url(name, "/echo")).status, 307, "{name}");
    }
    // The next login is another.
    assert_eq!(jar.login(&url("web", "/echo"), &house.token("ed25519a")).status, 200);
    assert_eq!(Curl::new(&house.gateway).header(&first).get(&url("web", "/echo")).status, 307);
}

fn logout(jar: &Jar<'_>) -> Response {
    let curl = jar.tab().args(&["-X", "POST"]).header(&format!("Origin: {AUTH}"));
    let answer = curl.get(&format!("{AUTH}/logout"));
    keep(&jar.file, "auth.gw.test", &answer);
    answer
}

#[test]
fn what_basic_opened_ends_with_the_token_at_the_latest() {
    let house = House::new();
    let jar = house.jar("jar");
    let mut command = std::process::Command::new(ONEPORT);
    let key = key_file(house.gateway.path("").as_path(), "ed25519a");
    let token = Process::run(command.args(["token", "--ttl", "2s", "--key"]).arg(key), SOON).stdout;
    let user = format!("x-preevy-profile-key:{}", token.trim());
    let page = jar.curl().args(&["-u", &user]).header("Sec-Fetch-Mode: navigate").get(&url("web", "/echo"));
    let set = page.header("set-cookie").expect("a cookie").to_owned();
    // It goes when the browser is closed, as what the person typed there does.
    assert!(set.starts_with("__Host-oneport-visit=") && !set.contains("Max-Age"), "{set}");
    let cookie = format!("Cookie: {}", set.split(';').next().expect("a pair"));
    let ask = || Curl::new(&house.gateway).header(&cookie).get(&url("web", "/echo")).status;
    assert_eq!(ask(), 200);
    poll("the token's end", SOON, || (ask() == 307).then_some(()));
    // The token itself still holds, because clocks may be apart; no cookie comes of it any more.
    let late = jar.curl().args(&["-u", &user]).header("Sec-Fetch-Mode: navigate").get(&url("web", "/echo"));
    assert_eq!((late.status, late.header("set-cookie")), (200, None));
    let out = logout(&jar);
    assert!(out.text().contains("user name and password"), "{}", out.text());
}

#[test]
fn what_a_login_opened_ends_with_it_and_nothing_else_does() {
    let mut setup = Setup::new();
    let secrets = setup.path("secrets");
    let secret = "first of the secrets here";
    std::fs::write(&secrets, secret).expect("writable");
    setup.set("access.secrets_file", secrets.to_str().expect("UTF-8"));
    let house = House::of(setup);
    let (gateway, token) = (&house.gateway, house.token("ed25519a"));
    let (first, second) = (house.jar("first"), house.jar("second"));
    let cookie = |jar: &Jar<'_>| {
        jar.login(&url("web", "/echo"), &token);
        format!("Cookie: __Host-oneport-visit={}", jar.cookie(&host("web"), "visit"))
    };
    let (short, long) = (cookie(&first), cookie(&second));
    let events = |header: &str| {
        ["--http1.1", "--http2"].map(|version| Events::with(gateway, header, version, &url("web", "/sse")))
    };
    let (mut ending, mut living) = (events(&short), events(&long));
    let (mut shell, mut other) = (switched_with(gateway, &short), switched_with(gateway, &long));
    let reached = house.backend.requests();
    let mut held =
        Process::start(&mut Curl::new(gateway).args(&["-i"]).header(&short).build(&url("web", "/held")));
    poll("the request at the service", SOON, || (house.backend.requests() > reached).then_some(()));
    let out = first.curl().args(&["-X", "POST"]).header(&format!("Origin: {AUTH}"));
    assert_eq!(out.get(&format!("{AUTH}/logout")).status, 200);

    ending.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    let held = held.finish(SOON).stdout;
    assert!(held.contains(" 401") && held.contains("login-ended"), "{held}");
    wait_records(gateway, "/sse", "login-ended", 2);
    wait_records(gateway, "/tcp", "login-ended", 1);
    still_talks(&mut other);
    go_on(&mut living, &house.backend);

    // A new secret before the old one ends nothing; without the old one, its cookies end.
    let write = |text: &str| {
        let next = secrets.with_extension("next");
        std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &secrets)).expect("writable");
        let count = text.lines().count();
        gateway.wait_log("reread", |record| {
            record["message"] == "cookie secrets were reread" && record["secrets"] == count
        });
    };
    write(&format!("second of the secrets here\n{secret}"));
    still_talks(&mut other);
    let mut by_new = switched_with(gateway, &cookie(&house.jar("third")));
    write("second of the secrets here");
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut other)), "");
    wait_records(gateway, "/tcp", "secret-removed", 1);
    still_talks(&mut by_new);
}

#[test]
fn logins_end_when_the_key_is_withdrawn_that_vouched_for_them() {
    let mut setup = Setup::new();
    let file = setup.path("keys.json");
    let write = |names: &[&str]| {
        let next = file.with_extension("next");
        std::fs::write(&next, set_of(names)).and_then(|()| std::fs::rename(&next, &file)).expect("writable");
    };
    write(&["ecdsa256", "rsa2048"]);
    let issuer = [("name", "id.test"), ("jwks", "keys.json")];
    let issuer: toml::Table =
        issuer.map(|(name, value)| (name.to_owned(), value.into())).into_iter().collect();
    setup.set("access.issuer", vec![toml::Value::from(issuer)]);
    let house = House::of(setup);
    let gateway = &house.gateway;
    let tokens = jose(&json!([order("id.test", "ecdsa256", "ES256"), order("id.test", "rsa2048", "RS256")]));
    let (first, second) = (house.jar("first"), house.jar("second"));
    let cookie = |jar: &Jar<'_>, token: &str| {
        assert_eq!(jar.login(&url("web", "/echo"), token).status, 200);
        format!("Cookie: __Host-oneport-visit={}", jar.cookie(&host("web"), "visit"))
    };
    let (short, long) = (cookie(&first, &tokens[0]), cookie(&second, &tokens[1]));
    let events = |header: &str| {
        ["--http1.1", "--http2"].map(|version| Events::with(gateway, header, version, &url("web", "/sse")))
    };
    let (mut ending, mut living) = (events(&short), events(&long));
    let mut shell = switched_with(gateway, &short);
    still_talks(&mut shell);

    write(&["rsa2048"]);
    ending.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    wait_records(gateway, "/sse", "issuer-key-removed", 2);
    wait_records(gateway, "/tcp", "issuer-key-removed", 1);
    // On both hosts they have to log in again, and the others have not.
    let again = first.go(&url("web", "/echo"));
    assert!(again.status == 200 && again.text().contains("<form method=post"), "{again:?}");
    // Though it opens nothing now, it can be ended.
    let page = first.step(&format!("{AUTH}/logout"));
    assert!(page.text().contains("<form method=post action=/logout>"), "{page:?}");
    reached(&second.go(&url("api", "/echo")));
    go_on(&mut living, &house.backend);
    // The key is back: so are they.
    write(&["ecdsa256", "rsa2048"]);
    let echo = |jar: &Jar<'_>| jar.go(&url("web", "/echo"));
    poll("the login to count", SOON, || (!echo(&first).text().contains("<form")).then_some(()));
}

#[test]
fn a_code_is_good_once_for_one_host_and_one_browser() {
    let house = House::new();
    let jar = house.jar("jar");
    let token = house.token("ed25519a");
    let code = |path: &str| {
        let page = jar.go(&url("web", path));
        let answer = match page.status {
            200 if page.text().contains("<form") => jar.form(&page, &token).get(&format!("{AUTH}/login")),
            _ => panic!("{page:?}"),
        };
        assert_eq!(answer.status, 303, "{answer:?}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        answer.header("location").expect("a way").to_owned()
    };
    let failed = |response: Response, why: &str| {
        assert!(response.status == 400 && response.text().contains("login-failed"), "{response:?}");
        assert!(response.text().contains(why) && response.header("set-cookie").is_none(), "{response:?}");
    };
    let way = code("/echo");
    let prefix = url("web", "/.oneport/login?code=");
    assert!(way.starts_with(&prefix) && way.ends_with("&returnPath=%2Fecho"), "{way}");
    // HEAD, as programs send that try links, uses nothing up.
    assert_eq!(jar.curl().args(&["-I"]).get(&way).status, 405);
    // A browser that did not begin it: somebody who was lured into another's login.
    failed(house.jar("lured").step(&way), "not begun in this browser");
    failed(jar.step(&way), "completed already");
    // From the login host again, which knows the browser by now.
    let again = |name: &str| {
        let login = jar.step(&url(name, "/echo"));
        let answer = jar.step(login.header("location").expect("the login"));
        assert_eq!(answer.status, 307, "{answer:?}");
        answer.header("location").expect("a way").to_owned()
    };
    let way = again("web");
    let browser = format!("Cookie: __Host-oneport-browser={}", jar.cookie(&host("web"), "browser"));
    let elsewhere = Curl::new(&house.gateway).header(&browser).get(&way.replace(&host("web"), &host("api")));
    failed(elsewhere, "for another host");
    failed(jar.step(&way), "completed already");
    let way = again("web");
    let done = jar.step(&way);
    assert_eq!((done.status, done.header("location")), (303, Some(url("web", "/echo").as_str())));
    // Who reloads is logged in already; others are not.
    assert_eq!(jar.step(&way).status, 303);
    failed(Curl::new(&house.gateway).header(&browser).get(&way), "completed already");
    failed(house.jar("made up").step(&format!("{prefix}AAAA&returnPath=/")), "completed already");
}

#[test]
fn the_way_back_is_always_a_path_on_the_preview() {
    let house = House::new();
    let jar = house.jar("jar");
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    for evil in [
        "%2F%2Fevil.test",
        "https:%2F%2Fevil.test",
        "%2F%5Cevil.test",
        "%5C%5Cevil.test",
        "%2F%09%2Fevil.test",
        "%2F%0D%0ASet-Cookie:%20a%3Db",
        "@evil.test",
        ".evil.test",
        ":80",
    ] {
        let plain = jar.step(&format!("{AUTH}/login?env=web-dzk582uo&returnPath={evil}"));
        assert_eq!(plain.header("location"), Some(url("web", "").as_str()), "{evil}");
        let coded = jar.step(&format!("{AUTH}/login?env=web-dzk582uo&returnPath={evil}&browser={MARK}"));
        let way = coded.header("location").expect("a way");
        assert!(way.starts_with(&url("web", "/.oneport/login?")) && way.ends_with("&returnPath="), "{way}");
        // At the preview itself, where a made-up link may lead as well.
        let there = jar.step(&url("web", &format!("/.oneport/login?code=x&returnPath={evil}")));
        assert_eq!(there.header("location"), Some(url("web", "/").as_str()), "{evil}");
        assert_eq!(there.header("set-cookie"), None);
    }
    // What no preview has made is as good as no mark: nothing keeps it.
    for mark in ["x", &"A".repeat(5_000), "AAAAAAAAAAAAAAAAAAAA%22A"] {
        let marked = jar.step(&format!("{AUTH}/login?env=web-dzk582uo&returnPath=%2Fecho&browser={mark}"));
        assert_eq!(marked.header("location"), Some(url("web", "/echo").as_str()), "{mark}");
    }
    let nobody = jar.step(&format!("{AUTH}/login?env=evil.test%2F&returnPath=%2F&browser={MARK}"));
    assert!(nobody.status == 200 && nobody.header("location").is_none(), "{nobody:?}");
}

#[test]
fn the_form_takes_good_tokens_from_its_own_page_only() {
    let house = House::new();
    let jar = house.jar("jar");
    let page = jar.go(&url("web", "/echo?q=%22%3E%3Cscript%3E"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'") && !page.text().contains("<script"), "{page:?}");
    assert_eq!(page.header("referrer-policy"), Some("same-origin"));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    let token = house.token("ed25519a");
    // A form on another site, a preview's among them, would log people in as somebody else.
    let post =
        |origin: &str| jar.curl().header(origin).args(&["--data-urlencode", &format!("token={token}")]);
    for origin in ["Origin: https://evil.test", "Origin: https://open-x.gw.test", "Origin: null", "X: y"] {
        let forged = post(origin).get(&format!("{AUTH}/login"));
        assert!(forged.status == 403 && forged.header("set-cookie").is_none(), "{forged:?}");
    }
    let (content, _) = token.rsplit_once('.').expect("a JWT");
    let mixed = format!("{content}.{}", house.token(OTHER).rsplit('.').next().expect("a signature"));
    for (bad, why) in [("nonsense", "not a signed JWT"), (mixed.as_str(), "signature is not that")] {
        let again = jar.send(&page, bad);
        assert!(
            again.status == 401
                && again.text().replace("&#39;", "'").contains(why)
                && again.text().contains("<form"),
            "{again:?}"
        );
        assert_eq!(again.header("set-cookie"), None);
    }
    let absent = jar.send(&page, &house.token("ecdsa256"));
    assert!(absent.status == 401 && absent.text().contains("not connected now"), "{absent:?}");
    house.gateway.wait_reason("bad-token");
    let large = jar.form(&page, &"a".repeat(100_000)).get(&format!("{AUTH}/login"));
    assert_eq!(large.status, 400, "{large:?}");
    // Another's token is good, but not for this preview.
    let other = jar.send(&page, &house.token(OTHER));
    assert!(other.status == 403 && other.text().contains("may not see this preview"), "{other:?}");
    let good = jar.send(&page, &token);
    assert_eq!(good.json()["target"], "/echo?q=%22%3E%3Cscript%3E");
    // A program is told in words, and one with `Authorization` is never led anywhere.
    let program = Curl::new(&house.gateway).get(&format!("{AUTH}/login"));
    assert!(program.status == 401 && program.text().contains("Authorization: Bearer"), "{program:?}");
    let with = jar.curl().header(&format!("Authorization: Bearer {token}"));
    let with = with.get(&format!("{AUTH}/login?env=web-dzk582uo&returnPath=%2F"));
    assert_eq!((with.status, with.header("location")), (401, None));
    assert!(!house.gateway.stderr().contains(&token), "a token is in the log");
}

#[test]
fn secrets_are_made_kept_and_replaced_one_after_the_other() {
    let house = House::new();
    let jar = house.jar("jar");
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    let file = house.gateway.path("state").join("cookie_secrets");
    let first = std::fs::read_to_string(&file).expect("made");
    let changed = |text: &str, what: &str| {
        let before = house.gateway.stderr().matches(what).count();
        std::fs::write(&file, text).expect("writable");
        poll(what, SOON, || (house.gateway.stderr().matches(what).count() > before).then_some(()));
    };
    // What is no list of secrets changes nothing, and says so.
    changed("short\n", "keeping the cookie secrets as they were");
    assert_eq!(jar.step(&url("web", "/echo")).status, 200);
    changed(&format!("a new one that is long enough\n{first}"), "cookie secrets were reread");
    assert_eq!(jar.step(&url("web", "/echo")).status, 200, "the old secret still opens");
    // Sealed with the new one from now on.
    assert_eq!(jar.go(&url("api", "/echo")).status, 200);
    changed("a new one that is long enough\n", "cookie secrets were reread");
    assert_eq!(jar.step(&url("web", "/echo")).status, 307, "sealed with the old one");
    assert_eq!(jar.step(&url("api", "/echo")).status, 200);
    assert!(!house.gateway.stderr().contains(first.trim()), "a secret is in the log");
}

#[test]
fn a_session_ends_after_its_time() {
    let mut setup = Setup::new();
    setup.set("access.session_ttl", "2s");
    let house = House::of(setup);
    let jar = house.jar("jar");
    assert_eq!(jar.login(&url("web", "/echo"), &house.token("ed25519a")).status, 200);
    let cookie = format!("Cookie: __Host-oneport-visit={}", jar.cookie(&host("web"), "visit"));
    let ask = || Curl::new(&house.gateway).header(&cookie).get(&url("web", "/echo")).status;
    poll("end of the session", SOON, || (ask() == 307).then_some(()));
}

#[test]
fn a_browser_that_used_basic_gets_the_cookie_without_being_sent_anywhere() {
    let house = House::new();
    let jar = house.jar("jar");
    let user = format!("x-preevy-profile-key:{}", house.token("ed25519a"));
    let hinted = url("web", "/echo?_preevy_auth_hint=basic");
    let program = jar.curl().args(&["-u", &user]).get(&hinted);
    assert_eq!((program.status, program.header("set-cookie")), (200, None));
    let page = jar.curl().args(&["-u", &user]).header("Sec-Fetch-Mode: navigate").get(&hinted);
    assert_eq!(reached(&page), <[String; 0]>::default());
    assert!(page.header("set-cookie").expect("a cookie").starts_with("__Host-oneport-visit="), "{page:?}");
    assert_eq!(jar.step(&url("web", "/echo")).status, 200);
    let wrong = house
        .jar("new")
        .curl()
        .args(&["-u", "x-preevy-profile-key:x"])
        .header("Sec-Fetch-Mode: navigate")
        .get(&hinted);
    assert_eq!((wrong.status, wrong.header("set-cookie"), wrong.header("location")), (401, None, None));
}

/// A real browser, with its own ideas of cookies, origins and policies.
#[test]
fn a_browser_logs_in_once_and_opens_two_previews_one_with_a_websocket() {
    let house = House::new();
    let sockets = node("ws_backend.js", &Value::Null);
    let port: u16 = sockets.out.wait("the port", SOON, |said| said.trim().parse().ok());
    let request = "/ws#access=private";
    let more = OpenSsh::new(&house.gateway).forward(request, ([127, 0, 0, 1], port).into()).start();
    house.backend.release();
    let mut person = node(
        "browser.js",
        &json!({
            "port": house.gateway.address().port(),
            "auth": AUTH,
            "token": house.token("ed25519a"),
            "first": url("web", "/echo"),
            "socket": more.hello["tunnels"][request],
            "events": url("web", "/sse"),
            "stranger": house.other("/open", "/echo"),
        }),
    );
    let said = person.finish(SOON);
    assert!(said.status.success(), "{said:?}\n{}", house.gateway.stderr());
    let said: Value = serde_json::from_str(&said.stdout).expect("an object");
    assert_eq!((&said["asked_first"], &said["asked_second"]), (&true.into(), &false.into()), "{said}");
    assert!(said["asked_at"].as_str().expect("a URL").starts_with(&format!("{AUTH}/login?env=")), "{said}");
    for seen in ["first", "stranger"] {
        let headers = said[seen]["headers"].as_array().expect("a list");
        assert!(!headers.iter().any(|pair| pair[0] == "cookie" || pair[0] == "authorization"), "{headers:?}");
    }
    assert_eq!((&said["readable"], &said["socket"][1]), (&"".into(), &"hello".into()));
    assert_eq!((&said["events"], &said["still"]), (&"one".into(), &true.into()), "{said}");
    let cookies = said["cookies"].as_array().expect("a list");
    assert!(cookies.len() >= 5, "{cookies:?}");
    for cookie in cookies {
        assert!(cookie["name"].as_str().expect("a name").starts_with("__Host-oneport-"), "{cookie}");
        let rest = (&cookie["httpOnly"], &cookie["secure"], &cookie["sameSite"], &cookie["path"]);
        assert_eq!(rest, (&true.into(), &true.into(), &"Lax".into(), &"/".into()), "{cookie}");
    }
    assert_eq!(said["asked_after_logout"], true, "{said}");
}

#[test]
fn cookies_of_a_preview_stay_on_its_host() {
    let set = |response: &Response| -> Vec<String> {
        let fields = response.headers.iter().filter(|(name, _)| name == "set-cookie");
        fields.map(|(_, value)| value.clone()).collect()
    };
    let house = House::new();
    let narrow = Curl::new(&house.gateway).get(&house.other("/open", "/cookies"));
    assert_eq!(set(&narrow), ["wide=1; Path=/", "own=2; Path=/; HttpOnly"]);
    let label = house.other("/open", "");
    let label = label.trim_start_matches("https://").split('.').next().expect("a label");
    let proxied = Curl::new(&house.gateway).get(&format!("https://gw.test/proxy/{label}/cookies"));
    let (name, path) = (format!("oneport-proxy.{label}."), format!("Path=/proxy/{label}"));
    assert_eq!(set(&proxied), [format!("{name}wide=1; {path}"), format!("{name}own=2; HttpOnly; {path}")]);
    let record = house.gateway.wait_log("narrowed", |record| {
        record["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("narrowed the service's cookie `wide`"))
    });
    assert_eq!(record["reason"], "answered");
    let mut setup = Setup::new();
    setup.set("access.isolate_cookies", false);
    let house = House::of(setup);
    let wide = Curl::new(&house.gateway).get(&house.other("/open", "/cookies"));
    assert_eq!(set(&wide), ["wide=1; Domain=gw.test; Path=/", "own=2; Path=/; HttpOnly"]);
}

/// Existing agents' hosted service leaves a token in a cookie of the whole base host.
#[test]
fn a_token_cookie_of_the_hosted_service_becomes_a_session_of_the_host() {
    let house = House::hosted(Setup::new());
    let jar = house.jar("jar");
    let sent = jar.step(&url("web", "/echo"));
    let login = sent.header("location").expect("the login").to_owned();
    let on = jar.step(&login);
    assert!(on.header("location").expect("a way").starts_with("https://app.test/api/auth/login?"), "{on:?}");
    // Nobody takes tokens here then.
    let posted =
        jar.curl().header(&format!("Origin: {AUTH}")).args(&["-d", "token=x"]).get(&format!("{AUTH}/login"));
    assert_eq!(posted.status, 405, "{posted:?}");
    let cookie = format!("Cookie: preevy-saas-jwt={}", house.token("ed25519a"));
    let back = jar.curl().header(&cookie).get(&login);
    let way = back.header("location").expect("a way").to_owned();
    assert!(way.starts_with(&url("web", "/.oneport/login?code=")), "{way}");
    assert_eq!(jar.go(&way).json()["target"], "/echo");
    assert_eq!(jar.step(&url("web", "/echo")).status, 200, "without the token");
}

/// The page says that all previews are shut then, and the next login may be somebody else's.
#[test]
fn a_logout_takes_the_token_of_the_hosted_service_along() {
    let house = House::hosted(Setup::new());
    let jar = house.jar("jar");
    // As that service sets it.
    let end = crate::private::now() + 600;
    let line = format!(".gw.test\tTRUE\t/\tTRUE\t{end}\tpreevy-saas-jwt\t{}\n", house.token("ed25519a"));
    let login = format!("{AUTH}/login?env=web-dzk582uo&returnPath=%2Fecho");
    // By the token alone, and with a login beside it.
    for has_login in [false, true] {
        std::fs::write(&jar.file, &line).expect("writable");
        assert_eq!(if has_login { jar.go(&login) } else { jar.step(&url("web", "/echo")) }.status, 200);
        let page = jar.step(&format!("{AUTH}/logout"));
        assert!(page.text().contains("<form method=post action=/logout>"), "{}", page.text());
        let out = logout(&jar);
        let told = "<a href=\"https://app.test\">https://app.test</a> keeps a login of its own";
        assert!(out.status == 200 && out.text().contains(told), "{}", out.text());
        assert_eq!(jar.step(&url("web", "/echo")).status, 307);
        let on = jar.step(&login);
        assert!(on.header("location").expect("a way").starts_with("https://app.test/"), "{on:?}");
    }
    let page = jar.step(&format!("{AUTH}/logout"));
    assert!(page.text().contains("You are not logged in"), "{}", page.text());
}

/// Any page below the base host can set that cookie, for all hosts below it.
#[test]
fn a_token_cookie_of_somebody_else_is_in_nobodys_way() {
    let mut setup = Setup::new();
    with_issuer(&mut setup);
    let house = House::of(setup);
    let foreign = format!("Cookie: preevy-saas-jwt={}", token_for(OTHER));
    let tossed = house.jar("tossed");
    let asked = tossed.curl().header(&foreign).get(&url("web", "/echo"));
    assert_eq!(asked.status, 307, "{asked:?}");
    let login = asked.header("location").expect("the login").to_owned();
    let page = tossed.curl().header(&foreign).get(&login);
    assert!(page.status == 200 && page.text().contains("<form method=post"), "{page:?}");
    // A login that holds is not replaced by one that the cookie brings.
    let jar = house.jar("jar");
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    let label = house.other("/shut#access=private", "").replace("https://", "");
    let label = label.split('.').next().expect("a label");
    let lured = jar.curl().header(&foreign);
    let lured = lured.get(&format!("{AUTH}/login?env={label}&returnPath=%2F&browser={MARK}"));
    assert_eq!((lured.status, lured.header("set-cookie")), (307, None), "{lured:?}");
    assert_eq!(jar.go(&url("api", "/echo")).status, 200);
    assert_eq!(logout(&jar).status, 200);
    assert_eq!(jar.step(&url("web", "/echo")).status, 307);
}

/// What comes of the cookie beside a login ends with that login.
#[test]
fn a_token_cookie_opens_more_beside_a_login() {
    let mut setup = Setup::new();
    with_issuer(&mut setup);
    let house = House::of(setup);
    let jar = house.jar("jar");
    jar.login(&url("web", "/echo"), &house.token("ed25519a"));
    let shut = house.other("/shut#access=private", "/echo");
    let login = jar.step(&shut).header("location").expect("the login").to_owned();
    let back = jar.curl().header(&format!("Cookie: preevy-saas-jwt={}", token_for(OTHER))).get(&login);
    assert_eq!((back.status, back.header("set-cookie")), (307, None), "{back:?}");
    assert_eq!(jar.go(back.header("location").expect("a way")).status, 200);
    assert_eq!((jar.step(&shut).status, jar.step(&url("web", "/echo")).status), (200, 200));
    logout(&jar);
    assert_eq!((jar.step(&shut).status, jar.step(&url("web", "/echo")).status), (307, 307));
}

/// At the hosted service, who comes back with a token for other previews is told so, and can go there
/// again: by hand, or browsers would be sent to and fro.
#[test]
fn who_comes_back_from_the_hosted_service_without_the_profile_is_told_so() {
    let mut setup = Setup::new();
    with_issuer(&mut setup);
    let house = House::hosted(setup);
    let jar = house.jar("jar");
    let login = jar.step(&url("web", "/echo")).header("location").expect("the login").to_owned();
    let back = jar.curl().header(&format!("Cookie: preevy-saas-jwt={}", token_for(OTHER))).get(&login);
    assert_eq!((back.status, back.header("location")), (403, None), "{back:?}");
    assert!(back.text().contains("href=\"https://app.test/api/auth/login?redirectTo="), "{}", back.text());
    assert_eq!(jar.step(&login).status, 307);
}

/// At a provider or the hosted service, nobody needs to log in for it either.
#[test]
fn whoever_comes_to_log_in_for_a_public_preview_is_told_that_it_is_public() {
    let told = |house: &House| {
        let (jar, open) = (house.jar("jar"), house.other("/open", "/echo?a=b"));
        let label = open.trim_start_matches("https://").split('.').next().expect("a label").to_owned();
        let login = format!("{AUTH}/login?env={label}&returnPath=%2Fecho%3Fa%3Db");
        let page = jar.step(&login);
        assert!(page.status == 200 && page.text().contains("is public"), "{page:?} {}", page.text());
        assert!(page.text().contains(&format!("<a href=\"{open}\">")), "{}", page.text());
        assert!(!page.text().contains("private") && !page.text().contains("<form"), "{}", page.text());
        assert_eq!((page.header("set-cookie"), page.header("location")), (None, None));
        let program = Curl::new(&house.gateway).header("Accept: application/json").get(&login);
        assert_eq!(program.json()["url"], *open);
        login
    };
    told(&House::hosted(Setup::new()));
    let house = House::new();
    let login = told(&house);
    // Who is logged in is sent on, also as somebody who may see none of that agent's private previews.
    let jar = house.jar("in");
    assert_eq!(jar.login(&url("web", "/echo"), &house.token("ed25519a")).status, 200);
    assert_eq!(jar.go(&login).json()["target"], "/echo?a=b");
}

/// A path may be longer than what a browser can ask the login host for.
#[test]
fn who_comes_for_a_very_long_path_can_log_in() {
    let house = House::new();
    let jar = house.jar("jar");
    let path = format!("/echo?{}", "/".repeat(25_000));
    let sent = jar.step(&url("web", &path));
    let location = sent.header("location").expect("the login");
    assert!(location.len() < 1500, "{} octets", location.len());
    assert_eq!(jar.login(&url("web", &path), &house.token("ed25519a")).json()["target"], "/");
    let fits = format!("/echo?{}", "/".repeat(1000));
    assert_eq!(house.jar("other").login(&url("web", &fits), &house.token("ed25519a")).json()["target"], fits);
}

/// A browser takes no cookie of ours over plain HTTP.
#[test]
fn who_comes_over_plain_http_logs_in_over_https() {
    let mut setup = Setup::new();
    setup.set("plain.http", vec!["127.0.0.1:0"]);
    let house = House::of(setup);
    let jar = house.jar("jar");
    let plain = format!("::127.0.0.1:{}", house.gateway.address_of("plain-http").port());
    let plain = plain.replacen(':', &format!("{}:80", host("web")), 1);
    let curl = || jar.curl().args(&["--connect-to", &plain]);
    let first = curl().get(&url("web", "/echo?a=b").replace("https", "http"));
    assert_eq!((first.status, first.header("set-cookie")), (307, None), "{first:?}");
    let login = first.header("location").expect("the login").to_owned();
    assert!(!login.contains("browser="), "{login}");
    let there = jar.send(&jar.go(&login), &house.token("ed25519a"));
    assert_eq!((there.status, there.json()["target"].as_str()), (200, Some("/echo?a=b")), "{there:?}");
    // Where somebody ends TLS before the gateway, the browser knows better: only over HTTPS does it send this.
    let secure = curl().header("Sec-Fetch-Mode: navigate").get(&url("web", "/echo").replace("https", "http"));
    assert!(secure.header("location").expect("the login").contains("&browser="), "{secure:?}");
}

#[test]
fn a_visit_by_path_logs_in_at_the_previews_own_host() {
    let house = House::new();
    let jar = house.jar("jar");
    let by_path = format!("https://gw.test/proxy/{}/echo", host("web").split('.').next().expect("a label"));
    let there = jar.login(&by_path, &house.token("ed25519a"));
    assert_eq!((there.status, there.json()["target"].as_str()), (200, Some("/echo")), "{there:?}");
    assert!(jar.cookies("gw.test").is_empty(), "{:?}", jar.cookies("gw.test"));
    // All tunnels are one host there, so no login of one counts.
    assert_eq!(jar.step(&by_path).status, 307);
}
