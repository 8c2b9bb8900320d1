//! What the gateway answers to DNS queries itself: the zones `_acme-challenge.…`, each with a SOA and
//! an NS record and the values of the moment. Pure: octets in, octets out.
//!
//! Refuses every other name, asks nobody else, and tells nobody of other zones.

use std::time::{SystemTime, UNIX_EPOCH};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use parking_lot::Mutex;

use super::ask::UDP_MAX;
use super::lookup::parse;
use super::{ChallengeRecord, DnsError};
use crate::name::HostName;

/// How long others may remember a value, or that there is none, in seconds: not at all, or `*.HOST`
/// could not be proved right after `HOST`, at the same name.
const TTL: u32 = 0;
/// How long they may remember who answers for a zone, in seconds.
const TTL_NS: u32 = 300;
/// Values that are kept at most; past it the oldest go.
const VALUES_MAX: usize = 1000;
/// Octets of a header.
const HEADER: usize = 12;
/// Octets of an answer over UDP to somebody who does not say how many they take (RFC 1035, section
/// 4.2.1).
const UDP_MAX_PLAIN: usize = 512;
/// How many times as long as its request an answer over UDP is at most, so that a forged sender's address
/// is worth little; who is real asks again over TCP.
const UDP_FACTOR: usize = 3;
/// Additional records of a request: what says its size, and what signs it.
const ADDITIONALS_MAX: u16 = 2;

/// What a request came over, and with that how long its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The zones, and what stands in them.
#[derive(Debug)]
pub(super) struct Zones {
    /// The first is that of the gateway's base host.
    apexes: Vec<Name>,
    /// The name server of all of them.
    host: Name,
    values: Mutex<Vec<Value>>,
}

/// What the gateway answers to DNS queries while one value stands: what is sent there can be tried without
/// a socket.
#[derive(Debug)]
pub struct Answers(Zones);

impl Answers {
    /// The answers of a gateway for this host, where `value` proves its name just now.
    ///
    /// # Errors
    /// When the DNS cannot hold the name.
    pub fn of(base: &HostName, value: &str) -> Result<Self, DnsError> {
        let zones = Zones::new([base], base)?;
        zones.add(&ChallengeRecord { name: format!("_acme-challenge.{base}"), value: value.to_owned() })?;
        Ok(Self(zones))
    }

    /// The answer to a request over UDP; `None` where silence is right.
    #[must_use]
    pub fn over_udp(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.0.answer(request, Transport::Udp)
    }

    /// The answer to a request over TCP, without its length; `None` where silence is right.
    #[must_use]
    pub fn over_tcp(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.0.answer(request, Transport::Tcp)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Value {
    name: Name,
    value: String,
}

impl Zones {
    /// A zone for each host; that of the first also shows the values of names that have none, since
    /// their CNAME records lead there.
    pub(super) fn new<'a>(
        hosts: impl IntoIterator<Item = &'a HostName>,
        host: &HostName,
    ) -> Result<Self, DnsError> {
        let mut apexes: Vec<Name> = Vec::new();
        for name in hosts {
            let apex = parse(&format!("_acme-challenge.{name}"))?;
            if !apexes.contains(&apex) {
                apexes.push(apex);
            }
        }
        Ok(Self { apexes, host: parse(host.as_str())?, values: Mutex::default() })
    }

    /// What this host is called.
    pub(super) fn host(&self) -> &Name {
        &self.host
    }

    /// Whether a zone begins at `name`.
    pub(super) fn holds(&self, name: &Name) -> bool {
        self.apexes.contains(name)
    }

    /// The record that lets `name` lead here, as in a zone file.
    pub(super) fn record_for(&self, name: &Name) -> String {
        match self.apexes.first() {
            Some(base) if !self.holds(name) => format!("{} CNAME {}", name.to_ascii(), base.to_ascii()),
            _ => format!("{} NS {}", name.to_ascii(), self.host.to_ascii()),
        }
    }

    /// Lets a value stand, beside the others.
    pub(super) fn add(&self, record: &ChallengeRecord) -> Result<(), DnsError> {
        let value = Value { name: parse(&record.name)?, value: record.value.clone() };
        let mut values = self.values.lock();
        if values.len() >= VALUES_MAX {
            values.remove(0);
        }
        values.retain(|there| *there != value);
        values.push(value);
        Ok(())
    }

    /// Takes one away.
    pub(super) fn remove(&self, record: &ChallengeRecord) -> Result<(), DnsError> {
        let name = parse(&record.name)?;
        let mut values = self.values.lock();
        if let Some(at) = values.iter().position(|value| value.name == name && value.value == record.value) {
            values.remove(at);
        }
        Ok(())
    }

    /// The answer to a request; `None` where silence is right.
    pub(super) fn answer(&self, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let head = request.get(..HEADER)?;
        let is_response = head[2] & 0x80 != 0;
        if is_response {
            // Answering answers is how two servers talk for ever.
            return None;
        }
        let op_code = OpCode::from_u8(head[2] >> 3 & 0xf);
        let (message, limit) = match understand(head, op_code, request) {
            Ok(asked) => {
                let limit = match (transport, &asked.edns) {
                    (Transport::Tcp, _) => usize::from(u16::MAX),
                    (Transport::Udp, None) => UDP_MAX_PLAIN.min(UDP_FACTOR * request.len()),
                    (Transport::Udp, Some(edns)) => {
                        let takes = usize::from(edns.max_payload().min(UDP_MAX)).max(UDP_MAX_PLAIN);
                        takes.min(UDP_FACTOR * request.len())
                    }
                };
                (self.respond(&asked), limit)
            }
            Err(code) => {
                let id = u16::from_be_bytes([head[0], head[1]]);
                let mut fault = Message::new(id, MessageType::Response, op_code);
                fault.metadata.response_code = code;
                (fault, UDP_MAX_PLAIN)
            }
        };
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit { Some(bytes) } else { message.truncate().to_vec().ok() }
    }

    fn respond(&self, asked: &Message) -> Message {
        let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
        answer.metadata = Metadata::response_from_request(&asked.metadata);
        answer.queries = asked.queries.clone();
        if let Some(theirs) = &asked.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX);
            answer.set_edns(edns);
            if theirs.version() != 0 {
                // RFC 6891, section 6.1.3.
                answer.metadata.response_code = ResponseCode::BADVERS;
                return answer;
            }
        }
        let Some(query) = asked.queries.first() else { return answer };
        let apex = self.apexes.iter().find(|apex| apex.zone_of(&query.name));
        let is_transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
        let (Some(apex), DNSClass::IN, false) = (apex, query.query_class, is_transfer) else {
            answer.metadata.response_code = ResponseCode::Refused;
            return answer;
        };
        answer.metadata.authoritative = true;
        if query.name == *apex {
            answer.answers = self.records(apex, query.query_type, &query.name);
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        if answer.answers.is_empty() {
            // Says how long it may be remembered that there is nothing (RFC 2308, section 3).
            answer.authorities.push(self.soa(apex));
        }
        answer
    }

    /// The records of this type at the top of a zone. They carry the name as it was asked for, since
    /// some resolvers vary its letters' case to tell true answers from forged ones.
    fn records(&self, apex: &Name, kind: RecordType, asked: &Name) -> Vec<Record> {
        let record = |ttl, data| Record::from_rdata(asked.clone(), ttl, data);
        match kind {
            RecordType::TXT => {
                let texts = self.texts(apex);
                texts.into_iter().map(|text| record(TTL, RData::TXT(TXT::new(vec![text])))).collect()
            }
            RecordType::NS => vec![record(TTL_NS, RData::NS(NS(self.host.clone())))],
            // One kind is answer enough to a question for any (RFC 8482, section 4.1).
            RecordType::SOA | RecordType::ANY => vec![self.soa(asked)],
            _ => Vec::new(),
        }
    }

    fn texts(&self, apex: &Name) -> Vec<String> {
        let is_base = self.apexes.first() == Some(apex);
        let mut texts: Vec<String> = Vec::new();
        for value in self.values.lock().iter() {
            if (is_base || value.name == *apex) && !texts.contains(&value.value) {
                texts.push(value.value.clone());
            }
        }
        texts
    }

    /// The SOA record of a zone, under its name as it was asked for.
    fn soa(&self, apex: &Name) -> Record {
        let mailbox = self.host.prepend_label("hostmaster").unwrap_or_else(|_| self.host.clone());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // Serial numbers wrap around (RFC 1982).
        let serial = u32::try_from(since & u64::from(u32::MAX)).unwrap_or_default();
        let soa = SOA::new(self.host.clone(), mailbox, serial, 3600, 600, 86400, TTL);
        Record::from_rdata(apex.clone(), TTL, RData::SOA(soa))
    }
}

/// The request, or what to say when it is none.
fn understand(head: &[u8], op_code: OpCode, request: &[u8]) -> Result<Message, ResponseCode> {
    if op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    // Looked at before anything is read, or a header alone would have room made for all it counts.
    let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let counts = (number(4), number(6), number(8), number(10));
    if !matches!(counts, (1, 0, 0, additionals) if additionals <= ADDITIONALS_MAX) {
        return Err(ResponseCode::FormErr);
    }
    Message::from_vec(request).map_err(|_| ResponseCode::FormErr)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn zones() -> Zones {
        let host = |name| HostName::parse(name).expect("a host name");
        let (base, app) = (host("preview.test"), host("app.example.com"));
        Zones::new([&base, &app], &host("gw.preview.test")).expect("made")
    }

    fn record(host: &str, value: &str) -> ChallengeRecord {
        ChallengeRecord { name: format!("_acme-challenge.{host}"), value: value.to_owned() }
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(parse(name).expect("a name"), kind));
        message
    }

    fn ask(zones: &Zones, message: &Message, transport: Transport) -> Message {
        let request = message.to_vec().expect("written");
        Message::from_vec(&zones.answer(&request, transport).expect("an answer")).expect("read")
    }

    #[test]
    fn junk_is_refused_or_left_alone() {
        let zones = zones();
        let good = query("_acme-challenge.preview.test", RecordType::TXT).to_vec().expect("written");
        for length in 0..good.len() {
            let answer = zones.answer(&good[..length], Transport::Udp);
            match answer {
                None => assert!(length < HEADER),
                Some(answer) => assert_eq!(answer[3] & 0xf, 1, "FORMERR at {length}"),
            }
        }
        let changed = |at: usize, to: u8| {
            let mut bad = good.clone();
            bad[at] = to;
            zones.answer(&bad, Transport::Udp)
        };
        assert_eq!(changed(2, 0x80), None, "an answer was answered");
        assert_eq!(changed(2, 5 << 3).expect("an answer")[3] & 0xf, 4, "an update was taken");
        for at in 4..12 {
            assert_eq!(changed(at, 0xff).expect("an answer")[3] & 0xf, 1);
        }
        // Every octet, every bit: no panic, and never more than was asked for.
        for (at, octet) in good.iter().enumerate() {
            for bit in 0..8 {
                let answer = changed(at, octet ^ 1 << bit);
                assert!(answer.is_none_or(|answer| answer.len() <= UDP_MAX_PLAIN));
            }
        }
    }

    /// Requests with anything in their additional records, and with any octets changed.
    #[test]
    fn no_request_leads_to_a_panic_or_a_long_answer() {
        let zones = zones();
        zones.add(&record("preview.test", "value")).expect("added");
        let mut good = query("_acme-challenge.preview.test", RecordType::TXT).to_vec().expect("written");
        good[11] = 1;
        good.extend([
            0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 16, 0, 10, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
        ]);
        assert_eq!(zones.answer(&good, Transport::Udp).expect("an answer")[3] & 0xf, 0);
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(seed >> 33).expect("fits")
        };
        for _ in 0..20_000 {
            let mut bad = good.clone();
            for _ in 0..=random() % 4 {
                let at = random() % bad.len();
                bad[at] = u8::try_from(random() & 0xff).expect("an octet");
            }
            bad.truncate(HEADER + random() % (2 * bad.len()));
            let answer = zones.answer(&bad, Transport::Udp);
            assert!(answer.is_none_or(|answer| answer.len() <= usize::from(UDP_MAX).min(3 * bad.len())));
        }
    }

    #[test]
    fn many_values_are_truncated_over_udp_and_whole_over_tcp() {
        let zones = zones();
        for index in 0..40 {
            zones.add(&record("preview.test", &format!("{index:0>43}"))).expect("added");
        }
        let mut message = query("_acme-challenge.preview.test", RecordType::TXT);
        for edns in [None, Some(4096)] {
            message.edns = edns.map(|size| {
                let mut edns = Edns::new();
                edns.set_max_payload(size);
                edns
            });
            let udp = ask(&zones, &message, Transport::Udp);
            assert!(udp.metadata.truncation && udp.answers.is_empty() && udp.queries == message.queries);
            let tcp = ask(&zones, &message, Transport::Tcp);
            assert!(!tcp.metadata.truncation);
            assert_eq!(tcp.answers.len(), 40);
        }
    }

    /// What a forged sender's address would be sent.
    #[test]
    fn over_udp_nobody_gets_more_than_three_times_what_they_sent() {
        let zones = zones();
        let message = query("_acme-challenge.preview.test", RecordType::TXT);
        for index in 0..10 {
            zones.add(&record("preview.test", &format!("{index:0>43}"))).expect("added");
            let request = message.to_vec().expect("written");
            let answer = zones.answer(&request, Transport::Udp).expect("an answer");
            assert!(answer.len() <= 3 * request.len(), "{} octets", answer.len());
            let is_whole = !Message::from_vec(&answer).expect("read").metadata.truncation;
            // One value always fits.
            assert_eq!(is_whole, index == 0);
            assert_eq!(ask(&zones, &message, Transport::Tcp).answers.len(), index + 1);
        }
    }

    #[test]
    fn names_without_a_zone_are_shown_where_their_cname_leads() {
        let zones = zones();
        zones.add(&record("preview.test", "base")).expect("added");
        zones.add(&record("app.example.com", "app")).expect("added");
        zones.add(&record("other.example.com", "other")).expect("added");
        let texts = |name: &str| {
            let answer = ask(&zones, &query(name, RecordType::TXT), Transport::Udp);
            let texts: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
            texts.join(" ")
        };
        assert_eq!(texts("_acme-challenge.preview.test"), "base app other");
        assert_eq!(texts("_ACME-challenge.app.EXAMPLE.com"), "app");
        assert_eq!(texts("_acme-challenge.other.example.com"), "");
        zones.remove(&record("app.example.com", "app")).expect("removed");
        assert_eq!(texts("_acme-challenge.app.example.com"), "");
    }

    #[test]
    fn only_so_many_values_are_kept() {
        let zones = zones();
        for index in 0..=VALUES_MAX {
            zones.add(&record("preview.test", &index.to_string())).expect("added");
        }
        assert_eq!(zones.values.lock().len(), VALUES_MAX);
        assert_eq!(zones.values.lock()[0].value, "1");
    }
}
