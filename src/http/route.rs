//! Host and path → where a request goes. Pure; whether a tunnel exists is the registry's to say.

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;

use crate::name::{HostName, TunnelName};
use crate::registry::{Backend, Routes};

/// Where a request goes.
#[derive(Clone, Debug)]
pub(super) enum Route {
    /// To a service that the configuration names.
    Fixed(Arc<Backend>),
    /// To this tunnel, if it exists; with another path when the name was a part of it.
    Tunnel(TunnelName, Option<PathAndQuery>),
    /// To the gateway itself.
    Own(Own),
}

/// The gateway's own hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// `auth.BASEHOST`.
    Auth,
    /// `api.BASEHOST`.
    Api,
    /// `BASEHOST` itself.
    Base,
    /// A host that is nobody's.
    Stranger,
}

/// Finds the way. Path and query are passed on byte for byte; nothing is normalised, because
/// services tell `//a` from `/a`. A fixed route comes first, except before the base host's
/// `/proxy/`, under which agents' existing links lie.
pub(super) fn route(
    host: Option<&HostName>,
    path: Option<&PathAndQuery>,
    base: &HostName,
    routes: &Routes,
) -> Route {
    let is_proxied = host == Some(base) && path.is_some_and(|path| path.path().starts_with("/proxy/"));
    if let Some(host) = host.filter(|_| !is_proxied)
        && let Some(backend) = routes.find(host, path.map_or("/", PathAndQuery::path))
    {
        return Route::Fixed(backend.clone());
    }
    if let Some(label) = host.and_then(|host| host.label_under(base)) {
        return match label {
            "auth" => Route::Own(Own::Auth),
            "api" => Route::Own(Own::Api),
            // A host's label always is a tunnel's name in form.
            _ => TunnelName::from_label(label)
                .map_or(Route::Own(Own::Stranger), |name| Route::Tunnel(name, None)),
        };
    }
    // Not on a route's host: an agent's page there would have that host's cookies.
    let is_own = host.is_some_and(|host| host != base && routes.has(host));
    if let Some((name, rest)) = path.filter(|_| !is_own).and_then(by_path) {
        return Route::Tunnel(name, Some(rest));
    }
    Route::Own(if host == Some(base) { Own::Base } else { Own::Stranger })
}

/// `/proxy/NAME/rest?query` → the name and `/rest?query`.
fn by_path(path: &PathAndQuery) -> Option<(TunnelName, PathAndQuery)> {
    let after = path.as_str().strip_prefix("/proxy/")?;
    let end = after.find(['/', '?']).unwrap_or(after.len());
    let name = TunnelName::from_label(&after[..end])?;
    let rest = &after[end..];
    let rest = if rest.starts_with('/') {
        Bytes::copy_from_slice(rest.as_bytes())
    } else {
        Bytes::from(format!("/{rest}"))
    };
    Some((name, PathAndQuery::from_maybe_shared(rest).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackendAddr, RouteBounds, RouteSettings};

    #[test]
    fn hosts_and_paths_lead_where_the_contract_says() {
        let parse = |host| HostName::parse(host).expect("valid");
        let base = parse("example.com");
        let fixed = |host, path: &str| RouteSettings {
            host: parse(host),
            path: path.to_owned(),
            to: BackendAddr::Unix("s".into()),
            bounds: RouteBounds::default(),
        };
        let routes = Routes::of(
            &[
                fixed("fixed.net", "/"),
                fixed("example.com", "/docs"),
                fixed("example.com", "/proxy"),
                fixed("own.example.com", "/"),
                fixed("part.net", "/api"),
            ],
            &[],
            1,
        );
        let to = |host: &str, path: &'static str| {
            let host = HostName::parse(host).expect("valid");
            match route(Some(&host), Some(&PathAndQuery::from_static(path)), &base, &routes) {
                Route::Fixed(backend) => format!("-> {}", backend.name),
                Route::Tunnel(name, path) => {
                    format!("{}{}", name.as_str(), path.map(|path| format!(" {path}")).unwrap_or_default())
                }
                Route::Own(own) => format!("{own:?}"),
            }
        };
        assert_eq!(to("preevy_proxy-main-kvf384sz.example.com", "//tunnels"), "preevy_proxy-main-kvf384sz");
        assert_eq!(to("WEB-a.example.com", "/proxy/x/y"), "web-a");
        assert_eq!(to("example.com", "/proxy/web-a/x//y?z=%2F"), "web-a /x//y?z=%2F");
        assert_eq!(to("example.com", "/proxy/web-a"), "web-a /");
        assert_eq!(to("example.com", "/proxy/web-a?q"), "web-a /?q");
        assert_eq!(to("example.com", "/proxy/web-a//tunnels"), "web-a //tunnels");
        assert_eq!(to("elsewhere.net", "/proxy/web-a/x"), "web-a /x");
        assert_eq!(to("deep.er.example.com", "/proxy/web-a/x"), "web-a /x");
        assert_eq!(to("auth.example.com", "/proxy/web-a/x"), "Auth");
        assert_eq!(to("api.example.com", "/healthz"), "Api");
        assert_eq!(to("example.com", "/"), "Base");
        assert_eq!(to("example.com", "/proxy/"), "Base");
        assert_eq!(to("elsewhere.net", "/"), "Stranger");
        assert_eq!(to("fixed.net", "/proxy/web-a/x"), "-> fixed.net");
        assert_eq!(to("part.net", "/proxy/web-a/x"), "Stranger");
        assert_eq!(to("own.example.com", "/"), "-> own.example.com");
        assert_eq!(to("example.com", "/docs/a?b"), "-> example.com/docs");
        assert_eq!(to("example.com", "/proxy/web-a"), "web-a /");
    }
}
