//! A short text that stands for the settings that a fault may come from: with others, a name is tried
//! at once. What is in files counts as well: a root, a token, a program that was mended.
//!
//! Refuses to count what differs between two gateways with one folder: where each listens, and when
//! its files were written. Each would take the other's fault for one from before, and try again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::short_hash;
use crate::config::{ChallengeWay, DnsWay, SecretSource, Settings};

/// Octets of a file that count, besides its length. Programs may be long.
const READ_MAX: u64 = 1 << 20;

/// The mark of these settings. Reads files: not for a busy task.
pub(super) fn of(settings: &Settings) -> String {
    let Some(acme) = &settings.acme else { return String::new() };
    let dns = &settings.dns;
    let listens = (settings.offers(ChallengeWay::TlsAlpn01), settings.offers(ChallengeWay::Http01));
    let mut all = format!("{} {:?} {:?} {listens:?}\n", acme.email, acme.challenges, acme.profile);
    all.push_str(&format!("{:?} {:?} {:?}\n", dns.resolver, dns.servers, dns.timeout));
    for directory in &acme.directories {
        let root = directory.root.as_deref().map(content);
        let eab = directory.eab.as_ref().map(|eab| (&eab.key_id, eab.key.reveal()));
        all.push_str(&format!("{} {root:?} {eab:?}\n", directory.url));
    }
    all.push_str(&match &dns.way {
        Some(DnsWay::Rfc2136(update)) => format!("{update:?} {}", secret(&update.key_secret)),
        Some(DnsWay::Cloudflare(cloudflare)) => format!("{cloudflare:?} {}", secret(&cloudflare.token)),
        Some(DnsWay::Exec(programs)) => {
            let cleanup = programs.cleanup.as_deref().map(content);
            format!("{programs:?} {} {cleanup:?}", content(&programs.program))
        }
        Some(DnsWay::Responder(responder)) => format!("responder {}", responder.host),
        None => String::new(),
    });
    short_hash(all.as_bytes())
}

/// The settings print as `***` what they hide.
fn secret(source: &SecretSource) -> String {
    match source {
        SecretSource::Inline(secret) => secret.reveal().to_owned(),
        SecretSource::File(path) => content(path),
    }
}

/// Changes when what is in a file does.
fn content(path: &Path) -> String {
    let read = || -> io::Result<(u64, Vec<u8>)> {
        let file = File::open(path)?;
        let (length, mut octets) = (file.metadata()?.len(), Vec::new());
        file.take(READ_MAX).read_to_end(&mut octets)?;
        Ok((length, octets))
    };
    read().map_or_else(
        |error| error.kind().to_string(),
        |(length, octets)| format!("{length} {}", short_hash(&octets)),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::config::{
        AcmeSettings, CloudflareSettings, DirectorySettings, EabSettings, ExecSettings, ExecStyle, KeyType,
        ResponderSettings, Secret,
    };
    use crate::name::HostName;

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
        settings.acme = Some(acme(&root));
        let mut marks = vec![of(&settings)];
        assert_eq!(of(&settings), marks[0]);
        settings.acme.as_mut().expect("there").directories[0].eab.as_mut().expect("there").key =
            Secret::new("two");
        marks.push(of(&settings));
        fs::write(&root, "other").expect("writable");
        marks.push(of(&settings));
        let api = "https://api.test".to_owned();
        for token in ["three", "four"] {
            let token = SecretSource::Inline(Secret::new(token));
            settings.dns.way = Some(DnsWay::Cloudflare(CloudflareSettings { token, api: api.clone() }));
            marks.push(of(&settings));
        }
        let token = SecretSource::File(file.clone());
        settings.dns.way = Some(DnsWay::Cloudflare(CloudflareSettings { token, api }));
        marks.push(of(&settings));
        fs::write(&file, "another token").expect("writable");
        marks.push(of(&settings));
        let program = ExecSettings { program: file.clone(), cleanup: None, style: ExecStyle::Lego };
        settings.dns.way = Some(DnsWay::Exec(program));
        marks.push(of(&settings));
        fs::write(&file, "mended").expect("writable");
        marks.push(of(&settings));
        settings.acme.as_mut().expect("there").key_type = KeyType::Rsa2048;
        assert_eq!(of(&settings), marks[8], "a key of another kind helps against nothing");
        let all = marks.len();
        marks.sort();
        marks.dedup();
        assert_eq!((marks.len(), all), (9, 9));
    }

    #[test]
    fn what_differs_between_two_gateways_with_one_folder_does_not_count() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let write = |name: &str, days: u64| {
            let path = dir.path().join(name);
            fs::write(&path, "#!/bin/sh").expect("writable");
            let file = File::options().write(true).open(&path).expect("ours");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400)).expect("ours");
            path
        };
        let (root, program) = (write("root.pem", 1), write("hook", 2));
        let mut settings = Settings::dev(8443, dir.path());
        settings.acme = Some(acme(&root));
        let marks_of = |settings: &mut Settings, way: DnsWay| {
            settings.dns.way = Some(way);
            settings.listen = vec![([127, 0, 0, 1], 443).into()];
            let one = of(settings);
            settings.listen = vec![([127, 0, 0, 2], 8443).into()];
            write("root.pem", 3);
            write("hook", 4);
            (one, of(settings))
        };
        let exec = ExecSettings { program, cleanup: None, style: ExecStyle::Lego };
        let (one, other) = marks_of(&mut settings, DnsWay::Exec(exec));
        assert_eq!(one, other);
        let responder = |last| {
            let host = HostName::parse("gw.test").expect("valid");
            DnsWay::Responder(ResponderSettings { listen: vec![([127, 0, 0, last], 53).into()], host })
        };
        let one = marks_of(&mut settings, responder(1));
        assert_eq!(one, marks_of(&mut settings, responder(2)));
        // Whether there is a port at all decides which ways there are.
        settings.listen.clear();
        assert_ne!(of(&settings), one.0);
    }
}
