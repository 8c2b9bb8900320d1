//! Issuers whose keys change: at a URL, fetched over TLS from a real server, and in files.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::private::{House, jose, now, private_key, profile, url};
use crate::support::agent::{node, vector_key};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup, oneport};
use crate::support::process::Process;
use crate::support::visitor::{Curl, Response};
use crate::support::{SOON, poll};

/// The issuer's name.
const ISSUER: &str = "https://id.test";

/// A server of keys that are in a file.
struct Keys {
    process: Process,
    file: PathBuf,
    port: u16,
    root: PathBuf,
}

impl Keys {
    fn start(setup: &Setup, hold: bool) -> Self {
        let leaf = setup.ca.leaf("jwks", &["localhost"]);
        let file = setup.path("served.json");
        let options = json!({ "cert": leaf.cert, "key": leaf.key, "file": file, "hold": hold });
        let process = node("jwks_server.js", &options);
        let port = process.out.wait("port", SOON, |said| said.lines().next()?.parse().ok());
        Self { process, file, port, root: setup.ca.cert() }
    }

    /// The issuer, as the configuration has it.
    fn issuer(&self) -> toml::Value {
        let url = format!("https://localhost:{}/jwks.json", self.port);
        let root = self.root.display().to_string();
        let fields = [("name", ISSUER), ("jwks_url", &url), ("root", &root)];
        toml::Value::Table(fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
    }

    fn requests(&self) -> usize {
        self.process.out.to_string().matches("request").count()
    }

    fn has(&self, names: &[&str]) {
        std::fs::write(&self.file, set_of(names)).expect("writable");
    }
}

/// A set of keys of the vectors, each under its own name.
pub(crate) fn set_of(names: &[&str]) -> String {
    let keys: Vec<Value> = names
        .iter()
        .map(|name| {
            let mut jwk = vector_key(name)["jwk"].clone();
            jwk["kid"] = (*name).into();
            jwk
        })
        .collect();
    json!({ "keys": keys }).to_string()
}

/// Has an issuer be known, whose key is one of the vectors. Only then are tokens in cookies read.
pub(crate) fn with_issuer(setup: &mut Setup) -> &mut Setup {
    let keys = setup.path("issuer_keys.json");
    std::fs::write(&keys, set_of(&["rsa2048"])).expect("writable");
    let fields = [("name", ISSUER), ("jwks", keys.to_str().expect("UTF-8"))];
    let issuer = fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    setup.set("access.issuer", vec![toml::Value::Table(issuer)])
}

/// A token of that issuer for the profile of a key.
pub(crate) fn token_for(key: &str) -> String {
    let mut order = order(ISSUER, "rsa2048", "RS256");
    order["claims"]["profiles"] = json!([profile(key)]);
    jose(&json!([order])).remove(0)
}

/// What jose is to make: a token of the issuer, signed with a key of the vectors.
pub(crate) fn order(issuer: &str, key: &str, alg: &str) -> Value {
    json!({
        "key": private_key(key), "alg": alg, "header": { "kid": key },
        "claims": { "iss": issuer, "exp": now() + 600, "profiles": [profile("ed25519a")] },
    })
}

fn is_fetched(gateway: &Gateway) {
    gateway.wait_log("the first keys", |record| record["message"] == "an issuer's keys have changed");
}

/// A house that believes an issuer, whose only key it has fetched.
#[track_caller]
fn with_keys_at_a_url() -> (House, Keys) {
    let mut setup = Setup::new();
    let keys = Keys::start(&setup, false);
    keys.has(&["ecdsa256"]);
    setup.set("access.issuer", vec![keys.issuer()]);
    let house = House::of(setup);
    is_fetched(&house.gateway);
    (house, keys)
}

#[track_caller]
fn is_refused(response: &Response, what: &str) {
    assert_eq!(response.status, 401, "{response:?}");
    assert!(response.text().contains(what), "{response:?}");
}

#[test]
fn keys_at_a_url_are_fetched_again_for_a_new_one_and_at_sighup() {
    let (house, keys) = with_keys_at_a_url();
    let tokens = jose(&json!([
        order(ISSUER, "ecdsa256", "ES256"),
        order(ISSUER, "ed25519b", "EdDSA"),
        order(ISSUER, "rsa2048", "RS256"),
    ]));
    assert_eq!(house.bearer(&tokens[0]).status, 200);
    assert_eq!(keys.requests(), 1);
    // A new key counts for the first token that is signed with it.
    keys.has(&["ecdsa256", "ed25519b"]);
    assert_eq!(house.bearer(&tokens[1]).status, 200, "{}", house.gateway.stderr());
    assert_eq!(house.bearer(&tokens[0]).status, 200);
    assert_eq!(keys.requests(), 2);
    // One that was withdrawn opens nothing more, though its token was known to be good.
    keys.has(&["ed25519b", "rsa2048"]);
    house.gateway.signal(Signal::HUP);
    poll("refusal", SOON, || (house.bearer(&tokens[0]).status == 401).then_some(()));
    is_refused(&house.bearer(&tokens[0]), "has no key `ecdsa256`");
    assert_eq!(house.bearer(&tokens[2]).status, 200);
    house.gateway.wait_log("word of SIGHUP", |record| {
        record["message"].as_str().is_some_and(|message| message.starts_with("SIGHUP"))
    });
}

#[test]
fn a_token_that_names_no_key_has_them_fetched_when_none_has_signed_it() {
    let (house, keys) = with_keys_at_a_url();
    let unnamed = |key: &str, alg: &str| {
        let mut token = order(ISSUER, key, alg);
        token["header"] = json!({});
        token
    };
    let orders: Vec<Value> = [("ecdsa256", "ES256"), ("ed25519b", "EdDSA"), ("rsa2048", "RS256")]
        .into_iter()
        .map(|(key, alg)| unnamed(key, alg))
        .collect();
    let tokens = jose(&orders.into());
    for _ in 0..3 {
        assert_eq!(house.bearer(&tokens[0]).status, 200);
    }
    assert_eq!(keys.requests(), 1, "a key that is here was fetched");
    keys.has(&["ecdsa256", "ed25519b"]);
    assert_eq!(house.bearer(&tokens[1]).status, 200, "{}", house.gateway.stderr());
    assert_eq!(keys.requests(), 2);
    // Anybody can send one that nobody has signed.
    for _ in 0..10 {
        assert_eq!(house.bearer(&tokens[2]).status, 401);
    }
    assert!((3..=5).contains(&keys.requests()), "{} fetches", keys.requests());
}

#[test]
fn oneport_check_fetches_the_keys_once_and_says_what_is_wrong() {
    let mut setup = Setup::new();
    let keys = Keys::start(&setup, false);
    keys.has(&["ecdsa256", "rsa2048"]);
    let plain = Backend::start();
    let at = |name: &str, url: &str| {
        let mut issuer = keys.issuer();
        let table = issuer.as_table_mut().expect("a table");
        table.insert("name".to_owned(), name.into());
        table.insert("jwks_url".to_owned(), url.into());
        issuer
    };
    let mut untrusted = at("untrusted.test", &format!("https://localhost:{}/", keys.port));
    untrusted.as_table_mut().expect("a table").remove("root");
    let nowhere = at("nowhere.test", "https://127.0.0.1:1/");
    let no_tls = at("plain.test", &format!("https://{}/", plain.address()));
    setup.set("access.issuer", vec![keys.issuer(), untrusted, nowhere, no_tls]);
    let path = setup.write();
    let check = || oneport(&["check", "--config", path.to_str().expect("UTF-8")]);
    let output = check();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for line in [
        format!("ok    the issuer `{ISSUER}` has 2 keys for tokens at `https://localhost:{}/jwks.json`", keys.port),
        "FAIL  the issuer `untrusted.test` gives no keys".to_owned(),
        "cannot be trusted".to_owned(),
        "FAIL  the issuer `nowhere.test` gives no keys at `https://127.0.0.1:1/`: `127.0.0.1:1` cannot be reached".to_owned(),
        "FAIL  the issuer `plain.test` gives no keys".to_owned(),
        format!("`{}` speaks no TLS there; check the port in `jwks_url`", plain.address()),
    ] {
        assert!(output.stdout.contains(&line), "{line}: {}", output.stdout);
    }
    assert_eq!(keys.requests(), 1);
    setup.set("access.issuer", vec![keys.issuer()]);
    setup.write();
    for (text, words) in [
        ("[]", "is no set of keys"),
        ("{\"keys\": []}", "the set holds no key"),
        ("{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}", "no key in it can be used"),
    ] {
        std::fs::write(&keys.file, text).expect("writable");
        let output = check();
        assert!(output.status.code() == Some(1) && output.stdout.contains(words), "{words}: {output:?}");
    }
}

#[test]
fn tokens_with_made_up_key_names_cause_few_fetches() {
    let (house, keys) = with_keys_at_a_url();
    let made_up: Vec<Value> = (0..20)
        .map(|number| {
            let mut token = order(ISSUER, "ecdsa384", "ES384");
            token["header"]["kid"] = format!("made-up-{number}").into();
            token
        })
        .collect();
    for token in jose(&made_up.into()) {
        is_refused(&house.bearer(&token), "has no key `made-up-");
    }
    assert!((2..=4).contains(&keys.requests()), "{} fetches", keys.requests());
    let good = jose(&json!([order(ISSUER, "ecdsa256", "ES256")])).remove(0);
    assert_eq!(house.bearer(&good).status, 200);
}

#[test]
fn a_failed_fetch_keeps_the_keys_and_says_so() {
    let (house, keys) = with_keys_at_a_url();
    let good = jose(&json!([order(ISSUER, "ecdsa256", "ES256")])).remove(0);
    let complaint = |what: &str| {
        house.gateway.signal(Signal::HUP);
        house.gateway.wait_log(what, |record| {
            record["message"] == "keeping an issuer's keys as they were"
                && record["issuer"] == ISSUER
                && record["error"].as_str().is_some_and(|error| error.contains(what))
        });
        assert_eq!(house.bearer(&good).status, 200);
    };
    std::fs::remove_file(&keys.file).expect("it is there");
    complaint("answered 500 where the keys should be");
    std::fs::write(&keys.file, "{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}").expect("writable");
    complaint("no key in it can be used");
    std::fs::write(&keys.file, " ".repeat(300 * 1024)).expect("writable");
    complaint("sent more than 262144 octets");
}

#[test]
fn who_comes_before_the_keys_waits_for_one_fetch_together() {
    let mut setup = Setup::new();
    let keys = Keys::start(&setup, true);
    setup.set("access.issuer", vec![keys.issuer()]);
    let house = House::of(setup);
    let good = jose(&json!([order(ISSUER, "ecdsa256", "ES256")])).remove(0);
    let with = format!("Authorization: Bearer {good}");
    let asking: Vec<Process> = (0..4)
        .map(|_| Process::start(&mut Curl::new(&house.gateway).header(&with).build(&url("/small"))))
        .collect();
    poll("fetch", SOON, || (keys.requests() > 0).then_some(()));
    keys.has(&["ecdsa256"]);
    for mut curl in asking {
        assert_eq!(curl.finish(SOON).stdout, "small", "{}", house.gateway.stderr());
    }
    let list = format!("https://api.gw.test/profiles/{}/tunnels", profile("ed25519a"));
    assert_eq!(Curl::new(&house.gateway).header(&with).get(&list).status, 200);
    assert_eq!(keys.requests(), 1);
}

#[test]
fn without_keys_the_gateway_runs_and_says_that_it_cannot_tell_yet() {
    let mut setup = Setup::new();
    let keys = Keys::start(&setup, false);
    setup.set("access.issuer", vec![keys.issuer()]);
    let house = House::of(setup);
    house
        .gateway
        .wait_log("complaint", |record| record["message"] == "keeping an issuer's keys as they were");
    let good = jose(&json!([order(ISSUER, "ecdsa256", "ES256")])).remove(0);
    let asked = Instant::now();
    let response = house.bearer(&good);
    assert_eq!(response.status, 503, "{response:?}");
    assert!(asked.elapsed().as_secs() < 5, "{:?}", asked.elapsed());
    assert!(response.text().contains("issuer-unreachable") && response.header("retry-after").is_some());
    let by_cookie =
        Curl::new(&house.gateway).header(&format!("Cookie: preevy-saas-jwt={good}")).get(&url("/"));
    assert_eq!((by_cookie.status, by_cookie.header("location")), (503, None), "{by_cookie:?}");
    // The agent's own tokens need nobody.
    let own = crate::private::token_of("ed25519a", "EdDSA");
    assert_eq!(house.bearer(&own).status, 200);
    keys.has(&["ecdsa256"]);
    poll("keys", SOON, || (house.bearer(&good).status == 200).then_some(()));
}

#[test]
fn an_untrusted_server_gives_no_keys() {
    let mut setup = Setup::new();
    let keys = Keys::start(&setup, false);
    keys.has(&["ecdsa256"]);
    let mut issuer = keys.issuer();
    issuer.as_table_mut().expect("a table").remove("root");
    setup.set("access.issuer", vec![issuer]);
    let house = House::of(setup);
    house.gateway.wait_log("distrust", |record| {
        record["error"].as_str().is_some_and(|error| error.contains("cannot be trusted"))
    });
    let good = jose(&json!([order(ISSUER, "ecdsa256", "ES256")])).remove(0);
    assert_eq!(house.bearer(&good).status, 503);
    assert_eq!(keys.requests(), 0);
}

#[test]
fn each_fault_of_an_issuers_token_is_named() {
    let mut setup = Setup::new();
    std::fs::write(setup.path("keys.json"), set_of(&["ecdsa256", "rsa2048"])).expect("writable");
    let issuer = [("name", ISSUER), ("jwks", "keys.json")];
    let issuer: toml::Table =
        issuer.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    setup.set("access.issuer", vec![toml::Value::from(issuer)]);
    let house = House::of(setup);
    let with = |key: &str, alg: &str, kid: &str| {
        let mut token = order(ISSUER, key, alg);
        token["header"]["kid"] = kid.into();
        token
    };
    let times = |name: &str, at: u64| {
        let mut token = order(ISSUER, "ecdsa256", "ES256");
        token["claims"][name] = at.into();
        token
    };
    let jwk = vector_key("rsa2048")["jwk"]["n"].as_str().expect("a modulus").to_owned();
    let secret = |key: &str| {
        let mut token = with("rsa2048", "HS256", "rsa2048");
        token["key"] = key.into();
        token
    };
    let orders = [
        (with("rsa3072", "RS256", "rsa2048"), "signature is not that of its issuer's key"),
        (with("rsa2048", "none", "rsa2048"), "signed with `none`, which does not go with its issuer's key"),
        (secret(&jwk), "signed with `HS256`, which does not go with its issuer's key"),
        (times("exp", now() - 40), "expired 4"),
        (times("nbf", now() + 100), "begins to be valid in"),
        // Within what clocks may be apart.
        (times("exp", now() - 10), ""),
        (times("nbf", now() + 20), ""),
    ];
    let tokens = jose(&orders.iter().map(|(order, _)| order.clone()).collect::<Vec<_>>().into());
    for (token, (_, expected)) in tokens.iter().zip(&orders) {
        let response = house.bearer(token);
        match *expected {
            "" => assert_eq!(response.status, 200, "{response:?}"),
            expected => is_refused(&response, expected),
        }
    }
}

/// The library for tokens does not know this kind.
#[test]
fn a_p521_key_in_a_file() {
    let mut setup = Setup::new();
    let file = |name: &str| setup.path(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let made = Process::run(Command::new("openssl").args(arguments), SOON);
        assert!(made.status.success(), "{made:?}");
    };
    let (private, public) = (file("issuer.key"), file("issuer.pem"));
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521", "-out", &private]);
    openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
    let private = std::fs::read_to_string(setup.path("issuer.key")).expect("made");
    let mut good = order(ISSUER, "ecdsa384", "ES512");
    good["key"] = private.into();
    let mut late = good.clone();
    late["claims"]["exp"] = (now() - 40).into();
    let other = order(ISSUER, "ecdsa384", "ES384");
    let tokens = jose(&json!([good, late, other]));
    let issuer = [("name", ISSUER), ("key", "issuer.pem")];
    let issuer: toml::Table =
        issuer.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    setup.set("access.issuer", vec![toml::Value::from(issuer)]);
    let house = House::of(setup);
    assert_eq!(house.bearer(&tokens[0]).status, 200);
    is_refused(&house.bearer(&tokens[1]), "expired 4");
    is_refused(&house.bearer(&tokens[2]), "signed with `ES384`, which does not go with its issuer's key");
    let (signed, signature) = tokens[0].rsplit_once('.').expect("three parts");
    let turned: String = signature.chars().rev().collect();
    is_refused(&house.bearer(&format!("{signed}.{turned}")), "not that of its issuer's key");
}
