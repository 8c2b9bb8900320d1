//! May a request go on to its target? What its visitor shows there is looked for, and put to the room
//! that decides; who may not is told why.

use http::{Method, Request, StatusCode};

use super::body::Outgoing;
use super::credentials::{credentials, is_by_browser};
use super::denial::{Refused, denied};
use super::respond::Failure;
use super::service::Session;
use super::upgrade::asks_to_switch;
use super::{origin, preflight, session};
use crate::access::{self, AccessLevel, Credentials, Host, Permit, Way};
use crate::name::HostName;
use crate::net::VisitorAddr;
use crate::observe::Reason;
use crate::registry::Target;

impl Session {
    /// Lets the request through, if this visitor may see the target.
    pub(super) async fn allow(
        &self,
        request: &Request<Outgoing>,
        own_host: Option<&HostName>,
        target: &Target,
        visitor: VisitorAddr,
    ) -> Result<Permit, Failure> {
        self.prepare_access(request, target).await;
        let permit = match self.permit(request, own_host, target) {
            Ok(permit) => permit,
            Err(denied) => {
                // While the address is refused, nobody is told which token would have been the right one.
                self.http.admit_with(request.headers(), visitor)?;
                return Err(denied);
            }
        };
        self.http.admit_by(permit.by(), request.headers(), visitor)?;
        Ok(permit)
    }

    /// Has here what it takes to decide, where that may have to be fetched first.
    async fn prepare_access(&self, request: &Request<Outgoing>, target: &Target) {
        if let Target::Tunnel(tunnel) = target
            && tunnel.access == AccessLevel::Private
        {
            // Boxed, because most requests need it not.
            Box::pin(session::prepare(&self.http, session::Kind::Visit, request.headers())).await;
            Box::pin(access::prepare(&self.http.issuers, &credentials(request.headers()))).await;
        }
    }

    /// Decides, by what the request shows.
    fn permit(
        &self,
        request: &Request<Outgoing>,
        own_host: Option<&HostName>,
        target: &Target,
    ) -> Result<Permit, Failure> {
        let host = match target {
            Target::Route(_) => Host::Route,
            Target::Tunnel(tunnel) => Host::Tunnel(tunnel.access, &tunnel.owner),
        };
        let (headers, base) = (request.headers(), &self.http.settings.base);
        let is_home = session::is_home(target, own_host, base);
        let other_site = match target {
            Target::Tunnel(tunnel) if tunnel.access == AccessLevel::Private => {
                origin::other_site(&self.http, request, tunnel, own_host)
            }
            _ => None,
        };
        // Looked for only where it matters.
        let credentials = match host {
            Host::Tunnel(AccessLevel::Private, _) => {
                let session = session::of_visit(&self.http, headers, own_host);
                let guest = match target {
                    Target::Tunnel(tunnel) => session::of_guest(&self.http, headers, tunnel, own_host),
                    Target::Route(_) => None,
                };
                let mut shown = credentials(headers);
                // Below a path of a host that all share, a page of any of them could use what a browser
                // keeps: the cookie, and the password. A program has what it sends for this tunnel.
                shown.cookies.retain(|_| is_home);
                let is_kept = !is_home && is_by_browser(headers);
                shown.authorization = shown.authorization.filter(|(way, _)| !(is_kept && *way == Way::Basic));
                Credentials { session, guest, ..shown }
            }
            _ => Credentials::default(),
        };
        let is_preflight = preflight::is_one(request);
        let asked = access::Request { is_preflight, other_site, credentials };
        access::visit(&self.http.issuers, host, &asked).map_err(|denial| match target {
            Target::Tunnel(tunnel) => {
                let is_read =
                    matches!(*request.method(), Method::GET | Method::HEAD) && !asks_to_switch(request);
                let refused = Refused {
                    name: &tunnel.name,
                    path: request.uri().path_and_query(),
                    headers,
                    is_home,
                    has_cookies: is_home
                        && session::are_kept(base, headers, self.conn.tls.is_some(), self.trusted),
                    is_read,
                };
                denied(&denial, &refused, base)
            }
            // Everybody may visit a route.
            Target::Route(_) => {
                Failure::new(Reason::LoginRequired, StatusCode::FORBIDDEN, denial.to_string(), "")
            }
        })
    }
}
