//! Who may see what, by what an identity provider says of them. Pure.

use serde_json::{Map, Value};

use super::token::texts;
use crate::config::{OidcProfiles, OidcRule, OidcWho};

/// The claim that is somebody's address (OpenID Connect Core 1.0, section 5.1).
pub const ADDRESS: &str = "email";
/// The claim that says whether the provider knows that it is theirs.
pub const VERIFIED: &str = "email_verified";
/// Most profiles that somebody is given.
const PROFILES_MAX: usize = 1024;

/// What somebody may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    /// The tunnels of these profiles; `None`: all.
    Some(Option<Vec<String>>),
    /// Nothing, but they would if this address of theirs were verified.
    Unverified(String),
    /// Nothing.
    Nothing,
}

/// What all rules that match give together.
#[must_use]
pub fn granted(rules: &[OidcRule], claims: &Map<String, Value>) -> Granted {
    // Of other letters than ASCII's, some are made into those of another address.
    let address = claims.get(ADDRESS).and_then(Value::as_str).map(str::to_ascii_lowercase);
    let domain = address.as_deref().and_then(domain_of);
    let is_verified = claims.get(VERIFIED) == Some(&Value::Bool(true));
    let mut profiles = Vec::new();
    let (mut matched, mut unverified) = (false, None);
    for rule in rules {
        let is_for_address = match (&rule.who, &address) {
            (OidcWho::Email(wanted), Some(address)) => wanted == address,
            (OidcWho::Domain(wanted), _) => domain == Some(wanted),
            _ => false,
        };
        if is_for_address && !is_verified {
            unverified.clone_from(&address);
        }
        let is_match = match &rule.who {
            OidcWho::Email(_) | OidcWho::Domain(_) => is_for_address && is_verified,
            OidcWho::Claim { name, value } => {
                let mut values = texts(claim(claims, name));
                values.any(|found| value.as_ref().is_none_or(|wanted| found == wanted))
            }
        };
        if !is_match {
            continue;
        }
        matched = true;
        match (&rule.profiles, &rule.who) {
            (OidcProfiles::All, _) => return Granted::Some(None),
            (OidcProfiles::These(these), _) => profiles.extend_from_slice(these),
            (OidcProfiles::Claimed, OidcWho::Claim { name, .. }) => {
                profiles.extend(texts(claim(claims, name)).take(PROFILES_MAX).map(str::to_owned));
            }
            (OidcProfiles::Claimed, _) => {}
        }
    }
    profiles.truncate(PROFILES_MAX);
    match (matched, unverified) {
        (true, _) => Granted::Some(Some(profiles)),
        (false, Some(address)) => Granted::Unverified(address),
        (false, None) => Granted::Nothing,
    }
}

/// Whether a rule looks at something of which the claims say nothing, so that it may be worth asking
/// for more.
#[must_use]
pub fn is_open(rules: &[OidcRule], claims: &Map<String, Value>) -> bool {
    let is_unsaid = |rule: &OidcRule| match &rule.who {
        OidcWho::Email(_) | OidcWho::Domain(_) => !claims.contains_key(ADDRESS),
        OidcWho::Claim { name, .. } => claim(claims, name).is_none(),
    };
    granted(rules, claims) != Granted::Some(None) && rules.iter().any(is_unsaid)
}

/// Where an address is; `None` where readers could differ: it has no `@`, or more than one.
fn domain_of(address: &str) -> Option<&str> {
    let (user, domain) = address.split_once('@')?;
    (!user.is_empty() && !domain.contains('@')).then_some(domain)
}

/// What somebody is called: an address that is known to be theirs, or what the provider calls them.
#[must_use]
pub fn name_of(claims: &Map<String, Value>) -> String {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let is_verified = claims.get(VERIFIED) == Some(&Value::Bool(true));
    let name = text(ADDRESS).filter(|_| is_verified).or_else(|| text("preferred_username"));
    name.or_else(|| text("sub")).unwrap_or("somebody").to_owned()
}

/// A claim of this name, or at this path.
fn claim<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let at_path = || {
        let mut steps = path.split('.');
        let first = claims.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    };
    claims.get(path).or_else(at_path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(who: OidcWho, profiles: &[&str]) -> OidcRule {
        let profiles = OidcProfiles::These(profiles.iter().map(|&profile| profile.to_owned()).collect());
        OidcRule { who, profiles }
    }

    fn rules() -> Vec<OidcRule> {
        let claim = |name: &str, value: Option<&str>| OidcWho::Claim {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        };
        vec![
            rule(OidcWho::Email("ann@example.com".into()), &["ann's"]),
            rule(OidcWho::Domain("example.com".into()), &["all's"]),
            rule(OidcWho::Domain("work.test".into()), &["work's"]),
            rule(claim("groups", Some("dev")), &["dev's"]),
            OidcRule { who: claim("app.profiles", None), profiles: OidcProfiles::Claimed },
            OidcRule { who: claim("role", Some("boss")), profiles: OidcProfiles::All },
        ]
    }

    fn of(claims: &Value) -> Granted {
        granted(&rules(), claims.as_object().expect("an object"))
    }

    fn some(profiles: &[&str]) -> Granted {
        Granted::Some(Some(profiles.iter().map(|&profile| profile.to_owned()).collect()))
    }

    #[test]
    fn all_rules_that_match_count() {
        let ann = json!({ "email": "Ann@Example.com", "email_verified": true, "groups": ["x", "dev"] });
        assert_eq!(of(&ann), some(&["ann's", "all's", "dev's"]));
        assert_eq!(of(&json!({ "groups": "dev" })), some(&["dev's"]));
        assert_eq!(of(&json!({ "app": { "profiles": ["a", "b"] } })), some(&["a", "b"]));
        assert_eq!(of(&json!({ "role": "boss" })), Granted::Some(None));
        assert_eq!(of(&json!({ "groups": ["devs"], "role": 1 })), Granted::Nothing);
    }

    #[test]
    fn what_a_rule_looks_at_and_the_claims_lack_is_open() {
        let open = |claims: Value, rules: &[OidcRule]| is_open(rules, claims.as_object().expect("an object"));
        let ann = json!({ "email": "ann@example.com", "email_verified": true });
        assert!(open(ann.clone(), &rules()) && !open(ann, &rules()[..3]));
        assert!(open(json!({ "groups": ["dev"] }), &rules()[..4]));
        // Not verified is an answer as well, and who may see all can be given no more.
        assert!(!open(json!({ "email": "ann@example.com" }), &rules()[..3]));
        assert!(!open(json!({ "role": "boss" }), &rules()));
    }

    #[test]
    fn an_address_counts_only_if_it_is_verified_and_whole() {
        let with =
            |address: &str, verified: Value| of(&json!({ "email": address, "email_verified": verified }));
        assert_eq!(with("bob@example.com", json!(true)), some(&["all's"]));
        for verified in [json!(false), json!("true"), json!(1), Value::Null] {
            assert_eq!(with("bob@example.com", verified), Granted::Unverified("bob@example.com".into()));
        }
        for other in [
            "bob@example.com.evil.test",
            "bob@evil-example.com",
            "bob@sub.example.com",
            "example.com",
            "x@example.com@evil.test",
            "x@evil.test@example.com",
            "\"x@evil.test\"@example.com",
            "@example.com",
            // The sign of kelvin, which in lower case is the letter.
            "ann@wor\u{212a}.test",
        ] {
            assert_eq!(with(other, json!(true)), Granted::Nothing, "{other}");
        }
    }

    #[test]
    fn names_are_those_that_are_known_to_be_theirs() {
        let name = |claims: Value| name_of(claims.as_object().expect("an object"));
        assert_eq!(name(json!({ "sub": "1", "email": "a@b.test", "email_verified": true })), "a@b.test");
        assert_eq!(name(json!({ "sub": "1", "email": "a@b.test", "preferred_username": "ann" })), "ann");
        assert_eq!(name(json!({ "sub": "1", "email": "a@b.test" })), "1");
    }
}
