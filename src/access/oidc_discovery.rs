//! What an OpenID Connect provider says of itself: where to ask it what, and with which keys it signs.
//!
//! Refuses a description by which anything would go in the clear: the client's secret, codes, and the keys
//! that logins are believed by.

use bytes::Bytes;
use openidconnect::core::CoreProviderMetadata;
use openidconnect::{DiscoveryError, HttpRequest, HttpResponse, IssuerUrl};

use super::oidc_fault::OidcFault;
use super::token::brief;
use crate::net::{Fetch, FetchError};

/// Most octets of what is told of its description, where that names two URLs.
const VALIDATION_MAX: usize = 1000;

/// Asks for the description below an issuer, and for its keys. Cancel safe.
///
/// # Errors
/// When there is none that can be used.
pub async fn discover(fetch: &Fetch, issuer: &str) -> Result<CoreProviderMetadata, OidcFault> {
    let issuer =
        IssuerUrl::new(issuer.to_owned()).map_err(|error| OidcFault::Description(error.to_string()))?;
    let http = |request: HttpRequest| ask(fetch, request);
    let found = CoreProviderMetadata::discover_async(issuer, &http).await;
    let found = found.map_err(|error| match error {
        // The description itself is at the issuer, whose URL is `https`.
        DiscoveryError::Request(FetchError::InTheClear(url)) => {
            OidcFault::InTheClear { field: "jwks_uri", url: brief(&url) }
        }
        DiscoveryError::Request(error) => OidcFault::Unreachable(error.to_string()),
        DiscoveryError::Response(status, ..) => {
            OidcFault::Description(format!("it answered with the status {}", status.as_u16()))
        }
        DiscoveryError::Parse(error) => OidcFault::Description(brief(&error.to_string())),
        // Both values in full: they often differ by their last character.
        DiscoveryError::Validation(what) if what.len() <= VALIDATION_MAX => OidcFault::Description(what),
        other => OidcFault::Description(brief(&other.to_string())),
    })?;
    all_secret(&found).map(|()| found)
}

/// Whether all that is asked there, by us or by browsers, goes over TLS.
fn all_secret(found: &CoreProviderMetadata) -> Result<(), OidcFault> {
    let all = [
        ("authorization_endpoint", Some(found.authorization_endpoint().url())),
        ("token_endpoint", found.token_endpoint().map(|it| it.url())),
        ("userinfo_endpoint", found.userinfo_endpoint().map(|it| it.url())),
    ];
    let mut plain = all
        .into_iter()
        .filter_map(|(field, url)| url.filter(|url| url.scheme() != "https").map(|url| (field, url)));
    match plain.next() {
        Some((field, url)) => Err(OidcFault::InTheClear { field, url: brief(url.as_str()) }),
        None => Ok(()),
    }
}

/// One request to the provider.
pub fn ask(
    fetch: &Fetch,
    request: HttpRequest,
) -> impl Future<Output = Result<HttpResponse, FetchError>> + use<> {
    let fetch = fetch.clone();
    async move {
        let answer = fetch.send(request.map(Bytes::from)).await?;
        Ok(answer.map(|body| body.to_vec()))
    }
}
