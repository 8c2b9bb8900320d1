//! Certificates for hosts that no configured name covers, ordered when somebody first asks for one:
//! previews where there is no wildcard, and hosts of routes that `acme.names` leaves out.
//!
//! Only for hosts that lead somewhere now, or whoever knocks could have orders made without end; and
//! never more of them a minute and a week than the settings say, because authorities have bounds of
//! their own, which nobody wants to use up by accident. However many knock, there is one order.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use time::{Duration, OffsetDateTime};

use super::keeper::Wanted;
use super::notes::{VaultError, read, write};
use super::{Acme, FaultNote, Vault, off_thread};
use crate::certs::Served;
use crate::config::{OnDemandSettings, Settings};
use crate::name::{CertName, HostName, TunnelName};
use crate::registry::Registry;

/// When orders were begun, in the vault.
const BEGUN: &str = "on-demand.json";

/// Orders certificates for hosts as they are asked for. Clones share one.
#[derive(Clone, Debug)]
pub struct OnDemand(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    acme: Acme,
    registry: Registry,
    base: HostName,
    routes: HashSet<HostName>,
    /// `None`: only configured names are waited for.
    bounds: Option<OnDemandSettings>,
    /// When orders were begun in the last week.
    begun: Mutex<VecDeque<OffsetDateTime>>,
    writing: tokio::sync::Mutex<()>,
}

/// Why there is no certificate now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// Nothing is offered under the host.
    #[error("no certificate here covers the name asked for, and nothing is offered under it")]
    Stranger,
    /// As many were ordered as may be.
    #[error(
        "no certificate is ordered for the name asked for before {until}: {count} a {span} are the most (`{setting}`)"
    )]
    Limited {
        /// How many may be ordered.
        count: usize,
        /// In which time.
        span: &'static str,
        /// The setting that says so.
        setting: &'static str,
        /// When one may be again.
        until: OffsetDateTime,
    },
    /// The order failed.
    #[error("there is no certificate for the name asked for yet: {0}")]
    Failed(String),
}

impl From<FaultNote> for NotNow {
    fn from(fault: FaultNote) -> Self {
        Self::Failed(fault.text)
    }
}

impl OnDemand {
    /// Prepares to order for hosts of tunnels and routes. Reads a file: not for a busy task.
    #[must_use]
    pub fn new(acme: &Acme, settings: &Settings, registry: &Registry) -> Self {
        Self(Arc::new(Inner {
            begun: Mutex::new(acme.vault().begun().into()),
            acme: acme.clone(),
            registry: registry.clone(),
            base: settings.base.host.clone(),
            routes: settings.routes.iter().map(|route| route.host.clone()).collect(),
            bounds: acme.settings().on_demand,
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// A certificate for a host: of a configured name if one covers it, else its own. May take
    /// minutes: the deadline is the caller's. Cancel safe: the order goes on.
    ///
    /// # Errors
    /// Why there is none now.
    pub async fn obtain(&self, host: &HostName) -> Result<Arc<Served>, NotNow> {
        let inner = &self.0;
        if let Some(name) = inner.acme.settings().names.iter().find(|name| name.covers(host)) {
            return Ok(inner.acme.obtain(name).await?);
        }
        if !inner.leads_somewhere(host) {
            return Err(NotNow::Stranger);
        }
        let name = CertName::exact(host.clone());
        if !inner.acme.keeps(&name) {
            self.begin(&name).await?;
        }
        let obtained = inner.acme.obtain_while(&name, Some(self.wanted(&name))).await;
        Ok(obtained?)
    }

    /// Begins to keep a certificate for a name, if one more may be ordered.
    async fn begin(&self, name: &CertName) -> Result<(), NotNow> {
        let Some(bounds) = self.0.bounds else { return Err(NotNow::Stranger) };
        let (vault, kept) = (self.0.acme.vault().clone(), name.clone());
        // One that was ordered before costs nothing.
        let is_kept = off_thread(move || vault.has(&kept)).await;
        let is_kept = is_kept.map_err(|fault| NotNow::Failed(fault.text))?;
        {
            let mut begun = self.0.begun.lock();
            // Another knock may have been quicker.
            if self.0.acme.keeps(name) {
                return Ok(());
            }
            if !is_kept {
                take(&mut begun, bounds, OffsetDateTime::now_utc())?;
            }
            self.0.acme.keep_while(name, self.wanted(name));
        }
        if !is_kept {
            tracing::info!(%name, "a certificate is ordered on demand");
            self.remember();
        }
        Ok(())
    }

    /// Whether the host still leads somewhere, for who renews.
    fn wanted(&self, name: &CertName) -> Wanted {
        let (inner, host) = (self.0.clone(), name.host().clone());
        Wanted::new(move || inner.leads_somewhere(&host))
    }

    /// Writes down when orders were begun, so that a restart does not forget it.
    fn remember(&self) {
        let inner = self.0.clone();
        self.0.acme.spawn("orders on demand", async move {
            let _turn = inner.writing.lock().await;
            let begun: Vec<_> = inner.begun.lock().iter().copied().collect();
            let vault = inner.acme.vault().clone();
            if let Ok(Err(error)) = off_thread(move || vault.set_begun(&begun)).await {
                tracing::error!(%error, "orders on demand are not remembered");
            }
        });
    }
}

impl Inner {
    fn leads_somewhere(&self, host: &HostName) -> bool {
        let tunnel = host.label_under(&self.base).and_then(TunnelName::from_label);
        self.routes.contains(host) || tunnel.is_some_and(|name| self.registry.look_up(&name).is_some())
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

/// Counts one more order, if there may be one.
fn take(
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
    begun.push_back(now);
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
        let mut at = |seconds: i64| take(&mut begun, bounds, start + Duration::seconds(seconds));
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
        assert!(take(&mut wrong, bounds, start).is_ok());
    }
}
