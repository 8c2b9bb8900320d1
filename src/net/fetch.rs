//! Requests to other people's HTTP servers: certificate authorities, DNS providers. One request has
//! one deadline until the last octet of its answer, and a bound for its size.
//!
//! Refuses to follow redirects, to keep cookies, and to speak anything but HTTP/1.1: what is asked
//! here is an API whose address the operator chose.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::{Tasks, pem_fault};

/// Who asks.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("oneport/", env!("CARGO_PKG_VERSION")));
/// How long an idle connection is kept.
const KEPT: Duration = Duration::from_secs(30);
/// How many idle connections to one host are kept.
const KEPT_MAX: usize = 4;

/// How requests are made.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Time from the start of a request until its answer is there, whole.
    pub deadline: Duration,
    /// Octets of an answer's body.
    pub max_body: usize,
    /// Authorities that are trusted besides the system's, in PEM.
    pub extra_roots: Option<String>,
    /// Where the operator can name them, in words for [`FetchError::Untrusted`]. `None`: nowhere.
    pub root_setting: Option<&'static str>,
    /// Whether nothing is asked but over TLS, whoever names the URL.
    pub https_only: bool,
}

impl Default for FetchOptions {
    fn default() -> Self {
        let (deadline, max_body) = (Duration::from_secs(30), 1 << 20);
        Self { deadline, max_body, extra_roots: None, root_setting: None, https_only: false }
    }
}

/// Why there is no answer. One sentence each; `host` is the host as the URL has it.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The request has no host, or is neither HTTP nor HTTPS.
    #[error("`{0}` is not a URL that can be asked; write it whole, such as `https://example.com/`")]
    BadUrl(String),
    /// Everybody on the way could read the request, and change the answer.
    #[error("`{0}` would be asked in the clear; only `https://` is asked here")]
    InTheClear(String),
    /// The name has no address, or nobody could be asked.
    #[error("`{host}` cannot be found ({cause}); check the name, and the DNS of this machine")]
    NotFound {
        /// The host.
        host: String,
        /// What the system said.
        cause: String,
    },
    /// No connection.
    #[error(
        "`{host}` cannot be reached ({cause}); check that it is up and that a firewall lets this machine out to it"
    )]
    Unreachable {
        /// The host.
        host: String,
        /// What the system said.
        cause: String,
    },
    /// Its certificate is not trusted, or TLS failed otherwise.
    #[error(
        "`{host}` cannot be trusted ({cause}); check the name and this machine's clock{}", private(*.root_setting)
    )]
    Untrusted {
        /// The host.
        host: String,
        /// What TLS said.
        cause: String,
        /// Where its authority could be named.
        root_setting: Option<&'static str>,
    },
    /// It took too long.
    #[error("`{host}` did not answer within {}s; try again later", .deadline.as_secs_f32())]
    TooSlow {
        /// The host.
        host: String,
        /// How long it had.
        deadline: Duration,
    },
    /// It sent too much.
    #[error("`{host}` sent more than {max} octets, which no answer here should have; check the URL")]
    TooLarge {
        /// The host.
        host: String,
        /// How much it might have sent.
        max: usize,
    },
    /// The answer is not HTTP, or ended early.
    #[error("`{host}` did not answer as an HTTP server does ({cause}); check the URL")]
    Broken {
        /// The host.
        host: String,
        /// What was wrong.
        cause: String,
    },
    /// No authority can be trusted at all.
    #[error("no certificate authority is known to this system ({0}); install the package `ca-certificates`")]
    NoRoots(String),
    /// The authorities given in addition are no certificates.
    #[error(
        "the additional certificate authorities are not certificates in PEM form ({0}); give a file with `-----BEGIN CERTIFICATE-----`"
    )]
    BadRoots(String),
    /// TLS itself.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes requests, over connections that are kept for a while. Clones share them; they end with
/// the last clone.
#[derive(Clone, Debug)]
pub struct Fetch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    tasks: Tasks,
    options: FetchOptions,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.cut();
    }
}

impl Fetch {
    /// As [`Fetch::new`] does, with the authorities in this file besides. Reads files: not for a busy task.
    ///
    /// # Errors
    /// With a sentence, when the file cannot be used, or there is no authority to trust.
    pub fn with_root(root: Option<&Path>, options: FetchOptions) -> Result<Self, String> {
        let setting = options.root_setting.unwrap_or("the path");
        let read = |path: &Path| {
            let unreadable =
                |error| format!("the root `{}` cannot be read: {error}; check {setting}", path.display());
            std::fs::read_to_string(path).map_err(unreadable)
        };
        let extra_roots = root.map(read).transpose()?;
        Self::new(FetchOptions { extra_roots, ..options }).map_err(|error| match (root, error) {
            (Some(root), error @ FetchError::BadRoots(_)) => format!("`{}`: {error}", root.display()),
            (_, error) => error.to_string(),
        })
    }

    /// Reads the system's authorities: not for a busy task.
    ///
    /// # Errors
    /// When there is no authority to trust.
    pub fn new(options: FetchOptions) -> Result<Self, FetchError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(options.extra_roots.as_deref())?)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // A host with several addresses gets its share of the deadline for each.
        tcp.set_connect_timeout(Some(options.deadline / 2));
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls);
        let connector = if options.https_only { connector.https_only() } else { connector.https_or_http() };
        let connector = connector.enable_http1().wrap_connector(tcp);
        let tasks = Tasks::new();
        let client = Client::builder(tasks.clone())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .pool_max_idle_per_host(KEPT_MAX)
            .build(connector);
        Ok(Self(Arc::new(Inner { client, tasks, options })))
    }

    /// Asks, and reads the answer whole, whatever its status. Cancel safe: a request that is not
    /// waited for ends.
    ///
    /// # Errors
    /// When there is no whole answer within the deadline and the bound.
    pub async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        let host = host_of(request.uri())?;
        if self.0.options.https_only && request.uri().scheme_str() != Some("https") {
            return Err(FetchError::InTheClear(request.uri().to_string()));
        }
        request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
        let FetchOptions { deadline, max_body, root_setting, .. } = self.0.options;
        let whole = async {
            let answer = self.0.client.request(request.map(Full::new)).await;
            let (head, body) = answer.map_err(|error| explain(&error, &host, root_setting))?.into_parts();
            let body = Limited::new(body, max_body).collect().await.map_err(|error| {
                let host = host.clone();
                if error.is::<LengthLimitError>() {
                    FetchError::TooLarge { host, max: max_body }
                } else {
                    FetchError::Broken { host, cause: innermost(&*error) }
                }
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        match tokio::time::timeout(deadline, whole).await {
            Ok(outcome) => outcome,
            Err(_) => Err(FetchError::TooSlow { host, deadline }),
        }
    }
}

fn roots(extra: Option<&str>) -> Result<RootCertStore, FetchError> {
    let native = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(native.certs);
    if let Some(pem) = extra {
        let more: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let more = more.map_err(|error| FetchError::BadRoots(pem_fault(&error).to_owned()))?;
        if roots.add_parsable_certificates(more).0 == 0 {
            return Err(FetchError::BadRoots("none was found".to_owned()));
        }
    }
    if roots.is_empty() {
        let cause = native.errors.first().map_or("none was found".to_owned(), ToString::to_string);
        return Err(FetchError::NoRoots(cause));
    }
    Ok(roots)
}

/// The host and port that the URL names.
fn host_of(uri: &Uri) -> Result<String, FetchError> {
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let host = uri.authority().filter(|_| is_known).map(|authority| match authority.port() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    });
    host.ok_or_else(|| FetchError::BadUrl(uri.to_string()))
}

/// What a failed request means.
fn explain(
    error: &hyper_util::client::legacy::Error,
    host: &str,
    root_setting: Option<&'static str>,
) -> FetchError {
    let host = host.to_owned();
    let cause = innermost(error);
    let chain = || std::iter::successors(Some(error as &dyn StdError), |error| cause_of(*error));
    if chain().any(|error| error.is::<rustls::Error>()) {
        return FetchError::Untrusted { host, cause, root_setting };
    }
    if !error.is_connect() {
        return FetchError::Broken { host, cause };
    }
    // The connector's error has no other sign than its words, which a test pins.
    let is_lookup = chain().any(|error| error.to_string().starts_with("dns error"));
    if is_lookup { FetchError::NotFound { host, cause } } else { FetchError::Unreachable { host, cause } }
}

fn private(root_setting: Option<&str>) -> String {
    let hint = |setting| format!(", and name its authority in {setting} where it is a private one");
    root_setting.map(hint).unwrap_or_default()
}

fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(inner) = cause_of(error) {
        error = inner;
    }
    error.to_string()
}

/// What an error was made of. One of the system's does not give what it wraps as its source, but
/// that one's source.
fn cause_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::net::{ByteStream, Duplex};

    const SMALL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsmall";

    /// Answers each request on each connection with `answer`; counts connections.
    struct Server {
        address: SocketAddr,
        ca: String,
        tasks: Tasks,
        accepted: Arc<std::sync::atomic::AtomicUsize>,
    }

    impl Server {
        async fn start(answer: &'static str, is_tls: bool) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("bound");
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .expect("a certificate");
            let acceptor = is_tls.then(|| TlsAcceptor::from(Arc::new(config)));
            let (tasks, accepted) = (Tasks::new(), Arc::<std::sync::atomic::AtomicUsize>::default());
            let (owner, count) = (tasks.clone(), accepted.clone());
            tasks.spawn("test server", async move {
                while let Ok((stream, _)) = listener.accept().await {
                    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let acceptor = acceptor.clone();
                    owner.spawn("test connection", async move {
                        let stream: ByteStream = match acceptor {
                            Some(acceptor) => match acceptor.accept(stream).await {
                                Ok(stream) => Box::new(stream),
                                Err(_) => return,
                            },
                            None => Box::new(stream),
                        };
                        serve(stream, answer).await;
                    });
                }
            });
            Self { address, ca: made.cert.pem(), tasks, accepted }
        }

        fn url(&self, scheme: &str) -> String {
            format!("{scheme}://localhost:{}/", self.address.port())
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.tasks.cut();
        }
    }

    async fn serve(mut stream: impl Duplex, answer: &str) {
        let mut seen = Vec::new();
        let mut chunk = [0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            seen.extend_from_slice(&chunk[..count]);
            if seen.ends_with(b"\r\n\r\n") {
                assert!(String::from_utf8_lossy(&seen).contains("user-agent: oneport/"));
                seen.clear();
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                if stream.write_all(answer.as_bytes()).await.is_err() || !answer.starts_with("HTTP") {
                    return;
                }
            }
        }
    }

    fn options() -> FetchOptions {
        FetchOptions { deadline: Duration::from_secs(5), max_body: 64, ..FetchOptions::default() }
    }

    fn get(url: &str) -> Request<Bytes> {
        Request::get(url).body(Bytes::new()).expect("a request")
    }

    #[tokio::test]
    async fn an_answer_comes_whole_and_the_connection_is_kept() {
        let server = Server::start(SMALL, true).await;
        let fetch =
            Fetch::new(FetchOptions { extra_roots: Some(server.ca.clone()), ..options() }).expect("made");
        for _ in 0..3 {
            let answer = fetch.send(get(&server.url("https"))).await.expect("an answer");
            assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"small"[..]));
        }
        assert_eq!(server.accepted.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn every_failure_names_the_host_and_the_cause() {
        let server = Server::start(SMALL, true).await;
        let fetch = Fetch::new(options()).expect("made");
        let said = |url: String| {
            let fetch = fetch.clone();
            async move { fetch.send(get(&url)).await.expect_err("no answer").to_string() }
        };
        let untrusted = said(server.url("https")).await;
        assert!(untrusted.contains("localhost:") && untrusted.contains("cannot be trusted (invalid peer"));
        let missing = said("https://absent.invalid/".to_owned()).await;
        assert!(missing.starts_with("`absent.invalid` cannot be found"), "{missing}");
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
        let refused = said(format!("http://{free}/")).await;
        assert!(refused.contains("cannot be reached (Connection refused"), "{refused}");
        assert!(said("ftp://localhost/".to_owned()).await.contains("not a URL"));
        let broken = Server::start("SSH-2.0-x\r\n", false).await;
        let broken = said(broken.url("http")).await;
        assert!(broken.contains("not answer as an HTTP server"), "{broken}");
        assert!(Fetch::new(FetchOptions { extra_roots: Some("junk".to_owned()), ..options() }).is_err());
    }

    #[tokio::test]
    async fn nothing_is_asked_in_the_clear_where_that_is_so() {
        let plain = Server::start(SMALL, false).await;
        let fetch = Fetch::new(FetchOptions { https_only: true, ..options() }).expect("made");
        for scheme in ["http", "HTTP"] {
            let refused = fetch.send(get(&plain.url(scheme))).await.expect_err("no answer");
            assert!(
                matches!(&refused, FetchError::InTheClear(url) if url.contains("localhost")),
                "{refused}"
            );
        }
        assert_eq!(plain.accepted.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn time_and_size_are_bounded() {
        let silent = Server::start("", false).await;
        let fetch =
            Fetch::new(FetchOptions { deadline: Duration::from_millis(200), ..options() }).expect("made");
        let slow = fetch.send(get(&silent.url("http"))).await.expect_err("too slow").to_string();
        assert!(slow.contains("did not answer within 0.2s"), "{slow}");
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n1\r\nx\r\n0\r\n\r\n";
        let large = Server::start(answer, false).await;
        let fetch = Fetch::new(options()).expect("made");
        let large = fetch.send(get(&large.url("http"))).await.expect_err("too large").to_string();
        assert!(large.contains("more than 64 octets"), "{large}");
    }
}
