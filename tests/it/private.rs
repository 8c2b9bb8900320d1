//! Private tunnels: who shows a good token gets in, all others are told why not, and nobody's
//! credentials reach a service.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::agent::{Agent, OpenSsh, host, key_file, node, public_key, vector_key};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, ONEPORT, Setup};
use crate::support::person::Person;
use crate::support::process::{Output, Process};
use crate::support::visitor::{Curl, Response};
use crate::support::{SOON, test_file};

/// The user name that stands for tokens in Basic.
const TOKEN_USER: &str = "x-preevy-profile-key";

/// A gateway, and an agent that offers `web` privately.
pub(crate) struct House {
    pub(crate) gateway: Gateway,
    pub(crate) backend: Backend,
    _agent: Agent,
}

impl House {
    pub(crate) fn new() -> Self {
        Self::of(Setup::new())
    }

    pub(crate) fn of(setup: Setup) -> Self {
        let (gateway, backend) = (setup.start(), Backend::start());
        let agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address()).start();
        Self { gateway, backend, _agent: agent }
    }

    pub(crate) fn bearer(&self, token: &str) -> Response {
        Curl::new(&self.gateway).header(&format!("Authorization: Bearer {token}")).get(&url("/echo"))
    }
}

pub(crate) fn url(path: &str) -> String {
    format!("https://{}{path}", host("web"))
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

pub(crate) fn profile(key: &str) -> String {
    vector_key(key)["thumbprint_uri"].as_str().expect("a URI").to_owned()
}

pub(crate) fn private_key(key: &str) -> String {
    vector_key(key)["openssh_private_key"].as_str().expect("a key").to_owned()
}

/// Tokens made with jose.
pub(crate) fn jose(tokens: &Value) -> Vec<String> {
    let output = node("jwt.js", &json!({ "tokens": tokens })).finish(SOON);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_str(&output.stdout).expect("a list of tokens")
}

pub(crate) fn claims_of(key: &str) -> Value {
    json!({ "iss": format!("preevy://{}", profile(key)), "iat": now(), "exp": now() + 600 })
}

pub(crate) fn token_of(key: &str, alg: &str) -> String {
    jose(&json!([{ "key": private_key(key), "alg": alg, "claims": claims_of(key) }])).remove(0)
}

fn oneport_token(arguments: &[&str], key: &Path) -> Output {
    Process::run(Command::new(ONEPORT).arg("token").args(arguments).arg("--key").arg(key), SOON)
}

/// The names of the headers that reached the service.
fn reached(response: &Response, name: &str) -> Vec<String> {
    assert_eq!(response.status, 200, "{}", response.text());
    let headers = response.json()["headers"].as_array().expect("a list").clone();
    let values = headers.iter().filter(|pair| pair[0] == name);
    values.map(|pair| pair[1].as_str().expect("text").to_owned()).collect()
}

#[test]
fn a_token_of_the_agents_own_key_opens_its_tunnel_in_every_way() {
    let house = House::new();
    let token = token_of("ed25519a", "EdDSA");
    let response = house.bearer(&token);
    assert_eq!(reached(&response, "authorization"), <[&str; 0]>::default());
    let basic = Curl::new(&house.gateway).args(&["-u", &format!("{TOKEN_USER}:{token}")]).get(&url("/echo"));
    assert_eq!(reached(&basic, "authorization"), <[&str; 0]>::default());
    // Known by the cookie: `Authorization` is then the service's own.
    let cookie = Curl::new(&house.gateway)
        .header(&format!("Cookie: theme=dark; preevy-saas-jwt={token}; lang=en"))
        .header("Authorization: Bearer of.the.app")
        .get(&url("/echo"));
    assert_eq!(reached(&cookie, "cookie"), ["theme=dark; lang=en"]);
    assert_eq!(reached(&cookie, "authorization"), ["Bearer of.the.app"]);
}

#[test]
fn every_kind_of_key_signs_tokens_by_jose_and_by_oneport() {
    /// Not among the vectors.
    const P521: &str = "ecdsa521";
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let made = gateway.path(&format!("key-{P521}")).display().to_string();
    let made = Process::run(
        Command::new("ssh-keygen").args(["-qt", "ecdsa", "-b", "521", "-N", "", "-f", &made]),
        SOON,
    );
    assert!(made.status.success(), "{made:?}");
    for (key, alg) in [
        ("ed25519b", "EdDSA"),
        ("rsa2048", "RS256"),
        ("rsa2048", "RS512"),
        ("rsa3072", "PS256"),
        ("ecdsa256", "ES256"),
        ("ecdsa384", "ES384"),
        (P521, "ES512"),
    ] {
        let file = gateway.path(&format!("key-{key}"));
        let agent = OpenSsh::new(&gateway).key(key).forward("/k#access=private", backend.address()).start();
        let url = agent.hello["tunnels"]["/k#access=private"].as_str().expect("a URL").to_owned();
        let made = oneport_token(&[], &file);
        assert!(made.status.success(), "{made:?}");
        let profile = oneport_token(&["--profile"], &file).stdout.trim().to_owned();
        let claims = json!({ "iss": format!("preevy://{profile}"), "exp": now() + 600 });
        let private = std::fs::read_to_string(&file).expect("a key");
        let by_jose = jose(&json!([{ "key": private, "alg": alg, "claims": claims }])).remove(0);
        for token in [by_jose, made.stdout.trim().to_owned()] {
            let with = format!("Authorization: Bearer {token}");
            let response = Curl::new(&gateway).header(&with).get(&format!("{url}small"));
            assert_eq!((response.status, response.text().as_str()), (200, "small"), "{key} {alg}");
        }
        if key != P521 {
            assert_eq!(profile, crate::private::profile(key));
        }
    }
}

#[test]
fn each_fault_is_named_in_the_body_the_challenge_and_the_log() {
    let house = House::new();
    let own = private_key("ed25519a");
    let with = |changes: Value| {
        let mut claims = claims_of("ed25519a");
        for (name, value) in changes.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        claims
    };
    let tokens = jose(&json!([
        { "key": private_key("ed25519b"), "alg": "EdDSA", "claims": claims_of("ed25519a") },
        { "key": own, "alg": "EdDSA", "claims": with(json!({ "iss": "https://nobody.test" })) },
        { "key": own, "alg": "EdDSA", "claims": with(json!({ "exp": now() - 185 })) },
        { "key": own, "alg": "EdDSA", "claims": with(json!({ "nbf": now() + 100 })) },
        { "key": "", "alg": "none", "claims": claims_of("ed25519a") },
        { "key": public_key("ed25519a"), "alg": "HS256", "claims": claims_of("ed25519a") },
        { "key": private_key("ed25519b"), "alg": "EdDSA", "claims": claims_of("ed25519b") },
        { "key": own, "alg": "EdDSA", "claims": { "exp": now() + 600 } },
    ]));
    let expected = [
        "signature is not that of its issuer's key",
        "the token's issuer `https://nobody.test` is not known here",
        "the token expired 3 min ago",
        "begins to be valid in",
        "signed with `none`, which does not go with its issuer's key",
        "signed with `HS256`, which does not go with its issuer's key",
        "made with another key than that of the agent",
        "names no issuer",
    ];
    let long = "a".repeat(9000);
    let others = [("garbage", "not a signed JWT"), ("a.b.c", "not a signed JWT"), (&long, "more than 8 KiB")];
    let mut cases: Vec<(&str, &str)> = tokens.iter().map(String::as_str).zip(expected).collect();
    cases.extend(others);
    for (token, expected) in cases {
        let response = house.bearer(token);
        let what = format!("{expected}: {response:?}");
        assert_eq!(response.status, 401, "{what}");
        let text = response.text().replacen("The ", "the ", 1);
        assert!(text.contains(expected) && text.contains("bad-token"), "{what}");
        let challenge = response.header("www-authenticate").expect("a challenge");
        let said = expected.replace('`', "'");
        assert!(challenge.starts_with("Bearer error=\"invalid_token\", error_description=\""), "{what}");
        assert!(challenge.contains(&said), "{what}");
        assert_eq!(response.header("location"), None, "{what}");
    }
    assert_eq!(house.backend.requests(), 0);
    for expected in expected {
        house.gateway.wait_log(expected, |record| {
            record["reason"] == "bad-token"
                && record["detail"].as_str().is_some_and(|detail| detail.contains(expected))
        });
    }
    assert!(!house.gateway.stderr().contains(&tokens[2]), "a token is in the log");
}

#[test]
fn a_token_of_a_megabyte_is_refused_unread() {
    let house = House::new();
    let mut stream =
        crate::support::visitor::tls(&house.gateway, Some(&host("web")), &["http/1.1"]).expect("connects");
    let head = format!("GET / HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer ", host("web"));
    // It may be answered and closed before all is sent.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'a'; 1 << 20]));
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 431");
    assert_eq!(house.backend.requests(), 0);
}

#[test]
fn without_a_token_a_browser_is_sent_to_the_login_and_a_program_never() {
    let house = House::new();
    let curl = || Curl::new(&house.gateway);
    let response = curl().get(&url("/a//b?c=d&e"));
    assert_eq!(response.status, 307);
    let login = "https://auth.gw.test/login?env=web-dzk582uo&returnPath=%2Fa%2F%2Fb%3Fc%3Dd%26e";
    let location = response.header("location").expect("a redirect");
    assert!(location.starts_with(&format!("{login}&browser=")), "{location}");
    let hinted = curl().get(&url("/?_preevy_auth_hint=basic"));
    assert_eq!(hinted.status, 401);
    assert!(hinted.header("www-authenticate").expect("a challenge").starts_with("Basic "), "{hinted:?}");
    for sent in ["Authorization: Digest a=b", "Authorization: Basic dTpw", "Authorization: nonsense"] {
        let response = curl().header(sent).get(&url("/"));
        assert_eq!((response.status, response.header("location")), (401, None), "{sent}");
        assert!(response.text().contains("holds no token"), "{response:?}");
        let asks_again = response
            .headers
            .iter()
            .any(|(name, value)| name == "www-authenticate" && value.starts_with("Basic "));
        assert_eq!(asks_again, sent.contains("Basic"), "{response:?}");
    }
    let two = curl().header("Authorization: Bearer a").header("Authorization: Bearer b").get(&url("/"));
    assert_eq!(two.status, 401);
    let post = curl().args(&["-d", "x"]).get(&url("/"));
    assert_eq!((post.status, post.header("location")), (401, None));
    // There, somebody with a token is told where to send it, and not sent on.
    let at_login = curl().header("Authorization: Bearer x").get(login);
    assert_eq!((at_login.status, at_login.header("location")), (401, None));
    assert_eq!(house.backend.requests(), 0);
}

/// A service that does not look at the method would show everything.
#[test]
fn without_a_token_a_preflight_passes_and_brings_nothing_else() {
    let house = House::new();
    let options = |version: &str| Curl::new(&house.gateway).args(&[version, "-X", "OPTIONS"]);
    for version in ["--http1.1", "--http2"] {
        let preflight = || {
            options(version)
                .header("Origin: https://other.test")
                .header("Access-Control-Request-Method: PUT")
                .header("Access-Control-Request-Headers: x-a")
        };
        let response = preflight()
            .header("X-HTTP-Method-Override: DELETE")
            .header("Cookie: a=1")
            .header("Accept: text/html")
            .get(&url("/preflight?a=b"));
        assert_eq!((response.status, response.text().as_str()), (200, ""), "{response:?}");
        let names = response.headers.iter().map(|(name, _)| name.as_str());
        // HTTP/1.1 says that there is no body, HTTP/2 need not.
        let mut names: Vec<&str> = names.filter(|name| *name != "content-length").collect();
        names.sort_unstable();
        let kept = ["access-control-allow-origin", "access-control-max-age", "allow", "date", "vary"];
        assert_eq!(names, kept, "{response:?}");
        let sent = response.header("access-control-max-age").expect("what the service got");
        assert_eq!(
            sent,
            "OPTIONS /preflight?a=b access-control-request-headers access-control-request-method host origin \
             x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto"
        );
        let before = house.backend.requests();
        for (what, curl) in [
            ("no preflight", options(version)),
            ("no method", options(version).header("Origin: https://other.test")),
            ("no origin", options(version).header("Access-Control-Request-Method: PUT")),
            ("a token", preflight().header("Authorization: Bearer x")),
            ("a body", preflight().args(&["-d", "x"])),
            ("a switch", preflight().http1().args(&["-H", "Connection: upgrade", "-H", "Upgrade: tcp"])),
            ("two origins", preflight().header("Origin: https://third.test")),
        ] {
            let response = curl.get(&url("/preflight"));
            assert_eq!((response.status, response.header("location")), (401, None), "{what}: {response:?}");
        }
        let star = preflight().args(&["--request-target", "*"]).get(&url("/"));
        assert_eq!(star.status, 401, "{star:?}");
        assert_eq!(house.backend.requests(), before);
        // Who may see it sees what there is.
        let bearer = format!("Authorization: Bearer {}", token_of("ed25519a", "EdDSA"));
        let cookie = format!("Cookie: preevy-saas-jwt={}", token_of("ed25519a", "EdDSA"));
        let response = preflight().header(&bearer).get(&url("/echo"));
        assert_eq!(response.json()["method"], "OPTIONS", "{response:?}");
        // A login counts for no other site's pages, not even in a preflight.
        let response = preflight().header(&cookie).get(&url("/echo"));
        assert_eq!((response.status, response.body.len()), (200, 0), "{response:?}");
    }
}

/// Forms that some services read and others do not.
#[test]
fn a_token_in_an_odd_form_reaches_no_service_either() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let other = OpenSsh::new(&gateway).key("ed25519b").forward("/web", backend.address()).start();
    let url = format!("{}echo", other.hello["tunnels"]["/web"].as_str().expect("a URL"));
    let token = token_of("ed25519a", "EdDSA");
    let basic = |pair: &str| base64::engine::general_purpose::STANDARD.encode(pair);
    let parts: Vec<&str> = token.split('.').collect();
    let part = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let critical = part(json!({ "alg": "EdDSA", "crit": ["exp"] }));
    let long = part(json!({ "x": "y".repeat(9000), "iss": claims_of("ed25519a")["iss"] }));
    for sent in [
        format!("Bearer {token}."),
        format!("Bearer ..{token}..."),
        format!("Bearer x.{token}"),
        format!("Bearer {token}.x"),
        format!("Bearer{token}"),
        format!("Bearer {}..{}", parts[1], parts[2]),
        format!("Bearer {critical}.{}.{}", parts[1], parts[2]),
        format!("Bearer {}.{long}.{}", parts[0], parts[2]),
        format!("Basic {}", basic(&format!("git:{token}."))),
        format!("Bearer\t{token}"),
        format!("Bearer \"{token}\""),
        format!("Token {token}"),
        format!("Token token={token}, x=y"),
        format!("Bearer {token} \u{e9}"),
        token.clone(),
        format!("Basic {}", basic(&format!("X-Preevy-Profile-Key:{token}"))),
        format!("Basic {}", basic("X-Preevy-Profile-Key:a.b.c").trim_end_matches('=')),
        format!("Basic {}", basic(&format!("git:{token}"))),
        format!("Basic\t{}", basic(&format!("{token}:"))),
    ] {
        let response = Curl::new(&gateway).header(&format!("Authorization: {sent}")).get(&url);
        assert_eq!(reached(&response, "authorization"), <[&str; 0]>::default(), "{sent}");
    }
    for name in ["=__Host-oneport-visit", " = oneport-login", "PREEVY-SAAS-JWT", "=preevy-saas-jwt"] {
        let response = Curl::new(&gateway).header(&format!("Cookie: a=1;{name}=x")).get(&url);
        assert_eq!(reached(&response, "cookie"), ["a=1"], "{name}");
    }
    for kept in [
        "Basic YWRtaW46c2VjcmV0",
        "Token abc",
        "Bearer a.b.c",
        "Bearer eyJpc3MiOiJhcHAifQ.eyJpc3MiOiJhcHAifQ.c.",
        "Digest a=\"b\", c=d",
    ] {
        let response = Curl::new(&gateway).header(&format!("Authorization: {kept}")).get(&url);
        assert_eq!(reached(&response, "authorization"), [kept]);
    }
    // They open what they are for.
    let house = House::new();
    for sent in
        [format!("Bearer\t{token}"), format!("Basic {}", basic(&format!("X-PREEVY-profile-key:{token}")))]
    {
        let curl = Curl::new(&house.gateway).header(&format!("Authorization: {sent}"));
        assert_eq!(
            reached(&curl.get(&crate::private::url("/echo")), "authorization"),
            <[&str; 0]>::default()
        );
    }
    // A cookie without a name is not one of ours, whatever its value looks like.
    let tossed = Curl::new(&house.gateway).header(&format!("Cookie: =preevy-saas-jwt={token}"));
    assert_eq!(tossed.get(&crate::private::url("/echo")).status, 307);
}

/// Apps behind the same identity provider send its tokens to their own services.
#[test]
fn an_issuers_token_is_withheld_where_it_was_used_or_is_for_the_gateway() {
    let mut setup = Setup::new();
    let issuer = |name: &str, file: &str, audience: Option<&str>| {
        std::fs::write(setup.path(file), json!({ "keys": [vector_key("ecdsa384")["jwk"]] }).to_string())
            .expect("writable");
        let fields =
            [("name", name), ("jwks", file)].into_iter().chain(audience.map(|text| ("audience", text)));
        toml::Value::Table(fields.map(|(key, value)| (key.to_owned(), value.into())).collect())
    };
    let issuers =
        vec![issuer("any.test", "any.json", None), issuer("own.test", "own.json", Some("previews"))];
    setup.set("access.issuer", issuers);
    let house = House::of(setup);
    let _open = OpenSsh::new(&house.gateway).forward("/open", house.backend.address()).start();
    let claims = |issuer: &str, audience: &str| json!({ "iss": issuer, "aud": audience, "exp": now() + 60, "profiles": [profile("ed25519a")] });
    let signed = |claims| json!({ "key": private_key("ecdsa384"), "alg": "ES384", "claims": claims });
    let tokens = jose(&json!([
        signed(claims("any.test", "app")),
        signed(claims("own.test", "previews")),
        signed(claims("own.test", "app")),
    ]));
    let cookie = format!("Cookie: preevy-saas-jwt={}", token_of("ed25519a", "EdDSA"));
    let open = format!("https://{}/echo", host("open"));
    for (token, is_kept) in tokens.iter().zip([true, false, true]) {
        let bearer = format!("Bearer {token}");
        let curl = || Curl::new(&house.gateway).header(&format!("Authorization: {bearer}"));
        let expected = if is_kept { vec![bearer.clone()] } else { Vec::new() };
        assert_eq!(reached(&curl().get(&open), "authorization"), expected);
        assert_eq!(reached(&curl().header(&cookie).get(&url("/echo")), "authorization"), expected);
    }
    let used = house.bearer(&tokens[0]);
    assert_eq!((used.status, house.bearer(&tokens[1]).status), (200, 200));
    let used =
        Curl::new(&house.gateway).header(&format!("Authorization: Bearer {}", tokens[0])).get(&url("/echo"));
    assert_eq!(reached(&used, "authorization"), <[&str; 0]>::default());
    let warnings: Vec<String> = house
        .gateway
        .stderr()
        .lines()
        .filter(|line| line.contains("no `audience`"))
        .map(str::to_owned)
        .collect();
    assert!(warnings.len() == 1 && warnings[0].contains("any.test"), "{warnings:?}");
}

#[test]
fn the_hosted_services_login_is_sent_to_if_there_is_one() {
    let setup = Setup::new();
    let mut command = setup.command();
    command.env("SAAS_BASE_URL", "https://app.test/x/");
    let gateway = setup.start_with(command);
    let login = "https://auth.gw.test/login?env=web&returnPath=%2F";
    let response = Curl::new(&gateway).get(login);
    let location = response.header("location").expect("a redirect");
    let (to, back) = location.split_once("?redirectTo=").expect("a way back");
    assert_eq!(to, "https://app.test/x/api/auth/login");
    assert_eq!(percent_encoding::percent_decode_str(back).decode_utf8_lossy(), login);
}

#[test]
fn who_comes_from_the_login_goes_back_to_the_tunnel_and_nowhere_else() {
    let house = House::new();
    let cookie = format!("Cookie: preevy-saas-jwt={}", token_of("ed25519a", "EdDSA"));
    let back = |path: &str| {
        let login = format!("https://auth.gw.test/login?env=web-dzk582uo&returnPath={path}");
        let response = Curl::new(&house.gateway).header(&cookie).get(&login);
        assert_eq!(response.status, 307, "{response:?}");
        response.header("location").expect("a way").to_owned()
    };
    assert_eq!(back("%2Fecho%3Fa%3Db"), url("/echo?a=b"));
    for evil in [
        "%2F%2Fevil.test",
        "https:%2F%2Fevil.test",
        "%2F%5Cevil.test",
        "%2F%09%2Fevil.test",
        "@evil.test",
        ".evil.test",
        "",
    ] {
        assert_eq!(back(evil), url(""), "{evil}");
    }
    let other = format!("Cookie: preevy-saas-jwt={}", token_of("ed25519b", "EdDSA"));
    let login = "https://auth.gw.test/login?env=web-dzk582uo&returnPath=%2F";
    assert_eq!(Curl::new(&house.gateway).header(&other).get(login).status, 401);
}

#[test]
fn an_issuers_token_opens_the_profiles_that_it_names() {
    let mut setup = Setup::new();
    let pem = setup.path("issuer.pem");
    let private = setup.path("issuer.key");
    let openssl = |arguments: &[&str]| {
        let output = Process::run(Command::new("openssl").args(arguments), SOON);
        assert!(output.status.success(), "{output:?}");
    };
    let (public_path, private_path) = (pem.display().to_string(), private.display().to_string());
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &private_path]);
    openssl(&["pkey", "-in", &private_path, "-pubout", "-out", &public_path]);
    let jwk = vector_key("ecdsa384")["jwk"].clone();
    let mut jwk = jwk.as_object().expect("an object").clone();
    jwk.insert("kid".to_owned(), "second".into());
    let set = json!({ "keys": [{ "kty": "oct", "k": "AAAA" }, jwk] });
    std::fs::write(setup.path("keys.json"), set.to_string()).expect("writable");
    let issuer = |name: &str, more: &[(&str, &str)]| {
        let fields = [("name", name)].into_iter().chain(more.iter().copied());
        toml::Value::Table(fields.map(|(key, value)| (key.to_owned(), value.into())).collect())
    };
    setup.set(
        "access.issuer",
        vec![
            issuer("app.test", &[("key", "issuer.pem"), ("audience", "gw")]),
            issuer("id.test", &[("jwks", "keys.json"), ("profiles_claim", "app.tunnels")]),
        ],
    );
    let house = House::of(setup);
    let rsa = std::fs::read_to_string(&private).expect("made");
    let own = profile("ed25519a");
    let claims = |more: Value| {
        let mut claims =
            json!({ "iss": "app.test", "aud": ["gw", "x"], "exp": now() + 60, "profiles": [own] });
        for (name, value) in more.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        claims
    };
    let second = json!({ "iss": "id.test", "exp": now() + 60, "app": { "tunnels": own } });
    let tokens = jose(&json!([
        { "key": rsa, "alg": "RS256", "claims": claims(json!({})) },
        { "key": private_key("ecdsa384"), "alg": "ES384", "claims": second, "header": { "kid": "second" } },
        { "key": private_key("ecdsa384"), "alg": "ES384", "claims": second },
        { "key": rsa, "alg": "RS256", "claims": claims(json!({ "profiles": [profile("rsa2048")] })) },
        { "key": rsa, "alg": "RS256", "claims": claims(json!({ "aud": "others" })) },
        { "key": rsa, "alg": "RS256", "claims": claims(json!({ "exp": null })) },
        { "key": private_key("ecdsa384"), "alg": "ES384", "claims": second, "header": { "kid": "third" } },
    ]));
    for token in &tokens[..3] {
        assert_eq!(house.bearer(token).status, 200, "{}", house.bearer(token).text());
    }
    let other = house.bearer(&tokens[3]);
    assert_eq!(other.status, 403, "{other:?}");
    assert!(
        other.header("www-authenticate").expect("a challenge").contains("insufficient_scope"),
        "{other:?}"
    );
    assert!(other.text().contains("not-allowed"), "{other:?}");
    for (token, expected) in [(&tokens[4], "meant for others"), (&tokens[6], "has no key `third`")] {
        let response = house.bearer(token);
        assert_eq!(response.status, 401);
        assert!(response.text().contains(expected), "{}", response.text());
    }
    assert_eq!(house.bearer(&tokens[5]).status, 401);
}

#[test]
fn a_token_without_end_is_warned_of_once_and_can_be_refused() {
    let claims = json!({ "iss": format!("preevy://{}", profile("ed25519a")) });
    let token =
        jose(&json!([{ "key": private_key("ed25519a"), "alg": "EdDSA", "claims": claims }])).remove(0);
    let house = House::new();
    for _ in 0..2 {
        assert_eq!(house.bearer(&token).status, 200);
    }
    let warnings = || house.gateway.stderr().matches("has no `exp`").count();
    assert_eq!(warnings(), 1, "{}", house.gateway.stderr());
    let mut setup = Setup::new();
    setup.set("access.allow_unexpiring_tokens", false);
    let response = House::of(setup).bearer(&token);
    assert!(response.status == 401 && response.text().contains("no `exp`"), "{response:?}");
}

/// What one preview's visitor shows must never reach another's service.
#[test]
fn a_public_tunnel_of_another_never_sees_a_token() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let other = OpenSsh::new(&gateway).key("ed25519b").forward("/web", backend.address()).start();
    let url = format!("{}echo", other.hello["tunnels"]["/web"].as_str().expect("a URL"));
    let token = token_of("ed25519a", "EdDSA");
    let curl = || Curl::new(&gateway);
    let bearer = curl().header(&format!("Authorization: Bearer {token}")).get(&url);
    assert_eq!(reached(&bearer, "authorization"), <[&str; 0]>::default());
    let basic = curl().args(&["-u", &format!("{TOKEN_USER}:{token}")]).get(&url);
    assert_eq!(reached(&basic, "authorization"), <[&str; 0]>::default());
    let cookie = curl().header(&format!("Cookie: preevy-saas-jwt={token}")).get(&url);
    assert_eq!(reached(&cookie, "cookie"), <[&str; 0]>::default());
    assert!(!cookie.text().contains(&token) && !bearer.text().contains(&token));
    let app = curl().args(&["-u", "admin:secret"]).header("Cookie: a=b").get(&url);
    assert_eq!((reached(&app, "authorization").len(), reached(&app, "cookie")), (1, vec!["a=b".to_owned()]));
}

#[test]
fn the_tunnels_of_a_profile_are_listed_for_its_own() {
    let house = House::new();
    let list = format!("https://api.gw.test/profiles/{}/tunnels", profile("ed25519a"));
    let curl = || Curl::new(&house.gateway);
    assert_eq!(curl().get(&list).status, 401);
    assert_eq!(curl().get("https://api.gw.test/profiles/unknown/tunnels").status, 404);
    let bearer = |key, alg| format!("Authorization: Bearer {}", token_of(key, alg));
    assert_eq!(curl().header(&bearer("ed25519b", "EdDSA")).get(&list).status, 401);
    let response = curl().header(&bearer("ed25519a", "EdDSA")).get(&list);
    assert_eq!(
        response.json(),
        json!([{ "envId": "me", "hostname": "web-dzk582uo", "access": "private", "meta": {} }])
    );
}

/// curl, with every host led to this address.
fn curl_to(gateway: &Gateway, address: SocketAddr, arguments: &[&str], url: &str) -> Response {
    let to = format!("::{address}");
    Curl::new(gateway).args(&["--connect-to", &to]).args(arguments).get(url)
}

#[test]
fn whoever_sends_authorization_is_redirected_by_no_listener() {
    let mut setup = Setup::new();
    setup.set("plain.http", vec!["127.0.0.1:0"]);
    let mut command = setup.command();
    command.env("SAAS_BASE_URL", "https://app.test");
    let gateway = setup.start_with(command);
    let backend = Backend::start();
    let agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address());
    let _agent = agent.start();
    let (single, plain) = (gateway.address(), gateway.address_of("plain-http"));
    let good = token_of("ed25519a", "EdDSA");
    let list = format!("/profiles/{}/tunnels", profile("ed25519a"));
    let cookie = format!("Cookie: preevy-saas-jwt={good}");
    let web = host("web");
    let asked = [
        (web.as_str(), "/small", [200, 401]),
        ("gw.test", "/proxy/web-dzk582uo/small", [200, 401]),
        ("gw.test", "/", [200, 200]),
        ("api.gw.test", "/healthz", [200, 200]),
        ("api.gw.test", &list, [200, 401]),
        ("auth.gw.test", "/login?env=web-dzk582uo&returnPath=/small", [401, 401]),
    ];
    for (name, scheme, address, version) in [
        ("TLS", "https", single, "--http1.1"),
        ("TLS", "https", single, "--http2"),
        ("the plain listener", "http", plain, "--http1.1"),
        ("plain HTTP on the TLS port", "http", single, "--http1.1"),
    ] {
        for (host, path, expected) in asked {
            for (token, expected) in [&*good, "of.no.use"].into_iter().zip(expected) {
                let expected = if name.ends_with("port") { 400 } else { expected };
                let bearer = format!("Authorization: Bearer {token}");
                let mut arguments = vec![version, "-H", &bearer];
                // One that would be sent back to where it came from.
                if path.starts_with("/login") {
                    arguments.extend(["-H", &cookie]);
                }
                let response = curl_to(&gateway, address, &arguments, &format!("{scheme}://{host}{path}"));
                let what = format!("{path} by {name} {version}: {response:?}");
                assert_eq!((response.status, response.header("location")), (expected, None), "{what}");
            }
        }
    }
    // Without it, the TLS port says where HTTPS is, and the plain listener answers.
    let elsewhere = curl_to(&gateway, single, &[], "http://api.gw.test/healthz");
    assert_eq!((elsewhere.status, elsewhere.header("location")), (308, Some("https://api.gw.test/healthz")));
    let health = curl_to(&gateway, plain, &[], "http://api.gw.test/healthz");
    assert_eq!((health.status, health.text().as_str()), (200, "OK\n"));
    let refused = curl_to(&gateway, plain, &[], &format!("http://api.gw.test{list}"));
    assert_eq!((refused.status, refused.header("location")), (401, None));
}

#[test]
fn secrets_that_others_can_read_are_warned_of_at_each_reading() {
    let mut setup = Setup::new();
    let host_key = key_file(&setup.path(""), "rsa2048");
    let secrets = setup.path("secrets");
    std::fs::write(&secrets, format!("{}\n", "a".repeat(32))).expect("writable");
    setup.set("access.secrets_file", secrets.to_str().expect("UTF-8"));
    setup.set("ssh.host_key", host_key.to_str().expect("UTF-8"));
    let leaf = setup.ca.leaf("shared", &["gw.test", "*.gw.test"]);
    setup.certificates(&[(&leaf.cert, &leaf.key)]);
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    let warnings = |gateway: &Gateway, path: &Path| {
        let path = path.to_str().expect("UTF-8");
        let log = gateway.stderr();
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.filter(|record| record["path"] == path && record["mode"] == "0640").count()
    };
    let files = [host_key.as_path(), &secrets, &leaf.key];
    files.iter().for_each(|path| mode(path, 0o640));
    let gateway = setup.start();
    for path in files {
        assert_eq!(warnings(&gateway, path), 1, "{path:?}: {}", gateway.stderr());
    }
    std::fs::write(&secrets, format!("{}\n", "b".repeat(32))).expect("writable");
    gateway.wait_log("the second reading", |record| record["message"] == "cookie secrets were reread");
    assert_eq!(warnings(&gateway, &secrets), 2);
    files.iter().for_each(|path| mode(path, 0o600));
    let gateway = gateway.restart();
    assert!(!gateway.stderr().contains("others than its owner"), "{}", gateway.stderr());
}

/// Those of docs/tokens-in-ci.md, as they stand there.
#[test]
fn the_commands_for_jobs_work() {
    let house = House::new();
    let page = std::fs::read_to_string(test_file("../docs/tokens-in-ci.md")).expect("the page");
    let scripts = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let scripts: String = scripts.collect::<Vec<_>>().join("printf '\\n'\n");
    let job = tempfile::tempdir().expect("a temporary folder");
    let rc = format!(
        "connect-to = \"::{}\"\ncacert = \"{}\"\n",
        house.gateway.address(),
        house.gateway.ca().display()
    );
    std::fs::write(job.path().join(".curlrc"), rc).expect("writable");
    let folder = Path::new(ONEPORT).parent().expect("a folder").display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").expect("a PATH"));
    let mut command = Command::new("sh");
    command.args(["-ec", &scripts]).current_dir(job.path()).env("HOME", job.path()).env("PATH", path);
    command.env("PREVIEW_KEY", private_key("ed25519a")).env("PREVIEW_URL", url("").trim_end_matches('/'));
    // The last command looks for the challenge, of which there is none when all is well.
    let output = Process::run(&mut command, SOON);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.contains("\"target\":\"/healthz\""), "{output:?}");
    let other = Process::run(command.env("PREVIEW_KEY", private_key("ed25519b")), SOON);
    assert_eq!(other.status.code(), Some(22), "{other:?}");
    assert!(other.stdout.contains("made with another key"), "{other:?}");
}

#[test]
fn keys_that_are_locked_or_in_an_ssh_agent_or_too_short() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let key = key_file(dir.path(), "ed25519a");
    let run = |command: &mut Command| {
        let output = Process::run(command, SOON);
        assert!(output.status.success(), "{output:?}");
        output
    };
    // A real ssh-agent that has the key; the file then holds the public half only.
    let person = Person::new().with_agent(&["ed25519a"]);
    let public = dir.path().join("only.pub");
    std::fs::write(&public, public_key("ed25519a")).expect("writable");
    let mut token = person.command(ONEPORT);
    let made = run(token.args(["token", "--ttl", "5m", "--key"]).arg(&public)).stdout;
    assert_eq!(House::new().bearer(made.trim()).status, 200);

    run(Command::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "secret", "-f"]).arg(&key));
    let mut locked = Command::new("setsid");
    locked.args(["-w", ONEPORT, "token", "--key"]).arg(&key);
    let locked = Process::run(&mut locked, SOON);
    assert!(locked.stderr.contains("is locked") && locked.stderr.contains("terminal"), "{locked:?}");
    // On a terminal it is asked for.
    let mut asked = Command::new("script");
    asked.args(["-qec", &format!("{ONEPORT} token --profile --key {}", key.display()), "/dev/null"]);
    let mut asked = Process::start(&mut asked);
    asked.out.wait_for("Passphrase of", SOON);
    asked.write(b"secret\n");
    assert!(asked.finish(SOON).stdout.contains(&profile("ed25519a")));

    let short = dir.path().join("short");
    run(Command::new("ssh-keygen").args(["-q", "-t", "rsa", "-b", "1024", "-N", "", "-f"]).arg(&short));
    let refused = oneport_token(&[], &short);
    assert!(!refused.status.success() && refused.stderr.contains("cannot sign tokens"), "{refused:?}");
    let absent = oneport_token(&[], &dir.path().join("absent"));
    assert!(absent.stderr.contains("cannot read the key"), "{absent:?}");
}
