//! Waits until the servers of a record's zone all show it: a certificate authority asks any of them,
//! and remembers a no. It remembers the values that it saw, too: where another one stood at the same
//! name just before, as for `HOST` and `*.HOST`, that must be forgotten first.

use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::ask::{AskError, ask};
use super::lookup::{Lookup, ZoneServer, parse, show};
use super::{ChallengeRecord, DnsError};
use crate::config::DnsSettings;

/// Pause after the first round of questions; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between rounds.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Rounds in which an address may be silent before its server is judged by its other addresses.
const SILENT_ROUNDS: u32 = 3;
/// How long authorities remember a record, whatever its time to live.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Values that are kept in mind at most.
const STOOD_MAX: usize = 1000;

/// Waits for records, and keeps in mind which stood lately.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) lookup: Lookup,
    pub(super) limit: Duration,
    stood: Mutex<Vec<Stood>>,
}

#[derive(Debug)]
struct Stood {
    name: Name,
    value: String,
    /// When it was removed; `None` while it stands.
    gone: Option<Instant>,
}

impl Watch {
    pub(super) fn new(dns: &DnsSettings) -> Self {
        Self { lookup: Lookup::new(dns), limit: dns.timeout, stood: Mutex::default() }
    }

    /// The name that a record is set at: its own, or what that is another name for. Cancel safe.
    pub(super) async fn target_of(&self, record: &ChallengeRecord) -> Result<Name, DnsError> {
        let name = parse(&record.name)?;
        let late = |_| DnsError::TooSlow { name: record.name.clone(), limit: self.limit };
        Ok(tokio::time::timeout(self.limit, self.lookup.home_of(&name)).await.map_err(late)??.name)
    }

    /// Waits until every resolver gets to see a value that was just set. Cancel safe.
    pub(super) async fn seen(&self, record: &ChallengeRecord) -> Result<(), DnsError> {
        let (name, value) = (&self.target_of(record).await?, record.value.as_str());
        self.note(name, value);
        let lifetime = wait(&self.lookup, name, value, self.limit).await?.min(REMEMBERED);
        if self.has_other(name, value, lifetime) {
            tracing::debug!(name = %show(name), ?lifetime, "waiting until another value is forgotten");
            tokio::time::sleep(lifetime).await;
        }
        Ok(())
    }

    /// Says that a value was removed.
    pub(super) fn gone(&self, value: &str) {
        let mut stood = self.stood.lock();
        for entry in stood.iter_mut().filter(|entry| entry.value == value) {
            entry.gone = Some(Instant::now());
        }
    }

    fn note(&self, name: &Name, value: &str) {
        let mut stood = self.stood.lock();
        stood.retain(|entry| {
            let is_same = entry.name == *name && entry.value == value;
            !is_same && entry.gone.is_none_or(|gone| gone.elapsed() < REMEMBERED)
        });
        if stood.len() >= STOOD_MAX {
            stood.remove(0);
        }
        stood.push(Stood { name: name.clone(), value: value.to_owned(), gone: None });
    }

    /// Whether somebody may remember records of this name without the value.
    fn has_other(&self, name: &Name, value: &str, lifetime: Duration) -> bool {
        let is_other = |entry: &Stood| entry.name == *name && entry.value != value;
        let is_recent = |entry: &Stood| entry.gone.is_none_or(|gone| gone.elapsed() < lifetime);
        self.stood.lock().iter().any(|entry| is_other(entry) && is_recent(entry))
    }
}

/// Waits until the servers of the zone of `name` all show `value`; gives how long it may be
/// remembered. Cancel safe.
pub(super) async fn wait(
    lookup: &Lookup,
    name: &Name,
    value: &str,
    limit: Duration,
) -> Result<Duration, DnsError> {
    let start = Instant::now();
    let late = |servers: String| DnsError::NotSeen { name: show(name), servers, waited: start.elapsed() };
    let found = tokio::time::timeout(limit, lookup.home_of(name)).await;
    let servers = found.map_err(|_| late("they could not be found in that time".to_owned()))??.servers;
    let (mut round, mut pause) = (1, FIRST_PAUSE);
    loop {
        let (missing, lifetime) = ask_all(&servers, name, value, round).await;
        let missing = missing.join(", ");
        if missing.is_empty() {
            tracing::debug!(name = %show(name), round, "the record is seen");
            return Ok(Duration::from_secs(lifetime.into()));
        }
        if start.elapsed() + pause > limit {
            return Err(late(missing));
        }
        tracing::debug!(name = %show(name), servers = missing, "the record is not seen yet");
        tokio::time::sleep(pause).await;
        (round, pause) = (round + 1, (pause * 2).min(LONGEST_PAUSE));
    }
}

/// What those servers say that do not show the value; and for how many seconds the others let it be
/// remembered.
async fn ask_all(servers: &[ZoneServer], name: &Name, value: &str, round: u32) -> (Vec<String>, u32) {
    let asked = servers.iter().map(|server| async move {
        let answers = server.addresses.iter().map(|address| async move {
            (address.ip(), seen(ask(*address, name, RecordType::TXT, false).await, value))
        });
        (server, join_all(answers).await)
    });
    let mut missing = Vec::new();
    let (mut shown, mut lifetime) = (0, 0);
    let mut out_of_reach = Vec::new();
    for (server, answers) in join_all(asked).await {
        let times = answers.iter().filter_map(|(_, seen)| match seen {
            Seen::Yes(seconds) => Some(*seconds),
            _ => None,
        });
        let longest = times.max();
        lifetime = lifetime.max(longest.unwrap_or_default());
        let is_shown = longest.is_some();
        let excused = |seen: &Seen| match seen {
            Seen::Yes(_) | Seen::OutOfReach(_) => true,
            Seen::Silent => is_shown && round >= SILENT_ROUNDS,
            Seen::Not(_) => false,
        };
        shown += usize::from(is_shown);
        for (ip, seen) in answers.iter().filter(|(_, seen)| !excused(seen)) {
            missing.push(format!("`{}` ({ip}): {}", server.name, seen.words()));
        }
        if !is_shown && let Some((ip, seen @ Seen::OutOfReach(_))) = answers.first() {
            out_of_reach.push(format!("`{}` ({ip}): {}", server.name, seen.words()));
        }
    }
    // What this machine has no way to, such as IPv6 servers from where there is none, counts only
    // when there is nobody else to tell.
    (if shown == 0 && missing.is_empty() { out_of_reach } else { missing }, lifetime)
}

/// What a server showed.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// With its time to live, in seconds.
    Yes(u32),
    Not(String),
    Silent,
    OutOfReach(String),
}

impl Seen {
    fn words(&self) -> &str {
        match self {
            Self::Yes(_) => "it is there",
            Self::Silent => "no answer",
            Self::Not(what) | Self::OutOfReach(what) => what,
        }
    }
}

fn seen(answer: Result<Message, AskError>, value: &str) -> Seen {
    let answer = match answer {
        Ok(answer) => answer,
        Err(AskError::Silent) => return Seen::Silent,
        Err(AskError::Unreachable(error)) => return Seen::OutOfReach(error.to_string()),
        Err(error @ AskError::Malformed) => return Seen::Not(error.to_string()),
    };
    let texts: Vec<(Vec<u8>, u32)> =
        answer.answers.iter().filter_map(|record| Some((text_of(&record.data)?, record.ttl))).collect();
    if let Some((_, seconds)) = texts.iter().find(|(text, _)| text == value.as_bytes()) {
        return Seen::Yes(*seconds);
    }
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain if texts.is_empty() => {
            Seen::Not("no TXT record".to_owned())
        }
        ResponseCode::NoError => Seen::Not("other values only".to_owned()),
        code => Seen::Not(code.to_string()),
    }
}

/// The text of a TXT record: its parts joined (RFC 7208, section 3.3, and as authorities do).
fn text_of(data: &RData) -> Option<Vec<u8>> {
    match data {
        RData::TXT(text) => Some(text.txt_data.concat()),
        _ => None,
    }
}
