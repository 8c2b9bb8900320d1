//! Visitors: curl, and bytes on a TLS or TCP socket.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::gateway::Gateway;
use super::process::Process;

/// How long a raw visitor waits for bytes.
const READ_LIMIT: Duration = Duration::from_secs(20);

/// A call of curl in the making.
pub struct Curl<'a> {
    gateway: &'a Gateway,
    to: &'static str,
    arguments: Vec<String>,
}

/// What curl got.
#[derive(Debug)]
pub struct Response {
    /// curl's own exit code.
    pub exit: i32,
    pub status: u16,
    /// `1.1` or `2`.
    pub version: String,
    /// Names in lower case, in order; heads of interim answers are left out.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub stderr: String,
}

impl<'a> Curl<'a> {
    /// curl, with every host led to the gateway's port and its authority trusted.
    pub fn new(gateway: &'a Gateway) -> Self {
        let curl = Self { gateway, to: "127.0.0.1", arguments: Vec::new() };
        let ca = gateway.ca().display().to_string();
        curl.args(&["-sS", "--max-time", "90", "--path-as-is", "--cacert", &ca])
    }

    pub fn http1(self) -> Self {
        self.args(&["--http1.1"])
    }

    pub fn http2(self) -> Self {
        self.args(&["--http2"])
    }

    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Comes from this address of loopback, such as `127.0.0.2` or `::1`.
    pub fn from(mut self, address: &str) -> Self {
        if address.contains(':') {
            self.to = "[::1]";
        }
        self.args(&["--interface", address])
    }

    pub fn header(self, line: &str) -> Self {
        self.args(&["-H", line])
    }

    /// The whole command line, with the answer on standard output.
    pub fn build(&self, url: &str) -> Command {
        let to = format!("::{}:{}", self.to, self.gateway.address().port());
        let mut command = Command::new("curl");
        // The first that fits counts, so that a test may lead elsewhere.
        command.args(&self.arguments).args(["--connect-to", &to]).arg(url);
        command
    }

    /// Calls, whatever the outcome.
    #[track_caller]
    pub fn call(self, url: &str) -> Response {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (head, body) = (dir.path().join("head"), dir.path().join("body"));
        let mut command = self.build(url);
        command.arg("-D").arg(&head).arg("-o").arg(&body).args(["-w", "%{http_code} %{http_version}"]);
        let output = Process::run(&mut command, Duration::from_secs(100));
        let (status, version) = output.stdout.split_once(' ').unwrap_or(("0", ""));
        Response {
            exit: output.status.code().unwrap_or(-1),
            status: status.parse().unwrap_or(0),
            version: version.to_owned(),
            headers: last_head(&std::fs::read_to_string(&head).unwrap_or_default()),
            body: std::fs::read(&body).unwrap_or_default(),
            stderr: output.stderr,
        }
    }

    /// Calls, and expects an answer.
    #[track_caller]
    pub fn get(self, url: &str) -> Response {
        let response = self.call(url);
        assert_eq!(response.exit, 0, "curl {url}: {}", response.stderr);
        response
    }
}

/// The header fields of the last head in what `curl -D` wrote (trailers follow it without a
/// status line and count as part of it).
fn last_head(text: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    for line in text.lines() {
        if line.starts_with("HTTP/") {
            fields.clear();
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    fields
}

impl Response {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// A TLS connection to the gateway with everything in the visitor's hands.
pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A TCP connection to the single port.
#[track_caller]
pub fn tcp(gateway: &Gateway) -> TcpStream {
    tcp_to(gateway.address())
}

/// A TCP connection with a limit on every read.
#[track_caller]
pub fn tcp_to(address: std::net::SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the gateway listens");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(READ_LIMIT)).expect("a socket");
    stream.set_write_timeout(Some(READ_LIMIT)).expect("a socket");
    stream
}

/// A TLS client's side that trusts the authority and offers `alpn`.
pub fn tls_config(ca: PathBuf, alpn: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// A TLS client that sends `sni` if given.
pub fn tls_client(ca: PathBuf, sni: Option<&str>, alpn: &[&str]) -> ClientConnection {
    let mut config = tls_config(ca, alpn);
    config.enable_sni = sni.is_some();
    // Without SNI, the certificate shown is the first one, which is good for this name.
    let name = ServerName::try_from(sni.unwrap_or("gw.test").to_owned()).expect("a host name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}

/// A finished handshake, or the error that ended it.
pub fn tls(gateway: &Gateway, sni: Option<&str>, alpn: &[&str]) -> io::Result<Tls> {
    let mut stream = StreamOwned::new(tls_client(gateway.ca(), sni, alpn), tcp(gateway));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// A finished handshake of an asynchronous client with `sni`.
pub async fn tls_async(
    gateway: &Gateway,
    sni: &str,
    alpn: &[&str],
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    tls_async_from(Ipv4Addr::LOCALHOST.into(), gateway, sni, alpn).await
}

/// The same from another address.
pub async fn tls_async_from(
    from: IpAddr,
    gateway: &Gateway,
    sni: &str,
    alpn: &[&str],
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let config = Arc::new(tls_config(gateway.ca(), alpn));
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from, 0)).expect("a loopback address");
    let tcp = socket.connect(gateway.address()).await.expect("the gateway listens");
    tcp.set_nodelay(true).expect("a socket");
    let name = ServerName::try_from(sni.to_owned()).expect("a host name");
    tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.expect("a handshake")
}

/// Reads to the end of the stream. A reset, or an end without close_notify, is an end too.
#[track_caller]
pub fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if is_end(&error) => return all,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&all)),
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
    )
}

/// Reads until `stop` is in what was read.
#[track_caller]
pub fn read_until(stream: &mut impl Read, stop: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 1];
    while !all.ends_with(stop.as_bytes()) {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("ended before {stop:?}: {:?}", String::from_utf8_lossy(&all)),
            Ok(_) => all.push(buffer[0]),
            Err(error) => panic!("{error} before {stop:?}: {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Sends bytes over TLS as an HTTP/1.1 visitor of `host`, and reads until the gateway closes.
#[track_caller]
pub fn raw_request(gateway: &Gateway, host: &str, bytes: &[u8]) -> String {
    let mut stream = tls(gateway, Some(host), &["http/1.1"]).expect("a handshake");
    // The gateway may have heard enough before it has all.
    let _ = stream.write_all(bytes);
    let _ = stream.flush();
    String::from_utf8_lossy(&read_to_end(&mut stream)).into_owned()
}

/// Ends the writing half of a TLS stream: close_notify, then FIN.
pub fn half_close(stream: &mut Tls) {
    stream.conn.send_close_notify();
    let _ = stream.conn.complete_io(&mut stream.sock);
    let _ = stream.sock.shutdown(Shutdown::Write);
}
