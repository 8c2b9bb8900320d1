//! What goes wrong with an order, each as one plain sentence with what to do.
//!
//! An authority's problem types (RFC 8555, section 6.7) are put into words here, and nowhere else.

use std::time::Duration;

use instant_acme::{Error, Problem};

use super::client::Refused;
use super::vault::VaultError;
use crate::certs::CertError;
use crate::config::ChallengeWay;
use crate::net::FetchError;

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The word for it.
    pub kind: FaultKind,
    /// What happened, and what to do.
    pub text: String,
    /// How long the authority wants to be left alone.
    pub retry_after: Option<Duration>,
    /// Failed proofs that it took, of which authorities allow few an hour.
    pub(super) proofs: u32,
    /// Whether it would be the same for another name.
    pub(super) is_general: bool,
}

/// What helps against a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Another way to prove the name may do.
    Way,
    /// Another authority may do.
    Directory,
    /// Nothing but what the sentence says.
    Here,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident $word:literal $scope:ident)*) => {
        /// What kind of fault it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FaultKind { $($(#[doc = $doc])+ $variant,)* }

        impl FaultKind {
            /// Every kind, in the order of the list.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word that stands for it in logs, in the status and in the vault.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// What helps against it.
            pub(super) const fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope,)* }
            }
        }
    };
}

kinds! {
    /// The name has no address, or not the record that proves it.
    WrongDns "wrong-dns" Way
    /// Nobody can be reached under the name.
    Unreachable "unreachable" Way
    /// Somebody else answers under the name.
    WrongAnswer "wrong-answer" Way
    /// No way to prove the name is left, or the authority does not offer it.
    NoWay "no-way" Way
    /// The record could not be set.
    DnsNotSet "dns-not-set" Way
    /// The authority did not come to look, or did not say what it found.
    NotValidated "not-validated" Way
    /// A CAA record forbids it.
    Caa "caa" Directory
    /// The authority will not issue for the name.
    Rejected "rejected" Directory
    /// Too much was ordered.
    RateLimited "rate-limited" Directory
    /// The authority does not like the e-mail address.
    BadContact "bad-contact" Directory
    /// The account must be bound to another one, and is not, or wrongly.
    NotBound "not-bound" Directory
    /// The account is not known any more.
    NoAccount "no-account" Directory
    /// The authority has no such kind of certificate.
    NoProfile "no-profile" Directory
    /// The authority has trouble of its own.
    AuthorityFailed "authority-failed" Directory
    /// The authority's server cannot be reached, or not be trusted.
    DirectoryUnreachable "directory-unreachable" Directory
    /// The authority refuses for another reason.
    Refused "refused" Directory
    /// A certificate is due again as soon as it is there.
    WrongClock "wrong-clock" Here
    /// The disk, or this program.
    Local "local" Here
}

/// What was asked, for the sentence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) directory: &'a str,
    pub(super) name: &'a str,
    pub(super) email: &'a str,
    pub(super) profile: Option<&'a str>,
    pub(super) way: Option<ChallengeWay>,
}

impl Fault {
    /// A fault in words.
    pub(super) fn new(kind: FaultKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), retry_after: None, proofs: 0, is_general: false }
    }

    /// What the protocol's library says.
    pub(super) fn of(error: &Error, asked: Asked<'_>) -> Self {
        let authority = host(asked.directory);
        match error {
            Error::Api(problem) => Self::of_problem(problem, asked),
            Error::Timeout(_) => Self::new(
                FaultKind::AuthorityFailed,
                format!("`{authority}` took too long to make the certificate; it is asked again later"),
            ),
            Error::Other(error) => {
                match (error.downcast_ref::<FetchError>(), error.downcast_ref::<Refused>()) {
                    (Some(error), _) => Self::new(FaultKind::DirectoryUnreachable, error.to_string()),
                    (None, Some(refused)) => Self::of_refusal(refused, asked),
                    (None, None) => Self::new(
                        FaultKind::AuthorityFailed,
                        format!(
                            "`{authority}` does not keep to the protocol ({error}); check its URL in `acme.directories`"
                        ),
                    ),
                }
            }
            Error::Json(_)
            | Error::Str(_)
            | Error::Unsupported(_)
            | Error::Http(_)
            | Error::InvalidUri(_) => Self::new(
                FaultKind::AuthorityFailed,
                format!(
                    "what `{}` answers is not what an ACME server says ({error}); check the URL in `acme.directories`",
                    asked.directory
                ),
            ),
            other => Self::new(
                FaultKind::Local,
                format!("the order cannot be signed ({other}); report this as a bug"),
            ),
        }
    }

    /// A refusal of what is asked for all names: of the directory or a nonce, or without the protocol's
    /// own words, as from what stands before an authority.
    fn of_refusal(refused: &Refused, asked: Asked<'_>) -> Self {
        let authority = host(asked.directory);
        let status = refused.status;
        match &refused.problem {
            Some(problem) => Self {
                retry_after: refused.retry_after,
                is_general: true,
                ..Self::of_problem(problem, asked)
            },
            None if status == 429 || status == 503 => {
                let kind = if status == 429 { FaultKind::RateLimited } else { FaultKind::AuthorityFailed };
                let text = format!(
                    "`{authority}` does not want to be asked now (status {status}); it is asked again later"
                );
                Self { retry_after: refused.retry_after, is_general: true, ..Self::new(kind, text) }
            }
            None if status >= 500 => Self::new(
                FaultKind::AuthorityFailed,
                format!("`{authority}` has trouble of its own (status {status}); it is asked again later"),
            ),
            None => Self::new(
                FaultKind::DirectoryUnreachable,
                format!(
                    "there is no ACME server at `{}` (status {status}); check the URL in `acme.directories`",
                    asked.directory
                ),
            ),
        }
    }

    /// An authority's problem in plain words.
    // long because it is a table: one arm a type of problem.
    pub(super) fn of_problem(problem: &Problem, asked: Asked<'_>) -> Self {
        use FaultKind as Kind;
        let Asked { directory, name, email, profile, way } = asked;
        let authority = host(directory);
        let detail = detail(problem);
        let kind = problem.r#type.as_deref().unwrap_or_default();
        let host_of_name = name.trim_start_matches("*.");
        let is_dns = way == Some(ChallengeWay::Dns01);
        let reach = || {
            if is_dns {
                let text = format!(
                    "`{authority}` cannot ask the name servers of `{name}` ({detail}); check that they can be reached from the internet on port 53"
                );
                return (Kind::WrongDns, text);
            }
            (
                Kind::Unreachable,
                format!(
                    "`{authority}` cannot reach `{name}` on port {} ({detail}); check that its A and AAAA records lead to this host, and that a firewall lets that port through to oneport",
                    port(way)
                ),
            )
        };
        let (kind, text) = match kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind) {
            "caa" => (
                Kind::Caa,
                format!(
                    "a CAA record of `{name}` forbids `{authority}` to issue ({detail}); allow this authority there, or order from another in `acme.directories`"
                ),
            ),
            "dns" if is_dns => (
                Kind::WrongDns,
                format!(
                    "`{authority}` does not find the record `_acme-challenge.{host_of_name}` ({detail}); check that the name servers of its zone are those that the record was set at"
                ),
            ),
            word if word == "dns" || way.is_some() && !is_dns && not_found(word, &detail) => (
                Kind::WrongDns,
                format!(
                    "`{authority}` finds no address of `{name}` ({detail}); make an A or AAAA record that leads to this host"
                ),
            ),
            "connection" | "tls" => reach(),
            "unauthorized" | "incorrectResponse" if way.is_some() && nobody_there(&detail) => reach(),
            "unauthorized" | "incorrectResponse" if way.is_some() => (
                Kind::WrongAnswer,
                if is_dns {
                    format!(
                        "`{authority}` finds another record at `_acme-challenge.{host_of_name}` ({detail}); remove what stands there besides, and let nobody else prove this name"
                    )
                } else {
                    format!(
                        "`{authority}` reached somebody else under `{name}` ({detail}); check that its A and AAAA records lead to this host alone, with no proxy in between that ends TLS"
                    )
                },
            ),
            "rateLimited" => (
                Kind::RateLimited,
                format!(
                    "`{authority}` limits what may be ordered ({detail}); it is asked again when it says so; name fewer hosts, or a second authority in `acme.directories`"
                ),
            ),
            "invalidContact" | "unsupportedContact" => (
                Kind::BadContact,
                format!(
                    "`{authority}` does not take the e-mail address `{email}` ({detail}); write another one in `acme.email`"
                ),
            ),
            "externalAccountRequired" => (
                Kind::NotBound,
                format!(
                    "`{authority}` takes only accounts that are bound to one made there ({detail}); write its `eab_key_id` and `eab_key` in `acme.directories`"
                ),
            ),
            "accountDoesNotExist" => (
                Kind::NoAccount,
                format!(
                    "`{authority}` does not know the account any more ({detail}); a new one is made with the next attempt"
                ),
            ),
            "unauthorized" => (
                Kind::NotBound,
                format!(
                    "`{authority}` does not take the account ({detail}); check `eab_key_id` and `eab_key` in `acme.directories`; if it was closed there, remove its file below `acme/accounts`, and a new one is made"
                ),
            ),
            "rejectedIdentifier" | "unsupportedIdentifier" => (
                Kind::Rejected,
                format!(
                    "`{authority}` does not issue for `{name}` ({detail}); leave it out of `acme.names`, or order from another in `acme.directories`"
                ),
            ),
            "invalidProfile" => (
                Kind::NoProfile,
                format!(
                    "`{authority}` has no profile `{}` ({detail}); write one that it offers in `acme.profile`, or leave it out",
                    profile.unwrap_or_default()
                ),
            ),
            "userActionRequired" => (
                Kind::Refused,
                format!(
                    "`{authority}` wants its terms of service agreed to by hand ({detail}); read what it links to, and restart"
                ),
            ),
            "serverInternal" => (
                Kind::AuthorityFailed,
                format!("`{authority}` has trouble of its own ({detail}); it is asked again later"),
            ),
            _ if problem.status == Some(429) => (
                Kind::RateLimited,
                format!(
                    "`{authority}` limits what may be asked ({detail}); it is asked again when it says so"
                ),
            ),
            _ => (
                Kind::Refused,
                format!(
                    "`{authority}` refuses the order for `{name}` ({detail}); see what it says, or order from another in `acme.directories`"
                ),
            ),
        };
        Self::new(kind, text)
    }
}

impl From<VaultError> for Fault {
    fn from(error: VaultError) -> Self {
        let kind = match error {
            VaultError::OtherName { .. } => FaultKind::AuthorityFailed,
            _ => FaultKind::Local,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<CertError> for Fault {
    fn from(error: CertError) -> Self {
        Self::new(FaultKind::Local, error.to_string())
    }
}

/// Whether an authority that does not tell the two apart reached nobody, and not somebody else.
fn nobody_there(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    ["failed to connect", "connection refused", "timed out", "timeout", "no route"]
        .iter()
        .any(|sign| detail.contains(sign))
}

/// Whether an authority that has no word of its own for it did not find the name in the DNS.
fn not_found(kind: &str, detail: &str) -> bool {
    const KINDS: [&str; 5] =
        ["connection", "incorrectResponse", "malformed", "serverInternal", "unauthorized"];
    let detail = detail.to_ascii_lowercase();
    let signs = ["not resolve", "no such host", "nxdomain", "no valid a records", "no valid ip"];
    KINDS.contains(&kind) && signs.iter().any(|sign| detail.contains(sign))
}

/// Whether an order may only have been refused for what it says of the certificate before (RFC 9773,
/// section 5): another order named that already, the authority does not know it, or made it for
/// another account.
pub(super) fn is_of_hint(error: &Error) -> bool {
    const KINDS: [&str; 5] = ["alreadyReplaced", "conflict", "malformed", "unauthorized", "unsupported"];
    match error {
        Error::Api(problem) => problem
            .r#type
            .as_deref()
            .and_then(|kind| kind.strip_prefix("urn:ietf:params:acme:error:"))
            .is_some_and(|kind| KINDS.contains(&kind)),
        // The directory has no such thing.
        Error::Unsupported(_) => true,
        // The library's, where the authority takes the order and does not repeat the hint.
        Error::Other(error) => !error.is::<FetchError>() && !error.is::<Refused>(),
        _ => false,
    }
}

/// Where an authority looks.
fn port(way: Option<ChallengeWay>) -> u16 {
    if way == Some(ChallengeWay::Http01) { 80 } else { 443 }
}

/// The host of a URL, which is what people know an authority by.
pub(super) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// What an authority says, in one line.
fn detail(problem: &Problem) -> String {
    let parts = problem.detail.iter().cloned();
    let more = problem.subproblems.iter().filter_map(|problem| problem.detail.clone());
    let said: Vec<String> =
        parts.chain(more).map(|part| part.trim_end_matches('.').replace(['\n', '\r'], " ")).collect();
    let said = if said.is_empty() { problem.r#type.clone().unwrap_or_default() } else { said.join("; ") };
    said.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: &str, way: Option<ChallengeWay>) -> Fault {
        let problem = format!(r#"{{"type": "urn:ietf:params:acme:error:{kind}", "detail": "so it is."}}"#);
        let asked = Asked {
            directory: "https://ca.test:14000/dir",
            name: "*.a.test",
            email: "me@a.test",
            profile: Some("short"),
            way,
        };
        Fault::of(&Error::Api(serde_json::from_str(&problem).expect("a problem")), asked)
    }

    #[test]
    fn a_name_that_is_not_found_is_told_from_other_refusals() {
        assert!(not_found("malformed", "could not resolve gw.test"));
        assert!(not_found("connection", "dial tcp: lookup gw.test: no such host"));
        assert!(!not_found("malformed", "the key is too short"));
        assert!(!not_found("rateLimited", "no such host"));
    }

    #[test]
    fn nobody_is_told_from_somebody_else() {
        assert!(nobody_there("Failed to connect to 127.0.0.9:443 for the tls-alpn-01 challenge"));
        assert!(nobody_there("Timeout during connect (likely firewall problem)"));
        assert!(!nobody_there("Incorrect validation certificate for tls-alpn-01 challenge"));
    }

    #[test]
    fn every_sentence_names_who_what_and_the_cure() {
        let tls = Some(ChallengeWay::TlsAlpn01);
        let dns = Some(ChallengeWay::Dns01);
        for (kind, way, word, cure) in [
            ("caa", tls, "caa", "allow this authority"),
            ("dns", tls, "wrong-dns", "make an A or AAAA record"),
            ("dns", dns, "wrong-dns", "`_acme-challenge.a.test`"),
            ("connection", tls, "unreachable", "on port 443"),
            ("connection", Some(ChallengeWay::Http01), "unreachable", "on port 80"),
            ("tls", tls, "unreachable", "firewall"),
            ("unauthorized", tls, "wrong-answer", "no proxy in between"),
            ("unauthorized", dns, "wrong-answer", "remove what stands there"),
            ("unauthorized", None, "not-bound", "eab_key"),
            ("rateLimited", None, "rate-limited", "second authority"),
            ("invalidContact", None, "bad-contact", "`me@a.test`"),
            ("externalAccountRequired", None, "not-bound", "eab_key_id"),
            ("rejectedIdentifier", None, "rejected", "leave it out"),
            ("invalidProfile", None, "no-profile", "`short`"),
            ("serverInternal", None, "authority-failed", "asked again"),
            ("somethingNew", None, "refused", "see what it says"),
        ] {
            let fault = fault(kind, way);
            assert_eq!(fault.kind.word(), word, "{kind}");
            assert!(fault.text.contains(cure) && fault.text.contains("(so it is)"), "{kind}: {}", fault.text);
            assert!(fault.text.contains("`ca.test:14000`") && !fault.text.contains('\n'), "{}", fault.text);
        }
    }

    #[test]
    fn only_what_may_be_about_the_certificate_before_is_tried_without_it() {
        let api = |kind: &str| {
            let text = format!(r#"{{"type": "urn:ietf:params:acme:error:{kind}"}}"#);
            Error::Api(serde_json::from_str(&text).expect("a problem"))
        };
        for kind in ["alreadyReplaced", "malformed", "unauthorized"] {
            assert!(is_of_hint(&api(kind)), "{kind}");
        }
        for kind in ["rateLimited", "serverInternal", "rejectedIdentifier", "badNonce"] {
            assert!(!is_of_hint(&api(kind)), "{kind}");
        }
        assert!(is_of_hint(&Error::Unsupported("ARI")) && is_of_hint(&Error::Other("not repeated".into())));
        let refused = Refused { status: 503, problem: None, retry_after: None };
        assert!(!is_of_hint(&Error::Other(Box::new(refused))) && !is_of_hint(&Error::Str("no URL")));
    }
}
