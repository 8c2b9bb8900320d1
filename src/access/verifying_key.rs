//! Keys that tokens are checked with.
//!
//! The key fixes the algorithms, never the token: what a token says of how it was signed is only
//! compared with them (RFC 8725, section 3.1). Signatures are a library's business.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use russh::keys::PublicKey;
use time::OffsetDateTime;

use super::identity::canonical_jwk;
use super::token::{Claims, Terms, TokenFault, brief, claims_of, header};

/// Shortest RSA modulus that is believed, in octets.
const RSA_LEAST: usize = 2048 / 8;
/// ECDSA over P-521 with SHA-512 (RFC 7518, section 3.4). The library for tokens does not know it;
/// the one for cryptography below it does.
const ES512: &str = "ES512";
/// Octets of a coordinate of P-521.
const P521_LENGTH: usize = 66;
/// What is said of a key that signs no tokens.
const KINDS: &str = "it is not one of Ed25519, RSA, P-256, P-384, P-521";
/// What is said of a text without a key.
const WHAT: &str = "no public key in PEM form; give the text with its `-----BEGIN PUBLIC KEY-----` line";

/// A key that tokens are checked with.
#[derive(Clone)]
pub struct VerifyingKey {
    check: Check,
    /// Its name among its issuer's keys.
    id: Option<String>,
    /// A hash of the key itself.
    print: Vec<u8>,
}

/// See [`VerifyingKey::name`].
pub type KeyName = [u8; 16];

/// How signatures are checked.
#[derive(Clone)]
enum Check {
    /// By the library for tokens, in one of these ways.
    Library(DecodingKey, &'static [Algorithm]),
    /// As [`ES512`] says, with this point of the curve.
    P521(Vec<u8>),
}

/// Whether both check the same tokens.
impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        (&self.print, self.check.names(), &self.id) == (&other.print, other.check.names(), &other.id)
    }
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyingKey").field("algorithms", &self.check.names()).finish_non_exhaustive()
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
        let print = print_of(&serde_json::to_vec(&jwk.algorithm).map_err(|error| error.to_string())?);
        let id = jwk.common.key_id.clone();
        let algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => {
                let modulus = BASE64.decode(&rsa.n).map_err(|_| "its modulus is not base64url")?;
                rsa_algorithms(strip_zeros(&modulus).len())?
            }
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P521 => {
                return Ok(Self { check: Check::P521(p521_point(&ec.x, &ec.y)?), id, print });
            }
            AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return Err("its curve is none of P-256, P-384, P-521".to_owned()),
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            _ => return Err(KINDS.to_owned()),
        };
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        Ok(Self { check: Check::Library(key, narrow(algorithms, jwk)?), id, print })
    }

    /// A public key in PEM form, or that of a certificate.
    ///
    /// # Errors
    /// When it is no such key, of another kind, or too short, in words.
    pub fn of_pem(pem: &str) -> Result<Self, String> {
        let der = pem_der(pem).ok_or(WHAT)?;
        Ok(Self { check: der_key(&der)?, id: None, print: print_of(&der) })
    }

    /// What the key is known by where it cannot be kept itself: another one has another.
    #[must_use]
    pub fn name(&self) -> KeyName {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in
            [&self.print, self.check.names().concat().as_bytes(), self.id.as_deref().unwrap_or("").as_bytes()]
        {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let mut name = [0; 16];
        name.copy_from_slice(&context.finish().as_ref()[..16]);
        name
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
        let header = header(token)?;
        let Some(place) = self.check.names().iter().position(|name| *name == header.alg) else {
            return Err(TokenFault::WrongAlgorithm(brief(&header.alg)));
        };
        // Times are checked where they can be told.
        let claims = match &self.check {
            Check::Library(key, algorithms) => by_library(token, key, algorithms[place])?,
            Check::P521(point) => by_p521(token, point)?,
        };
        claims_of(&claims, terms, now)
    }
}

impl Check {
    /// What tokens call it (RFC 7518, section 3.1).
    fn names(&self) -> Vec<String> {
        match self {
            Self::Library(_, algorithms) => algorithms.iter().map(|known| format!("{known:?}")).collect(),
            Self::P521(_) => vec![ES512.to_owned()],
        }
    }
}

fn by_library(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<serde_json::Value, TokenFault> {
    let mut validation = Validation::new(algorithm);
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    validation.required_spec_claims.clear();
    let decoded = jsonwebtoken::decode(token, key, &validation);
    Ok(decoded.map_err(|error| fault_of(error.kind()))?.claims)
}

fn by_p521(token: &str, point: &[u8]) -> Result<serde_json::Value, TokenFault> {
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
    let signature = BASE64.decode(signature).map_err(|_| TokenFault::BadSignature)?;
    UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| TokenFault::BadSignature)?;
    let (_, claims) = signed.split_once('.').ok_or(TokenFault::Malformed)?;
    let claims = BASE64.decode(claims).map_err(|_| TokenFault::Malformed)?;
    serde_json::from_slice(&claims).map_err(|_| TokenFault::Malformed)
}

/// The uncompressed form of a point (SEC 1, section 2.3.3).
fn p521_point(x: &str, y: &str) -> Result<Vec<u8>, String> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let octets = BASE64.decode(coordinate).map_err(|_| "a coordinate is not base64url")?;
        // RFC 7518, section 6.2.1.2: always of the whole length.
        if octets.len() != P521_LENGTH {
            return Err(format!("a coordinate has {} octets, and {P521_LENGTH} are right", octets.len()));
        }
        point.extend(octets);
    }
    Ok(point)
}

fn fault_of(kind: &ErrorKind) -> TokenFault {
    match kind {
        // Of what is base64, the rest was read to find the key.
        ErrorKind::InvalidSignature | ErrorKind::Base64(_) => TokenFault::BadSignature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenFault::WrongAlgorithm("another algorithm".to_owned())
        }
        _ => TokenFault::Malformed,
    }
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

/// The public key in a text (RFC 7468), or that of the certificate there.
fn pem_der(pem: &str) -> Option<Vec<u8>> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};

    match CertificateDer::from_pem_slice(pem.as_bytes()) {
        Ok(certificate) => {
            let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).ok()?;
            Some(certificate.tbs_certificate.subject_pki.raw.to_vec())
        }
        Err(_) => Some(SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).ok()?.to_vec()),
    }
}

fn der_key(der: &[u8]) -> Result<Check, String> {
    use x509_parser::prelude::FromDer as _;
    use x509_parser::public_key::PublicKey as Kind;
    use x509_parser::x509::SubjectPublicKeyInfo;

    let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| WHAT)?;
    let raw: &[u8] = &info.subject_public_key.data;
    let is_ed25519 = info.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519;
    match info.parsed() {
        _ if is_ed25519 => Ok(Check::Library(DecodingKey::from_ed_der(raw), &[Algorithm::EdDSA])),
        Ok(Kind::RSA(rsa)) => {
            let modulus = strip_zeros(rsa.modulus);
            let key = DecodingKey::from_rsa_raw_components(modulus, strip_zeros(rsa.exponent));
            Ok(Check::Library(key, rsa_algorithms(modulus.len())?))
        }
        Ok(Kind::EC(point)) => match (point.key_size(), curve_of(&info)) {
            (256, Some(curve)) if curve == x509_parser::oid_registry::OID_EC_P256 => {
                Ok(Check::Library(DecodingKey::from_ec_der(raw), &[Algorithm::ES256]))
            }
            (384, Some(curve)) if curve == x509_parser::oid_registry::OID_NIST_EC_P384 => {
                Ok(Check::Library(DecodingKey::from_ec_der(raw), &[Algorithm::ES384]))
            }
            (_, Some(curve)) if curve == x509_parser::oid_registry::OID_NIST_EC_P521 => {
                Ok(Check::P521(raw.to_vec()))
            }
            _ => Err("its curve is none of P-256, P-384, P-521".to_owned()),
        },
        _ => Err(KINDS.to_owned()),
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

fn print_of(key: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key).as_ref().to_vec()
}
