//! A permit that no longer holds ends what is open by it, with its own reason, and nothing else.

use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use crate::issuers::{order, set_of};
use crate::private::{House, claims_of, jose, now, private_key, token_of, url};
use crate::support::agent::{OpenSsh, host, public_key};
use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::visitor::{Curl, Tls, read_to_end, read_until, tls};
use crate::support::{SOON, poll};

/// What curl says of an answer that was cut: over HTTP/1.1 (18: too short) and over HTTP/2 (92: the
/// stream was reset).
const CUT: [i32; 2] = [18, 92];

/// A visitor with server-sent events, of which the first has come.
pub(crate) struct Events(Process);

impl Events {
    #[track_caller]
    fn open(gateway: &Gateway, token: Option<&str>, version: &str, url: &str) -> Self {
        let header = token.map_or("X-Nobody: 1".to_owned(), |token| format!("Authorization: Bearer {token}"));
        Self::with(gateway, &header, version, url)
    }

    #[track_caller]
    pub(crate) fn with(gateway: &Gateway, header: &str, version: &str, url: &str) -> Self {
        Self::of(Curl::new(gateway).args(&[version]).header(header), url)
    }

    #[track_caller]
    pub(crate) fn of(curl: Curl<'_>, url: &str) -> Self {
        let process = Process::start(&mut curl.args(&["-N"]).build(url));
        process.out.wait_for("data: one", SOON);
        Self(process)
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.has_ended().is_some()
    }

    #[track_caller]
    pub(crate) fn is_cut(&mut self) {
        let output = self.0.finish(SOON);
        assert!(output.status.code().is_some_and(|code| CUT.contains(&code)), "{output:?}");
        assert!(!output.stdout.contains("two"), "{output:?}");
    }
}

/// Those that live get the rest.
#[track_caller]
pub(crate) fn go_on(living: &mut [Events], backend: &Backend) {
    for events in &mut *living {
        assert!(events.0.has_ended().is_none(), "{}", events.0.err);
    }
    // Those that were cut may still wait at the same gate.
    (0..20).for_each(|_| backend.release());
    for events in living {
        let output = events.0.finish(SOON);
        assert!(output.status.success() && output.stdout.contains("two"), "{output:?}");
    }
}

/// A stream that speaks another protocol.
fn switched(gateway: &Gateway, token: &str) -> Tls {
    switched_with(gateway, &format!("Authorization: Bearer {token}"))
}

/// The same, with this line in its head.
pub(crate) fn switched_with(gateway: &Gateway, header: &str) -> Tls {
    let mut stream = tls(gateway, Some(&host("web")), &["http/1.1"]).expect("a handshake");
    let head = format!(
        "GET /tcp HTTP/1.1\r\nHost: {}\r\n{header}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        host("web")
    );
    stream.write_all(head.as_bytes()).expect("open");
    assert!(read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 101"));
    stream
}

#[track_caller]
pub(crate) fn still_talks(stream: &mut Tls) {
    stream.write_all(b"still here").expect("open");
    read_until(stream, "STILL HERE");
}

/// Waits for so many records of a path that end with a reason.
#[track_caller]
pub(crate) fn wait_records(gateway: &Gateway, path: &str, reason: &str, count: usize) {
    let of = || {
        let log = gateway.log();
        log.iter().filter(|record| record["path"] == path && record["reason"] == reason).count()
    };
    poll(&format!("{count} records of {path} with {reason}"), SOON, || (of() == count).then_some(()));
}

#[test]
fn what_a_token_opened_ends_with_it() {
    let mut setup = Setup::new();
    setup.with_figures();
    let house = House::of(setup);
    let (gateway, backend) = (&house.gateway, &house.backend);
    let mut short = claims_of("ed25519a");
    // It holds for what clocks may be apart, 30 s, of which 5 s are left.
    short["exp"] = (now() - 25).into();
    let order = json!({ "key": private_key("ed25519a"), "alg": "EdDSA", "claims": short });
    let mut tokens = jose(
        &json!([order, { "key": private_key("ed25519a"), "alg": "EdDSA", "claims": claims_of("ed25519a") }]),
    );
    let (short, long) = (tokens.remove(0), tokens.remove(0));
    let mut ending = ["--http1.1", "--http2"].map(|v| Events::open(gateway, Some(&short), v, &url("/sse")));
    let mut living = ["--http1.1", "--http2"].map(|v| Events::open(gateway, Some(&long), v, &url("/sse")));
    let (mut shell, mut long_shell) = (switched(gateway, &short), switched(gateway, &long));
    let bearer = format!("Authorization: Bearer {short}");
    let ask = |arguments: &[&str], path: &str| {
        Process::start(&mut Curl::new(gateway).args(arguments).header(&bearer).build(&url(path)))
    };
    // Before there is an answer, and while the visitor takes next to nothing of it.
    let mut held = ask(&["-i"], "/held");
    let mut slow = ["--http1.1", "--http2"].map(|version| ask(&[version, "--limit-rate", "1"], "/big"));
    still_talks(&mut shell);

    ending.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    let held = held.finish(SOON).stdout;
    assert!(held.contains(" 401") && held.contains("permit-expired"), "{held}");
    assert!(held.contains("invalid_token"), "{held}");
    wait_records(gateway, "/sse", "permit-expired", 2);
    wait_records(gateway, "/big", "permit-expired", 2);
    wait_records(gateway, "/tcp", "permit-expired", 1);
    wait_records(gateway, "/held", "permit-expired", 1);
    let figure = "oneport_http_requests_total{reason=\"permit-expired\",status=\"2xx\"}";
    assert_eq!(gateway.figure(figure), 4);
    slow.iter_mut().for_each(|slow| slow.signal(rustix::process::Signal::KILL));

    still_talks(&mut long_shell);
    go_on(&mut living, backend);
    let again = house.bearer(&short);
    assert!(again.status == 401 && again.text().contains("expired 3"), "{again:?}");
}

fn write(path: &Path, text: &str) {
    // As editors and Kubernetes do: whole, or not at all.
    let next = path.with_extension("next");
    std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, path)).expect("writable");
}

#[test]
fn what_an_issuers_key_opened_ends_when_it_is_withdrawn() {
    let mut setup = Setup::new();
    let file = setup.path("keys.json");
    write(&file, &set_of(&["ecdsa256", "rsa2048"]));
    let issuer = [("name", "id.test"), ("jwks", "keys.json")];
    let issuer: toml::Table =
        issuer.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    setup.set("access.issuer", vec![toml::Value::from(issuer)]);
    let house = House::of(setup);
    let (gateway, backend) = (&house.gateway, &house.backend);
    let tokens = jose(&json!([order("id.test", "ecdsa256", "ES256"), order("id.test", "rsa2048", "RS256")]));
    let own = token_of("ed25519a", "EdDSA");
    let mut ending =
        ["--http1.1", "--http2"].map(|v| Events::open(gateway, Some(&tokens[0]), v, &url("/sse")));
    let mut living =
        [&tokens[1], &own].map(|token| Events::open(gateway, Some(token), "--http2", &url("/sse")));
    let mut shell = switched(gateway, &tokens[0]);

    // A file that is not whole changes nothing.
    write(&file, "{\"keys\": [");
    gateway.wait_log("complaint", |record| {
        record["message"] == "keeping an issuer's keys as they were"
            && record["error"].as_str().is_some_and(|error| error.contains("keys.json"))
    });
    still_talks(&mut shell);
    assert_eq!(house.bearer(&tokens[0]).status, 200);

    write(&file, &set_of(&["rsa2048"]));
    ending.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    wait_records(gateway, "/sse", "issuer-key-removed", 2);
    wait_records(gateway, "/tcp", "issuer-key-removed", 1);
    let again = house.bearer(&tokens[0]);
    assert!(again.status == 401 && again.text().contains("has no key `ecdsa256`"), "{again:?}");
    assert_eq!(house.bearer(&tokens[1]).status, 200);
    go_on(&mut living, backend);
}

#[test]
fn what_an_agents_key_carries_ends_when_it_is_removed() {
    let mut setup = Setup::new();
    let list = setup.path("authorized_keys");
    write(&list, &format!("{}\n{}\n", public_key("ed25519a"), public_key("ed25519b")));
    setup.unset("ssh", "allow_any_key").set("ssh.authorized_keys", list.to_str().expect("UTF-8"));
    let house = House::of(setup);
    let (gateway, backend) = (&house.gateway, &house.backend);
    let other = OpenSsh::new(gateway).key("ed25519b").forward("/web", backend.address()).start();
    let other_url = format!("{}sse", other.hello["tunnels"]["/web"].as_str().expect("a URL"));
    let token = token_of("ed25519a", "EdDSA");
    let mut ending = ["--http1.1", "--http2"].map(|v| Events::open(gateway, Some(&token), v, &url("/sse")));
    let mut living = ["--http1.1", "--http2"].map(|v| Events::open(gateway, None, v, &other_url));
    let mut shell = switched(gateway, &token);

    write(&list, &format!("{}\n", public_key("ed25519b")));
    ending.iter_mut().for_each(Events::is_cut);
    assert_eq!(String::from_utf8_lossy(&read_to_end(&mut shell)), "");
    wait_records(gateway, "/sse", "key-removed", 2);
    wait_records(gateway, "/tcp", "key-removed", 1);
    assert_eq!(house.bearer(&token).status, 502);
    go_on(&mut living, backend);
}
