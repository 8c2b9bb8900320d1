//! `auth.BASE/logout`: ends all logins of a browser, on all previews at once, and has it forget them, and
//! the token that the hosted service has left in it.
//!
//! Refuses to do so for who only looks: it takes the page's own form.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use super::Http;
use super::body::Answer;
use super::credentials::{TOKEN_COOKIE, credentials};
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
    const FORM: &str = "<form method=post action=/logout><button>Log out everywhere</button></form>";
    let content = match session::of_login(http, headers) {
        Some(session) => format!("<p>You are logged in as {}.</p>{FORM}", escape(&session.name)),
        None if has_token(headers) => {
            format!("<p>This browser shows previews a token of the service that you logged in at.</p>{FORM}")
        }
        None if !session::to_end(http, headers).is_empty() => {
            format!("<p>This browser has a login for which nobody vouches now.</p>{FORM}")
        }
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
    let service = http.settings.access.login_url.as_deref();
    logged_out(&http.settings.base, headers, service, refused.as_ref())
}

/// Has the browser forget the logins, and says so; also where one was not ended: who uses this browser next
/// is not to log in with it. What the hosted `service` itself knows of the browser stays there.
fn logged_out(
    base: &BaseUrl,
    headers: &HeaderMap,
    service: Option<&str>,
    refused: Option<&LogoutFault>,
) -> Outcome {
    let cookies = [Kind::Login, Kind::Provider].into_iter().flat_map(|kind| kind.take_away(base, headers));
    let cookies = cookies.chain(has_token(headers).then(|| tokens_away(base)).into_iter().flatten());
    if let Some(fault) = refused {
        let next = "close those, and clear this browser's cookies; the login ends by itself, too";
        let status = StatusCode::TOO_MANY_REQUESTS;
        let failure = Failure::new(Reason::TooManyRequests, status, fault.to_string(), next);
        return Err(cookies.fold(failure, |failure, cookie| failure.with(header::SET_COOKIE, cookie)));
    }
    let service = service.map(escape).map_or(String::new(), |service| {
        format!(
            "<p>The service at <a href=\"{service}\">{service}</a> keeps a login of its own, and would log you in here \
             again without asking: log out there as well.</p>"
        )
    });
    let basic = "<p class=small>A preview for which this browser asked \
        for a user name and password stays open until the browser is closed, or the token ends that was given.</p>";
    let content = format!("<p>You are logged out, of all previews.</p>{service}{basic}");
    let mut answer = html(StatusCode::OK, "Logged out", &content, "");
    session::put(answer.headers_mut(), cookies);
    Ok((answer, Reason::OwnAnswer))
}

fn has_token(headers: &HeaderMap) -> bool {
    !credentials(headers).cookies.is_empty()
}

/// `Set-Cookie` that takes the hosted service's token away, for whichever hosts it may be: this one, or all
/// below the base host or a domain that this is in. Browsers ignore what no host may set.
fn tokens_away(base: &BaseUrl) -> impl Iterator<Item = HeaderValue> {
    let domains = std::iter::successors(Some(base.host.as_str()), |host| Some(host.split_once('.')?.1));
    let domains = domains.map(|domain| format!("; Domain={domain}"));
    let cookies = std::iter::once(String::new()).chain(domains);
    cookies.filter_map(|domain| {
        HeaderValue::try_from(format!("{TOKEN_COOKIE}={domain}; Path=/; Max-Age=0")).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::HostName;

    #[test]
    fn the_browser_forgets_its_logins_whether_or_not_they_could_be_ended() {
        let base = BaseUrl { https: true, host: HostName::parse("gw.test").expect("a name"), port: None };
        let shown = "a=b; __Host-oneport-login-1=x; __Host-oneport-login=y; __Host-oneport-provider-z=z; \
                     oneport-login-2=x; __Host-oneport-logins=x; preevy-saas-jwt=t";
        let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static(shown))]);
        let (answer, _) = logged_out(&base, &headers, None, None).expect("an answer");
        let cookies: Vec<_> = answer.headers().get_all(header::SET_COOKIE).iter().cloned().collect();
        let refused = logged_out(&base, &headers, None, Some(&LogoutFault::TooMany)).map(drop);
        let refused = refused.expect_err("refused");
        let is_cookie = |(name, value): (_, HeaderValue)| (name == header::SET_COOKIE).then_some(value);
        assert_eq!(refused.headers.into_iter().filter_map(is_cookie).collect::<Vec<_>>(), cookies);
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        let away =
            |name| format!("__Host-oneport-{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure");
        let tokens = ["", "; Domain=gw.test", "; Domain=test"];
        let tokens = tokens.map(|domain| format!("preevy-saas-jwt={domain}; Path=/; Max-Age=0"));
        assert_eq!(cookies, [&["login-1", "login", "provider-z"].map(away)[..], &tokens].concat());
    }
}
