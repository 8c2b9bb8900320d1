//! One request, in visible order: host and path → the certificate covers the host → target →
//! access → limits → forward → the answer streams back → one record.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tokio::sync::SetOnce;

use super::addressee::{Addressee, LastAddressee};
use super::admit::Whence;
use super::below::Below;
use super::body::{Answer, Outgoing};
use super::credentials::{credentials, withhold, withhold_kept};
use super::forward::{forward, not_http};
use super::guard::Gate;
use super::headers::{self, Origin};
use super::inject::{Injection, relay};
use super::plain::to_https;
use super::record::{Activity, Record, RequestId};
use super::respond::{self, Failure, Form};
use super::route::{Own, Route, route};
use super::upgrade::{End, Wish, may_connect, no_connect, switch};
use super::{Connection, Http, callback, isolate, own, preflight, session};
use crate::access::{self, Permit};
use crate::net::VisitorAddr;
use crate::observe::Reason;
use crate::registry::{BoxFuture, Target};

/// What all requests of one connection share.
pub(super) struct Session {
    pub(super) http: Arc<Http>,
    pub(super) conn: Connection,
    pub(super) gate: Arc<Gate>,
    pub(super) activity: Arc<Activity>,
    /// Whether HTTPS is spoken here, and this is not: every request is told so.
    pub(super) only_https: bool,
    /// Whether the peer is a trusted proxy.
    pub(super) trusted: bool,
    /// The peer's address, as it stands in headers.
    pub(super) peer: HeaderValue,
    /// Whom the last request was for.
    pub(super) last: LastAddressee,
    /// Why an answer was cut that the connection cannot go on without: over HTTP/1.1.
    pub(super) cut: Arc<SetOnce<Reason>>,
    /// What goes on after an HTTP/1.1 connection has switched protocols.
    pub(super) switched: Mutex<Option<BoxFuture<'static, ()>>>,
}

/// What a request comes to.
enum Outcome {
    Answered(Response<Answer>, Reason),
    Switched(Response<Answer>, Wish, OnUpgrade, End),
}

/// A visit that is allowed.
pub(super) struct Visit<'a> {
    addressee: &'a Addressee,
    /// What it is to.
    pub(super) target: &'a Target,
    /// That it is.
    pub(super) permit: &'a Permit,
    /// The place under a path where the target lies with others, if its cookies are to be its own.
    pub(super) below: Option<&'a Below>,
    /// Whether an `Authorization` was taken out that a browser keeps for all of that host.
    pub(super) is_withheld: bool,
}

impl Session {
    /// Answers one request. Dropping the future, as happens when the visitor leaves, ends what
    /// was begun for it.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let (number, refusal) = self.gate.begin();
        let peer = VisitorAddr(self.conn.peer.ip());
        let mut record = Box::new(Record::new(RequestId(self.conn.id, number), peer, &self.activity));
        if let Some(fault) = refusal {
            // What stands there now is the guard's stand-in, of which nothing is worth noting.
            let mut failure = Failure::bad_request(fault.to_string());
            failure.status = fault.status();
            return Ok(self.finish(record, Err(failure), Form::Text, true));
        }
        record.method = request.method().clone();
        record.version = request.version();
        record.path = request.uri().path_and_query().cloned();
        let form = Form::accepted(request.headers());
        let linger = (record.version >= Version::HTTP_2).then_some(&self.http.tasks);
        let (head, body) = request.into_parts();
        let idle = self.http.settings.http.idle_timeout;
        let (body, upload) = Outgoing::new(body, linger, idle, &self.http.metrics);
        let unread = upload.is_some();
        record.upload = upload;
        let outcome = match self.handle(Request::from_parts(head, body), &mut record).await {
            Err(failure) if failure.failed_login.is_some() => {
                Err(Box::pin(self.http.answer_later(failure, record.visitor)).await)
            }
            outcome => outcome,
        };
        Ok(self.finish(record, outcome, form, unread))
    }

    async fn handle(&self, mut request: Request<Outgoing>, record: &mut Record) -> Result<Outcome, Failure> {
        if *request.method() == Method::CONNECT && !may_connect(&request) {
            return Err(no_connect());
        }
        let settings = &self.http.settings;
        let (visitor, illegible) =
            headers::visitor(request.headers(), self.conn.peer, &settings.http.trusted_proxies);
        record.visitor = visitor;
        let addressee = self.last.of(&request, self.conn.tls.as_ref())?;
        record.host.clone_from(&addressee.host);
        // Before the redirect and the routes: an authority asks the name as it is, over plain HTTP.
        if let Some(text) = self.http.challenges.text(request.uri().path()) {
            let answer = respond::own(StatusCode::OK, Form::Text, text);
            return Ok(Outcome::Answered(answer, Reason::OwnAnswer));
        }
        let base = &settings.base;
        let whence = Whence { visitor, illegible: illegible.as_ref() };
        self.http.admit(whence)?;
        if self.only_https {
            let answer = to_https(base, &request, addressee.host.as_ref())?;
            return Ok(Outcome::Answered(answer, Reason::PlainHttp));
        }
        addressee.check_certificate()?;
        let path = request.uri().path_and_query();
        match route(addressee.host.as_ref(), path, &base.host, &self.http.routes) {
            Route::Own(place) => self.own(place, request, record).await,
            Route::Fixed(backend) => {
                self.http.admit_to(&backend.bounds, whence)?;
                record.counted.of_visitor = self.http.count_visitor(Some(&backend.bounds), visitor)?;
                let target = Target::Route(backend);
                self.visit(request, &addressee, target, None, record).await
            }
            Route::Tunnel(name, path) => {
                record.counted.of_visitor = self.http.count_visitor(None, visitor)?;
                let tunnel = self.http.registry.look_up(&name).ok_or_else(|| no_tunnel(name.as_str()))?;
                self.http.admit_to(&tunnel.bounds, whence)?;
                if let (None, Some(host)) = (&path, &addressee.host)
                    && let Some(answer) = callback::answer(&self.http, &tunnel, host, &request)?
                {
                    return Ok(Outcome::Answered(answer, Reason::OwnAnswer));
                }
                let mut below = None;
                if let Some(path) = path {
                    if let Some(answer) = callback::elsewhere(&self.http, &tunnel, &path, &request) {
                        return Ok(Outcome::Answered(answer, Reason::OwnAnswer));
                    }
                    let is_isolated = settings.access.isolate_cookies;
                    below = is_isolated.then(|| Below::of(&name, &request)).transpose()?;
                    *request.uri_mut() = Uri::from(path);
                }
                self.visit(request, &addressee, Target::Tunnel(tunnel), below, record).await
            }
        }
    }

    /// What is for the gateway itself.
    async fn own(
        &self,
        place: Own,
        request: Request<Outgoing>,
        record: &mut Record,
    ) -> Result<Outcome, Failure> {
        let visitor = record.visitor;
        if !own::is_health(place, request.uri().path()) {
            record.counted.of_visitor = self.http.count_visitor(None, visitor)?;
        }
        self.http.admit_with(request.headers(), visitor)?;
        let form = Form::accepted(request.headers());
        if own::asks_who(request.uri().path()) {
            Box::pin(session::prepare(&self.http, session::Kind::Login, request.headers())).await;
            Box::pin(access::prepare(&self.http.issuers, &credentials(request.headers()))).await;
        }
        let (answer, reason) = own::answer(&self.http, place, request, form, visitor).await?;
        Ok(Outcome::Answered(answer, reason))
    }

    /// The visit to a tunnel or a fixed route, if it is allowed.
    async fn visit(
        &self,
        mut request: Request<Outgoing>,
        addressee: &Addressee,
        target: Target,
        below: Option<Below>,
        record: &mut Record,
    ) -> Result<Outcome, Failure> {
        let target = &*record.target.insert(target);
        let stay = self.activity.stays.begin(record.visitor, target, self.http.admission());
        let stay = record.stay.insert(stay).clone();
        let host = addressee.host.as_ref();
        let permit = self.allow(&request, host, target, record.visitor).await?;
        record.counted.of_target = self.http.count_target(target, &permit)?;
        let cookie = session::set_for_basic(&self.http, &permit, &request, target, host);
        let wish = Wish::of(&mut request);
        let (h1, method) = (request.version() < Version::HTTP_2, request.method().clone());
        let upload = record.upload.clone();
        let is_withheld = below.is_some() && withhold_kept(request.headers_mut());
        let visit = Visit { addressee, target, permit: &permit, below: below.as_ref(), is_withheld };
        let (request, injection) = self.to_service(request, &visit, wish.as_ref(), upload.is_some());
        let forwarded =
            forward(&self.http.pool, (&permit, &stay), target, record.visitor, request, upload.clone());
        let response = forwarded.await?;
        if permit.is_for_preflight() && !response.status().is_informational() {
            return Ok(Outcome::Answered(preflight::answer(response), Reason::Answered));
        }
        // Once what is hop-by-hop is out, which a service could name what is put in here.
        let isolate = |headers: &mut HeaderMap| {
            let changed = isolate::isolate(headers, &visit, &self.http.settings);
            session::put(headers, cookie);
            changed
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (mut answer, wish, service, end) = switch(response, wish, permit.hold().cloned(), stay)?;
            let changed = isolate(answer.headers_mut());
            record.changed(changed);
            return Ok(Outcome::Switched(answer, wish, service, end));
        }
        if wish.is_some_and(|wish| wish.is_extended()) && response.status().is_success() {
            // To the visitor, 2xx would mean that the switch was made (RFC 8441, section 4).
            return Err(not_http("the service did not switch protocols as it was asked to"));
        }
        let (mut parts, body) = response.into_parts();
        headers::clean_answer(&mut parts, h1, upload.as_deref());
        let changed = isolate(&mut parts.headers);
        record.changed(changed);
        let body = relay(&mut parts, body, injection.as_ref(), &method);
        let mut answer = Response::new(body.held(permit.hold()));
        (*answer.status_mut(), *answer.headers_mut()) = (parts.status, parts.headers);
        Ok(Outcome::Answered(answer, Reason::Answered))
    }

    /// Makes a visitor's request one for the service.
    fn to_service(
        &self,
        request: Request<Outgoing>,
        visit: &Visit<'_>,
        wish: Option<&Wish>,
        has_body: bool,
    ) -> (Request<Outgoing>, Option<Injection>) {
        let mut injection = match (wish, visit.target) {
            (None, Target::Tunnel(tunnel)) => Injection::of(&tunnel.inject, request.uri().path()),
            _ => None,
        };
        let (mut parts, body) = request.into_parts();
        withhold(&mut parts.headers, visit.permit.by(), &self.http.issuers);
        if let Some(below) = visit.below {
            below.let_in(&mut parts.headers);
        }
        if visit.permit.is_for_preflight() {
            preflight::confine(&mut parts.headers, self.trusted);
        }
        let origin = Origin {
            peer: &self.peer,
            trusted: self.trusted,
            tls: self.conn.tls.is_some(),
            port: visit.addressee.port,
            host: visit.addressee.text.as_ref(),
        };
        headers::prepare(&mut parts, &origin, &self.http.settings.base.host, has_body);
        if let Some(wish) = wish {
            wish.ask(&mut parts.method, &mut parts.headers);
        }
        if let Some(injection) = &mut injection {
            injection.prepare(&mut parts.headers);
        }
        (Request::from_parts(parts, body), injection)
    }

    /// Gives the answer its record, or starts what follows a switch.
    fn finish(
        self: &Arc<Self>,
        mut record: Box<Record>,
        outcome: Result<Outcome, Failure>,
        form: Form,
        unread: bool,
    ) -> Response<Answer> {
        let id = record.id;
        let h1 = record.version < Version::HTTP_2;
        let (mut answer, reason) = match outcome {
            Ok(Outcome::Switched(answer, wish, service, end)) => {
                record.answered(answer.status());
                record.switched();
                self.gate.answer(true);
                let idle = self.http.settings.http.upgrade_idle_timeout;
                let rest = wish.run(service, end, record, idle);
                if h1 {
                    *self.switched.lock() = Some(Box::pin(rest));
                } else {
                    self.http.tasks.spawn("switched stream", rest);
                }
                return answer;
            }
            Ok(Outcome::Answered(answer, reason)) => (answer, reason),
            Err(failure) => {
                let answer = respond::error(&failure, form, id);
                record.failed(failure.for_log.map_or(failure.what, Into::into));
                (answer, failure.reason)
            }
        };
        if record.method == Method::HEAD
            && let Some(length) = answer.body_mut().take_own()
        {
            answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        // What is left of the body would have to be read before the next request; and who smuggles
        // gets no second try.
        let over = self.only_https || reason == Reason::BadRequest || (unread && reason != Reason::Answered);
        if h1 && over {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        record.answered(answer.status());
        self.gate.answer(false);
        answer.map(|body| body.with_record(record, reason, &self.cut))
    }
}

fn no_tunnel(name: &str) -> Failure {
    Failure::new(
        Reason::NoTunnel,
        StatusCode::BAD_GATEWAY,
        format!("No active tunnel found for `{name}`"),
        "check the name, and whether the agent that offers it is connected",
    )
}
