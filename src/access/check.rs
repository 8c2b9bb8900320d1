//! Whether those who vouch for people can be asked where the settings say, tried once: for `oneport check`.

use super::oidc::Oidc;
use super::remote::Remote;
use crate::config::{AccessSettings, IssuerKeys, JwksUrl};

/// Fetches the keys of each issuer that has them at a URL. One sentence each: what came, or what is
/// wrong with what to do. Takes 10 s for each at most. Cancel safe.
pub async fn check_issuers(settings: &AccessSettings) -> Vec<Result<String, String>> {
    let mut found = Vec::new();
    for issuer in &settings.issuers {
        if let IssuerKeys::JwksUrl(from) = &issuer.keys {
            let (name, url) = (&issuer.name, &from.url);
            found.push(match fetch(from).await {
                Ok(1) => Ok(format!("the issuer `{name}` has 1 key for tokens at `{url}`")),
                Ok(count) => Ok(format!("the issuer `{name}` has {count} keys for tokens at `{url}`")),
                Err(what) => Err(format!("the issuer `{name}` gives no keys at `{url}`: {what}")),
            });
        }
    }
    found
}

/// Asks the provider of logins, if there is one, how it describes itself: what came, or what is wrong with
/// what to do. Whether it knows the gateway shows at a login only. Takes 10 s at most for the description, and as long for its keys. Cancel safe.
pub async fn check_provider(settings: &AccessSettings) -> Option<Result<String, String>> {
    let oidc = settings.oidc.as_ref()?;
    // Nobody is sent there, so that nobody comes back.
    let provider = match Oidc::open(oidc, String::new()) {
        Ok(provider) => provider,
        Err(error) => return Some(Err(error.to_string())),
    };
    let issuer = &oidc.issuer;
    let described = provider.describe().await;
    Some(
        described
            .map(|()| format!("the identity provider `{issuer}` describes itself as it should"))
            .map_err(|fault| fault.to_string()),
    )
}

/// How many keys came.
async fn fetch(from: &JwksUrl) -> Result<usize, String> {
    let remote = Remote::open(from)?;
    match remote.ask().await?.0.len() {
        0 => Err("the set holds no key; check `jwks_url`, or wait until the issuer has one".to_owned()),
        count => Ok(count),
    }
}
