//! A real HTTPS server in front of an authority: passes requests on, and holds them, refuses them or
//! adds to the answers as a test says. URLs of the authority lead here, because `Host` is passed on.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use oneport::net::{Fetch, FetchOptions};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::ca::Ca;
use super::pebble::Pebble;

/// What becomes of a request.
pub enum Verdict {
    Pass,
    /// Answered here.
    Answer(Response<Bytes>),
    /// Passed on, but the answer never comes.
    PassAndHold,
    /// Passed on, and the answer's body changed.
    Change(fn(&[u8]) -> Vec<u8>),
    /// Passed on, and something put into the answer's head.
    WithHeader(&'static str, &'static str),
}

/// What a test says of a request: the how-many-th it is, and what it asks for.
type Judge = dyn Fn(usize, &Request<Bytes>) -> Verdict + Send + Sync;

/// The server.
pub struct Front {
    dir: TempDir,
    port: u16,
    requests: Arc<AtomicUsize>,
    judge: Arc<Mutex<Arc<Judge>>>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Shared {
    requests: Arc<AtomicUsize>,
    judge: Arc<Mutex<Arc<Judge>>>,
    fetch: Fetch,
    to: u16,
}

impl Front {
    pub fn start(pebble: &Pebble) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let leaf = Ca::make(dir.path()).leaf("server", &["localhost"]);
        let chain = vec![CertificateDer::from_pem_file(leaf.cert).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(leaf.key).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let judge: Arc<Mutex<Arc<Judge>>> = Arc::new(Mutex::new(Arc::new(|_, _| Verdict::Pass)));
        let requests = Arc::<AtomicUsize>::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let root = std::fs::read_to_string(pebble.server_root()).expect("the authority's root");
        let options = FetchOptions { extra_roots: Some(root), ..FetchOptions::default() };
        let fetch = Fetch::new(options).expect("a client");
        let to = pebble.directory().split(':').nth(2).and_then(|rest| rest.split('/').next()?.parse().ok());
        let shared =
            Shared { requests: requests.clone(), judge: judge.clone(), fetch, to: to.expect("a port") };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| shared.clone().answer(request));
                    // Whoever leaves is no fault of the server.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { dir, port, requests, judge, _runtime: runtime }
    }

    /// What becomes of requests from now on. Counting begins anew.
    pub fn judge(&self, judge: impl Fn(usize, &Request<Bytes>) -> Verdict + Send + Sync + 'static) {
        *self.judge.lock() = Arc::new(judge);
        self.requests.store(0, Ordering::SeqCst);
    }

    /// How many requests have come, and have been judged.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

impl Shared {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let mut request = Request::from_parts(head, body);
        let judge = self.judge.lock().clone();
        let verdict = judge(self.requests.load(Ordering::SeqCst), &request);
        if let Verdict::Answer(answer) = verdict {
            self.requests.fetch_add(1, Ordering::SeqCst);
            return Ok(answer.map(Full::new));
        }
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = format!("https://localhost:{}{path}", self.to);
        *request.uri_mut() = uri.parse().expect("a URL");
        let answer = self.fetch.send(request).await;
        self.requests.fetch_add(1, Ordering::SeqCst);
        if matches!(verdict, Verdict::PassAndHold) {
            std::future::pending::<()>().await;
        }
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let mut answer = Response::new(Bytes::from(error.to_string()));
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
                answer
            }
        };
        answer.headers_mut().remove(http::header::CONNECTION);
        if let Verdict::Change(change) = verdict {
            answer.headers_mut().remove(http::header::CONTENT_LENGTH);
            answer = answer.map(|body| change(&body).into());
        }
        if let Verdict::WithHeader(name, value) = verdict {
            answer.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        Ok(answer.map(Full::new))
    }
}

/// A refusal in the words of RFC 8555, section 6.7.
pub fn problem(status: u16, kind: &str, detail: &str, retry_after: u32) -> Response<Bytes> {
    let body = serde_json::json!({
        "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": status,
    });
    Response::builder()
        .status(status)
        .header("content-type", "application/problem+json")
        .header("retry-after", retry_after)
        .body(Bytes::from(body.to_string()))
        .expect("an answer")
}
