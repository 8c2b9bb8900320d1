//! Guest links: who holds an agent's key lets people without an account see one of its private
//! previews, for a while.
//!
//! A link names a share and says whose it is and until when, sealed for the preview's host. It opens
//! nothing else, and nothing at all once its share is off the list here, which outlives the process.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use time::OffsetDateTime;

use super::Identity;
use super::hold::{Bases, Hold};
use super::keep;
use super::seal::{Opened, Purpose, SealError, Seals, SecretName, random};
use super::session::hash;
use super::share_list::{ALL_MAX, FROM_ADDRESS_MAX, List, OF_KEY_MAX, Owner, Share, ShareId, shown};
use crate::config::watch::off_thread;
use crate::name::TunnelName;
use crate::net::address_group;
use crate::observe::Reason;

/// Where a link leads on its preview's host, which no service there can have.
pub const GUEST_PATH: &str = "/.oneport/guest";

/// What there is to show of a good link.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The share that let them in.
    pub id: ShareId,
    owner: Owner,
    until: OffsetDateTime,
    hold: Hold,
}

/// All shares. Clones share them.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    seals: Seals,
    max: Duration,
    list: Mutex<List>,
    /// The last change that was written down; held while the file is written.
    written: Arc<tokio::sync::Mutex<u64>>,
    bases: Bases<(ShareId, SecretName)>,
}

/// Why nothing is shared, or taken back.
#[derive(Debug, thiserror::Error)]
pub enum ShareFault {
    /// The operator wants none.
    #[error("this gateway gives no guest links (`access.share_max`)")]
    NotHere,
    /// For no time, or for too long.
    #[error("a guest link is good for at least `1s`, and here for at most `{}`; give another time", span(*.0))]
    Time(Duration),
    /// One key's.
    #[error(
        "your key shares {OF_KEY_MAX} previews already; take one back with `unshare ID` (`shares` lists them)"
    )]
    TooMany,
    /// All keys' at one address, of which anybody can make many.
    #[error(
        "{FROM_ADDRESS_MAX} guest links that were made at your address are still good, and no more are kept; take some back with `unshare ID`, or try again when some have ended"
    )]
    TooManyHere,
    /// All keys'.
    #[error("this gateway keeps {ALL_MAX} guest links, and no more; try again when some have ended")]
    Full,
    /// There is none.
    #[error("your key has no guest link `{0}`; `shares` lists them")]
    Unknown(String),
    /// A new one could not be written down.
    #[error("the gateway cannot keep the guest link: {0}; tell its operator")]
    NotKept(io::Error),
    /// The end of one could not be written down.
    #[error(
        "the guest link is taken back, but a restart of the gateway may bring it back: {0}; tell its operator"
    )]
    NotForgotten(io::Error),
    /// No randomness.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Why a link does not open a preview.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// It does not open: changed, cut, sealed for another host or with a secret that is gone.
    #[error("this guest link is not whole, or is not for this preview")]
    NotWhole,
    /// The preview is another agent's by now.
    #[error("this guest link is not by the agent who offers this preview now")]
    OtherOwner,
    /// Its time is over.
    #[error("this guest link ended at {0}")]
    Over(String),
    /// It was taken back.
    #[error("this guest link was taken back")]
    TakenBack,
    /// The operator wants none any more.
    #[error("this gateway gives no guest links any more")]
    NotHere,
}

impl LinkFault {
    /// The word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotWhole | Self::OtherOwner => Reason::BadLink,
            Self::Over(_) | Self::TakenBack | Self::NotHere => Reason::LinkEnded,
        }
    }
}

impl Guest {
    /// Whether the link is by this agent.
    #[must_use]
    pub fn may_see(&self, owner: &Identity) -> bool {
        self.owner == owner_of(owner)
    }

    /// How long a visit may last that it allows.
    #[must_use]
    pub const fn hold(&self) -> &Hold {
        &self.hold
    }

    /// How long the link is still good.
    #[must_use]
    pub fn left(&self) -> Duration {
        (self.until - OffsetDateTime::now_utc()).try_into().unwrap_or_default()
    }
}

impl Shares {
    /// Reads the file, if there is one; lines that are none are left out, so that what they shared is
    /// no longer. What was shared for longer than `max` from now on ends then; that is written down, so that
    /// it is not back where there may be more again. Reads and writes a file: not for a busy task.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf, seals: Seals, max: Duration) -> io::Result<Self> {
        let (list, is_cut) = List::read(&keep::read(&path)?, max, now());
        if is_cut {
            tracing::info!(max = %span(max), "guest links that were good for longer than `access.share_max` end by it");
            if let Err(error) = keep::write(&path, &text_of(&list.copy().0)) {
                tracing::error!(%error, path = %path.display(), "cannot write down that guest links end");
            }
        }
        let (list, bases) = (Mutex::new(list), Bases::default());
        Ok(Self(Arc::new(Inner { path, seals, max, list, written: Arc::default(), bases })))
    }

    /// Shares a preview of `owner`'s, who asks `from` there, and which has this host, from now on for this
    /// time. The text is for the link. Not cancel safe: dropped in between, it may be shared or not.
    ///
    /// # Errors
    /// When it may not, or cannot be kept; then it is not shared.
    pub async fn share(
        &self,
        owner: &Identity,
        from: Option<IpAddr>,
        name: TunnelName,
        host: &str,
        time: Duration,
    ) -> Result<(Share, String), ShareFault> {
        if self.0.max.is_zero() {
            return Err(ShareFault::NotHere);
        }
        if time < Duration::from_secs(1) || time > self.0.max {
            return Err(ShareFault::Time(self.0.max));
        }
        let now = now();
        let (until, from) = (now.saturating_add_unsigned(time.as_secs()), from.map(address_group));
        let share = Share { id: ShareId(random()?), name, owner: owner_of(owner), until, from };
        let link = self.0.seals.seal(Purpose::Guest, host, &share.encode())?;
        let change = self.0.list.lock().add(share.clone(), now)?;
        if let Err(error) = self.write(change).await {
            self.0.list.lock().remove(&[share.id]);
            return Err(ShareFault::NotKept(error));
        }
        Ok((share, link))
    }

    /// What this key shares, the first to end first.
    #[must_use]
    pub fn of(&self, owner: &Identity) -> Vec<Arc<Share>> {
        let own = self.0.list.lock().of(&owner_of(owner));
        let now = now();
        let mut own: Vec<_> = own.into_iter().filter(|share| !share.is_over(now)).collect();
        own.sort_by_key(|share| (share.until, share.id.0));
        own
    }

    /// Takes back what this key shares, all or one, and ends what is open by it. The value is what
    /// was taken back. Not cancel safe: dropped in between, a restart may bring it back.
    ///
    /// # Errors
    /// When there is none of this name, or its end cannot be written down.
    pub async fn take_back(&self, owner: &Identity, id: Option<ShareId>) -> Result<Vec<ShareId>, ShareFault> {
        let own = self.of(owner);
        let own = own.iter().map(|share| share.id);
        let meant: Vec<_> = own.filter(|own| id.is_none_or(|id| id == *own)).collect();
        if let (Some(id), true) = (id, meant.is_empty()) {
            return Err(ShareFault::Unknown(id.to_string()));
        }
        if meant.is_empty() {
            return Ok(meant);
        }
        let change = self.0.list.lock().remove(&meant);
        self.0.bases.end(Reason::LinkEnded, |(id, _)| meant.contains(id));
        self.write(change).await.map_err(ShareFault::NotForgotten)?;
        Ok(meant)
    }

    /// Who comes with a link, or with the same in a cookie, to this host of `owner`'s.
    ///
    /// # Errors
    /// When it does not open this preview now.
    pub fn guest(&self, link: &str, host: &str, owner: &Identity) -> Result<Guest, LinkFault> {
        let opened = self.0.seals.open_sealed(Purpose::Guest, host, link);
        let Opened { octets, secret, basis } = opened.ok_or(LinkFault::NotWhole)?;
        let (id, rest) = octets.split_first_chunk().ok_or(LinkFault::NotWhole)?;
        let (by, until) = rest.split_first_chunk().ok_or(LinkFault::NotWhole)?;
        let until = i64::from_be_bytes(until.try_into().map_err(|_| LinkFault::NotWhole)?);
        if *by != owner_of(owner) {
            return Err(LinkFault::OtherOwner);
        }
        let over = |until: i64| if until <= now() { Err(LinkFault::Over(shown(until))) } else { Ok(()) };
        over(until)?;
        let id = ShareId(*id);
        // Before it is looked for: one that is taken back in between ends this.
        let basis = self.0.bases.of((id, secret), Some(&basis));
        let share = self.0.list.lock().get(&id);
        let share =
            share.ok_or(if self.0.max.is_zero() { LinkFault::NotHere } else { LinkFault::TakenBack })?;
        // Cut since it was made.
        let until = until.min(share.until);
        over(until)?;
        let end = OffsetDateTime::from_unix_timestamp(until).map_err(|_| LinkFault::NotWhole)?;
        Ok(Guest { id, owner: *by, until: end, hold: Hold::new(Some(end), Some(basis)) })
    }

    /// Writes the list down, unless this change already is.
    async fn write(&self, change: u64) -> io::Result<()> {
        let inner = self.0.clone();
        let mut last = inner.written.clone().lock_owned().await;
        if *last >= change {
            return Ok(());
        }
        // The lock goes along: were this dropped, nobody would write at the same time.
        let work = move || {
            // Every guest's request waits for this lock: nothing is written out under it.
            let (all, changes) = inner.list.lock().copy();
            keep::write(&inner.path, &text_of(&all)).map(|()| *last = changes)
        };
        off_thread(work).await.unwrap_or_else(|| Err(io::Error::other("the gateway ends")))
    }
}

fn text_of(all: &[Arc<Share>]) -> String {
    all.iter().map(|share| share.line()).collect()
}

fn owner_of(owner: &Identity) -> Owner {
    hash(&owner.fingerprint)
}

/// As it is written in commands and settings.
fn span(time: Duration) -> String {
    let units = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "m"), (1, "s")];
    let whole = |seconds: u64| time.as_secs().is_multiple_of(seconds);
    let (seconds, unit) = units.into_iter().find(|(seconds, _)| whole(*seconds)).unwrap_or((1, "s"));
    format!("{}{unit}", time.as_secs() / seconds)
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use russh::keys::{Algorithm, PrivateKey};

    use super::*;
    use crate::access::sessions::tests::HERE;
    use crate::config::{AccessSettings, Secret};

    const HOUR: Duration = Duration::from_secs(3600);

    fn owner() -> Identity {
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).expect("made");
        Identity::of(key.public_key())
    }

    fn shares(dir: &Path) -> Shares {
        shares_for(dir, HOUR)
    }

    fn shares_for(dir: &Path, max: Duration) -> Shares {
        let secrets = vec![Secret::new("0123456789abcdef")];
        let seals = Seals::open(&AccessSettings { secrets, ..AccessSettings::default() }).expect("opened");
        Shares::open(dir.join("shares"), seals, max).expect("opened")
    }

    fn name(text: &str) -> TunnelName {
        TunnelName::from_label(text).expect("a label")
    }

    #[tokio::test]
    async fn a_link_opens_one_host_of_one_owner_until_it_is_taken_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (shares, own, other) = (shares(dir.path()), owner(), owner());
        let (share, link) = shares.share(&own, Some(HERE), name("a"), "a.test", HOUR).await.expect("shared");
        let guest = shares.guest(&link, "a.test", &own).expect("good");
        assert!(guest.may_see(&own) && !guest.may_see(&other));
        assert!(guest.left() <= HOUR && guest.left() > HOUR / 2);
        let fault = |shares: &Shares, link: &str, host, owner| {
            shares.guest(link, host, owner).map(drop).expect_err("it does not open")
        };
        assert_eq!(fault(&shares, &link, "b.test", &own), LinkFault::NotWhole);
        assert_eq!(fault(&shares, &link[1..], "a.test", &own), LinkFault::NotWhole);
        assert_eq!(fault(&shares, &link, "a.test", &other), LinkFault::OtherOwner);
        // Another process knows it; and it ends only by its owner.
        let again = self::shares(dir.path());
        assert!(again.guest(&link, "a.test", &own).is_ok());
        let missing = shares.take_back(&other, Some(share.id)).await.expect_err("not theirs");
        assert!(matches!(missing, ShareFault::Unknown(_)) && shares.of(&other).is_empty());
        assert!(shares.take_back(&other, None).await.expect("nothing").is_empty());
        assert_eq!(guest.hold().over_at(OffsetDateTime::now_utc()), None);
        assert_eq!(shares.take_back(&own, Some(share.id)).await.expect("taken back"), [share.id]);
        assert_eq!(guest.hold().over_at(OffsetDateTime::now_utc()), Some(Reason::LinkEnded));
        assert_eq!(fault(&shares, &link, "a.test", &own), LinkFault::TakenBack);
        assert_eq!(fault(&self::shares(dir.path()), &link, "a.test", &own), LinkFault::TakenBack);
    }

    #[tokio::test]
    async fn a_link_ends_and_is_forgotten() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (shares, own) = (shares(dir.path()), owner());
        let old =
            Share { id: ShareId([1; 8]), name: name("a"), owner: owner_of(&own), until: now(), from: None };
        shares.0.list.lock().add(old.clone(), 0).expect("added");
        let link = shares.0.seals.seal(Purpose::Guest, "a.test", &old.encode()).expect("sealed");
        let fault = shares.guest(&link, "a.test", &own).map(drop).expect_err("over");
        assert!(matches!(&fault, LinkFault::Over(at) if at.ends_with('Z')), "{fault}");
        assert!(shares.of(&own).is_empty());
        shares.share(&own, Some(HERE), name("b"), "b.test", HOUR).await.expect("shared");
        assert_eq!(shares.0.list.lock().copy().0.len(), 1);
    }

    #[tokio::test]
    async fn links_are_cut_at_the_start_to_what_is_allowed_now() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (own, minute) = (owner(), Duration::from_secs(60));
        let (share, link) =
            shares(dir.path()).share(&own, Some(HERE), name("a"), "a.test", HOUR).await.expect("shared");
        let guest = |shares: &Shares| shares.guest(&link, "a.test", &own);
        let cut = shares_for(dir.path(), minute);
        assert!(guest(&cut).expect("good").left() <= minute && cut.of(&own)[0].until < share.until);
        let after = OffsetDateTime::now_utc() + minute;
        assert_eq!(guest(&cut).expect("good").hold().over_at(after), Some(Reason::PermitExpired));
        // What is allowed again lengthens nothing.
        assert!(guest(&shares(dir.path())).expect("good").left() <= minute);
        let none = shares_for(dir.path(), Duration::ZERO);
        assert_eq!(guest(&none).map(drop), Err(LinkFault::NotHere));
        assert!(none.of(&own).is_empty());
        assert_eq!(guest(&shares(dir.path())).map(drop), Err(LinkFault::TakenBack));
    }

    #[tokio::test]
    async fn shares_are_bounded_and_not_kept_in_memory_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (shares, own) = (shares(dir.path()), owner());
        for bad in [Duration::ZERO, HOUR + Duration::from_secs(1), Duration::MAX] {
            let fault = shares.share(&own, Some(HERE), name("a"), "a.test", bad).await.expect_err("refused");
            assert!(fault.to_string().contains("at most `1h`"), "{fault}");
        }
        let all: Vec<_> =
            (0..OF_KEY_MAX).map(|_| shares.share(&own, Some(HERE), name("a"), "a.test", HOUR)).collect();
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
        let more = shares.share(&own, Some(HERE), name("a"), "a.test", HOUR).await;
        assert!(matches!(more, Err(ShareFault::TooMany)));
        assert!(shares.share(&owner(), Some(HERE), name("a"), "a.test", HOUR).await.is_ok());
        assert_eq!(self::shares(dir.path()).of(&own).len(), OF_KEY_MAX);
        // A folder that cannot be written to.
        let away = dir.path().join("away");
        let lost = Shares(Arc::new(Inner {
            path: away.join("shares"),
            seals: shares.0.seals.clone(),
            max: HOUR,
            list: Mutex::default(),
            written: Arc::default(),
            bases: Bases::default(),
        }));
        let fault = lost.share(&own, Some(HERE), name("a"), "a.test", HOUR).await.map(drop);
        assert!(matches!(fault, Err(ShareFault::NotKept(_))) && lost.of(&own).is_empty());
    }
}
