//! How the protocol's library asks an authority: through the gateway's own HTTP client, which has a
//! deadline and a bound for everything.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use http::uri::Scheme;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use parking_lot::Mutex;

use crate::net::{Fetch, FetchOptions};

/// Time for one request.
const DEADLINE: Duration = Duration::from_secs(30);
/// Octets of an answer; chains are a few thousand.
const ANSWER_MAX: usize = 1 << 20;
/// How long an authority is believed to want to be left alone at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// When to ask for a renewal window again, where the authority does not say (RFC 9773, section 4.3).
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("21600");

/// Asks one directory, for one attempt.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    fetch: Fetch,
    wait: Arc<Mutex<Option<Duration>>>,
}

/// An answer to a plain request, which is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("status {status}")]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) problem: Option<Problem>,
    pub(super) retry_after: Option<Duration>,
}

/// Makes the HTTP client for a directory. Reads files: not for a busy task.
///
/// # Errors
/// With a sentence, when the root cannot be read or there is nobody to trust.
pub(super) fn fetch_with(root: Option<&Path>) -> Result<Fetch, String> {
    let root_setting = Some("`root` of the directory in `acme.directories`");
    let options =
        FetchOptions { deadline: DEADLINE, max_body: ANSWER_MAX, root_setting, ..FetchOptions::default() };
    Fetch::with_root(root, options)
}

impl Asker {
    pub(super) fn new(fetch: Fetch) -> Self {
        Self { fetch, wait: Arc::default() }
    }

    /// How long the authority wants to be left alone, as its last refusal said.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        *self.wait.lock()
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let (mut head, body) = request.into_parts();
        // Where an authority's own answers lead to: the directory itself is an https URL.
        if head.uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(Error::Str("it leads to a URL that is not https"));
        }
        let body = body.collect().await.unwrap_or_else(|never| match never {}).to_bytes();
        let is_plain = head.method != Method::POST;
        // RFC 8555, section 6.1: who asks, and with what.
        if let Some(Ok(library)) = head.headers.get(USER_AGENT).map(HeaderValue::to_str)
            && let Ok(both) =
                HeaderValue::try_from(format!("oneport/{} {library}", env!("CARGO_PKG_VERSION")))
        {
            head.headers.insert(USER_AGENT, both);
        }
        let answer = self.fetch.send(Request::from_parts(head, body)).await;
        let mut answer = answer.map_err(|error| Error::Other(Box::new(error)))?;
        let status = answer.status();
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(delay);
        // The library adds to the clock what it is told, whether there is such a time or not.
        match retry_after {
            Some(delay) => {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(delay.as_secs()));
            }
            None => {
                answer.headers_mut().remove(RETRY_AFTER);
            }
        }
        if status.is_client_error() || status.is_server_error() {
            *self.wait.lock() = retry_after;
            let problem: Option<Problem> = serde_json::from_slice(answer.body()).ok();
            // The library does not look at the status of plain requests, and takes every refusal of
            // a signed one for a problem.
            if is_plain || problem.is_none() {
                return Err(Error::Other(Box::new(Refused {
                    status: status.as_u16(),
                    problem,
                    retry_after,
                })));
            }
        } else if is_plain {
            answer.headers_mut().entry(RETRY_AFTER).or_insert(ASK_AGAIN);
        }
        Ok(BytesResponse::from(Response::map(answer, Full::new)))
    }
}

impl HttpClient for Asker {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().ask(request))
    }
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn delay(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let delay = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            const HTTP_DATE: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
                "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
            );
            let date = time::PrimitiveDateTime::parse(text, HTTP_DATE).ok()?.assume_utc();
            SystemTime::from(date).duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(delay.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_seconds_or_a_date() {
        let delay = |text| delay(&HeaderValue::from_static(text));
        assert_eq!(delay("120"), Some(Duration::from_secs(120)));
        assert_eq!(delay("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(delay("Fri, 31 Dec 2100 23:59:59 GMT"), Some(RETRY_AFTER_MAX));
        assert_eq!(delay("soon"), None);
    }

    #[test]
    fn a_root_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("root.pem");
        let said = |path: &Path| fetch_with(Some(path)).expect_err("no root");
        assert!(said(&path).contains("root.pem` cannot be read"));
        std::fs::write(&path, "junk").expect("writable");
        assert!(said(&path).contains("root.pem`: the additional"), "{}", said(&path));
    }
}
