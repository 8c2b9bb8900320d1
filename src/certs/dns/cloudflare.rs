//! Records set through Cloudflare's API (version 4). Written plainly, as the example for other
//! providers: find the zone, add a TXT record, find it again by its value and delete it by its id.
//!
//! Keeps nothing between calls, so that a record set before a restart can be removed after it.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

use super::lookup::show;
use super::propagation::Watch;
use super::{ChallengeRecord, DnsError, DnsProvider, reveal};
use crate::config::{CloudflareSettings, DnsSettings};
use crate::net::{Fetch, FetchError, FetchOptions};
use crate::registry::BoxFuture;

/// How long others may remember the record, in seconds: the least that every plan allows.
const TTL: u32 = 60;
/// Time for one request.
const REQUEST_WAIT: Duration = Duration::from_secs(30);
/// The codes by which the API says that a record is there already.
const IDENTICAL: [u64; 2] = [81057, 81058];

/// Why Cloudflare did not set or remove a record. One sentence each.
#[derive(Debug, thiserror::Error)]
pub enum CloudflareError {
    /// No answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// This process ends.
    #[error("the gateway is ending; it goes on after the next start")]
    Ending,
    /// The token cannot be sent.
    #[error(
        "the token for Cloudflare holds what no token does; copy it to `dns.cloudflare.token` as the dashboard showed it"
    )]
    NotAToken,
    /// The token is not taken.
    #[error(
        "Cloudflare does not take the token ({0}); make one with the permissions Zone / Zone / Read and Zone / DNS / Edit for this zone, and write it into `dns.cloudflare.token`"
    )]
    BadToken(String),
    /// No zone.
    #[error(
        "the token sees no zone at Cloudflare that holds `{0}`; give it the permissions Zone / Zone / Read and Zone / DNS / Edit for that zone"
    )]
    NoZone(String),
    /// Too many requests.
    #[error("Cloudflare was asked too often for now ({0}); it is tried again later")]
    TooOften(String),
    /// Something else.
    #[error(
        "Cloudflare did not {what}: {said} (HTTP status {status}); see its status page, or set the record by hand"
    )]
    Refused {
        /// What was asked for.
        what: String,
        /// What it said.
        said: String,
        /// The status of the answer.
        status: u16,
    },
}

/// Sets records at Cloudflare.
#[derive(Debug)]
pub(super) struct Cloudflare {
    settings: CloudflareSettings,
    watch: Watch,
    options: FetchOptions,
    /// By whom the system trusted when it was made; `None` after the API was not trusted, since that may
    /// have been out of date.
    fetch: Mutex<Option<Fetch>>,
}

/// What every answer looks like.
#[derive(Deserialize)]
struct Envelope<T> {
    result: Option<T>,
}

/// What an answer says when it is none.
#[derive(Deserialize)]
struct Faults {
    #[serde(default)]
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    code: u64,
    message: String,
}

#[derive(Deserialize)]
struct Zone {
    id: String,
}

#[derive(Deserialize)]
struct ZoneRecord {
    id: String,
    content: String,
}

impl DnsProvider for Cloudflare {
    fn set<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<Option<String>, DnsError>> {
        Box::pin(async move { self.in_time(record, self.add(record)).await.map(|()| None) })
    }

    fn seen<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.watch.seen(record))
    }

    fn cleanup<'a>(
        &'a self,
        record: &'a ChallengeRecord,
        _memo: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async move {
            let removed = self.in_time(record, self.remove(record)).await;
            self.watch.gone(&record.value);
            removed
        })
    }
}

impl Cloudflare {
    pub(super) fn new(settings: &CloudflareSettings, dns: &DnsSettings) -> Result<Self, DnsError> {
        let options = FetchOptions { deadline: REQUEST_WAIT.min(dns.timeout), ..FetchOptions::default() };
        let fetch = Mutex::new(Some(Fetch::new(options.clone()).map_err(CloudflareError::Fetch)?));
        Ok(Self { settings: settings.clone(), watch: Watch::new(dns), options, fetch })
    }

    async fn fetch(&self) -> Result<Fetch, CloudflareError> {
        if let Some(fetch) = self.fetch.lock().clone() {
            return Ok(fetch);
        }
        let options = self.options.clone();
        let made = tokio::task::spawn_blocking(move || Fetch::new(options)).await;
        let made = made.map_err(|_| CloudflareError::Ending)??;
        Ok(self.fetch.lock().insert(made).clone())
    }

    async fn in_time<T>(
        &self,
        record: &ChallengeRecord,
        work: impl Future<Output = Result<T, DnsError>>,
    ) -> Result<T, DnsError> {
        let late = |_| DnsError::TooSlow { name: record.name.clone(), limit: self.watch.limit };
        tokio::time::timeout(self.watch.limit, work).await.map_err(late)?
    }

    async fn add(&self, record: &ChallengeRecord) -> Result<(), DnsError> {
        let shown = show(&self.watch.target_of(record).await?);
        let zone = self.zone_of(&shown).await?;
        let content = format!("\"{}\"", record.value);
        let body = json!({ "type": "TXT", "name": shown, "content": content, "ttl": TTL });
        let path = format!("/zones/{zone}/dns_records");
        match self.call::<ZoneRecord>(Method::POST, &path, Some(&body), "set the record").await? {
            Said::Result(_) | Said::Identical => Ok(()),
        }
    }

    async fn remove(&self, record: &ChallengeRecord) -> Result<(), DnsError> {
        let shown = show(&self.watch.target_of(record).await?);
        let zone = self.zone_of(&shown).await?;
        let path = format!("/zones/{zone}/dns_records?type=TXT&per_page=100&name={shown}");
        let there: Vec<ZoneRecord> = self.result(&path, "list the records").await?;
        // It gives what is between the quotes, or that with them.
        for found in there.iter().filter(|found| found.content.trim_matches('"') == record.value) {
            let path = format!("/zones/{zone}/dns_records/{}", found.id);
            self.call::<serde_json::Value>(Method::DELETE, &path, None, "delete the record").await?;
        }
        Ok(())
    }

    /// The id of the zone that holds `name`: of the longest end of it that is a zone.
    async fn zone_of(&self, name: &str) -> Result<String, DnsError> {
        let mut at = name;
        while let Some((_, parent)) = at.split_once('.').filter(|(_, parent)| parent.contains('.')) {
            at = parent;
            let zones: Vec<Zone> = self.result(&format!("/zones?name={at}"), "list the zones").await?;
            if let Some(zone) = zones.into_iter().next() {
                return Ok(zone.id);
            }
        }
        Err(CloudflareError::NoZone(name.to_owned()).into())
    }

    async fn result<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        what: &str,
    ) -> Result<Vec<T>, DnsError> {
        match self.call::<Vec<T>>(Method::GET, path, None, what).await? {
            Said::Result(result) => Ok(result),
            Said::Identical => Ok(Vec::new()),
        }
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        what: &str,
    ) -> Result<Said<T>, DnsError> {
        let token = reveal(&self.settings.token)?;
        let mut token =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| CloudflareError::NotAToken)?;
        token.set_sensitive(true);
        let url = format!("{}{path}", self.settings.api);
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .header(AUTHORIZATION, token)
            .header(CONTENT_TYPE, "application/json")
            .body(body.map(|body| Bytes::from(body.to_string())).unwrap_or_default())
            .map_err(|_| CloudflareError::Fetch(FetchError::BadUrl(url)))?;
        let answer = self.fetch().await?.send(request).await;
        if let Err(FetchError::Untrusted { .. }) = &answer {
            *self.fetch.lock() = None;
        }
        let answer = answer.map_err(CloudflareError::Fetch)?;
        Ok(judge(answer.status(), answer.body(), what)?)
    }
}

/// What the API said, when it is no fault.
#[derive(Debug)]
enum Said<T> {
    Result(T),
    /// A record like this is there already.
    Identical,
}

fn judge<T: serde::de::DeserializeOwned>(
    status: StatusCode,
    body: &[u8],
    what: &str,
) -> Result<Said<T>, CloudflareError> {
    if status.is_success()
        && let Ok(Envelope { result: Some(result) }) = serde_json::from_slice(body)
    {
        return Ok(Said::Result(result));
    }
    let faults = serde_json::from_slice::<Faults>(body).map(|faults| faults.errors).unwrap_or_default();
    if faults.iter().any(|fault| IDENTICAL.contains(&fault.code)) {
        return Ok(Said::Identical);
    }
    let said = if faults.is_empty() {
        "it said nothing that can be understood".to_owned()
    } else {
        let all = faults.iter().map(|fault| format!("{} ({})", fault.message, fault.code));
        all.collect::<Vec<_>>().join(", ").chars().filter(|c| !c.is_control()).take(500).collect()
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CloudflareError::BadToken(said)),
        // A token in the wrong form comes back as a wrong header.
        StatusCode::BAD_REQUEST if faults.iter().any(|fault| fault.code == 6003) => {
            Err(CloudflareError::BadToken(said))
        }
        StatusCode::TOO_MANY_REQUESTS => Err(CloudflareError::TooOften(said)),
        status => Err(CloudflareError::Refused { what: what.to_owned(), said, status: status.as_u16() }),
    }
}
