//! Who may come at all, before it is asked who they are: by where they come from, by their failed
//! logins, and by how much they ask for.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{Notify, watch};

use super::bounds::{Bounds, OwnVisitors, check, list_of, still};
use super::failures::{Failures, LockedOut, Login};
use super::network_files::{NetworkList, NetworksError, PlannedList, faults_in, look};
use super::networks::NetworkDenial;
use super::requests::{Requests, Running, TooManyRequests, Visitors};
use super::visit::Permit;
use crate::config::watch::{Complaint, FileWatch, POLL, off_thread};
use crate::config::{Fault, NetworkSettings, RequestLimits, RouteSettings, Settings};
use crate::name::HostName;
use crate::net::{Tasks, VisitorAddr};
use crate::observe::Metrics;

/// Who may come. Clones share everything.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// To any listener.
    port: Arc<NetworkList>,
    /// As agents.
    ssh: Arc<NetworkList>,
    /// To each route, in the order of the settings.
    routes: Vec<Bounds>,
    /// Which these are: host and path.
    route_names: Vec<(HostName, String)>,
    trusted: Vec<IpNet>,
    failures: Failures,
    limits: RequestLimits,
    visitors: Option<Arc<Visitors>>,
    changes: watch::Sender<u64>,
    /// Lists were put in the place of others.
    was_put: Notify,
}

/// What the lists are to become, by other settings.
#[derive(Debug)]
pub struct PlannedLists(Vec<(Arc<NetworkList>, PlannedList)>);

/// A request that is counted while it runs.
#[derive(Debug, Default)]
pub struct Counted {
    /// Among those of its visitor.
    pub of_visitor: Option<Running>,
    /// Among those to its target.
    pub of_target: Option<Running>,
}

/// Why somebody may not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not from there.
    #[error(transparent)]
    Network(#[from] NetworkDenial),
    /// Not for a while.
    #[error(transparent)]
    LockedOut(#[from] LockedOut),
}

impl Admission {
    /// Reads the lists. Does not notice changes until [`Admission::watch`] is called. Reads files:
    /// not for a busy task.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn open(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Self, NetworksError> {
        let open = |allow: &str, deny: &str, written| NetworkList::open(allow, deny, written).map(Arc::new);
        let limits = settings.limits.requests;
        let routes = settings.routes.iter().map(|route| Bounds::of_route(route, limits));
        Ok(Self(Arc::new(Inner {
            port: open("networks.allow", "networks.deny", &settings.networks)?,
            ssh: open("ssh.allow", "ssh.deny", &settings.ssh.networks)?,
            routes: routes.collect::<Result<_, _>>()?,
            route_names: settings.routes.iter().map(name_of).collect(),
            trusted: settings.http.trusted_proxies.clone(),
            failures: Failures::new(settings.access.failures, metrics.clone()),
            limits,
            visitors: Visitors::limited(limits.visitor),
            changes: watch::Sender::new(0),
            was_put: Notify::new(),
        })))
    }

    /// Everything that is wrong with the files of the lists. Reads files: not for a busy task.
    #[must_use]
    pub fn examine(settings: &Settings) -> Vec<Fault> {
        let of = |allow: &'static str, deny: &'static str, written: &NetworkSettings| {
            let both = [(allow, faults_in(&written.allow)), (deny, faults_in(&written.deny))];
            both.into_iter()
                .flat_map(|(place, faults)| {
                    faults.into_iter().map(move |error| Fault::new(place, error.to_string()))
                })
                .collect::<Vec<_>>()
        };
        let mut faults = of("networks.allow", "networks.deny", &settings.networks);
        faults.extend(of("ssh.allow", "ssh.deny", &settings.ssh.networks));
        for route in &settings.routes {
            for fault in of("allow", "deny", &route.bounds.networks) {
                let what = format!("{}: {}", list_of(&fault.place, route), fault.what);
                faults.push(Fault::new("routes", what));
            }
        }
        faults
    }

    /// May somebody connect to a listener? A trusted proxy may: its requests are looked at one by one.
    ///
    /// # Errors
    /// When they may not.
    pub fn connection(&self, peer: IpAddr) -> Result<(), NetworkDenial> {
        let port = &self.0.port;
        if port.is_open() || self.is_trusted(peer) { Ok(()) } else { check(port, peer) }
    }

    /// May somebody stay connected? To be asked again for a connection that is open, because lists
    /// change.
    ///
    /// # Errors
    /// When they may not.
    pub fn still_connected(&self, peer: IpAddr) -> Result<(), NetworkDenial> {
        let port = &self.0.port;
        if port.is_open() || self.is_trusted(peer) { Ok(()) } else { still(port, peer) }
    }

    /// May a visit to what has these bounds go on? To be asked again, as well.
    ///
    /// # Errors
    /// When it may not.
    pub fn visit(&self, bounds: &Bounds, visitor: VisitorAddr) -> Result<(), NetworkDenial> {
        still(&self.0.port, visitor.0)?;
        bounds.networks.as_ref().map_or(Ok(()), |list| still(list, visitor.0))
    }

    /// May somebody be here with a request?
    ///
    /// # Errors
    /// When they may not.
    pub fn visitor(&self, visitor: VisitorAddr) -> Result<(), NetworkDenial> {
        check(&self.0.port, visitor.0)
    }

    /// Whether where somebody comes from decides anything, whatever they ask for.
    #[must_use]
    pub fn has_list(&self) -> bool {
        !self.0.port.is_open()
    }

    /// May somebody begin a session as an agent?
    ///
    /// # Errors
    /// When they may not.
    pub fn new_agent(&self, peer: IpAddr) -> Result<(), Refusal> {
        self.agent(peer)?;
        Ok(self.login(peer, Login::Ssh)?)
    }

    /// May somebody be here as an agent? To be asked again for a running session, because lists
    /// change.
    ///
    /// # Errors
    /// When they may not.
    pub fn agent(&self, peer: IpAddr) -> Result<(), NetworkDenial> {
        check(&self.0.port, peer)?;
        check(&self.0.ssh, peer)
    }

    /// May somebody try to log in so?
    ///
    /// # Errors
    /// When they may not for a while.
    pub fn login(&self, from: IpAddr, how: Login) -> Result<(), LockedOut> {
        self.0.failures.check(from, how)
    }

    /// Counts a failed login, and says how long to wait before it is answered. A trusted proxy that
    /// does not say for whom it asks stands for many, and is not counted.
    ///
    /// # Errors
    /// When the address is refused from now on, or was already.
    pub fn login_failed(&self, from: IpAddr, how: Login) -> Result<Duration, LockedOut> {
        if self.is_trusted(from) { Ok(Duration::ZERO) } else { self.0.failures.failed(from, how) }
    }

    /// Where somebody is; `None` behind a trusted proxy that does not say for whom it asks, and stands for many.
    #[must_use]
    pub fn place_of(&self, peer: IpAddr) -> Option<IpAddr> {
        (!self.is_trusted(peer)).then_some(peer)
    }

    /// Changes its value when a list has changed: what was allowed is to be looked at again.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The failed logins.
    #[must_use]
    pub fn failures(&self) -> &Failures {
        &self.0.failures
    }

    /// May there be one more request of this visitor? With `bounds`, to what has these. To be asked
    /// before it is known whether the request is allowed: one that is not is work as well.
    ///
    /// # Errors
    /// When there are too many.
    pub fn visitor_request(
        &self,
        bounds: Option<&Bounds>,
        visitor: VisitorAddr,
    ) -> Result<Option<Running>, TooManyRequests> {
        let visitors = match bounds.and_then(|bounds| bounds.visitors.as_ref()) {
            None => self.0.visitors.as_ref(),
            Some(OwnVisitors::Unlimited) => None,
            Some(OwnVisitors::Limited(own)) => Some(own),
        };
        let counted = visitors.map(|visitors| visitors.begin(visitor.0)).transpose();
        Ok(counted.map_err(TooManyRequests::Visitor)?.flatten())
    }

    /// May there be one more request to what has these bounds, which was allowed by this permit? To be
    /// asked last: what is refused to one visitor takes nothing from others. Preflights that nobody vouches
    /// for are counted by themselves, to the same limits.
    ///
    /// # Errors
    /// When there are too many.
    pub fn target_request(
        &self,
        bounds: &Bounds,
        permit: &Permit,
    ) -> Result<Option<Running>, TooManyRequests> {
        let count = if permit.is_for_preflight() { &bounds.preflights } else { &bounds.requests };
        count.as_ref().map(Requests::begin).transpose().map_err(TooManyRequests::Target)
    }

    /// What visitors of the routes are held to, in the order of the settings.
    #[must_use]
    pub fn routes(&self) -> &[Bounds] {
        &self.0.routes
    }

    /// What visitors of a new tunnel are held to that an agent wants visited from these networks only.
    #[must_use]
    pub fn tunnel(&self, networks: &NetworkSettings) -> Bounds {
        // An agent names no files, and without files nothing can fail.
        let open = || NetworkList::open("the tunnel's allow", "the tunnel's deny", networks).ok();
        let list = if networks.is_empty() { None } else { open() };
        Bounds {
            networks: list.map(Arc::new),
            requests: Requests::limited(self.0.limits.target),
            preflights: Requests::limited(self.0.limits.target),
            visitors: None,
        }
    }

    /// Starts to reread the files when they change, until draining begins.
    pub fn watch(&self, tasks: &Tasks) {
        let (admission, drain) = (self.clone(), tasks.drain_begun());
        tasks.spawn("lists of networks", async move {
            tokio::select! {
                () = drain.cancelled() => {}
                () = admission.follow() => {}
            }
        });
    }

    async fn follow(self) {
        let admission = self.clone();
        let mut watch = FileWatch::new("lists of networks", move || look(&admission.files())).await;
        let mut complaint = Complaint::default();
        loop {
            // First: something may have changed between `open` and now.
            watch.was_read(self.reread(&mut complaint).await);
            tokio::select! {
                () = async { while !watch.is_due_within(POLL).await {} } => {}
                // There may be other files now; and one may have changed after it was read for a plan.
                () = self.0.was_put.notified() => {
                    watch.is_due_within(Duration::ZERO).await;
                }
            }
        }
    }

    /// Whether all files were read. A list whose files were not stays as it was.
    async fn reread(&self, complaint: &mut Complaint) -> bool {
        let lists: Vec<_> = self.lists().cloned().collect();
        let read = off_thread(move || {
            let read = |list: &Arc<NetworkList>| list.reread().map(|changed| changed.then(|| list.len()));
            lists.iter().map(read).collect::<Vec<_>>()
        });
        let Some(read) = read.await else {
            tracing::error!("reading lists of networks was cut short; keeping them as they were");
            return false;
        };
        let mut errors = Vec::new();
        for result in read {
            match result {
                Ok(Some(networks)) => self.has_changed(networks),
                Ok(None) => {}
                Err(error) => errors.push(error.to_string()),
            }
        }
        if errors.is_empty() {
            *complaint = Complaint::default();
            return true;
        }
        let error = errors.join("; ");
        if complaint.is_news(&error, POLL) {
            tracing::error!(%error, "keeping a list of networks as it was");
        }
        false
    }

    /// Reads what the lists would be by other settings. Routes that are new have none yet, and those
    /// that are no more keep theirs. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn plan(&self, settings: &Settings) -> Result<PlannedLists, NetworksError> {
        let Inner { port, ssh, routes, route_names, .. } = &*self.0;
        let mut planned = vec![
            (port.clone(), port.plan(&settings.networks)?),
            (ssh.clone(), ssh.plan(&settings.ssh.networks)?),
        ];
        for (bounds, name) in routes.iter().zip(route_names) {
            let written = settings.routes.iter().find(|route| name_of(route) == *name);
            if let (Some(list), Some(written)) = (&bounds.networks, written) {
                planned.push((list.clone(), list.plan(&written.bounds.networks)?));
            }
        }
        Ok(PlannedLists(planned))
    }

    /// Has the lists be what was planned.
    pub fn put(&self, planned: PlannedLists) {
        for (list, planned) in planned.0 {
            if list.put(planned) {
                self.has_changed(list.len());
            }
        }
        self.0.was_put.notify_one();
    }

    fn has_changed(&self, networks: usize) {
        tracing::info!(networks, "a list of networks has changed");
        self.0.changes.send_modify(|generation| *generation += 1);
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.lists().flat_map(|list| list.files()).collect();
        files.sort();
        files.dedup();
        files
    }

    fn lists(&self) -> impl Iterator<Item = &Arc<NetworkList>> {
        let Inner { port, ssh, routes, .. } = &*self.0;
        [port, ssh].into_iter().chain(routes.iter().filter_map(|bounds| bounds.networks.as_ref()))
    }

    fn is_trusted(&self, peer: IpAddr) -> bool {
        self.0.trusted.iter().any(|net| net.contains(&peer))
    }
}

/// What a route is known by.
fn name_of(route: &RouteSettings) -> (HostName, String) {
    (route.host.clone(), route.path.clone())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Source;

    /// A file changes after it was read for a plan, and is noticed before that is put.
    #[tokio::test]
    async fn what_is_put_late_is_read_once_more() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (config, file) = (dir.path().join("oneport.toml"), dir.path().join("denied.txt"));
        let text = "base_url = \"https://gw.test\"\nlisten = []\nplain.http = [\"127.0.0.1:0\"]\nssh.allow_any_key = true";
        let text = format!("{text}\nnetworks.deny = [\"file:{}\"]\n", file.display());
        fs::write(&config, text).and_then(|()| fs::write(&file, "192.0.2.1\n")).expect("writable");
        let settings = Source::new(Some(config), []).read().expect("no fault").settings;
        let admission = Admission::open(&settings, &Arc::default()).expect("readable");
        let tasks = Tasks::new();
        admission.watch(&tasks);
        let mut changes = admission.changes();
        let visitor = |last| VisitorAddr(IpAddr::from([192, 0, 2, last]));
        let mut second_is_out = async || {
            let changed = changes.wait_for(|_| admission.visitor(visitor(2)).is_err());
            assert!(tokio::time::timeout(POLL / 2, changed).await.is_ok_and(|changed| changed.is_ok()));
        };

        let planned = admission.plan(&settings).expect("readable");
        fs::write(&file, "192.0.2.2\n").expect("writable");
        second_is_out().await;
        admission.put(planned);
        second_is_out().await;
        assert!(admission.visitor(visitor(1)).is_ok());
        tasks.begin_drain();
    }
}
