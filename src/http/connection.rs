//! One visitor's connection from its first byte of HTTP to its end.

use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::bell::Seldom;
use super::cork::Cork;
use super::guard::{Gate, Guard};
use super::patience::Patience;
use super::record::Activity;
use super::service::Session;
use super::stay::until_denied;
use super::streams::{Streams, Together};
use super::{Connection, Http};
use crate::net::Duplex;
use crate::observe::Reason;

/// Octets that an HTTP/1.1 connection may buffer, each way.
const BUFFER_MAX: usize = 128 * 1024;
/// Octets of one HTTP/2 stream that may be on their way up.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Octets of one HTTP/2 connection that may be on their way up: those of all its streams, because a
/// service that does not read an upload must not stop the others. What that costs is bounded by the
/// streams to services: each upload that waits for one holds a channel or a connection to it, of which
/// there are `ssh.max_channels` and `http.upstream_max`.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// Octets of one HTTP/2 stream that may wait to go down.
const STREAM_BUFFER: usize = 128 * 1024;
/// Requests that may run at once on an HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// Streams that a peer may have opened and reset before they were looked at, and streams reset
/// for its errors; past it the connection ends (CVE-2023-44487, CVE-2025-8671).
const RESETS_MAX: usize = 64;
/// Pause between pings on an HTTP/2 connection, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection is read on after its last answer, so that the answer is not lost to a
/// reset while the visitor still sends (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(3);

/// How long a connection has no request before its parser and buffers go. Short, so that of many
/// visitors who come at once only few hold buffers at a time.
const QUIET: Duration = Duration::from_millis(100);
/// Pause between two looks at a connection that is busy, or cannot become quiet.
const BUSY: Duration = Duration::from_secs(1);

/// Serves one connection to its end, which is the value.
pub(super) async fn serve(
    http: Arc<Http>,
    io: impl Duplex + 'static,
    conn: Connection,
    only_https: bool,
) -> Reason {
    let settings = http.settings.clone();
    let h2 = conn.tls.as_ref().is_some_and(|tls| tls.h2);
    let trusted = settings.http.trusted_proxies.iter().any(|net| net.contains(&conn.peer.ip()));
    let activity = Arc::new(Activity::new(http.tasks.clone(), http.metrics.clone()));
    let peer = HeaderValue::try_from(conn.peer.ip().to_string()).expect("an address is visible ASCII");
    let io = Patience::new(io, settings.http.send_timeout, activity.unsent.clone());
    let session = |gate: Arc<Gate>| {
        let (last, cut, switched) = Default::default();
        Arc::new(Session { http, conn, gate, activity, only_https, trusted, peer, last, cut, switched })
    };
    if h2 {
        return serve_h2(session(Arc::default()), io).await;
    }
    let (guard, gate) = Guard::new(io, settings.limits.header_bytes, settings.limits.handshake_timeout);
    serve_h1(session(gate), guard).await
}

/// Serves HTTP/1.1 until the connection ends or switches protocols. Between requests the parser and
/// its buffers go, because most connections are idle most of the time.
async fn serve_h1<S: Duplex + 'static>(session: Arc<Session>, mut guard: Guard<S>) -> Reason {
    loop {
        let service = {
            let session = session.clone();
            service_fn(move |request| Box::pin(session.clone().answer(request)))
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The guard has its own deadline for heads; that of the parser would count idle time.
            .header_read_timeout(None)
            .max_buf_size(BUFFER_MAX.max(session.http.settings.limits.header_bytes * 2))
            .serve_connection(TokioIo::new(guard), service)
            .with_upgrades();
        let mut connection = Box::new(connection);
        let quiet = until_quiet(&session);
        let end = drive(&session, &mut *connection, |connection| connection.graceful_shutdown(), quiet).await;
        let rest = session.switched.lock().take();
        if let Some(rest) = rest {
            return tokio::select! {
                () = rest => Reason::Finished,
                why = until_denied(&session) => why,
            };
        }
        let parts = connection.into_parts();
        match (end, parts) {
            (Some(reason), Some(parts)) if !session.cut.initialized() => {
                let guard = parts.io.into_inner();
                if !guard.is_between_requests() {
                    linger(guard.into_inner()).await;
                }
                return reason;
            }
            (Some(reason), _) => return reason,
            (None, None) => return Reason::Finished,
            (None, Some(parts)) => {
                guard = parts.io.into_inner();
                guard.put_back(parts.read_buf);
                if let Some(reason) = doze(&session, &mut guard).await {
                    return reason;
                }
            }
        }
    }
}

/// Waits for the next request with nothing but the wire. The value is why none will come.
async fn doze<S: Duplex>(session: &Session, guard: &mut Guard<S>) -> Option<Reason> {
    if !guard.is_between_requests() {
        // A new parser may begin with the rest of a head, and never with the rest of a body.
        return (!guard.is_in_head()).then_some(Reason::ConnectionLost);
    }
    let drain = session.http.tasks.drain_begun();
    let reason = tokio::select! {
        woken = guard.woken() => match woken {
            Ok(true) => return None,
            Ok(false) => Reason::Finished,
            Err(_) => Reason::ConnectionLost,
        },
        () = drain.cancelled() => Reason::Draining,
        () = until_idle(session) => Reason::Idle,
        why = until_denied(session) => why,
    };
    // The visitor may be gone; then there is nobody to say goodbye to.
    let _ = tokio::time::timeout(LINGER, guard.shutdown()).await;
    Some(reason)
}

async fn serve_h2(session: Arc<Session>, io: impl Duplex + 'static) -> Reason {
    let service = {
        let session = session.clone();
        service_fn(move |request| Box::pin(session.clone().answer(request)))
    };
    let header_bytes = u32::try_from(session.http.settings.limits.header_bytes).unwrap_or(u32::MAX);
    let limit = session.http.settings.http.send_timeout;
    let streams = Streams::new(limit, session.activity.unsent.clone());
    let io = Cork::new(io);
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_BUFFER)
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .max_header_list_size(header_bytes)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io.clone()), service);
    let mut connection = Together::new(connection, io, streams);
    let end = drive(
        &session,
        &mut connection,
        |mut connection| Pin::new(connection.connection()).graceful_shutdown(),
        pending(),
    );
    end.await.unwrap_or(Reason::Finished)
}

/// Runs a connection to its end, or until `pause`; then there is no value. Asks it to end when the
/// gateway drains, or when no request was open for the idle time.
async fn drive<C>(
    session: &Session,
    connection: &mut C,
    ask_to_end: impl Fn(Pin<&mut C>),
    pause: impl Future<Output = ()>,
) -> Option<Reason>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    tokio::pin!(pause);
    let mut asked = None;
    loop {
        // Hardly ever is one of these what woke the task.
        let turn = pin!(next_turn(session, asked, pause.as_mut()));
        tokio::select! {
            biased;
            result = &mut *connection => return Some(match (result, asked) {
                (Ok(()), asked) => asked.unwrap_or(Reason::Finished),
                (Err(_), Some(asked)) => asked,
                (Err(error), None) => {
                    tracing::debug!(conn = %session.conn.id, %error, "a visitor's connection ended with an error");
                    Reason::ConnectionLost
                }
            }),
            turn = Seldom::new(turn) => match turn {
                Turn::AskToEnd(why) => {
                    asked = Some(why);
                    ask_to_end(Pin::new(connection));
                }
                Turn::End(why) => return Some(why),
                Turn::Pause => return None,
            },
        }
    }
}

/// What is to become of a connection that has not ended by itself.
enum Turn {
    AskToEnd(Reason),
    End(Reason),
    Pause,
}

/// Waits for what is next to become of a connection that was asked to end, or not yet.
async fn next_turn(session: &Session, asked: Option<Reason>, pause: impl Future<Output = ()>) -> Turn {
    let drain = session.http.tasks.drain_begun();
    tokio::select! {
        () = drain.cancelled(), if asked.is_none() => Turn::AskToEnd(Reason::Draining),
        // The parser would wait for the visitor to take what is there, which is just what they do not.
        why = session.cut.wait() => Turn::End(*why),
        why = until_denied(session) => Turn::End(why),
        () = until_idle(session), if asked.is_none() => Turn::AskToEnd(Reason::Idle),
        // A peer that has not even begun, or takes nothing, hears no request to end.
        () = until_unused(session), if asked == Some(Reason::Idle) => Turn::End(Reason::Idle),
        () = pause, if asked.is_none() => Turn::Pause,
    }
}

/// Resolves when no request has been open for a while, and every answer is on its way.
async fn until_quiet(session: &Session) {
    loop {
        // Never at once: a head of which only a part is there makes a connection look quiet.
        let pause = match session.activity.idle() {
            Some(idle) if idle < QUIET => QUIET - idle,
            _ => BUSY,
        };
        tokio::time::sleep(pause).await;
        let idle = session.activity.idle().unwrap_or(Duration::ZERO);
        if idle >= QUIET && !session.activity.unsent.is_any() {
            return;
        }
    }
}

async fn until_idle(session: &Session) {
    let limit = session.http.settings.http.idle_timeout;
    loop {
        // While a request is open, looking again after the whole time is soon enough.
        let idle = session.activity.idle().unwrap_or(Duration::ZERO);
        if idle >= limit {
            return;
        }
        tokio::time::sleep(limit - idle).await;
    }
}

/// Resolves when a connection that was asked to end has had its time, and has no request open.
async fn until_unused(session: &Session) {
    loop {
        tokio::time::sleep(LINGER).await;
        if session.activity.idle().is_some() {
            return;
        }
    }
}

/// Reads and drops what a visitor still sends, until it stops or the time is over.
async fn linger(mut io: impl Duplex) {
    let mut sink = vec![0; 16 * 1024];
    // Over time, or a broken connection: either way there is nothing left to wait for.
    let _ =
        tokio::time::timeout(LINGER, async { while matches!(io.read(&mut sink).await, Ok(1..)) {} }).await;
}
