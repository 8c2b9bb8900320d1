//! Tokens (JWT, RFC 7519): what one says, and whether it is valid now. Whether it was signed by a key
//! is [`super::verifying_key`]'s to say; until then nothing in it is to be believed.

use serde::Deserialize;
use time::OffsetDateTime;

/// Longest token that is looked at, in octets.
pub const TOKEN_MAX: usize = 8 * 1024;
/// How far clocks may be apart, in seconds.
pub const LEEWAY: i64 = 30;
/// Fewest octets in which claims name an issuer.
const CLAIMS_MIN: usize = 15;
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
    /// It was made with the key of an agent that is not here to be asked for it.
    #[error(
        "the token is made with the key of an agent that is not connected now; connect it, then try again"
    )]
    NoAgent,
    /// The agent's key is of a kind that signs no tokens.
    #[error(
        "the agent's key is of a kind that cannot sign tokens; use Ed25519, RSA from 2048 bits, P-256, P-384 or P-521"
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
    #[error("the token begins to be valid in {} s; compare the clocks of this gateway and of who made it", .0)]
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
    /// Its issuer's keys were never fetched.
    #[error("the keys of the token's issuer `{0}` could not be fetched yet")]
    NoKeysYet(String),
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
    /// Which of their keys is said to have signed it.
    pub key_id: Option<String>,
}

/// The part of a token that says whose it is (RFC 7519, section 4.1).
#[derive(Deserialize)]
struct Issued {
    iss: Option<String>,
    aud: Option<serde_json::Value>,
}

/// Whether a part of a text that dots divide says that it is for somebody, as a token's middle does: `is_for`
/// is asked with the issuer, and with whether an audience is named. For keeping tokens secret, also those that
/// do not hold, or have other parts around them. Takes time in proportion to the text.
pub fn has_claims(text: &str, is_for: impl Fn(&str, &dyn Fn(&str) -> bool) -> bool) -> bool {
    use base64::Engine as _;
    text.split('.').filter(|part| part.len() >= CLAIMS_MIN).any(|part| {
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).ok();
        let issued = claims.and_then(|claims| serde_json::from_slice::<Issued>(&claims).ok());
        issued.is_some_and(|Issued { iss, aud }| {
            iss.is_some_and(|iss| is_for(&iss, &|name| texts(aud.as_ref()).any(|audience| audience == name)))
        })
    })
}

impl Unverified {
    /// Reads what is needed to find the key. To be believed in nothing else.
    ///
    /// # Errors
    /// When it is no token, or does not name an issuer.
    pub fn read(token: &str) -> Result<Self, TokenFault> {
        let header = header(token)?;
        let issued: Issued =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| TokenFault::Malformed)?;
        let issuer = issued.iss.filter(|issuer| !issuer.is_empty()).ok_or(TokenFault::NoIssuer)?;
        Ok(Self { issuer, key_id: header.kid })
    }
}

/// What a token's head says (RFC 7515, section 4.1), as far as it matters here.
#[derive(Deserialize)]
pub struct Head {
    /// How the token says that it was signed.
    pub alg: String,
    /// The name of the key that it says it was signed with.
    pub kid: Option<String>,
    crit: Option<serde_json::Value>,
}

/// Reads a token's head; not by the library, which knows no algorithm but its own, and could not
/// tell the others' names.
///
/// # Errors
/// When it is no token, has more than [`TOKEN_MAX`], or must be understood in ways that are not.
pub fn header(token: &str) -> Result<Head, TokenFault> {
    use base64::Engine as _;
    if token.len() > TOKEN_MAX {
        return Err(TokenFault::TooLong);
    }
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

/// What a token says whose signature is good, if it is valid at this time.
///
/// # Errors
/// When it is not, or is for somebody else.
pub fn claims_of(
    claims: &serde_json::Value,
    terms: Terms<'_>,
    now: OffsetDateTime,
) -> Result<Claims, TokenFault> {
    let expires = check_times(claims, terms, now)?;
    check_audience(claims, terms)?;
    let subject = claims.get("sub").and_then(serde_json::Value::as_str).map(str::to_owned);
    Ok(Claims { subject, profiles: profiles(claims, terms.profiles_claim), expires })
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
    let is_named = |wanted| texts(claims.get("aud")).any(|audience| audience == wanted);
    if terms.audience.is_none_or(is_named) { Ok(()) } else { Err(TokenFault::WrongAudience) }
}

fn profiles(claims: &serde_json::Value, path: &str) -> Vec<String> {
    // A name that holds dots itself, as those that are URLs do, comes before a path.
    let at_path = || path.split('.').try_fold(claims, |claims, step| claims.get(step));
    let found = claims.get(path).or_else(at_path);
    texts(found).take(PROFILES_MAX).map(str::to_owned).collect()
}

/// One text, or a list of them.
pub(super) fn texts(value: Option<&serde_json::Value>) -> impl Iterator<Item = &str> {
    let list = value.and_then(serde_json::Value::as_array);
    value
        .and_then(serde_json::Value::as_str)
        .into_iter()
        .chain(list.into_iter().flatten().filter_map(|v| v.as_str()))
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
