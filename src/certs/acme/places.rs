//! How many orders on demand may be begun in a minute and in a week, kept over restarts. Holding is
//! owning: a [`Place`] that comes to no order is given back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use time::{Duration, OffsetDateTime};

use super::notes::{VaultError, read, write};
use super::on_demand::NotNow;
use super::{Vault, off_thread};
use crate::config::OnDemandSettings;
use crate::net::Tasks;

/// When orders were begun, in the vault.
const BEGUN: &str = "on-demand.json";

/// The places. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: OnDemandSettings,
    /// When orders were begun in the last week, and places taken.
    begun: Mutex<VecDeque<OffsetDateTime>>,
    vault: Vault,
    tasks: Tasks,
    writing: tokio::sync::Mutex<()>,
}

/// Leave to begin an order, for as long as this is held. Whose order is begun keeps it.
#[derive(Debug, Default)]
pub(super) struct Place(Option<Taken>);

#[derive(Debug)]
struct Taken {
    from: Places,
    at: OffsetDateTime,
    /// Whether the order was begun. Whoever wants the certificate shares it, and pays once.
    is_spent: Arc<AtomicBool>,
}

impl Places {
    /// Reads when orders were begun: not for a busy task.
    pub(super) fn open(bounds: OnDemandSettings, vault: &Vault, tasks: &Tasks) -> Self {
        Self(Arc::new(Inner {
            bounds,
            begun: Mutex::new(vault.begun().into()),
            vault: vault.clone(),
            tasks: tasks.clone(),
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// Whether there is a place now.
    pub(super) fn look(&self) -> Result<(), NotNow> {
        room(&mut self.0.begun.lock(), self.0.bounds, OffsetDateTime::now_utc())
    }

    /// Takes a place; none is needed once `is_spent`.
    pub(super) fn take(&self, is_spent: &Arc<AtomicBool>) -> Result<Place, NotNow> {
        if is_spent.load(Ordering::Relaxed) {
            return Ok(Place::default());
        }
        let (mut begun, at) = (self.0.begun.lock(), OffsetDateTime::now_utc());
        room(&mut begun, self.0.bounds, at)?;
        begun.push_back(at);
        Ok(Place(Some(Taken { from: self.clone(), at, is_spent: is_spent.clone() })))
    }

    /// Writes down when orders were begun, so that a restart does not forget it.
    fn remember(&self) {
        let inner = self.0.clone();
        self.0.tasks.spawn("orders on demand", async move {
            let _turn = inner.writing.lock().await;
            let begun: Vec<_> = inner.begun.lock().iter().copied().collect();
            let vault = inner.vault.clone();
            if let Ok(Err(error)) = off_thread(move || vault.set_begun(&begun)).await {
                tracing::error!(%error, "orders on demand are not remembered");
            }
        });
    }
}

impl Place {
    /// The order begins: from then on it counts.
    pub(super) fn spend(&self) {
        let Some(taken) = &self.0 else { return };
        if !taken.is_spent.swap(true, Ordering::Relaxed) {
            taken.from.remember();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.is_spent.load(Ordering::Relaxed) {
            let mut begun = self.from.0.begun.lock();
            if let Some(at) = begun.iter().position(|at| *at == self.at) {
                begun.remove(at);
            }
        }
    }
}

impl Vault {
    /// When orders on demand were begun.
    fn begun(&self) -> Vec<OffsetDateTime> {
        let seconds: Vec<i64> = read(&self.at(BEGUN)).unwrap_or_default();
        seconds.into_iter().filter_map(|at| OffsetDateTime::from_unix_timestamp(at).ok()).collect()
    }

    fn set_begun(&self, begun: &[OffsetDateTime]) -> Result<(), VaultError> {
        let seconds: Vec<i64> = begun.iter().map(|at| at.unix_timestamp()).collect();
        write(&self.at(BEGUN), &seconds)
    }
}

/// Whether one more order may be begun.
fn room(
    begun: &mut VecDeque<OffsetDateTime>,
    bounds: OnDemandSettings,
    now: OffsetDateTime,
) -> Result<(), NotNow> {
    // What lies in the future was written when the clock was wrong.
    begun.retain(|at| now - *at < Duration::WEEK && *at <= now);
    let limited = |count: usize, span, setting, oldest: OffsetDateTime, length: Duration| {
        Err(NotNow::Limited { count, span, setting, until: oldest + length })
    };
    let (minute, week) = (bounds.per_minute, bounds.per_week);
    if begun.len() >= week {
        let oldest = begun[begun.len() - week];
        return limited(week, "week", "acme.on_demand_per_week", oldest, Duration::WEEK);
    }
    let lately = begun.iter().filter(|at| now - **at < Duration::MINUTE).count();
    if lately >= minute {
        let oldest = begun[begun.len() - minute];
        return limited(minute, "minute", "acme.on_demand_per_minute", oldest, Duration::MINUTE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_bounded_by_minute_and_week() {
        let bounds = OnDemandSettings { per_minute: 2, per_week: 3 };
        let mut begun = VecDeque::new();
        let start = OffsetDateTime::UNIX_EPOCH + Duration::DAY;
        let mut at = |seconds: i64| {
            let now = start + Duration::seconds(seconds);
            room(&mut begun, bounds, now).map(|()| begun.push_back(now))
        };
        assert!(at(0).is_ok() && at(10).is_ok());
        let minute = at(20).expect_err("the third in a minute");
        assert!(
            minute.to_string().contains("2 a minute are the most (`acme.on_demand_per_minute`)"),
            "{minute}"
        );
        assert!(at(61).is_ok());
        let Err(NotNow::Limited { until, span, .. }) = at(200) else { panic!("the fourth in a week") };
        assert_eq!((until, span), (start + Duration::WEEK, "week"));
        assert!(at(7 * 86_400 + 1).is_ok());
        // A clock that was years ahead holds nothing up.
        let mut wrong: VecDeque<_> = [start + Duration::days(3650); 3].into();
        assert!(room(&mut wrong, bounds, start).is_ok());
    }

    #[tokio::test]
    async fn a_place_that_comes_to_no_order_is_given_back_and_one_order_is_paid_once() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (vault, tasks) = (Vault::open(dir.path()).expect("made"), Tasks::new());
        let places = Places::open(OnDemandSettings { per_minute: 1, per_week: 1 }, &vault, &tasks);
        let (one, other) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let place = places.take(&one).expect("free");
        assert!(places.look().is_err() && places.take(&other).is_err(), "it is held");
        drop(place);
        let place = places.take(&one).expect("given back");
        place.spend();
        drop(place);
        assert!(places.take(&other).is_err(), "it was spent");
        places.take(&one).expect("the same order again").spend();
        tasks.begin_drain();
        tasks.all_ended().await;
        assert_eq!(vault.begun().len(), 1);
    }
}
