//! One attempt to get a certificate: one directory after the other, and at each one way to prove the
//! name after the other.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::CertificateIdentifier;
use time::OffsetDateTime;

use super::client::Asker;
use super::fault::{Asked, Fault, FaultKind, Scope, host};
use super::order::{Issued, Wish};
use super::places::Place;
use super::vault::{About, Kept, Status};
use super::{Inner, account, off_thread};
use crate::config::{ChallengeWay, DirectorySettings};
use crate::name::CertName;

impl Inner {
    /// Orders a certificate and keeps it. Notes in `status` which directories want to be left alone.
    /// The name must be held.
    pub(super) async fn attempt(
        &self,
        name: &CertName,
        before: Option<&Kept>,
        status: &mut Status,
        place: &Place,
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
                let left = Duration::from_secs(u64::try_from(until - now).unwrap_or(0));
                let text = format!("`{}` wants to be left alone for another {left:?}", host(&directory.url));
                faults.push(Fault { retry_after: Some(left), ..Fault::new(FaultKind::RateLimited, text) });
                continue;
            }
            let fault = match self.attempt_at(index, name, &ways, before, place).await {
                Ok(kept) => return Ok(kept),
                Err(fault) => fault,
            };
            if let (FaultKind::RateLimited, Some(wait)) = (fault.kind, fault.retry_after) {
                let wait = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
                status.limited.insert(directory.url.clone(), now.saturating_add(wait));
            }
            let (may_go_on, is_last) =
                (helps_elsewhere(fault.kind), index + 1 == self.acme.directories.len());
            if may_go_on && !is_last {
                tracing::warn!(%name, fault = fault.kind.word(), "{}; trying the next directory", fault.text);
            }
            faults.push(fault);
            if !may_go_on {
                break;
            }
        }
        Err(together(faults))
    }

    async fn attempt_at(
        &self,
        index: usize,
        name: &CertName,
        ways: &[ChallengeWay],
        before: Option<&Kept>,
        place: &Place,
    ) -> Result<Kept, Fault> {
        let directory = &self.acme.directories[index];
        let door = &self.doors[index];
        if let Some(fault) = door.is_closed() {
            return Err(fault);
        }
        let asker = Asker::new(door.client(directory).await.map_err(|fault| door.close(fault))?);
        let shown = name.to_string();
        let asked = Asked {
            directory: &directory.url,
            name: &shown,
            email: &self.acme.email,
            profile: self.acme.profile.as_deref(),
            way: None,
        };
        let account = account::open(&self.vault, &self.acme, directory, &asker, asked, door).await?;
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
                place,
                asked: Asked { way: Some(way), ..asked },
            };
            // Boxed, because an order is large, and most of the time there is none.
            let fault = match Box::pin(wish.order()).await {
                Ok(issued) => return self.take(name, directory, issued).await,
                Err(fault) => door.close(fault),
            };
            if fault.kind == FaultKind::NoAccount {
                account::forget(&self.vault, directory, account.id()).await?;
            }
            if fault.kind.scope() != Scope::Way {
                return Err(Fault { proofs: proofs_of(&faults).saturating_add(fault.proofs), ..fault });
            }
            if let Some(next) = ways.get(number + 1) {
                tracing::warn!(%name, %way, fault = fault.kind.word(), "{}; trying {next} next", fault.text);
            }
            faults.push(fault);
        }
        Err(together(faults))
    }

    /// Keeps a certificate, if it is what was ordered.
    async fn take(
        &self,
        name: &CertName,
        directory: &DirectorySettings,
        issued: Issued,
    ) -> Result<Kept, Fault> {
        let about = About {
            name: name.to_string(),
            directory: directory.url.clone(),
            way: issued.way,
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
        self.acme.challenges.iter().copied().filter(|way| self.settings.proves(name, *way)).collect()
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
            "no way to prove `{name}` is left; name one in `acme.challenges` that is set up: `tls-alpn-01` needs `listen`, `http-01` needs port 80 in `listen`, `dns-01` needs a way under `[dns]`"
        )
    };
    Fault::new(FaultKind::NoWay, text)
}

fn proofs_of(faults: &[Fault]) -> u32 {
    faults.iter().fold(0, |sum, fault| sum.saturating_add(fault.proofs))
}

/// Whether another directory may do.
fn helps_elsewhere(kind: FaultKind) -> bool {
    kind.scope() == Scope::Directory || is_of_its_own(kind)
}

/// Whether a way fails at one authority for what another may do otherwise.
fn is_of_its_own(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::NoWay | FaultKind::NotValidated)
}

/// One fault of several: the first that others would find, too, says what kind it is; the soonest,
/// when to try again.
fn together(faults: Vec<Fault>) -> Fault {
    let soonest = faults.iter().map(|fault| fault.retry_after).min().flatten();
    let texts: Arc<[String]> = faults.iter().map(|fault| fault.text.clone()).collect();
    let telling = faults.iter().find(|fault| !is_of_its_own(fault.kind)).or(faults.first());
    let kind = telling.map_or(FaultKind::NoWay, |fault| fault.kind);
    let proofs = proofs_of(&faults);
    Fault { retry_after: soonest, proofs, ..Fault::new(kind, texts.join("; and ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_authority_is_asked_when_no_way_was_refused_for_what_it_would_find_too() {
        let all = |kinds: &[FaultKind]| {
            let fault = |kind: &FaultKind| Fault { proofs: 1, ..Fault::new(*kind, kind.word()) };
            together(kinds.iter().map(fault).collect())
        };
        use FaultKind::{NoWay, NotValidated, Unreachable};
        for (kinds, elsewhere) in [
            (&[NoWay][..], true),
            (&[NotValidated, NoWay], true),
            (&[NoWay, Unreachable], false),
            (&[Unreachable], false),
        ] {
            let fault = all(kinds);
            assert_eq!((helps_elsewhere(fault.kind), fault.proofs as usize), (elsewhere, kinds.len()));
        }
        assert_eq!(all(&[NoWay, Unreachable]).text, "no-way; and unreachable");
    }
}
