//! How logins at an OpenID Connect provider are written, and what that means: who asks whom, and who
//! may see what.

use std::path::PathBuf;

use super::SecretSource;
use super::value::list;
use super::written::Value;
use crate::name::Thumbprint;

const HINT: &str = "write such as `{ domain = \"example.com\", profiles = [\"urn:ietf:…\"] }`; `oneport token --profile` prints a profile's id, and `*` stands for all";
const KNOWN: [&str; 5] = ["email", "domain", "claim", "value", "profiles"];

/// Logins at an OpenID Connect provider.
#[derive(Clone, Debug)]
pub struct OidcSettings {
    /// Its issuer identifier: what its description is found below.
    pub issuer: String,
    /// What the gateway is called there.
    pub client_id: String,
    /// The secret that goes with it; `None`: a public client.
    pub client_secret: Option<SecretSource>,
    /// What is asked for, besides `openid`.
    pub scopes: Vec<String>,
    /// Who may see what. At least one.
    pub allow: Vec<OidcRule>,
    /// Authorities (PEM) that vouch for the provider's server, besides the system's.
    pub root: Option<PathBuf>,
}

/// Who may see what. All that match count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcRule {
    /// Who.
    pub who: OidcWho,
    /// Whose tunnels they may see.
    pub profiles: OidcProfiles,
}

/// Who a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OidcWho {
    /// This address, in lower case, if the provider has verified it.
    Email(String),
    /// Everybody with an address at this domain, in lower case, if the provider has verified it.
    Domain(String),
    /// Everybody with this claim, and this value in it.
    Claim {
        /// The claim; a path with dots if there is none of the name.
        name: String,
        /// The value, or one of a list; `None`: any.
        value: Option<String>,
    },
}

/// The profiles of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OidcProfiles {
    /// All there are.
    All,
    /// These.
    These(Vec<String>),
    /// Those that the rule's claim lists.
    Claimed,
}

/// Reads all rules; each faulty one is a fault of its own.
pub(super) fn read(value: &Value) -> Vec<Result<OidcRule, String>> {
    match value {
        Value::Toml(toml::Value::Array(items)) => items.iter().map(of_table).collect(),
        Value::Text(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(of_text).collect()
        }
        _ => vec![Err(format!("not a list; {HINT}"))],
    }
}

fn of_table(item: &toml::Value) -> Result<OidcRule, String> {
    let table = item.as_table().ok_or_else(|| format!("`{item}` is not a rule; {HINT}"))?;
    if let Some(unknown) = table.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(format!("a rule has no `{unknown}`; it has `{}`", KNOWN.join("`, `")));
    }
    let text = |name: &str| match table.get(name) {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some("") | None => Err(format!("`{name}` must be a quoted text that is not empty; {HINT}")),
            text => Ok(text),
        },
    };
    let who = match (text("email")?, text("domain")?, text("claim")?, text("value")?) {
        (Some(email), None, None, None) => email_of(email)?,
        (None, Some(domain), None, None) => domain_of(domain)?,
        (None, None, Some(name), value) => claim_of(name, value)?,
        _ => {
            return Err(format!(
                "a rule is for one of `email`, `domain` and `claim`, and only a `claim` has a `value`; {HINT}"
            ));
        }
    };
    let profiles = match (table.get("profiles"), &who) {
        (Some(profiles), _) => {
            let written = Value::Toml(profiles.clone());
            let items = list(&written);
            profiles_of(&items.map_err(|shown| format!("`{shown}` is not a profile; {HINT}"))?)?
        }
        (None, OidcWho::Claim { value: None, .. }) => OidcProfiles::Claimed,
        (None, _) => return Err(format!("a rule without its `profiles`; {HINT}")),
    };
    Ok(OidcRule { who, profiles })
}

/// `ann@example.com=PROFILE`, `@example.com=*`, `CLAIM:VALUE=*`.
fn of_text(item: &str) -> Result<OidcRule, String> {
    let bad = || {
        format!(
            "`{item}` is not a rule; write `ann@example.com=PROFILE`, `@example.com=*` or `CLAIM:VALUE=PROFILE`, with commas between rules"
        )
    };
    let (who, profile) = item.rsplit_once('=').ok_or_else(bad)?;
    let who = match (who.strip_prefix('@'), who.split_once(':')) {
        (Some(domain), _) => domain_of(domain)?,
        (None, Some((name, value))) if !name.is_empty() && !value.is_empty() => claim_of(name, Some(value))?,
        _ => email_of(who)?,
    };
    Ok(OidcRule { who, profiles: profiles_of(&[profile])? })
}

/// Any claim but that of the address, which may be one that the provider has not verified.
fn claim_of(name: &str, value: Option<&str>) -> Result<OidcWho, String> {
    if name == "email" {
        let address = value.unwrap_or("ann@example.com");
        return Err(format!(
            "a rule by the claim `email` would count an address also if the provider has not verified it; write `email = \"{address}\"`, or where rules are one text, `{address}=PROFILE`"
        ));
    }
    Ok(OidcWho::Claim { name: name.to_owned(), value: value.map(str::to_owned) })
}

fn email_of(text: &str) -> Result<OidcWho, String> {
    match text.split_once('@') {
        Some((user, domain)) if !user.is_empty() && !domain.is_empty() && !domain.contains('@') => {
            Ok(OidcWho::Email(text.to_ascii_lowercase()))
        }
        _ => Err(format!("`{text}` is not an e-mail address; {HINT}")),
    }
}

fn domain_of(text: &str) -> Result<OidcWho, String> {
    if text.is_empty() || text.contains('@') {
        return Err(format!("`{text}` is not a domain; {HINT}"));
    }
    Ok(OidcWho::Domain(text.to_ascii_lowercase()))
}

fn profiles_of(items: &[&str]) -> Result<OidcProfiles, String> {
    if items.contains(&"*") {
        return Ok(OidcProfiles::All);
    }
    if let Some(other) = items.iter().find(|item| !Thumbprint::is_one(item)) {
        return Err(format!(
            "`{other}` is no profile's id, which is as long as a digest with SHA-256; {HINT}"
        ));
    }
    if items.is_empty() {
        return Err(format!("a rule with no profile in its list; {HINT}"));
    }
    Ok(OidcProfiles::These(items.iter().map(|&item| item.to_owned()).collect()))
}
