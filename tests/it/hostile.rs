//! Visitors and services that do not mean well: what one does must not reach another.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::agent::{Agent, OpenSsh, host};
use crate::support::backend::{self, Backend};
use crate::support::gateway::Gateway;
use crate::support::visitor::{Curl, read_to_end, read_until, tls};
use crate::support::{SOON, poll};

fn url(path: &str) -> String {
    format!("https://{}{path}", host("web"))
}

#[test]
fn a_preflight_is_no_way_into_a_private_tunnel() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = OpenSsh::new(&gateway).forward("/web#access=private", backend.address()).start();
    let host = host("web");
    for more in [
        "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "Upgrade: tcp\r\n\r\n",
        "Content-Length: 3\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        let request = format!("OPTIONS /tcp HTTP/1.1\r\nHost: {host}\r\n{more}");
        let mut stream = tls(&gateway, Some(&host), &["http/1.1"]).expect("connects");
        stream.write_all(request.as_bytes()).expect("open");
        let answer = read_until(&mut stream, "\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 401 "), "{more:?}: {answer}");
    }
    assert_eq!(backend.requests(), 0);
    // What a browser sends before a request from another site passes.
    Curl::new(&gateway)
        .args(&["-X", "OPTIONS"])
        .header("Origin: https://other.test")
        .header("Access-Control-Request-Method: GET")
        .get(&url("/small"));
    assert_eq!(backend.requests(), 1);
}

#[test]
fn what_is_sent_after_an_early_answer_is_nobodys_request() {
    // Answers the head half-way, waits for a sign, and then takes whatever comes as a request.
    let (sign, signs) = std::sync::mpsc::channel::<()>();
    let signs = Arc::new(parking_lot::Mutex::new(signs));
    let address = backend::raw(move |mut stream, _| {
        loop {
            let mut first = [0];
            if !matches!(stream.read(&mut first), Ok(1)) {
                return;
            }
            let head = String::from_utf8_lossy(&first).into_owned() + &read_until(&mut stream, "\r\n\r\n");
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", path.len());
            let _ = stream.write_all(answer.as_bytes());
            if path == "/early" {
                let _ = signs.lock().recv();
            }
            let _ = stream.write_all(path.as_bytes());
        }
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {}\r\n\r\n", host("web"));
    let mut stream = tls(&gateway, Some(&host("web")), &["http/1.1"]).expect("connects");
    let head = format!(
        "POST /early HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
        host("web"),
        smuggled.len()
    );
    stream.write_all(head.as_bytes()).expect("open");
    read_until(&mut stream, "\r\n\r\n");
    stream.write_all(smuggled.as_bytes()).expect("open");
    sign.send(()).expect("the service waits");
    read_to_end(&mut stream);
    for _ in 0..3 {
        assert_eq!(Curl::new(&gateway).get(&url("/mine")).text(), "/mine");
    }
}

#[test]
fn answers_of_unknown_length_keep_the_connection_and_are_recorded_as_whole() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let address = backend::raw(move |mut stream, _| {
        count.fetch_add(1, Ordering::Relaxed);
        loop {
            let mut first = [0];
            if !matches!(stream.read(&mut first), Ok(1)) {
                return;
            }
            read_until(&mut stream, "\r\n\r\n");
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    for version in ["--http1.1", "--http2", "--http1.1", "--http2"] {
        assert_eq!(Curl::new(&gateway).args(&[version]).get(&url("/")).text(), "ok");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1, "the connection was not kept");
    let answered = |record: &serde_json::Value| record["reason"] == "answered";
    poll("records of four answers", SOON, || {
        (gateway.log().iter().filter(|record| answered(record)).count() == 4).then_some(())
    });
}

#[test]
fn a_refused_upgrade_goes_on_saying_which_protocol_would_do() {
    let address = backend::raw(|mut stream, _| {
        read_until(&mut stream, "\r\n\r\n");
        let answer = "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes());
    });
    let gateway = Gateway::start();
    let _agent = Agent::web(&gateway, address);
    let response = Curl::new(&gateway).http1().get(&url("/"));
    assert_eq!((response.status, response.header("upgrade")), (426, Some("websocket")), "{response:?}");
}
