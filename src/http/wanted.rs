//! Where somebody wants to go who logs in: a preview that is there, a path on it, and nothing else.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::denial::{PATH_MAX, escape as escape_query};
use super::login::ours;
use super::respond::{Failure, escape};
use super::session::is_mark;
use super::{Http, callback};
use crate::access::{AccessLevel, Session};
use crate::name::{HostName, TunnelName};
use crate::net::VisitorAddr;
use crate::registry::Tunnel;

/// Where somebody wants to go who logs in.
pub(super) struct Wanted {
    /// The tunnel, if it is there.
    pub(super) tunnel: Option<Arc<Tunnel>>,
    /// Its name, as it was asked for; empty for none.
    pub(super) env: String,
    /// Who asks.
    from: VisitorAddr,
    /// A path there; empty for none.
    path: String,
    /// Which browser it is to be; `None`: it did not come from the tunnel itself.
    browser: Option<String>,
}

impl Wanted {
    /// Reads it from a query or a form.
    pub(super) fn read(http: &Http, text: &str, from: VisitorAddr) -> Self {
        let name = field(text, "env").and_then(|env| TunnelName::from_label(&env));
        let tunnel = name.as_ref().and_then(|name| http.registry.look_up(name));
        let env = name.map(|name| name.as_str().to_owned()).unwrap_or_default();
        let path = field(text, "returnPath").filter(|path| is_path(path)).unwrap_or_default();
        // Codes keep it: nothing but what a preview of ours has made.
        let browser = field(text, "browser").filter(|mark| is_mark(mark));
        Self { tunnel, env, from, path, browser }
    }

    /// The preview itself, and the path there.
    pub(super) fn place(&self, http: &Http, tunnel: &Tunnel) -> String {
        let base = &http.settings.base;
        format!("{}{}", base.origin_of(&HostName::child_of(tunnel.name.as_str(), &base.host)), self.path)
    }

    /// The way to the preview. Without a browser to hand the login to, it is the preview itself,
    /// which sends the browser here once more.
    pub(super) fn way(&self, http: &Http, session: &Session, tunnel: &Tunnel) -> Result<String, Failure> {
        match self.browser.as_deref().filter(|_| tunnel.access == AccessLevel::Private) {
            None => Ok(self.place(http, tunnel)),
            Some(browser) => {
                let base = &http.settings.base;
                let host = HostName::child_of(tunnel.name.as_str(), &base.host);
                let origin = base.origin_of(&host);
                let code = http.sessions.hand_over(session, host.as_str(), browser, self.from.0);
                let code = code.map_err(|error| ours(&error))?;
                Ok(format!("{origin}{}?code={code}&returnPath={}", callback::PATH, escape_query(&self.path)))
            }
        }
    }

    /// The same as a query, of bounded length: a path may be very long.
    pub(super) fn query(&self) -> String {
        let path = if self.path.len() > PATH_MAX { "" } else { &self.path };
        let browser = self.browser.as_deref().unwrap_or_default();
        let (env, path) = (escape_query(&self.env), escape_query(path));
        format!("env={env}&returnPath={path}&browser={browser}")
    }

    /// The same as fields of a form.
    pub(super) fn fields(&self) -> String {
        let field = |name, value| format!("<input type=hidden name={name} value=\"{}\">", escape(value));
        let browser = self.browser.as_deref().map_or(String::new(), |mark| field("browser", mark));
        format!("{}{}{browser}", field("env", &self.env), field("returnPath", &self.path))
    }
}

/// A value in a query.
pub(super) fn field(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

/// Whether a text leads to a path on the host that it is put behind, and nowhere else.
pub(super) fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && !text.starts_with("//")
        && text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_are_ways_back() {
        for good in ["/", "/a//b?c=d&e=%2F%5C#f", "/~!$'()*,;:@"] {
            assert!(is_path(good), "{good}");
        }
        for evil in [
            "",
            "a",
            "//evil.test",
            "/\\evil.test",
            "\\/evil.test",
            "/\t/evil.test",
            "/\r\nSet-Cookie: a=b",
            "/é",
            "@evil.test",
            ".evil.test",
            "https://evil.test",
            "/ ",
        ] {
            assert!(!is_path(evil), "{evil:?}");
        }
    }
}
