//! One name's certificate over the years: when it is due, when a failed attempt is made again, and
//! what is remembered of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use instant_acme::{Account, Error};
use rustls::pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::attempt::identifier;
use super::client::Asker;
use super::fault::{Fault, FaultKind};
use super::vault::{FaultNote, Kept, Status, Window};
use super::{Inner, account, off_thread, times};
use crate::certs::Served;
use crate::name::CertName;

/// The longest sleep: clocks are set, machines sleep, and other processes renew.
const NAP_MAX: Duration = Duration::from_secs(60 * 60);
/// The shortest pause between two attempts.
const NAP_MIN: Duration = Duration::from_millis(500);
/// Pause between two looks whether another process still orders.
const NAP_LOCKED: Duration = Duration::from_secs(1);

/// What is known of a name's certificate while the gateway runs.
#[derive(Clone, Debug, Default)]
pub(super) struct LineState {
    pub(super) served: Option<Arc<Served>>,
    /// Why there is none, or no newer one.
    pub(super) fault: Option<FaultNote>,
}

/// One name, and the task that keeps its certificate.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: CertName,
    pub(super) state: watch::Sender<LineState>,
    wake: Notify,
    at_once: AtomicBool,
    /// Whether anybody wants the certificate; `None`: the configuration does.
    wanted: Option<Wanted>,
}

/// Asks whether anybody wants a certificate.
pub(super) struct Wanted(Box<dyn Fn() -> bool + Send + Sync>);

impl Wanted {
    pub(super) fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Box::new(ask))
    }
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wanted")
    }
}

impl Line {
    pub(super) fn new(name: CertName, wanted: Option<Wanted>) -> Self {
        let (state, wake) = (watch::Sender::default(), Notify::new());
        Self { name, state, wake, at_once: AtomicBool::new(false), wanted }
    }

    fn is_wanted(&self) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.0())
    }

    /// Has it renewed now.
    pub(super) fn renew(&self) {
        self.at_once.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }
}

impl Inner {
    /// Keeps a name's certificate until the task is cut, or nobody wants it any more.
    pub(super) async fn keep(&self, line: &Line) {
        loop {
            let next = match Box::pin(self.step(line)).await {
                Ok(Some(next)) => next,
                Ok(None) => return self.give_up(line),
                Err(fault) => {
                    tracing::error!(name = %line.name, fault = fault.kind.word(), "{}", fault.text);
                    self.tell(line, &fault);
                    OffsetDateTime::now_utc() + times::back_off(fault.kind, 1, times::chance())
                }
            };
            let left = (next - OffsetDateTime::now_utc()).try_into().unwrap_or(Duration::ZERO);
            tokio::select! {
                () = tokio::time::sleep(left.clamp(NAP_MIN, NAP_MAX)) => {}
                () = line.wake.notified() => {}
            }
        }
    }

    /// Forgets a name. What is on disk stays, for when somebody asks again.
    fn give_up(&self, line: &Line) {
        tracing::info!(name = %line.name, "nothing is offered under the name any more; its certificate is not renewed");
        self.lines.lock().remove(&line.name);
        self.store.remove(&[line.name.to_string()]);
        let text = "nothing is offered under this name any more";
        self.tell(line, &Fault::new(FaultKind::Local, text));
    }

    /// Does what is due, and says when to look again; `None` when there is no more to do.
    async fn step(&self, line: &Line) -> Result<Option<OffsetDateTime>, Fault> {
        let name = &line.name;
        let now = OffsetDateTime::now_utc();
        if self.store.files_cover(&name.to_string()) {
            return Ok(Some(now + NAP_MAX));
        }
        let (kept, mut status) = self.look(name).await?;
        if let Some(kept) = &kept {
            self.show(line, kept);
        }
        if line.at_once.load(Ordering::Relaxed) {
            status = Status { renew_at: Some(now), ..Status::default() };
        } else if let Some(kept) = &kept {
            self.ask_window(name, kept, &mut status).await?;
        }
        let due = due(kept.as_ref(), &status);
        let retry = status.retry_at.filter(|_| status.settings == self.mark).unwrap_or(due);
        if due.max(retry) > now {
            if let Some(fault) = status.fault.clone() {
                line.state.send_modify(|state| state.fault = Some(fault));
            }
            let window = status.ask_at.filter(|_| kept.is_some()).unwrap_or(due);
            return Ok(Some(due.max(retry).min(window.max(retry))));
        }
        if !line.is_wanted() {
            return Ok(None);
        }
        let Ok(_slot) = self.slots.acquire().await else { return Ok(Some(now + NAP_MAX)) };
        let (vault, locked) = (self.vault.clone(), name.clone());
        let Some(_lock) = off_thread(move || vault.lock(&locked)).await?? else {
            // Not waited for here, where others wait for the slot.
            tracing::debug!(%name, "another process is ordering it");
            return Ok(Some(now + NAP_LOCKED));
        };
        // Another process may have been quicker.
        let (newer, newest_status) = self.look(name).await?;
        let is_newer = |newer: &Kept| kept.as_ref().is_none_or(|kept| !is_same(&kept.served, &newer.served));
        if newer.as_ref().is_some_and(is_newer) {
            return Ok(Some(now));
        }
        if !line.at_once.swap(false, Ordering::Relaxed) {
            status.limited = newest_status.limited;
        }
        self.renew(line, kept.as_ref(), status).await.map(Some)
    }

    /// Makes an attempt, and writes down how it went.
    async fn renew(
        &self,
        line: &Line,
        kept: Option<&Kept>,
        mut status: Status,
    ) -> Result<OffsetDateTime, Fault> {
        let name = &line.name;
        tracing::info!(%name, renewal = kept.is_some(), "ordering a certificate");
        let outcome = self.attempt(name, kept, &mut status).await;
        let now = OffsetDateTime::now_utc();
        status.settings.clone_from(&self.mark);
        match outcome {
            Ok(kept) => {
                let served = &kept.served;
                let renew_at = times::by_lifetime(served.not_before, served.not_after, times::chance());
                let Status { limited, settings, .. } = status;
                let status = Status { renew_at: Some(renew_at), limited, settings, ..Status::default() };
                self.write(name, status).await?;
                self.show(line, &kept);
                let (way, issuer) = (&kept.about.way, &served.issuer);
                tracing::info!(
                    %name, way, issuer, not_after = %served.not_after, %renew_at, "a certificate is there"
                );
                // Its window is asked for right away.
                Ok(now)
            }
            Err(fault) => {
                status.failures = status.failures.saturating_add(1);
                let failures = status.failures;
                let pause = times::back_off(fault.kind, failures, times::chance());
                let retry_at = now + fault.retry_after.unwrap_or_default().max(pause);
                status.retry_at = Some(retry_at);
                status.fault = Some(note(&fault, now));
                self.write(name, status).await?;
                self.tell(line, &fault);
                let text = &fault.text;
                tracing::warn!(%name, fault = fault.kind.word(), failures, %retry_at, "no certificate: {text}");
                Ok(retry_at)
            }
        }
    }

    async fn look(&self, name: &CertName) -> Result<(Option<Kept>, Status), Fault> {
        let (vault, name) = (self.vault.clone(), name.clone());
        off_thread(move || Ok((vault.load(&name)?, vault.status(&name)))).await?
    }

    async fn write(&self, name: &CertName, status: Status) -> Result<(), Fault> {
        let (vault, name) = (self.vault.clone(), name.clone());
        Ok(off_thread(move || vault.set_status(&name, &status)).await??)
    }

    fn show(&self, line: &Line, kept: &Kept) {
        let is_new = line.state.borrow().served.as_ref().is_none_or(|old| !is_same(old, &kept.served));
        if is_new {
            self.store.put(kept.served.clone());
            line.state.send_replace(LineState { served: Some(kept.served.clone()), fault: None });
        }
    }

    fn tell(&self, line: &Line, fault: &Fault) {
        let note = note(fault, OffsetDateTime::now_utc());
        line.state.send_modify(|state| state.fault = Some(note));
    }

    /// Asks the authority when it wants the certificate renewed, if that is due (RFC 9773).
    async fn ask_window(&self, name: &CertName, kept: &Kept, status: &mut Status) -> Result<(), Fault> {
        let now = OffsetDateTime::now_utc();
        let served = &kept.served;
        if status.ask_at.is_some_and(|at| at > now) {
            return Ok(());
        }
        let (window, wait) = match self.window(kept).await {
            Ok((window, wait)) => (Some(window), wait),
            Err(error) => {
                tracing::debug!(%name, %error, "the authority does not say when to renew");
                (None, NAP_MAX)
            }
        };
        status.ask_at = Some(now + times::ask_again(wait, served.not_before, served.not_after));
        if let Some(window) = window.filter(|window| status.window.as_ref() != Some(window)) {
            let renew_at = times::by_window(&window, times::chance());
            tracing::info!(%name, start = %window.start, end = %window.end, renew_at = %renew_at, "the authority says when to renew");
            status.renew_at = Some(renew_at);
            status.window = Some(window);
        }
        self.write(name, status.clone()).await
    }

    async fn window(&self, kept: &Kept) -> Result<(Window, Duration), Error> {
        let url = &kept.about.directory;
        let directories = &self.acme.directories;
        let index = directories.iter().position(|directory| directory.url == *url);
        let index = index.ok_or(Error::Str("the certificate comes from elsewhere"))?;
        let identifier = identifier(kept).ok_or(Error::Str("the certificate cannot be named"))?;
        let failed = |fault: Fault| Error::Other(fault.text.into());
        let asker = Asker::new(self.client(index, &directories[index]).await.map_err(failed)?);
        let (vault, url) = (self.vault.clone(), url.clone());
        let file = off_thread(move || vault.account(&url)).await.map_err(failed)?;
        let file = file.ok_or(Error::Str("the account is gone"))?;
        let key = PrivatePkcs8KeyDer::from(account::decode(&file).map_err(failed)?);
        let builder = Account::builder_with_http(Box::new(asker));
        // The request is not signed: who asks does not matter.
        let account = builder.from_parts(file.id.unwrap_or_default(), key, file.directory).await?;
        let (info, wait) = account.renewal_info(&identifier).await?;
        Ok((Window { start: info.suggested_window.start, end: info.suggested_window.end }, wait))
    }
}

/// When a name's certificate is to be ordered.
fn due(kept: Option<&Kept>, status: &Status) -> OffsetDateTime {
    let Some(Kept { served, .. }) = kept else { return OffsetDateTime::UNIX_EPOCH };
    let by_lifetime = times::by_lifetime(served.not_before, served.not_after, 0.0);
    // A note may be of the certificate before this one; the end counts in any case.
    status.renew_at.filter(|at| *at < served.not_after).unwrap_or(by_lifetime)
}

fn is_same(one: &Served, other: &Served) -> bool {
    one.key.cert.first() == other.key.cert.first()
}

fn note(fault: &Fault, at: OffsetDateTime) -> FaultNote {
    FaultNote { at, word: fault.kind.word().to_owned(), text: fault.text.clone() }
}
