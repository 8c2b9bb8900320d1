//! Tokens (JWT, RFC 7519): whether one was signed by a key, and is valid now.
//!
//! The key fixes the algorithms, never the token: what a token says of how it was signed is only
//! compared with them (RFC 8725, section 3.1). Signatures are a library's business.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use russh::keys::PublicKey;
use serde::Deserialize;
use time::OffsetDateTime;

use super::identity::canonical_jwk;

/// Longest token that is looked at, in octets.
pub const TOKEN_MAX: usize = 8 * 1024;
/// How far clocks may be apart, in seconds.
const LEEWAY: i64 = 30;
/// Shortest RSA modulus that is believed, in octets.
const RSA_LEAST: usize = 2048 / 8;
/// Most profiles that a token may name.
const PROFILES_MAX: usize = 256;
/// Most characters of somebody else's text in a sentence of ours.
const BRIEF: usize = 100;

/// Why a token does not hold, in words for the person who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Larger than any token.
    #[error("the token has more than {} KiB", TOKEN_MAX / 1024)]
    TooLong,
    /// Not a signed JWT.
    #[error("what was sent is not a signed JWT")]
    Malformed,
    /// Signed in a way that does not go with the key.
    #[error("the token is signed with `{0}`, which does not go with its issuer's key")]
    WrongAlgorithm(String),
    /// It says that something in it must be understood (RFC 7515, section 4.1.11), which is not.
    #[error("the token has a `crit` header, and nothing that it could mean is known here")]
    Critical,
    /// It does not say who made it.
    #[error("the token names no issuer")]
    NoIssuer,
    /// Nobody here knows who made it.
    #[error("the token's issuer `{0}` is not known here")]
    UnknownIssuer(String),
    /// It was made with another agent's key.
    #[error("the token is made with another key than that of the agent who offers this tunnel")]
    OtherKey,
    /// The agent's key is of a kind that signs no tokens.
    #[error(
        "the agent's key is of a kind that cannot sign tokens; use Ed25519, RSA from 2048 bits, P-256 or P-384"
    )]
    UnusableKey,
    /// The issuer has no key of this name.
    #[error("the token's issuer has no key `{0}`")]
    UnknownKey(String),
    /// The signature is not that of the issuer's key.
    #[error("the token's signature is not that of its issuer's key")]
    BadSignature,
    /// It has ended.
    #[error("the token expired {}", ago(*.0))]
    Expired(i64),
    /// It has not begun.
    #[error("the token begins to be valid in {} s; are the clocks right?", .0)]
    NotYet(i64),
    /// A time that is none.
    #[error("the token's `{0}` is no number of seconds")]
    NoTime(String),
    /// It would be valid for ever.
    #[error("the token has no `exp`, so that it would be valid for ever")]
    NoExpiry,
    /// It is for somebody else.
    #[error("the token is meant for others: its `aud` does not name this gateway")]
    WrongAudience,
}

/// What a token that holds says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Whom it speaks of, if it says so.
    pub subject: Option<String>,
    /// The profiles that it names.
    pub profiles: Vec<String>,
    /// When it ends.
    pub expires: Option<OffsetDateTime>,
}

/// A key that tokens are checked with.
#[derive(Clone)]
pub struct VerifyingKey {
    key: DecodingKey,
    algorithms: &'static [Algorithm],
    /// Its name among its issuer's keys.
    id: Option<String>,
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyingKey").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

/// What is wanted of a token beyond its signature.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Whom it must be for; `None`: it need not say.
    pub audience: Option<&'a str>,
    /// The claim that names profiles; it may be a path with dots, such as `app.profiles`.
    pub profiles_claim: &'a str,
    /// Whether it may be valid for ever.
    pub allow_unexpiring: bool,
}

/// What a token says before it is known whether it holds.
#[derive(Debug)]
pub struct Unverified {
    /// Who is said to have made it.
    pub issuer: String,
    /// Whom it is said to be for.
    pub audiences: Vec<String>,
    /// Which of their keys is said to have signed it.
    pub key_id: Option<String>,
}

impl Unverified {
    /// Reads what is needed to find the key. To be believed in nothing else.
    ///
    /// # Errors
    /// When it is no token, or does not name an issuer.
    pub fn read(token: &str) -> Result<Self, TokenFault> {
        #[derive(Deserialize)]
        struct Issued {
            iss: Option<String>,
            aud: Option<serde_json::Value>,
        }
        if token.len() > TOKEN_MAX {
            return Err(TokenFault::TooLong);
        }
        let header = header(token)?;
        let issued: Issued =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| TokenFault::Malformed)?;
        let issuer = issued.iss.filter(|issuer| !issuer.is_empty()).ok_or(TokenFault::NoIssuer)?;
        let audiences = texts(issued.aud.as_ref()).take(PROFILES_MAX).map(str::to_owned).collect();
        Ok(Self { issuer, audiences, key_id: header.kid })
    }
}

impl VerifyingKey {
    /// An agent's key. `None` for one that cannot sign tokens, or is too short to be believed.
    #[must_use]
    pub fn of_agent(key: &PublicKey) -> Option<Self> {
        let jwk: Jwk = serde_json::from_str(&canonical_jwk(key)?).ok()?;
        Self::of_jwk(&jwk).ok()
    }

    /// A key of a set (RFC 7517).
    ///
    /// # Errors
    /// When it is of a kind that signs no tokens, or too short, in words.
    pub fn of_jwk(jwk: &Jwk) -> Result<Self, String> {
        let algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => {
                use base64::Engine as _;
                let modulus = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&rsa.n);
                rsa_algorithms(modulus.map_err(|_| "its modulus is not base64url")?.len())?
            }
            AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return Err("its curve is neither P-256 nor P-384".to_owned()),
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            _ => return Err("it is not one of Ed25519, RSA, P-256, P-384".to_owned()),
        };
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        Ok(Self { key, algorithms: narrow(algorithms, jwk)?, id: jwk.common.key_id.clone() })
    }

    /// A public key in PEM form, or that of a certificate.
    ///
    /// # Errors
    /// When it is no such key, of another kind, or too short, in words.
    pub fn of_pem(pem: &str) -> Result<Self, String> {
        let (key, algorithms) = pem_key(pem)?;
        Ok(Self { key, algorithms, id: None })
    }

    /// Whether the key may be the one that a token names.
    #[must_use]
    pub fn is_called(&self, id: Option<&str>) -> bool {
        id.is_none() || self.id.is_none() || self.id.as_deref() == id
    }

    /// Checks a token with this key, at this time.
    ///
    /// # Errors
    /// When it does not hold.
    pub fn verify(&self, token: &str, terms: Terms<'_>, now: OffsetDateTime) -> Result<Claims, TokenFault> {
        if token.len() > TOKEN_MAX {
            return Err(TokenFault::TooLong);
        }
        let header = header(token)?;
        let Some(algorithm) = self.algorithms.iter().find(|known| format!("{known:?}") == header.alg) else {
            return Err(TokenFault::WrongAlgorithm(brief(&header.alg)));
        };
        // Times are checked below, where they can be told; the library checks the signature.
        let mut validation = Validation::new(*algorithm);
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        validation.required_spec_claims.clear();
        let decoded = jsonwebtoken::decode::<serde_json::Value>(token, &self.key, &validation);
        let claims = decoded.map_err(|error| fault_of(error.kind()))?.claims;
        let expires = check_times(&claims, terms, now)?;
        check_audience(&claims, terms)?;
        let subject = claims.get("sub").and_then(serde_json::Value::as_str).map(str::to_owned);
        Ok(Claims { subject, profiles: profiles(&claims, terms.profiles_claim), expires })
    }
}

/// What a token's head says (RFC 7515, section 4.1), as far as it matters here.
#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

/// Not by the library, which knows no algorithm but its own, and could not tell the others' names.
fn header(token: &str) -> Result<Head, TokenFault> {
    use base64::Engine as _;
    let mut parts = token.split('.');
    let (Some(head), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenFault::Malformed);
    };
    let head = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(head);
    let head: Head = serde_json::from_slice(&head.map_err(|_| TokenFault::Malformed)?)
        .map_err(|_| TokenFault::Malformed)?;
    if head.crit.is_some() { Err(TokenFault::Critical) } else { Ok(head) }
}

/// Somebody else's text in a sentence of ours.
pub fn brief(text: &str) -> String {
    let plain: String = text.chars().take(BRIEF).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(BRIEF).is_some() { format!("{plain}…") } else { plain }
}

fn fault_of(kind: &ErrorKind) -> TokenFault {
    match kind {
        ErrorKind::InvalidSignature => TokenFault::BadSignature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenFault::WrongAlgorithm("another algorithm".to_owned())
        }
        _ => TokenFault::Malformed,
    }
}

/// RFC 7519, sections 4.1.4 and 4.1.5. A time that is no number is no time.
fn check_times(
    claims: &serde_json::Value,
    terms: Terms<'_>,
    now: OffsetDateTime,
) -> Result<Option<OffsetDateTime>, TokenFault> {
    let now = now.unix_timestamp();
    let time = |name: &'static str| match claims.get(name) {
        None => Ok(None),
        #[allow(clippy::cast_possible_truncation)] // A float saturates, which is far enough away.
        Some(value) => value.as_f64().map(|at| Some(at as i64)).ok_or(TokenFault::NoTime(name.to_owned())),
    };
    if let Some(begins) = time("nbf")?
        && begins > now.saturating_add(LEEWAY)
    {
        return Err(TokenFault::NotYet(begins.saturating_sub(now)));
    }
    match time("exp")? {
        None if terms.allow_unexpiring => Ok(None),
        None => Err(TokenFault::NoExpiry),
        Some(ends) if ends.saturating_add(LEEWAY) <= now => {
            Err(TokenFault::Expired(now.saturating_sub(ends)))
        }
        // Later than any calendar: valid for as long as can be told.
        Some(ends) => Ok(Some(OffsetDateTime::from_unix_timestamp(ends).unwrap_or(LATEST))),
    }
}

/// The end of the calendar.
const LATEST: OffsetDateTime = time::macros::datetime!(9999-12-31 23:59:59 UTC);

fn check_audience(claims: &serde_json::Value, terms: Terms<'_>) -> Result<(), TokenFault> {
    let Some(wanted) = terms.audience else { return Ok(()) };
    if texts(claims.get("aud")).any(|audience| audience == wanted) {
        return Ok(());
    }
    Err(TokenFault::WrongAudience)
}

fn profiles(claims: &serde_json::Value, path: &str) -> Vec<String> {
    // A name that holds dots itself, as those that are URLs do, comes before a path.
    let at_path = || path.split('.').try_fold(claims, |claims, step| claims.get(step));
    let found = claims.get(path).or_else(at_path);
    texts(found).take(PROFILES_MAX).map(str::to_owned).collect()
}

/// One text, or a list of them.
fn texts(value: Option<&serde_json::Value>) -> impl Iterator<Item = &str> {
    let list = value.and_then(serde_json::Value::as_array);
    value
        .and_then(serde_json::Value::as_str)
        .into_iter()
        .chain(list.into_iter().flatten().filter_map(|v| v.as_str()))
}

fn rsa_algorithms(modulus: usize) -> Result<&'static [Algorithm], String> {
    if modulus < RSA_LEAST {
        return Err(format!("it is an RSA key of {} bits, and 2048 are the least", modulus * 8));
    }
    Ok(&[
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ])
}

/// Only the algorithm that the key itself names, if it does (RFC 7517, section 4.4).
fn narrow(all: &'static [Algorithm], jwk: &Jwk) -> Result<&'static [Algorithm], String> {
    let Some(named) = &jwk.common.key_algorithm else { return Ok(all) };
    let named = named.to_string();
    let place = all.iter().position(|algorithm| format!("{algorithm:?}") == named);
    place
        .map(|place| &all[place..=place])
        .ok_or_else(|| format!("its `alg` is `{named}`, which does not go with its kind"))
}

fn pem_key(pem: &str) -> Result<(DecodingKey, &'static [Algorithm]), String> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
    use x509_parser::prelude::FromDer as _;
    use x509_parser::public_key::PublicKey as Kind;
    use x509_parser::x509::SubjectPublicKeyInfo;

    const WHAT: &str = "no public key in PEM form; give the text with its `-----BEGIN PUBLIC KEY-----` line";
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok();
    let der = match &certificate {
        Some(certificate) => {
            let (_, certificate) = x509_parser::parse_x509_certificate(certificate).map_err(|_| WHAT)?;
            certificate.tbs_certificate.subject_pki.raw.to_vec()
        }
        None => SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| WHAT)?.to_vec(),
    };
    let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| WHAT)?;
    let raw: &[u8] = &info.subject_public_key.data;
    let is_ed25519 = info.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519;
    match info.parsed() {
        _ if is_ed25519 => Ok((DecodingKey::from_ed_der(raw), &[Algorithm::EdDSA])),
        Ok(Kind::RSA(rsa)) => {
            let modulus = strip_zeros(rsa.modulus);
            let key = DecodingKey::from_rsa_raw_components(modulus, strip_zeros(rsa.exponent));
            Ok((key, rsa_algorithms(modulus.len())?))
        }
        Ok(Kind::EC(point)) => match (point.key_size(), curve_of(&info)) {
            (256, Some(curve)) if curve == x509_parser::oid_registry::OID_EC_P256 => {
                Ok((DecodingKey::from_ec_der(raw), &[Algorithm::ES256]))
            }
            (384, Some(curve)) if curve == x509_parser::oid_registry::OID_NIST_EC_P384 => {
                Ok((DecodingKey::from_ec_der(raw), &[Algorithm::ES384]))
            }
            _ => Err("its curve is neither P-256 nor P-384".to_owned()),
        },
        _ => Err("it is not one of Ed25519, RSA, P-256, P-384".to_owned()),
    }
}

/// The name of a key's curve (RFC 5480, section 2.1.1).
fn curve_of(
    info: &x509_parser::x509::SubjectPublicKeyInfo<'_>,
) -> Option<x509_parser::der_parser::oid::Oid<'static>> {
    Some(info.algorithm.parameters.as_ref()?.as_oid().ok()?.to_owned())
}

fn strip_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&octet| octet == 0).count();
    &number[zeros..]
}

/// A span for people: in the largest unit that fits.
fn ago(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
