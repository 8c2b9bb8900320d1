//! A short text that stands for the settings that a fault may come from: with others, a name is tried
//! at once. What is in files counts as well: a root, a token, a program that was mended.

use std::fs;
use std::path::Path;

use super::short_hash;
use crate::config::{AcmeSettings, DnsWay, SecretSource, Settings};

/// The mark of these settings. Reads files: not for a busy task.
pub(super) fn of(settings: &Settings, acme: &AcmeSettings) -> String {
    let mut all = format!(
        "{} {:?} {:?} {:?} {:?} {:?}\n",
        acme.email, acme.challenges, acme.profile, settings.listen, settings.plain_http, settings.dns
    );
    for directory in &acme.directories {
        let root = directory.root.as_deref().map(|root| (root, fs::read(root).ok()));
        let eab = directory.eab.as_ref().map(|eab| (&eab.key_id, eab.key.reveal()));
        all.push_str(&format!("{} {root:?} {eab:?}\n", directory.url));
    }
    match &settings.dns.way {
        Some(DnsWay::Rfc2136(update)) => all.push_str(&secret(&update.key_secret)),
        Some(DnsWay::Cloudflare(cloudflare)) => all.push_str(&secret(&cloudflare.token)),
        Some(DnsWay::Exec(programs)) => {
            all.extend(
                [Some(&programs.program), programs.cleanup.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(|path| version(path)),
            );
        }
        Some(DnsWay::Responder(_)) | None => {}
    }
    short_hash(all.as_bytes())
}

/// The settings print as `***` what they hide.
fn secret(source: &SecretSource) -> String {
    match source {
        SecretSource::Inline(secret) => secret.reveal().to_owned(),
        SecretSource::File(path) => version(path),
    }
}

/// Changes when a file does.
fn version(path: &Path) -> String {
    let facts = fs::metadata(path).ok();
    format!("{:?}", facts.map(|facts| (facts.modified().ok(), facts.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        CloudflareSettings, DirectorySettings, EabSettings, ExecSettings, ExecStyle, KeyType, Secret,
    };

    fn acme(root: &Path) -> AcmeSettings {
        AcmeSettings {
            directories: vec![DirectorySettings {
                url: "https://ca.test/dir".to_owned(),
                root: Some(root.to_owned()),
                eab: Some(EabSettings { key_id: "kid".to_owned(), key: Secret::new("one") }),
            }],
            email: "me@a.test".to_owned(),
            names: Vec::new(),
            challenges: Vec::new(),
            profile: None,
            key_type: KeyType::P256,
            on_demand: None,
        }
    }

    #[test]
    fn every_setting_that_may_help_counts_secrets_and_files_included() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (root, file) = (dir.path().join("root.pem"), dir.path().join("token"));
        fs::write(&root, "first").expect("writable");
        fs::write(&file, "token").expect("writable");
        let mut settings = Settings::dev(8443, dir.path());
        let mut acme = acme(&root);
        let mut marks = vec![of(&settings, &acme)];
        assert_eq!(of(&settings, &acme), marks[0]);
        acme.directories[0].eab.as_mut().expect("there").key = Secret::new("two");
        marks.push(of(&settings, &acme));
        fs::write(&root, "other").expect("writable");
        marks.push(of(&settings, &acme));
        let api = "https://api.test".to_owned();
        for token in ["three", "four"] {
            let token = SecretSource::Inline(Secret::new(token));
            settings.dns.way = Some(DnsWay::Cloudflare(CloudflareSettings { token, api: api.clone() }));
            marks.push(of(&settings, &acme));
        }
        let token = SecretSource::File(file.clone());
        settings.dns.way = Some(DnsWay::Cloudflare(CloudflareSettings { token, api }));
        marks.push(of(&settings, &acme));
        fs::write(&file, "another token").expect("writable");
        marks.push(of(&settings, &acme));
        let program = ExecSettings { program: file.clone(), cleanup: None, style: ExecStyle::Lego };
        settings.dns.way = Some(DnsWay::Exec(program));
        marks.push(of(&settings, &acme));
        fs::write(&file, "mended").expect("writable");
        marks.push(of(&settings, &acme));
        acme.key_type = KeyType::Rsa2048;
        assert_eq!(of(&settings, &acme), marks[8], "a key of another kind helps against nothing");
        let all = marks.len();
        marks.sort();
        marks.dedup();
        assert_eq!((marks.len(), all), (9, 9));
    }
}
