//! Guest links: who holds an agent's key lets people without an account see one of its private
//! previews, for a while.
//!
//! A link names a share and says whose it is and until when, sealed for the preview's host. It opens
//! nothing else, and nothing at all once its share is off the list here, which outlives the process.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use time::OffsetDateTime;

use super::Identity;
use super::hold::{Bases, Hold};
use super::keep::{self, hex, unhex};
use super::seal::{Opened, Purpose, SealError, Seals, SecretName, random};
use super::session::hash;
use crate::config::watch::off_thread;
use crate::name::TunnelName;
use crate::observe::{Reason, shown_time};

/// Where a link leads on its preview's host, which no service there can have.
pub const GUEST_PATH: &str = "/.oneport/guest";
/// Most shares that one key may have at a time.
const OF_KEY_MAX: usize = 64;
/// Most shares of all keys.
const ALL_MAX: usize = 20_000;

/// What names a share. Not a secret: the link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShareId([u8; 8]);

/// Whose key it is, by the hash of its fingerprint.
type Owner = [u8; 16];

/// One preview, shared until a time.
#[derive(Clone, Debug)]
pub struct Share {
    /// Names it.
    pub id: ShareId,
    /// The preview.
    pub name: TunnelName,
    owner: Owner,
    /// Unix time.
    until: i64,
}

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

#[derive(Debug, Default)]
struct List {
    all: HashMap<ShareId, Share>,
    /// How often it has changed.
    changes: u64,
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
}

impl LinkFault {
    /// The word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotWhole | Self::OtherOwner => Reason::BadLink,
            Self::Over(_) | Self::TakenBack => Reason::LinkEnded,
        }
    }
}

impl std::fmt::Display for ShareId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl ShareId {
    /// Reads what `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }
}

impl Share {
    /// When it ends by itself (RFC 3339).
    #[must_use]
    pub fn until(&self) -> String {
        shown(self.until)
    }

    fn is_over(&self, now: i64) -> bool {
        self.until <= now
    }

    fn encode(&self) -> Vec<u8> {
        [&self.id.0[..], &self.owner, &self.until.to_be_bytes()].concat()
    }

    /// `ID OWNER UNTIL NAME`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (id, owner) = (ShareId::parse(words.next()?)?, unhex(words.next()?)?);
        let (until, name) = (words.next()?.parse().ok()?, TunnelName::from_label(words.next()?)?);
        words.next().is_none().then_some(Self { id, name, owner, until })
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
    /// no longer. Reads a file: not for a busy task.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf, seals: Seals, max: Duration) -> io::Result<Self> {
        let text = keep::read(&path)?;
        let now = now();
        let shares = text.lines().filter_map(Share::parse).filter(|share| !share.is_over(now));
        let all = shares.take(ALL_MAX).map(|share| (share.id, share)).collect();
        let (list, bases) = (Mutex::new(List { all, changes: 0 }), Bases::default());
        Ok(Self(Arc::new(Inner { path, seals, max, list, written: Arc::default(), bases })))
    }

    /// Shares a preview of `owner`'s, which has this host, from now on for this time. The text is for
    /// the link. Not cancel safe: dropped in between, it may be shared or not.
    ///
    /// # Errors
    /// When it may not, or cannot be kept; then it is not shared.
    pub async fn share(
        &self,
        owner: &Identity,
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
        let until = now().saturating_add_unsigned(time.as_secs());
        let share = Share { id: ShareId(random()?), name, owner: owner_of(owner), until };
        let link = self.0.seals.seal(Purpose::Guest, host, &share.encode())?;
        let change = self.0.list.lock().add(share.clone())?;
        if let Err(error) = self.write(change).await {
            let mut list = self.0.list.lock();
            list.all.remove(&share.id);
            list.changes += 1;
            return Err(ShareFault::NotKept(error));
        }
        Ok((share, link))
    }

    /// What this key shares, the first to end first.
    #[must_use]
    pub fn of(&self, owner: &Identity) -> Vec<Share> {
        let (owner, now) = (owner_of(owner), now());
        let list = self.0.list.lock();
        let own = list.all.values().filter(|share| share.owner == owner && !share.is_over(now));
        let mut own: Vec<_> = own.cloned().collect();
        own.sort_by_key(|share| (share.until, share.id.0));
        own
    }

    /// Takes back what this key shares, all or one, and ends what is open by it. The value is what
    /// was taken back. Not cancel safe: dropped in between, a restart may bring it back.
    ///
    /// # Errors
    /// When there is none of this name, or its end cannot be written down.
    pub async fn take_back(&self, owner: &Identity, id: Option<ShareId>) -> Result<Vec<ShareId>, ShareFault> {
        let own = self.of(owner).into_iter().map(|share| share.id);
        let meant: Vec<_> = own.filter(|own| id.is_none_or(|id| id == *own)).collect();
        if let (Some(id), true) = (id, meant.is_empty()) {
            return Err(ShareFault::Unknown(id.to_string()));
        }
        if meant.is_empty() {
            return Ok(meant);
        }
        let change = {
            let mut list = self.0.list.lock();
            list.all.retain(|id, _| !meant.contains(id));
            list.changes += 1;
            list.changes
        };
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
        if until <= now() {
            return Err(LinkFault::Over(shown(until)));
        }
        let end = OffsetDateTime::from_unix_timestamp(until).map_err(|_| LinkFault::NotWhole)?;
        let id = ShareId(*id);
        // Before it is looked for: one that is taken back in between ends this.
        let basis = self.0.bases.of((id, secret), Some(&basis));
        if !self.0.list.lock().all.contains_key(&id) {
            return Err(LinkFault::TakenBack);
        }
        Ok(Guest { id, owner: *by, until: end, hold: Hold::new(Some(end), Some(basis)) })
    }

    /// Writes the list down, unless this change already is.
    async fn write(&self, change: u64) -> io::Result<()> {
        let inner = self.0.clone();
        let mut written = inner.written.clone().lock_owned().await;
        if *written >= change {
            return Ok(());
        }
        // The lock goes along: were this dropped, nobody would write at the same time.
        let work = move || {
            let (text, changes) = inner.list.lock().write_out();
            keep::write(&inner.path, &text).map(|()| *written = changes)
        };
        off_thread(work).await.unwrap_or_else(|| Err(io::Error::other("the gateway ends")))
    }
}

impl List {
    /// The value is the number of this change.
    fn add(&mut self, share: Share) -> Result<u64, ShareFault> {
        let now = now();
        self.all.retain(|_, share| !share.is_over(now));
        if self.all.values().filter(|other| other.owner == share.owner).count() >= OF_KEY_MAX {
            return Err(ShareFault::TooMany);
        }
        if self.all.len() >= ALL_MAX {
            return Err(ShareFault::Full);
        }
        self.all.insert(share.id, share);
        self.changes += 1;
        Ok(self.changes)
    }

    fn write_out(&self) -> (String, u64) {
        let mut text = String::new();
        for Share { id, name, owner, until } in self.all.values() {
            let _ = writeln!(text, "{id} {} {until} {name}", hex(owner));
        }
        (text, self.changes)
    }
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

fn shown(time: i64) -> String {
    OffsetDateTime::from_unix_timestamp(time).map(shown_time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use russh::keys::{Algorithm, PrivateKey};

    use super::*;
    use crate::config::{AccessSettings, Secret};

    const HOUR: Duration = Duration::from_secs(3600);

    fn owner() -> Identity {
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).expect("made");
        Identity::of(key.public_key())
    }

    fn shares(dir: &Path) -> Shares {
        let secrets = vec![Secret::new("0123456789abcdef")];
        let seals = Seals::open(&AccessSettings { secrets, ..AccessSettings::default() }).expect("opened");
        Shares::open(dir.join("shares"), seals, HOUR).expect("opened")
    }

    fn name(text: &str) -> TunnelName {
        TunnelName::from_label(text).expect("a label")
    }

    #[tokio::test]
    async fn a_link_opens_one_host_of_one_owner_until_it_is_taken_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (shares, own, other) = (shares(dir.path()), owner(), owner());
        let (share, link) = shares.share(&own, name("a"), "a.test", HOUR).await.expect("shared");
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
        let old = Share { id: ShareId([1; 8]), name: name("a"), owner: owner_of(&own), until: now() };
        shares.0.list.lock().add(old.clone()).expect("added");
        let link = shares.0.seals.seal(Purpose::Guest, "a.test", &old.encode()).expect("sealed");
        let fault = shares.guest(&link, "a.test", &own).map(drop).expect_err("over");
        assert!(matches!(&fault, LinkFault::Over(at) if at.ends_with('Z')), "{fault}");
        assert!(shares.of(&own).is_empty());
        shares.share(&own, name("b"), "b.test", HOUR).await.expect("shared");
        assert_eq!(shares.0.list.lock().all.len(), 1);
    }

    #[tokio::test]
    async fn shares_are_bounded_and_not_kept_in_memory_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (shares, own) = (shares(dir.path()), owner());
        for bad in [Duration::ZERO, HOUR + Duration::from_secs(1), Duration::MAX] {
            let fault = shares.share(&own, name("a"), "a.test", bad).await.expect_err("refused");
            assert!(fault.to_string().contains("at most `1h`"), "{fault}");
        }
        let all: Vec<_> = (0..OF_KEY_MAX).map(|_| shares.share(&own, name("a"), "a.test", HOUR)).collect();
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
        let more = shares.share(&own, name("a"), "a.test", HOUR).await;
        assert!(matches!(more, Err(ShareFault::TooMany)));
        assert!(shares.share(&owner(), name("a"), "a.test", HOUR).await.is_ok());
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
        let fault = lost.share(&own, name("a"), "a.test", HOUR).await.map(drop);
        assert!(matches!(fault, Err(ShareFault::NotKept(_))) && lost.of(&own).is_empty());
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        let good = format!("{} {} 99 web-abc", "0a".repeat(8), "ff".repeat(16));
        assert!(Share::parse(&good).is_some());
        for bad in ["", "a b 1 c", &good[1..], &format!("{good} x"), &good.replace("99", "x")] {
            assert!(Share::parse(bad).is_none(), "{bad}");
        }
    }
}
