//! Challenges of services (`WWW-Authenticate`; RFC 9110, section 11.6.1): by most of them a browser asks for
//! a password, keeps it, and sends it by itself to all that shares the host.
//!
//! Where many share one, only challenges for tokens pass, for which browsers do neither. Readers differ in
//! where a challenge begins, so that what is not written plainly does not pass either.

use http::header::{self, HeaderMap, HeaderValue};

/// The schemes of tokens that programs show (RFC 6750, section 3; RFC 9449, section 7.1).
const FOR_TOKENS: [&str; 2] = ["Bearer", "DPoP"];

/// Takes out each field in which there is anything but challenges for tokens. Says what the first of
/// them began with.
pub(super) fn take_out(headers: &mut HeaderMap) -> Option<Vec<u8>> {
    let fields = || headers.get_all(header::WWW_AUTHENTICATE).iter();
    let first = fields().find(|field| !is_for_tokens(field))?;
    let first = first.as_bytes().split(|octet| octet.is_ascii_whitespace() || *octet == b',');
    let first = first.map(<[u8]>::to_vec).find(|word| !word.is_empty()).unwrap_or_default();
    let kept: Vec<HeaderValue> = fields().filter(|field| is_for_tokens(field)).cloned().collect();
    headers.remove(header::WWW_AUTHENTICATE);
    for field in kept {
        headers.append(header::WWW_AUTHENTICATE, field);
    }
    Some(first)
}

/// Whether a field is a list of nothing but challenges for tokens, each with parameters.
fn is_for_tokens(field: &HeaderValue) -> bool {
    // With an escape, some would see the end of the quotes elsewhere.
    let Some(text) = field.to_str().ok().filter(|text| !text.contains('\\')) else { return false };
    let mut has_begun = false;
    let mut is_quoted = false;
    let items = text.split(|c: char| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    });
    items.map(|item| item.trim_matches([' ', '\t'])).filter(|item| !item.is_empty()).all(|item| {
        let (word, rest) = item.split_once(' ').unwrap_or((item, ""));
        if FOR_TOKENS.iter().any(|scheme| word.eq_ignore_ascii_case(scheme)) {
            has_begun = true;
            let rest = rest.trim_start_matches(' ');
            rest.is_empty() || is_parameter(rest)
        } else {
            has_begun && is_parameter(item)
        }
    })
}

/// `name=token` or `name="text"`, with no space around the sign.
fn is_parameter(text: &str) -> bool {
    let is_token = |text: &str| {
        let is_of_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        !text.is_empty() && text.chars().all(is_of_token)
    };
    let Some((name, value)) = text.split_once('=') else { return false };
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    is_token(name) && quoted.map_or_else(|| is_token(value), |text| !text.contains('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_challenges_for_tokens_pass() {
        for kept in [
            "Bearer",
            "bearer realm=\"a, Basic b\"",
            "Bearer  realm=app, error=\"invalid_token\",error_description=\"it ended\"",
            "DPoP algs=\"ES256 PS256\", Bearer realm=\"x\",",
            "Bearer, DPoP",
        ] {
            assert!(is_for_tokens(&HeaderValue::from_static(kept)), "{kept}");
        }
        for dropped in [
            "Basic realm=\"app\"",
            "BASIC",
            "Negotiate",
            "NTLM TlRMTVNTUAAC",
            "Digest realm=\"a\", nonce=\"b\"",
            "Hoba x=y",
            "Bearer, Basic realm=\"app\"",
            "Basic realm=\"app\", Bearer",
            "Bearer realm=\"x\", Negotiate",
            "Bearer realm=\"x\" Basic realm=\"y\"",
            "Bearer realm=\"x\"Basic realm=\"y\"",
            "Bearer Basic realm=\"y\"",
            "Bearer realm=\"x, Basic realm=\"y\"",
            "Bearer realm=\"x, Basic realm=y",
            "Bearer realm=\"x\\\", Basic realm=\"y\"",
            "Bearer realm = \"x\"",
            "Bearer\trealm=\"x\", Basic realm=y",
            "Bearer token68==",
            "realm=\"x\", Bearer",
            "Bearer realm=",
            "Bearer =x",
            "Bearers",
        ] {
            assert!(!is_for_tokens(&HeaderValue::from_static(dropped)), "{dropped}");
        }
        assert!(!is_for_tokens(&HeaderValue::from_bytes(b"Bearer realm=\"\xe9\"").expect("valid")));
    }

    #[test]
    fn fields_are_judged_each_by_itself() {
        let mut headers = HeaderMap::new();
        for field in ["Bearer", ",Basic, x=y", "DPoP", "NTLM"] {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(field));
        }
        assert_eq!(take_out(&mut headers).as_deref(), Some(&b"Basic"[..]));
        let left: Vec<_> = headers.get_all(header::WWW_AUTHENTICATE).iter().collect();
        assert_eq!(left, ["Bearer", "DPoP"]);
        assert_eq!(take_out(&mut headers), None);
    }
}
