//! Which sessions were ended before their time. Kept in a file, so that a restart brings none of
//! them back; each is forgotten when it would have ended anyway.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::keep::{self, hex, unhex};

/// Most sessions that are remembered; for one more, the one that ends first is forgotten.
const ENDED_MAX: usize = 100_000;

/// What names a session.
pub type SessionId = [u8; 16];

/// The sessions that were ended.
#[derive(Debug)]
pub struct Logouts {
    path: PathBuf,
    ended: Mutex<HashMap<SessionId, i64>>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

impl Logouts {
    /// Reads the file, if there is one. Lines that are none are skipped.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf, now: i64) -> io::Result<Self> {
        let text = keep::read(&path)?;
        let ended =
            text.lines().filter_map(parse).filter(|(_, until)| *until > now).take(ENDED_MAX).collect();
        Ok(Self { path, ended: Mutex::new(ended), writing: Mutex::default() })
    }

    /// Whether this session was ended.
    #[must_use]
    pub fn contains(&self, id: &SessionId) -> bool {
        self.ended.lock().contains_key(id)
    }

    /// Ends a session that would have lived until this time (Unix, in seconds). From now on it is
    /// ended, whether or not it can be written down.
    ///
    /// # Errors
    /// When it cannot be written down. Writes a file: not for a busy task.
    pub fn end(&self, id: SessionId, until: i64, now: i64) -> io::Result<()> {
        {
            let mut ended = self.ended.lock();
            if ended.len() >= ENDED_MAX {
                ended.retain(|_, until| *until > now);
            }
            if ended.len() >= ENDED_MAX
                && let Some(first) = ended.iter().min_by_key(|(_, until)| **until).map(|(id, _)| *id)
            {
                tracing::warn!("more than {ENDED_MAX} sessions were ended; the oldest are forgotten");
                ended.remove(&first);
            }
            ended.insert(id, until);
        }
        let _turn = self.writing.lock();
        let mut text = String::new();
        for (id, until) in self.ended.lock().iter().filter(|(_, until)| **until > now) {
            let _ = writeln!(text, "{} {until}", hex(id));
        }
        keep::write(&self.path, &text)
    }
}

/// `HEX UNTIL`.
fn parse(line: &str) -> Option<(SessionId, i64)> {
    let (id, until) = line.split_once(' ')?;
    Some((unhex(id)?, until.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_ended_stays_so_over_a_restart_until_its_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        let logouts = Logouts::open(path.clone(), 0).expect("opened");
        logouts.end([0xab; 16], 100, 0).expect("written");
        logouts.end([1; 16], 50, 0).expect("written");
        assert!(logouts.contains(&[0xab; 16]) && !logouts.contains(&[2; 16]));
        fs::write(
            &path,
            format!("{}\nnonsense\n{} 7\n", fs::read_to_string(&path).expect("there"), "é".repeat(16)),
        )
        .expect("writable");
        let again = Logouts::open(path, 60).expect("opened");
        assert!(again.contains(&[0xab; 16]) && !again.contains(&[1; 16]));
    }
}
