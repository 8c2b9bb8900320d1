//! Puts scripts into HTML answers while they stream by.
//!
//! Which elements, where and under which entity tag is the contract's. What cannot be taken
//! apart (an unknown coding, a charset that is no superset of ASCII) is passed on as it is.

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::body::Answer;
use super::exchange::Exchange;
use super::rewrite::{Injected, Plan};
use crate::registry::Script;

/// What is put in front of the hash within an entity tag.
const TAG_MARK: &str = "+preevy:";
/// The codings that can be taken apart.
const CODINGS: [&str; 7] = ["gzip", "x-gzip", "deflate", "br", "identity", "*", ""];
/// Digests of a body that is going to change.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("content-md5"),
];

/// The scripts for one request.
#[derive(Debug)]
pub(super) struct Injection {
    elements: String,
    tag_suffix: String,
    /// Whether the request's conditions held an entity tag of ours.
    conditional: bool,
}

impl Injection {
    /// The scripts that match the path; `None` when no script does.
    pub(super) fn of(scripts: &[Script], path: &str) -> Option<Self> {
        let matching = |script: &&Script| script.path.as_ref().is_none_or(|pattern| pattern.is_match(path));
        let elements: String = scripts.iter().filter(matching).map(script_element).collect();
        let tag_suffix = format!("{TAG_MARK}{}", base36(fnv1a(elements.as_bytes())));
        (!elements.is_empty()).then_some(Self { elements, tag_suffix, conditional: false })
    }

    /// The elements to put in.
    pub(super) fn elements(&self) -> &str {
        &self.elements
    }

    /// What an entity tag ends in when the elements are in the page.
    pub(super) fn tag_suffix(&self) -> &str {
        &self.tag_suffix
    }

    /// Prepares the request: entity tags lose our suffix, and no coding is offered that could not
    /// be taken apart.
    pub(super) fn prepare(&mut self, headers: &mut HeaderMap) {
        let marked = format!("{}\"", self.tag_suffix());
        for name in [header::IF_NONE_MATCH, header::IF_MATCH] {
            let Entry::Occupied(mut values) = headers.entry(name) else { continue };
            for value in values.iter_mut() {
                // Another suffix is that of other scripts: the visitor's copy is out of date then.
                let Some(plain) = value.to_str().ok().filter(|tags| tags.contains(&marked)) else { continue };
                if let Ok(plain) = HeaderValue::try_from(plain.replace(&marked, "\"")) {
                    *value = plain;
                    self.conditional = true;
                }
            }
        }
        let known = |word: &&str| {
            let coding = word.split(';').next().unwrap_or_default().trim();
            CODINGS.iter().any(|known| known.eq_ignore_ascii_case(coding))
        };
        let Entry::Occupied(mut values) = headers.entry(header::ACCEPT_ENCODING) else { return };
        for value in values.iter_mut() {
            let kept: Vec<_> = value.to_str().unwrap_or_default().split(',').filter(known).collect();
            let kept = if kept.is_empty() { "identity".to_owned() } else { kept.join(",") };
            if let Ok(kept) = HeaderValue::try_from(kept.trim()) {
                *value = kept;
            }
        }
    }

    /// Decides whether this answer gets the scripts, and changes its headers if it does. Gives
    /// what takes the body apart; `None`: the body stays as it is.
    pub(super) fn adjust(
        &self,
        method: &Method,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) -> Option<Plan> {
        if status == StatusCode::NOT_MODIFIED && self.conditional {
            self.mark_tag(headers);
        }
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::PARTIAL_CONTENT];
        if status.is_informational() || bodiless.contains(&status) {
            return None;
        }
        let plan = Plan::of(headers)?;
        self.mark_tag(headers);
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::ACCEPT_RANGES);
        for name in DIGESTS {
            headers.remove(name);
        }
        (*method != Method::HEAD).then_some(plan)
    }

    fn mark_tag(&self, headers: &mut HeaderMap) {
        if let Some(tag) = headers.get_mut(header::ETAG)
            && let Some(head) = tag.to_str().ok().and_then(|tag| tag.strip_suffix('"'))
            && let Ok(marked) = HeaderValue::try_from(format!("{head}{}\"", self.tag_suffix))
        {
            *tag = marked;
        }
    }
}

/// A service's body, with scripts put in where that is asked for; the head is made to fit.
pub(super) fn relay(
    parts: &mut http::response::Parts,
    body: Exchange,
    injection: Option<&Injection>,
    method: &Method,
) -> Answer {
    let plan = injection
        .and_then(|injection| Some((injection, injection.adjust(method, parts.status, &mut parts.headers)?)));
    match plan {
        Some((injection, plan)) if !http_body::Body::is_end_stream(&body) => {
            let cut = body.cut().cloned().unwrap_or_default();
            Answer::injected(Injected::new(body, injection.elements(), plan), cut)
        }
        _ => Answer::relayed(body),
    }
}

/// The element for a script, exactly as the contract's entity tags hash it.
fn script_element(script: &Script) -> String {
    let src = script.src.replace('"', "&quot;");
    let flag = |on, word| if on { word } else { "" };
    format!(
        "<script src=\"{src}\"{}{}></script>",
        flag(script.is_async, " async"),
        flag(script.defer, " defer")
    )
}

/// 32-bit FNV-1a (draft-eastlake-fnv, section 2).
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    while number > 0 || digits.is_empty() {
        digits.push(char::from_digit(number % 36, 36).unwrap_or('0'));
        number /= 36;
    }
    digits.iter().rev().collect()
}
