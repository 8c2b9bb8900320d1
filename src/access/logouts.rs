//! Which sessions were ended before their time. Kept in a file, so that a restart brings none of
//! them back; each is forgotten when it would have ended anyway.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::keep::{self, hex, unhex};
use crate::net::address_group;

/// Most sessions that are remembered; for one more, the one that ends first is forgotten.
const ENDED_MAX: usize = 100_000;
/// Most of them that one address (of IPv6, one /64) has ended: nobody has others' be forgotten alone.
const OF_ADDRESS_MAX: usize = 4_000;
/// Seconds between looks for those that are over, where there are too many.
const LOOK: i64 = 60;
/// Lines of the file that stand for nothing any more, before it is written anew; and as many again as there
/// are others.
const STALE_LINES: usize = 1_000;

/// What names a session.
pub type SessionId = [u8; 16];

/// The sessions that were ended.
#[derive(Debug)]
pub struct Logouts {
    path: PathBuf,
    known: Mutex<Known>,
    /// Held while the file is written.
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Known {
    ended: HashMap<SessionId, Ended>,
    /// How many of them each address has ended.
    by: HashMap<IpAddr, usize>,
    /// When the next look for those that are over may be.
    look_at: i64,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    until: i64,
    /// `None`: before this process began.
    from: Option<IpAddr>,
}

/// What is in the file.
#[derive(Debug)]
struct Written {
    lines: usize,
    /// Whether its last line is whole, so that another may follow.
    is_whole: bool,
}

/// Why the end of a session is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum LogoutFault {
    /// It is not ended.
    #[error(
        "{OF_ADDRESS_MAX} logins were ended from your address of late, and no more are remembered; yours was not ended"
    )]
    TooMany,
    /// It is ended, but nowhere written down.
    #[error("a logout could not be written down, and a restart would undo it: {0}")]
    Write(#[from] io::Error),
}

impl Logouts {
    /// Reads the file, if there is one. Lines that are none are skipped.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf, now: i64) -> io::Result<Self> {
        let text = keep::read(&path)?;
        let ended = text.lines().filter_map(parse).filter(|(_, until)| *until > now).take(ENDED_MAX);
        let ended = ended.map(|(id, until)| (id, Ended { until, from: None })).collect();
        let written = Written {
            lines: text.lines().count(),
            // A process may have ended in the middle of one.
            is_whole: text.is_empty() || text.ends_with('\n'),
        };
        let known = Known { ended, ..Known::default() };
        Ok(Self { path, known: Mutex::new(known), written: Mutex::new(written) })
    }

    /// Whether this session was ended.
    #[must_use]
    pub fn contains(&self, id: &SessionId) -> bool {
        self.known.lock().ended.contains_key(id)
    }

    /// Ends a session that would have lived until this time (Unix, in seconds), as was asked `from` there.
    /// From now on it is ended, whether or not it can be written down.
    ///
    /// # Errors
    /// When it cannot be written down; or when it is not ended, because too many were from there. Writes a
    /// file: not for a busy task.
    pub fn end(&self, id: SessionId, until: i64, from: IpAddr, now: i64) -> Result<(), LogoutFault> {
        self.known.lock().add(id, Ended { until, from: Some(address_group(from)) }, now)?;
        let mut written = self.written.lock();
        let living = self.known.lock().ended.len();
        if written.is_whole && written.lines < 2 * living + STALE_LINES {
            // Until it is known to be there whole, it is not.
            written.is_whole = false;
            keep::append(&self.path, &line(&id, until))?;
            written.lines += 1;
        } else {
            // Every visit waits for this lock: nothing is written out under it.
            let all: Vec<_> = self.known.lock().ended.iter().map(|(id, ended)| (*id, ended.until)).collect();
            let living = || all.iter().filter(|(_, until)| *until > now);
            keep::write(&self.path, &living().map(|(id, until)| line(id, *until)).collect::<String>())?;
            written.lines = living().count();
        }
        written.is_whole = true;
        Ok(())
    }
}

impl Known {
    fn add(&mut self, id: SessionId, new: Ended, now: i64) -> Result<(), LogoutFault> {
        if let Some(known) = self.ended.get_mut(&id) {
            known.until = known.until.max(new.until);
            return Ok(());
        }
        let of_address = |by: &HashMap<IpAddr, usize>| new.from.and_then(|from| by.get(&from).copied());
        let is_full = |known: &Self| of_address(&known.by).is_some_and(|count| count >= OF_ADDRESS_MAX);
        if (is_full(self) || self.ended.len() >= ENDED_MAX) && now >= self.look_at {
            self.look_at = now + LOOK;
            self.forget(|ended| ended.until <= now);
        }
        if is_full(self) {
            return Err(LogoutFault::TooMany);
        }
        if self.ended.len() >= ENDED_MAX
            && let Some(first) = self.ended.values().map(|ended| ended.until).min()
        {
            tracing::warn!("more than {ENDED_MAX} sessions were ended; the oldest are forgotten");
            self.forget(|ended| ended.until <= first);
        }
        if let Some(from) = new.from {
            *self.by.entry(from).or_default() += 1;
        }
        self.ended.insert(id, new);
        Ok(())
    }

    fn forget(&mut self, is_meant: impl Fn(&Ended) -> bool) {
        let by = &mut self.by;
        self.ended.retain(|_, ended| {
            let stays = !is_meant(ended);
            if let (false, Some(count)) = (stays, ended.from.and_then(|from| by.get_mut(&from))) {
                *count -= 1;
            }
            stays
        });
        by.retain(|_, count| *count > 0);
    }
}

/// `HEX UNTIL`.
fn line(id: &SessionId, until: i64) -> String {
    let mut line = hex(id);
    let _ = writeln!(line, " {until}");
    line
}

fn parse(line: &str) -> Option<(SessionId, i64)> {
    let (id, until) = line.split_once(' ')?;
    Some((unhex(id)?, until.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::access::sessions::tests::HERE;

    fn id(number: usize) -> SessionId {
        (number as u128).to_be_bytes()
    }

    #[test]
    fn what_was_ended_stays_so_over_a_restart_until_its_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        let logouts = Logouts::open(path.clone(), 0).expect("opened");
        logouts.end([0xab; 16], 100, HERE, 0).expect("written");
        logouts.end([1; 16], 50, HERE, 0).expect("written");
        assert!(logouts.contains(&[0xab; 16]) && !logouts.contains(&[2; 16]));
        fs::write(
            &path,
            format!("{}\nnonsense\n{} 7\n", fs::read_to_string(&path).expect("there"), "é".repeat(16)),
        )
        .expect("writable");
        let again = Logouts::open(path, 60).expect("opened");
        assert!(again.contains(&[0xab; 16]) && !again.contains(&[1; 16]));
    }

    #[test]
    fn one_more_is_one_more_line_and_what_is_over_goes_in_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        let logouts = Logouts::open(path.clone(), 0).expect("opened");
        logouts.end(id(0), 10, HERE, 0).expect("written");
        let inode = || fs::metadata(&path).expect("there").ino();
        let first = inode();
        (1..STALE_LINES).for_each(|number| logouts.end(id(number), 10, HERE, 0).expect("written"));
        assert_eq!(inode(), first, "it was written anew");
        let lines = || fs::read_to_string(&path).expect("there").lines().count();
        assert_eq!(lines(), STALE_LINES);
        // After a restart, all of them are over.
        let again = Logouts::open(path.clone(), 20).expect("opened");
        again.end(id(1), 30, HERE, 20).expect("written");
        again.end(id(2), 30, HERE, 20).expect("written");
        again.end(id(3), 30, HERE, 20).expect("written");
        assert_eq!(lines(), STALE_LINES + 3);
        (4..STALE_LINES).for_each(|number| again.end(id(number), 30, HERE, 20).expect("written"));
        assert!(lines() < 2 * STALE_LINES, "{}", lines());
    }

    #[test]
    fn half_a_line_spoils_no_other() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        Logouts::open(path.clone(), 0).expect("opened").end(id(1), 100, HERE, 0).expect("written");
        let text = fs::read_to_string(&path).expect("there");
        fs::write(&path, format!("{text}{}", &line(&id(2), 100)[..20])).expect("writable");
        Logouts::open(path.clone(), 0).expect("opened").end(id(3), 100, HERE, 0).expect("written");
        let again = Logouts::open(path, 0).expect("opened");
        assert!(again.contains(&id(1)) && again.contains(&id(3)) && !again.contains(&id(2)));
    }

    #[test]
    fn no_address_has_those_of_others_be_forgotten() {
        let mut known = Known::default();
        let ended = |from: &str, until| Ended { until, from: Some(from.parse().expect("an address")) };
        known.add([0xab; 16], ended("192.0.2.1", 50), 0).expect("room");
        let mut add = |number, until, now| known.add(id(number), ended("192.0.2.2", until), now);
        for number in 0..OF_ADDRESS_MAX {
            add(number, 100, 0).expect("room");
        }
        assert!(matches!(add(OF_ADDRESS_MAX, 100, 1), Err(LogoutFault::TooMany)));
        add(0, 200, 1).expect("known already");
        // When the others are over, there is room.
        add(OF_ADDRESS_MAX, 300, 150).expect("room");
        assert!(!known.ended.contains_key(&[0xab; 16]) && known.ended.contains_key(&id(0)));
        assert_eq!((known.ended.len(), known.by.values().sum::<usize>()), (2, 2));
    }
}
