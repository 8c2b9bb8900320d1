//! May this visitor see this tunnel?

use std::fmt;

/// Who may visit a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLevel {
    /// Everybody.
    #[default]
    Public,
    /// Nobody yet; who shows a token of the tunnel's owner, once there are tokens.
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

/// Proof that a visit was allowed. Only this room makes one.
#[derive(Debug)]
pub struct Permit(());

/// Why a visit was not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The tunnel is private and the visitor has not shown who they are.
    #[error("this tunnel is private")]
    LoginRequired,
}

/// What is asked of a tunnel, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// Whether there is a head and nothing else: no body, no protocol switch.
    pub is_bare: bool,
}

/// Decides whether a request may go on to a tunnel of this level.
///
/// A bare `OPTIONS` passes without a token, because browsers send a CORS preflight without one;
/// anything more than bare would be a way in.
///
/// # Errors
/// When it may not.
pub fn visit(level: AccessLevel, request: Request<'_>) -> Result<Permit, Denial> {
    match level {
        AccessLevel::Public => Ok(Permit(())),
        AccessLevel::Private if request.is_bare && request.method == http::Method::OPTIONS => Ok(Permit(())),
        AccessLevel::Private => Err(Denial::LoginRequired),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_tunnel_lets_only_a_bare_preflight_through() {
        let may = |level, method: &http::Method, is_bare| visit(level, Request { method, is_bare }).is_ok();
        assert!(may(AccessLevel::Public, &http::Method::POST, false));
        assert!(may(AccessLevel::Private, &http::Method::OPTIONS, true));
        assert!(!may(AccessLevel::Private, &http::Method::OPTIONS, false));
        assert!(!may(AccessLevel::Private, &http::Method::GET, true));
    }
}
