//! What visitors of one target are held to: where they come from, and how much they ask for.

use std::net::IpAddr;
use std::sync::Arc;

use super::network_files::{NetworkList, NetworksError};
use super::networks::NetworkDenial;
use super::requests::{Requests, Visitors};
use crate::config::{RequestLimits, RouteSettings};
use crate::net::VisitorAddr;

/// What visitors of one target are held to.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Where they may come from. `None`: from anywhere.
    pub networks: Option<Arc<NetworkList>>,
    /// How many requests there may be to it. `None`: any number.
    pub requests: Option<Arc<Requests>>,
    /// How many preflights that nobody vouches for: anybody may send these, and they are to take nothing
    /// from who may come. `None`: any number.
    pub preflights: Option<Arc<Requests>>,
    /// How many from one address, where that is not as for all.
    pub visitors: Option<OwnVisitors>,
}

/// A route's own limits for one address.
#[derive(Clone, Debug)]
pub enum OwnVisitors {
    /// None.
    Unlimited,
    /// These.
    Limited(Arc<Visitors>),
}

impl Bounds {
    /// A route's, as written; what it says nothing of is as for all.
    ///
    /// # Errors
    /// When a file of networks cannot be used.
    pub(super) fn of_route(route: &RouteSettings, limits: RequestLimits) -> Result<Self, NetworksError> {
        let written = &route.bounds;
        let name = |list| list_of(list, route);
        let own = (written.visitor != Default::default()).then(|| written.visitor.over(limits.visitor));
        Ok(Self {
            networks: Some(Arc::new(NetworkList::open(&name("allow"), &name("deny"), &written.networks)?)),
            requests: Requests::limited(written.target.over(limits.target)),
            // To a route everybody may come.
            preflights: None,
            visitors: own
                .map(|own| Visitors::limited(own).map_or(OwnVisitors::Unlimited, OwnVisitors::Limited)),
        })
    }

    /// May a visitor come from there?
    ///
    /// # Errors
    /// When they may not.
    pub fn check(&self, visitor: VisitorAddr) -> Result<(), NetworkDenial> {
        self.networks.as_ref().map_or(Ok(()), |list| check(list, visitor.0))
    }
}

/// What a route's list is called in the log and in faults.
pub(super) fn list_of(list: &str, route: &RouteSettings) -> String {
    format!("{list} of the route {}{}", route.host, route.path)
}

/// The same for somebody who is here already: not for the log.
pub(super) fn still(list: &NetworkList, from: IpAddr) -> Result<(), NetworkDenial> {
    list.check(from).map(drop)
}

/// Decides, and says in the log by which rule.
pub(super) fn check(list: &NetworkList, from: IpAddr) -> Result<(), NetworkDenial> {
    if let Some(by) = list.check(from)? {
        tracing::debug!(%from, rule = %by, "an address may come");
    }
    Ok(())
}
