//! `auth.BASE/logout`: ends all logins of a browser, on all previews at once, and has it forget them.
//!
//! Refuses to do so for who only looks: it takes the page's own form.

use http::header::{self, HeaderMap};
use http::{Response, StatusCode};

use super::Http;
use super::body::Answer;
use super::login::{Outcome, html};
use super::respond::{Failure, escape};
use super::session::{self, Kind};
use crate::access::LogoutFault;
use crate::config::BaseUrl;
use crate::config::watch::off_thread;
use crate::net::VisitorAddr;
use crate::observe::Reason;

/// The page with the form.
pub(super) fn ask(http: &Http, headers: &HeaderMap) -> (Response<Answer>, Reason) {
    let content = match session::of_login(http, headers) {
        Some(session) => format!(
            "<p>You are logged in as {}.</p><form method=post action=/logout><button>Log out everywhere</button></form>",
            escape(&session.name)
        ),
        None => "<p>You are not logged in.</p>".to_owned(),
    };
    (html(StatusCode::OK, "Log out", &content, "; form-action 'self'"), Reason::OwnAnswer)
}

/// Ends each login of this browser, here and on all previews.
pub(super) async fn end(http: &Http, headers: &HeaderMap, visitor: VisitorAddr) -> Outcome {
    let mut refused = None;
    for session in session::to_end(http, headers) {
        let (sessions, name) = (http.sessions.clone(), session.name.clone());
        let ended = off_thread(move || sessions.end(&session, visitor.0)).await;
        let is_ended = !matches!(ended, Some(Err(LogoutFault::TooMany)));
        match ended {
            Some(Err(fault @ LogoutFault::TooMany)) => refused = Some(fault),
            Some(Err(error)) => tracing::error!("{error}"),
            Some(Ok(())) | None => {}
        }
        tracing::info!(%name, is_ended, "logged out");
    }
    logged_out(&http.settings.base, headers, refused.as_ref())
}

/// Has the browser forget the logins, and says so; also where one was not ended: who uses this browser next
/// is not to log in with it.
fn logged_out(base: &BaseUrl, headers: &HeaderMap, refused: Option<&LogoutFault>) -> Outcome {
    let cookies = [Kind::Login, Kind::Provider].into_iter().flat_map(|kind| kind.take_away(base, headers));
    if let Some(fault) = refused {
        let next = "close those, and clear this browser's cookies; the login ends by itself, too";
        let status = StatusCode::TOO_MANY_REQUESTS;
        let failure = Failure::new(Reason::TooManyRequests, status, fault.to_string(), next);
        return Err(cookies.fold(failure, |failure, cookie| failure.with(header::SET_COOKIE, cookie)));
    }
    let content = "<p>You are logged out, of all previews.</p><p class=small>A preview for which this browser asked \
        for a user name and password stays open until the browser is closed, or the token ends that was given.</p>";
    let mut answer = html(StatusCode::OK, "Logged out", content, "");
    session::put(answer.headers_mut(), cookies);
    Ok((answer, Reason::OwnAnswer))
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;
    use crate::name::HostName;

    #[test]
    fn the_browser_forgets_its_logins_whether_or_not_they_could_be_ended() {
        let base = BaseUrl { https: true, host: HostName::parse("gw.test").expect("a name"), port: None };
        let shown = "a=b; __Host-oneport-login-1=x; __Host-oneport-login=y; __Host-oneport-provider-z=z; \
                     oneport-login-2=x; __Host-oneport-logins=x";
        let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static(shown))]);
        let (answer, _) = logged_out(&base, &headers, None).expect("an answer");
        let cookies: Vec<_> = answer.headers().get_all(header::SET_COOKIE).iter().cloned().collect();
        let refused =
            logged_out(&base, &headers, Some(&LogoutFault::TooMany)).map(drop).expect_err("refused");
        let is_cookie = |(name, value): (_, HeaderValue)| (name == header::SET_COOKIE).then_some(value);
        assert_eq!(refused.headers.into_iter().filter_map(is_cookie).collect::<Vec<_>>(), cookies);
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        let away =
            |name| format!("__Host-oneport-{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure");
        assert_eq!(cookies, ["login-1", "login", "provider-z"].map(away));
    }
}
