//! Waits until the servers of a record's zone all show it: a certificate authority asks any of them,
//! and remembers a no. It remembers the values that it saw, too: where another one stood at the same
//! name just before, as for `HOST` and `*.HOST`, that must be forgotten first.
//!
//! A server that says nothing is waited for, but not for ever: authorities ask the next one.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::ask::{AskError, ask};
use super::lookup::{Home, Lookup, ZoneServer, parse, show};
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
        let value = record.value.as_str();
        self.note(&self.target_of(record).await?, value);
        let (name, lifetime) = wait(&self.lookup, &parse(&record.name)?, value, self.limit).await?;
        let (name, lifetime) = (&name, lifetime.min(REMEMBERED));
        self.note(name, value);
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

/// Waits until the servers of the zone that `name` leads to all show `value`; gives where that is, and
/// how long it may be remembered. Cancel safe.
pub(super) async fn wait(
    lookup: &Lookup,
    name: &Name,
    value: &str,
    limit: Duration,
) -> Result<(Name, Duration), DnsError> {
    let start = Instant::now();
    let late = |servers: String| DnsError::NotSeen { name: show(name), servers, waited: start.elapsed() };
    let find = || tokio::time::timeout(limit.saturating_sub(start.elapsed()), lookup.home_of(name));
    let mut home = find().await.map_err(|_| late("they could not be found in that time".to_owned()))??;
    let (mut number, mut pause) = (1, FIRST_PAUSE);
    loop {
        let round = ask_all(&home, value, number).await;
        let missing = round.missing.join(", ");
        let left = limit.saturating_sub(start.elapsed());
        let is_late = left.is_zero();
        if !missing.is_empty() && is_late && round.will_do() {
            tracing::warn!(name = %show(&home.name), "going on, although not all name servers of the zone can be asked: {missing}; mend them, or take them out of its NS records");
        } else if missing.is_empty() {
            tracing::debug!(name = %show(&home.name), round = number, "the record is seen");
        } else if is_late {
            return Err(late(missing));
        } else {
            tracing::debug!(name = %show(&home.name), servers = missing, "the record is not seen yet");
            // The last look is at the end of the time.
            tokio::time::sleep(pause.min(left)).await;
            (number, pause) = (number + 1, (pause * 2).min(LONGEST_PAUSE));
            // Where a wildcard's alias stood, there may be the record itself now.
            if let Ok(Ok(found)) = find().await {
                home = found;
            }
            continue;
        }
        return Ok((home.name, Duration::from_secs(round.lifetime.into())));
    }
}

/// What all servers of a zone said.
#[derive(Debug)]
struct Round {
    /// What those say that are still waited for.
    missing: Vec<String>,
    /// How many show the value, and how many say that it is not there.
    shown: usize,
    denied: usize,
    /// For how many seconds the first let it be remembered.
    lifetime: u32,
}

impl Round {
    /// Whether whoever asks finds the value, or nobody and asks the next: true of no server that says
    /// that there is none.
    fn will_do(&self) -> bool {
        self.shown > 0 && self.denied == 0
    }
}

async fn ask_all(home: &Home, value: &str, number: u32) -> Round {
    let Home { name, servers } = home;
    let asked = servers.iter().map(|server| async move {
        let answers = server.addresses.iter().map(|address| async move {
            (address.ip(), seen(ask(*address, name, RecordType::TXT, false).await, value))
        });
        (server, join_all(answers).await)
    });
    judge(&join_all(asked).await, number)
}

fn judge(said: &[(&ZoneServer, Vec<(IpAddr, Seen)>)], number: u32) -> Round {
    let mut round = Round { missing: Vec::new(), shown: 0, denied: 0, lifetime: 0 };
    let mut out_of_reach = Vec::new();
    for (server, answers) in said {
        let times = answers.iter().filter_map(|(_, seen)| match seen {
            Seen::Yes(seconds) => Some(*seconds),
            _ => None,
        });
        let longest = times.max();
        round.lifetime = round.lifetime.max(longest.unwrap_or_default());
        let is_shown = longest.is_some();
        let excused = |seen: &Seen| match seen {
            Seen::Yes(_) | Seen::OutOfReach(_) => true,
            Seen::Silent => is_shown && number >= SILENT_ROUNDS,
            Seen::Not(_) | Seen::Broken(_) => false,
        };
        round.shown += usize::from(is_shown);
        round.denied += answers.iter().filter(|(_, seen)| matches!(seen, Seen::Not(_))).count();
        for (ip, seen) in answers.iter().filter(|(_, seen)| !excused(seen)) {
            round.missing.push(format!("`{}` ({ip}): {}", server.name, seen.words()));
        }
        if !is_shown && let Some((ip, seen @ Seen::OutOfReach(_))) = answers.first() {
            out_of_reach.push(format!("`{}` ({ip}): {}", server.name, seen.words()));
        }
    }
    // What this machine has no way to, such as IPv6 servers from where there is none, counts only
    // when there is nobody else to tell.
    if round.shown == 0 && round.missing.is_empty() {
        round.missing = out_of_reach;
    }
    round
}

/// What a server showed.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// With its time to live, in seconds.
    Yes(u32),
    /// There is no such value, which is remembered.
    Not(String),
    /// It does not know. Whoever asks goes on to the next server.
    Broken(String),
    Silent,
    OutOfReach(String),
}

impl Seen {
    fn words(&self) -> &str {
        match self {
            Self::Yes(_) => "it is there",
            Self::Silent => "no answer",
            Self::Not(what) | Self::Broken(what) | Self::OutOfReach(what) => what,
        }
    }
}

fn seen(answer: Result<Message, AskError>, value: &str) -> Seen {
    let answer = match answer {
        Ok(answer) => answer,
        Err(AskError::Silent) => return Seen::Silent,
        Err(AskError::Unreachable(error)) => return Seen::OutOfReach(error.to_string()),
        Err(error @ AskError::Malformed) => return Seen::Broken(error.to_string()),
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
        code => Seen::Broken(code.to_string()),
    }
}

/// The text of a TXT record: its parts joined (RFC 7208, section 3.3, and as authorities do).
fn text_of(data: &RData) -> Option<Vec<u8>> {
    match data {
        RData::TXT(text) => Some(text.txt_data.concat()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_denies_the_value_holds_it_up_for_ever() {
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let server = |name: &str| ZoneServer { name: name.to_owned(), addresses: Vec::new() };
        let (one, two) = (server("one"), server("two"));
        let will_do = |first: Seen, second: Seen| {
            let round = judge(&[(&one, vec![(ip(1), first)]), (&two, vec![(ip(2), second)])], 1);
            (round.missing.is_empty(), round.will_do())
        };
        let text = || "x".to_owned();
        assert_eq!(will_do(Seen::Yes(1), Seen::Yes(60)), (true, true));
        assert_eq!(will_do(Seen::Yes(1), Seen::OutOfReach(text())), (true, true));
        assert_eq!(will_do(Seen::Yes(1), Seen::Silent), (false, true));
        assert_eq!(will_do(Seen::Yes(1), Seen::Broken(text())), (false, true));
        assert_eq!(will_do(Seen::Yes(1), Seen::Not(text())), (false, false));
        assert_eq!(will_do(Seen::Silent, Seen::Silent), (false, false));
        assert_eq!(will_do(Seen::OutOfReach(text()), Seen::OutOfReach(text())), (false, false));
    }
}
