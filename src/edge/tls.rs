//! How TLS is spoken on the single port: versions, cipher suites, tickets, and the certificate
//! that was chosen for the connection.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, SupportedCipherSuite};

use super::classify::{ACME_TLS, ALPN};

/// Tickets for later resumption that each full handshake gives. A client gets a new one with each
/// resumption, and opens one connection with HTTP/2.
const TICKETS: usize = 1;

/// The ways of speaking TLS, one of which is taken for each client.
#[derive(Debug)]
pub(super) struct Tls {
    ours: ServerConfig,
    theirs: ServerConfig,
    probe: ServerConfig,
}

impl Tls {
    /// Prepares to speak.
    ///
    /// # Errors
    /// When session tickets cannot be made: the system has no randomness.
    pub(super) fn new() -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Chosen(None)));
        let mut probe = config.clone();
        // Nothing is said after the handshake, so nothing is worth resuming.
        probe.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        probe.send_tls13_tickets = 0;
        probe.alpn_protocols = vec![ACME_TLS.to_vec()];
        config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        // Stateless tickets, whose keys rotate.
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = TICKETS;
        let theirs = config.clone();
        config.ignore_client_order = true;
        Ok(Self { ours: config, theirs, probe })
    }

    /// The way for a client, with the certificate chosen for it: our order of cipher suites, unless
    /// it likes ChaCha20 best, as those do that have no instructions for AES.
    pub(super) fn config_for(&self, hello: &ClientHello<'_>, key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
        let known = |suite: &&CipherSuite| {
            let suites = &self.ours.crypto_provider().cipher_suites;
            suites.iter().any(|ours| ours.suite() == **suite)
        };
        let first = hello.cipher_suites().iter().find(known);
        let config = if first.is_some_and(|first| is_chacha(*first)) { &self.theirs } else { &self.ours };
        with_key(config, key)
    }

    /// The way for a certificate authority's probe (RFC 8737, section 3).
    pub(super) fn config_for_probe(&self, key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
        with_key(&self.probe, key)
    }
}

/// A copy costs some counters and the list of protocols; finding the certificate a second time, from
/// within the handshake, would cost as much.
fn with_key(config: &ServerConfig, key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.cert_resolver = Arc::new(Chosen(Some(key)));
    Arc::new(config)
}

/// AES-128 first: nobody breaks it either, and with SHA-256, for which processors have
/// instructions, a handshake costs a seventh less than with SHA-384.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite: &SupportedCipherSuite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        suite if is_chacha(suite) => 2,
        _ => 1,
    });
    provider
}

fn is_chacha(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

/// Shows what was chosen for this connection. Also takes a validation certificate, whose critical
/// extension the library's own look at a certificate would refuse.
#[derive(Debug)]
struct Chosen(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Chosen {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}
