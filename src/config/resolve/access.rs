//! Who may see private tunnels.

use std::path::Path;
use std::time::Duration;

use super::super::{AccessSettings, IssuerKeys, IssuerSettings, PemSource, Secret, issuers, value};
use super::{HOUR, Resolver, SECOND, place};

/// The issuer that existing deployments mean by its key alone.
const OLD_ISSUER: &str = "app.livecycle.run";
/// Shortest secret that may be written, in characters.
const SECRET_LEAST: usize = 16;

impl Resolver {
    pub(super) fn access(&mut self, state_dir: &Path) -> AccessSettings {
        const PATH: &str = "access.issuer";
        let login = std::mem::take(&mut self.written.login);
        let parsed = self
            .written
            .given
            .get(PATH)
            .map(|given| issuers::read(&given.value, |path| place(path, given.folder.as_deref())));
        let mut all = self.keep_good(PATH, parsed.unwrap_or_default());
        all.extend(login.public_key.map(|pem| IssuerSettings {
            name: login.issuer.unwrap_or_else(|| OLD_ISSUER.to_owned()),
            keys: IssuerKeys::Pem(PemSource::Inline(pem)),
            audience: None,
            profiles_claim: issuers::PROFILES.to_owned(),
        }));
        for what in issuers::conflicts(&all) {
            self.require(PATH, &what);
        }
        AccessSettings {
            issuers: all,
            allow_unexpiring_tokens: self.required("access.allow_unexpiring_tokens", value::switch),
            secrets: self.secrets(login.cookie_secrets),
            secrets_file: self
                .path("access.secrets_file")
                .unwrap_or_else(|| state_dir.join("cookie_secrets")),
            session_ttl: self.duration("access.session_ttl", SECOND, 365 * 24 * HOUR),
            share_max: self.duration("access.share_max", Duration::ZERO, 365 * 24 * HOUR),
            isolate_cookies: self.required("access.isolate_cookies", value::switch),
            login_url: login.base_url,
            oidc: self.oidc(),
            failures: self.failures(),
        }
    }

    /// Never shows what was written.
    fn secrets(&mut self, inherited: Vec<Secret>) -> Vec<Secret> {
        const PATH: &str = "access.secrets";
        const HINT: &str =
            "write a list of quoted texts, such as those that `openssl rand -base64 32` prints";
        let secrets = self.read(PATH, |value| {
            let items =
                value::list(value).map_err(|_| format!("there is an item that is no text; {HINT}"))?;
            if items.iter().any(|item| item.chars().count() < SECRET_LEAST) {
                return Err(format!("a secret is shorter than {SECRET_LEAST} characters; {HINT}"));
            }
            Ok(items.into_iter().map(Secret::new).collect::<Vec<_>>())
        });
        let secrets = secrets.unwrap_or(inherited);
        if !secrets.is_empty() && self.is_given("access.secrets_file") {
            let what = "set together with secrets that are written out, which count; keep one of the two";
            self.require("access.secrets_file", what);
        }
        secrets
    }
}
