//! Where the page is from that sent a request, as browsers say (RFC 6454): what they keep for a private
//! preview, they send along for the pages of all others below the base host as well.

use http::Request;
use http::header;

use super::Http;
use super::session;
use super::upgrade::asks_to_switch;
use crate::access::brief;
use crate::name::{HostName, TunnelName};
use crate::registry::Tunnel;

/// Where the page is from, if that is neither this host nor one of the same agent's. A request that names
/// none passes: a program's, what a browser opens in its window, and what it shows in a page without letting
/// that read it, such as pictures.
pub(super) fn other_site<B>(
    http: &Http,
    request: &Request<B>,
    tunnel: &Tunnel,
    own_host: Option<&HostName>,
) -> Option<String> {
    // What opens in the browser's window is no page's to read, wherever the way there began.
    let is_opened = request.headers().get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
    if is_opened && request.method().is_safe() && !asks_to_switch(request) {
        return None;
    }
    let mut origins = request.headers().get_all(header::ORIGIN).iter();
    // A page that wants no referrer has its own forms come from `null`; then browsers say it in this field,
    // which no page can set, and which looks at all redirects on the way (Fetch Metadata).
    let is_own_form = request.headers().get("sec-fetch-site").is_some_and(|site| site == "same-origin");
    let is_foreign = |origin: &&http::HeaderValue| {
        let is_ours = |origin| match origin {
            "null" => is_own_form,
            origin => is_ours(http, origin, tunnel, own_host),
        };
        !origin.to_str().is_ok_and(is_ours)
    };
    let foreign = origins.find(is_foreign)?;
    Some(brief(&String::from_utf8_lossy(foreign.as_bytes())))
}

/// Whether pages from there may use what a browser keeps for this tunnel: those of its own host, and of
/// other tunnels of the same key, all at their public addresses.
fn is_ours(http: &Http, origin: &str, tunnel: &Tunnel, own_host: Option<&HostName>) -> bool {
    let base = &http.settings.base;
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let Ok((host, _)) = HostName::parse_authority(authority) else { return false };
    if !origin.eq_ignore_ascii_case(&base.origin_of(&host)) {
        return false;
    }
    // The host where a tunnel lies under a path is that of others' pages as well.
    if own_host == Some(&host) && session::is_own_host(tunnel, &host, base) {
        return true;
    }
    let name = host.label_under(&base.host).and_then(TunnelName::from_label);
    let other = name.and_then(|name| http.registry.look_up(&name));
    other.is_some_and(|other| other.owner.key == tunnel.owner.key)
}
