//! How issuers of tokens are written: tables in the file, `NAME=KEY.pem` in a variable.

use std::path::PathBuf;

use super::written::Value;
use super::{IssuerKeys, IssuerSettings, PemSource};

const HINT: &str = "write `[[access.issuer]]` with `name = \"https://id.example.com\"` and `key = \"issuer.pem\"` or `jwks = \"keys.json\"`";
const KNOWN: [&str; 5] = ["name", "key", "jwks", "audience", "profiles_claim"];
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
            text => Ok(text),
        },
    };
    let name = text("name")?.ok_or_else(|| format!("an issuer without its `name`; {HINT}"))?;
    let file = |path: &str| PemSource::File(relative(path));
    let keys = match (text("key")?, text("jwks")?) {
        (Some(key), None) => IssuerKeys::Pem(file(key)),
        (None, Some(jwks)) => IssuerKeys::Jwks(file(jwks)),
        (Some(_), Some(_)) => return Err(format!("the issuer `{name}` has both `key` and `jwks`; keep one")),
        (None, None) => return Err(format!("the issuer `{name}` has no key; {HINT}")),
    };
    checked(IssuerSettings {
        name: name.to_owned(),
        keys,
        audience: text("audience")?.map(str::to_owned),
        profiles_claim: text("profiles_claim")?.unwrap_or(PROFILES).to_owned(),
    })
}

fn of_text(item: &str, relative: &impl Fn(&str) -> PathBuf) -> Result<IssuerSettings, String> {
    let bad = || format!("`{item}` is not an issuer; write `NAME=KEY.pem`, with commas between issuers");
    let (name, key) =
        item.rsplit_once('=').filter(|(name, key)| !name.is_empty() && !key.is_empty()).ok_or_else(bad)?;
    checked(IssuerSettings {
        name: name.to_owned(),
        keys: IssuerKeys::Pem(PemSource::File(relative(key))),
        audience: None,
        profiles_claim: PROFILES.to_owned(),
    })
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
