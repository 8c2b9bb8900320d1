//! The settings about where people may come from, and how often.

use super::{Setting, setting};

/// Those settings, in the order of the documentation.
pub(super) const BOUNDS: &[Setting] = &[
    setting(
        "networks.allow",
        "list of networks or `file:PATH`",
        "",
        "Who may connect at all: networks such as `10.0.0.0/8`, one address, or files with one a line. Nobody else may, once there is such a list. The longest network wins, and of two alike that in `networks.deny`.",
    ),
    setting(
        "networks.deny",
        "list of networks or `file:PATH`",
        "",
        "Who may not connect at all, whatever they want. Looked at before the TLS handshake; of visitors behind `http.trusted_proxies`, for each request.",
    ),
    setting(
        "ssh.allow",
        "list of networks or `file:PATH`",
        "",
        "Where agents may connect from, of those who may connect at all.",
    ),
    setting("ssh.deny", "list of networks or `file:PATH`", "", "Where agents may not connect from."),
    setting(
        "ssh.max_sessions_per_key",
        "number",
        "0",
        "Sessions that one key may have at the same time; 0 sets no limit.",
    ),
    setting(
        "ssh.max_tunnels_per_key",
        "number",
        "0",
        "Tunnels that one key may offer over all of its sessions; 0 sets no limit.",
    ),
    setting(
        "access.fail_slow_after",
        "number",
        "10",
        "Failed logins from one address (one /64 for IPv6) after which each further refusal takes longer, up to 2 s.",
    ),
    setting(
        "access.fail_max",
        "number",
        "50",
        "Failed logins from one address after which it is refused; those of agents, of tools and people with a token, and of web pages count apart. An address from which an agent is connected is not. 0 counts none.",
    ),
    setting("access.fail_window", "duration", "10m", "How long failed logins of an address count."),
    setting("access.fail_lockout", "duration", "10m", "How long an address is refused for them."),
    setting(
        "limits.tunnel_requests_per_second",
        "number",
        "0",
        "Requests to one tunnel or route in a second, in the long run; more are answered 429. 0 sets no limit. A route can have limits of its own.",
    ),
    setting(
        "limits.tunnel_requests_burst",
        "number",
        "0",
        "Requests to it that may come at once after a pause. 0: as many as in 5 s.",
    ),
    setting(
        "limits.tunnel_requests_running",
        "number",
        "0",
        "Requests to it, WebSockets and other streams included, that may run at the same time; 0 sets no limit.",
    ),
    setting(
        "limits.visitor_requests_per_second",
        "number",
        "0",
        "The same for all requests of one visitor's address (one /64 for IPv6).",
    ),
    setting("limits.visitor_requests_burst", "number", "0", "The same for an address."),
    setting("limits.visitor_requests_running", "number", "0", "The same for an address."),
];
