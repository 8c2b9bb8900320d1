//! One order, for one name, at one directory, by one way: key → order → proof → certificate.
//!
//! What has been reached is on disk before the next step, so that an order goes on after the process
//! has ended at any moment of it.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeHandle, ChallengeStatus, ChallengeType,
    Error, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use tokio::time::Instant;

use super::client::Asker;
use super::csr::{new_key, signing_request};
use super::fault::{Asked, Fault, FaultKind, host, is_of_hint};
use super::left::{self, Left};
use super::off_thread;
use super::places::Place;
use super::vault::{Pending, Vault};
use crate::certs::dns::{ChallengeRecord, DnsError, DnsProvider};
use crate::certs::{Answering, Challenges};
use crate::config::{ChallengeWay, KeyType};
use crate::name::CertName;

/// How long an authority may take to look whether a name is proved. Slow ones ask the DNS several
/// times, from several places.
const VALIDATION: Duration = Duration::from_secs(3 * 60);
/// First and longest pause between two looks at what it found.
const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long an authority may take to sign.
const SIGNING: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(200))
    .backoff(1.5)
    .timeout(Duration::from_secs(2 * 60));
/// How long an order may take to notice that its name is proved.
const READY: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(200))
    .backoff(1.5)
    .timeout(Duration::from_secs(30));

/// Failed proofs of orders that were cut off, after which it is not tried again at once.
const PROOFS_MAX: u32 = 3;

/// Where authorities find their answers.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) challenges: Challenges,
    pub(super) dns: Option<Arc<dyn DnsProvider>>,
}

/// What is ordered.
pub(super) struct Wish<'a> {
    pub(super) account: &'a Account,
    pub(super) asker: &'a Asker,
    pub(super) vault: &'a Vault,
    pub(super) answers: &'a Answers,
    pub(super) name: &'a CertName,
    pub(super) way: ChallengeWay,
    pub(super) key_type: KeyType,
    /// The certificate that this one comes in the place of (RFC 9773, section 5).
    pub(super) replaces: Option<CertificateIdentifier<'static>>,
    /// Spent when an order is begun.
    pub(super) place: &'a Place,
    /// For sentences; its `way` is this one.
    pub(super) asked: Asked<'a>,
}

/// What was got.
pub(super) struct Issued {
    /// PEM, leaf first.
    pub(super) chain: String,
    /// PEM.
    pub(super) key: String,
    /// How the name was proved.
    pub(super) way: String,
}

/// An answer that stands.
enum Standing {
    /// Until this is dropped.
    Here(#[expect(dead_code, reason = "held, not read")] Answering),
    /// Until the record is removed that is noted beside the order.
    InDns,
}

impl Wish<'_> {
    /// Orders. Dropping the future leaves an order that the next attempt goes on with.
    pub(super) async fn order(&self) -> Result<Issued, Fault> {
        let (unfinished, proofs) = self.resume().await?;
        if let Some((order, mut pending)) = unfinished {
            match self.go_on(order, &mut pending).await {
                Ok(issued) => return Ok(issued),
                Err(fault) if is_passing(fault.kind) => return Err(fault),
                // Another order would only have the same proof looked for once more.
                Err(fault) if pending.proofs > 0 => return Err(self.give_up(fault, &pending).await?),
                Err(fault) => {
                    tracing::debug!(name = %self.name, fault = fault.text, "an unfinished order is given up")
                }
            }
        }
        let (order, mut pending) = self.begin(proofs).await?;
        match self.go_on(order, &mut pending).await {
            Err(fault) if !is_passing(fault.kind) => Err(self.give_up(fault, &pending).await?),
            outcome => outcome,
        }
    }

    /// The order that was not finished, unless it was for another directory, or still has to be proved
    /// in another way; and how many proofs may have failed since the last outcome.
    async fn resume(&self) -> Result<(Option<(Order, Pending)>, u32), Fault> {
        let (vault, name) = (self.vault.clone(), self.name.clone());
        let Some(pending) = off_thread(move || vault.pending(&name)).await?? else { return Ok((None, 0)) };
        let resumed = self.resume_pending(pending).await?;
        if resumed.0.is_none() {
            self.clear().await?;
        }
        Ok(resumed)
    }

    async fn resume_pending(&self, pending: Pending) -> Result<(Option<(Order, Pending)>, u32), Fault> {
        if pending.directory != self.asked.directory || !is_https(&pending.url) {
            return Ok((None, 0));
        }
        let proofs = pending.proofs;
        let mut order = match persist!(self.account.order(pending.url.clone())) {
            Ok(order) => order,
            Err(error) => {
                let fault = self.fault(&error);
                return if is_passing(fault.kind) { Err(fault) } else { Ok((None, proofs)) };
            }
        };
        match order.state().status {
            // It may have failed while nobody was here to answer for the name; but not every time.
            OrderStatus::Invalid if proofs >= PROOFS_MAX => {
                let what = "refused the proofs of several orders that were cut off";
                let fault = self.plain(FaultKind::NotValidated, what);
                return Err(self.give_up(fault, &pending).await?);
            }
            OrderStatus::Invalid => return Ok((None, proofs)),
            OrderStatus::Pending if pending.way != self.way.word() => return Ok((None, proofs)),
            _ => {}
        }
        tracing::debug!(name = %self.name, url = pending.url, "going on with an unfinished order");
        Ok((Some((order, pending)), proofs))
    }

    async fn begin(&self, proofs: u32) -> Result<(Order, Pending), Fault> {
        let key_type = self.key_type;
        let key = off_thread(move || new_key(key_type).map(|key| key.serialize_pem())).await??;
        self.place.spend();
        // No way is tried yet: what is refused here is the account, or the name.
        let order = self.new_order().await.map_err(|error| self.fault_by(&error, None))?;
        if !is_https(order.url()) {
            return Err(self.plain(FaultKind::AuthorityFailed, "leads to a URL that is not https"));
        }
        let pending = Pending {
            directory: self.asked.directory.to_owned(),
            url: order.url().to_owned(),
            way: self.way.word().to_owned(),
            key,
            proofs,
            record: None,
        };
        self.keep(Some(&pending)).await?;
        Ok((order, pending))
    }

    /// Forgets an order that came to nothing, and notes what that took.
    async fn give_up(&self, fault: Fault, pending: &Pending) -> Result<Fault, Fault> {
        self.clear().await?;
        self.keep(None).await?;
        Ok(Fault { proofs: pending.proofs, ..fault })
    }

    async fn new_order(&self) -> Result<Order, Error> {
        let identifiers = [Identifier::Dns(self.name.to_string())];
        let mut wish = NewOrder::new(&identifiers);
        if let Some(profile) = self.asked.profile {
            wish = wish.profile(profile);
        }
        if let Some(replaced) = &self.replaces {
            let mut replacing = NewOrder::new(&identifiers).replaces(replaced.clone());
            if let Some(profile) = self.asked.profile {
                replacing = replacing.profile(profile);
            }
            match persist!(self.account.new_order(&replacing)) {
                // Only a hint, which not every authority takes, and none takes twice.
                Err(error) if is_of_hint(&error) => {
                    tracing::debug!(name = %self.name, %error, "ordering without a word of the certificate before");
                }
                outcome => return outcome,
            }
        }
        persist!(self.account.new_order(&wish))
    }

    async fn go_on(&self, mut order: Order, pending: &mut Pending) -> Result<Issued, Fault> {
        let proved = match order.state().status {
            OrderStatus::Pending => self.prove(&mut order, pending).await,
            _ => Ok(()),
        };
        // Also what a process left that ended in the midst.
        self.clear().await?;
        proved?;
        // They did not fail.
        pending.proofs = 0;
        let chain = self.finish(&mut order, pending).await.map_err(|error| self.fault(&error))?;
        Ok(Issued { chain, key: pending.key.clone(), way: pending.way.clone() })
    }

    /// Proves the name, unless the authority still knows that it leads here.
    async fn prove(&self, order: &mut Order, pending: &mut Pending) -> Result<(), Fault> {
        // Asks for what is not there yet; what is there is not asked for again.
        persist!(async {
            match order.authorizations().next().await {
                Some(Err(error)) => Err(error),
                _ => Ok(()),
            }
        })
        .map_err(|error| self.fault(&error))?;
        let Some(_standing) = self.answer(order, pending).await? else { return Ok(()) };
        self.wait_until_seen(order).await
    }

    /// Puts the answer where the authority looks, and tells it to. `None` when it need not look.
    async fn answer(&self, order: &mut Order, pending: &mut Pending) -> Result<Option<Standing>, Fault> {
        let mut authorizations = order.authorizations();
        let Some(Ok(mut authorization)) = authorizations.next().await else { return Err(self.no_proof()) };
        match authorization.status {
            AuthorizationStatus::Valid => return Ok(None),
            AuthorizationStatus::Pending => {}
            status => return Err(self.refused(&authorization.challenges, status)),
        }
        let kind = match self.way {
            ChallengeWay::TlsAlpn01 => ChallengeType::TlsAlpn01,
            ChallengeWay::Http01 => ChallengeType::Http01,
            ChallengeWay::Dns01 => ChallengeType::Dns01,
        };
        let Some(mut challenge) = authorization.challenge(kind) else {
            return Err(self.plain(FaultKind::NoWay, "does not offer this way for the name"));
        };
        let (key, challenges) = (challenge.key_authorization(), &self.answers.challenges);
        let standing = match self.way {
            ChallengeWay::TlsAlpn01 => {
                Standing::Here(challenges.answer_probe(self.name.host(), key.digest().as_ref())?)
            }
            ChallengeWay::Http01 => Standing::Here(challenges.answer_request(&challenge.token, key.as_str())),
            ChallengeWay::Dns01 => self.set_record(key.dns_value()).await?,
        };
        if challenge.status == ChallengeStatus::Pending
            && let Err(fault) = self.call(&mut challenge, pending).await
        {
            return Err(fault);
        }
        Ok(Some(standing))
    }

    /// Tells the authority to look, which counts from then on.
    async fn call(&self, challenge: &mut ChallengeHandle<'_>, pending: &mut Pending) -> Result<(), Fault> {
        pending.proofs = pending.proofs.saturating_add(1);
        let (vault, name, proofs) = (self.vault.clone(), self.name.clone(), pending.proofs);
        off_thread(move || vault.change_pending(&name, |pending| pending.proofs = proofs)).await??;
        persist!(challenge.set_ready()).map_err(|error| self.fault(&error))
    }

    /// Sets the record, which is noted before it can stand.
    async fn set_record(&self, value: String) -> Result<Standing, Fault> {
        let Some(dns) = &self.answers.dns else {
            return Err(Fault::new(
                FaultKind::NoWay,
                "no way to set records is there; set one under `[dns]`",
            ));
        };
        let record = ChallengeRecord { name: format!("_acme-challenge.{}", self.name.host()), value };
        let fault = |error: DnsError| Fault::new(FaultKind::DnsNotSet, error.to_string());
        let mut before = self.noted().await?.filter(|left| left.record() == record);
        if let Some(kept) = left::take_over(self.vault, &record).await? {
            left::note(self.vault, self.name, Some(kept.clone())).await?;
            before = Some(kept);
        }
        // Whatever has a memo is set already, and must not be set twice.
        if before.is_none_or(|left| left.memo.is_none()) {
            let ChallengeRecord { name, value } = record.clone();
            let left = Left { name, value, memo: None };
            left::note(self.vault, self.name, Some(left.clone())).await?;
            let memo = dns.set(&record).await.map_err(fault)?;
            left::note(self.vault, self.name, Some(Left { memo, ..left })).await?;
        }
        dns.seen(&record).await.map_err(fault)?;
        Ok(Standing::InDns)
    }

    /// Removes the record, if one stands.
    async fn clear(&self) -> Result<(), Fault> {
        if let (Some(left), Some(dns)) = (self.noted().await?, &self.answers.dns) {
            left::remove(&**dns, self.vault, self.name, &left).await;
        }
        Ok(())
    }

    async fn noted(&self) -> Result<Option<Left>, Fault> {
        let (vault, name) = (self.vault.clone(), self.name.clone());
        let pending = off_thread(move || vault.pending(&name)).await??;
        Ok(pending.and_then(|pending| pending.record))
    }

    async fn wait_until_seen(&self, order: &mut Order) -> Result<(), Fault> {
        let mut authorizations = order.authorizations();
        let Some(Ok(mut authorization)) = authorizations.next().await else { return Err(self.no_proof()) };
        let end = Instant::now() + VALIDATION;
        let mut pause = LOOKS.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = pause.mul_f32(1.5).min(LOOKS.1);
            persist!(async { authorization.refresh().await.map(drop) })
                .map_err(|error| self.fault(&error))?;
            match authorization.status {
                AuthorizationStatus::Valid => return Ok(()),
                AuthorizationStatus::Pending if Instant::now() < end => {}
                AuthorizationStatus::Pending => {
                    return Err(self.plain(
                        FaultKind::NotValidated,
                        "did not come to look in time; it is asked again later",
                    ));
                }
                status => return Err(self.refused(&authorization.challenges, status)),
            }
        }
    }

    async fn finish(&self, order: &mut Order, pending: &Pending) -> Result<String, Error> {
        if order.state().status == OrderStatus::Pending {
            persist!(async { order.refresh().await.map(drop) })?;
        }
        if order.state().status == OrderStatus::Pending {
            persist!(order.poll_ready(&READY))?;
        }
        if order.state().status == OrderStatus::Ready {
            let csr =
                signing_request(&pending.key, self.name).map_err(|error| Error::Other(Box::new(error)))?;
            persist!(order.finalize_csr(&csr))?;
        }
        persist!(order.poll_certificate(&SIGNING))
    }

    async fn keep(&self, pending: Option<&Pending>) -> Result<(), Fault> {
        let (vault, name, pending) = (self.vault.clone(), self.name.clone(), pending.cloned());
        Ok(off_thread(move || vault.set_pending(&name, pending.as_ref())).await??)
    }

    fn fault(&self, error: &Error) -> Fault {
        self.fault_by(error, Some(self.way))
    }

    fn fault_by(&self, error: &Error, way: Option<ChallengeWay>) -> Fault {
        let fault = Fault::of(error, Asked { way, ..self.asked });
        Fault { retry_after: fault.retry_after.or(self.asker.retry_after()), ..fault }
    }

    /// What the authority says of a proof that failed.
    fn refused(&self, challenges: &[instant_acme::Challenge], status: AuthorizationStatus) -> Fault {
        match challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            Some(problem) => Fault::of_problem(problem, self.asked),
            None => self.plain(FaultKind::NotValidated, &format!("does not say why the proof is {status:?}")),
        }
    }

    fn no_proof(&self) -> Fault {
        self.plain(FaultKind::AuthorityFailed, "asks for no proof that it could name")
    }

    fn plain(&self, kind: FaultKind, what: &str) -> Fault {
        Fault::new(kind, format!("`{}` {what} (`{}` by {})", host(self.asked.directory), self.name, self.way))
    }
}

fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

/// Whether the order itself is still good.
fn is_passing(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::DirectoryUnreachable
            | FaultKind::AuthorityFailed
            | FaultKind::RateLimited
            | FaultKind::Local
    )
}
