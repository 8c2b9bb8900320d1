//! What a person sees who runs `ssh -R … HOST` without a command.

use super::session::Session;
use crate::registry::Visit;

/// Writes lines for a person.
#[derive(Debug)]
pub struct Screen {
    pty: bool,
}

impl Screen {
    /// `pty`: whether a terminal is there.
    pub fn new(pty: bool) -> Self {
        Self { pty }
    }

    /// What is exposed, and how to leave.
    pub fn opening(&self, session: &Session) -> String {
        let base = &session.shared.settings.base;
        let (user, client) = match (session.user(), session.identity()) {
            (Some(user), Some(identity)) => (&**user, identity.client_id.as_str()),
            _ => ("", ""),
        };
        let mut text =
            self.line(&format!("oneport at {}: hello {user}, your client id is {client}", base.host));
        let tunnels = session.tunnels();
        if tunnels.is_empty() {
            text += &self
                .line("nothing is exposed yet; connect with -R /NAME:localhost:3000 to expose port 3000");
        }
        let width = tunnels.iter().map(|tunnel| tunnel.request_id.chars().count()).max().unwrap_or(0).min(40);
        for tunnel in tunnels {
            let name = tunnel.request_id.split('#').next().unwrap_or_default();
            text += &self.line(&format!(
                "  {name:width$}  {}  ({})",
                base.tunnel_url(&tunnel.name),
                tunnel.access
            ));
        }
        text + &self.line("requests appear here as they come; press q or Ctrl-C to end")
    }

    /// One request.
    pub fn visit(&self, visit: &Visit) -> String {
        let now = time::OffsetDateTime::now_utc();
        let (hour, minute, second) = now.to_hms();
        self.line(&format!(
            "{hour:02}:{minute:02}:{second:02}Z  {}  {} {}  {} ms  {}",
            visit.status.as_u16(),
            visit.method,
            visit.path,
            visit.millis,
            visit.tunnel,
        ))
    }

    /// One line, without anything in it that a terminal would obey.
    pub fn line(&self, text: &str) -> String {
        let mut line: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        line.push_str(if self.pty { "\r\n" } else { "\n" });
        line
    }

    /// Whether these keys mean "end": `q`, Ctrl-C or Ctrl-D. Without a terminal keys do not come
    /// one by one, and only Ctrl-C's byte, which no text holds, counts.
    pub fn is_end(&self, keys: &[u8]) -> bool {
        keys.iter().any(|key| *key == 3 || (self.pty && matches!(key, b'q' | b'Q' | 4)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_reaches_the_terminal_as_a_command() {
        let screen = Screen::new(true);
        assert_eq!(screen.line("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c\r\n");
        assert!(screen.is_end(b"q") && screen.is_end(b"\x03") && !screen.is_end(b"x"));
        assert!(!Screen::new(false).is_end(b"quit"));
    }
}
