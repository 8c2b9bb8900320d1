//! An agent with nothing but OpenSSH: through `oneport connect`, through `openssl s_client`, and
//! what it can ask.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::agent::{Agent, OpenSsh, Via, host};
use crate::support::backend::{Backend, nobody};
use crate::support::gateway::{Gateway, Setup};
use crate::support::process::Process;
use crate::support::visitor::Curl;
use crate::support::{poll, visitor};

fn serves(via: Via) {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).via(via).forward("/web", backend.address()).start();
    let response = Curl::new(&gateway).get(&format!("https://{}/echo?x=1", host("web")));
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["target"], "/echo?x=1");
}

#[test]
fn through_oneport_connect() {
    serves(Via::Connect);
}

#[test]
fn through_s_client_with_alpn() {
    serves(Via::SClient { alpn: true });
}

#[test]
fn through_s_client_without_alpn() {
    serves(Via::SClient { alpn: false });
}

#[test]
fn through_the_plain_listener_of_a_move() {
    let mut setup = Setup::new();
    setup.set("plain.ssh", vec!["127.0.0.1:0"]);
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).via(Via::PlainListener).forward("/web", backend.address()).start();
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
}

#[test]
fn through_the_single_port_raw_if_allowed() {
    let mut setup = Setup::new();
    setup.set("ssh.raw", true);
    let (gateway, backend) = (setup.start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).via(Via::Raw).forward("/web", backend.address()).start();
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
}

#[test]
fn a_session_that_ends_by_itself_is_no_broken_one() {
    let gateway = Gateway::start();
    for _ in 0..5 {
        assert!(OpenSsh::new(&gateway).command("hello").run().status.success());
    }
    let ends = |log: &str| {
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.filter(|record| record["message"] == "session ended").collect::<Vec<_>>()
    };
    let ends = poll("five ends", SOON, || Some(ends(&gateway.stderr())).filter(|ends| ends.len() == 5));
    let reasons: Vec<_> = ends.iter().map(|end| &end["reason"]).collect();
    assert!(reasons.iter().all(|reason| *reason == "finished"), "{reasons:?}");
}

#[test]
fn hello_without_forwards_says_who_we_are_and_ends() {
    let gateway = Gateway::start();
    let output = OpenSsh::new(&gateway).command("hello").run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let line = output.stdout.strip_suffix("\r\n").unwrap_or_else(|| panic!("no CRLF at the end: {output:?}"));
    assert!(!line.contains(['\r', '\n']), "more than one line: {output:?}");
    let hello: Value = serde_json::from_str(line).expect("one JSON object");
    assert_eq!(
        hello,
        json!({
            "clientId": "dzk582uo",
            "tunnels": {},
            "rootUrl": "https://gw.test/",
            "baseUrl": { "hostname": "gw.test", "port": "", "protocol": "https:" },
        })
    );
}

#[test]
fn hello_with_forwards_lists_them_and_goes_on_running() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let mut agent = OpenSsh::new(&gateway)
        .forward("/web", backend.address())
        .forward("/A.b#access=private", backend.address())
        .start();
    let tunnels = agent.hello["tunnels"].as_object().expect("an object").clone();
    assert_eq!(tunnels["/web"], "https://web-dzk582uo.gw.test/");
    assert!(
        tunnels["/A.b#access=private"].as_str().expect("a URL").starts_with("https://a-b-"),
        "{tunnels:?}"
    );
    assert_eq!(tunnels.len(), 2);
    for _ in 0..3 {
        assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("web"))).text(), "small");
    }
    assert!(agent.process.has_ended().is_none(), "ended: {}", agent.process.err);
}

#[test]
fn hello_names_the_port_that_is_not_the_schemes_own() {
    let mut setup = Setup::new();
    setup.set("base_url", "https://gw.test:8443");
    let gateway = setup.start();
    let agent = OpenSsh::new(&gateway).forward("/web", nobody()).start();
    assert_eq!(
        agent.hello["baseUrl"],
        json!({ "hostname": "gw.test", "port": "8443", "protocol": "https:" })
    );
    assert_eq!(agent.hello["rootUrl"], "https://gw.test:8443/");
    assert_eq!(agent.hello["tunnels"]["/web"], "https://web-dzk582uo.gw.test:8443/");
}

#[test]
fn tunnel_url_answers_whether_or_not_tunnels_exist() {
    let gateway = Gateway::start();
    let output = OpenSsh::new(&gateway).command("tunnel-url web /Test").run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let urls: Value = serde_json::from_str(output.stdout.trim()).expect("a JSON object");
    assert_eq!(
        urls,
        json!({ "web": "https://web-dzk582uo.gw.test/", "/Test": "https://test-dlxm-dzk582uo.gw.test/" })
    );
}

/// OpenSSH asks for ChaCha20 first, which costs both ends several times as much.
#[test]
fn aes_gcm_is_agreed_on_unless_the_agent_has_nothing_but_another() {
    let gateway = Gateway::start();
    let ciphers = |arguments: &[&str]| {
        let output = OpenSsh::new(&gateway).args(&["-v"]).args(arguments).command("hello").run();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let agreed = |line: &str| line.split_once(">client cipher: ")?.1.split(' ').next().map(str::to_owned);
        output.stderr.lines().find_map(agreed).unwrap_or_else(|| panic!("no cipher in {output:?}"))
    };
    assert_eq!(ciphers(&[]), "aes128-gcm@openssh.com");
    assert_eq!(ciphers(&["-c", "aes256-ctr,aes256-gcm@openssh.com"]), "aes256-gcm@openssh.com");
    let chacha = "chacha20-poly1305@openssh.com";
    assert_eq!(ciphers(&["-c", chacha]), chacha);
}

#[test]
fn an_unknown_command_fails_and_says_which_there_are() {
    let gateway = Gateway::start();
    let output = OpenSsh::new(&gateway).command("r\u{1b}m -rf /").run();
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = &output.stderr;
    assert!(said.contains(r"there is no command `r\u{1b}m` here; there are `hello`, "), "{said:?}");
}

#[test]
fn a_cancelled_forward_is_gone_and_can_be_had_again() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let socket = gateway.path("control");
    let control = format!("ControlPath={}", socket.display());
    let _agent = OpenSsh::new(&gateway)
        .args(&["-M", "-o", &control])
        .forward("/web", backend.address())
        .forward("/other", backend.address())
        .start();
    let url = format!("https://{}/small", host("web"));
    assert_eq!(Curl::new(&gateway).get(&url).status, 200);
    let ask = |what: &str| {
        let forward = format!("/web:127.0.0.1:{}", backend.address().port());
        let arguments = ["-F", "none", "-o", &control, "-O", what, "-R", &forward, "localhost"];
        let output = Process::run(std::process::Command::new("ssh").args(arguments), SOON);
        assert!(output.status.success(), "ssh -O {what}: {output:?}");
    };
    ask("cancel");
    poll("end of the tunnel", SOON, || (Curl::new(&gateway).get(&url).status == 502).then_some(()));
    assert_eq!(Curl::new(&gateway).get(&format!("https://{}/small", host("other"))).status, 200);
    ask("forward");
    assert_eq!(Curl::new(&gateway).get(&url).status, 200);
}

#[test]
fn the_end_of_the_connection_removes_all() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let mut agent = Agent::web(&gateway, backend.address());
    agent.kill();
    let url = format!("https://{}/small", host("web"));
    poll("end of the tunnel", SOON, || (Curl::new(&gateway).get(&url).status == 502).then_some(()));
}

#[test]
fn the_same_request_twice_is_refused_in_words() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    // OpenSSH itself would merge equal forwards, so one differs in what it leads to.
    let output = OpenSsh::new(&gateway)
        .forward("/web", backend.address())
        .forward("/web", nobody())
        .args(&["-N"])
        .run();
    assert_ne!(output.status.code(), Some(0));
    assert!(output.stderr.contains("/web") && output.stderr.contains("already"), "{output:?}");
    gateway.wait_reason("duplicate-forward");
}

#[test]
fn a_malformed_request_is_refused_in_words() {
    let gateway = Gateway::start();
    for (request, word) in
        [("/web#access=secret", "secret"), ("/web#foo=bar", "foo"), ("/web#meta=!!!", "meta")]
    {
        let output = OpenSsh::new(&gateway).forward(request, nobody()).run();
        assert_ne!(output.status.code(), Some(0), "{output:?}");
        let words = output.stdout.clone() + &output.stderr;
        assert!(words.contains(word) && words.contains("invalid"), "a bare refusal of {request}: {output:?}");
    }
    gateway.wait_reason("bad-forward");
}

#[test]
fn a_session_without_a_command_shows_what_is_exposed_and_what_comes() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    // -tt: a terminal, although standard input is a pipe.
    let mut ssh = OpenSsh::new(&gateway).args(&["-tt"]).forward("/web", backend.address()).spawn();
    let shown = ssh.out.wait_for("https://web-dzk582uo.gw.test/", SOON);
    assert!(shown.contains("public"), "no access level: {shown:?}");
    Curl::new(&gateway).get(&format!("https://{}/echo/seen-by-the-agent?token=secret", host("web")));
    let shown = ssh.out.wait_for("/echo/seen-by-the-agent", SOON);
    assert!(shown.contains("GET"), "{shown:?}");
    assert!(!shown.contains("secret"), "a query was shown: {shown:?}");
    ssh.write(b"q");
    let status = ssh.exit(SOON);
    assert_eq!(status.code(), Some(0), "{} {}", ssh.out, ssh.err);
}

#[test]
fn a_session_without_a_command_ends_on_control_c() {
    let gateway = Gateway::start();
    let mut ssh = OpenSsh::new(&gateway).args(&["-tt"]).forward("/web", nobody()).spawn();
    ssh.out.wait_for("https://web-dzk582uo.gw.test/", SOON);
    ssh.write(b"\x03");
    ssh.exit(SOON);
}

#[test]
fn names_may_hold_anything() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let agent = OpenSsh::new(&gateway).forward("/dir/Ünï_x", backend.address()).start();
    let url =
        agent.hello["tunnels"]["/dir/Ünï_x"].as_str().expect("byte for byte what was asked for").to_owned();
    assert_eq!(Curl::new(&gateway).get(&format!("{url}small")).text(), "small");
}

#[test]
fn connect_checks_the_certificate() {
    let gateway = Gateway::start();
    let port = gateway.address().port();
    let connect = |more: &[&str]| {
        let mut command = crate::support::gateway::bare();
        command.arg("connect").args(more).arg(format!("localhost:{port}"));
        command
    };
    let output = Process::run(&mut connect(&[]), SOON);
    assert_ne!(output.status.code(), Some(0), "an unknown authority was believed: {output:?}");
    assert!(output.stderr.contains("--ca"), "it does not say what to do: {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");

    let insecure = Process::start(&mut connect(&["--insecure"]));
    insecure.out.wait_for("SSH-2.0-", SOON);
    let warning = insecure.err.to_string();
    assert!(warning.contains("WARNING") && warning.contains("--insecure"), "not loud: {warning:?}");
    insecure.signal(Signal::TERM);

    let ca = gateway.ca().display().to_string();
    let good = Process::start(&mut connect(&["--ca", &ca]));
    good.out.wait_for("SSH-2.0-", SOON);
    assert!(visitor::tls(&gateway, Some("gw.test"), &["ssh"]).is_ok());
}

#[test]
fn the_screen_goes_on_after_a_burst() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let mut ssh = OpenSsh::new(&gateway).args(&["-tt"]).forward("/web", backend.address()).spawn();
    ssh.out.wait_for("https://web-dzk582uo.gw.test/", SOON);
    // More at once than the screen's queue holds.
    let many = format!("https://{}/small?[1-600]", host("web"));
    let curl = Curl::new(&gateway).args(&["--parallel", "--parallel-max", "100", "-o", "/dev/null"]);
    let mut burst = curl.build(&many);
    assert!(Process::run(&mut burst, Duration::from_secs(60)).status.success());
    Curl::new(&gateway).get(&format!("https://{}/echo/after-the-burst", host("web")));
    ssh.out.wait_for("/echo/after-the-burst", SOON);
    ssh.write(b"q");
    ssh.exit(SOON);
}

#[test]
fn a_subsystem_is_refused_and_nobody_hangs() {
    let gateway = Gateway::start();
    let output = OpenSsh::new(&gateway).args(&["-s"]).command("sftp").run();
    assert_ne!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn two_requests_for_one_name_are_told_apart_from_a_rivals() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let output = OpenSsh::new(&gateway)
        .forward("/web", backend.address())
        .args(&["-R", &format!("web:80:{}", backend.address())])
        .run();
    let words = output.stdout.clone() + &output.stderr;
    assert!(words.contains("on this connection already"), "{output:?}");
}
