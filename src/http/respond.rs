//! The only place that turns an error into an answer: a small page for browsers, JSON for
//! programs that ask for it, plain text for all others. Each says what happened, the reason's
//! word, the request's id and what to do.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::body::Answer;
use super::record::RequestId;
use crate::access::Login;
use crate::observe::Reason;

/// Why a request got no answer from a service. Only [`error`] makes an answer of it.
#[derive(Debug)]
pub(super) struct Failure {
    /// The word for it.
    pub(super) reason: Reason,
    /// The status for it.
    pub(super) status: StatusCode,
    /// What happened.
    pub(super) what: Cow<'static, str>,
    /// What to do next.
    pub(super) next: Cow<'static, str>,
    /// Headers that belong to the status. Few failures have any.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// What happened, where the log says more of it than the visitor hears.
    pub(super) for_log: Option<String>,
    /// The kind of failed login that it counts as, if it is one.
    pub(super) failed_login: Option<Login>,
}

impl Failure {
    /// A failure in words.
    pub(super) fn new(
        reason: Reason,
        status: StatusCode,
        what: impl Into<Cow<'static, str>>,
        next: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (what, next, headers) = (what.into(), next.into(), Vec::new());
        Self { reason, status, what, next, headers, for_log: None, failed_login: None }
    }

    /// The same with a header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// A request that breaks HTTP, or that could be read in two ways.
    pub(super) fn bad_request(what: impl Into<Cow<'static, str>>) -> Self {
        let next = "send the request again in the form that RFC 9112 describes";
        Self::new(Reason::BadRequest, StatusCode::BAD_REQUEST, what, next)
    }
}

/// How an answer of the gateway's own is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A page for a browser.
    Html,
    /// An object for a program.
    Json,
    /// Text for all others.
    Text,
}

impl Form {
    /// What `Accept` asks for; the first of its words that we write wins.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT);
        let words = values.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        words
            .map(|word| word.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
            .find_map(|kind| match kind.as_str() {
                "text/html" | "application/xhtml+xml" => Some(Self::Html),
                kind if kind == "application/json" || kind.ends_with("+json") => Some(Self::Json),
                "text/plain" => Some(Self::Text),
                _ => None,
            })
            .unwrap_or(Self::Text)
    }
}

/// Makes the answer to a request that failed.
pub(super) fn error(failure: &Failure, form: Form, id: RequestId) -> Response<Answer> {
    let Failure { reason, status, what, next, headers, .. } = failure;
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let text = match form {
        Form::Html => page(
            &title,
            &format!(
                "<p>{}.</p><p>{}.</p><p class=small>reason <code>{reason}</code> · request <code>{id}</code></p>",
                escape(&capital(what)),
                escape(&capital(next)),
            ),
        ),
        Form::Json => {
            let object = serde_json::json!({
                "message": what, "reason": reason.word(), "id": id.to_string(), "next": next,
            });
            format!("{object}\n")
        }
        Form::Text => format!("{}.\n{}.\nreason: {reason}\nrequest: {id}\n", capital(what), capital(next)),
    };
    let mut answer = own(*status, form, text);
    let mut say = |name, value| drop(answer.headers_mut().insert(name, HeaderValue::from_static(value)));
    match *status {
        // The only methods that the gateway's own paths have.
        StatusCode::METHOD_NOT_ALLOWED => say(header::ALLOW, "GET, HEAD"),
        StatusCode::UNAUTHORIZED => say(header::WWW_AUTHENTICATE, "Bearer"),
        _ => {}
    }
    for (name, _) in headers {
        answer.headers_mut().remove(name);
    }
    for (name, value) in headers {
        answer.headers_mut().append(name, value.clone());
    }
    answer
}

/// Makes an answer of the gateway's own.
pub(super) fn own(status: StatusCode, form: Form, text: impl Into<Bytes>) -> Response<Answer> {
    let mut answer = Response::new(Answer::own(text.into()));
    *answer.status_mut() = status;
    let kind = match form {
        Form::Html => "text/html; charset=utf-8",
        Form::Json => "application/json; charset=utf-8",
        Form::Text => "text/plain; charset=utf-8",
    };
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// How pages look.
const STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem}\
    .small{color:#666;font-size:.85rem}input,button{font:inherit;padding:.3rem .6rem}\
    input{width:100%;box-sizing:border-box;margin-bottom:.6rem}";

/// A small page; `content` is HTML, `title` is text.
pub(super) fn page(title: &str, content: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{content}</html>\n"
    )
}

/// Has a browser load nothing for a page, run nothing in it, and show it in no frame; `more` are
/// further directives. Who came from the page is said to its own host only.
pub(super) fn restrict(headers: &mut HeaderMap, more: &str) {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, STYLE.as_bytes());
        let style = STANDARD.encode(digest);
        format!("default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; frame-ancestors 'none'")
    });
    if let Ok(policy) = HeaderValue::try_from(format!("{}{more}", *POLICY)) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    // With none at all, the page's own forms would come from nobody.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
}

/// Text as HTML.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_chooses_the_form() {
        let form = |accept| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            Form::accepted(&headers)
        };
        assert_eq!(form("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), Form::Html);
        assert_eq!(form("application/json, text/plain, */*"), Form::Json);
        assert_eq!(form("application/problem+json"), Form::Json);
        assert_eq!(form("Application/JSON"), Form::Json);
        assert_eq!(form("*/*"), Form::Text);
    }

    #[test]
    fn nothing_from_outside_becomes_markup() {
        assert_eq!(escape("<script src='x' a=\"&\">"), "&lt;script src=&#39;x&#39; a=&quot;&amp;&quot;&gt;");
    }
}
