//! Word from the system when the files of agents' keys change. What else is written in the same
//! folders is no word, or a log that lies there would have the keys read for each of its records.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use notify::Watcher as _;
use tokio::sync::mpsc;

/// A change is told when nothing more changed for this long: writers rarely write in one step.
const QUIET: Duration = Duration::from_millis(100);
/// A change is told after this long even if more keep coming.
const QUIET_LIMIT: Duration = Duration::from_secs(2);
/// As many symbolic links as the kernel follows.
const LINKS_MAX: usize = 40;

/// Listens for changes of one path.
pub struct KeyWatch {
    places: Places,
    told: mpsc::Sender<()>,
    word: mpsc::Receiver<()>,
    watcher: Option<notify::RecommendedWatcher>,
}

/// Where a path leads: every symbolic link on the way, and what is at the end. In all of them,
/// the folder around the last component is free of links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    names: BTreeSet<PathBuf>,
    folder: Option<PathBuf>,
}

impl KeyWatch {
    /// Begins to listen. Where the system sends no word, only warns.
    pub fn new(places: Places) -> Self {
        let (told, word) = mpsc::channel(1);
        let watcher = watcher(&places, told.clone());
        Self { places, told, word, watcher }
    }

    /// Listens elsewhere, if a link now leads elsewhere.
    pub fn follow(&mut self, places: Places) {
        if places != self.places {
            self.watcher = watcher(&places, self.told.clone());
            self.places = places;
        }
    }

    /// Whether something changed within this time. Comes back once writing seems to be over.
    pub async fn changed_within(&mut self, wait: Duration) -> bool {
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
        let folder = at.is_dir().then(|| at.clone());
        names.insert(at);
        Self { names, folder }
    }

    /// Whether an event may have changed the list.
    fn concern(&self, event: &notify::Result<notify::Event>) -> bool {
        use notify::event::{AccessKind, AccessMode, EventKind};
        // Trouble may have swallowed a change.
        let Ok(event) = event else { return true };
        let is_read = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            kind => kind.is_access(),
        };
        let is_ours = |path: &PathBuf| {
            self.names.contains(path) || self.folder.as_ref().is_some_and(|folder| path.starts_with(folder))
        };
        !is_read && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(is_ours))
    }

    /// What to watch: the folders around, because files and links are replaced by renaming, and a
    /// folder of keys itself.
    fn folders(&self) -> BTreeSet<&Path> {
        let around = self.names.iter().filter_map(|name| name.parent());
        around.chain(self.folder.as_deref()).collect()
    }
}

fn steps(path: &Path) -> impl Iterator<Item = OsString> + use<> {
    path.components().map(|step| step.as_os_str().to_owned()).collect::<Vec<_>>().into_iter()
}

fn watcher(places: &Places, told: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
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
            tracing::warn!(%error, "no word of changes from the system; looking at agents' keys every 10 s");
            return None;
        }
    };
    for folder in places.folders() {
        if let Err(error) = watcher.watch(folder, notify::RecursiveMode::NonRecursive) {
            tracing::warn!(path = %folder.display(), %error, "cannot watch; looking at agents' keys every 10 s");
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
        assert_eq!(places.folders().into_iter().collect::<Vec<_>>(), [root.clone(), at("first")]);
        let folder = Places::of(&at("data/../data/"));
        assert_eq!(names(&folder), [at("data"), at("first")]);
        assert_eq!(folder.folder, Some(at("first")));
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
        for folder in places.folders() {
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
