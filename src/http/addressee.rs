//! Whom a request is for: read from its head, and checked against the connection's certificate.

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Request, StatusCode, Version};
use parking_lot::Mutex;

use super::TlsFacts;
use super::respond::Failure;
use crate::name::HostName;
use crate::observe::Reason;

/// Whom a request is for, in all the forms that are needed.
#[derive(Debug)]
pub(super) struct Addressee {
    /// The host; `None` where none was named, which HTTP/1.0 allows.
    pub(super) host: Option<HostName>,
    /// The port, if it was named.
    pub(super) port: Option<u16>,
    /// As the visitor wrote it.
    pub(super) text: Option<HeaderValue>,
    /// Whether the certificate of this connection covers it.
    covered: bool,
    /// Why there is none that does, if that is so.
    missing: Option<Arc<str>>,
}

/// Whom the last request of a connection was for. The next is mostly for the same, and then need
/// not be read again.
#[derive(Debug, Default)]
pub(super) struct LastAddressee(Mutex<Option<Arc<Addressee>>>);

impl LastAddressee {
    /// Whom this request is for.
    ///
    /// # Errors
    /// When it names no host, more than one, or something that is none.
    pub(super) fn of<B>(
        &self,
        request: &Request<B>,
        tls: Option<&TlsFacts>,
    ) -> Result<Arc<Addressee>, Failure> {
        let text = authority(request)?;
        let mut last = self.0.lock();
        if let Some(last) = last.as_ref().filter(|last| last.text == text) {
            return Ok(last.clone());
        }
        Ok(last.insert(Arc::new(Addressee::read(text, tls)?)).clone())
    }
}

impl Addressee {
    fn read(text: Option<HeaderValue>, tls: Option<&TlsFacts>) -> Result<Self, Failure> {
        let Some(text) = text else {
            return Ok(Self { host: None, port: None, text: None, covered: true, missing: None });
        };
        let readable = text.to_str().map_err(|_| Failure::bad_request("the `Host` header is not text"))?;
        let (host, port) =
            HostName::parse_authority(readable).map_err(|error| Failure::bad_request(error.to_string()))?;
        let covered = tls.is_none_or(|tls| tls.names.iter().any(|name| host.is_covered_by(name)));
        let missing = tls.and_then(|tls| tls.missing.clone());
        Ok(Self { host: Some(host), port, text: Some(text), covered, missing })
    }

    /// Browsers share one HTTP/2 connection among the hosts of a certificate, but no others.
    ///
    /// # Errors
    /// When the certificate of the connection does not cover the host.
    pub(super) fn check_certificate(&self) -> Result<(), Failure> {
        let Some(host) = self.host.as_ref().filter(|_| !self.covered) else { return Ok(()) };
        if let Some(missing) = &self.missing {
            let failure = Failure::new(
                Reason::NoCertificate,
                StatusCode::SERVICE_UNAVAILABLE,
                missing.to_string(),
                "try again in a moment; the gateway's log says more",
            );
            return Err(failure.with(header::RETRY_AFTER, HeaderValue::from_static("10")));
        }
        Err(Failure::new(
            Reason::WrongHost,
            StatusCode::MISDIRECTED_REQUEST,
            format!("the certificate of this connection does not cover the host `{host}`"),
            "open a new connection with that host as its server name, or check the host",
        ))
    }
}

/// Whom the request is for, as it is written. Over HTTP/2 the authority says it; over HTTP/1.1
/// `Host`; where both are there, they must agree (RFC 9112, section 3.2.2; RFC 9113, section
/// 8.3.1). Only HTTP/1.0 may leave it out.
fn authority<B>(request: &Request<B>) -> Result<Option<HeaderValue>, Failure> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, authority) = (hosts.next(), request.uri().authority());
    if hosts.next().is_some() {
        return Err(Failure::bad_request("there is more than one `Host` header"));
    }
    if let (Some(host), Some(authority)) = (host, authority)
        && !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
    {
        return Err(Failure::bad_request("the `Host` header differs from the request's authority"));
    }
    match (host, authority) {
        (Some(host), _) => Ok(Some(host.clone())),
        (None, Some(authority)) => HeaderValue::from_str(authority.as_str())
            .map(Some)
            .map_err(|_| Failure::bad_request("the request's authority is not a host")),
        (None, None) if request.version() == Version::HTTP_10 => Ok(None),
        (None, None) => Err(Failure::bad_request("the request names no host")),
    }
}
