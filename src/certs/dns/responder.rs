//! The gateway's own DNS server: listens on UDP and TCP, and lets [`super::zones`] answer.
//!
//! Refuses to hold much for anybody: a few TCP connections, each with deadlines; over UDP nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::zones::{Transport, Zones};
use super::{ChallengeRecord, DnsError, DnsProvider};
use crate::config::{ResponderSettings, Settings};
use crate::net::{Slots, Tasks, accept_loop, bind, bind_udp};
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
/// Tries to find a port that is free over both, where any will do.
const PORT_TRIES: usize = 20;

/// Answers for `_acme-challenge` names. Ends when dropped.
#[derive(Debug)]
pub(super) struct Responder {
    zones: Arc<Zones>,
    tasks: Tasks,
}

impl DnsProvider for Responder {
    /// The answers come from here: there is nothing to wait for.
    fn present<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(std::future::ready(self.zones.add(record)))
    }

    fn cleanup<'a>(&'a self, record: &'a ChallengeRecord) -> BoxFuture<'a, Result<(), DnsError>> {
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
        for address in &settings.listen {
            listeners.push(bind_both(*address)?);
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
        Ok((Self { zones, tasks }, bound))
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
