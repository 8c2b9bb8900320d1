//! The list of all settings: the file, the environment, the defaults and the documentation are
//! all read off it.

mod bounds;

use super::setting::{Setting, joined, setting};

/// All settings, in the order of the documentation.
pub const SETTINGS: &[Setting] =
    &joined::<{ GENERAL.len() + bounds::BOUNDS.len() }>(&[GENERAL, bounds::BOUNDS]);

const GENERAL: &[Setting] = &[
    setting(
        "base_url",
        "URL",
        "",
        "What public URLs begin with: `https://HOST[:PORT]` (or `http`). Tunnels are host names below HOST. Required.",
    ),
    setting(
        "listen",
        "list of addresses",
        "0.0.0.0:443,[::]:443",
        "Where the single port listens. Empty without being written when there is no certificate but a plain listener.",
    ),
    setting("state_dir", "path", "certs", "Folder for keys and certificates that the gateway makes itself."),
    setting(
        "routes",
        "list of {host, path, to, allow, deny, …}",
        "",
        "Fixed names: requests for `host`, and below `path` where it is given, go to the HTTP/1.1 service at `to`: `http://HOST:PORT` or `unix:PATH`. The longest `path` wins. `allow`, `deny` and limits of a route's own are in docs/networks.md. In the variable: `HOST[/PATH]=TO`, commas between routes.",
    ),
    setting(
        "drain_timeout",
        "duration",
        "30s",
        "How long running requests and sessions may go on after SIGTERM.",
    ),
    setting(
        "tls.certificates",
        "list of {cert, key} or {folder}",
        "",
        "PEM files: certificate chain (leaf first) and private key; or a folder of them: `fullchain.pem` and `privkey.pem` (or `tls.crt` and `tls.key`), itself or in a folder for each, as in certbot's `live`. Reread when they change. The first is shown to clients without SNI. In the variable: `cert.pem:key.pem` or `folder/`, commas between them. Required unless `acme.email` is there, or only plain listeners are meant.",
    ),
    setting(
        "tls.default",
        "host name",
        "",
        "Whose certificate is shown to clients that ask for a name which no certificate covers. Default: none, but a TLS alert.",
    ),
    setting(
        "dns.responder",
        "list of addresses",
        "",
        "Where the gateway answers DNS queries (UDP and TCP) for `_acme-challenge` names itself, such as `0.0.0.0:53`: one of four ways to prove a wildcard, see docs/dns.md.",
    ),
    setting(
        "dns.responder_name",
        "host name",
        "",
        "What this host is called in the DNS; the NS record of `_acme-challenge` names leads there. Default: the host of `base_url`.",
    ),
    setting(
        "dns.rfc2136.server",
        "host and port",
        "",
        "The DNS server that takes dynamic updates (RFC 2136) for the zone: a host name or an IP address, with `:PORT` unless it is 53.",
    ),
    setting("dns.rfc2136.zone", "host name", "", "The zone to update. Default: as that server says."),
    setting("dns.rfc2136.key_name", "host name", "", "What the key for updates (TSIG) is called there."),
    setting("dns.rfc2136.key_secret", "base64", "", "That key."),
    setting("dns.rfc2136.key_secret_file", "path", "", "The file which that key is in, instead."),
    setting(
        "dns.rfc2136.algorithm",
        "`hmac-sha256`, `hmac-sha384` or `hmac-sha512`",
        "hmac-sha256",
        "How updates are signed with it.",
    ),
    setting("dns.exec", "path", "", "The program that sets and removes `_acme-challenge` records."),
    setting(
        "dns.exec_style",
        "`lego` or `certbot`",
        "lego",
        "How that program is told what to do: by arguments (`present FQDN. VALUE`, `cleanup FQDN. VALUE`), or by the variables `CERTBOT_DOMAIN` and `CERTBOT_VALIDATION`.",
    ),
    setting(
        "dns.exec_cleanup",
        "path",
        "",
        "The program that removes them, if that is another one. With `certbot` and without it, nothing is removed.",
    ),
    setting(
        "dns.cloudflare.token",
        "token",
        "",
        "Cloudflare's API token with the permission to edit the zone's DNS.",
    ),
    setting("dns.cloudflare.token_file", "path", "", "The file which that token is in, instead."),
    setting(
        "dns.cloudflare.api",
        "URL",
        "https://api.cloudflare.com/client/v4",
        "What the URLs of that API begin with.",
    ),
    setting(
        "dns.resolver",
        "list of addresses",
        "",
        "DNS resolvers that are asked where zones and their servers are. Default: the system's.",
    ),
    setting(
        "dns.servers",
        "list of addresses",
        "",
        "DNS servers that are asked whether a record can be seen. Default: those in the zone's NS records.",
    ),
    setting(
        "dns.timeout",
        "duration",
        "3m",
        "How long a record may take to be set, and as long again to be seen at the zone's own servers.",
    ),
    setting(
        "acme.email",
        "e-mail address",
        "",
        "Orders certificates and renews them. The certificate authority may write to this address; setting it agrees to the authority's terms of service.",
    ),
    setting(
        "acme.names",
        "list of names",
        "",
        "What certificates are ordered for, one each: `example.com` or `*.example.com`. Default: the host of `base_url`, all names below it (when a way under `[dns]` is set; else `auth.` and `api.` below it), and the hosts of routes. Names in `tls.certificates` are left out.",
    ),
    setting(
        "acme.directories",
        "list of words, URLs or {url, root, eab_key_id, eab_key}",
        "letsencrypt",
        "Whom to order from: the first, and the next when that is down or limits us. Words: `letsencrypt`, `letsencrypt-staging`, `zerossl`, `google`. `root` is a PEM file with the authority of a private server; the last two bind the account to one made there. In the variable: words and URLs, with commas.",
    ),
    setting(
        "acme.challenges",
        "list of ways",
        "tls-alpn-01,http-01,dns-01",
        "How names are proved, in the order in which it is tried: `tls-alpn-01` on the single port, `http-01` on port 80 in `listen`, `dns-01` as `[dns]` says. Ways that are not set up are passed over; wildcards have `dns-01` only.",
    ),
    setting(
        "acme.profile",
        "text",
        "",
        "Which of the authority's kinds of certificate to order, such as `shortlived`. Default: its usual one.",
    ),
    setting(
        "acme.on_demand",
        "true or false",
        "true",
        "Whether a certificate is ordered for a host that no other covers, when it is first asked for and a tunnel or a route is there: previews without a wildcard.",
    ),
    setting(
        "acme.on_demand_per_minute",
        "number",
        "5",
        "How many are ordered in this way in a minute at most.",
    ),
    setting(
        "acme.on_demand_per_week",
        "number",
        "40",
        "How many are ordered in this way in a week at most. Let's Encrypt allows 50 a week for one registered domain.",
    ),
    setting("acme.key_type", "`p256` or `rsa2048`", "p256", "Kind of the certificates' keys."),
    setting(
        "ssh.hostnames",
        "list of host names",
        "",
        "TLS names (SNI) under which a silent client without ALPN is taken for an SSH client. Default: the host of `base_url`.",
    ),
    setting(
        "ssh.host_key",
        "path",
        "",
        "The host's private key, in PEM (OpenSSH) form; made there (Ed25519) if absent. Default: `ssh_host_ed25519_key` in `state_dir`.",
    ),
    setting(
        "ssh.authorized_keys",
        "path",
        "",
        "Keys of agents in OpenSSH's `authorized_keys` format: a file, or a folder of such files. Reread when it changes. Required unless `ssh.allow_any_key`.",
    ),
    setting("ssh.allow_any_key", "true or false", "false", "Whether any SSH key may connect, from anywhere."),
    setting(
        "ssh.raw",
        "true or false",
        "false",
        "Whether SSH without TLS is served on the single port, too.",
    ),
    setting(
        "ssh.keepalive_interval",
        "duration",
        "5s",
        "Pause between keep-alives to an agent; three unanswered end its session.",
    ),
    setting("ssh.login_timeout", "duration", "20s", "Time in which an agent must authenticate."),
    setting("ssh.open_timeout", "duration", "10s", "Time in which an agent must answer a channel open."),
    setting(
        "ssh.close_timeout",
        "duration",
        "5s",
        "Time in which an agent should close a channel whose visitor has left; 120 times as long once a session has had 1,024 that were closed without it.",
    ),
    setting("ssh.max_forwards", "number", "64", "Tunnels that one session may offer."),
    setting(
        "ssh.rekey_after",
        "size",
        "32GiB",
        "How much may be sent in one direction of a session before the gateway asks for new keys. OpenSSH is never asked: it asks itself, after its `RekeyLimit`.",
    ),
    setting("ssh.max_channels", "number", "512", "Channels that are open on one session at most."),
    setting(
        "access.issuer",
        "list of {name, key, jwks or jwks_url, root, audience, profiles_claim}",
        "",
        "Whose tokens (JWT) open private tunnels, beside those of agents' own keys: `name` is their `iss`; `key` a public key in a PEM file, `jwks` a file with a set of keys, or `jwks_url` the https URL of one (`root`: a PEM file with the authority of a private server); `audience` the `aud` that they must have; `profiles_claim` (`profiles`) the claim that lists the profiles whose tunnels they open. Files are reread when they change, URLs fetched anew in time. In the variable: `NAME=KEY.pem` or `NAME=URL`, commas between issuers.",
    ),
    setting(
        "access.allow_unexpiring_tokens",
        "true or false",
        "true",
        "Whether a token of an agent's own key may lack `exp` and be valid for ever, as existing agents make them. Tokens of issuers may not.",
    ),
    setting(
        "access.session_ttl",
        "duration",
        "12h",
        "How long a login with a browser lasts; then people are asked again.",
    ),
    setting(
        "access.secrets",
        "list of texts",
        "",
        "What the cookies of logins are sealed with, at least 16 characters each: the first seals new ones, all open those that are there. As `COOKIE_SECRETS`. Default: those in `access.secrets_file`.",
    ),
    setting(
        "access.secrets_file",
        "path",
        "",
        "The file which such secrets are in, one a line; made there (with one) if absent. Reread when it changes. Default: `cookie_secrets` in `state_dir`.",
    ),
    setting(
        "access.oidc.issuer",
        "URL",
        "",
        "Lets people log in to private tunnels at this OpenID Connect provider: its issuer, exactly as it writes it. It must know the gateway's address `https://auth.HOST/login/callback`. See docs/oidc.md.",
    ),
    setting("access.oidc.client_id", "text", "", "What the gateway is called there."),
    setting("access.oidc.client_secret", "text", "", "The secret that goes with it, if it has one."),
    setting("access.oidc.client_secret_file", "path", "", "The file which that secret is in, instead."),
    setting("access.oidc.scopes", "list of scopes", "email,profile", "What is asked for, besides `openid`."),
    setting(
        "access.oidc.allow",
        "list of {email or domain or claim (value), profiles}",
        "",
        "Who may see whose tunnels; all rules that match count. `profiles` are profiles' ids (`oneport token --profile`), or `*` for all; left out, those that the `claim` lists. In the variable: `ann@example.com=PROFILE`, `@example.com=*` or `CLAIM:VALUE=PROFILE`, commas between rules.",
    ),
    setting(
        "access.oidc.root",
        "path",
        "",
        "PEM file with the authority of the provider's server, where that is a private one.",
    ),
    setting(
        "access.share_max",
        "duration",
        "30d",
        "How long a guest link may open a private preview at most; `0s` allows none. Links that are there are cut to it at the next start.",
    ),
    setting(
        "access.isolate_cookies",
        "true or false",
        "true",
        "Whether a cookie that a preview sets for more than its own host (`Domain=`) is narrowed to that host, whether services below `/proxy/NAME` have cookies of their own and get no password that a browser keeps, and whether no preview clears those of others.",
    ),
    setting(
        "http.trusted_proxies",
        "list of networks",
        "",
        "Peers whose `X-Forwarded-*` headers are believed, such as `10.0.0.0/8`.",
    ),
    setting(
        "http.idle_timeout",
        "duration",
        "75s",
        "How long a visitor's idle connection stays open, and how long an upload may pause.",
    ),
    setting(
        "http.send_timeout",
        "duration",
        "5m",
        "How long a visitor may take nothing of what is being sent to them.",
    ),
    setting(
        "http.upstream_idle_timeout",
        "duration",
        "60s",
        "How long an idle connection to a service is kept for reuse.",
    ),
    setting(
        "http.upstream_idle_max",
        "number",
        "128",
        "Idle connections that are kept for one tunnel or route; 0 keeps none.",
    ),
    setting(
        "http.upstream_max",
        "number",
        "1024",
        "Connections that are open to one route's service at most. (Those to a tunnel count for `ssh.max_channels`.)",
    ),
    setting(
        "http.upgrade_idle_timeout",
        "duration",
        "1h",
        "How long nothing may move on a WebSocket or another upgraded stream.",
    ),
    setting(
        "limits.handshake_timeout",
        "duration",
        "10s",
        "Time from accept until a connection is handshaken and its protocol known.",
    ),
    setting(
        "limits.silence_timeout",
        "duration",
        "1s",
        "How long a client without ALPN may stay silent before the gateway speaks first, as SSH.",
    ),
    setting("limits.connections", "number", "20000", "Open connections in all."),
    setting(
        "limits.connections_per_address",
        "number",
        "1000",
        "Open connections from one address (one /64 for IPv6).",
    ),
    setting("limits.header_bytes", "size", "64KiB", "Size of a request's head."),
    setting(
        "limits.buffer_memory",
        "size",
        "256KiB",
        "Part of an answer that a visitor has not taken yet that is kept in memory; the rest goes to an unnamed temporary file.",
    ),
    setting(
        "limits.buffer_memory_all",
        "size",
        "16MiB",
        "Size of all such parts in memory together; past it each keeps at most 32KiB there.",
    ),
    setting("limits.buffer_disk_per_stream", "size", "1GiB", "Size of that temporary file for one answer."),
    setting("limits.buffer_disk", "size", "4GiB", "Size of all such temporary files together."),
    setting(
        "limits.queue_memory_all",
        "size",
        "256MiB",
        "Size of all that waits in memory to be sent to agents; past it the session with most of it ends.",
    ),
    setting(
        "plain.http",
        "list of addresses",
        "",
        "Where HTTP, previews included, is served without TLS: for the time of a move, or behind another proxy that ends TLS. To lead visitors from port 80 to HTTPS, write port 80 into `listen` instead.",
    ),
    setting("plain.ssh", "list of addresses", "", "Where SSH is served without TLS, for the time of a move."),
    setting(
        "admin.listen",
        "address, or `unix:` and a path",
        "",
        "Where metrics, health and status are served over plain HTTP: a loopback address such as `127.0.0.1:9180`, or a unix socket such as `unix:/run/oneport/admin.sock`. Default: nowhere.",
    ),
    setting("log.format", "`text` or `json`", "text", "How a log record is written."),
    setting(
        "log.filter",
        "filter",
        "info",
        "Which records are written: a level, or rules such as `info,oneport::ssh=debug`.",
    ),
];

/// The setting of this path.
#[must_use]
pub fn find(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_unique() {
        let mut names: Vec<_> = SETTINGS.iter().map(Setting::variable).collect();
        assert!(names.contains(&"ONEPORT_SSH_ALLOW_ANY_KEY".to_owned()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
    }
}
