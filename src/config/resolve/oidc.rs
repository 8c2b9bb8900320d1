//! What is written under `[access.oidc]` → where people log in.

use super::super::{OidcSettings, oidc, value};
use super::Resolver;

const ISSUER: &str = "access.oidc.issuer";
const CLIENT_ID: &str = "access.oidc.client_id";
const SECRET: &str = "access.oidc.client_secret";
const SECRET_FILE: &str = "access.oidc.client_secret_file";
const SCOPES: &str = "access.oidc.scopes";
const ALLOW: &str = "access.oidc.allow";
const ROOT: &str = "access.oidc.root";

impl Resolver {
    /// `None` where none of it is written.
    pub(super) fn oidc(&mut self) -> Option<OidcSettings> {
        let is_meant = [ISSUER, CLIENT_ID, SECRET, SECRET_FILE, SCOPES, ALLOW, ROOT]
            .iter()
            .any(|path| self.is_given(path));
        let issuer = self.read(ISSUER, |value| match value::text(value) {
            Ok(url) if is_issuer(url) => Ok(url.to_owned()),
            Ok(shown) => Err(format!(
                "`{shown}` is not an `https://` URL; write the provider's issuer exactly as it does"
            )),
            Err(shown) => Err(format!("`{shown}` is not a URL; write it in quotes")),
        });
        let client_id = self.read(CLIENT_ID, |value| match value::text(value) {
            Ok(id) if !id.is_empty() => Ok(id.to_owned()),
            Ok(_) => Err("empty; write what the provider calls this gateway".to_owned()),
            Err(shown) => Err(format!("`{shown}` is not a text; write it in quotes")),
        });
        let not_empty =
            |secret: &str| if secret.is_empty() { Err("empty; write it, or leave it out") } else { Ok(()) };
        let client_secret = self.secret(SECRET, SECRET_FILE, not_empty);
        let scopes = self.items(SCOPES, |item| {
            let is_one = !item.is_empty()
                && item.bytes().all(|octet| octet.is_ascii_graphic() && !matches!(octet, b'"' | b'\\'));
            if is_one {
                Ok(item.to_owned())
            } else {
                Err(format!("`{item}` is not a scope; write such as `email`"))
            }
        });
        let root = self.path(ROOT);
        let parsed = self.written.given.get(ALLOW).map(|given| oidc::read(&given.value));
        let allow = self.keep_good(ALLOW, parsed.unwrap_or_default());
        if !is_meant {
            return None;
        }
        for path in [ISSUER, CLIENT_ID] {
            if !self.is_given(path) {
                self.require(
                    path,
                    "missing, and other settings of `[access.oidc]` are there; write it, or leave them out",
                );
            }
        }
        if allow.is_empty() {
            self.require(ALLOW, "nobody could see anything; write at least one rule, such as `[{ domain = \"example.com\", profiles = [\"*\"] }]`");
        }
        Some(OidcSettings { issuer: issuer?, client_id: client_id?, client_secret, scopes, allow, root })
    }
}

/// OpenID Connect Discovery 1.0, section 2: https, without query and fragment.
fn is_issuer(url: &str) -> bool {
    url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && url.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'?' && octet != b'#')
}
