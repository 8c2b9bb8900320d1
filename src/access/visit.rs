//! May this visitor see this tunnel?

use std::fmt;

/// Who may visit a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLevel {
    /// Everybody.
    #[default]
    Public,
    /// Who shows a token of the tunnel's owner.
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

/// Decides whether a request may go on to a tunnel of this level.
///
/// `OPTIONS` passes without a token, because browsers send a CORS preflight without one.
///
/// # Errors
/// When it may not.
pub fn visit(level: AccessLevel, method: &http::Method) -> Result<Permit, Denial> {
    match level {
        AccessLevel::Public => Ok(Permit(())),
        AccessLevel::Private if *method == http::Method::OPTIONS => Ok(Permit(())),
        AccessLevel::Private => Err(Denial::LoginRequired),
    }
}
