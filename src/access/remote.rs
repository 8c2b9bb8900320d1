//! An issuer's keys at a URL: fetched over TLS, within bounds, by one task; whoever needs them
//! sooner waits for the same fetch as all others.
//!
//! A token may name any key, and anybody can send one: how often tokens have keys fetched is bounded.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, HeaderMap, HeaderValue};
use http::{Request, StatusCode, Uri};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::key_set::key_set;
use super::verifying_key::VerifyingKey;
use crate::config::JwksUrl;
use crate::config::watch::off_thread;
use crate::net::{Fetch, FetchError, FetchOptions};

/// Time for one fetch.
const DEADLINE: Duration = Duration::from_secs(10);
/// Octets of a set of keys.
const SET_MAX: usize = 256 * 1024;
/// How long a request waits for a fetch.
const WAIT: Duration = Duration::from_secs(5);
/// How often tokens may have keys fetched, in one [`SPAN`].
const ON_DEMAND_MAX: usize = 3;
/// See [`ON_DEMAND_MAX`].
const SPAN: Duration = Duration::from_secs(60);
/// How long a set counts as fresh, where its server does not say.
const FRESH: Duration = Duration::from_secs(10 * 60);
/// The least that is believed of what it says, and the most: a key that was withdrawn is found out
/// within this.
const FRESH_BOUNDS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
/// When a failed fetch is tried again: after this, then twice as long each time.
const RETRY: Duration = Duration::from_secs(5);
/// The longest such pause.
const RETRY_MAX: Duration = Duration::from_secs(5 * 60);
/// What is asked for (RFC 7517, section 8.5).
const KINDS: HeaderValue = HeaderValue::from_static("application/jwk-set+json, application/json");

/// Where an issuer's keys are fetched.
#[derive(Debug)]
pub struct Remote {
    url: Uri,
    root: Option<PathBuf>,
    demand: Mutex<Demand>,
    call: Notify,
    /// How many fetches have ended.
    done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Demand {
    /// Whether a fetch runs, or is about to.
    is_coming: bool,
    /// When tokens last had keys fetched.
    recent: VecDeque<Instant>,
}

impl Remote {
    /// Prepares to fetch. Reads the root, if there is one, and the system's: not for a busy task.
    ///
    /// # Errors
    /// When the URL is none, or there is nobody to trust, in words.
    pub fn open(from: &JwksUrl) -> Result<Self, String> {
        let url = from.url.parse().map_err(|_| "this is not a URL".to_owned())?;
        client(from.root.as_deref())?;
        let (demand, call, done) = Default::default();
        Ok(Self { url, root: from.root.clone(), demand, call, done })
    }

    /// Waits until the keys were fetched once more, for at most 5 s. Does not wait when tokens have
    /// had that done too often of late. Cancel safe.
    pub async fn fetched_anew(&self) {
        let mut done = self.done.subscribe();
        {
            let mut demand = self.demand.lock();
            if !demand.is_coming {
                if !demand.may_call(Instant::now()) {
                    return;
                }
                demand.is_coming = true;
                self.call.notify_one();
            }
        }
        let _ = tokio::time::timeout(WAIT, done.changed()).await;
    }

    /// Resolves when somebody needs the keys fetched. For the one task that fetches. Cancel safe.
    pub async fn called(&self) {
        self.call.notified().await;
    }

    /// Fetches the keys; also how long they count as fresh. For the one task that does.
    ///
    /// # Errors
    /// When there are none, in a sentence.
    pub async fn fetch(&self) -> Result<(Vec<VerifyingKey>, Duration), String> {
        self.demand.lock().is_coming = true;
        self.call_is_heard();
        self.ask().await
    }

    /// Tells those who wait that a fetch has ended, and that its keys are in use.
    pub fn note_done(&self) {
        self.demand.lock().is_coming = false;
        self.done.send_modify(|count| *count += 1);
    }

    /// Fetches them for whoever wants to know once.
    ///
    /// # Errors
    /// When there are none, in a sentence.
    pub(super) async fn ask(&self) -> Result<(Vec<VerifyingKey>, Duration), String> {
        let root = self.root.clone();
        // Made each time, so that roots that were changed count.
        let client = off_thread(move || client(root.as_deref())).await.ok_or("the gateway is ending")??;
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = self.url.clone();
        request.headers_mut().insert(ACCEPT, KINDS);
        let answer = client.send(request).await.map_err(|error| in_words(&error))?;
        let (host, status) = (self.url.host().unwrap_or_default(), answer.status());
        if status != StatusCode::OK {
            return Err(format!(
                "`{host}` answered {} where the keys should be, and redirects are not followed; check `jwks_url`",
                status.as_u16()
            ));
        }
        let text = std::str::from_utf8(answer.body()).map_err(|_| format!("`{host}` sent no text"))?;
        let keys = key_set(text).map_err(|what| format!("what `{host}` sent is no set of keys: {what}"))?;
        Ok((keys, freshness(answer.headers())))
    }

    /// What was called for until now is what begins.
    fn call_is_heard(&self) {
        use futures_util::FutureExt as _;
        let _ = self.call.notified().now_or_never();
    }
}

impl Demand {
    fn may_call(&mut self, now: Instant) -> bool {
        while self.recent.front().is_some_and(|at| now - *at >= SPAN) {
            self.recent.pop_front();
        }
        let may = self.recent.len() < ON_DEMAND_MAX;
        if may {
            self.recent.push_back(now);
        }
        may
    }
}

/// The pause before a failed fetch is tried again, after so many failures in a row.
pub fn retry_after(failures: u32) -> Duration {
    RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_MAX)
}

/// What a server sends that speaks no TLS is taken for a broken record.
fn in_words(error: &FetchError) -> String {
    match error {
        FetchError::Untrusted { host, cause, .. } if cause.contains("InvalidContentType") => {
            format!("`{host}` speaks no TLS there; check the port in `jwks_url`")
        }
        error => error.to_string(),
    }
}

fn client(root: Option<&Path>) -> Result<Fetch, String> {
    let root_setting = Some("`root` of the issuer in `access.issuer`");
    let options =
        FetchOptions { deadline: DEADLINE, max_body: SET_MAX, root_setting, ..FetchOptions::default() };
    Fetch::with_root(root, options)
}

/// RFC 9111, section 5.2.2.1.
fn freshness(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut directives = values.flat_map(|value| value.split(',')).map(str::trim);
    let age = directives.find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| value.trim_matches('"').parse().ok())?
    });
    age.map_or(FRESH, |seconds| Duration::from_secs(seconds).clamp(FRESH_BOUNDS.0, FRESH_BOUNDS.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_what_the_server_says_within_bounds() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(value));
            freshness(&headers).as_secs()
        };
        assert_eq!(freshness(&HeaderMap::new()), FRESH);
        assert_eq!(of("public, Max-Age=\"900\", must-revalidate"), 900);
        assert_eq!(of("max-age=0"), 60);
        assert_eq!(of("max-age=99999999999"), 3600);
        assert_eq!(of("max-age=x"), 600);
        assert_eq!(of("no-store"), 600);
    }

    #[test]
    fn tokens_have_keys_fetched_within_bounds() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut may = |seconds| demand.may_call(at(seconds));
        assert_eq!([may(0), may(1), may(2), may(3), may(59)], [true, true, true, false, false]);
        assert_eq!([may(60), may(60), may(61), may(62), may(63)], [true, false, true, true, false]);
        assert!(demand.recent.len() <= ON_DEMAND_MAX);
    }

    #[test]
    fn pauses_after_failures_grow_up_to_a_bound() {
        let seconds = |failures| retry_after(failures).as_secs();
        assert_eq!(
            [seconds(1), seconds(2), seconds(4), seconds(7), seconds(u32::MAX)],
            [5, 10, 40, 300, 300]
        );
    }
}
