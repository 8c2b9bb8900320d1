//! A request to a target's service, and the head of its answer back.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;

use super::admit::from_there;
use super::body::Outgoing;
use super::denial::no_longer;
use super::exchange::Exchange;
use super::link::SendFailed;
use super::pool::Pool;
use super::record::Upload;
use super::respond::Failure;
use super::stay::Stay;
use crate::access::Permit;
use crate::net::VisitorAddr;
use crate::observe::Reason;
use crate::registry::{Cut, OpenError, Target};

/// Sends a request on, over a kept connection or a new one, and waits for the answer's head, as
/// long as the visit is allowed.
///
/// A request is sent again only when nothing of it was sent before, or when the connection was a
/// kept one, not an octet of an answer came, and doing it twice does no harm (idempotent, without
/// a body: RFC 9110, section 9.2.2). Dropping the future cuts the connection in use.
///
/// # Errors
/// When no connection could be had, no answer came on it, or the visit is no longer allowed.
pub(super) async fn forward(
    pool: &Pool,
    (permit, stay): (&Permit, &Stay),
    target: &Target,
    visitor: VisitorAddr,
    request: Request<Outgoing>,
    upload: Option<Arc<Upload>>,
) -> Result<Response<Exchange>, Failure> {
    // In one place: a future is copied as large as it may become.
    let mut sent = std::pin::pin!(send(pool, target, visitor, request, upload));
    // Not by `select!`, because all visits pay for it.
    let mut answer = poll_fn(|cx| match sent.as_mut().poll(cx) {
        Poll::Pending => stay.poll_over(cx).map(|denial| Err(from_there(denial))),
        answer => answer,
    });
    let Some(hold) = permit.hold() else { return answer.await };
    let mut over = Box::pin(hold.over());
    tokio::select! {
        answer = &mut answer => answer,
        why = &mut over => Err(no_longer(why)),
    }
}

async fn send(
    pool: &Pool,
    target: &Target,
    visitor: VisitorAddr,
    mut request: Request<Outgoing>,
    upload: Option<Arc<Upload>>,
) -> Result<Response<Exchange>, Failure> {
    let bare = request.body().is_end_stream();
    let repeatable = bare && request.method().is_idempotent();
    // A service may leave the body of such a request unread, and take it for the next request.
    let keep = bare || !body_is_odd(request.method());
    let slot = target.opener().admit(visitor).map_err(|error| not_opened(error, target))?.map(Arc::new);
    while let Some(link) = pool.take(target) {
        link.used_by(slot.clone());
        let spare = repeatable.then(|| copy_head(&request));
        match link.send(request).await {
            Ok((response, link)) => {
                return Ok(response.map(|body| Exchange::new(body, link, target, upload, keep, pool)));
            }
            Err(SendFailed { unsent: Some(unsent), .. }) => request = unsent,
            Err(failed) => match spare.filter(|_| !failed.heard) {
                Some(spare) => {
                    request = spare;
                    break;
                }
                None => return Err(no_answer(&failed.error, failed.heard, target, upload.as_deref())),
            },
        }
    }
    if !target.opener().has_room() {
        pool.make_room(target);
    }
    let cut = Cut::default();
    cut.used_by(slot);
    let opened = target.opener().open_with(visitor, cut.clone());
    let stream = opened.await.map_err(|error| not_opened(error, target))?;
    let link = pool.connect(stream, cut).await.map_err(|error| no_answer(&error, false, target, None))?;
    match link.send(request).await {
        Ok((response, link)) => {
            Ok(response.map(|body| Exchange::new(body, link, target, upload, keep, pool)))
        }
        Err(failed) => Err(no_answer(&failed.error, failed.heard, target, upload.as_deref())),
    }
}

/// Methods whose body has no meaning of its own (RFC 9110, section 9.3).
pub(super) fn body_is_odd(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS | Method::TRACE)
}

fn copy_head(request: &Request<Outgoing>) -> Request<Outgoing> {
    let mut copy = Request::new(Outgoing::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    copy.headers_mut().clone_from(request.headers());
    copy
}

fn not_opened(error: OpenError, target: &Target) -> Failure {
    let asked = match target {
        Target::Tunnel(tunnel) => tunnel.request_id.split('#').next().unwrap_or_default(),
        Target::Route(backend) => &backend.name,
    };
    let (status, what, next) = match error {
        OpenError::TimedOut => (
            StatusCode::GATEWAY_TIMEOUT,
            "the agent did not answer in time".to_owned(),
            "check the agent's machine and its network, then try again",
        ),
        OpenError::Refused => (
            StatusCode::BAD_GATEWAY,
            format!("the agent could not reach its service for `{asked}`"),
            "start the service on the agent's side, or correct the address it forwards to, then try again",
        ),
        OpenError::Gone => (
            StatusCode::BAD_GATEWAY,
            "the agent's session has just ended".to_owned(),
            "connect the agent again, then try again",
        ),
        OpenError::Unreachable => (
            StatusCode::BAD_GATEWAY,
            format!("the service of the route `{asked}` cannot be connected to"),
            "start the service, or correct the route's address, then try again",
        ),
        OpenError::NoAnswer => (
            StatusCode::GATEWAY_TIMEOUT,
            format!("the service of the route `{asked}` did not accept the connection in time"),
            "check the service's machine and its network, then try again",
        ),
        OpenError::Busy => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the service of the route `{asked}` has as many open connections as it may"),
            "wait for some to end, then try again",
        ),
        OpenError::VisitorBusy => (
            StatusCode::TOO_MANY_REQUESTS,
            format!("your address has as many requests open to `{asked}` as it leaves for everybody else"),
            "wait for some of your own to end, then try again",
        ),
        OpenError::NoDescriptors => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the gateway has no file descriptor left".to_owned(),
            "ask the operator of this gateway to raise its limit",
        ),
        OpenError::VisitorFull => (
            StatusCode::TOO_MANY_REQUESTS,
            "your address has as many requests open to this agent as it leaves for everybody else".to_owned(),
            "wait for some of your own to end, then try again",
        ),
        OpenError::Full => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent has as many open connections as it may".to_owned(),
            "wait for some to end, then try again",
        ),
    };
    Failure::new(error.reason(), status, what, next)
}

fn no_answer(error: &hyper::Error, heard: bool, target: &Target, upload: Option<&Upload>) -> Failure {
    let is = |flag: fn(&Upload) -> &std::sync::atomic::AtomicBool| {
        upload.is_some_and(|upload| flag(upload).load(Ordering::Acquire))
    };
    if is(|upload| &upload.malformed) {
        return Failure::bad_request("the request's body is malformed");
    }
    if is(|upload| &upload.cut) {
        let (what, next) = ("the request's body ended early", "send it whole");
        return Failure::new(Reason::VisitorLeft, StatusCode::BAD_REQUEST, what, next);
    }
    if is(|upload| &upload.stalled) {
        let (what, next) =
            ("the rest of the request's body did not come in time", "send it without long pauses");
        return Failure::new(Reason::UploadStalled, StatusCode::REQUEST_TIMEOUT, what, next);
    }
    if target.gone().is_cancelled() {
        return not_opened(OpenError::Gone, target);
    }
    tracing::debug!(%error, service = target.name(), "no answer from a service");
    // A greeting nobody asked for is no HTTP either, whichever of the two the client met first.
    if error.is_parse() || (heard && !error.is_incomplete_message()) {
        return not_http("what the service sent is not HTTP/1.1");
    }
    Failure::new(
        Reason::ServiceClosed,
        StatusCode::BAD_GATEWAY,
        "the service closed the connection before it answered",
        "look at the service's log, then try again",
    )
}

/// A service that does not speak HTTP/1.1 as it must.
pub(super) fn not_http(what: &'static str) -> Failure {
    let next = "let the tunnel or route lead to a port that speaks plain HTTP/1.1 (not TLS)";
    Failure::new(Reason::ServiceNotHttp, StatusCode::BAD_GATEWAY, what, next)
}
