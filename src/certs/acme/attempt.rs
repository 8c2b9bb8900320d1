//! One attempt to get a certificate: one directory after the other, and at each one way to prove the
//! name after the other.

use std::sync::Arc;

use instant_acme::CertificateIdentifier;
use time::OffsetDateTime;

use super::client::{Asker, fetch_with};
use super::fault::{Asked, Fault, FaultKind, Scope, host};
use super::order::{Issued, Wish};
use super::vault::{About, Kept, Status};
use super::{Inner, account, off_thread};
use crate::config::{ChallengeWay, DirectorySettings};
use crate::name::CertName;
use crate::net::Fetch;

impl Inner {
    /// Orders a certificate and keeps it. Notes in `status` which directories want to be left alone.
    /// The name must be held.
    pub(super) async fn attempt(
        &self,
        name: &CertName,
        before: Option<&Kept>,
        status: &mut Status,
    ) -> Result<Kept, Fault> {
        let ways = self.ways(name);
        if ways.is_empty() {
            return Err(no_way(name));
        }
        let now = OffsetDateTime::now_utc().unix_timestamp();
        status.limited.retain(|_, until| *until > now);
        let mut faults: Vec<Fault> = Vec::new();
        for (index, directory) in self.acme.directories.iter().enumerate() {
            if let Some(until) = status.limited.get(&directory.url) {
                let left = std::time::Duration::from_secs(u64::try_from(until - now).unwrap_or(0));
                let text = format!("`{}` wants to be left alone for another {left:?}", host(&directory.url));
                faults.push(Fault { retry_after: Some(left), ..Fault::new(FaultKind::RateLimited, text) });
                continue;
            }
            match self.attempt_at(index, directory, name, &ways, before).await {
                Ok(kept) => return Ok(kept),
                Err(fault) => {
                    if let (FaultKind::RateLimited, Some(wait)) = (fault.kind, fault.retry_after) {
                        let wait = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
                        status.limited.insert(directory.url.clone(), now.saturating_add(wait));
                    }
                    let is_last = index + 1 == self.acme.directories.len();
                    if fault.kind.scope() != Scope::Directory {
                        return Err(fault);
                    }
                    if !is_last {
                        tracing::warn!(%name, fault = fault.kind.word(), "{}; trying the next directory", fault.text);
                    }
                    faults.push(fault);
                }
            }
        }
        Err(together(faults))
    }

    async fn attempt_at(
        &self,
        index: usize,
        directory: &DirectorySettings,
        name: &CertName,
        ways: &[ChallengeWay],
        before: Option<&Kept>,
    ) -> Result<Kept, Fault> {
        let asker = Asker::new(self.client(index, directory).await?);
        let shown = name.to_string();
        let asked = Asked {
            directory: &directory.url,
            name: &shown,
            email: &self.acme.email,
            profile: self.acme.profile.as_deref(),
            way: None,
        };
        let account = account::open(&self.vault, &self.acme, directory, &asker, asked).await?;
        // A certificate of another authority means nothing to this one.
        let replaces = before.filter(|before| before.about.directory == directory.url).and_then(identifier);
        let mut faults = Vec::new();
        for (number, way) in ways.iter().copied().enumerate() {
            let wish = Wish {
                account: &account,
                asker: &asker,
                vault: &self.vault,
                answers: &self.answers,
                name,
                way,
                key_type: self.acme.key_type,
                replaces: replaces.clone(),
                asked: Asked { way: Some(way), ..asked },
            };
            // Boxed, because an order is large, and most of the time there is none.
            match Box::pin(wish.order()).await {
                Ok(issued) => return self.take(name, directory, way, issued).await,
                Err(fault) if fault.kind == FaultKind::NoAccount => {
                    let (vault, url) = (self.vault.clone(), directory.url.clone());
                    off_thread(move || vault.forget_account(&url)).await??;
                    return Err(fault);
                }
                Err(fault) if fault.kind.scope() == Scope::Way => {
                    if let Some(next) = ways.get(number + 1) {
                        tracing::warn!(%name, %way, fault = fault.kind.word(), "{}; trying {next} next", fault.text);
                    }
                    faults.push(fault);
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(together(faults))
    }

    /// Keeps a certificate, if it is what was ordered.
    async fn take(
        &self,
        name: &CertName,
        directory: &DirectorySettings,
        way: ChallengeWay,
        issued: Issued,
    ) -> Result<Kept, Fault> {
        let about = About {
            name: name.to_string(),
            directory: directory.url.clone(),
            way: way.word().to_owned(),
            ordered: OffsetDateTime::now_utc(),
        };
        let (vault, name) = (self.vault.clone(), name.clone());
        off_thread(move || {
            let kept = vault.keep(&name, &issued.chain, &issued.key, &about)?;
            vault.set_pending(&name, None)?;
            Ok(kept)
        })
        .await?
    }

    /// How a name can be proved here, in the order in which it is tried.
    fn ways(&self, name: &CertName) -> Vec<ChallengeWay> {
        let settings = &self.settings;
        let has_plain =
            !settings.plain_http.is_empty() || settings.listen.iter().any(|address| address.port() == 80);
        let is_there = |way: &ChallengeWay| match way {
            ChallengeWay::TlsAlpn01 => !name.is_wildcard() && !settings.listen.is_empty(),
            ChallengeWay::Http01 => !name.is_wildcard() && has_plain,
            ChallengeWay::Dns01 => self.answers.dns.is_some(),
        };
        self.acme.challenges.iter().copied().filter(is_there).collect()
    }

    /// The HTTP client for a directory, whose connections are kept between attempts.
    pub(super) async fn client(&self, index: usize, directory: &DirectorySettings) -> Result<Fetch, Fault> {
        if let Some(client) = self.clients[index].lock().clone() {
            return Ok(client);
        }
        let root = directory.root.clone();
        let made = off_thread(move || fetch_with(root.as_deref())).await?;
        let made = made.map_err(|text| Fault::new(FaultKind::DirectoryUnreachable, text))?;
        Ok(self.clients[index].lock().insert(made).clone())
    }
}

/// What an authority calls a certificate of its own (RFC 9773, section 4.1).
pub(super) fn identifier(kept: &Kept) -> Option<CertificateIdentifier<'static>> {
    let leaf = kept.served.key.cert.first()?;
    CertificateIdentifier::try_from(leaf).ok().map(CertificateIdentifier::into_owned)
}

fn no_way(name: &CertName) -> Fault {
    let text = if name.is_wildcard() {
        format!(
            "`{name}` can be proved through the DNS only; set one of the ways under `[dns]`, and leave `dns-01` in `acme.challenges`"
        )
    } else {
        format!(
            "no way to prove `{name}` is left; name one in `acme.challenges` that is set up: `tls-alpn-01` needs `listen`, `http-01` needs `plain.http`, `dns-01` needs `[dns]`"
        )
    };
    Fault::new(FaultKind::NoWay, text)
}

/// One fault of several: the first says what kind it is, the soonest when to try again.
fn together(faults: Vec<Fault>) -> Fault {
    let soonest = faults.iter().map(|fault| fault.retry_after).min().flatten();
    let texts: Arc<[String]> = faults.iter().map(|fault| fault.text.clone()).collect();
    let kind = faults.first().map_or(FaultKind::NoWay, |fault| fault.kind);
    Fault { kind, text: texts.join("; and "), retry_after: soonest }
}
