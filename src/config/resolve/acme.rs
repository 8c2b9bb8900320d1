//! Which certificates are ordered, from whom, and how names are proved.

use std::path::{Path, PathBuf};

use super::{Resolver, place};
use crate::config::value::{self, list, text};
use crate::config::written::Value;
use crate::config::{
    AcmeSettings, BaseUrl, ChallengeWay, DirectorySettings, EabSettings, KeyType, OnDemandSettings,
    RouteSettings, Secret, Settings,
};
use crate::name::{CertName, HostName};

/// Directories that are known by a word: where they are, and whether an account there must be bound
/// to one made elsewhere (RFC 8555, section 7.3.4).
const KNOWN: &[(&str, &str, bool)] = &[
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory", false),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory", false),
    ("zerossl", "https://acme.zerossl.com/v2/DV90", true),
    ("google", "https://dv.acme-v02.api.pki.goog/directory", true),
];
const HINT: &str = "write a word such as `letsencrypt`, or `{ url = \"https://…\", root = \"root.pem\", eab_key_id = \"…\", eab_key = \"…\" }`";
const NAME_HINT: &str = "write such as `example.com` or `*.example.com`";

impl Resolver {
    /// What is ordered; nothing, unless there is an address that authorities may write to.
    pub(super) fn acme(&mut self, base: Option<&BaseUrl>, routes: &[RouteSettings]) -> Option<AcmeSettings> {
        // Also where it cannot be understood: that is a fault of its own.
        let has_dns = self.means_dns();
        let email = self.read("acme.email", |value| {
            let written = text(value)
                .map_err(|shown| format!("`{shown}` is not an e-mail address; write it in quotes"))?;
            parse_email(written)
        });
        let names = self.items("acme.names", |item| parse_name(item, has_dns));
        let names = match base {
            Some(base) if !self.is_given("acme.names") => default_names(base, routes, has_dns),
            _ => names,
        };
        let directories = self.directories();
        let challenges = self.items("acme.challenges", parse_way);
        let profile = self.read("acme.profile", |value| {
            let written = text(value)
                .map_err(|shown| format!("`{shown}` is not a text; write such as `shortlived`"))?;
            if written.is_empty() {
                Err("empty; write such as `shortlived`, or leave it out".to_owned())
            } else {
                Ok(written.to_owned())
            }
        });
        let key_type = self.required("acme.key_type", |value| match text(value) {
            Ok("p256") => Ok(KeyType::P256),
            Ok("rsa2048") => Ok(KeyType::Rsa2048),
            Ok(other) => Err(format!("`{other}` is not a kind of key; write `p256` or `rsa2048`")),
            Err(other) => Err(format!("`{other}` is not a kind of key; write `p256` or `rsa2048`")),
        });
        let per_minute = self.count("acme.on_demand_per_minute", 1, 10_000);
        let per_week = self.count("acme.on_demand_per_week", 1, 1_000_000);
        let is_on_demand = self.required("acme.on_demand", value::switch);
        let on_demand = is_on_demand.then_some(OnDemandSettings { per_minute, per_week });
        let lonely =
            ["acme.names", "acme.directories", "acme.profile"].into_iter().find(|path| self.is_given(path));
        match (email, lonely) {
            (Some(email), _) => {
                Some(AcmeSettings { email, names, directories, challenges, profile, key_type, on_demand })
            }
            (None, Some(path)) if !self.is_given("acme.email") => {
                self.require(
                    path,
                    "set without `acme.email`, and so without effect; write an address that the certificate authority may write to",
                );
                None
            }
            (None, _) => None,
        }
    }

    /// Whether each name can be proved in one of the ways that are listed.
    pub(super) fn check_ways(&mut self, settings: &Settings) {
        const PATH: &str = "acme.challenges";
        let Some(acme) = &settings.acme else { return };
        let is_broken = |path: &&str| *path == "listen" || *path == "plain.http" || path.starts_with("dns.");
        // What cannot be understood may be just what is needed.
        if self.written.broken.iter().any(is_broken)
            || settings.offers(ChallengeWay::Dns01) != self.means_dns()
        {
            return;
        }
        if acme.challenges.is_empty() {
            return self.require(PATH, "empty; name at least one way, such as `tls-alpn-01`");
        }
        let unproved = |name: &&CertName| !acme.challenges.iter().any(|way| settings.proves(name, *way));
        let Some(name) = acme.names.iter().find(unproved) else { return };
        let what = if name.is_wildcard() {
            format!(
                "`{name}` is a wildcard, which can be proved through the DNS only; add `dns-01` here, or leave the name out of `acme.names`"
            )
        } else {
            let listed: Vec<_> =
                acme.challenges.iter().map(|way| format!("`{way}` needs {}", needs(*way))).collect();
            format!(
                "none of the listed ways to prove `{name}` is set up: {}; set up one of them, or list another way",
                listed.join(", ")
            )
        };
        self.require(PATH, &what);
    }

    fn directories(&mut self) -> Vec<DirectorySettings> {
        const PATH: &str = "acme.directories";
        let folder = self.written.given.get(PATH).and_then(|given| given.folder.clone());
        let parsed = self.read(PATH, |value| {
            Ok(match value {
                Value::Toml(toml::Value::Array(items)) => {
                    items.iter().map(|item| directory(item, folder.as_deref())).collect::<Vec<_>>()
                }
                other => match list(other) {
                    Ok(items) => items.into_iter().map(|item| known(item).and_then(bound)).collect(),
                    Err(shown) => vec![Err(format!("`{shown}` is not a list; {HINT}"))],
                },
            })
        });
        let directories = self.keep_good(PATH, parsed.unwrap_or_default());
        if directories.is_empty() {
            self.require(PATH, "empty; name at least one, such as `letsencrypt`");
        }
        let twice = directories.iter().enumerate().find_map(|(index, one)| {
            directories[..index].iter().any(|other| other.url == one.url).then(|| one.url.clone())
        });
        if let Some(url) = twice {
            self.require(PATH, &format!("`{url}` is there twice; keep one of the two"));
        }
        directories
    }
}

/// The gateway's own names, and those of routes.
fn default_names(base: &BaseUrl, routes: &[RouteSettings], has_dns: bool) -> Vec<CertName> {
    let own = |label| CertName::exact(HostName::child_of(label, &base.host));
    let mut names = vec![CertName::exact(base.host.clone())];
    if has_dns {
        names.push(CertName::wildcard(base.host.clone()));
    } else {
        names.extend([own("auth"), own("api")]);
    }
    for route in routes.iter().filter(|route| !route.host.is_ip()) {
        if !names.iter().any(|name| name.covers(&route.host)) {
            names.push(CertName::exact(route.host.clone()));
        }
    }
    names
}

/// What a way to prove names needs.
const fn needs(way: ChallengeWay) -> &'static str {
    match way {
        ChallengeWay::TlsAlpn01 => "an address in `listen`",
        ChallengeWay::Http01 => "port 80 in `listen`",
        ChallengeWay::Dns01 => "a way under `[dns]`",
    }
}

fn parse_email(written: &str) -> Result<String, String> {
    if let Some(address) = written.strip_prefix("mailto:") {
        return Err(format!("`{written}` begins with `mailto:`; write the address alone, `{address}`"));
    }
    let is_good = written.split_once('@').is_some_and(|(user, host)| {
        !user.is_empty() && HostName::parse(host).is_ok_and(|host| host.as_str().contains('.'))
    });
    // What lies outside would be more than one address, or a header of its own (RFC 6068).
    if is_good && !written.contains([',', '?', ' ', '<', '>']) && written.is_ascii() {
        return Ok(written.to_owned());
    }
    Err(format!(
        "`{written}` is not an e-mail address; write one that the certificate authority may write to, such as `admin@example.com`"
    ))
}

fn parse_name(item: &str, has_dns: bool) -> Result<CertName, String> {
    let name = CertName::parse(item).map_err(|error| format!("{error}; {NAME_HINT}"))?;
    if name.is_wildcard() && !has_dns {
        return Err(format!(
            "`{name}` is a wildcard, which can be proved through the DNS only; set one of the ways under `[dns]`, or name hosts one by one"
        ));
    }
    Ok(name)
}

fn parse_way(item: &str) -> Result<ChallengeWay, String> {
    ChallengeWay::ALL.into_iter().find(|way| way.word() == item).ok_or_else(|| {
        format!("`{item}` is no way to prove a name; write `tls-alpn-01`, `http-01` or `dns-01`")
    })
}

fn directory(item: &toml::Value, folder: Option<&Path>) -> Result<DirectorySettings, String> {
    if let Some(word) = item.as_str() {
        return known(word).and_then(bound);
    }
    let table = item.as_table().ok_or_else(|| format!("`{item}` is not a directory; {HINT}"))?;
    const KEYS: [&str; 4] = ["url", "root", "eab_key_id", "eab_key"];
    if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("a directory has no `{unknown}`; {HINT}"));
    }
    let text = |name: &str| match table.get(name) {
        None => Ok(None),
        Some(value) => match value.as_str().map(str::trim) {
            Some(text) if !text.is_empty() => Ok(Some(text)),
            _ => Err(format!("`{name}` must be a quoted text; {HINT}")),
        },
    };
    let url = text("url")?.ok_or_else(|| format!("a directory without its `url`; {HINT}"))?;
    let root: Option<PathBuf> = text("root")?.map(|path| place(path, folder));
    let eab = match (text("eab_key_id")?, text("eab_key")?) {
        (Some(id), Some(key)) => Some(EabSettings { key_id: id.to_owned(), key: Secret::new(key) }),
        (None, None) => None,
        _ => {
            return Err("`eab_key_id` and `eab_key` belong together; write both as the authority gives them"
                .to_owned());
        }
    };
    let (found, must_be_bound) = known(url)?;
    bound((DirectorySettings { root, eab, ..found }, must_be_bound))
}

/// A directory by its word or URL, and whether it takes accounts only that are bound to others.
fn known(text: &str) -> Result<(DirectorySettings, bool), String> {
    let (url, must_be_bound) = match KNOWN.iter().find(|(word, ..)| *word == text) {
        Some((_, url, must_be_bound)) => (*url, *must_be_bound),
        None => (text, false),
    };
    let is_url = url.strip_prefix("https://").is_some_and(|rest| {
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        HostName::parse_authority(authority).is_ok()
    });
    if !is_url || url.contains(char::is_whitespace) {
        let words: Vec<_> = KNOWN.iter().map(|(word, ..)| format!("`{word}`")).collect();
        return Err(format!("`{text}` is neither an https URL nor one of {}; {HINT}", words.join(", ")));
    }
    Ok((DirectorySettings { url: url.to_owned(), root: None, eab: None }, must_be_bound))
}

fn bound((directory, must_be_bound): (DirectorySettings, bool)) -> Result<DirectorySettings, String> {
    if must_be_bound && directory.eab.is_none() {
        return Err(format!(
            "`{}` takes only accounts that are bound to one made there; write `{{ url = …, eab_key_id = \"…\", eab_key = \"…\" }}` with what it shows you",
            directory.url
        ));
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::list::find;
    use crate::config::resolve::resolve;
    use crate::config::written::Written;

    fn resolved(toml: &str) -> Result<AcmeSettings, String> {
        outcome(written(toml))
    }

    fn written(toml: &str) -> Written {
        let mut written = Written::default();
        let table: toml::Table = toml::from_str(toml).expect("TOML");
        written.set_text("base_url", "base_url", "https://gw.test");
        written.set_text("ssh.allow_any_key", "ssh.allow_any_key", "true");
        for (name, value) in table {
            let path = find(&format!("acme.{name}")).expect("a setting").path;
            written.set(path, path, Value::Toml(value));
        }
        written
    }

    fn outcome(written: Written) -> Result<AcmeSettings, String> {
        let (settings, faults) = resolve(written, Vec::new());
        if faults.0.is_empty() {
            Ok(settings.acme.expect("an address is there"))
        } else {
            Err(faults.to_string())
        }
    }

    #[test]
    fn an_address_is_enough() {
        let acme = resolved("email = 'me@example.com'").expect("valid");
        let names: Vec<_> = acme.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["gw.test", "auth.gw.test", "api.gw.test"]);
        assert_eq!(acme.directories[0].url, "https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!((acme.challenges.len(), acme.key_type), (3, KeyType::P256));
    }

    #[test]
    fn directories_may_be_words_or_tables() {
        let acme = resolved(
            "email = 'me@example.com'\ndirectories = ['letsencrypt', { url = 'zerossl', eab_key_id = 'a', eab_key = 'c2VjcmV0' }, { url = 'https://ca.internal:9000/acme', root = 'root.pem' }]",
        )
        .expect("valid");
        assert_eq!(acme.directories.len(), 3);
        assert!(format!("{acme:?}").contains("***") && !format!("{acme:?}").contains("c2VjcmV0"));
    }

    /// As [`resolved`], with more settings than those of the section.
    fn with(more: &[(&'static str, &str)], toml: &str) -> Result<AcmeSettings, String> {
        let mut written = written(toml);
        for (path, text) in more {
            written.set_text(path, path, *text);
        }
        outcome(written)
    }

    #[test]
    fn a_way_that_is_set_up_must_be_listed() {
        let http = "email = 'me@example.com'\nchallenges = ['http-01']";
        for more in [("listen", "0.0.0.0:443,0.0.0.0:80"), ("plain.http", "127.0.0.1:8080")] {
            assert!(with(&[more], http).is_ok(), "{more:?}");
        }
        let responder = ("dns.responder", "0.0.0.0:53");
        assert!(with(&[responder], "email = 'me@example.com'\nchallenges = ['dns-01']").is_ok());
        let fault = with(&[responder], "email = 'me@example.com'\nchallenges = ['tls-alpn-01']");
        let fault = fault.expect_err("a wildcard");
        assert!(
            fault.contains("acme.challenges: `*.gw.test` is a wildcard") && fault.contains("`dns-01`"),
            "{fault}"
        );
        // What cannot be understood has its own fault, and no other for what follows from it.
        for (more, toml) in [
            (("listen", "80"), http),
            (("dns.responder", "nowhere"), "email = 'me@example.com'\nnames = ['*.gw.test']"),
            (
                ("dns.rfc2136.server", "192.0.2.1"),
                "email = 'me@example.com'\nnames = ['*.gw.test']\nchallenges = ['dns-01']",
            ),
        ] {
            let faults = with(&[more], toml).expect_err("a fault");
            assert!(!faults.contains("acme."), "{faults}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_understood_is_the_only_fault() {
        let faults = resolved("email = 'me'\ndirectories = ['letsencrypt']").expect_err("a fault");
        assert_eq!(faults.lines().count(), 1, "{faults}");
    }

    #[test]
    fn faults_name_the_value_and_the_cure() {
        for (toml, part) in [
            ("names = ['a.test']", "set without `acme.email`"),
            ("email = 'me'", "`me` is not an e-mail address"),
            ("email = 'mailto:me@example.com'", "write the address alone, `me@example.com`"),
            ("email = 'me@example.com'\nchallenges = []", "empty; name at least one way"),
            (
                "email = 'me@example.com'\nchallenges = ['http-01']",
                "none of the listed ways to prove `gw.test` is set up: `http-01` needs port 80 in `listen`; set",
            ),
            ("email = 'me@example.com'\nchallenges = ['dns-01']", "`dns-01` needs a way under `[dns]`"),
            ("email = 'a@b.c, d@e.f'", "is not an e-mail address"),
            ("email = 'me@example.com'\nnames = ['*.a.test']", "`*.a.test` is a wildcard"),
            ("email = 'me@example.com'\nnames = ['10.0.0.1']", "an IP address"),
            ("email = 'me@example.com'\ndirectories = ['letsencript']", "neither an https URL nor one of"),
            ("email = 'me@example.com'\ndirectories = ['http://ca.test/']", "neither an https URL"),
            ("email = 'me@example.com'\ndirectories = ['zerossl']", "bound to one made there"),
            (
                "email = 'me@example.com'\ndirectories = [{ url = 'letsencrypt', eab_key = 'x' }]",
                "belong together",
            ),
            ("email = 'me@example.com'\ndirectories = []", "at least one"),
            ("email = 'me@example.com'\nchallenges = ['dns']", "`dns` is no way"),
            ("email = 'me@example.com'\nkey_type = 'rsa'", "`rsa` is not a kind of key"),
        ] {
            let found = resolved(toml).expect_err(toml);
            assert!(found.contains(part), "{toml}: {found}");
        }
    }
}
