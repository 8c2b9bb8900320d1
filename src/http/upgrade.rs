//! Protocol switches: any token over HTTP/1.1, and RFC 8441 over HTTP/2, towards an HTTP/1.1
//! service. After the switch the bytes are only copied.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::body::{Answer, Outgoing, reason_of};
use super::exchange::Exchange;
use super::headers::{remove_hop_by_hop, upgrade_to};
use super::record::Record;
use super::respond::Failure;
use super::stay::Stay;
use crate::access::Hold;
use crate::net::{CopyEnd, copy_both_until};
use crate::observe::Reason;
use crate::registry::Cut;

/// What RFC 6455, section 1.3, adds to a key before hashing it.
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A switch that a visitor asks for.
#[derive(Debug)]
pub(super) struct Wish {
    /// The protocol, as it stands in `Upgrade`.
    protocol: HeaderValue,
    /// Asked for as RFC 8441 says, over HTTP/2; with the key that was made up, for WebSocket.
    extended: Option<Option<HeaderValue>>,
    /// The visitor's stream, once the switch is made.
    visitor: OnUpgrade,
}

/// What may end a switched stream from outside.
#[derive(Debug)]
pub(super) struct End {
    /// The service's stream is cut.
    pub(super) cut: Cut,
    /// The visit is no longer allowed; `None`: it always is.
    pub(super) hold: Option<Hold>,
    /// The visitor may no longer come from where they are.
    pub(super) stay: Arc<Stay>,
}

impl End {
    /// Waits for it; the value is why. When a visitor takes nothing, nothing is read, so that only
    /// this tells that the service's stream was cut.
    async fn come(&self) -> Reason {
        let over = CancellationToken::new();
        let is_cut = over.clone();
        self.cut.on_cut(move |_| over.cancel());
        let no_longer_allowed = async {
            match &self.hold {
                Some(hold) => hold.over().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = is_cut.cancelled() => self.cut.why().unwrap_or(Reason::VisitorTooSlow),
            why = no_longer_allowed => why,
            _ = self.stay.over() => Reason::NetworkDenied,
        }
    }
}

/// Whether a request asks to switch protocols, in any of the ways there are.
pub(super) fn asks_to_switch<B>(request: &Request<B>) -> bool {
    request.extensions().get::<Protocol>().is_some() || request.headers().contains_key(header::UPGRADE)
}

/// CONNECT switches protocols over HTTP/2 (RFC 8441), though never to HTTP/2 again.
pub(super) fn may_connect(request: &Request<Outgoing>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    protocol.is_some_and(|protocol| !protocol.as_str().to_ascii_lowercase().starts_with("h2"))
}

pub(super) fn no_connect() -> Failure {
    Failure::new(
        Reason::MethodNotAllowed,
        StatusCode::NOT_IMPLEMENTED,
        "CONNECT is for forward proxies, and this is a gateway",
        "send the request to the host itself",
    )
}

impl Wish {
    /// The switch that a request asks for, if it does. A request with a body does not: `Upgrade`
    /// may always be left alone (RFC 9110, section 7.8).
    pub(super) fn of(request: &mut Request<Outgoing>) -> Option<Self> {
        use http_body::Body as _;
        if let Some(protocol) = request.extensions_mut().remove::<Protocol>() {
            let protocol = HeaderValue::from_str(protocol.as_str()).ok()?;
            let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
            let key = is_websocket.then(make_key).flatten();
            return Some(Self { protocol, extended: Some(key), visitor: hyper::upgrade::on(request) });
        }
        if request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
            return None;
        }
        let protocol = upgrade_to(request.headers())?;
        Some(Self { protocol, extended: None, visitor: hyper::upgrade::on(request) })
    }

    /// Whether it came as an extended CONNECT.
    pub(super) fn is_extended(&self) -> bool {
        self.extended.is_some()
    }

    /// Puts the wish into the request to the service, whose hop-by-hop fields are out already.
    pub(super) fn ask(&self, method: &mut Method, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
        if let Some(key) = &self.extended {
            *method = Method::GET;
            if let Some(key) = key {
                headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
                headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
            }
        }
    }

    /// Turns the service's consent into the visitor's: the status, the headers in place.
    ///
    /// # Errors
    /// When the service's 101 is none: another protocol, or the wrong answer to the key.
    pub(super) fn grant(&self, headers: &mut HeaderMap) -> Result<StatusCode, Failure> {
        let Some(protocol) = upgrade_to(headers) else {
            return Err(super::forward::not_http("the service switched protocols without saying to which"));
        };
        remove_hop_by_hop(headers);
        let Some(key) = &self.extended else {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol);
            return Ok(StatusCode::SWITCHING_PROTOCOLS);
        };
        let accept = headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        if let Some(key) = key
            && accept.as_ref().map(HeaderValue::as_bytes) != Some(accept_for(key).as_bytes())
        {
            return Err(super::forward::not_http("the service answered the WebSocket key wrongly"));
        }
        // A body is not announced in either direction (RFC 8441, section 5).
        headers.remove(header::CONTENT_LENGTH);
        Ok(StatusCode::OK)
    }

    /// Copies both ways until both have ended, or `end` comes, and writes the record.
    pub(super) async fn run(
        self,
        service: OnUpgrade,
        end: End,
        mut record: Box<Record>,
        idle: std::time::Duration,
    ) {
        let why = std::sync::OnceLock::new();
        let over = async {
            let _ = why.set(end.come().await);
        };
        tokio::pin!(over);
        let both = tokio::select! {
            both = async { tokio::try_join!(self.visitor, service) } => both,
            () = &mut over => {
                record.reason = why.get().copied().unwrap_or(record.reason);
                return;
            }
        };
        let (visitor, service) = match both {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(request = %record.id, %error, "a protocol switch did not happen");
                return;
            }
        };
        let (visitor, service) = (TokioIo::new(visitor), TokioIo::new(service));
        let outcome = copy_both_until(visitor, service, idle, over).await;
        record.passed(outcome.forth, outcome.back);
        record.reason = match outcome.end {
            CopyEnd::Finished => Reason::Finished,
            CopyEnd::Idle => Reason::Idle,
            CopyEnd::Failed(error) => {
                tracing::debug!(request = %record.id, %error, "a switched stream broke");
                // The stream breaks as well when it is cut, and which is seen first is chance.
                end.cut.why().or_else(|| reason_of(&error)).unwrap_or(Reason::ConnectionLost)
            }
            CopyEnd::Stopped => why.get().copied().unwrap_or(Reason::VisitorTooSlow),
        };
    }
}

fn make_key() -> Option<HeaderValue> {
    let mut nonce = [0; 16];
    aws_lc_rs::rand::fill(&mut nonce).ok()?;
    HeaderValue::try_from(STANDARD.encode(nonce)).ok()
}

fn accept_for(key: &HeaderValue) -> String {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(WEBSOCKET_GUID);
    STANDARD.encode(hash.finish())
}

/// What a switch was made of: the answer to it, and what goes on afterwards.
pub(super) type Switched = (Response<Answer>, Wish, OnUpgrade, End);

/// The service has switched protocols: from here on the bytes are only copied.
pub(super) fn switch(
    mut response: Response<Exchange>,
    wish: Option<Wish>,
    hold: Option<Hold>,
    stay: Arc<Stay>,
) -> Result<Switched, Failure> {
    let Some(wish) = wish else {
        return Err(super::forward::not_http("the service switched protocols without being asked to"));
    };
    let service = hyper::upgrade::on(&mut response);
    let status = wish.grant(response.headers_mut())?;
    let (parts, exchange) = response.into_parts();
    let end = End { cut: exchange.switched(), hold, stay };
    let mut answer = Response::from_parts(parts, Answer::own(bytes::Bytes::new()));
    *answer.status_mut() = status;
    *answer.version_mut() = Version::HTTP_11;
    Ok((answer, wish, service, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_for(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
