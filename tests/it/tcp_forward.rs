//! Standard TCP forwards, for people who know `ssh -R` and nothing else.

use crate::support::SOON;
use crate::support::agent::OpenSsh;
use crate::support::backend::{Backend, nobody};
use crate::support::gateway::Gateway;
use crate::support::poll;
use crate::support::visitor::Curl;

#[track_caller]
fn is_served_at(gateway: &Gateway, name: &str) {
    let url = format!("https://{name}-dzk582uo.gw.test/small");
    let text = poll("tunnel", SOON, || {
        let response = Curl::new(gateway).get(&url);
        (response.status == 200).then(|| response.text())
    });
    assert_eq!(text, "small");
}

#[test]
fn a_bind_address_is_the_name() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).forward("web:80", backend.address()).args(&["-N"]).spawn();
    is_served_at(&gateway, "web");
}

#[test]
fn hello_lists_it() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let agent = OpenSsh::new(&gateway).forward("web:443", backend.address()).start();
    let tunnels = agent.hello["tunnels"].as_object().expect("an object");
    assert!(tunnels.values().any(|url| url == "https://web-dzk582uo.gw.test/"), "{tunnels:?}");
}

#[test]
fn without_a_name_it_is_the_users() {
    for port in ["0", "80"] {
        let (gateway, backend) = (Gateway::start(), Backend::start());
        let _agent =
            OpenSsh::new(&gateway).user("alice").forward(port, backend.address()).args(&["-N"]).spawn();
        is_served_at(&gateway, "alice");
    }
}

#[test]
fn another_port_is_refused_with_a_reason_that_the_person_sees() {
    let gateway = Gateway::start();
    for more in [&["-N"][..], &[]] {
        let output = OpenSsh::new(&gateway).forward("8080", nobody()).args(more).run();
        assert_ne!(output.status.code(), Some(0), "{output:?}");
        let words = output.stdout.clone() + &output.stderr;
        assert!(words.contains("8080") && words.contains("not offered"), "a bare refusal: {output:?}");
    }
    gateway.wait_reason("port-not-offered");
}
