//! The gateway's own DNS server: listens on UDP and TCP, and lets [`super::zones`] answer.
//!
//! Refuses to hold much for anybody: a few TCP connections, each with deadlines; over UDP nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::delegation::leads_here;
use super::lookup::{Lookup, parse, show};
use super::zones::{Transport, Zones};
use super::{ChallengeRecord, DnsError, DnsProvider};
use crate::config::{ResponderSettings, Settings};
use crate::net::{BindError, Slots, Tasks, accept_loop, bind, bind_udp};
use crate::observe::Metrics;
use crate::registry::BoxFuture;

/// TCP connections in all, and from one address.
const CONNECTIONS: (usize, usize) = (100, 20);
/// How long one may be idle, and how long it may take for one request or one answer (RFC 7766,
/// section 6.2.3).
const TCP_WAIT: Duration = Duration::from_secs(10);
/// Requests on one.
const TCP_REQUESTS: usize = 100;
/// Octets of a request.
const REQUEST_MAX: usize = 4096;
/// Pause after the system refused to hand over what arrived.
const PAUSE: Duration = Duration::from_millis(100);
/// First and longest pause between two looks whether the zone above leads here.
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Tries to find a port that is free over both, where any will do.
const PORT_TRIES: usize = 20;

/// Answers for `_acme-challenge` names. Ends when dropped.
#[derive(Debug)]
pub(super) struct Responder {
    zones: Arc<Zones>,
    tasks: Tasks,
    pub(super) lookup: Lookup,
    /// How long the zone above may take to lead here.
    limit: Duration,
}

impl DnsProvider for Responder {
    fn set<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<Option<String>, DnsError>> {
        Box::pin(std::future::ready(self.zones.add(record).map(|()| None)))
    }

    /// The answers come from here: what is waited for is that others are led here.
    fn seen<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.wait_until_led_here(record))
    }

    fn cleanup<'a>(
        &'a self,
        record: &'a ChallengeRecord,
        _memo: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(std::future::ready(self.zones.remove(record)))
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.tasks.cut();
    }
}

impl Responder {
    /// Binds, and begins to answer; says where it listens, with the real ports where 0 was asked for.
    /// Must be called within a tokio runtime.
    pub(super) fn start(
        settings: &ResponderSettings,
        gateway: &Settings,
    ) -> Result<(Self, Vec<SocketAddr>), DnsError> {
        let routes = gateway.routes.iter().map(|route| &route.host).filter(|host| !host.is_ip());
        let zones = Arc::new(Zones::new(std::iter::once(&gateway.base.host).chain(routes), &settings.host)?);
        let mut listeners = Vec::new();
        let has_ipv4 = settings.listen.iter().any(SocketAddr::is_ipv4);
        for address in &settings.listen {
            match bind_both(*address) {
                Ok(both) => listeners.push(both),
                // Lists such as `0.0.0.0` and `[::]` are written for machines with and without IPv6.
                Err(DnsError::Bind(error @ BindError::NoIpv6(_))) if has_ipv4 => {
                    tracing::warn!(%error, "going on without");
                }
                Err(error) => return Err(error),
            }
        }
        let (tasks, mut bound) = (Tasks::new(), Vec::new());
        let slots = Slots::new(CONNECTIONS.0, CONNECTIONS.1);
        // Counted apart: who asks here is no visitor.
        let metrics = Arc::<Metrics>::default();
        for (tcp, udp) in listeners {
            let address = udp.local_addr().map_err(DnsError::Socket)?;
            tracing::info!(what = "dns", %address, "listening");
            bound.push(address);
            tasks.spawn("DNS over UDP", answer_udp(udp, zones.clone()));
            let (zones, connections) = (zones.clone(), tasks.clone());
            let serve = move |stream, peer, _, slot| {
                let zones = zones.clone();
                connections.spawn("DNS over TCP", async move {
                    let _slot = slot;
                    if let Err(error) = answer_tcp(stream, &zones).await {
                        tracing::debug!(%peer, %error, "a DNS connection ended early");
                    }
                });
            };
            tasks.spawn(
                "DNS listener",
                accept_loop(tcp, slots.clone(), tasks.clone(), metrics.clone(), serve),
            );
        }
        let (lookup, limit) = (Lookup::new(&gateway.dns), gateway.dns.timeout);
        Ok((Self { zones, tasks, lookup, limit }, bound))
    }

    /// An authority that is sent elsewhere counts it against the name, so it is not told to look before.
    async fn wait_until_led_here(&self, record: &ChallengeRecord) -> Result<(), DnsError> {
        let (name, end) = (parse(&record.name)?, Instant::now() + self.limit);
        let mut pause = LOOKS.0;
        loop {
            let late = |_| DnsError::TooSlow { name: record.name.clone(), limit: self.limit };
            let looked = tokio::time::timeout(self.limit, leads_here(&self.lookup, &name, &self.zones)).await;
            let Err(not) = looked.map_err(late)? else { return Ok(()) };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let record = self.zones.record_for(&not.at);
                return Err(DnsError::NotDelegated { name: show(&not.at), found: not.found, record });
            }
            tracing::debug!(name = %show(&not.at), found = not.found, "does not lead here yet");
            // The last look is at the end of the time.
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }
}

/// Binds a port over TCP and UDP.
fn bind_both(address: SocketAddr) -> Result<(TcpListener, UdpSocket), DnsError> {
    for tries in 1.. {
        let tcp = bind(address)?;
        let real = tcp.local_addr().map_err(DnsError::Socket)?;
        match bind_udp(real) {
            Ok(udp) => return Ok((tcp, udp)),
            // Some other port may be free over both.
            Err(_) if address.port() == 0 && tries < PORT_TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the last try returns")
}

async fn answer_udp(socket: UdpSocket, zones: Arc<Zones>) {
    let mut request = vec![0; REQUEST_MAX];
    loop {
        match socket.recv_from(&mut request).await {
            Ok((count, peer)) => {
                if let Some(answer) = zones.answer(&request[..count], Transport::Udp) {
                    // An answer that is lost is asked for again.
                    let sent = socket.send_to(&answer, peer).await;
                    tracing::debug!(%peer, octets = answer.len(), is_sent = sent.is_ok(), "a DNS answer");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take a DNS request");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer_tcp(mut stream: TcpStream, zones: &Zones) -> std::io::Result<()> {
    for _ in 0..TCP_REQUESTS {
        let request = timeout(TCP_WAIT, async {
            let Ok(length) = stream.read_u16().await else { return Ok(None) };
            let mut request = vec![0; usize::from(length)];
            if request.len() > REQUEST_MAX {
                return Ok(None);
            }
            stream.read_exact(&mut request).await?;
            std::io::Result::Ok(Some(request))
        });
        let Ok(Some(request)) = request.await.unwrap_or(Ok(None)) else { return Ok(()) };
        let Some(answer) = zones.answer(&request, Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        timeout(TCP_WAIT, stream.write_all(&framed)).await??;
    }
    Ok(())
}
