//! `oneport connect`: a TLS connection with ALPN `ssh`, and the bytes between it and the
//! standard streams.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{ALPN_SSH, client_config, explain};
use crate::certs::CertError;
use crate::name::HostName;

use crate::net::{CopyEnd, Duplex, copy_both, prepare_socket};

/// How long one address may take to accept, and then the server to shake hands.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The SSH within has its own timers. This only has to be an end.
const IDLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Where the target says no port.
const DEFAULT_PORT: u16 = 443;

/// How to connect.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// Trust only the authorities in this PEM file, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Trust anybody. Say so loudly.
    pub insecure: bool,
    /// The name to ask for and to verify, instead of the target's host.
    pub server_name: Option<String>,
}

/// Why there is no connection, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The target cannot be understood.
    #[error("`{target}` is not a target: {detail}; write `HOST:PORT`")]
    BadTarget {
        /// What was given.
        target: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The name to verify is none.
    #[error("`{0}` is not a name that a certificate can hold; write a host name after `--servername`")]
    BadServerName(String),
    /// The DNS does not know the host.
    #[error("cannot find `{host}`: {error}; check the spelling, and that this machine has a network")]
    Dns {
        /// Which one.
        host: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// Nothing listens there.
    #[error("`{target}` refused the connection ({tried}); is the server running, and is the port right?")]
    Refused {
        /// Where to.
        target: String,
        /// Every address that was tried.
        tried: String,
    },
    /// No address answered.
    #[error("`{target}` did not answer within {}s ({tried}); is a firewall in between, and is the host right?", CONNECT_TIMEOUT.as_secs())]
    TimedOut {
        /// Where to.
        target: String,
        /// Every address that was tried.
        tried: String,
    },
    /// The system cannot connect.
    #[error("cannot connect to `{target}`: {error} ({tried}); check the network of this machine")]
    Unreachable {
        /// Where to.
        target: String,
        /// Every address that was tried.
        tried: String,
        /// The last error.
        error: io::Error,
    },
    /// Connected, but no handshake in time.
    #[error("`{server}` accepted the connection but did not answer in TLS within {}s; is the port right?", CONNECT_TIMEOUT.as_secs())]
    Silent {
        /// Where to.
        server: String,
    },
    /// The server closed before the handshake was done.
    #[error(
        "`{server}` closed the connection before TLS was set up; is the port right, and does the server speak TLS there?"
    )]
    ClosedEarly {
        /// Where to.
        server: String,
    },
    /// Something else answers.
    #[error("`{server}` does not speak TLS; is the port right?")]
    NotTls {
        /// Where to.
        server: String,
    },
    /// TLS, but not for SSH.
    #[error(
        "`{server}` speaks TLS but not oneport's `ssh` protocol (ALPN); is this a oneport server, with nothing in front that ends TLS?"
    )]
    NoSsh {
        /// Where to.
        server: String,
    },
    /// The server has no certificate for the name.
    #[error(
        "`{server}` has no certificate for `{name}`; pass `--servername NAME` with a name that it serves"
    )]
    NoSuchName {
        /// Where to.
        server: String,
        /// What was asked for.
        name: String,
    },
    /// An authority that is not trusted.
    #[error(
        "the certificate of `{server}` is not trusted, its issuer is unknown here; pass `--ca FILE` with the issuer's certificate"
    )]
    UnknownIssuer {
        /// Where to.
        server: String,
    },
    /// A certificate for somebody else.
    #[error(
        "the certificate of `{server}` is not for `{name}` but for `{names}`; connect under one of these, or pass it with `--servername`"
    )]
    WrongName {
        /// Where to.
        server: String,
        /// What was verified.
        name: String,
        /// What the certificate holds.
        names: String,
    },
    /// A certificate of the past.
    #[error(
        "the certificate of `{server}` has ended; the operator must renew it, or this machine's clock is wrong"
    )]
    Expired {
        /// Where to.
        server: String,
    },
    /// A certificate of the future.
    #[error("the certificate of `{server}` is not valid yet; this machine's clock is probably wrong")]
    NotValidYet {
        /// Where to.
        server: String,
    },
    /// Another fault of the certificate.
    #[error("the certificate of `{server}` cannot be accepted: {detail}; the operator must replace it")]
    BadCertificate {
        /// Where to.
        server: String,
        /// What is wrong.
        detail: String,
    },
    /// Another fault of TLS.
    #[error("no TLS connection with `{server}`: {detail}; is the port right?")]
    Tls {
        /// Where to.
        server: String,
        /// What is wrong.
        detail: String,
    },
    /// The file after `--ca` cannot be used.
    #[error(transparent)]
    Ca(#[from] CertError),
    /// The file after `--ca` holds nothing to trust.
    #[error("`{0}` holds no certificate of an authority; pass the one that signed the server's certificate")]
    UselessCa(PathBuf),
    /// The system has no list of authorities.
    #[error(
        "this system has no list of trusted authorities ({0}); install `ca-certificates`, or pass `--ca FILE`"
    )]
    NoRoots(String),
    /// The connection broke later.
    #[error("the connection to `{server}` was lost: {error}; connect again")]
    Lost {
        /// Where to.
        server: String,
        /// What the system said.
        error: io::Error,
    },
}

/// Connects, then copies between `local` and the server until the server closes. The end of
/// `local`'s input is passed on, and what the server still sends is taken.
///
/// # Errors
/// When there is no verified connection that speaks `ssh`, or it breaks.
pub async fn connect(target: &str, options: &ConnectOptions, local: impl Duplex) -> Result<(), ConnectError> {
    let stream = dial(target, options).await?;
    match copy_both(local, stream, IDLE).await.end {
        CopyEnd::Finished | CopyEnd::Idle | CopyEnd::Stopped => Ok(()),
        // Ends without a farewell: the server closed without TLS's own, or the SSH client is gone.
        CopyEnd::Failed(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        CopyEnd::Failed(error) => Err(ConnectError::Lost { server: target.to_owned(), error }),
    }
}

/// A verified TLS connection that speaks `ssh`.
///
/// # Errors
/// When there is none.
pub async fn dial(target: &str, options: &ConnectOptions) -> Result<TlsStream<TcpStream>, ConnectError> {
    let (host, port) = parse_target(target)?;
    let server = format!("{host}:{port}");
    let name = options.server_name.clone().unwrap_or_else(|| bare(&host).to_owned());
    let sni = ServerName::try_from(name.clone()).map_err(|_| ConnectError::BadServerName(name.clone()))?;
    let config = client_config(options)?;
    let tcp = open_tcp(&host, port, &server).await?;
    let handshake = timeout(CONNECT_TIMEOUT, TlsConnector::from(config).connect(sni, tcp));
    let stream = match handshake.await {
        Err(_) => return Err(ConnectError::Silent { server }),
        Ok(Err(error)) => return Err(explain(&error, &server, &name)),
        Ok(Ok(stream)) => stream,
    };
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_SSH) {
        return Err(ConnectError::NoSsh { server });
    }
    Ok(stream)
}

/// `HOST`, `HOST:PORT`, `[IPv6]:PORT`, and `IPv6:PORT` as OpenSSH writes `%h:%p`.
fn parse_target(target: &str) -> Result<(HostName, u16), ConnectError> {
    let bad = |detail: String| ConnectError::BadTarget { target: target.to_owned(), detail };
    let text = match target.rsplit_once(':') {
        Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => format!("[{address}]:{port}"),
        _ => target.to_owned(),
    };
    let (host, port) = HostName::parse_authority(&text).map_err(|error| bad(error.to_string()))?;
    match port.unwrap_or(DEFAULT_PORT) {
        0 => Err(bad("the port is 0".to_owned())),
        port => Ok((host, port)),
    }
}

/// The host without the brackets of an IPv6 address.
fn bare(host: &HostName) -> &str {
    host.as_str().trim_start_matches('[').trim_end_matches(']')
}

async fn open_tcp(host: &HostName, port: u16, target: &str) -> Result<TcpStream, ConnectError> {
    let addresses = look_up(host, port).await?;
    let tried = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
    let mut last = None;
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                prepare_socket(&stream);
                return Ok(stream);
            }
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    let target = target.to_owned();
    let error = last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
    Err(match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::Refused { target, tried },
        io::ErrorKind::TimedOut => ConnectError::TimedOut { target, tried },
        _ => ConnectError::Unreachable { target, tried, error },
    })
}

async fn look_up(host: &HostName, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    let name = bare(host);
    match tokio::net::lookup_host((name, port)).await {
        Ok(found) => Ok(found.collect()),
        // RFC 6761, section 6.3: such names are this machine, whether or not its resolver knows.
        Err(_) if name.ends_with(".localhost") => Ok(vec![
            (IpAddr::from(Ipv4Addr::LOCALHOST), port).into(),
            (IpAddr::from(Ipv6Addr::LOCALHOST), port).into(),
        ]),
        Err(error) => Err(ConnectError::Dns { host: name.to_owned(), error }),
    }
}

#[cfg(test)]
mod tests;
