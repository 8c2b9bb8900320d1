//! How routes are written: tables in the file, `HOST[/PATH]=TO` in a variable.

use std::path::PathBuf;

use super::written::Value;
use super::{BackendAddr, BaseUrl, NetworkSource, OwnRate, RouteBounds, RouteSettings};
use crate::name::HostName;

const HINT: &str = "write `{ host = \"app.example.com\", to = \"http://127.0.0.1:3000\" }`";
const KNOWN: [&str; 11] = [
    "host",
    "path",
    "to",
    "allow",
    "deny",
    "requests_per_second",
    "requests_burst",
    "requests_running",
    "visitor_requests_per_second",
    "visitor_requests_burst",
    "visitor_requests_running",
];
const HINT_TO: &str = "write `http://HOST:PORT` or `unix:PATH`";

/// Reads all routes; each faulty one is a fault of its own. `relative` places a path.
pub(super) fn read(value: &Value, relative: impl Fn(&str) -> PathBuf) -> Vec<Result<RouteSettings, String>> {
    match value {
        Value::Toml(toml::Value::Array(items)) => {
            items.iter().map(|item| of_table(item, &relative)).collect()
        }
        Value::Text(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| of_text(item, &relative)).collect()
        }
        Value::Toml(other) => {
            vec![Err(format!("`{other}` is not a list; {HINT}, one a line in `routes = […]`"))]
        }
        Value::Pem(_) | Value::Pair(_) => vec![Err(format!("not a list; {HINT}"))],
    }
}

/// What makes routes useless together, or beside the gateway's own names.
pub(super) fn conflicts(routes: &[RouteSettings], base: Option<&BaseUrl>) -> Vec<String> {
    let own = |host: &HostName| {
        base.is_some_and(|base| matches!(host.label_under(&base.host), Some("auth" | "api")))
    };
    let mut faults = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let RouteSettings { host, path, .. } = route;
        if own(host) {
            faults.push(format!("`{host}` is one of the gateway's own names; choose another host"));
        }
        let is_proxy = path == "/proxy" || path.starts_with("/proxy/");
        if is_proxy && base.is_some_and(|base| base.host == *host) {
            faults.push(format!("`{path}` on `{host}` leads to tunnels; choose another path"));
        }
        if routes[..index].iter().any(|earlier| (&earlier.host, &earlier.path) == (host, path)) {
            faults.push(format!("`{host}` with the path `{path}` is there twice; keep one of the two"));
        }
    }
    faults
}

fn of_table(item: &toml::Value, relative: &impl Fn(&str) -> PathBuf) -> Result<RouteSettings, String> {
    let table = item.as_table().ok_or_else(|| format!("`{item}` is not a route; {HINT}"))?;
    if let Some(unknown) = table.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(format!(
            "a route has no `{unknown}`; {HINT}; beside these it may have `{}`",
            KNOWN[3..].join("`, `")
        ));
    }
    let text = |name: &str| match table.get(name) {
        None => Ok(None),
        Some(value) => {
            value.as_str().map(Some).ok_or_else(|| format!("`{name}` must be a quoted text; {HINT}"))
        }
    };
    let needed = |name: &str| text(name)?.ok_or_else(|| format!("a route without its `{name}`; {HINT}"));
    let route = of_parts(needed("host")?, text("path")?.unwrap_or("/"), needed("to")?, relative)?;
    Ok(RouteSettings { bounds: bounds(table, relative)?, ..route })
}

fn bounds(table: &toml::Table, relative: &impl Fn(&str) -> PathBuf) -> Result<RouteBounds, String> {
    let mut bounds = RouteBounds::default();
    for (name, list) in [("allow", &mut bounds.networks.allow), ("deny", &mut bounds.networks.deny)] {
        let Some(value) = table.get(name) else { continue };
        let items = value.as_array().ok_or_else(|| {
            format!("`{name}` of a route must be a list; write such as `{name} = [\"10.0.0.0/8\"]`")
        })?;
        for item in items {
            let item = item.as_str().ok_or_else(|| {
                format!("`{item}` is not a network; write such as `{name} = [\"10.0.0.0/8\"]`")
            })?;
            list.push(NetworkSource::read(item, relative)?);
        }
    }
    bounds.target = rate(table, "")?;
    bounds.visitor = rate(table, "visitor_")?;
    Ok(bounds)
}

fn rate(table: &toml::Table, prefix: &str) -> Result<OwnRate, String> {
    let number = |name: &str| {
        let name = format!("{prefix}requests_{name}");
        let Some(value) = table.get(&name) else { return Ok(None) };
        let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| *number <= 1_000_000) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("`{value}` is no number for `{name}`; write one from 0 to 1000000")),
        }
    };
    Ok(OwnRate {
        per_second: number("per_second")?,
        burst: number("burst")?,
        running: number("running")?.and_then(|number| usize::try_from(number).ok()),
    })
}

fn of_text(item: &str, relative: &impl Fn(&str) -> PathBuf) -> Result<RouteSettings, String> {
    let bad = || format!("`{item}` is not a route; write `HOST[/PATH]=TO`, with commas between routes");
    let (from, to) = item.split_once('=').ok_or_else(bad)?;
    let (host, path) = from.find('/').map_or((from, "/"), |slash| from.split_at(slash));
    of_parts(host, path, to, relative)
}

fn of_parts(
    host: &str,
    path: &str,
    to: &str,
    relative: &impl Fn(&str) -> PathBuf,
) -> Result<RouteSettings, String> {
    let host = HostName::parse(host).map_err(|error| format!("{error}; write a host name without a port"))?;
    if !path.starts_with('/') || path.contains(['?', '#']) || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("`{path}` is not a path; write such as `/api`"));
    }
    let short = path.trim_end_matches('/');
    let path = if short.is_empty() { "/" } else { short }.to_owned();
    Ok(RouteSettings { host, path, to: address(to, relative)?, bounds: RouteBounds::default() })
}

fn address(to: &str, relative: &impl Fn(&str) -> PathBuf) -> Result<BackendAddr, String> {
    if let Some(path) = to.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path)) {
        return match path {
            "" => Err(format!("`{to}` names no socket; {HINT_TO}")),
            path => Ok(BackendAddr::Unix(relative(path))),
        };
    }
    if to.starts_with("https://") {
        return Err(format!("`{to}`: services are spoken to in plain HTTP/1.1 only; {HINT_TO}"));
    }
    let authority =
        to.strip_prefix("http://").ok_or_else(|| format!("`{to}` is not an address; {HINT_TO}"))?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(format!("`{to}` holds more than host and port; {HINT_TO}"));
    }
    let (host, port) = HostName::parse_authority(authority).map_err(|error| format!("{error}; {HINT_TO}"))?;
    match port.unwrap_or(80) {
        0 => Err(format!("`{to}` has the port 0; {HINT_TO}")),
        port => Ok(BackendAddr::Tcp { host, port }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Vec<Result<RouteSettings, String>> {
        read(&Value::Text(text.to_owned()), |path| path.into())
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let toml: toml::Table = toml::from_str(
            r#"routes = [{ host = "App.example.com", to = "http://[::1]:3000/" }, { host = "a.b", path = "/x/", to = "unix:s" }]"#,
        )
        .expect("TOML");
        let tables = read(&Value::Toml(toml["routes"].clone()), |path| path.into());
        assert_eq!(tables, written("app.example.com=http://[::1]:3000, a.b/x=unix:s"));
        assert_eq!(tables[1].as_ref().map(|route| route.path.as_str()), Ok("/x"));
    }

    #[test]
    fn faults_name_the_value() {
        for (text, part) in [
            ("a.b", "`a.b` is not a route"),
            ("a b=http://c:1", "`a b` is not a host name"),
            ("a.b=c:1", "`c:1` is not an address"),
            ("a.b=https://c:1", "plain HTTP/1.1 only"),
            ("a.b=http://c:1/x", "more than host and port"),
            ("a.b=http://c:0", "port 0"),
            ("a.b=unix:", "names no socket"),
            ("a.b/?=http://c:1", "is not a path"),
        ] {
            let found = written(text).remove(0).expect_err(text);
            assert!(found.contains(part) && found.contains("write"), "{text}: {found}");
        }
    }

    #[test]
    fn names_of_the_gateway_and_doubles_are_refused() {
        let routes: Vec<_> = written(
            "x.y/proxy/a=http://c:1, auth.x.y=http://c:1, a.b=http://c:1, a.b/=http://c:2, a.b/z=http://c:3",
        )
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("valid");
        let base = BaseUrl { https: true, host: HostName::parse("x.y").expect("valid"), port: None };
        let found = conflicts(&routes, Some(&base));
        assert!(
            found.len() == 3
                && found[0].contains("leads to tunnels")
                && found[1].contains("own names")
                && found[2].contains("twice"),
            "{found:?}"
        );
    }
}
