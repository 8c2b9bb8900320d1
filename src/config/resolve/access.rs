//! Who may see private tunnels.

use super::super::{AccessSettings, IssuerKeys, IssuerSettings, PemSource, issuers, value};
use super::{Resolver, place};

/// The issuer that existing deployments mean by its key alone.
const OLD_ISSUER: &str = "app.livecycle.run";

impl Resolver {
    pub(super) fn access(&mut self) -> AccessSettings {
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
            secrets: login.cookie_secrets,
            login_url: login.base_url,
        }
    }
}
