//! Logins at an OpenID Connect provider: sends the browser there from the login host, and takes it
//! back at `/login/callback`.
//!
//! What must not be lost on the way goes there and back in `state`, sealed and bound to the browser,
//! so that nothing is kept here, and several tabs may log in at once.

use http::header::HeaderMap;
use http::{Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Http;
use super::body::Outgoing;
use super::login::{Outcome, complete, redirect};
use super::respond::Failure;
use super::session::{self, Browser, Kind};
use super::wanted::{Wanted, field};
use crate::access::{Begun, Login, Oidc, OidcFault, Purpose, brief};
use crate::net::VisitorAddr;
use crate::observe::Reason;

/// Where browsers come back to.
pub(super) const PATH: &str = "/login/callback";
/// How long somebody may take there, in seconds.
const TAKES: i64 = 10 * 60;

/// What goes there and back.
#[derive(Serialize, Deserialize)]
struct State {
    begun: Begun,
    wanted: String,
    at: i64,
}

/// Sends a browser to the provider.
pub(super) async fn begin(http: &Http, provider: &Oidc, headers: &HeaderMap, wanted: &Wanted) -> Outcome {
    let browser =
        Browser::of(Kind::Provider, headers, &http.settings.base).ok_or_else(|| failed(&OidcFault::Stale))?;
    let at = OffsetDateTime::now_utc().unix_timestamp();
    let seal = |begun: &Begun| {
        let state = State { begun: begun.clone(), wanted: wanted.query(), at };
        let state = serde_json::to_vec(&state).ok()?;
        http.sessions.seals().seal(Purpose::Provider, &browser.mark, &state).ok()
    };
    let to = provider.begin(seal).await.map_err(|fault| failed(&fault))?;
    let (mut answer, reason) = redirect(&to, StatusCode::SEE_OTHER);
    session::put(answer.headers_mut(), browser.set);
    Ok((answer, reason))
}

/// Takes a browser back from the provider.
pub(super) async fn finish(http: &Http, request: &Request<Outgoing>, visitor: VisitorAddr) -> Outcome {
    let query = request.uri().query().unwrap_or_default();
    let (Some(provider), &Method::GET) = (http.sessions.provider(), request.method()) else {
        return Err(failed(&OidcFault::Stale));
    };
    let state = state_of(http, request.headers(), query).ok_or_else(|| failed(&OidcFault::Stale))?;
    if !provider.is_issuer(field(query, "iss").as_deref()) {
        return Err(failed(&OidcFault::Token("it is another's answer".to_owned())));
    }
    if let Some(error) = field(query, "error") {
        let more =
            field(query, "error_description").map_or(String::new(), |more| format!(" ({})", brief(&more)));
        return Err(failed(&OidcFault::Refused(format!("`{}`{more}", brief(&error)))));
    }
    let code = field(query, "code").ok_or_else(|| failed(&OidcFault::Stale))?;
    http.admit_login(Login::Token, visitor)?;
    let known = provider.finish(state.begun, code).await.map_err(|fault| failed(&fault))?;
    let before = session::of_login(http, request.headers());
    let wanted = Wanted::read(http, &state.wanted, visitor);
    complete(http, known, before.as_ref(), &wanted, StatusCode::SEE_OTHER)
}

/// What was sent along, if by this browser and not too long ago.
fn state_of(http: &Http, headers: &HeaderMap, query: &str) -> Option<State> {
    let (seals, state) = (http.sessions.seals(), field(query, "state")?);
    let marks = Browser::marks_in(Kind::Provider, headers, &http.settings.base);
    let opened = marks.iter().find_map(|mark| seals.open_sealed(Purpose::Provider, mark, &state))?;
    let state: State = serde_json::from_slice(&opened.octets).ok()?;
    let age = OffsetDateTime::now_utc().unix_timestamp() - state.at;
    (0..=TAKES).contains(&age).then_some(state)
}

fn failed(fault: &OidcFault) -> Failure {
    let (status, reason, next) = match fault {
        OidcFault::Nobody(_) | OidcFault::Unverified(_) => {
            (StatusCode::FORBIDDEN, Reason::NotAllowed, "then open the preview again")
        }
        OidcFault::Unreachable(_)
        | OidcFault::Description(_)
        | OidcFault::InTheClear { .. }
        | OidcFault::Exchange(_)
        | OidcFault::Secret => (
            StatusCode::BAD_GATEWAY,
            Reason::ProviderUnusable,
            "tell the operator of this gateway; programs may send `Authorization: Bearer TOKEN` meanwhile",
        ),
        OidcFault::Refused(_) | OidcFault::Code(_) | OidcFault::Token(_) | OidcFault::Stale => {
            (StatusCode::BAD_REQUEST, Reason::LoginFailed, "open the preview again")
        }
    };
    let mut failure = Failure::new(reason, status, fault.to_string(), next);
    // The provider's page sent the browser, but no other can: only this browser has what is in `state`.
    failure.failed_login = fault.is_guess().then_some(Login::Token);
    failure
}
