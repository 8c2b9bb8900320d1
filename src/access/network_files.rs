//! Lists of networks as they are now: some stand in the configuration, some in files, which are
//! reread when they change. A file that cannot be read, or has a line that is no network, changes
//! nothing: half a list would let in whom it was to keep out.

use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;

use super::networks::{DecidedBy, NetworkDenial, NetworkTable, Place};
use crate::config::watch::{Places, Stamp, stamp};
use crate::config::{NetworkSettings, NetworkSource, parse_network};

/// Largest file of networks, in octets.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// Who may come to one place.
#[derive(Debug)]
pub struct NetworkList {
    allow: Arc<str>,
    deny: Arc<str>,
    settings: ArcSwap<NetworkSettings>,
    table: ArcSwap<NetworkTable>,
    /// Whether anything is listed.
    is_any: AtomicBool,
    /// Held while one of them is replaced.
    writing: Mutex<()>,
}

/// What a list is to become.
#[derive(Debug)]
pub struct PlannedList {
    settings: Arc<NetworkSettings>,
    table: NetworkTable,
}

/// Why a file of networks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// It cannot be read.
    #[error("cannot read networks from `{path}`: {error}; check the path, and that this user may read it")]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is larger than any list of networks.
    #[error("`{0}` has more than 16 MiB, which is no list of networks; is the path right?")]
    TooLarge(PathBuf),
    /// A line is no network. It is not quoted: the file may be another one than was meant.
    #[error(
        "line {line} of `{path}` is not a network; write one a line, such as `10.0.0.0/8`, and comments behind `#`"
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
}

impl NetworkList {
    /// Reads the two lists, which are called `allow` and `deny` in the log. Reads files: not for a busy
    /// task.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn open(allow: &str, deny: &str, settings: &NetworkSettings) -> Result<Self, NetworksError> {
        let (table, is_any, writing) = Default::default();
        let (allow, deny) = (allow.into(), deny.into());
        let list = Self { allow, deny, settings: ArcSwap::default(), table, is_any, writing };
        list.put(list.plan(settings)?);
        Ok(list)
    }

    /// Decides; the value says what did. `None` where nothing is listed.
    ///
    /// # Errors
    /// When nobody may come from there.
    pub fn check(&self, from: IpAddr) -> Result<Option<DecidedBy>, NetworkDenial> {
        if self.is_open() { Ok(None) } else { self.table.load().check(from).map(Some) }
    }

    /// Whether nothing is listed, so that everybody may come.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.is_any.load(Ordering::Acquire)
    }

    /// The files that it is read from.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let settings = self.settings.load();
        let files = settings.allow.iter().chain(&settings.deny).filter_map(|source| match source {
            NetworkSource::File(path) => Some(path.clone()),
            NetworkSource::Network(_) => None,
        });
        files.collect()
    }

    /// Reads it anew; whether it has changed. When that fails, it stays as it was.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub(super) fn reread(&self) -> Result<bool, NetworksError> {
        let settings = self.settings.load_full();
        let planned = self.plan_of(settings.clone())?;
        let _turn = self.writing.lock();
        // Something else is listed by now.
        let is_late = !Arc::ptr_eq(&settings, &self.settings.load());
        Ok(!is_late && self.store(planned))
    }

    /// Reads what it would be by other settings. Reads files: not for a busy task.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub(super) fn plan(&self, settings: &NetworkSettings) -> Result<PlannedList, NetworksError> {
        self.plan_of(Arc::new(settings.clone()))
    }

    /// Has it be what was planned; whether it has changed.
    pub(super) fn put(&self, planned: PlannedList) -> bool {
        let _turn = self.writing.lock();
        self.store(planned)
    }

    fn store(&self, planned: PlannedList) -> bool {
        let PlannedList { settings, table } = planned;
        let (is_any, has_changed) = (!settings.is_empty(), **self.table.load() != table);
        self.settings.store(settings);
        if has_changed {
            self.table.store(Arc::new(table));
        }
        // Only now, so that nobody is looked for in an old table.
        self.is_any.store(is_any, Ordering::Release);
        has_changed
    }

    fn plan_of(&self, settings: Arc<NetworkSettings>) -> Result<PlannedList, NetworksError> {
        let mut table = NetworkTable::default();
        if !settings.allow.is_empty() {
            table.allow_only(&self.allow);
        }
        for (list, sources, denies) in
            [(&self.allow, &settings.allow, false), (&self.deny, &settings.deny, true)]
        {
            for source in sources {
                match source {
                    NetworkSource::Network(network) => {
                        table.add(*network, denies, Place { list: list.clone(), line: None });
                    }
                    NetworkSource::File(path) => read(path, |network, line| {
                        table.add(network, denies, Place { list: list.clone(), line: Some(line) });
                    })?,
                }
            }
        }
        Ok(PlannedList { settings, table })
    }

    /// How many networks it has now.
    pub(super) fn len(&self) -> usize {
        self.table.load().len()
    }
}

/// What is wrong with the files of a list.
pub(super) fn faults_in(sources: &[NetworkSource]) -> Vec<NetworksError> {
    let read = |source: &NetworkSource| match source {
        NetworkSource::File(path) => read(path, |_, _| {}).err(),
        NetworkSource::Network(_) => None,
    };
    sources.iter().filter_map(read).collect()
}

/// Where these files are, and their stamp.
pub(super) fn look(files: &[PathBuf]) -> (Places, Stamp) {
    let places = files.iter().map(|path| Places::of(path)).fold(Places::default(), Places::and);
    (places, stamp(files.iter().cloned()))
}

fn read(path: &Path, mut take: impl FnMut(IpNet, (Arc<str>, usize))) -> Result<(), NetworksError> {
    let unreadable = |error| NetworksError::Unreadable { path: path.to_owned(), error };
    let mut octets = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_MAX + 1).read_to_end(&mut octets).map_err(unreadable)?;
    if octets.len() as u64 > FILE_MAX {
        return Err(NetworksError::TooLarge(path.to_owned()));
    }
    let name: Arc<str> = path.display().to_string().into();
    // Comments may be in any encoding.
    for (line, text) in (1..).zip(String::from_utf8_lossy(&octets).lines()) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let network = parse_network(text);
        let malformed = |_| NetworksError::Malformed { path: path.to_owned(), line };
        take(network.map_err(malformed)?, (name.clone(), line));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_network_a_line_and_a_bad_line_changes_nothing() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("office.txt");
        let write = |text: &str| fs::write(&path, text).expect("writable");
        write("# ours\r\n10.0.0.0/8  # the office\n\n2001:db8::1\n");
        let settings = NetworkSettings { allow: vec![NetworkSource::File(path.clone())], deny: vec![] };
        let list = NetworkList::open("allow", "deny", &settings).expect("readable");
        let says = |from: &str| {
            list.check(from.parse().expect("an address")).map(|by| by.expect("listed").to_string())
        };
        assert_eq!(says("10.1.1.1"), Ok(format!("10.0.0.0/8 in allow ({}:2)", path.display())));
        assert_eq!(says("2001:db8::1"), Ok(format!("2001:db8::1/128 in allow ({}:4)", path.display())));
        assert!(says("192.0.2.1").is_err());

        write("192.0.2.0/24\n10.0.0.0/99\n");
        let error = list.reread().expect_err("malformed").to_string();
        assert!(error.contains("line 2 of `") && !error.contains("10.0.0.0/99"), "{error}");
        assert!(says("192.0.2.1").is_err() && says("10.1.1.1").is_ok(), "it did not stay as it was");

        // A list that has become empty is still one: it lets nobody in.
        write("# nobody\n");
        assert!(list.reread().expect("readable"));
        assert!(!list.reread().expect("readable"), "nothing has changed");
        assert!(says("10.1.1.1").is_err());
        fs::remove_file(&path).expect("removable");
        assert!(list.reread().is_err());
        assert!(NetworkList::open("allow", "deny", &settings).is_err());
        let nothing = NetworkSettings::default();
        assert!(NetworkList::open("allow", "deny", &nothing).expect("nothing to read").is_open());
        // By other settings, it is another list; what was read by the old ones comes too late.
        list.put(list.plan(&nothing).expect("nothing to read"));
        assert!(list.is_open() && list.check("192.0.2.1".parse().expect("an address")) == Ok(None));
        assert!(!list.reread().expect("nothing to read"));
    }
}
