//! Which sessions were ended before their time. Kept in a file, so that a restart brings none of
//! them back; each is forgotten when it would have ended anyway.
//!
//! Of so many at most. Who ends very many has theirs refused, and in the end forgotten, before those of
//! anybody else: by where they are, and by who vouches for them, as anybody can make keys.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::keep::{self, hex, unhex};
use super::session::Voucher;

/// Most sessions that are remembered.
const ENDED_MAX: usize = 100_000;
/// How many are forgotten at once where there would be more: it takes a while to find out which.
const ROOM: usize = ENDED_MAX / 10;
/// Most of them that were ended from one address (of IPv6, one /64) and that the same vouches for.
const OF_ONE_MAX: usize = 4_000;
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
    /// How many of them each has ended.
    by: HashMap<By, usize>,
    /// When the next look for those that are over may be.
    look_at: i64,
}

/// Whose logouts count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct By {
    /// Where they are; of an IPv6 /64, its first address.
    pub from: IpAddr,
    /// Who vouches for them. Others may share the address.
    pub voucher: Voucher,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    until: i64,
    /// `None`: before this process began.
    by: Option<By>,
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
        "{OF_ONE_MAX} logins such as yours were ended from your address of late, and no more are remembered: this browser is logged out here, but not of the previews that it has opened"
    )]
    TooMany,
    /// It is ended, but nowhere written down.
    #[error("a logout could not be written down, and a restart would undo it: {0}")]
    Write(#[from] io::Error),
}

impl Logouts {
    /// Reads the file, if there is one. Lines that are none are skipped; of too many, the last are taken,
    /// which are the newest.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(path: PathBuf, now: i64) -> io::Result<Self> {
        let text = keep::read(&path)?;
        let mut ended = HashMap::new();
        for (id, until) in text.lines().rev().filter_map(parse).filter(|(_, until)| *until > now) {
            if ended.len() < ENDED_MAX || ended.contains_key(&id) {
                let known = ended.entry(id).or_insert(Ended { until, by: None });
                known.until = known.until.max(until);
            }
        }
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

    /// Ends a session that would have lived until this time (Unix, in seconds). From now on it is ended,
    /// whether or not it can be written down.
    ///
    /// # Errors
    /// When it cannot be written down; or when it is not ended, because too many were by the same. Writes a
    /// file: not for a busy task.
    pub fn end(&self, id: SessionId, until: i64, by: By, now: i64) -> Result<(), LogoutFault> {
        let has_forgotten = self.known.lock().add(id, Ended { until, by: Some(by) }, now)?;
        let mut written = self.written.lock();
        // Or a restart would have those again that were forgotten, and not others.
        written.is_whole &= !has_forgotten;
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
    /// Whether some were forgotten for it that are not over.
    fn add(&mut self, id: SessionId, new: Ended, now: i64) -> Result<bool, LogoutFault> {
        if let Some(known) = self.ended.get_mut(&id) {
            known.until = known.until.max(new.until);
            return Ok(false);
        }
        let count = |known: &Self| new.by.and_then(|by| known.by.get(&by).copied()).unwrap_or_default();
        if count(self) >= OF_ONE_MAX && now >= self.look_at {
            self.look_at = now + LOOK;
            self.forget(|_, ended| ended.until <= now);
        }
        if count(self) >= OF_ONE_MAX {
            return Err(LogoutFault::TooMany);
        }
        let has_forgotten = self.ended.len() >= ENDED_MAX && self.make_room(now);
        if let Some(by) = new.by {
            *self.by.entry(by).or_default() += 1;
        }
        self.ended.insert(id, new);
        Ok(has_forgotten)
    }

    /// Forgets those that are over, and so many others as it takes. Whether there were others.
    fn make_room(&mut self, now: i64) -> bool {
        self.forget(|_, ended| ended.until <= now);
        let left = ENDED_MAX - ROOM;
        if self.ended.len() <= left {
            return false;
        }
        let gone = self.by_turns().split_off(left);
        tracing::warn!(
            sessions = gone.len(),
            "more than {ENDED_MAX} sessions were ended; some are forgotten, of whoever ended the most"
        );
        let gone: HashSet<SessionId> = gone.into_iter().collect();
        self.forget(|id, _| gone.contains(id));
        true
    }

    /// All of them, in turns: of each address and issuer or provider one, then of each another one. All keys
    /// at an address are one of these, and take turns in it. Who ends many so stands behind all who end
    /// fewer, with however many keys.
    fn by_turns(&self) -> Vec<SessionId> {
        let mut all: Vec<_> = self.ended.iter().map(|(id, ended)| (0, *id, *ended)).collect();
        take_turns(&mut all, |by| by);
        take_turns(&mut all, |by| (by.from, by.voucher.origin));
        in_order(&mut all);
        all.into_iter().map(|(_, id, _)| id).collect()
    }

    fn forget(&mut self, is_meant: impl Fn(&SessionId, &Ended) -> bool) {
        let by = &mut self.by;
        self.ended.retain(|id, ended| {
            let stays = !is_meant(id, ended);
            if let (false, Some(count)) = (stays, ended.by.and_then(|whose| by.get_mut(&whose))) {
                *count -= 1;
            }
            stays
        });
        by.retain(|_, count| *count > 0);
    }
}

/// A session, and when its turn is.
type Turn = (usize, SessionId, Ended);

/// Gives the sessions of each group turns one after the other, in the order that they have.
fn take_turns<G: Hash + Eq>(all: &mut [Turn], group: impl Fn(By) -> G) {
    in_order(all);
    let mut next: HashMap<Option<G>, usize> = HashMap::new();
    for (turn, _, ended) in all {
        let next = next.entry(ended.by.map(&group)).or_default();
        *turn = *next;
        *next += 1;
    }
}

/// By their turns, and then those first that would live longest.
fn in_order(all: &mut [Turn]) {
    all.sort_unstable_by_key(|(turn, _, ended)| (*turn, Reverse(ended.until)));
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
    use crate::access::session::Session;
    use crate::access::sessions::tests::{HERE, session};
    use crate::access::{Origin, Sees};

    fn id(number: usize) -> SessionId {
        (number as u128).to_be_bytes()
    }

    /// The holder of a key, at this address.
    fn of_key(key: u128, from: &str) -> By {
        let sees = Sees::Profiles(vec![key.to_be_bytes()]);
        let voucher = Session { sees, ..session() }.voucher();
        By { from: from.parse().expect("an address"), voucher }
    }

    /// Somebody for whom an issuer vouches, at this address.
    fn of_issuer(name: &str, from: &str) -> By {
        let voucher = Session { origin: Origin::of(&["issuer", name]), ..session() }.voucher();
        By { from: from.parse().expect("an address"), voucher }
    }

    fn here() -> By {
        By { from: HERE, voucher: session().voucher() }
    }

    #[test]
    fn what_was_ended_stays_so_over_a_restart_until_its_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        let logouts = Logouts::open(path.clone(), 0).expect("opened");
        logouts.end([0xab; 16], 100, here(), 0).expect("written");
        logouts.end([1; 16], 50, here(), 0).expect("written");
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
        logouts.end(id(0), 10, here(), 0).expect("written");
        let inode = || fs::metadata(&path).expect("there").ino();
        let first = inode();
        (1..STALE_LINES).for_each(|number| logouts.end(id(number), 10, here(), 0).expect("written"));
        assert_eq!(inode(), first, "it was written anew");
        let lines = || fs::read_to_string(&path).expect("there").lines().count();
        assert_eq!(lines(), STALE_LINES);
        // After a restart, all of them are over.
        let again = Logouts::open(path.clone(), 20).expect("opened");
        again.end(id(1), 30, here(), 20).expect("written");
        again.end(id(2), 30, here(), 20).expect("written");
        again.end(id(3), 30, here(), 20).expect("written");
        assert_eq!(lines(), STALE_LINES + 3);
        (4..STALE_LINES).for_each(|number| again.end(id(number), 30, here(), 20).expect("written"));
        assert!(lines() < 2 * STALE_LINES, "{}", lines());
    }

    #[test]
    fn half_a_line_spoils_no_other() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        Logouts::open(path.clone(), 0).expect("opened").end(id(1), 100, here(), 0).expect("written");
        let text = fs::read_to_string(&path).expect("there");
        fs::write(&path, format!("{text}{}", &line(&id(2), 100)[..20])).expect("writable");
        Logouts::open(path.clone(), 0).expect("opened").end(id(3), 100, here(), 0).expect("written");
        let again = Logouts::open(path, 0).expect("opened");
        assert!(again.contains(&id(1)) && again.contains(&id(3)) && !again.contains(&id(2)));
    }

    #[test]
    fn of_too_many_lines_the_newest_count() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        let mut text: String = (0..ENDED_MAX + 10).map(|number| line(&id(number), 100)).collect();
        // Of the same, what counts is the longest.
        text += &line(&id(20), 30);
        fs::write(&path, text).expect("writable");
        let logouts = Logouts::open(path, 50).expect("opened");
        let is_known = |number| logouts.contains(&id(number));
        assert!(is_known(ENDED_MAX + 9) && is_known(10) && is_known(20) && !is_known(9));
        assert_eq!(logouts.known.lock().ended.len(), ENDED_MAX);
    }

    #[test]
    fn who_shares_an_address_is_not_shut_out_by_who_makes_logins() {
        let mut known = Known::default();
        let mut add = |number, by, until, now| {
            known
                .add(id(number), Ended { until, by: Some(by) }, now)
                .map(|_| (known.ended.len(), known.by.len()))
        };
        let own = of_key(1, "192.0.2.1");
        for number in 0..OF_ONE_MAX {
            add(number, own, 100, 0).expect("room");
        }
        assert!(matches!(add(OF_ONE_MAX, own, 100, 1), Err(LogoutFault::TooMany)));
        add(0, own, 200, 1).expect("known already");
        // Others at the address, and the same elsewhere.
        for (number, by) in [of_key(2, "192.0.2.1"), of_issuer("a", "192.0.2.1"), of_key(1, "192.0.2.2")]
            .into_iter()
            .enumerate()
        {
            add(OF_ONE_MAX + 1 + number, by, 100, 1).expect("room");
        }
        // When those are over, there is room.
        assert_eq!(add(OF_ONE_MAX, own, 300, 150).expect("room"), (2, 1));
        assert!(known.ended.contains_key(&id(0)) && known.by[&own] == 2);
    }

    #[test]
    fn who_ends_very_many_has_none_of_others_be_forgotten() {
        const SHARED: &str = "192.0.2.1";
        let (issued, own, far) = (of_issuer("a", SHARED), of_key(0, SHARED), of_key(1, "198.51.100.1"));
        // `None`: from before a restart. Who has a key of their own at the address of somebody with as many
        // as logouts is one of these.
        for (keys, others) in [
            (50, [Some(issued), Some(own), Some(far), None]),
            (ENDED_MAX, [Some(issued), Some(far), None, None]),
        ] {
            let mut known = Known::default();
            let mut add = |number, by, until| known.add(id(number), Ended { until, by }, 0).expect("room");
            // They end before all others.
            (0..40).for_each(|number| assert!(!add(number, others[number % 4], 10)));
            let many = |number| Some(of_key(100 + (number % keys) as u128, SHARED));
            for number in 40..ENDED_MAX {
                assert!(!add(number, many(number), 100));
            }
            assert!(add(ENDED_MAX, many(0), 100));
            assert_eq!(known.ended.len(), ENDED_MAX - ROOM + 1);
            let before = known.ended.values().filter(|ended| ended.by.is_none()).count();
            assert_eq!(known.by.values().sum::<usize>() + before, known.ended.len());
            (0..40).for_each(|number| assert!(known.ended.contains_key(&id(number)), "{keys}: {number}"));
        }
    }

    #[test]
    fn what_was_forgotten_for_others_does_not_come_back_in_their_place() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("logouts");
        let text: String = (0..ENDED_MAX).map(|number| line(&id(number), 100)).collect();
        fs::write(&path, text).expect("writable");
        let logouts = Logouts::open(path.clone(), 0).expect("opened");
        logouts.end(id(ENDED_MAX), 10, here(), 0).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("there").lines().count(), ENDED_MAX - ROOM + 1);
    }
}
