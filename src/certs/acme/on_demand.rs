//! Certificates for hosts that no configured name covers, ordered when somebody first asks for one:
//! previews where there is no wildcard, and hosts of routes that `acme.names` leaves out.
//!
//! Only for hosts that lead somewhere now, or whoever knocks could have orders made without end; and
//! never more of them a minute and a week than the settings say, because authorities have bounds of
//! their own, which nobody wants to use up by accident. However many knock, there is one order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use time::OffsetDateTime;

use super::keeper::Wanting;
use super::places::{Place, Places};
use super::{Acme, FaultNote, off_thread};
use crate::certs::Served;
use crate::config::Settings;
use crate::name::{CertName, HostName, TunnelName};
use crate::registry::Registry;

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
    places: Option<Places>,
}

/// A host that somebody knocked for.
#[derive(Debug)]
struct Knocked {
    inner: Arc<Inner>,
    host: HostName,
    is_spent: Arc<AtomicBool>,
}

/// Why there is no certificate now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// Nothing is offered under the host.
    #[error("no certificate here covers the name asked for, and nothing is offered under it")]
    Stranger,
    /// No authority would issue for it.
    #[error(
        "no public certificate authority issues for the name asked for, because of its label `{label}`: {fault}; offer it under another name, or get a wildcard by one of the ways under `[dns]`"
    )]
    NoHost {
        /// Which part.
        label: String,
        /// What is wrong with it.
        fault: &'static str,
    },
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
        let bounds = acme.settings().on_demand;
        Self(Arc::new(Inner {
            places: bounds.map(|bounds| acme.places(bounds)),
            acme: acme.clone(),
            registry: registry.clone(),
            base: settings.base.host.clone(),
            routes: settings.routes.iter().map(|route| route.host.clone()).collect(),
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
        let obtained = inner.acme.obtain_while(&name, Some(self.knocked(&name))).await;
        Ok(obtained?)
    }

    /// Begins to keep a certificate for a name, if one more may be ordered. What is ordered counts when
    /// the order is begun.
    async fn begin(&self, name: &CertName) -> Result<(), NotNow> {
        let Some(places) = &self.0.places else { return Err(NotNow::Stranger) };
        fit(name.host())?;
        let (vault, kept) = (self.0.acme.vault().clone(), name.clone());
        // One that was ordered before costs nothing.
        let is_kept = off_thread(move || vault.has(&kept)).await;
        if !is_kept.map_err(|fault| NotNow::Failed(fault.text))? {
            places.look()?;
        }
        self.0.acme.keep_while(name, self.knocked(name));
        Ok(())
    }

    fn knocked(&self, name: &CertName) -> Box<dyn Wanting> {
        Box::new(Knocked { inner: self.0.clone(), host: name.host().clone(), is_spent: Arc::default() })
    }
}

impl Wanting for Knocked {
    fn is_wanted(&self) -> bool {
        self.inner.leads_somewhere(&self.host)
    }

    fn place(&self) -> Result<Place, NotNow> {
        self.inner.places.as_ref().ok_or(NotNow::Stranger)?.take(&self.is_spent)
    }
}

impl Inner {
    fn leads_somewhere(&self, host: &HostName) -> bool {
        let tunnel = host.label_under(&self.base).and_then(TunnelName::from_label);
        self.routes.contains(host) || tunnel.is_some_and(|name| self.registry.look_up(&name).is_some())
    }
}

/// Whether a public authority may issue for a host at all (CA/Browser Forum, Baseline Requirements,
/// section 7.1.4.2.1: labels are LDH or A-labels, RFC 5890, section 2.3).
fn fit(host: &HostName) -> Result<(), NotNow> {
    for label in host.as_str().split('.') {
        let fault = if label.contains('_') {
            "it has a `_`"
        } else if label.starts_with('-') || label.ends_with('-') {
            "it begins or ends with `-`"
        } else if label.get(2..4) == Some("--") && !is_a_label(label) {
            "its third and fourth characters are `--`, and it is not the encoded form of other letters"
        } else {
            continue;
        };
        return Err(NotNow::NoHost { label: label.to_owned(), fault });
    }
    Ok(())
}

/// Whether a label stands for one in other letters (UTS 46).
fn is_a_label(label: &str) -> bool {
    let (text, valid) = idna::domain_to_unicode(label);
    valid.is_ok() && !text.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_no_authority_takes_are_told_from_others() {
        let fit = |host: &str| fit(&HostName::parse(host).expect("a host"));
        for host in ["web-1.gw.test", "a--b.gw.test", "xn--bcher-kva.gw.test", "1.gw.test", "ab-.-.gw.test"] {
            let is_fit = !host.contains("ab-");
            assert_eq!(fit(host).is_ok(), is_fit, "{host}");
        }
        let said = |host: &str| fit(host).expect_err("unfit").to_string();
        assert!(said("my_app.gw.test").contains("its label `my_app`: it has a `_`; offer it under"));
        assert!(said("-a.gw.test").contains("begins or ends with `-`"));
        for host in ["ab--cd.gw.test", "xn--a.gw.test"] {
            assert!(said(host).contains("third and fourth"), "{host}");
        }
    }
}
