//! The names that the configuration fixes: host and path → backend.

use std::collections::HashMap;
use std::sync::Arc;

use super::Backend;
use crate::access::Bounds;
use crate::config::RouteSettings;
use crate::name::HostName;

/// All routes of one generation of the configuration.
#[derive(Debug, Default)]
pub struct Routes {
    /// Of each host, the longest path first.
    by_host: HashMap<HostName, Vec<(String, Arc<Backend>)>>,
}

impl Routes {
    /// The routes as they are written, with what visitors of each are held to; to each service `most`
    /// connections may be open at once.
    #[must_use]
    pub fn of(written: &[RouteSettings], bounds: &[Bounds], most: usize) -> Self {
        let mut by_host: HashMap<HostName, Vec<(String, Arc<Backend>)>> = HashMap::new();
        for (index, route) in written.iter().enumerate() {
            let bounds = bounds.get(index).cloned().unwrap_or_default();
            let paths = by_host.entry(route.host.clone()).or_default();
            paths.push((route.path.clone(), Arc::new(Backend::of(route, bounds, most))));
            paths.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        }
        Self { by_host }
    }

    /// Whether any route is for this host.
    #[must_use]
    pub fn has(&self, host: &HostName) -> bool {
        self.by_host.contains_key(host)
    }

    /// Where a request for this host and path (without its query) goes, if a route says so.
    #[must_use]
    pub fn find(&self, host: &HostName, path: &str) -> Option<&Arc<Backend>> {
        let paths = self.by_host.get(host)?;
        paths.iter().find(|(prefix, _)| lies_below(path, prefix)).map(|(_, backend)| backend)
    }
}

/// `/a` and `/a/b` lie below `/a`; `/ab` does not. Compared as it is written: what means the same
/// in another spelling is the service's to know.
fn lies_below(path: &str, prefix: &str) -> bool {
    prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackendAddr, RouteBounds};

    #[test]
    fn the_longest_path_wins() {
        let host = |name| HostName::parse(name).expect("valid");
        let route = |name, path: &str| RouteSettings {
            host: host(name),
            path: path.to_owned(),
            to: BackendAddr::Tcp { host: host("c"), port: 1 },
            bounds: RouteBounds::default(),
        };
        let routes = Routes::of(
            &[route("a.b", "/"), route("a.b", "/api/v2"), route("a.b", "/api"), route("d", "/x")],
            &[],
            1,
        );
        let to = |name, path| routes.find(&host(name), path).map(|backend| backend.name.clone());
        for (path, wanted) in [
            ("/", "a.b"),
            ("/api", "a.b/api"),
            ("/api/", "a.b/api"),
            ("/apis", "a.b"),
            ("/api/v2/x", "a.b/api/v2"),
        ] {
            assert_eq!(to("a.b", path).as_deref(), Some(wanted), "{path}");
        }
        assert_eq!((to("d", "/"), to("e", "/")), (None, None));
    }
}
