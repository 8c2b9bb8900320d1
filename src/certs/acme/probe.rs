//! Who answers TLS at an address: oneport, another server, or nobody. By what oneport alone does: it
//! lets agents in by the protocol `ssh`; and where it has no certificate for a name, it says so to them,
//! while to an authority's probe it says that it has no such answer.
//!
//! Refuses to trust anything: what is learnt here is told, and nothing is sent. The certificate is not
//! looked at, since there may be none yet, or one that has ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::name::HostName;
use crate::net::AnyCertificate;

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How agents ask for SSH, and authorities for a proof (RFC 8737, section 6.2).
const SSH: &[u8] = b"ssh";
const ACME_TLS: &[u8] = b"acme-tls/1";
/// What oneport says first to agents.
const GREETING: &[u8] = b"SSH-2.0-oneport_";

/// Who answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A gateway of this kind.
    Oneport,
    /// Another server; what it did.
    Other(String),
    /// Somebody who speaks no TLS; what was said.
    NoTls(String),
    /// Somebody who says nothing.
    Silent,
}

/// Connects, within a bound.
pub(super) async fn connect(at: SocketAddr) -> io::Result<TcpStream> {
    timeout(CONNECT, TcpStream::connect(at)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Finds out who answers for `host` on a connection, and on another one to the same address where the
/// first does not tell. `patience`: how long a handshake may take there.
pub(super) async fn who_answers(
    stream: TcpStream,
    at: SocketAddr,
    host: &HostName,
    patience: Duration,
) -> Who {
    let first = match timeout(patience, ask(stream, host, SSH)).await {
        Ok(said) => said,
        Err(_) => return Who::Silent,
    };
    let alert = match first {
        Said::Protocol(Some(name)) if name == SSH => return Who::Oneport,
        Said::Protocol(_) => {
            return Who::Other("it answers TLS, but does not let agents in by the protocol `ssh`".to_owned());
        }
        Said::Broken(cause) => return Who::NoTls(cause),
        Said::Alert(alert) => alert,
    };
    // Many say that they do not know a name; none of them then looks for a protocol.
    if alert == AlertDescription::UnrecognisedName
        && let Ok(stream) = connect(at).await
        && let Ok(second) = timeout(patience, ask(stream, host, ACME_TLS)).await
    {
        let is_ours = match second {
            Said::Alert(alert) => alert == AlertDescription::NoApplicationProtocol,
            // The name is being proved right now.
            Said::Protocol(name) => name.as_deref() == Some(ACME_TLS),
            Said::Broken(_) => false,
        };
        if is_ours {
            return Who::Oneport;
        }
    }
    Who::Other(format!("it refuses agents with the TLS alert `{alert:?}`"))
}

/// What came of a handshake.
enum Said {
    /// It was done, and this protocol agreed on.
    Protocol(Option<Vec<u8>>),
    Alert(AlertDescription),
    Broken(String),
}

async fn ask(stream: TcpStream, host: &HostName, protocol: &[u8]) -> Said {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let mut config = match config {
        Ok(config) => config
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(provider)))
            .with_no_client_auth(),
        Err(error) => return Said::Broken(error.to_string()),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = match ServerName::try_from(host.to_string()) {
        Ok(name) => name,
        Err(error) => return Said::Broken(error.to_string()),
    };
    let mut stream = match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::AlertReceived(alert)) => Said::Alert(*alert),
                // An answer that no server gives who does not speak TLS.
                Some(rustls::Error::NoApplicationProtocol) => Said::Protocol(None),
                _ => Said::Broken(error.to_string()),
            };
        }
    };
    let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    if agreed.as_deref() != Some(SSH) {
        return Said::Protocol(agreed);
    }
    // Others may let SSH in, too.
    let mut greeting = [0; GREETING.len()];
    match stream.read_exact(&mut greeting).await {
        Ok(_) if greeting == GREETING => Said::Protocol(agreed),
        _ => Said::Protocol(None),
    }
}
