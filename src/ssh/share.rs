//! Guest links, as an agent asks for them: `share`, `shares` and `unshare`. Each is about previews of
//! the agent's own key, and no others.

use std::time::Duration;

use serde::Serialize;

use super::session::Session;
use crate::access::{AccessLevel, GUEST_PATH, Identity, Share, ShareFault, ShareId};
use crate::config::{BaseUrl, parse_duration};
use crate::name::{HostName, TunnelName};

/// How long a link is good that says no time.
const DEFAULT: Duration = Duration::from_secs(60 * 60);
/// Characters of a word that are repeated in an answer.
const SHOWN_MAX: usize = 60;

/// A command about guest links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareCommand {
    /// Share this preview for this time.
    Share(String, Duration),
    /// What is shared?
    List,
    /// Take one back; `None`: all.
    TakeBack(Option<ShareId>),
    /// One that was not understood, and why.
    Faulty(String),
}

/// What is said to a command.
#[derive(Debug, Default)]
pub struct Answer {
    /// For standard output: one line of JSON and CRLF, or nothing.
    pub text: String,
    /// For standard error.
    pub notes: Vec<String>,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    url: String,
    until: String,
}

impl ShareCommand {
    /// Understands an `exec` request; `None` when it is about something else.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let words: Vec<_> = std::str::from_utf8(line).ok()?.split_whitespace().collect();
        let (command, arguments) = words.split_first()?;
        let faulty = |what: &str| Self::Faulty(what.to_owned());
        Some(match (*command, arguments) {
            ("share", [name]) => Self::share(name, None),
            ("share", [name, time]) => Self::share(name, Some(time)),
            ("share", _) => faulty("write `share NAME` or `share NAME TIME`, such as `share web 2h`"),
            ("shares", []) => Self::List,
            ("shares", _) => faulty("write `shares` alone"),
            ("unshare", ["all"]) => Self::TakeBack(None),
            ("unshare", [id]) => match ShareId::parse(id) {
                Some(id) => Self::TakeBack(Some(id)),
                None => Self::Faulty(format!(
                    "`{}` is not the id of a guest link; `shares` lists them",
                    shown(id)
                )),
            },
            ("unshare", _) => faulty("write `unshare ID` or `unshare all`; `shares` lists the ids"),
            _ => return None,
        })
    }

    fn share(name: &str, time: Option<&str>) -> Self {
        // As it stands in the forward request.
        let bare = name.split('#').next().unwrap_or_default();
        // What begins with a hyphen may be a name, but who writes it asks for something else.
        if bare.trim_start_matches('/').is_empty() || bare.starts_with('-') {
            return Self::Faulty(format!(
                "`{}` is not the name of a preview; write `share NAME TIME`, such as `share web 2h`",
                shown(name)
            ));
        }
        match time.map_or(Ok(DEFAULT), parse_duration) {
            Ok(time) => Self::Share(bare.to_owned(), time),
            Err(_) => Self::Faulty(format!(
                "`{}` is not a time; write a number and a unit, such as `30m`, `2h` or `7d`",
                shown(time.unwrap_or_default())
            )),
        }
    }

    /// Does it. The number is the exit status. Writes a file, and waits for it: not cancel safe.
    pub async fn answer(&self, session: &Session) -> (Answer, u32) {
        match self.try_answer(session).await {
            Ok(answer) => (answer, 0),
            Err(what) => (Answer { notes: vec![what], ..Answer::default() }, 1),
        }
    }

    async fn try_answer(&self, session: &Session) -> Result<Answer, String> {
        let (base, shares) = (&session.shared.settings.base, &session.shared.shares);
        let identity = session.identity().ok_or("the session is ending")?;
        let fail = |fault: ShareFault| {
            match &fault {
                ShareFault::NotKept(_) | ShareFault::NotForgotten(_) | ShareFault::Seal(_) => {
                    tracing::error!(conn = %session.conn, error = %fault, "guest links cannot be kept");
                }
                _ => tracing::info!(conn = %session.conn, detail = %fault, "guest link refused"),
            }
            fault.to_string()
        };
        match self {
            Self::Faulty(what) => Err(what.clone()),
            Self::List => {
                let all: Vec<_> = shares.of(identity).iter().map(|share| listed(share, base)).collect();
                Ok(Answer::of(&all, Vec::new()))
            }
            Self::TakeBack(id) => {
                let ended = shares.take_back(identity, *id).await.map_err(fail)?;
                let ended: Vec<_> = ended.iter().map(ShareId::to_string).collect();
                tracing::info!(conn = %session.conn, key = %identity.fingerprint, links = ?ended, "guest links taken back");
                Ok(Answer::of(&ended, Vec::new()))
            }
            Self::Share(name, time) => {
                let name = meant(session, name, identity)?;
                let host = HostName::child_of(name.as_str(), &base.host);
                let note = note(session, &name, identity);
                let from = session.shared.admission.place_of(session.peer.ip());
                let shared = shares.share(identity, from, name, host.as_str(), *time).await;
                let (share, link) = shared.map_err(fail)?;
                tracing::info!(conn = %session.conn, key = %identity.fingerprint, link = %share.id, host = %host, until = share.until(), "guest link made");
                let url = format!("{}{GUEST_PATH}?link={link}", base.origin_of(&host));
                let answer = Shown { url, ..listed(&share, base) };
                Ok(Answer::of(&answer, note.into_iter().collect()))
            }
        }
    }
}

impl Answer {
    fn of(json: &impl Serialize, notes: Vec<String>) -> Self {
        let json = serde_json::to_string(json).expect("texts and lists of them always become JSON");
        Self { text: json + "\r\n", notes }
    }
}

/// The preview that a name is for: as agents ask for it, or as it stands in its URL, or all of that.
fn meant(session: &Session, name: &str, identity: &Identity) -> Result<TunnelName, String> {
    let derived = TunnelName::derive(name, &identity.client_id);
    let is_theirs = |name: &TunnelName| access_of(session, name, identity).is_some();
    if is_theirs(&derived) {
        return Ok(derived);
    }
    let base = &session.shared.settings.base.host;
    if let Some(label) = label_in(name, base) {
        let own = format!("-{}", identity.client_id);
        let public = TunnelName::from_label(&label).filter(|_| label.ends_with(&own));
        return public.ok_or_else(|| {
            format!("`{}` is not a preview of your key, whose hosts end in `{own}`", shown(name))
        });
    }
    if name.contains("://") {
        return Err(format!(
            "`{}` is not the URL of a preview here, which are below `{base}`; a preview's name will do",
            shown(name)
        ));
    }
    Ok(TunnelName::from_label(name).filter(is_theirs).unwrap_or(derived))
}

/// `LABEL` of `https://LABEL.BASE:PORT/PATH`, or of a part of that which holds `LABEL.BASE`.
fn label_in(text: &str, base: &HostName) -> Option<String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, _) = HostName::parse_authority(authority).ok()?;
    host.label_under(base).map(str::to_owned)
}

/// Who may visit it, if this key offers it now.
fn access_of(session: &Session, name: &TunnelName, identity: &Identity) -> Option<AccessLevel> {
    let tunnel = session.shared.registry.look_up(name)?;
    (tunnel.owner.fingerprint == identity.fingerprint).then_some(tunnel.access)
}

/// What somebody should know who shares this.
fn note(session: &Session, name: &TunnelName, identity: &Identity) -> Option<String> {
    match access_of(session, name, identity) {
        Some(AccessLevel::Private) => None,
        Some(AccessLevel::Public) => {
            Some(format!("`{name}` is public: everybody may visit it without a link"))
        }
        None => Some(format!(
            "your key does not offer `{name}` now; the link opens it while it does, so check the name"
        )),
    }
}

fn listed(share: &Share, base: &BaseUrl) -> Shown {
    Shown { id: share.id.to_string(), url: base.tunnel_url(&share.name), until: share.until() }
}

/// A word of the agent's, without anything in it that a terminal would obey.
pub fn shown(word: &str) -> String {
    word.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<ShareCommand> {
        ShareCommand::parse(line.as_bytes())
    }

    #[test]
    fn commands_are_understood_or_say_what_is_wrong() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(parse("share web"), Some(ShareCommand::Share("web".into(), hours(1))));
        assert_eq!(
            parse("share /web#access=private 2d"),
            Some(ShareCommand::Share("/web".into(), hours(48)))
        );
        assert_eq!(parse("shares"), Some(ShareCommand::List));
        assert_eq!(parse("unshare all"), Some(ShareCommand::TakeBack(None)));
        assert!(matches!(parse("unshare 00112233aabbccdd"), Some(ShareCommand::TakeBack(Some(_)))));
        for bad in [
            "share",
            "share --help",
            "share / 1h",
            "share web x",
            "share a b c",
            "shares x",
            "unshare",
            "unshare \u{1b}[2J",
        ] {
            let Some(ShareCommand::Faulty(what)) = parse(bad) else { panic!("{bad} was taken") };
            assert!(!what.contains('\u{1b}'), "{what}");
        }
        assert_eq!(parse("hello"), None);
    }

    #[test]
    fn a_preview_may_be_named_by_its_url() {
        let base = HostName::parse("gw.test").expect("a host");
        for text in [
            "web-abc.gw.test",
            "https://web-abc.gw.test",
            "https://WEB-abc.gw.test:8443/a?b",
            "web-abc.gw.test:1",
        ] {
            assert_eq!(label_in(text, &base).as_deref(), Some("web-abc"), "{text}");
        }
        for text in
            ["web", "/web", "a.b.gw.test", "gw.test", ".gw.test", "web.other.test", "xgw.test", "https://"]
        {
            assert_eq!(label_in(text, &base), None, "{text}");
        }
    }
}
