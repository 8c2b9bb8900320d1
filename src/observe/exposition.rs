//! All figures as OpenMetrics text, each with its name and meaning. `docs/metrics.md` has the
//! same list, which a test compares.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::Reason;
use super::metrics::{Counter, Histogram, Metrics};

/// What the text is (OpenMetrics 1.0, section "Text Format").
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Figures that are read off when somebody asks.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// When the process began to serve.
    pub started: Option<SystemTime>,
    /// Open connections.
    pub connections: u64,
    /// Connections that may be open.
    pub connections_max: u64,
    /// When the first of the certificates ends, in seconds since 1970. `None` without any.
    pub certificate_end: Option<i64>,
    /// Tunnels that are offered.
    pub tunnels: u64,
    /// Agents.
    pub ssh: SshNow,
}

/// What [`Now`] is of agents' sessions.
#[derive(Clone, Debug, Default)]
pub struct SshNow {
    /// Open sessions.
    pub sessions: u64,
    /// Channels open towards agents.
    pub channels: u64,
    /// Octets received from agents, in all, SSH's own included.
    pub received: u64,
    /// Octets sent to agents, in all, SSH's own included.
    pub sent: u64,
    /// Octets of temporary files for unread answers.
    pub disk: u64,
}

/// Writes all figures down.
#[must_use]
pub fn openmetrics(metrics: &Arc<Metrics>, now: Now) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures { metrics: metrics.clone(), now }));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes all");
    text
}

#[derive(Debug)]
struct Figures {
    metrics: Arc<Metrics>,
    now: Now,
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.process(&mut page)?;
        self.connections(&mut page)?;
        self.requests(&mut page)?;
        self.sessions(&mut page)?;
        self.logins(&mut page)?;
        self.unread(&mut page)
    }
}

/// One part of the list each.
impl Figures {
    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        page.info("oneport_build", "The program that runs", ("version", env!("CARGO_PKG_VERSION")))?;
        let since_1970 = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let started = self.now.started.and_then(since_1970).map(|since| since.as_secs_f64());
        page.seconds(
            "oneport_start_time",
            "When the process began to serve, in seconds since 1970",
            started.unwrap_or_default(),
        )?;
        // Those that have ended long ago, and their absence, are seen in the same way.
        let end = self.now.certificate_end.unwrap_or_default();
        page.seconds(
            "oneport_certificate_end",
            "When the first of the certificates ends, in seconds since 1970; 0 without any",
            end as f64,
        )
    }

    fn connections(&self, page: &mut Page<'_>) -> fmt::Result {
        let (net, edge, now) = (&self.metrics.net, &self.metrics.edge, &self.now);
        page.gauge("oneport_connections_open", "Open connections of visitors and agents", now.connections)?;
        page.gauge("oneport_connections_limit", "Connections that may be open", now.connections_max)?;
        page.counter("oneport_connections_accepted", "Connections accepted by a listener", &net.accepted)?;
        page.by_reason(
            "oneport_connections_refused",
            "Connections that ended before it was known what they carry, or for want of a slot",
            net.refused.counts(),
        )?;
        let classes = [
            ("http", &edge.http),
            ("ssh", &edge.ssh),
            ("plain-http", &edge.plain_http),
            ("acme-tls", &edge.probes),
        ];
        page.split("oneport_connections_identified", "What connections carry", "class", &classes)?;
        page.by_reason(
            "oneport_visitor_connections_ended",
            "Visitors' connections that have ended",
            net.ended.counts(),
        )?;
        let versions = [("1.2", &edge.tls12), ("1.3", &edge.tls13)];
        page.split("oneport_tls_handshakes", "Finished TLS handshakes", "version", &versions)?;
        page.histogram(
            "oneport_connection_identification",
            "Time from accept until it was known what a connection to the single port carries",
            &edge.identified,
        )
    }

    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let http = &self.metrics.http;
        // The later count is read first, so that the difference is never below zero.
        let ended = http.ended.total();
        let running = http.begun.count().saturating_sub(ended);
        page.gauge("oneport_http_requests_running", "Requests that run, switched streams included", running)?;
        page.requests("oneport_http_requests", "Requests that have ended", &self.metrics)?;
        let (received, sent) = (http.received.count(), http.sent.count());
        page.octets(
            "oneport_http_received",
            "Octets of bodies and switched streams from visitors",
            received,
        )?;
        page.octets("oneport_http_sent", "Octets of bodies and switched streams to visitors", sent)?;
        let ended = http.upgraded_ended.count();
        let open = http.upgraded.count().saturating_sub(ended);
        page.gauge("oneport_http_upgraded_open", "Switched streams (WebSocket and others) that run", open)?;
        page.counter("oneport_http_upgraded", "Streams that have switched protocols", &http.upgraded)?;
        page.counter(
            "oneport_upstream_connections_opened",
            "Connections opened to services",
            &http.upstream_opened,
        )?;
        page.counter(
            "oneport_upstream_connections_reused",
            "Times that a kept connection to a service was used again",
            &http.upstream_reused,
        )
    }

    fn sessions(&self, page: &mut Page<'_>) -> fmt::Result {
        let (ssh, now) = (&self.metrics.ssh, &self.now.ssh);
        page.gauge("oneport_tunnels_open", "Tunnels that are offered", self.now.tunnels)?;
        page.counter("oneport_tunnels_opened", "Tunnels opened", &ssh.tunnels)?;
        page.gauge("oneport_ssh_sessions_open", "Open sessions of agents", now.sessions)?;
        page.counter("oneport_ssh_sessions_begun", "Sessions begun", &ssh.begun)?;
        page.by_reason("oneport_ssh_sessions_ended", "Sessions that have ended", ssh.ended.counts())?;
        page.counter("oneport_ssh_keys_refused", "Keys that may not connect", &ssh.keys_refused)?;
        page.by_reason(
            "oneport_ssh_forwards_refused",
            "Forward requests refused",
            ssh.forwards_refused.counts(),
        )?;
        page.gauge("oneport_ssh_channels_open", "Channels open towards agents", now.channels)?;
        page.counter("oneport_ssh_channels_opened", "Channels opened towards agents", &ssh.channels)?;
        page.counter(
            "oneport_ssh_channels_closed_first",
            "Channels that the gateway closed first; each costs some 3.5 KiB until its session ends",
            &ssh.closed_first,
        )?;
        page.octets("oneport_ssh_received", "Octets from agents, SSH's own included", now.received)?;
        page.octets("oneport_ssh_sent", "Octets to agents, SSH's own included", now.sent)
    }

    fn logins(&self, page: &mut Page<'_>) -> fmt::Result {
        let access = &self.metrics.access;
        let ways = [("ssh", &access.failed_ssh), ("http", &access.failed_http)];
        page.split("oneport_logins_failed", "Logins with something wrong", "by", &ways)?;
        page.counter(
            "oneport_addresses_locked_out",
            "Times that an address was refused from then on for its failed logins",
            &access.locked_out,
        )
    }

    fn unread(&self, page: &mut Page<'_>) -> fmt::Result {
        let (ssh, now) = (&self.metrics.ssh, &self.now.ssh);
        page.octets(
            "oneport_spill_written",
            "Octets pulled from agents into temporary files because their visitors took nothing",
            ssh.spilled.count(),
        )?;
        let help = "Size of the temporary files for unread answers";
        page.gauge_of("oneport_spill_disk", help, Some(&Unit::Bytes), |metric| {
            metric.encode_gauge(&now.disk)
        })?;
        page.by_reason(
            "oneport_spill_streams_cut",
            "Streams cut for what was unread of them",
            ssh.cut.counts(),
        )
    }
}

/// The text in the making.
struct Page<'a>(DescriptorEncoder<'a>);

type Metric<'a> = prometheus_client::encoding::MetricEncoder<'a>;
/// No counter has an example, but the encoder wants to know of which kind.
const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

impl Page<'_> {
    fn info(&mut self, name: &str, help: &str, label: (&str, &str)) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        metric.encode_info(&[label])
    }

    fn gauge_of(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl FnOnce(&mut Metric<'_>) -> fmt::Result,
    ) -> fmt::Result {
        value(&mut self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauge_of(name, help, None, |metric| metric.encode_gauge(&value))
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauge_of(name, help, Some(&Unit::Seconds), |metric| metric.encode_gauge(&value))
    }

    fn count(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter(&count, NO_EXEMPLAR)
    }

    fn counter(&mut self, name: &str, help: &str, counter: &Counter) -> fmt::Result {
        self.count(name, help, counter.count())
    }

    fn octets(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Counter)?;
        metric.encode_counter(&count, NO_EXEMPLAR)
    }

    fn split(&mut self, name: &str, help: &str, label: &str, counters: &[(&str, &Counter)]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, counter) in counters {
            metric.encode_family(&[(label, *value)])?.encode_counter(&counter.count(), NO_EXEMPLAR)?;
        }
        Ok(())
    }

    fn by_reason(
        &mut self,
        name: &str,
        help: &str,
        counts: impl Iterator<Item = (Reason, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, count) in counts {
            metric.encode_family(&[("reason", reason.word())])?.encode_counter(&count, NO_EXEMPLAR)?;
        }
        Ok(())
    }

    fn requests(&mut self, name: &str, help: &str, metrics: &Metrics) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, class, count) in metrics.http.ended.counts() {
            let labels = [("reason", reason.word()), ("status", class)];
            metric.encode_family(&labels)?.encode_counter(&count, NO_EXEMPLAR)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        let buckets = histogram.buckets();
        let count = buckets.iter().map(|(_, count)| count).sum();
        metric.encode_histogram::<NoLabelSet>(histogram.sum(), count, &buckets, None)
    }
}
