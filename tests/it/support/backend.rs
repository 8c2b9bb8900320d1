//! Services behind agents: a small real HTTP server with gates that tests open, and raw TCP
//! ones for what no good server sends.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use super::hex;

/// Octets in a chunk of `/big`.
const CHUNK: usize = 64 * 1024;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An HTTP server, gone when the value is dropped.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Shared {
    gate: Gate,
    connections: AtomicUsize,
    requests: AtomicUsize,
}

/// Lets `/sse` and `/gated` go on, one step a permit.
struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Backend {
    /// Starts on a port of its own.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let shared = accepting.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| answer(request, shared.clone()));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .half_close(true)
                        .serve_connection(TokioIo::new(stream), service);
                    // A client that leaves is not this server's trouble.
                    let _ = connection.with_upgrades().await;
                });
            }
        });
        Self { address, shared, _runtime: runtime }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets one gated step happen.
    pub fn release(&self) {
        self.shared.gate.0.add_permits(1);
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests seen so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

/// SHA-256 of what `/big?mb=MB` sends.
pub fn big_sha256(mb: usize) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for index in 0..mb * 1024 * 1024 / CHUNK {
        context.update(&chunk(index));
    }
    hex(context.finish().as_ref())
}

/// Writes the same octets to a file, for uploads.
pub fn big_file(path: &std::path::Path, mb: usize) {
    let mut file = std::fs::File::create(path).expect("temporary folder");
    for index in 0..mb * 1024 * 1024 / CHUNK {
        file.write_all(&chunk(index)).expect("temporary folder");
    }
}

/// Octets that differ from chunk to chunk, so that a lost or swapped one is seen. They are made
/// once: a test that measures must not wait for them.
fn chunk(index: usize) -> Bytes {
    /// Octets of which every chunk is a part.
    const ALL: usize = 64 * CHUNK;
    static OCTETS: OnceLock<Bytes> = OnceLock::new();
    let octets = OCTETS.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut octets = Vec::with_capacity(ALL);
        while octets.len() < ALL {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            octets.extend_from_slice(&state.to_le_bytes());
        }
        octets.into()
    });
    let start = index * 7919 % (ALL - CHUNK);
    octets.slice(start..start + CHUNK)
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Infallible> {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/small" => text("small"),
        "/cookies" => cookies(),
        "/big" => big(&request),
        "/upload" => upload(request).await,
        "/early" => status(StatusCode::PAYLOAD_TOO_LARGE, "too large, and not read"),
        "/sse" => gated(shared, "text/event-stream", &["data: one\n\n", "data: two\n\n"]),
        "/gated" => gated(shared, "text/plain", &["first ", "second ", "third"]),
        "/held" => {
            shared.gate.0.acquire().await.expect("never closed").forget();
            text("let go")
        }
        "/trailers" => with_trailers(),
        "/tcp" => upgrade(request),
        "/no-upgrade" => status(StatusCode::FORBIDDEN, "no upgrade for you"),
        "/no-content" => with_status(Response::new(empty()), StatusCode::NO_CONTENT),
        "/html" => html(
            "text/html; charset=utf-8",
            "<!doctype html><html><head><title>t</title></head><body>b</body></html>",
        ),
        "/html-etag" => etag(&request),
        "/hop" => hop_by_hop(),
        "/preflight" => preflight(&request),
        _ => echo(request).await,
    })
}

/// What arrived, as JSON.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let headers: Vec<Value> = parts
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let head = json!({
        "method": parts.method.as_str(),
        "target": parts.uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut response = text(&head.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert("x-backend", HeaderValue::from_static("yes"));
    response
}

fn big(request: &Request<Incoming>) -> Response<Body> {
    let mb: usize = request
        .uri()
        .query()
        .and_then(|query| query.strip_prefix("mb="))
        .and_then(|mb| mb.parse().ok())
        .unwrap_or(100);
    let frames = (0..mb * 1024 * 1024 / CHUNK).map(|index| Ok(Frame::data(chunk(index))));
    let mut response =
        Response::new(BodyExt::boxed_unsync(StreamBody::new(futures_util::stream::iter(frames))));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(mb * 1024 * 1024));
    response
}

/// Length and SHA-256 of the body, and its trailers.
async fn upload(request: Request<Incoming>) -> Response<Body> {
    let mut body = request.into_body();
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let (mut length, mut trailers) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return status(StatusCode::BAD_REQUEST, "the body broke off") };
        match frame.into_data() {
            Ok(data) => {
                length += data.len();
                context.update(&data);
            }
            Err(frame) => {
                let fields = frame.into_trailers().unwrap_or_default();
                trailers.extend(
                    fields.iter().map(|(name, value)| json!([name.as_str(), value.to_str().unwrap_or("?")])),
                );
            }
        }
    }
    text(
        &json!({"length": length, "sha256": hex(context.finish().as_ref()), "trailers": trailers})
            .to_string(),
    )
}

/// The first part at once, each other when the test opens the gate.
fn gated(shared: Arc<Shared>, kind: &'static str, parts: &'static [&'static str]) -> Response<Body> {
    let frames = futures_util::stream::iter(parts.iter().enumerate()).then(move |(index, part)| {
        let shared = shared.clone();
        async move {
            if index > 0 {
                shared.gate.0.acquire().await.expect("never closed").forget();
            }
            Ok(Frame::data(Bytes::from_static(part.as_bytes())))
        }
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn with_trailers() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("abc"));
    let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
    let mut response =
        Response::new(BodyExt::boxed_unsync(StreamBody::new(futures_util::stream::iter(frames))));
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

/// `Upgrade: tcp`: echoes in upper case; says goodbye after the client's end of input.
fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let Some(token) = request.headers().get(header::UPGRADE).cloned() else {
        return status(StatusCode::UPGRADE_REQUIRED, "an upgrade only");
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = vec![0; 4096];
        let mut total = 0;
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    total += count;
                    let loud = buffer[..count].to_ascii_uppercase();
                    if stream.write_all(&loud).await.is_err() {
                        return;
                    }
                }
            }
        }
        let _ = stream.write_all(format!("bye after {total}").as_bytes()).await;
        let _ = stream.shutdown().await;
    });
    let mut response = with_status(Response::new(empty()), StatusCode::SWITCHING_PROTOCOLS);
    response.headers_mut().insert(header::UPGRADE, token);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

fn html(kind: &'static str, document: &'static str) -> Response<Body> {
    let mut response = text(document);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// HTML with an ETag; 304 when the request names it, as it was without the gateway's suffix.
fn etag(request: &Request<Incoming>) -> Response<Body> {
    let mut response = html("text/html", "<html><head></head><body></body></html>");
    response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"v1\""));
    if request.headers().get(header::IF_NONE_MATCH).is_some_and(|tag| tag == "\"v1\"") {
        *response.body_mut() = empty();
        return with_status(response, StatusCode::NOT_MODIFIED);
    }
    response
}

/// Fields for one hop, and one that `Connection` makes so.
fn hop_by_hop() -> Response<Body> {
    let mut response = text("hop");
    for (name, value) in [
        ("connection", "x-mine"),
        ("x-mine", "1"),
        ("keep-alive", "timeout=1"),
        ("proxy-authenticate", "Basic realm=\"x\""),
        ("proxy-authentication-info", "nextnonce=\"x\""),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ] {
        response.headers_mut().append(name, HeaderValue::from_static(value));
    }
    response
}

/// What a preflight is answered, and more; with what the service got in a field that comes back.
fn preflight(request: &Request<Incoming>) -> Response<Body> {
    let mut names: Vec<&str> = request.headers().keys().map(header::HeaderName::as_str).collect();
    names.sort_unstable();
    let sent = format!("{} {} {}", request.method(), request.uri(), names.join(" "));
    let mut response = text("the whole page");
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-max-age", &sent),
        ("allow", "PUT"),
        ("vary", "origin"),
        ("set-cookie", "a=b"),
        ("location", "/elsewhere"),
        ("x-secret", "s"),
    ] {
        response.headers_mut().append(name, HeaderValue::from_str(value).expect("plain"));
    }
    response
}

/// Cookies that reach too far, or have names of others.
fn cookies() -> Response<Body> {
    let mut response = text("cookies");
    for cookie in [
        "wide=1; Domain=gw.test; Path=/",
        "__Host-oneport-visit=forged; Path=/; Secure",
        "own=2; Path=/; HttpOnly",
    ] {
        response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(cookie));
    }
    response
}

fn text(text: &str) -> Response<Body> {
    Response::new(Full::from(text.to_owned()).boxed_unsync())
}

fn status(status: StatusCode, words: &str) -> Response<Body> {
    with_status(text(words), status)
}

fn with_status(mut response: Response<Body>, status: StatusCode) -> Response<Body> {
    *response.status_mut() = status;
    response
}

fn empty() -> Body {
    Full::default().boxed_unsync()
}

/// A TCP service that treats each connection by `serve`, on a thread of its own.
pub fn raw(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let (Ok(stream), serve) = (stream, serve.clone()) else { return };
            std::thread::spawn(move || serve(stream, index));
        }
    });
    address
}

/// A loopback address where nothing listens.
pub fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}
