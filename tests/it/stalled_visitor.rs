//! One visitor who stops reading never stops the others, not even those of the same agent.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::StreamOwned;
use socket2::{Domain, Socket, Type};

use crate::support::agent::{Agent, host};
use crate::support::backend::Backend;
use crate::support::gateway::Gateway;
use crate::support::visitor::{self, Curl};

/// A visitor who begins a download of 64 MiB and then takes nothing more.
fn stalled(gateway: &Gateway) -> visitor::Tls {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    // So that the kernel does not take much for them either.
    socket.set_recv_buffer_size(8 * 1024).expect("a socket");
    socket.connect(&gateway.address().into()).expect("the gateway listens");
    let client = visitor::tls_client(gateway.ca(), Some(&host("web")), &["http/1.1"]);
    let mut stream = StreamOwned::new(client, TcpStream::from(socket));
    let request = format!("GET /big?mb=64 HTTP/1.1\r\nHost: {}\r\n\r\n", host("web"));
    stream.write_all(request.as_bytes()).expect("open");
    let mut head = [0; 512];
    assert!(stream.read(&mut head).expect("an answer") > 0);
    stream
}

#[test]
fn small_requests_go_on_beside_three_stalled_downloads() {
    let (gateway, backend) = (Gateway::start(), Backend::start());
    let _agent = Agent::web(&gateway, backend.address());
    let mut stalled: Vec<_> = (0..3).map(|_| stalled(&gateway)).collect();
    for _ in 0..30 {
        let before = Instant::now();
        let response = Curl::new(&gateway).get(&format!("https://{}/small", host("web")));
        assert_eq!(response.text(), "small");
        assert!(before.elapsed() < Duration::from_secs(3), "took {:?}", before.elapsed());
    }
    // A big one, too.
    let response = Curl::new(&gateway).get(&format!("https://{}/big?mb=16", host("web")));
    assert_eq!(crate::support::sha256(&response.body), crate::support::backend::big_sha256(16));
    // And they can go on where they stopped.
    let mut rest = vec![0; 1 << 20];
    for stream in &mut stalled {
        stream.sock.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        stream.read_exact(&mut rest).expect("the download goes on");
    }
}
