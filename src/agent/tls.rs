//! How the client side speaks TLS: which authorities it trusts, and what failures mean.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::{ConnectError, ConnectOptions};
use crate::certs::{parse_certificates, read_source};
use crate::config::PemSource;
use crate::net::AnyCertificate;

/// The only protocol that is offered.
pub(super) const ALPN_SSH: &[u8] = b"ssh";

/// Prepares TLS 1.3 and 1.2 as the options say.
pub(super) fn client_config(options: &ConnectOptions) -> Result<Arc<ClientConfig>, ConnectError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(
            |error| ConnectError::Tls { server: "this program".to_owned(), detail: error.to_string() },
        )?;
    let mut config = if options.insecure {
        let verifier = Arc::new(AnyCertificate::new(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    } else {
        builder.with_root_certificates(roots(options.ca.as_deref())?).with_no_client_auth()
    };
    config.alpn_protocols = vec![ALPN_SSH.to_vec()];
    Ok(Arc::new(config))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let source = PemSource::File(path.to_owned());
        let pem = read_source(&source)?;
        let name = format!("`{}`", path.display());
        let (added, _) = roots.add_parsable_certificates(parse_certificates(&pem, &name)?);
        if added == 0 {
            return Err(ConnectError::UselessCa(path.to_owned()));
        }
        return Ok(roots);
    }
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        let detail = native.errors.first().map(ToString::to_string).unwrap_or_default();
        return Err(ConnectError::NoRoots(detail));
    }
    Ok(roots)
}

/// What a failed handshake means to the person who wanted it.
pub(super) fn explain(error: &std::io::Error, server: &str, name: &str) -> ConnectError {
    use rustls::{AlertDescription, CertificateError as Cert, Error};
    let (server, name) = (server.to_owned(), name.to_owned());
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
                ConnectError::ClosedEarly { server }
            }
            _ => ConnectError::Tls { server, detail: error.to_string() },
        };
    };
    match tls {
        Error::InvalidCertificate(Cert::UnknownIssuer) => ConnectError::UnknownIssuer { server },
        Error::InvalidCertificate(Cert::NotValidForNameContext { presented, .. }) => {
            let names: Vec<String> = presented.iter().map(|shown| plain_name(shown)).collect();
            ConnectError::WrongName { server, name, names: names.join("`, `") }
        }
        Error::InvalidCertificate(Cert::NotValidForName) => {
            ConnectError::WrongName { server, name, names: "unknown names".to_owned() }
        }
        Error::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. }) => {
            ConnectError::Expired { server }
        }
        Error::InvalidCertificate(Cert::NotValidYet | Cert::NotValidYetContext { .. }) => {
            ConnectError::NotValidYet { server }
        }
        Error::InvalidCertificate(other) => {
            ConnectError::BadCertificate { server, detail: other.to_string() }
        }
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => ConnectError::NoSsh { server },
        Error::AlertReceived(AlertDescription::UnrecognisedName) => ConnectError::NoSuchName { server, name },
        Error::InvalidMessage(_) => ConnectError::NotTls { server },
        other => ConnectError::Tls { server, detail: other.to_string() },
    }
}

/// `DnsName("a.test")` → `a.test`, as the verifier words its names.
fn plain_name(shown: &str) -> String {
    let inner = shown.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(shown);
    inner.trim_matches('"').to_owned()
}
