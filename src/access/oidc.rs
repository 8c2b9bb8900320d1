//! Logins at an OpenID Connect provider: the authorization code flow with PKCE (RFC 7636), a state
//! and a nonce. The protocol and its checks are a library's; requests are [`Fetch`]'s.
//!
//! Refuses tokens signed with a shared secret or not at all, an e-mail address that the provider has
//! not verified, and whoever no rule is for.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreClientAuthMethod, CoreErrorResponseType,
    CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm,
    CoreProviderMetadata, CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse,
    CoreTokenType,
};
use openidconnect::{
    AccessToken, AdditionalClaims, AuthType, AuthorizationCode, Client, ClientId, ClientSecret, CsrfToken,
    EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest, IdTokenFields, Nonce,
    OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope,
    StandardErrorResponse, StandardTokenResponse, SubjectIdentifier, TokenResponse as _, UserInfoClaims,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio::sync::Mutex;

use super::oidc_discovery::{ask, discover};
use super::oidc_fault::OidcFault;
use super::oidc_rules::{ADDRESS, Granted, VERIFIED, granted, is_open, name_of};
use super::session::{Known, Origin};
use super::token::{LEEWAY, Terms, brief, claims_of as token_claims};
use crate::config::{OidcSettings, SecretSource};
use crate::net::{Fetch, FetchError, FetchOptions};

/// How long one request to the provider may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Octets of one of its answers.
const ANSWER_MAX: usize = 256 * 1024;
/// How far clocks may be apart.
const APART: Duration = Duration::from_secs(LEEWAY.unsigned_abs());
/// How long its description and its keys are good.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// How long a failure is told again without asking again.
const FAILED_KEPT: Duration = Duration::from_secs(3);

/// A provider. Clones share what is known of it.
#[derive(Clone, Debug)]
pub struct Oidc(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: OidcSettings,
    redirect: String,
    origin: Origin,
    fetch: Fetch,
    described: Mutex<Option<Described>>,
}

/// What is known of the provider, or why nothing is.
#[derive(Debug)]
struct Described {
    at: Instant,
    outcome: Result<Arc<CoreProviderMetadata>, OidcFault>,
}

/// Why no provider can be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The authority of its server.
    #[error("cannot read `{path}`: {error}; check `access.oidc.root`, and that this user may read it")]
    Root {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The secret.
    #[error(
        "cannot read the client's secret from `{path}`: {error}; check `access.oidc.client_secret_file`, and that this user may read it"
    )]
    Secret {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is no secret in its file.
    #[error(
        "`{0}` is empty; write the client's secret into it, or leave `access.oidc.client_secret_file` out"
    )]
    NoSecret(std::path::PathBuf),
    /// Requests.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// A login that was begun: to be kept, unread, by the browser.
#[derive(Clone, Serialize, Deserialize)]
pub struct Begun {
    nonce: String,
    verifier: String,
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Begun(***)")
    }
}

/// All claims that have no meaning of their own in the library.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OtherClaims {
    #[serde(flatten)]
    all: Map<String, Value>,
}

impl AdditionalClaims for OtherClaims {}

type Tokens = StandardTokenResponse<
    IdTokenFields<
        OtherClaims,
        EmptyExtraTokenFields,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    >,
    CoreTokenType,
>;

type Asking = Client<
    OtherClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Tokens,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

impl Oidc {
    /// Prepares to ask; asks nobody yet. `redirect` is where browsers come back to. Reads files: not
    /// for a busy task.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn open(settings: &OidcSettings, redirect: String) -> Result<Self, OidcError> {
        let extra_roots = match &settings.root {
            None => None,
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|error| OidcError::Root { path: path.clone(), error })?,
            ),
        };
        match settings.client_secret.as_ref().map(|source| (source, source.reveal())) {
            Some((_, Err((path, error)))) => return Err(OidcError::Secret { path: path.to_owned(), error }),
            Some((SecretSource::File(path), Ok(secret))) if secret.is_empty() => {
                return Err(OidcError::NoSecret(path.clone()));
            }
            _ => {}
        }
        let (deadline, max_body, root_setting) = (DEADLINE, ANSWER_MAX, Some("`access.oidc.root`"));
        let options = FetchOptions { deadline, max_body, extra_roots, root_setting, https_only: true };
        let fetch = Fetch::new(options)?;
        let origin = Origin::oidc(settings);
        let (settings, described) = (settings.clone(), Mutex::default());
        Ok(Self(Arc::new(Inner { settings, redirect, origin, fetch, described })))
    }

    /// Has the provider describe itself once, for nobody's login.
    ///
    /// # Errors
    /// When it cannot be asked, or does not as it should.
    pub async fn describe(&self) -> Result<(), OidcFault> {
        discover(&self.0.fetch, &self.0.settings.issuer).await.map(drop)
    }

    /// Begins a login. The URL is where the browser is to go; the provider sends it back with `state`.
    ///
    /// # Errors
    /// When the provider cannot be asked how.
    pub async fn begin(&self, state: impl FnOnce(&Begun) -> Option<String>) -> Result<String, OidcFault> {
        let client = self.client(false).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let begun =
            Begun { nonce: Nonce::new_random().secret().clone(), verifier: verifier.secret().clone() };
        let state = state(&begun).ok_or(OidcFault::Stale)?;
        let nonce = begun.nonce;
        let (url, _, _) = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                move || CsrfToken::new(state),
                move || Nonce::new(nonce),
            )
            .add_scopes(self.0.settings.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .url();
        Ok(url.to_string())
    }

    /// Ends a login with the code that the provider sent along: who it is, and what they may see.
    ///
    /// # Errors
    /// When any of it does not hold, or no rule is for them.
    pub async fn finish(&self, begun: Begun, code: String) -> Result<Known, OidcFault> {
        let client = self.client(false).await?;
        let http = |request: HttpRequest| ask(&self.0.fetch, request);
        let exchange = client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(|error| OidcFault::Description(error.to_string()))?
            .set_pkce_verifier(PkceCodeVerifier::new(begun.verifier));
        let tokens = exchange.request_async(&http).await.map_err(|error| match error {
            RequestTokenError::ServerResponse(said) => {
                let is_code = *said.error() == CoreErrorResponseType::InvalidGrant;
                let said = brief(&said.to_string());
                if is_code { OidcFault::Code(said) } else { OidcFault::Exchange(said) }
            }
            RequestTokenError::Request(error) => OidcFault::Unreachable(error.to_string()),
            other => OidcFault::Exchange(brief(&other.to_string())),
        })?;
        let nonce = Nonce::new(begun.nonce);
        let mut claims = match claims_of(&client, &tokens, &nonce) {
            Ok(claims) => claims,
            // It may have new keys since.
            Err(_) => claims_of(&self.client(true).await?, &tokens, &nonce).map_err(OidcFault::Token)?,
        };
        let rules = &self.0.settings.allow;
        if is_open(rules, &claims) {
            match self.user_info(&client, tokens.access_token(), &claims).await {
                Ok(more) => add(&mut claims, more),
                Err(fault) if matches!(granted(rules, &claims), Granted::Some(_)) => {
                    tracing::warn!("{fault}; going by the ID token alone");
                }
                Err(fault) => return Err(fault),
            }
        }
        let name = name_of(&claims);
        match granted(rules, &claims) {
            Granted::Some(profiles) => Ok(Known { name, origin: self.0.origin, key: None, profiles }),
            Granted::Unverified(address) => Err(OidcFault::Unverified(brief(&address))),
            Granted::Nothing => Err(OidcFault::Nobody(brief(&name))),
        }
    }

    /// Whether the provider that a browser comes back from is this one, as far as it says so (RFC 9207).
    #[must_use]
    pub fn is_issuer(&self, named: Option<&str>) -> bool {
        named.is_none_or(|named| named == self.0.settings.issuer)
    }

    /// Many providers say of somebody only when asked what they do not put into the token.
    async fn user_info(
        &self,
        client: &Asking,
        access: &AccessToken,
        claims: &Map<String, Value>,
    ) -> Result<Map<String, Value>, OidcFault> {
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Ok(request) = client.user_info(access.clone(), Some(SubjectIdentifier::new(subject))) else {
            return Ok(Map::new());
        };
        let http = |request: HttpRequest| ask(&self.0.fetch, request);
        let more: UserInfoClaims<OtherClaims, CoreGenderClaim> = request
            .request_async(&http)
            .await
            .map_err(|error| OidcFault::Token(brief(&error.to_string())))?;
        Ok(as_map(&more))
    }

    async fn client(&self, anew: bool) -> Result<Asking, OidcFault> {
        let inner = &self.0;
        let metadata = self.described(anew).await?;
        let secret = inner.settings.client_secret.clone();
        let secret = match secret {
            None => None,
            Some(source) => Some(
                crate::config::watch::off_thread(move || source.reveal().ok())
                    .await
                    .flatten()
                    .ok_or(OidcFault::Secret)?,
            ),
        };
        let in_body = metadata.token_endpoint_auth_methods_supported().is_some_and(|ways| {
            !ways.contains(&CoreClientAuthMethod::ClientSecretBasic)
                && ways.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let client = Client::from_provider_metadata(
            CoreProviderMetadata::clone(&metadata),
            ClientId::new(inner.settings.client_id.clone()),
            secret.map(ClientSecret::new),
        );
        let redirect = RedirectUrl::new(inner.redirect.clone())
            .map_err(|error| OidcFault::Description(error.to_string()))?;
        let way = if in_body { AuthType::RequestBody } else { AuthType::BasicAuth };
        Ok(client.set_redirect_uri(redirect).set_auth_type(way))
    }

    /// The provider's description. Whoever comes while it is being asked for waits for the same answer.
    async fn described(&self, anew: bool) -> Result<Arc<CoreProviderMetadata>, OidcFault> {
        let asked = Instant::now();
        let mut described = self.0.described.lock().await;
        if let Some(known) = &*described {
            let kept = match &known.outcome {
                Ok(_) if anew => FAILED_KEPT,
                Ok(_) => KEPT,
                Err(_) => FAILED_KEPT,
            };
            // Failed while this one waited: that was its answer, too.
            if known.at.elapsed() < kept || known.at >= asked {
                return known.outcome.clone();
            }
        }
        let outcome = discover(&self.0.fetch, &self.0.settings.issuer).await.map(Arc::new);
        if let Err(fault) = &outcome {
            tracing::warn!("{fault}");
        }
        *described = Some(Described { at: Instant::now(), outcome: outcome.clone() });
        outcome
    }
}

/// Checks the token, and gives all that it says.
fn claims_of(client: &Asking, tokens: &Tokens, nonce: &Nonce) -> Result<Map<String, Value>, String> {
    use CoreJwsSigningAlgorithm as Alg;
    let token = tokens.id_token().ok_or("it sent no ID token")?;
    let verifier = client.id_token_verifier().set_allowed_algs([
        Alg::RsaSsaPkcs1V15Sha256,
        Alg::RsaSsaPkcs1V15Sha384,
        Alg::RsaSsaPkcs1V15Sha512,
        Alg::RsaSsaPssSha256,
        Alg::RsaSsaPssSha384,
        Alg::RsaSsaPssSha512,
        Alg::EcdsaP256Sha256,
        Alg::EcdsaP384Sha384,
        Alg::EdDsa,
    ]);
    // Clocks may be apart.
    let verifier = verifier.set_time_fn(|| (SystemTime::now() - APART).into());
    let claims = as_map(token.claims(&verifier, nonce).map_err(|error| brief(&error.to_string()))?);
    let terms = Terms { audience: None, profiles_claim: "", allow_unexpiring: false };
    let claims = Value::Object(claims);
    token_claims(&claims, terms, OffsetDateTime::now_utc()).map_err(|fault| fault.to_string())?;
    let Value::Object(claims) = claims else { return Err("it is no object".to_owned()) };
    // OpenID Connect Core 1.0, section 3.1.3.7. Several audiences the library refuses.
    match claims.get("azp") {
        Some(party) if party.as_str() != Some(client.client_id().as_str()) => {
            Err("it was made for another client".to_owned())
        }
        _ => Ok(claims),
    }
}

fn as_map(claims: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(claims) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Adds what the user info says. What the token says was signed, and stays. Of an address, all is one
/// source's: another may be of another address when it says that it is verified.
fn add(claims: &mut Map<String, Value>, mut more: Map<String, Value>) {
    let other = if claims.contains_key(ADDRESS) { &mut more } else { &mut *claims };
    other.remove(ADDRESS);
    other.remove(VERIFIED);
    for (name, value) in more {
        claims.entry(name).or_insert(value);
    }
}
