//! Logins at an OpenID Connect provider: a real one, `oidc-provider`, which insists on PKCE.

use std::path::PathBuf;

use serde_json::json;

use crate::login::keep;
use crate::permits::{Events, wait_records};
use crate::reload::{rewrite, section};
use crate::support::agent::{Agent, OpenSsh, host, node, vector_key};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup, oneport};
use crate::support::library_agent::LibraryAgent;
use crate::support::process::Process;
use crate::support::visitor::{Curl, Response};
use crate::support::{SOON, poll};

/// A gateway whose people log in at a provider.
struct House {
    gateway: Gateway,
    provider: Process,
    port: u16,
    agents: [Agent; 2],
    _backend: Backend,
}

/// A browser's cookies, and its way.
struct Jar<'a> {
    house: &'a House,
    file: PathBuf,
}

fn table(fields: &[(&str, &str)]) -> toml::Value {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
    toml::Value::Table(fields.collect())
}

fn rule(fields: &[(&str, &str)], profiles: &[&str]) -> toml::Value {
    let mut rule = table(fields);
    let profiles: Vec<toml::Value> = profiles.iter().map(|&profile| profile.into()).collect();
    rule.as_table_mut().expect("a table").insert("profiles".to_owned(), profiles.into());
    rule
}

impl House {
    fn new(in_token: bool) -> Self {
        Self::of(in_token, |_| {})
    }

    fn of(in_token: bool, change: impl FnOnce(&mut Setup)) -> Self {
        Self::whose_clock_is_slow(0, in_token, change)
    }

    /// Whose provider's clock is so many seconds behind.
    fn whose_clock_is_slow(slow: i64, in_token: bool, change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new();
        let now = crate::private::now();
        let leaf = setup.ca.leaf("provider", &["localhost"]);
        let provider = node(
            "oidc.js",
            &json!({
                "cert": leaf.cert, "key": leaf.key, "in_token": in_token, "slow": slow,
                "client_id": "oneport", "client_secret": "very secret",
                "redirect": "https://auth.gw.test/login/callback",
                "accounts": {
                    "ann": { "email": "Ann@example.com", "email_verified": true },
                    "bob": { "email": "bob@example.com", "email_verified": false },
                    "cat": { "email": "cat@other.test", "email_verified": true, "groups": ["dev"] },
                    "dan": { "email": "dan@other.test", "email_verified": true },
                    "eve": {
                        "id_token": { "email": "boss@example.com" },
                        "userinfo": { "email": "eve@other.test", "email_verified": true },
                    },
                    "fay": {
                        "id_token": { "email_verified": true },
                        "userinfo": { "email": "boss@example.com" },
                    },
                    "hal": {
                        "email": "hal@example.com", "email_verified": true,
                        "id_token": { "azp": "another-client" },
                    },
                    "ida": {
                        "email": "ida@example.com", "email_verified": true,
                        "id_token": { "nbf": now + 300 },
                    },
                    "jon": {
                        "email": "jon@example.com", "email_verified": true,
                        "id_token": { "azp": "oneport", "nbf": now + 10 },
                    },
                    "kim": {
                        "email": "kim@example.com", "email_verified": true,
                        "userinfo": { "groups": ["dev"] },
                    },
                    "gus": { "userinfo": { "email": "gus@example.com", "email_verified": true } },
                },
            }),
        );
        let port = provider.out.wait("the provider's port", SOON, |said| said.trim().parse().ok());
        let own = vector_key("ed25519a")["thumbprint_uri"].as_str().expect("a URI").to_owned();
        setup.set("access.oidc.issuer", format!("https://localhost:{port}"));
        setup.set("access.oidc.client_id", "oneport");
        setup.set("access.oidc.client_secret", "very secret");
        setup.set("access.oidc.root", setup.ca.cert().display().to_string());
        setup.set(
            "access.oidc.allow",
            vec![
                rule(&[("domain", "example.com")], &[&own]),
                rule(&[("claim", "groups"), ("value", "dev")], &["*"]),
            ],
        );
        change(&mut setup);
        let (gateway, backend) = (setup.start(), Backend::start());
        let offer = |key: &str, request: &str| {
            OpenSsh::new(&gateway).key(key).forward(request, backend.address()).start()
        };
        let agents = [offer("ed25519a", "/web#access=private"), offer("ed25519b", "/shut#access=private")];
        Self { gateway, provider, port, agents, _backend: backend }
    }

    fn jar(&self, name: &str) -> Jar<'_> {
        Jar { house: self, file: self.gateway.path(name) }
    }

    fn shut(&self) -> String {
        let url = self.agents[1].hello["tunnels"]["/shut#access=private"].as_str().expect("a URL");
        format!("{url}small")
    }
}

impl Jar<'_> {
    fn curl(&self) -> Curl<'_> {
        let file = self.file.to_str().expect("UTF-8");
        let port = self.house.port;
        let there = format!("localhost:{port}:127.0.0.1:{port}");
        let curl = Curl::new(&self.house.gateway).args(&["--connect-to", &there, "-b", file, "-c", file]);
        curl.header("Accept: text/html")
    }

    fn go(&self, url: &str) -> Response {
        self.curl().args(&["-L", "--max-redirs", "20"]).get(url)
    }

    /// Fills in the provider's pages, beginning with this one, as somebody; stops at the redirect back.
    fn log_in_there(&self, mut page: Response, name: &str) -> String {
        for _ in 0..10 {
            if let Some(location) = page.header("location") {
                let location = if location.starts_with('/') {
                    format!("https://localhost:{}{location}", self.house.port)
                } else {
                    location.to_owned()
                };
                if location.starts_with("https://auth.gw.test/") {
                    return location;
                }
                page = self.curl().get(&location);
                continue;
            }
            let text = page.text();
            let between = |from: &str| text.split_once(from).and_then(|(_, rest)| rest.split_once('"'));
            let action = between("action=\"").unwrap_or_else(|| panic!("no form: {page:?} {text}")).0;
            let prompt = between("name=\"prompt\" value=\"").expect("what it asks for").0;
            let form = format!("prompt={prompt}&login={name}&password=x");
            page = self.curl().args(&["-d", &form]).get(action);
        }
        panic!("no end of the provider's pages");
    }

    fn log_in(&self, url: &str, name: &str) -> Response {
        let back = self.log_in_there(self.go(url), name);
        self.go(&back)
    }
}

fn url(path: &str) -> String {
    format!("https://{}{path}", host("web"))
}

#[test]
fn people_log_in_at_a_provider_and_see_what_the_rules_say() {
    let house = House::new(true);
    let ann = house.jar("ann");
    let there = ann.log_in(&url("/echo?a=b"), "ann");
    assert_eq!((there.status, there.json()["target"].as_str()), (200, Some("/echo?a=b")), "{there:?}");
    assert!(!there.text().contains("cookie"), "{}", there.text());
    // Known by now, and asked by nobody again; but her rule is for one profile.
    assert_eq!(ann.curl().get(&url("/small")).status, 200);
    let shut = ann.go(&house.shut());
    assert!(shut.status == 403 && shut.text().contains("Ann@example.com, who may not see"), "{shut:?}");
    let profile = vector_key("ed25519b")["thumbprint_uri"].as_str().expect("a URI").to_owned();
    house.gateway.wait_log("who lacks what", |record| {
        record["profile"] == *profile && record["name"] == "Ann@example.com"
    });
    assert!(!shut.text().contains("name=token"), "{}", shut.text());
    let cat = house.jar("cat");
    assert_eq!(cat.log_in(&house.shut(), "cat").status, 200);
    assert_eq!(cat.go(&url("/small")).status, 200);
    // Who is not verified, and who nobody wrote a rule for, is told so.
    let bob = house.jar("bob").log_in(&url("/small"), "bob");
    assert!(bob.status == 403 && bob.text().contains("has not verified your address"), "{}", bob.text());
    let dan = house.jar("dan").log_in(&url("/small"), "dan");
    assert!(dan.status == 403 && dan.text().contains("access.oidc.allow"), "{}", dan.text());
    for refused in [bob, dan] {
        assert_eq!(refused.header("set-cookie"), None);
    }
    let log = house.gateway.stderr();
    assert!(!log.contains("very secret") && !log.contains("code=") && !log.contains("state="), "{log}");
}

#[test]
fn what_a_provider_says_only_when_asked_counts_too() {
    let house = House::new(false);
    assert_eq!(house.jar("ann").log_in(&url("/small"), "ann").status, 200);
    let bob = house.jar("bob").log_in(&url("/small"), "bob");
    assert!(bob.text().contains("has not verified your address"), "{}", bob.text());
    drop(house);
    // Also where one of the rules matches already: another may give more.
    let house = House::new(true);
    let kim = house.jar("kim");
    assert_eq!(kim.log_in(&url("/small"), "kim").status, 200);
    assert_eq!(kim.go(&house.shut()).status, 200);
}

/// What one of the two says of an address never vouches for the address that the other names.
#[test]
fn an_address_and_whether_it_is_verified_are_of_one_source() {
    let house = House::new(true);
    for name in ["eve", "fay"] {
        let refused = house.jar(name).log_in(&url("/small"), name);
        let is_told = refused.text().contains("has not verified your address `boss@example.com`");
        assert!(refused.status == 403 && is_told, "{name}: {}", refused.text());
    }
    assert_eq!(house.jar("gus").log_in(&url("/small"), "gus").status, 200);
}

#[test]
fn an_answer_of_the_provider_is_good_only_where_the_login_began() {
    let house = House::of(true, |setup| {
        setup.with_figures();
    });
    let jar = house.jar("jar");
    let back = jar.log_in_there(jar.go(&url("/small")), "ann");
    let failed = |response: Response, why: &str| {
        let text = response.text();
        assert!(response.status >= 400 && text.contains(why), "{why}: {} {text}", response.status);
        assert_eq!(response.header("set-cookie"), None);
    };
    // In another browser, with another state, without one.
    failed(house.jar("lured").curl().get(&back), "belongs to no login");
    let part = |name: &str| {
        let (_, rest) = back.split_once(&format!("{name}=")).expect("there");
        rest.split('&').next().expect("a value").to_owned()
    };
    failed(jar.curl().get(&back.replace(&part("state"), "AAAA")), "belongs to no login");
    failed(jar.curl().get("https://auth.gw.test/login/callback?code=x"), "belongs to no login");
    failed(jar.curl().get(&back.replace(&part("iss"), "https%3A%2F%2Fevil.test")), "another&#39;s answer");
    let refused = format!("https://auth.gw.test/login/callback?error=access_denied&state={}", part("state"));
    failed(jar.curl().get(&refused), "<code>login-failed</code>");
    // The code of one login with the state of another: the provider asks for the verifier.
    let second = jar.curl().get(&format!("https://auth.gw.test/login?env={}&returnPath=%2F", "web-dzk582uo"));
    let second = second.header("location").expect("the provider").to_owned();
    assert!(second.contains("code_challenge_method=S256") && second.contains("nonce="), "{second}");
    let (_, state) = second.split_once("state=").expect("a state");
    let state = state.split('&').next().expect("a value");
    failed(jar.curl().get(&back.replace(&part("state"), state)), "did not accept the code");
    // Of all these, that alone could be a guess.
    assert_eq!(house.gateway.figure("oneport_logins_failed_total{by=\"http\"}"), 1);
    // That used the code up; the provider knows the browser, and gives another.
    assert_eq!(jar.go(&url("/small")).status, 200);
}

/// As when a browser opens its tabs again: none has what another is answered.
#[test]
fn tabs_that_log_in_at_the_same_moment_spoil_nothing_and_end_together() {
    let house = House::new(true);
    let jar = house.jar("jar");
    let tab = || {
        let curl = Curl::new(&house.gateway).header("Accept: text/html");
        curl.args(&["-b", jar.file.to_str().expect("UTF-8")])
    };
    let location = |answer: &Response| answer.header("location").expect("a way").to_owned();
    let cat = [url("/echo"), house.shut()];
    let hosts = cat.clone().map(|url| url.split('/').nth(2).expect("a host").to_owned());
    let sent = cat.each_ref().map(|url| tab().get(url));
    sent.iter().zip(&hosts).for_each(|(answer, host)| keep(&jar.file, host, answer));
    let asked = sent.map(|answer| tab().get(&location(&answer)));
    asked.iter().for_each(|answer| keep(&jar.file, "auth.gw.test", answer));
    let back = asked.map(|answer| jar.log_in_there(jar.curl().get(&location(&answer)), "cat"));
    let begun = back.map(|back| tab().get(&back));
    begun.iter().for_each(|answer| keep(&jar.file, "auth.gw.test", answer));
    for answer in &begun {
        assert_eq!(answer.status, 303, "{}", answer.text());
        assert_eq!(jar.go(&location(answer)).status, 200);
    }
    let out = jar.curl().args(&["-X", "POST"]).header("Origin: https://auth.gw.test");
    assert_eq!(out.get("https://auth.gw.test/logout").status, 200);
    assert_eq!(cat.map(|url| jar.curl().get(&url).status), [307, 307]);
}

#[test]
fn rules_that_are_changed_count_for_who_is_logged_in() {
    let house = House::new(true);
    let (ann, cat) = (house.jar("ann"), house.jar("cat"));
    assert_eq!(ann.log_in(&url("/small"), "ann").status, 200);
    let mut events =
        ["--http1.1", "--http2"].map(|version| Events::of(ann.curl().args(&[version]), &url("/sse")));
    // What is the same for another reason stays: a comment, another setting.
    rewrite(&house.gateway, |table| drop(table.insert("drain_timeout".to_owned(), "9s".into())));
    house.gateway.wait_log("the reread", |record| {
        record["message"].as_str().is_some_and(|message| message.starts_with("`drain_timeout` changed"))
    });
    assert!(events.iter_mut().all(|events| !events.has_ended()));
    rewrite(&house.gateway, |table| {
        let oidc = section(section(table, "access"), "oidc");
        oidc.insert("allow".to_owned(), vec![rule(&[("claim", "groups"), ("value", "dev")], &["*"])].into());
    });
    events.iter_mut().for_each(Events::is_cut);
    wait_records(&house.gateway, "/sse", "login-ended", 2);
    let refused = ann.go(&url("/small"));
    assert!(refused.status == 403 && refused.text().contains("access.oidc.allow"), "{}", refused.text());
    assert_eq!(cat.log_in(&url("/small"), "cat").status, 200);
    // Without a provider, people show tokens.
    rewrite(&house.gateway, |table| drop(section(table, "access").remove("oidc")));
    poll("the form", SOON, || cat.go(&url("/small")).text().contains("<form method=post").then_some(()));
}

#[test]
fn an_id_token_is_for_this_client_and_for_now() {
    let house = House::new(true);
    for (name, why) in [("hal", "for another client"), ("ida", "begins to be valid in")] {
        let refused = house.jar(name).log_in(&url("/small"), name);
        let text = refused.text();
        assert!(refused.status == 400 && text.contains(why), "{name}: {} {text}", refused.status);
        assert_eq!(refused.header("set-cookie"), None);
    }
    assert_eq!(house.jar("jon").log_in(&url("/small"), "jon").status, 200);
    drop(house);
    // Clocks may be 30 s apart: the token, good for 20 s, has ended 10 s ago by ours, or 40 s.
    let slow = House::whose_clock_is_slow(30, true, |_| {});
    assert_eq!(slow.jar("ann").log_in(&url("/small"), "ann").status, 200);
    drop(slow);
    let slower = House::whose_clock_is_slow(60, true, |_| {});
    let refused = slower.jar("ann").log_in(&url("/small"), "ann");
    assert!(refused.status == 400 && refused.text().contains("expired"), "{}", refused.text());
}

/// A key of a kind that signs no tokens has no profile, but whoever may see everybody's previews sees its too.
#[test]
fn who_may_see_all_sees_what_an_agent_with_a_security_key_offers() {
    let house = House::new(true);
    let _agent = LibraryAgent::with_security_key(&house.gateway, "/fido#access=private", |visit| async {
        visit.answer_and_end(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfido").await;
    });
    let record = house.gateway.wait_log("the tunnel", |record| {
        record["tunnel"].as_str().is_some_and(|name| name.starts_with("fido-"))
    });
    let there = format!("https://{}.gw.test/", record["tunnel"].as_str().expect("text"));
    let cat = house.jar("cat").log_in(&there, "cat");
    assert_eq!((cat.status, cat.text().as_str()), (200, "fido"), "{cat:?}");
    // Who may see one profile does not see what has none.
    let ann = house.jar("ann").log_in(&there, "ann");
    assert!(ann.status == 403 && ann.text().contains("may not see"), "{ann:?}");
}

#[test]
fn a_provider_that_cannot_be_used_is_told_of_in_a_sentence() {
    let wrong = House::of(true, |setup| {
        setup.set("access.oidc.client_secret", "wrong");
    });
    let jar = wrong.jar("jar");
    let refused = jar.log_in(&url("/small"), "ann");
    assert!(refused.status == 502 && refused.text().contains("access.oidc.client_id"), "{}", refused.text());
    let record = wrong.gateway.wait_reason("provider-unusable");
    assert_eq!(record["at_fault"], "gateway", "{record}");
    // The description is no secret, and good.
    let config = wrong.gateway.path("oneport.toml");
    let check = || oneport(&["check", "--config", config.to_str().expect("UTF-8")]);
    let line = format!("ok    the identity provider `https://localhost:{}` describes itself", wrong.port);
    let checked = check();
    assert!(checked.stdout.contains(&line), "{checked:?}");
    // One character too many: both are told whole.
    let issuer = format!("https://localhost:{}", wrong.port);
    rewrite(&wrong.gateway, |table| {
        section(section(table, "access"), "oidc").insert("issuer".to_owned(), format!("{issuer}/").into());
    });
    poll("both issuers", SOON, || {
        let text = wrong.jar("slash").go(&url("/small")).text();
        (text.contains(&format!("`{issuer}`")) && text.contains(&format!("`{issuer}/`"))).then_some(())
    });
    let checked = check();
    let is_told = checked.stdout.contains("FAIL  the identity provider's description cannot be used");
    assert!(is_told && !checked.status.success(), "{checked:?}");
    let untrusted = House::of(true, |setup| {
        setup.unset("access", "oidc");
        setup.set("access.oidc.issuer", "https://127.0.0.1:1/nowhere");
        setup.set("access.oidc.client_id", "oneport");
        setup.set("access.oidc.allow", vec![rule(&[("domain", "example.com")], &["*"])]);
    });
    let refused = untrusted.jar("jar").go(&url("/small"));
    assert!(refused.status == 502 && refused.text().contains("cannot be asked"), "{}", refused.text());
    let record = untrusted.gateway.wait_reason("provider-unusable");
    assert_eq!(record["at_fault"], "gateway", "{record}");
    // A program with a token needs no provider.
    let program = Curl::new(&untrusted.gateway).get(&url("/small"));
    assert_eq!(program.status, 307);
    drop(untrusted.provider);
}

/// A provider behind a proxy that ends TLS may believe that it is asked in the clear.
#[test]
fn nothing_goes_to_a_provider_in_the_clear_whatever_it_says_of_itself() {
    for field in ["", "authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri"] {
        let mut setup = Setup::new();
        let leaf = setup.ca.leaf("provider", &["localhost"]);
        let provider =
            node("oidc_description.js", &json!({ "cert": leaf.cert, "key": leaf.key, "plain": field }));
        let port: u16 = provider.out.wait("the provider's port", SOON, |said| said.trim().parse().ok());
        setup.set("access.oidc.issuer", format!("https://localhost:{port}"));
        setup.set("access.oidc.client_id", "oneport");
        setup.set("access.oidc.client_secret", "very secret");
        setup.set("access.oidc.root", setup.ca.cert().display().to_string());
        setup.set("access.oidc.allow", vec![rule(&[("domain", "example.com")], &["*"])]);
        let gateway = setup.start();
        let file = gateway.path("jar");
        let curl = || {
            let file = file.to_str().expect("UTF-8");
            Curl::new(&gateway).args(&["-b", file, "-c", file]).header("Accept: text/html")
        };
        let sent = curl().get("https://auth.gw.test/login");
        let state = sent.header("location").and_then(|to| to.split_once("state=")?.1.split('&').next());
        if let Some(state) = state {
            // Whatever comes of it: the code would be shown with the secret.
            curl().get(&format!("https://auth.gw.test/login/callback?code=x&state={state}"));
        }
        let (said, is_told) = (sent.text(), sent.status == 502);
        let is_named =
            said.contains(&format!("as its `{field}`")) && said.contains("<code>provider-unusable</code>");
        assert_eq!((is_told, is_named), (!field.is_empty(), !field.is_empty()), "{field}: {said}");
        provider.out.wait("no more", SOON, |said| (!said.contains("in the clear")).then_some(()));
    }
}
