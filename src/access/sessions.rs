//! Logins of people with a browser: a session begins on the login host, is handed to the hosts of
//! previews, each with a sealed cookie of its own, and ends everywhere at once.
//!
//! A session says who somebody is, whose tunnels they may see, and until when. It lies in the
//! browser; here are only the secrets, the codes under way, and which sessions were ended early.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use time::OffsetDateTime;

use super::Identity;
use super::codes::{CodeFault, Codes};
use super::hold::{Bases, Basis, Hold};
use super::issuers::Issuers;
use super::logouts::{By, LogoutFault, Logouts, SessionId};
use super::oidc::{Oidc, OidcError};
use super::seal::{Opened, PlannedSecrets, Purpose, SealError, Seals, SecretName, random};
use super::session::{Known, Origin, Sees, Session, hash};
use super::shares::Shares;
use crate::config::AccessSettings;
use crate::net::{Tasks, address_group};
use crate::observe::Reason;

/// Most profiles that a session may see. With their octets, a cookie stays below 4 KiB.
const PROFILES_MAX: usize = 64;
/// Most characters of a name.
const NAME_MAX: usize = 100;

/// Sessions as cookies and codes. Clones share everything.
#[derive(Clone, Debug)]
pub struct Sessions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    seals: Seals,
    codes: Codes,
    logouts: Logouts,
    lifetime: Duration,
    /// Where people log in: another gateway with the same secrets is another place.
    login: String,
    /// Who says so for as long as they are in the configuration, beside issuers; and what rests on that.
    origins: ArcSwap<HashMap<Origin, Basis>>,
    issuers: Issuers,
    /// What visits rest on, by the session and the secret that its cookie is sealed with.
    bases: Bases<(SessionId, SecretName)>,
    /// What a provider calls to bring people back.
    callback: String,
    provider: ArcSwapOption<Oidc>,
    shares: Shares,
}

/// What sessions are to rest on, by other settings.
pub struct PlannedSessions {
    provider: Option<Oidc>,
    origins: HashMap<Origin, Basis>,
    secrets: Option<PlannedSecrets>,
}

/// Why there can be no sessions.
#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    /// The secrets.
    #[error(transparent)]
    Secrets(#[from] SealError),
    /// Where people log in.
    #[error(transparent)]
    Provider(#[from] OidcError),
    /// The list of sessions that were ended, or of guest links.
    #[error(
        "cannot read `{path}`: {error}; let this user read it; without it, who logged out is logged in again, or guest links end"
    )]
    List {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Sessions {
    /// Reads the secrets, and which sessions were ended. `login` is where people log in, and come back
    /// to from a provider. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When one of them cannot be read, or the secret not be made.
    pub fn open(
        settings: &AccessSettings,
        issuers: &Issuers,
        login: &str,
        state_dir: &Path,
    ) -> Result<Self, SessionsError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let fail = |path: PathBuf| move |error| SessionsError::List { path, error };
        let path = state_dir.join("logouts");
        let logouts = Logouts::open(path.clone(), now).map_err(fail(path))?;
        let seals = Seals::open(settings)?;
        let path = state_dir.join("shares");
        let shares = Shares::open(path.clone(), seals.clone(), settings.share_max).map_err(fail(path))?;
        let callback = format!("{login}/callback");
        let provider = settings.oidc.as_ref().map(|oidc| Oidc::open(oidc, callback.clone()));
        Ok(Self(Arc::new(Inner {
            seals,
            codes: Codes::default(),
            logouts,
            lifetime: settings.session_ttl,
            login: login.to_owned(),
            origins: ArcSwap::from_pointee(origins_of(settings, &HashMap::new())),
            issuers: issuers.clone(),
            bases: Bases::default(),
            provider: ArcSwapOption::new(provider.transpose()?.map(Arc::new)),
            callback,
            shares,
        })))
    }

    /// Starts to reread the secrets when their file changes, until draining begins.
    pub fn watch(&self, tasks: &Tasks) {
        self.0.seals.watch(tasks);
    }

    /// What seals; for other purposes than sessions.
    #[must_use]
    pub fn seals(&self) -> &Seals {
        &self.0.seals
    }

    /// The guest links.
    #[must_use]
    pub fn shares(&self) -> &Shares {
        &self.0.shares
    }

    /// Where people log in, if not here.
    #[must_use]
    pub fn provider(&self) -> Option<Arc<Oidc>> {
        self.0.provider.load_full()
    }

    /// What would be by other settings: who is believed, where people log in, and the secrets where
    /// they are written out. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When something in them cannot be used.
    pub fn plan(&self, settings: &AccessSettings) -> Result<PlannedSessions, SessionsError> {
        let provider = settings.oidc.as_ref().map(|oidc| Oidc::open(oidc, self.0.callback.clone()));
        let origins = origins_of(settings, &self.0.origins.load());
        let secrets = self.0.seals.plan(settings)?;
        Ok(PlannedSessions { provider: provider.transpose()?, origins, secrets })
    }

    /// Has that be so. Sessions by whom is no longer believed end, with what is open by them.
    pub fn put(&self, planned: PlannedSessions) {
        self.0.provider.store(planned.provider.map(Arc::new));
        let next = Arc::new(planned.origins);
        let old = self.0.origins.swap(next.clone());
        let gone = old.iter().filter(|(origin, _)| !next.contains_key(origin));
        gone.for_each(|(_, basis)| basis.end(Reason::LoginEnded));
        if let Some(secrets) = planned.secrets {
            self.0.seals.put(secrets);
        }
    }

    /// How long a session lives.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.0.lifetime
    }

    /// Begins a session. Of very many profiles it has only the first, `wanted` before all. One that goes
    /// on from a login `before` it in the same browser has its name, so that both end together.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn begin(
        &self,
        known: Known,
        wanted: Option<&Identity>,
        before: Option<&Session>,
    ) -> Result<Session, SealError> {
        let wanted = wanted.and_then(|owner| owner.thumbprint.as_ref()).map(|own| own.as_str());
        let sees = known.profiles.map_or(Sees::All, |mut profiles| {
            profiles.sort_by_key(|profile| Some(profile.as_str()) != wanted);
            if profiles.len() > PROFILES_MAX {
                tracing::info!(name = %known.name, profiles = profiles.len(), "a login names many profiles; it opens only the first {PROFILES_MAX}");
            }
            Sees::Profiles(profiles.iter().take(PROFILES_MAX).map(|profile| hash(profile)).collect())
        });
        let name = known.name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
        let until = OffsetDateTime::now_utc() + self.0.lifetime;
        let (id, until) = match before {
            // An end is remembered for as long as the session that was shown would have lived; so it lives no
            // shorter than what it ends, as it would where lives were made shorter since.
            Some(before) => (before.id, until.max(before.until)),
            None => (random()?, until),
        };
        let hold = Hold::new(Some(until), None);
        Ok(Session { id, name, origin: known.origin, key: known.key, sees, until, hold })
    }

    /// Whether a session is good now: not over, not ended, and by somebody who is still believed.
    #[must_use]
    pub fn holds(&self, session: &Session) -> bool {
        self.is_running(session) && self.vouched(session).is_some()
    }

    fn is_running(&self, session: &Session) -> bool {
        session.until > OffsetDateTime::now_utc() && !self.0.logouts.contains(&session.id)
    }

    /// What a session rests on that somebody vouches for who is still believed: an issuer with its key, or
    /// the configuration. `None`: nobody does.
    fn vouched(&self, session: &Session) -> Option<Basis> {
        match &session.key {
            Some(key) => self.0.issuers.basis(session.origin, key),
            None => self.0.origins.load().get(&session.origin).cloned(),
        }
    }

    /// A session as a cookie of the login host.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn seal_login(&self, session: &Session) -> Result<String, SealError> {
        self.0.seals.seal(Purpose::Login, &self.0.login, &session.encode())
    }

    /// The session in a cookie of the login host, if it is good now.
    #[must_use]
    pub fn of_login(&self, cookie: &str) -> Option<Session> {
        self.read(Purpose::Login, &self.0.login, cookie)
    }

    /// The same for its end: whether or not somebody vouches for it now, who may again.
    #[must_use]
    pub fn to_end(&self, cookie: &str) -> Option<Session> {
        let opened = self.0.seals.open_sealed(Purpose::Login, &self.0.login, cookie)?;
        Session::decode(&opened.octets).filter(|session| self.is_running(session))
    }

    /// A session as a cookie of the host of this agent's preview.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn seal_visit(&self, session: &Session, owner: &Identity, host: &str) -> Result<String, SealError> {
        self.0.seals.seal(Purpose::Visit, host, &session.narrowed(owner).encode())
    }

    /// The session in a cookie of this host, if it is good now.
    #[must_use]
    pub fn of_visit(&self, cookie: &str, host: &str) -> Option<Session> {
        self.read(Purpose::Visit, host, cookie)
    }

    /// A code that hands a session to a host, good once and for 30 s, in the browser that began it, which
    /// asks `from` there.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn hand_over(
        &self,
        session: &Session,
        host: &str,
        browser: &str,
        from: IpAddr,
    ) -> Result<String, SealError> {
        self.0.codes.make(session.clone(), host, browser, from)
    }

    /// The session that a code hands to this host, in the browser that is known by these marks.
    ///
    /// # Errors
    /// When the code is not good, or the session was ended meanwhile.
    pub fn redeem(&self, code: &str, host: &str, browsers: &[impl AsRef<str>]) -> Result<Session, CodeFault> {
        let session = self.0.codes.take(code, host, browsers)?;
        if self.holds(&session) { Ok(session) } else { Err(CodeFault::Unknown) }
    }

    /// Ends a session everywhere, and what is open by it, as was asked `from` there. Writes a file: not
    /// for a busy task.
    ///
    /// # Errors
    /// When it could not be written down, so that a restart brings the session back; or when it is not
    /// ended, because too many were from there that the same vouches for.
    pub fn end(&self, session: &Session, from: IpAddr) -> Result<(), LogoutFault> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let by = By { from: address_group(from), voucher: session.voucher() };
        // One that went on from the same at the same moment may live a little longer, and no longer than this.
        let until =
            session.until.unix_timestamp().max(now.saturating_add_unsigned(self.0.lifetime.as_secs()));
        let ended = self.0.logouts.end(session.id, until, by, now);
        if !matches!(ended, Err(LogoutFault::TooMany)) {
            self.0.bases.end(Reason::LoginEnded, |(id, _)| *id == session.id);
        }
        ended
    }

    fn read(&self, purpose: Purpose, bound_to: &str, cookie: &str) -> Option<Session> {
        let Opened { octets, secret, basis } = self.0.seals.open_sealed(purpose, bound_to, cookie)?;
        let mut session = Session::decode(&octets)?;
        // Before it is asked whether the session holds: one that is ended in between ends this.
        let basis = self.0.bases.of((session.id, secret), Some(&basis));
        session.hold = Hold::new(Some(session.until), Some(basis)).and(Some(self.vouched(&session)?));
        self.is_running(&session).then_some(session)
    }
}

/// Who is believed beside issuers, with what rested on it before.
fn origins_of(settings: &AccessSettings, old: &HashMap<Origin, Basis>) -> HashMap<Origin, Basis> {
    let origins = std::iter::once(Origin::key()).chain(settings.oidc.iter().map(Origin::oidc));
    origins.map(|origin| (origin, old.get(&origin).cloned().unwrap_or_default())).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;
    use crate::config::Secret;

    /// A session of this name.
    pub(in crate::access) fn session_of(id: u128) -> Session {
        Session { id: id.to_be_bytes(), ..session() }
    }

    /// A session of nobody in particular.
    pub(in crate::access) fn session() -> Session {
        let until = OffsetDateTime::now_utc() + Duration::from_secs(60);
        let until = OffsetDateTime::from_unix_timestamp(until.unix_timestamp()).expect("a time");
        let (name, origin, hold) = ("ann".into(), Origin::key(), Hold::default());
        Session { id: [7; 16], name, origin, key: None, sees: Sees::All, until, hold }
    }

    /// Where somebody is.
    pub(in crate::access) const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn owner() -> Identity {
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).expect("made");
        Identity::of(key.public_key())
    }

    fn sessions(dir: &Path) -> Sessions {
        sessions_at("https://auth.test/login", dir)
    }

    fn sessions_at(login: &str, dir: &Path) -> Sessions {
        let secrets = vec![Secret::new("0123456789abcdef")];
        let settings =
            AccessSettings { secrets, session_ttl: Duration::from_secs(60), ..AccessSettings::default() };
        let issuers = Issuers::open(&settings).expect("none");
        Sessions::open(&settings, &issuers, login, dir).expect("opened")
    }

    fn known(profiles: Vec<String>) -> Known {
        Known { name: "a\nb".into(), origin: Origin::key(), key: None, profiles: Some(profiles) }
    }

    #[test]
    fn a_session_is_for_its_host_and_profiles_until_it_is_ended() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (sessions, owner) = (sessions(dir.path()), owner());
        let own = owner.thumbprint.clone().expect("Ed25519").as_str().to_owned();
        let session = sessions.begin(known(vec![own, "other".into()]), None, None).expect("begun");
        assert!(session.may_see(&owner) && session.name == "ab");
        let login = sessions.seal_login(&session).expect("sealed");
        let visit = sessions.seal_visit(&session, &owner, "a.test").expect("sealed");
        assert_eq!(sessions.of_login(&login).map(|session| session.id), Some(session.id));
        let there = sessions.of_visit(&visit, "a.test").expect("good");
        assert!(there.may_see(&owner) && matches!(&there.sees, Sees::Profiles(all) if all.len() == 1));
        let is_none = |session: Option<Session>| session.is_none();
        assert!(is_none(sessions.of_visit(&visit, "b.test")));
        assert!(is_none(sessions.of_visit(&login, "a.test")) && is_none(sessions.of_login(&visit)));
        let code = sessions.hand_over(&session, "a.test", "b", HERE).expect("made");
        sessions.end(&session, HERE).expect("written");
        assert_eq!(there.hold().over_at(OffsetDateTime::now_utc()), Some(Reason::LoginEnded));
        assert_eq!(sessions.redeem(&code, "a.test", &["b"]).map(drop), Err(CodeFault::Unknown));
        assert!(is_none(sessions.of_login(&login)) && is_none(sessions.of_visit(&visit, "a.test")));
        // After a restart, too.
        assert!(is_none(super::tests::sessions(dir.path()).of_login(&login)));
    }

    #[test]
    fn who_is_not_believed_any_more_and_whose_time_is_over_is_out() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let sessions = sessions(dir.path());
        let of = |session: Session| sessions.of_login(&sessions.seal_login(&session).expect("sealed"));
        let good = session();
        let read = of(good.clone()).expect("good");
        assert_eq!(
            (read.encode(), read.hold().over_at(good.until)),
            (good.encode(), Some(Reason::PermitExpired))
        );
        let gone = Session { origin: Origin::of(&["issuer", "gone"]), ..session() };
        let sealed = sessions.seal_login(&gone).expect("sealed");
        // It ends all the same, so that it is not back with who vouched for it.
        assert!(sessions.of_login(&sealed).is_none() && sessions.to_end(&sealed).is_some());
        // Its key is none of an issuer's here.
        assert!(of(Session { key: Some([7; 16]), ..session() }).is_none());
        assert!(of(Session { until: OffsetDateTime::UNIX_EPOCH, ..session() }).is_none());
    }

    #[test]
    fn a_login_is_for_one_gateway_also_where_another_has_the_same_secrets() {
        let (one, other) = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder")).into();
        let (one, other) = (sessions(one.path()), sessions_at("https://auth.other.test/login", other.path()));
        let login = one.seal_login(&session()).expect("sealed");
        assert!(one.of_login(&login).is_some() && other.of_login(&login).is_none());
    }

    #[test]
    fn a_login_after_another_ends_with_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let sessions = sessions(dir.path());
        let before = sessions.begin(known(vec!["one".into()]), None, None).expect("begun");
        // As after a restart with a longer life.
        let before = Session { until: before.until + Duration::from_secs(600), ..before };
        let after = sessions.begin(known(vec!["two".into()]), None, Some(&before)).expect("begun");
        assert!(after.sees != before.sees && after.until >= before.until);
        sessions.end(&after, HERE).expect("written");
        assert!(!sessions.holds(&before) && !sessions.holds(&after));
    }

    #[test]
    fn the_largest_session_fits_a_cookie_and_sees_what_was_asked_for() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (sessions, owner) = (sessions(dir.path()), owner());
        let own = owner.thumbprint.clone().expect("Ed25519").as_str().to_owned();
        let mut many: Vec<String> = (0..256).map(|number| format!("profile {number}")).collect();
        many.push(own);
        let known = Known { name: "é".repeat(500), ..known(many) };
        let session = sessions.begin(known, Some(&owner), None).expect("begun");
        assert!(session.may_see(&owner));
        let length = sessions.seal_login(&session).expect("sealed").len();
        assert!(length < 3500, "{length}");
    }
}
