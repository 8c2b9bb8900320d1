//! `connect` against real TLS servers on ports of their own.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::ClientHello;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::Stdio;
use super::*;
use crate::certs::{DevFiles, DevIssuer, ensure_dev_certificates, load_pair};
use crate::net::Tasks;

#[derive(Debug)]
struct Fixed(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    files: DevFiles,
    tasks: Tasks,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let files = ensure_dev_certificates(dir.path()).expect("made");
        Self { _dir: dir, files, tasks: Tasks::new() }
    }

    fn trusting(&self) -> ConnectOptions {
        ConnectOptions { ca: Some(self.files.ca_cert.clone()), ..Default::default() }
    }

    /// A server that greets, sends everything back, and closes after the client's end.
    async fn echo(&self, alpn: &[&str]) -> String {
        let key = load_pair(&self.files.leaf_pair()).expect("a pair").key;
        self.serve(key, alpn).await
    }

    async fn serve(&self, key: Arc<rustls::sign::CertifiedKey>, alpn: &[&str]) -> String {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Fixed(key)));
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        self.listen(move |tcp| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut text = Vec::new();
                let _ = tls.write_all(b"hello ").await;
                let _ = tls.read_to_end(&mut text).await;
                let _ = tls.write_all(&text).await;
                let _ = tls.shutdown().await;
            }
        })
        .await
    }

    async fn listen<F>(&self, serve: impl Fn(TcpStream) -> F + Send + 'static) -> String
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        self.tasks.spawn("test server", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                serve(tcp).await;
            }
        });
        format!("127.0.0.1:{port}")
    }
}

async fn fault(target: &str, options: &ConnectOptions) -> String {
    dial(target, options).await.map(drop).expect_err("must fail").to_string()
}

#[test]
fn targets() {
    let parse = |target: &str| parse_target(target).map(|(host, port)| (bare(&host).to_owned(), port));
    assert_eq!(parse("Example.com:8443").expect("valid"), ("example.com".to_owned(), 8443));
    assert_eq!(parse("example.com").expect("valid"), ("example.com".to_owned(), 443));
    assert_eq!(parse("::1:8443").expect("valid"), ("::1".to_owned(), 8443));
    assert_eq!(parse("[::1]:8443").expect("valid"), ("::1".to_owned(), 8443));
    for bad in ["", ":443", "a:b", "a:0", "a b:443", "https://a:443"] {
        assert!(parse(bad).is_err(), "{bad:?} was taken");
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_end_of_input_is_passed_on() {
    let bench = Bench::new();
    let target = bench.echo(&["h2", "ssh"]).await;
    let (mine, theirs) = tokio::io::duplex(64 * 1024);
    let (mut taken, mut given) = tokio::io::split(mine);
    let (input, output) = tokio::io::split(theirs);
    let options = bench.trusting();
    let work = connect(&target, &options, Stdio::new(input, output));
    let person = async {
        given.write_all(b"world").await.expect("taken");
        given.shutdown().await.expect("taken");
        let mut text = String::new();
        let mut octets = [0; 64];
        while text.len() < "hello world".len() {
            let count = taken.read(&mut octets).await.expect("readable");
            text.push_str(std::str::from_utf8(&octets[..count]).expect("text"));
        }
        text
    };
    let (ended, text) = tokio::join!(work, person);
    ended.expect("a clean end");
    assert_eq!(text, "hello world");
}

#[tokio::test]
async fn ends_when_the_server_closes_though_input_stays_open() {
    let bench = Bench::new();
    let key = load_pair(&bench.files.leaf_pair()).expect("a pair").key;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Fixed(key)));
    config.alpn_protocols = vec![b"ssh".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    // Once with TLS's farewell and once without.
    for is_clean in [true, false] {
        let acceptor = acceptor.clone();
        let target = bench
            .listen(move |tcp| {
                let acceptor = acceptor.clone();
                async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let _ = tls.flush().await;
                    if is_clean {
                        let _ = tls.shutdown().await;
                    }
                }
            })
            .await;
        let (_open, theirs) = tokio::io::duplex(1024);
        let (input, output) = tokio::io::split(theirs);
        timeout(Duration::from_secs(20), connect(&target, &bench.trusting(), Stdio::new(input, output)))
            .await
            .expect("an end in time")
            .expect("a clean end");
    }
}

#[tokio::test]
async fn certificates_are_verified_and_faults_named() {
    let bench = Bench::new();
    let target = bench.echo(&["ssh"]).await;
    let absent = Path::new("/nonexistent/ca.pem");
    assert!(fault(&target, &with_ca(absent)).await.starts_with("cannot read `/nonexistent/ca.pem`"));
    let no_ca = with_ca(&bench.files.key);
    assert!(fault(&target, &no_ca).await.starts_with("no certificate in `"));

    let strangers = Bench::new();
    let text = fault(&target, &strangers.trusting()).await;
    assert!(text.contains("not trusted") && text.contains("`--ca FILE`"), "{text}");

    let named = |name: &str| ConnectOptions { server_name: Some(name.to_owned()), ..bench.trusting() };
    let text = fault(&target, &named("example.com")).await;
    assert!(text.contains("not for `example.com` but for `localhost`, `127.0.0.1`"), "{text}");
    assert!(dial(&target, &named("localhost")).await.is_ok());
    assert!(dial(&target, &bench.trusting()).await.is_ok());

    let insecure = ConnectOptions { insecure: true, server_name: Some("x.test".to_owned()), ca: None };
    assert!(dial(&target, &insecure).await.is_ok());

    let issuer = DevIssuer::load(&bench.files.ca_pair()).expect("a pair");
    let host = HostName::parse("web-abc.localhost").expect("valid");
    let target = bench.serve(issuer.issue(&host).expect("made").key.clone(), &["ssh"]).await;
    assert!(dial(&target, &named("web-abc.localhost")).await.is_ok());
}

#[tokio::test]
async fn other_servers_are_told_apart() {
    let bench = Bench::new();
    let options = bench.trusting();
    let no_alpn = bench.echo(&[]).await;
    let only_web = bench.echo(&["h2", "http/1.1"]).await;
    for target in [no_alpn, only_web] {
        let text = fault(&target, &options).await;
        assert!(text.contains("speaks TLS but not oneport's `ssh` protocol"), "{text}");
    }
    let greeting = bench
        .listen(|mut tcp| async move {
            let _ = tcp.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await;
            let _ = tcp.read_to_end(&mut Vec::new()).await;
        })
        .await;
    assert!(fault(&greeting, &options).await.contains("does not speak TLS"));
    let closing = bench.listen(|tcp| async move { drop(tcp) }).await;
    assert!(fault(&closing, &options).await.contains("closed the connection before TLS"));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
    let text = fault(&free.to_string(), &options).await;
    assert!(text.contains("refused the connection (127.0.0.1)"), "{text}");
    assert!(
        fault("no-such-host.invalid:443", &options).await.starts_with("cannot find `no-such-host.invalid`")
    );
}

fn with_ca(path: &Path) -> ConnectOptions {
    ConnectOptions { ca: Some(path.to_owned()), ..Default::default() }
}
