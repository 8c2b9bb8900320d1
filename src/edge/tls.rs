//! How TLS is spoken on the single port: versions, cipher suites, tickets, and which certificate.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, SupportedCipherSuite};

use super::classify::ALPN;
use crate::certs::CertStore;
use crate::name::HostName;

/// Tickets for later resumption that each full handshake gives. A client gets a new one with each
/// resumption, and opens one connection with HTTP/2.
const TICKETS: usize = 1;

/// The ways of speaking TLS, one of which is taken for each client.
#[derive(Debug)]
pub(super) struct Tls {
    ours: Arc<ServerConfig>,
    theirs: Arc<ServerConfig>,
}

impl Tls {
    /// Prepares to speak, with these certificates.
    ///
    /// # Errors
    /// When session tickets cannot be made: the system has no randomness.
    pub(super) fn new(certs: CertStore) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(BySni(certs)));
        config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        // Stateless tickets, whose keys rotate.
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = TICKETS;
        let theirs = Arc::new(config.clone());
        config.ignore_client_order = true;
        Ok(Self { ours: Arc::new(config), theirs })
    }

    /// The way for a client: our order of cipher suites, unless it likes ChaCha20 best, as those do
    /// that have no instructions for AES.
    pub(super) fn config_for(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let known = |suite: &&CipherSuite| {
            let suites = &self.ours.crypto_provider().cipher_suites;
            suites.iter().any(|ours| ours.suite() == **suite)
        };
        let first = hello.cipher_suites().iter().find(known);
        if first.is_some_and(|first| is_chacha(*first)) { self.theirs.clone() } else { self.ours.clone() }
    }
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

#[derive(Debug)]
struct BySni(CertStore);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let sni = hello.server_name().and_then(|name| HostName::parse(name).ok());
        self.0.select(sni.as_ref()).map(|served| served.key.clone())
    }
}
