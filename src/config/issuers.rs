//! How issuers of tokens are written: tables in the file, `NAME=KEY.pem` in a variable.

use std::path::PathBuf;

use super::value::{NOT_A_PATH, is_pem};
use super::written::Value;
use super::{IssuerKeys, IssuerSettings, JwksUrl, PemSource};

const HINT: &str = "write `[[access.issuer]]` with `name = \"https://id.example.com\"` and `key = \"issuer.pem\"`, `jwks = \"keys.json\"` or `jwks_url = \"https://id.example.com/jwks.json\"`";
const KNOWN: [&str; 7] = ["name", "key", "jwks", "jwks_url", "root", "audience", "profiles_claim"];
/// The claim that names profiles, where nothing else is said.
pub(super) const PROFILES: &str = "profiles";

/// Reads all issuers; each faulty one is a fault of its own. `relative` places a path.
pub(super) fn read(value: &Value, relative: impl Fn(&str) -> PathBuf) -> Vec<Result<IssuerSettings, String>> {
    match value {
        Value::Toml(toml::Value::Array(items)) => {
            items.iter().map(|item| of_table(item, &relative)).collect()
        }
        Value::Text(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| of_text(item, &relative)).collect()
        }
        _ => vec![Err(format!("not a list; {HINT}"))],
    }
}

fn of_table(item: &toml::Value, relative: &impl Fn(&str) -> PathBuf) -> Result<IssuerSettings, String> {
    let table = item.as_table().ok_or_else(|| format!("`{item}` is not an issuer; {HINT}"))?;
    if let Some(unknown) = table.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(format!("an issuer has no `{unknown}`; it has `{}`", KNOWN.join("`, `")));
    }
    let text = |name: &str| match table.get(name) {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some("") | None => Err(format!("`{name}` must be a quoted text that is not empty; {HINT}")),
            Some(text) if is_pem(text) => Err(format!("`{name}` is {NOT_A_PATH}")),
            text => Ok(text),
        },
    };
    let name = text("name")?.ok_or_else(|| format!("an issuer without its `name`; {HINT}"))?;
    let file = |path: &str| PemSource::File(relative(path));
    let root = text("root")?;
    let keys = match (text("key")?, text("jwks")?, text("jwks_url")?) {
        (Some(key), None, None) => IssuerKeys::Pem(file(key)),
        (None, Some(jwks), None) => IssuerKeys::Jwks(file(jwks)),
        (None, None, Some(url)) => {
            IssuerKeys::JwksUrl(JwksUrl { url: https(url)?, root: root.map(relative) })
        }
        (None, None, None) => return Err(format!("the issuer `{name}` has no key; {HINT}")),
        _ => {
            return Err(format!(
                "the issuer `{name}` has more than one of `key`, `jwks` and `jwks_url`; keep one"
            ));
        }
    };
    if root.is_some() && !matches!(keys, IssuerKeys::JwksUrl(_)) {
        return Err(format!("the issuer `{name}` has a `root`, which only a `jwks_url` needs; take it out"));
    }
    checked(IssuerSettings {
        name: name.to_owned(),
        keys,
        audience: text("audience")?.map(str::to_owned),
        profiles_claim: text("profiles_claim")?.unwrap_or(PROFILES).to_owned(),
    })
}

fn of_text(item: &str, relative: &impl Fn(&str) -> PathBuf) -> Result<IssuerSettings, String> {
    let bad = || {
        format!(
            "`{item}` is not an issuer; write `NAME=KEY.pem` or `NAME=https://…`, with commas between issuers"
        )
    };
    if is_pem(item) {
        return Err(NOT_A_PATH.to_owned());
    }
    // A name may be a URL, and a URL may hold the sign as well.
    let at = item.find("=https://").or_else(|| item.rfind('=')).ok_or_else(bad)?;
    let (name, key) = (&item[..at], &item[at + 1..]);
    if name.is_empty() || key.is_empty() {
        return Err(bad());
    }
    let keys = if key.starts_with("https://") {
        IssuerKeys::JwksUrl(JwksUrl { url: https(key)?, root: None })
    } else {
        IssuerKeys::Pem(PemSource::File(relative(key)))
    };
    checked(IssuerSettings {
        name: name.to_owned(),
        keys,
        audience: None,
        profiles_claim: PROFILES.to_owned(),
    })
}

/// Whoever can change keys on their way makes tokens as they like.
fn https(url: &str) -> Result<String, String> {
    let parsed: Option<http::Uri> = url.parse().ok();
    let is_good = parsed
        .is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some_and(|h| !h.is_empty()));
    let bad = || format!("`{url}` is not an https URL; write one such as `https://id.example.com/jwks.json`");
    if is_good { Ok(url.to_owned()) } else { Err(bad()) }
}

fn checked(issuer: IssuerSettings) -> Result<IssuerSettings, String> {
    if issuer.name.starts_with("preevy://") {
        return Err(format!(
            "the issuer `{}` is an agent's key, which is believed for its own tunnels anyway",
            issuer.name
        ));
    }
    Ok(issuer)
}

/// Names that are there twice.
pub(super) fn conflicts(issuers: &[IssuerSettings]) -> Vec<String> {
    let twice = issuers
        .iter()
        .enumerate()
        .filter(|(index, issuer)| issuers[..*index].iter().any(|earlier| earlier.name == issuer.name));
    twice
        .map(|(_, issuer)| format!("the issuer `{}` is there twice; keep one of the two", issuer.name))
        .collect()
}
