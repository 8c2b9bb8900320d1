//! One name's certificate over the years: when it is due, when a failed attempt is made again, and
//! what is remembered of it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::fault::{Fault, FaultKind};
use super::known::{Known, leaf};
use super::last::at_once;
use super::on_demand::NotNow;
use super::places::Place;
use super::vault::{FaultNote, Kept, Lock, Status};
use super::{Inner, mark, off_thread, times};
use crate::certs::Served;
use crate::name::CertName;
use crate::observe::shown_time;

/// The longest sleep: clocks are set, machines sleep, and other processes renew.
const NAP_MAX: Duration = Duration::from_secs(60 * 60);
/// The longest sleep after a fault: a file that it came from may be mended.
const NAP_FAILED: Duration = Duration::from_secs(60);
/// The shortest pause between two attempts.
const NAP_MIN: Duration = Duration::from_millis(500);
/// Pause between two looks whether another process still orders.
const NAP_LOCKED: Duration = Duration::from_secs(1);
/// How long an authority is left alone at most, unless it limits what is ordered.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// Who wants the certificate; `None`: the configuration does.
    wanted: Option<Box<dyn Wanting>>,
    /// Whether it was said that the operator's own has ended.
    told_of_end: AtomicBool,
}

/// Who wants a certificate that the configuration does not name.
pub(super) trait Wanting: Send + Sync + std::fmt::Debug {
    /// Whether it is still wanted.
    fn is_wanted(&self) -> bool;

    /// Leave to begin an order for it.
    ///
    /// # Errors
    /// When there may be none now.
    fn place(&self) -> Result<Place, NotNow>;
}

/// What follows a step.
enum Next {
    /// Another.
    At(OffsetDateTime),
    /// None any more, and why.
    Never(String),
}

impl Line {
    pub(super) fn new(name: CertName, wanted: Option<Box<dyn Wanting>>) -> Self {
        let (state, wake) = (watch::Sender::default(), Notify::new());
        let (at_once, told_of_end) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { name, state, wake, at_once, wanted, told_of_end }
    }

    fn is_wanted(&self) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.is_wanted())
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
        let mut files = self.store.files_changed();
        let mut failures = 0;
        loop {
            let next = match caught(Box::pin(self.step(line))).await {
                Ok(Next::At(next)) => {
                    failures = 0;
                    next
                }
                Ok(Next::Never(why)) => return self.give_up(line, &why),
                Err(fault) => {
                    failures += 1;
                    tracing::error!(name = %line.name, fault = fault.kind.word(), "{}", fault.text);
                    let now = OffsetDateTime::now_utc();
                    self.tell(line, note(&fault, now));
                    now + times::back_off(fault.kind, failures, 0, times::chance())
                }
            };
            let left = (next - OffsetDateTime::now_utc()).try_into().unwrap_or(Duration::ZERO);
            let longest = if line.state.borrow().fault.is_some() { NAP_FAILED } else { NAP_MAX };
            tokio::select! {
                () = tokio::time::sleep(left.clamp(NAP_MIN, longest)) => {}
                () = line.wake.notified() => {}
                // Those that covered the name may be gone. The store says so as long as it lives.
                _ = files.changed() => {}
            }
        }
    }

    /// Forgets a name. What is on disk stays, for when somebody asks again.
    fn give_up(&self, line: &Line, why: &str) {
        tracing::info!(name = %line.name, "no certificate is ordered or renewed: {why}");
        self.lines.lock().remove(&line.name);
        self.store.remove(&line.name);
        self.tell(line, note(&Fault::new(FaultKind::Local, why), OffsetDateTime::now_utc()));
    }

    /// Does what is due, and says when to look again.
    async fn step(&self, line: &Line) -> Result<Next, Fault> {
        let name = &line.name;
        let now = OffsetDateTime::now_utc();
        if let Some(file) = self.store.file_for(name) {
            if !file.has_ended() {
                // Whoever asked is told by who takes requests; nothing is left to be done later.
                line.at_once.store(false, Ordering::Relaxed);
                line.told_of_end.store(false, Ordering::Relaxed);
                return Ok(Next::At(file.not_after));
            }
            if !line.told_of_end.swap(true, Ordering::Relaxed) {
                tracing::warn!(%name, not_after = shown_time(file.not_after), "the certificate in `tls.certificates` for this name has ended; one is ordered, and shown until there is a newer file");
            }
        }
        let (known, mark) = self.look(line).await?;
        let orders = line.at_once.load(Ordering::Relaxed) || known.order_at(&mark) <= now;
        if !orders && known.next(&mark) > now && known.is_linked {
            self.remind(line, &known, &mark);
            return Ok(Next::At(known.next(&mark)));
        }
        if orders && !line.is_wanted() {
            return Ok(Next::Never("nothing is offered under this name any more".to_owned()));
        }
        let turn = if orders { Some(self.turns.take(known.status.failures).await) } else { None };
        let (vault, locked) = (self.vault.clone(), name.clone());
        let Some(lock) = off_thread(move || vault.lock(&locked)).await?? else {
            // Not waited for here, where others wait for the turn.
            tracing::debug!(%name, "another process is ordering it");
            return Ok(Next::At(now + NAP_LOCKED));
        };
        self.step_held(line, lock, turn.is_some()).await
    }

    /// Does what is due while the name is held.
    async fn step_held(&self, line: &Line, lock: Lock, may_order: bool) -> Result<Next, Fault> {
        let name = &line.name;
        // Another process may have been quicker, and the wait long.
        let (mut known, mark) = self.look(line).await?;
        let (vault, linked) = (self.vault.clone(), name.clone());
        let unlinked = known.kept.clone().filter(|_| !known.is_linked);
        let _lock = off_thread(move || -> Result<Lock, Fault> {
            if let Some(kept) = &unlinked {
                vault.link(&linked, kept, &lock)?;
            }
            Ok(lock)
        })
        .await??;
        let is_forced = may_order && line.at_once.swap(false, Ordering::Relaxed);
        if is_forced {
            known.status = Status { leaf: known.status.leaf, ..Status::default() };
        } else if known.ask_at().is_some_and(|at| at <= OffsetDateTime::now_utc()) {
            self.ask_window(name, &mut known).await?;
        }
        let is_due = is_forced || known.order_at(&mark) <= OffsetDateTime::now_utc();
        if !is_due || !may_order {
            return Ok(Next::At(known.next(&mark)));
        }
        // Only new ones count.
        let place = match line.wanted.as_ref().filter(|_| known.kept.is_none()) {
            Some(wanted) => wanted.place(),
            None => Ok(Place::default()),
        };
        match place {
            Ok(place) => self.renew(line, known, mark, &place).await.map(Next::At),
            Err(not_now) => Ok(Next::Never(not_now.to_string())),
        }
    }

    /// Makes an attempt, and writes down how it went.
    async fn renew(
        &self,
        line: &Line,
        known: Known,
        mark: String,
        place: &Place,
    ) -> Result<OffsetDateTime, Fault> {
        let (name, Known { kept: before, mut status, .. }) = (&line.name, known);
        let begun_at = OffsetDateTime::now_utc();
        status.settings = mark;
        status.begun = status.begun.saturating_add(1);
        status.retry_at = Some(begun_at + times::cut_off(status.begun, times::chance()));
        // What cannot be written afterwards is not begun.
        self.write(name, status.clone()).await?;
        tracing::info!(%name, renewal = before.is_some(), "ordering a certificate");
        let outcome = self.attempt(name, before.as_ref(), &mut status, place).await;
        status.begun = 0;
        let kept = match outcome {
            Ok(kept) => kept,
            Err(fault) => return self.note_failure(line, before.as_ref(), status, &fault).await,
        };
        let served = &kept.served;
        let renew_at = times::by_lifetime(served.not_before, served.not_after, times::chance());
        let Status { limited, settings, .. } = status;
        let renewal = Some(renew_at);
        let status = Status { leaf: leaf(&kept), renew_at: renewal, limited, settings, ..Status::default() };
        self.show(line, &kept);
        let is_due = renew_at <= begun_at;
        // Noted with the fault otherwise.
        let written = if is_due { Ok(()) } else { self.write(name, status.clone()).await };
        let (way, issuer) = (&kept.about.way, &served.issuer);
        tracing::info!(%name, way, issuer, not_after = shown_time(served.not_after), renew_at = shown_time(renew_at), "a certificate is there");
        if is_due {
            return self.note_failure(line, Some(&kept), status, &wrong_clock(served, begun_at)).await;
        }
        written?;
        // Its window is asked for right away.
        Ok(begun_at)
    }

    /// Writes down why there is no certificate, or no newer one, and says when it is tried again.
    async fn note_failure(
        &self,
        line: &Line,
        kept: Option<&Kept>,
        mut status: Status,
        fault: &Fault,
    ) -> Result<OffsetDateTime, Fault> {
        let (name, now) = (&line.name, OffsetDateTime::now_utc());
        status.failures = status.failures.saturating_add(1);
        let failures = status.failures;
        let mut pause = times::back_off(fault.kind, failures, fault.proofs, times::chance());
        if let Some(Kept { served, .. }) = kept {
            pause = times::within(pause, served.not_before, served.not_after, now, fault.proofs);
        }
        let wanted = fault.retry_after.unwrap_or_default();
        let is_limit = fault.kind == FaultKind::RateLimited;
        let wanted = if is_limit { wanted } else { wanted.min(RETRY_AFTER_MAX) };
        let retry_at = now + pause.max(times::spread(wanted, times::chance()));
        let note = note(fault, now);
        status.retry_at = Some(retry_at);
        status.fault = Some(note.clone());
        let written = self.write(name, status).await;
        let (text, word) = (&fault.text, fault.kind.word());
        let hint = at_once(name, word, "when mended", self.settings.file.as_deref());
        tracing::warn!(%name, fault = word, failures, retry_at = shown_time(retry_at), "no certificate: {text}{hint}");
        self.tell(line, note);
        written.map(|()| retry_at)
    }

    /// What is known of a name now, and what stands for the settings as they and their files are. What
    /// is kept is shown.
    async fn look(&self, line: &Line) -> Result<(Known, String), Fault> {
        let (vault, name, settings) = (self.vault.clone(), line.name.clone(), self.settings.clone());
        let known = off_thread(move || -> Result<(Known, String), Fault> {
            let (kept, status) = (vault.load(&name)?, vault.known_status(&name)?);
            let is_linked = kept.as_ref().is_none_or(|kept| vault.is_linked(&name, kept));
            Ok((Known::new(kept, status, is_linked, OffsetDateTime::now_utc()), mark::of(&settings)))
        });
        let (known, mark) = known.await??;
        if let Some(kept) = &known.kept {
            self.show(line, kept);
        }
        Ok((known, mark))
    }

    pub(super) async fn write(&self, name: &CertName, status: Status) -> Result<(), Fault> {
        let (vault, name) = (self.vault.clone(), name.clone());
        Ok(off_thread(move || vault.set_status(&name, &status)).await??)
    }

    fn show(&self, line: &Line, kept: &Kept) {
        let is_new = line.state.borrow().served.as_ref().is_none_or(|old| !is_same(old, &kept.served));
        if is_new {
            self.store.put(&line.name, kept.served.clone());
            line.state.send_replace(LineState { served: Some(kept.served.clone()), fault: None });
        }
    }

    fn tell(&self, line: &Line, fault: FaultNote) {
        line.state.send_modify(|state| state.fault = Some(fault));
    }

    /// Tells of a fault from before this process.
    fn remind(&self, line: &Line, known: &Known, mark: &str) {
        let Some(fault) = known.status.fault.clone() else { return };
        if line.state.borrow().fault.is_some() {
            return;
        }
        let (name, word, retry_at) = (&line.name, &fault.word, known.order_at(mark));
        tracing::info!(%name, fault = word, retry_at = shown_time(retry_at), "not ordered again before its time: {}", fault.text);
        self.tell(line, fault);
    }
}

/// What comes of a step: a panic in it must not end what has to go on for years.
async fn caught<T>(step: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    AssertUnwindSafe(step).catch_unwind().await.unwrap_or_else(|_| {
        let text = "the program came to a halt amid an order; report what stands in the log as a bug";
        Err(Fault::new(FaultKind::Local, text))
    })
}

fn wrong_clock(served: &Served, now: OffsetDateTime) -> Fault {
    let text = format!(
        "the new certificate runs from {} to {}, and by this machine's clock ({}) it is due again already; set the clock right",
        shown_time(served.not_before),
        shown_time(served.not_after),
        shown_time(now)
    );
    Fault::new(FaultKind::WrongClock, text)
}

fn is_same(one: &Served, other: &Served) -> bool {
    one.key.cert.first() == other.key.cert.first()
}

fn note(fault: &Fault, at: OffsetDateTime) -> FaultNote {
    FaultNote { at, word: fault.kind.word().to_owned(), text: fault.text.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_fault() {
        let step = async {
            tokio::task::yield_now().await;
            assert!(OffsetDateTime::now_utc() < OffsetDateTime::UNIX_EPOCH, "on purpose");
            Ok(())
        };
        assert_eq!(caught(step).await.expect_err("it panics").kind, FaultKind::Local);
        assert_eq!(caught(async { Ok(1) }).await, Ok(1));
    }
}
