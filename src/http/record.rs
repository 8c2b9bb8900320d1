//! One access record a request, written when the request has ended, however it ended.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};

use super::patience::Unsent;
use super::stay::{Stay, Stays};
use crate::access::Counted;
use crate::name::HostName;
use crate::net::{ConnId, Tasks, VisitorAddr};
use crate::observe::{Metrics, Reason};
use crate::registry::{Target, Visit};

/// Names a request: the connection and the request's number on it. Shown in error pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestId(pub(super) ConnId, pub(super) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// What is known of a request's body on its way up; shared with the connection it goes out on.
#[derive(Debug, Default)]
pub(super) struct Upload {
    /// Octets taken from the visitor.
    pub(super) octets: AtomicU64,
    /// Whether all of it was taken.
    pub(super) ended: AtomicBool,
    /// Whether it broke HTTP on the way.
    pub(super) malformed: AtomicBool,
    /// Whether the visitor went away in its middle.
    pub(super) cut: AtomicBool,
    /// Whether nothing more of it came in time.
    pub(super) stalled: AtomicBool,
    /// Whether the answer has begun.
    pub(super) answered: AtomicBool,
}

impl Upload {
    /// Whether all of it was taken.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// How many requests a connection has open, and when it last had one.
#[derive(Debug)]
pub(super) struct Activity {
    open: AtomicU64,
    started: Instant,
    last: AtomicU64,
    /// Whether something waits for the visitor to take it.
    pub(super) unsent: Arc<Unsent>,
    /// The visits that run.
    pub(super) stays: Stays,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

impl Activity {
    /// Begins now.
    pub(super) fn new(tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self {
            open: AtomicU64::new(0),
            started: Instant::now(),
            last: AtomicU64::new(0),
            unsent: Arc::default(),
            stays: Stays::default(),
            tasks,
            metrics,
        }
    }

    /// How long no request has been open; `None` while one is.
    pub(super) fn idle(&self) -> Option<std::time::Duration> {
        let since = std::time::Duration::from_millis(self.last.load(Ordering::Relaxed));
        (self.open.load(Ordering::Relaxed) == 0).then(|| self.started.elapsed().saturating_sub(since))
    }

    fn end_one(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request while it runs; dropping it writes the record.
#[derive(Debug)]
pub(super) struct Record {
    /// The request.
    pub(super) id: RequestId,
    /// Who it came from.
    pub(super) visitor: VisitorAddr,
    /// Its method.
    pub(super) method: Method,
    /// The host it was for.
    pub(super) host: Option<HostName>,
    /// Its path; the query stays out of the record.
    pub(super) path: Option<PathAndQuery>,
    /// The version it came in.
    pub(super) version: Version,
    /// Where it went.
    pub(super) target: Option<Target>,
    /// The status of the answer.
    pub(super) status: StatusCode,
    /// Why it ended; until it is known, that the visitor left.
    pub(super) reason: Reason,
    /// What went wrong, in words.
    detail: Option<Cow<'static, str>>,
    /// Its body.
    pub(super) upload: Option<Arc<Upload>>,
    /// That it is counted among those that run.
    pub(super) counted: Counted,
    /// That it is a visit, which ends when its visitor may no longer come from where they are.
    pub(super) stay: Option<Arc<Stay>>,
    /// Octets that came in otherwise (after an upgrade).
    octets_in: u64,
    /// Octets of the answer's body.
    octets_out: u64,
    switched: bool,
    started: Instant,
    pub(super) activity: Arc<Activity>,
}

impl Record {
    /// Begins the record of a request.
    pub(super) fn new(id: RequestId, visitor: VisitorAddr, activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.metrics.http.begun.one();
        Self {
            id,
            visitor,
            method: Method::GET,
            host: None,
            path: None,
            version: Version::HTTP_11,
            target: None,
            // What is written when the visitor leaves before there is an answer.
            status: StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            reason: Reason::VisitorLeft,
            detail: None,
            upload: None,
            counted: Counted::default(),
            stay: None,
            octets_in: 0,
            octets_out: 0,
            switched: false,
            started: Instant::now(),
            activity: activity.clone(),
        }
    }

    /// Notes the answer's status, and tells those who watch the tunnel.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = status;
        let Some(Target::Tunnel(tunnel)) = &self.target else { return };
        tunnel.visits.tell(|| Visit {
            tunnel: tunnel.name.clone(),
            method: self.method.clone(),
            path: self.path.as_ref().map_or("", PathAndQuery::path).into(),
            status,
            millis: self.millis(),
        });
    }

    /// Notes what went wrong, for the log.
    pub(super) fn failed(&mut self, what: Cow<'static, str>) {
        self.detail = Some(what);
    }

    /// Notes what had to be changed, if anything had.
    pub(super) fn changed(&mut self, what: Option<Cow<'static, str>>) {
        self.detail = what.or(self.detail.take());
    }

    /// Who owns what is begun for the request.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.activity.tasks
    }

    /// Notes that the stream speaks another protocol from now on.
    pub(super) fn switched(&mut self) {
        self.switched = true;
        self.activity.metrics.http.upgraded.one();
    }

    /// Counts octets in each direction after a switch.
    pub(super) fn passed(&mut self, octets_in: u64, octets_out: u64) {
        self.octets_in += octets_in;
        self.activity.metrics.http.received.add(octets_in);
        self.sent(octets_out);
    }

    /// Counts octets to the visitor.
    pub(super) fn sent(&mut self, octets: u64) {
        self.octets_out += octets;
        self.activity.metrics.http.sent.add(octets);
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.activity.end_one();
        if std::thread::panicking() {
            (self.reason, self.status) = (Reason::Panic, StatusCode::INTERNAL_SERVER_ERROR);
        }
        if self.reason == Reason::VisitorLeft && self.activity.tasks.is_cut() {
            self.reason = Reason::Draining;
        }
        let denied = self.stay.as_ref().and_then(|stay| stay.denied());
        // What was cut with the connection knows no more than that it ended.
        if denied.is_some() && self.reason == Reason::VisitorLeft {
            self.reason = Reason::NetworkDenied;
        }
        let rule =
            denied.filter(|_| self.reason == Reason::NetworkDenied).map(|denial| denial.by.to_string());
        let of_kind =
            |is: fn(&Target) -> bool| self.target.as_ref().filter(|target| is(target)).map(Target::name);
        let metrics = &self.activity.metrics.http;
        metrics.ended.one(self.reason, self.status);
        if self.switched {
            metrics.upgraded_ended.one();
        }
        let uploaded = self.upload.as_ref().map_or(0, |upload| upload.octets.load(Ordering::Relaxed));
        tracing::info!(
            request = %self.id,
            visitor = %self.visitor,
            method = %self.method,
            host = self.host.as_ref().map_or("-", |host| host.as_str()),
            path = self.path.as_ref().map_or("-", PathAndQuery::path),
            status = self.status.as_u16(),
            reason = self.reason.word(),
            at_fault = self.reason.side().word(),
            detail = self.detail.as_deref().or(rule.as_deref()),
            bytes_in = uploaded + self.octets_in,
            bytes_out = self.octets_out,
            millis = self.millis(),
            protocol = ?self.version,
            tunnel = of_kind(|target| matches!(target, Target::Tunnel(_))),
            route = of_kind(|target| matches!(target, Target::Route(_))),
            "request"
        );
        if let Some(stay) = self.stay.take() {
            self.activity.stays.end(&stay);
        }
    }
}
