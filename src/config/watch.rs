//! When files change that settings name: agents' keys, certificates, issuers' keys. Word comes from the system;
//! what else is written in the same folders is no word, or a log that lies there would have them
//! read for each of its records. Where no word comes, files' lengths and times tell.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::Watcher as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often files' times are looked at, where the system sends no word of changes, and how soon
/// a failed reading is tried again.
pub const POLL: Duration = Duration::from_secs(10);
/// A change is told when nothing more changed for this long: writers rarely write in one step.
const QUIET: Duration = Duration::from_millis(100);
/// A change is told after this long even if more keep coming.
const QUIET_LIMIT: Duration = Duration::from_secs(2);
/// As many symbolic links as the kernel follows.
const LINKS_MAX: usize = 40;

/// What changes when one of several files does: each one's length and time.
pub type Stamp = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// The stamp of these files. What cannot be looked at is not in it. Asks the file system: not for
/// a busy task.
pub fn stamp(files: impl IntoIterator<Item = PathBuf>) -> Stamp {
    let stamp_of = |file: PathBuf| {
        let facts = fs::metadata(&file).ok()?;
        Some((file, facts.len(), facts.modified().ok()))
    };
    files.into_iter().filter_map(stamp_of).collect()
}

/// Tells when files are to be read anew.
pub struct FileWatch<L> {
    listener: Listener,
    look: L,
    seen: Stamp,
    /// What was read last.
    read: Option<Stamp>,
    hangups: Hangups,
}

impl<L> FileWatch<L>
where
    L: Fn() -> (Places, Stamp) + Clone + Send + 'static,
{
    /// Begins to watch what `look` finds; it may ask the file system, and is asked again after
    /// each change. `what` names the files in warnings. Where the system sends no word, only
    /// warns.
    pub async fn new(what: &'static str, look: L) -> Self {
        let (places, seen) = off_thread(look.clone()).await.unwrap_or_default();
        Self { listener: Listener::new(what, places), look, seen, read: None, hangups: Hangups::listen() }
    }

    /// Waits for a change, up to `wait`; whether the files are to be read anew: on word from the
    /// system, on SIGHUP, on changed times, and as long as they were not read whole. Comes back once
    /// writing seems to be over. Cancel safe, though word that came meanwhile is lost.
    pub async fn is_due_within(&mut self, wait: Duration) -> bool {
        let is_told = tokio::select! {
            is_told = self.listener.changed_within(wait) => is_told,
            () = self.hangups.next() => true,
        };
        let (places, seen) = off_thread(self.look.clone()).await.unwrap_or_default();
        self.listener.follow(places);
        self.seen = seen;
        is_told || self.read.as_ref() != Some(&self.seen)
    }

    /// Notes whether the files, as they were when last looked at, were read whole. What was not
    /// is due again.
    pub fn was_read(&mut self, whole: bool) {
        self.read = whole.then(|| self.seen.clone());
    }
}

/// Word by SIGHUP that all is to be read anew that was read from files and URLs. Whoever keeps such
/// things listens by itself, so that nobody has to know them all.
#[derive(Debug)]
pub struct Hangups(Option<Signal>);

impl Hangups {
    /// Begins to listen. Where the system does not allow that, none is ever heard.
    #[must_use]
    pub fn listen() -> Self {
        Self(signal(SignalKind::hangup()).ok())
    }

    /// Waits for the next one; several that came meanwhile are one. Cancel safe.
    pub async fn next(&mut self) {
        if let Some(signals) = &mut self.0
            && signals.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

/// The failure that was logged last, so that it is not repeated for each try.
#[derive(Debug, Default)]
pub struct Complaint(Option<(String, Instant)>);

impl Complaint {
    /// Whether this failure is worth a record: it is another one, or was last
    /// told `pause` ago.
    pub fn is_news(&mut self, what: &impl ToString, pause: Duration) -> bool {
        let what = what.to_string();
        let is_known = self.0.as_ref().is_some_and(|(last, when)| *last == what && when.elapsed() < pause);
        if !is_known {
            self.0 = Some((what, Instant::now()));
        }
        !is_known
    }
}

/// Runs what reads files where it does not hold up other tasks. `None` when the runtime ends.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// Listens for word from the system.
struct Listener {
    what: &'static str,
    places: Places,
    told: mpsc::Sender<()>,
    word: mpsc::Receiver<()>,
    watcher: Option<notify::RecommendedWatcher>,
}

/// Where paths lead: every symbolic link on the way, and what is at the end. In all of them, the
/// folder around the last component is free of links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    names: BTreeSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
}

impl Listener {
    fn new(what: &'static str, places: Places) -> Self {
        let (told, word) = mpsc::channel(1);
        let watcher = watcher(what, &places, told.clone());
        Self { what, places, told, word, watcher }
    }

    /// Listens elsewhere, if a link now leads elsewhere.
    fn follow(&mut self, places: Places) {
        if places != self.places {
            self.watcher = watcher(self.what, &places, self.told.clone());
            self.places = places;
        }
    }

    /// Whether something changed within this time. Comes back once writing seems to be over.
    async fn changed_within(&mut self, wait: Duration) -> bool {
        if tokio::time::timeout(wait, self.word.recv()).await.is_err() {
            return false;
        }
        let _ = tokio::time::timeout(QUIET_LIMIT, async {
            while let Ok(Some(())) = tokio::time::timeout(QUIET, self.word.recv()).await {}
        })
        .await;
        true
    }
}

impl Places {
    /// Follows `path` step by step. Reads links: not for a busy task.
    pub fn of(path: &Path) -> Self {
        let mut names = BTreeSet::new();
        let mut at = PathBuf::new();
        if path.is_relative()
            && let Ok(here) = std::env::current_dir().and_then(|here| here.canonicalize())
        {
            at = here;
        }
        let mut left: VecDeque<OsString> = steps(path).collect();
        let mut links = 0;
        while let Some(step) = left.pop_front() {
            match Path::new(&step).components().next() {
                Some(Component::Normal(name)) => at.push(name),
                Some(Component::ParentDir) => {
                    at.pop();
                    continue;
                }
                Some(root @ (Component::RootDir | Component::Prefix(_))) => {
                    at = root.as_os_str().into();
                    continue;
                }
                Some(Component::CurDir) | None => continue,
            }
            if links < LINKS_MAX
                && let Ok(target) = fs::read_link(&at)
            {
                links += 1;
                names.insert(at.clone());
                at.pop();
                left = steps(&target).chain(left).collect();
            }
        }
        let folders = at.is_dir().then(|| at.clone()).into_iter().collect();
        names.insert(at);
        Self { names, folders }
    }

    /// These and those.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.names.extend(other.names);
        self.folders.extend(other.folders);
        self
    }

    /// Whether an event may have changed one of the files.
    fn concern(&self, event: &notify::Result<notify::Event>) -> bool {
        use notify::event::{AccessKind, AccessMode, EventKind};
        // Trouble may have swallowed a change.
        let Ok(event) = event else { return true };
        let is_read = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            kind => kind.is_access(),
        };
        let is_ours = |path: &PathBuf| {
            self.names.contains(path) || self.folders.iter().any(|folder| path.starts_with(folder))
        };
        !is_read && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(is_ours))
    }

    /// What to watch: the folders around, because files and links are replaced by renaming, and
    /// folders of files themselves.
    fn to_watch(&self) -> BTreeSet<&Path> {
        let around = self.names.iter().filter_map(|name| name.parent());
        around.chain(self.folders.iter().map(PathBuf::as_path)).collect()
    }
}

fn steps(path: &Path) -> impl Iterator<Item = OsString> + use<> {
    path.components().map(|step| step.as_os_str().to_owned()).collect::<Vec<_>>().into_iter()
}

fn watcher(
    what: &'static str,
    places: &Places,
    told: mpsc::Sender<()>,
) -> Option<notify::RecommendedWatcher> {
    let ours = places.clone();
    let on_event = move |event: notify::Result<notify::Event>| {
        if ours.concern(&event) {
            // Full means that word is already on its way.
            let _ = told.try_send(());
        }
    };
    let mut watcher = match notify::recommended_watcher(on_event) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, what, "no word of changes from the system; looking every 10 s");
            return None;
        }
    };
    for folder in places.to_watch() {
        if let Err(error) = watcher.watch(folder, notify::RecursiveMode::NonRecursive) {
            tracing::warn!(path = %folder.display(), %error, what, "cannot watch; looking every 10 s");
        }
    }
    Some(watcher)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc as std_mpsc;

    use super::*;

    fn names(places: &Places) -> Vec<&Path> {
        places.names.iter().map(PathBuf::as_path).collect()
    }

    #[test]
    fn every_link_on_the_way_is_a_place() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let root = dir.path().canonicalize().expect("it exists");
        let at = |name: &str| root.join(name);
        fs::create_dir(at("first")).expect("makable");
        fs::write(at("first/keys"), "").expect("writable");
        symlink("first", at("data")).expect("linkable");
        symlink("data/keys", at("keys")).expect("linkable");
        let places = Places::of(&at("keys"));
        assert_eq!(names(&places), [at("data"), at("first/keys"), at("keys")]);
        assert_eq!(places.to_watch().into_iter().collect::<Vec<_>>(), [root.clone(), at("first")]);
        let folder = Places::of(&at("data/../data/"));
        assert_eq!(names(&folder), [at("data"), at("first")]);
        assert_eq!(folder.folders.into_iter().collect::<Vec<_>>(), [at("first")]);
        symlink("round", at("round")).expect("linkable");
        assert!(names(&Places::of(&at("round"))).contains(&&*at("round")));
        assert!(names(&Places::of(Path::new("./absent")))[0].is_absolute());
    }

    /// What the system tells of writing a neighbour and then what `ours` names: how many events
    /// there were before the first that concerns the list, and which that is.
    fn first_word(list: &Path, neighbour: &Path, ours: &Path) -> (usize, Vec<PathBuf>) {
        let places = Places::of(list);
        let (tell, told) = std_mpsc::channel();
        let mut watcher = notify::recommended_watcher(tell).expect("inotify");
        for folder in places.to_watch() {
            watcher.watch(folder, notify::RecursiveMode::NonRecursive).expect("watchable");
        }
        fs::write(neighbour, "a record").expect("writable");
        fs::write(ours, "a key").expect("writable");
        for before in 0.. {
            let event = told.recv_timeout(Duration::from_secs(20)).expect("word of the list");
            if places.concern(&event) {
                return (before, event.expect("no trouble").paths);
            }
        }
        unreachable!("the channel ends first")
    }

    #[test]
    fn what_else_is_written_in_the_folder_is_no_word() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let root = dir.path().canonicalize().expect("it exists");
        let (log, list, folder) = (root.join("log"), root.join("keys"), root.join("folder"));
        let (before, paths) = first_word(&list, &log, &list);
        assert_eq!(paths, [list]);
        assert!(before > 0, "the neighbour was not seen at all");
        fs::create_dir(&folder).expect("makable");
        let (_, paths) = first_word(&folder, &log, &folder.join("alice"));
        assert_eq!(paths, [folder.join("alice")]);
    }
}
