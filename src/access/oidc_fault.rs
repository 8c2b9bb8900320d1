//! Why a login at an OpenID Connect provider failed.

/// Why a login failed, in one sentence with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OidcFault {
    /// The provider could not be asked.
    #[error("the identity provider cannot be asked: {0}")]
    Unreachable(String),
    /// It does not describe itself as it should.
    #[error(
        "the identity provider's description cannot be used ({0}); `access.oidc.issuer` must be its issuer, exactly as it writes it"
    )]
    Description(String),
    /// It names a URL that is not `https`.
    #[error(
        "the identity provider names `{url}` as its `{field}`, where the secret and logins would go in the clear; have it describe itself with `https://` URLs only: behind a proxy that ends TLS, it has to be told its own address"
    )]
    InTheClear {
        /// What of its description.
        field: &'static str,
        /// The URL, shortened.
        url: String,
    },
    /// It said no.
    #[error("the identity provider refused the login: {0}")]
    Refused(String),
    /// It does not know the code.
    #[error("the identity provider did not accept the code that it was shown ({0}); log in once more")]
    Code(String),
    /// It does not know the gateway, or cannot be understood.
    #[error(
        "the identity provider did not accept this gateway or the login ({0}); check `access.oidc.client_id` and its secret"
    )]
    Exchange(String),
    /// What it says of the visitor does not hold.
    #[error(
        "what the identity provider says of you does not hold ({0}); log in once more, and check the clocks"
    )]
    Token(String),
    /// The login was not begun here, or too long ago.
    #[error(
        "this answer of the identity provider belongs to no login that was begun in this browser within 10 min; open the preview again"
    )]
    Stale,
    /// It has an address that could be anybody's.
    #[error("the identity provider has not verified your address `{0}`; verify it there, then log in again")]
    Unverified(String),
    /// No rule is for them.
    #[error("no rule says what `{0}` may see; ask the operator to add one to `access.oidc.allow`")]
    Nobody(String),
    /// The secret cannot be read any more.
    #[error("the client's secret cannot be read; check `access.oidc.client_secret_file`")]
    Secret,
}

impl OidcFault {
    /// Whether what was shown may be a guess. All else is known to the provider, or comes of how it or
    /// the gateway is set up.
    #[must_use]
    pub const fn is_guess(&self) -> bool {
        matches!(self, Self::Code(_))
    }
}
