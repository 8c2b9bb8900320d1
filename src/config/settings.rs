//! What the configuration means: no `Option` that must be `Some`, every time a `Duration`, every
//! path usable from the working directory.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{
    AcmeSettings, DnsSettings, FailureSettings, NetworkSettings, OidcSettings, RequestLimits, RouteBounds,
};
use crate::name::{HostName, TunnelName};
use crate::observe::LogFormat;

/// One generation of settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file that they were read from, as an absolute path: for commands in messages. `None`: all
    /// comes from the environment.
    pub file: Option<PathBuf>,
    /// Where the single port listens.
    pub listen: Vec<SocketAddr>,
    /// Where HTTP is served without TLS, for the time of a move. Empty: nowhere.
    pub plain_http: Vec<SocketAddr>,
    /// Where SSH is served without TLS, for the time of a move. Empty: nowhere.
    pub plain_ssh: Vec<SocketAddr>,
    /// What public URLs begin with.
    pub base: BaseUrl,
    /// Where keys and certificates that the gateway makes are kept.
    pub state_dir: PathBuf,
    /// Names that lead to fixed services.
    pub routes: Vec<RouteSettings>,
    /// How long running work may go on after the signal to stop.
    pub drain_timeout: Duration,
    /// TLS.
    pub tls: TlsSettings,
    /// How names are proved by records in the DNS.
    pub dns: DnsSettings,
    /// Certificates that are ordered. `None`: none are.
    pub acme: Option<AcmeSettings>,
    /// Agents.
    pub ssh: SshSettings,
    /// Visitors.
    pub http: HttpSettings,
    /// Bounds.
    pub limits: Limits,
    /// Where people may connect from at all.
    pub networks: NetworkSettings,
    /// Who may see private tunnels.
    pub access: AccessSettings,
    /// Where figures and health are served. `None`: nowhere.
    pub admin: Option<AdminListen>,
    /// Logs.
    pub log: LogSettings,
}

/// The public side of the gateway: `SCHEME://HOST[:PORT]/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// Whether the scheme is `https`.
    pub https: bool,
    /// The base host; tunnels are its children.
    pub host: HostName,
    /// The port visitors use; `None` when it is the scheme's own.
    pub port: Option<u16>,
}

impl BaseUrl {
    /// Where none could be understood. No certificate is for this name (RFC 6761, section 6.4).
    pub(super) fn stand_in() -> Self {
        let host = HostName::parse("base-url.invalid").expect("a host name");
        Self { https: true, host, port: None }
    }

    /// Whether it is the stand-in for one that could not be understood.
    #[must_use]
    pub fn is_stand_in(&self) -> bool {
        *self == Self::stand_in()
    }

    /// The URL scheme, without the colon.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// `SCHEME://HOST[:PORT]` for any host behind this gateway: its origin, as browsers write it
    /// (RFC 6454, section 6.2).
    #[must_use]
    pub fn origin_of(&self, host: &HostName) -> String {
        match self.port {
            Some(port) => format!("{}://{host}:{port}", self.scheme()),
            None => format!("{}://{host}", self.scheme()),
        }
    }

    /// `SCHEME://HOST[:PORT]/` for any host behind this gateway.
    #[must_use]
    pub fn url_of(&self, host: &HostName) -> String {
        format!("{}/", self.origin_of(host))
    }

    /// Where people log in.
    #[must_use]
    pub fn login_url(&self) -> String {
        format!("{}login", self.url_of(&HostName::child_of("auth", &self.host)))
    }

    /// The public URL of a tunnel.
    #[must_use]
    pub fn tunnel_url(&self, name: &TunnelName) -> String {
        self.url_of(&HostName::child_of(name.as_str(), &self.host))
    }
}

/// A name that leads to a fixed service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    /// The public host.
    pub host: HostName,
    /// What the path must be or lie below; `/` for all. Has no `/` at its end otherwise.
    pub path: String,
    /// Where requests go.
    pub to: BackendAddr,
    /// What its visitors are held to.
    pub bounds: RouteBounds,
}

/// Where a service listens that speaks plain HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendAddr {
    /// Over TCP. A name is looked up for each new connection.
    Tcp {
        /// Host name or IP literal.
        host: HostName,
        /// The port.
        port: u16,
    },
    /// On a unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Certificates given by the operator. The first is shown to clients that send no SNI.
    pub certificates: Vec<CertificateSource>,
    /// The development CA, which signs for names under `localhost` as they are asked for.
    pub dev_ca: Option<PemPair>,
    /// Whose certificate is shown where none covers the name asked for. `None`: none is.
    pub default: Option<HostName>,
}

/// Where certificates given by the operator are.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// Here.
    Pair(PemPair),
    /// In this folder: one pair of files, or a folder for each pair, as in certbot's `live`.
    Folder(PathBuf),
}

impl From<PemPair> for CertificateSource {
    fn from(pair: PemPair) -> Self {
        Self::Pair(pair)
    }
}

/// A certificate chain and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemPair {
    /// The chain, leaf first.
    pub cert: PemSource,
    /// The private key.
    pub key: PemSource,
}

/// Where a PEM text is.
#[derive(Clone, PartialEq, Eq)]
pub enum PemSource {
    /// In this file.
    File(PathBuf),
    /// Given in the configuration itself (an environment variable). Never printed.
    Inline(String),
}

impl std::fmt::Debug for PemSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Inline(_) => f.write_str("Inline(***)"),
        }
    }
}

/// Whether a key that nobody listed may connect as an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyKey {
    /// Only keys in `authorized_keys`.
    No,
    /// Any key, but only from a loopback address.
    OnLoopback,
    /// Any key from anywhere.
    Yes,
}

/// Agents.
#[derive(Clone, Debug)]
pub struct SshSettings {
    /// SNI names under which a silent client without ALPN is taken for an SSH client.
    pub hostnames: Vec<HostName>,
    /// The host's private key in PEM (OpenSSH) form. A file that does not exist is made.
    pub host_key: PemSource,
    /// File or folder of public keys in OpenSSH's `authorized_keys` format.
    pub authorized_keys: Option<PathBuf>,
    /// Whether other keys may connect.
    pub any_key: AnyKey,
    /// Whether SSH without TLS is served on the single port.
    pub raw: bool,
    /// Pause between keep-alives; three unanswered end the session.
    pub keepalive_interval: Duration,
    /// Time from the start of a session until it must be authenticated.
    pub login_timeout: Duration,
    /// How long an agent may take to answer a channel open.
    pub open_timeout: Duration,
    /// How long an agent may take to close a channel that nobody uses any more.
    pub close_timeout: Duration,
    /// How many forwards one session may hold.
    pub max_forwards: usize,
    /// How many channels the gateway keeps open on one session at most.
    pub max_channels: usize,
    /// Octets in one direction after which a session gets new keys.
    pub rekey_after: u64,
    /// Where agents may connect from.
    pub networks: NetworkSettings,
    /// How many sessions one key may have. 0: any number.
    pub max_sessions_per_key: usize,
    /// How many tunnels one key may offer, over all of its sessions. 0: any number.
    pub max_tunnels_per_key: usize,
}

/// Visitors.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How long an idle kept connection of a visitor stays open, and how long an upload that the
    /// service waits for may pause.
    pub idle_timeout: Duration,
    /// How long a visitor may take nothing of what is being sent to them.
    pub send_timeout: Duration,
    /// How long an idle connection to an upstream is kept for reuse.
    pub upstream_idle_timeout: Duration,
    /// How many idle connections to one tunnel or route are kept.
    pub upstream_idle_max: usize,
    /// How many connections to one route's service may be open.
    pub upstream_max: usize,
    /// How long nothing may move on an upgraded stream.
    pub upgrade_idle_timeout: Duration,
}

/// Bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time from accept until a connection is handshaken and classified.
    pub handshake_timeout: Duration,
    /// How long a client without ALPN may stay silent before the server speaks first.
    pub silence_timeout: Duration,
    /// Open connections in all.
    pub connections: usize,
    /// Open connections from one address (one /64 for IPv6).
    pub connections_per_address: usize,
    /// Octets of request head, in all.
    pub header_bytes: usize,
    /// Octets of one unread answer kept in memory, before a temporary file takes over.
    pub buffer_memory: u64,
    /// Octets of unread answers kept in memory, in all.
    pub buffer_memory_all: u64,
    /// Octets of one unread answer kept in its temporary file.
    pub buffer_disk_per_stream: u64,
    /// Octets of unread answers kept in temporary files, in all.
    pub buffer_disk: u64,
    /// Octets that wait in memory to be sent to agents, in all.
    pub queue_memory_all: u64,
    /// How many requests there may be.
    pub requests: RequestLimits,
}

/// Where figures and health are served. There is no login, so nobody else may get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminListen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A unix socket, for this user only.
    Unix(PathBuf),
}

/// Logs.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// How a record is written.
    pub format: LogFormat,
    /// Which records are written, in the syntax of `tracing`'s `EnvFilter`.
    pub filter: String,
}

/// Who may see private tunnels.
#[derive(Clone, Debug, Default)]
pub struct AccessSettings {
    /// Whose tokens are believed, beside those of agents' own keys.
    pub issuers: Vec<IssuerSettings>,
    /// Whether a token of an agent's key may be valid for ever.
    pub allow_unexpiring_tokens: bool,
    /// What session cookies are sealed with; the first makes new ones. Empty: what the file says.
    pub secrets: Vec<Secret>,
    /// Where such secrets are kept, one a line. Made where it is missing and needed.
    pub secrets_file: PathBuf,
    /// How long a login lasts.
    pub session_ttl: Duration,
    /// How long a guest link may be good; zero: there are none.
    pub share_max: Duration,
    /// Whether a cookie of a preview stays on the host of that preview, and below a path is its own, as a
    /// password is.
    pub isolate_cookies: bool,
    /// Where people log in who came with a browser: the base URL of the hosted service that
    /// existing agents know.
    pub login_url: Option<String>,
    /// Where they log in instead: a provider of the operator's.
    pub oidc: Option<OidcSettings>,
    /// What becomes of those who fail to show who they are.
    pub failures: FailureSettings,
}

/// Somebody whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSettings {
    /// The `iss` of their tokens.
    pub name: String,
    /// What their tokens are checked with.
    pub keys: IssuerKeys,
    /// The `aud` that their tokens must have; `None`: any or none.
    pub audience: Option<String>,
    /// The claim that names the profiles whose tunnels a token opens.
    pub profiles_claim: String,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerKeys {
    /// One public key in PEM form.
    Pem(PemSource),
    /// A set of them (RFC 7517).
    Jwks(PemSource),
    /// A set that is fetched.
    JwksUrl(JwksUrl),
}

/// Where a set of keys is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksUrl {
    /// The `https` URL.
    pub url: String,
    /// Authorities (PEM) that vouch for its server, besides the system's.
    pub root: Option<PathBuf>,
}

/// A text that is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for use and not for print.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
