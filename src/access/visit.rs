//! May this visitor see this tunnel?

use std::borrow::Cow;
use std::fmt;

use super::issuers::{Issuers, PATIENCE, Refused};
use super::{Guest, Hold, Identity, Session, TokenFault};

/// Who may visit a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLevel {
    /// Everybody.
    #[default]
    Public,
    /// Who shows a token for the profile of the tunnel's owner.
    Private,
}

impl fmt::Display for AccessLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
        })
    }
}

/// Most cookies of one request that are looked at.
const COOKIES_MAX: usize = 4;

/// How a visitor showed a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `Authorization: Bearer` (RFC 6750).
    Bearer,
    /// `Authorization: Basic` with the user name of tokens (RFC 7617).
    Basic,
    /// A token in a cookie.
    Cookie,
    /// The cookie of a login.
    Session,
    /// The cookie of a guest link.
    Guest,
}

/// What a visitor shows of who they are.
#[derive(Clone, Debug, Default)]
pub struct Credentials<'a> {
    /// The token in `Authorization`, if it is one that could be ours.
    pub authorization: Option<(Way, Cow<'a, str>)>,
    /// The tokens in cookies, in their order: another preview may have set one in front of the good
    /// one, so a few are tried.
    pub cookies: Vec<&'a str>,
    /// Who they are since they logged in, if that is good now.
    pub session: Option<Session>,
    /// What a guest link says that is good now.
    pub guest: Option<Guest>,
}

impl<'a> Credentials<'a> {
    /// The tokens in cookies that are looked at.
    pub fn in_cookies(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.cookies.clone().into_iter().take(COOKIES_MAX)
    }
}

/// Proof that a visit was allowed. Only this room makes one.
#[derive(Debug)]
pub struct Permit {
    by: Option<Way>,
    hold: Option<Hold>,
    is_for_preflight: bool,
}

impl Permit {
    const fn free() -> Self {
        Self { by: None, hold: None, is_for_preflight: false }
    }

    const fn for_preflight() -> Self {
        Self { by: None, hold: None, is_for_preflight: true }
    }

    fn held(by: Way, hold: &Hold) -> Self {
        Self { by: Some(by), hold: (!hold.is_endless()).then(|| hold.clone()), is_for_preflight: false }
    }

    /// How the token came that the visit was allowed for; `None` where none was needed.
    #[must_use]
    pub const fn by(&self) -> Option<Way> {
        self.by
    }

    /// Whether it is for a preflight alone: nothing else of the request may go on, and nothing else of
    /// the answer may come back.
    #[must_use]
    pub const fn is_for_preflight(&self) -> bool {
        self.is_for_preflight
    }

    /// Whether a cookie or a password allowed it, which a browser sends along whatever page asks for it.
    const fn is_by_browser(&self) -> bool {
        matches!(self.by, Some(Way::Cookie | Way::Session | Way::Guest | Way::Basic))
    }

    /// How long the visit is allowed, which whoever serves it has to see to; `None`: without end.
    #[must_use]
    pub const fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }
}

/// Why a visit was not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The visitor has not shown who they are.
    #[error("this tunnel is private")]
    LoginRequired,
    /// What they showed does not hold.
    #[error("{fault}")]
    BadToken {
        /// How it came.
        way: Way,
        /// What is wrong with it.
        fault: TokenFault,
    },
    /// What they showed holds, but not for this tunnel.
    #[error("the token is valid, but does not name the profile of this tunnel's agent")]
    OtherProfile,
    /// What a browser keeps would let them in, but another site's page sent the request.
    #[error(
        "a page of `{0}` sent this request, and a login counts only for pages of this preview and of its agent's others"
    )]
    OtherSite(String),
}

/// What is asked of a tunnel, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Whether it is a CORS preflight, and nothing more.
    pub is_preflight: bool,
    /// Where the page is from that sent it, if that is neither the host itself nor a tunnel of the same
    /// owner.
    pub other_site: Option<String>,
    /// What the visitor shows of who they are.
    pub credentials: Credentials<'a>,
}

/// Whom a visit is to.
#[derive(Clone, Copy, Debug)]
pub enum Host<'a> {
    /// A route, which everybody may visit.
    Route,
    /// A tunnel of this level and owner.
    Tunnel(AccessLevel, &'a Identity),
}

/// Waits for keys of issuers that are needed to decide, and are fetched from URLs: a few seconds at
/// most, and not at all where they are here. Cancel safe.
pub async fn prepare(issuers: &Issuers, credentials: &Credentials<'_>) {
    let in_cookies = credentials.in_cookies();
    let in_header = credentials.authorization.as_ref().map(|(_, token)| &**token);
    let all = async {
        for token in in_cookies.chain(in_header) {
            issuers.prepare(token).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, all).await;
}

/// Decides whether a request may go on.
///
/// A CORS preflight passes without a token, because browsers send it without one: as a preflight only.
///
/// # Errors
/// When it may not.
pub fn visit(issuers: &Issuers, host: Host<'_>, request: &Request<'_>) -> Result<Permit, Denial> {
    match host {
        Host::Route | Host::Tunnel(AccessLevel::Public, _) => Ok(Permit::free()),
        Host::Tunnel(AccessLevel::Private, owner) => {
            match (authenticate(issuers, owner, &request.credentials), &request.other_site) {
                (Ok(permit), Some(site)) if permit.is_by_browser() => {
                    by_itself(issuers, owner, &request.credentials, site.clone())
                }
                (decided, _) => decided,
            }
            .or_else(|denial| if request.is_preflight { Ok(Permit::for_preflight()) } else { Err(denial) })
        }
    }
}

/// Decides about what another site's page sent: browsers send cookies and passwords along for whoever asks,
/// and all previews are one site to them. What else is in the request, the page had to know.
fn by_itself(
    issuers: &Issuers,
    owner: &Identity,
    credentials: &Credentials<'_>,
    site: String,
) -> Result<Permit, Denial> {
    let authorization = credentials.authorization.clone().filter(|(way, _)| *way == Way::Bearer);
    let alone = Credentials { authorization, ..Credentials::default() };
    authenticate(issuers, owner, &alone).map_err(|_| Denial::OtherSite(site))
}

/// Decides whether somebody is the owner's, or was let in by an issuer for the owner's profile.
///
/// A login or another cookie that holds comes first: `Authorization` is then the service's own business. One that
/// does not is as good as none, for the browser cannot help it.
///
/// # Errors
/// When they are not.
pub fn authenticate(
    issuers: &Issuers,
    owner: &Identity,
    credentials: &Credentials<'_>,
) -> Result<Permit, Denial> {
    if let Some(session) = credentials.session.as_ref().filter(|session| session.may_see(owner)) {
        return Ok(Permit::held(Way::Session, session.hold()));
    }
    if let Some(guest) = credentials.guest.as_ref().filter(|guest| guest.may_see(owner)) {
        return Ok(Permit::held(Way::Guest, guest.hold()));
    }
    let mut not_yet = None;
    for token in credentials.in_cookies() {
        match issuers.judge(token, owner) {
            Ok(verdict) => return Ok(Permit::held(Way::Cookie, &verdict.hold)),
            Err(Refused::Fault(fault @ TokenFault::NoKeysYet(_))) => not_yet = Some(fault),
            // Also one that holds, for others: any preview may have set it, and would shut the others so.
            Err(_) => {}
        }
    }
    if let Some((way, token)) = &credentials.authorization {
        return match issuers.judge(token, owner) {
            Ok(verdict) => Ok(Permit::held(*way, &verdict.hold)),
            Err(Refused::Fault(fault)) => Err(Denial::BadToken { way: *way, fault }),
            Err(Refused::OtherProfile) => Err(Denial::OtherProfile),
        };
    }
    match not_yet {
        // Logging in again would not help: it cannot be told yet whether the token is good.
        Some(fault) => Err(Denial::BadToken { way: Way::Cookie, fault }),
        None => Err(Denial::LoginRequired),
    }
}
