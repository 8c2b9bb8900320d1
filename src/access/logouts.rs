//! Which sessions were ended before their time. Kept in a file, so that a restart brings none of
//! them back; each is forgotten when it would have ended anyway.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

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
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
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
            for octet in id {
                let _ = write!(text, "{octet:02x}");
            }
            let _ = writeln!(text, " {until}");
        }
        write_whole(&self.path, &text)
    }
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|lost| lost.error)
}

/// `HEX UNTIL`.
fn parse(line: &str) -> Option<(SessionId, i64)> {
    let (hex, until) = line.split_once(' ')?;
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    let mut id = SessionId::default();
    for (octet, digits) in id.iter_mut().zip((0..32).step_by(2)) {
        *octet = u8::from_str_radix(&hex[digits..digits + 2], 16).ok()?;
    }
    Some((id, until.parse().ok()?))
}

#[cfg(test)]
mod tests {
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
