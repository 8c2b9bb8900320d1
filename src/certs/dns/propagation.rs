//! Waits until the servers of a record's zone all show it: a certificate authority asks any of them,
//! and remembers a no.

use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::Instant;

use super::DnsError;
use super::ask::{AskError, ask};
use super::lookup::{Lookup, ZoneServer, show};

/// Pause after the first round of questions; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between rounds.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Rounds in which an address may be silent before its server is judged by its other addresses.
const SILENT_ROUNDS: u32 = 3;

/// Waits until the servers of the zone of `name`, which is no other name's alias, all show `value`.
/// Cancel safe.
pub(super) async fn wait(lookup: &Lookup, name: &Name, value: &str, limit: Duration) -> Result<(), DnsError> {
    let start = Instant::now();
    let late = |servers: String| DnsError::NotSeen { name: show(name), servers, waited: start.elapsed() };
    let found = tokio::time::timeout(limit, async {
        let zone = lookup.zone_of(name).await?;
        lookup.servers_of(&zone).await
    });
    let servers = found.await.map_err(|_| late("they could not be found in that time".to_owned()))??;
    let (mut round, mut pause) = (1, FIRST_PAUSE);
    loop {
        let missing = missing(&servers, name, value, round).await.join(", ");
        if missing.is_empty() {
            tracing::debug!(name = %show(name), round, "the record is seen");
            return Ok(());
        }
        if start.elapsed() + pause > limit {
            return Err(late(missing));
        }
        tracing::debug!(name = %show(name), servers = missing, "the record is not seen yet");
        tokio::time::sleep(pause).await;
        (round, pause) = (round + 1, (pause * 2).min(LONGEST_PAUSE));
    }
}

/// What those servers say that do not show the value.
async fn missing(servers: &[ZoneServer], name: &Name, value: &str, round: u32) -> Vec<String> {
    let asked = servers.iter().map(|server| async move {
        let answers = server.addresses.iter().map(|address| async move {
            (address.ip(), seen(ask(*address, name, RecordType::TXT, false).await, value))
        });
        (server, join_all(answers).await)
    });
    let mut missing = Vec::new();
    let mut shown = 0;
    let mut out_of_reach = Vec::new();
    for (server, answers) in join_all(asked).await {
        let is_shown = answers.iter().any(|(_, seen)| *seen == Seen::Yes);
        let excused = |seen: &Seen| match seen {
            Seen::Yes | Seen::OutOfReach(_) => true,
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
    if shown == 0 && missing.is_empty() { out_of_reach } else { missing }
}

/// What a server showed.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Yes,
    Not(String),
    Silent,
    OutOfReach(String),
}

impl Seen {
    fn words(&self) -> &str {
        match self {
            Self::Yes => "it is there",
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
    let texts: Vec<Vec<u8>> = answer.answers.iter().filter_map(|record| text_of(&record.data)).collect();
    match answer.metadata.response_code {
        _ if texts.iter().any(|text| text == value.as_bytes()) => Seen::Yes,
        ResponseCode::NoError | ResponseCode::NXDomain if texts.is_empty() => {
            Seen::Not("no TXT record".to_owned())
        }
        ResponseCode::NoError => Seen::Not("other values only".to_owned()),
        code => Seen::Not(code.to_string()),
    }
}

/// The text of a TXT record: its parts joined (RFC 7208, section 3.3, and as authorities do).
pub(super) fn text_of(data: &RData) -> Option<Vec<u8>> {
    match data {
        RData::TXT(text) => Some(text.txt_data.concat()),
        _ => None,
    }
}
