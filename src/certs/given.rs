//! The operator's certificates: pairs of files, and folders of them, read anew when they change.
//!
//! What cannot be used any more never takes the place of what could: a pair that is broken,
//! half-written or mismatched keeps the certificate that it had.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::disk::name_of;
use super::{CertError, CertStore, Served, load_pair};
use crate::config::watch::{Complaint, FileWatch, POLL, Places, Stamp, off_thread, stamp};
use crate::config::{CertificateSource, PemPair, PemSource};
use crate::net::Tasks;
use crate::observe::shown_time;

/// What the two files of a pair are called in a folder: by certbot, and by Kubernetes.
const FILE_NAMES: [(&str, &str); 2] = [("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key")];

/// How often the same failure is logged at most: it may last until somebody comes to work.
const REPEAT: Duration = Duration::from_secs(5 * 60);

/// Which of the operator's certificates one is: the source's place in the list, and its file.
type Key = (usize, String);

/// What a source holds now.
enum Found {
    /// A pair. Whether it is one of several in a folder, which must not hold up the others.
    Pair { key: Key, served: Result<Served, CertError>, is_one_of_many: bool },
    /// A folder that says nothing of what is in it.
    NoFolder { place: usize, error: CertError },
}

/// The certificates in use, by what they were read from.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(BTreeMap<Key, Arc<Served>>);

impl Held {
    /// In the order of the sources.
    pub(super) fn all(&self) -> Vec<Arc<Served>> {
        self.0.values().cloned().collect()
    }
}

/// Reads the sources for the first time.
///
/// # Errors
/// For the first pair that cannot be used, and for a folder that holds none that can be. One of
/// several in a folder that cannot is only logged.
pub(super) fn read(sources: &[CertificateSource]) -> Result<Held, CertError> {
    let mut held = Held::default();
    for found in look_into(sources) {
        match found {
            Found::Pair { key, served: Ok(served), .. } => {
                served.warn(&key.1);
                held.0.insert(key, Arc::new(served));
            }
            Found::Pair { served: Err(error), is_one_of_many: true, .. } => {
                tracing::error!(%error, "going on without this certificate");
            }
            Found::Pair { served: Err(error), .. } | Found::NoFolder { error, .. } => return Err(error),
        }
    }
    Ok(held)
}

/// Everything that is wrong with a source, and the names that its certificates cover. Reads files:
/// not for a busy task.
pub fn examine(source: &CertificateSource) -> (Vec<CertError>, Vec<String>) {
    let (mut faults, mut names) = (Vec::new(), Vec::new());
    for found in look_into(std::slice::from_ref(source)) {
        match found {
            Found::Pair { served: Ok(served), .. } => names.extend(served.names.iter().cloned()),
            Found::Pair { served: Err(error), .. } | Found::NoFolder { error, .. } => faults.push(error),
        }
    }
    (faults, names)
}

/// The pairs that can be read, each by the name of its source. Reads files: not for a busy task.
pub(super) fn readable(sources: &[CertificateSource]) -> Vec<(String, Served)> {
    let of = |found| match found {
        Found::Pair { key, served: Ok(served), .. } => Some((key.1, served)),
        Found::Pair { .. } | Found::NoFolder { .. } => None,
    };
    look_into(sources).into_iter().filter_map(of).collect()
}

/// Keeps the store's certificates those in the files, until draining begins.
pub(super) fn watch(store: CertStore, held: Held, sources: Vec<CertificateSource>, tasks: &Tasks) {
    let is_file = |source: &CertificateSource| match source {
        CertificateSource::Pair(pair) => {
            [&pair.cert, &pair.key].iter().any(|source| matches!(source, PemSource::File(_)))
        }
        CertificateSource::Folder(_) => true,
    };
    if !sources.iter().any(is_file) {
        return;
    }
    let drain = tasks.drain_begun();
    tasks.spawn("certificate files", async move {
        tokio::select! {
            () = drain.cancelled() => {}
            () = follow(store, held, sources) => {}
        }
    });
}

async fn follow(store: CertStore, mut held: Held, sources: Vec<CertificateSource>) {
    let sources = Arc::new(sources);
    let looked_at = sources.clone();
    let mut watch = FileWatch::new("certificates", move || look(&looked_at)).await;
    let mut complaints = BTreeMap::new();
    loop {
        let read_now = sources.clone();
        // `None` only when the runtime ends.
        let Some(found) = off_thread(move || look_into(&read_now)).await else { return };
        let (next, whole) = renew(&held, found, &mut complaints);
        if let Some(next) = next {
            store.replace_files(next.all());
            held = next;
        }
        watch.was_read(whole);
        while !watch.is_due_within(POLL).await {}
    }
}

/// What is to be in use now, if that is something else, and whether all could be read.
fn renew(held: &Held, found: Vec<Found>, complaints: &mut BTreeMap<Key, Complaint>) -> (Option<Held>, bool) {
    let mut next = Held::default();
    let (mut changed, mut whole) = (false, true);
    for found in found {
        let (failed, error) = match found {
            Found::Pair { key, served: Ok(served), .. } => {
                complaints.remove(&key);
                let old = held.0.get(&key).filter(|old| old.key.cert == served.key.cert);
                changed |= old.is_none();
                let served = old.cloned().unwrap_or_else(|| announce(&key, served));
                next.0.insert(key, served);
                continue;
            }
            Found::Pair { key, served: Err(error), .. } => {
                let kept = held.0.get(&key).map(|served| (key.clone(), served.clone()));
                next.0.extend(kept);
                (key, error)
            }
            Found::NoFolder { place, error } => {
                let kept = held.0.iter().filter(|(key, _)| key.0 == place);
                next.0.extend(kept.map(|(key, served)| (key.clone(), served.clone())));
                ((place, String::new()), error)
            }
        };
        whole = false;
        if complaints.entry(failed).or_default().is_news(&error, REPEAT) {
            tracing::error!(%error, "keeping certificates as they were");
        }
    }
    changed |= next.0.len() != held.0.len();
    (changed.then_some(next), whole)
}

fn announce(key: &Key, served: Served) -> Arc<Served> {
    served.warn(&key.1);
    let names = served.names.join(" ");
    tracing::info!(
        certificate = key.1,
        names,
        not_after = shown_time(served.not_after),
        "certificate read anew"
    );
    Arc::new(served)
}

fn look_into(sources: &[CertificateSource]) -> Vec<Found> {
    let found = |place, pair: &PemPair, is_one_of_many| {
        let key = (place, name_of(&pair.cert));
        Found::Pair { key, served: load_pair(pair), is_one_of_many }
    };
    let look = |(place, source): (usize, &CertificateSource)| match source {
        CertificateSource::Pair(pair) => vec![found(place, pair, false)],
        CertificateSource::Folder(folder) => match pairs_in(folder) {
            Ok(pairs) => pairs.iter().map(|pair| found(place, pair, true)).collect(),
            Err(error) => vec![Found::NoFolder { place, error }],
        },
    };
    sources.iter().enumerate().flat_map(look).collect()
}

/// The pairs of a folder: its own, or one in each folder below, by name.
fn pairs_in(folder: &Path) -> Result<Vec<PemPair>, CertError> {
    let unreadable =
        |error: io::Error| CertError::Unreadable { source_name: format!("`{}`", folder.display()), error };
    let mut pairs: Vec<_> = pair_in(folder).into_iter().collect();
    if pairs.is_empty() {
        for item in fs::read_dir(folder).map_err(unreadable)? {
            pairs.extend(pair_in(&item.map_err(unreadable)?.path()));
        }
    }
    if pairs.is_empty() {
        return Err(CertError::NoPair { folder: folder.to_owned() });
    }
    pairs.sort();
    let source = PemSource::File;
    Ok(pairs.into_iter().map(|(cert, key)| PemPair { cert: source(cert), key: source(key) }).collect())
}

/// One file of the two is enough: what the other lacks is said when the pair is read.
fn pair_in(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut both = FILE_NAMES.iter().map(|(cert, key)| (folder.join(cert), folder.join(key)));
    both.find(|(cert, key)| is_there(cert) || is_there(key))
}

/// Whether something is there, be it a link that leads nowhere or behind a closed door: what cannot
/// be read keeps the certificate that was there.
fn is_there(path: &Path) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    !fs::symlink_metadata(path).is_err_and(|error| matches!(error.kind(), NotFound | NotADirectory))
}

/// Where the files are, and their stamp.
fn look(sources: &[CertificateSource]) -> (Places, Stamp) {
    let files_of = |pair: &PemPair| {
        [&pair.cert, &pair.key].map(|source| match source {
            PemSource::File(path) => Some(path.clone()),
            PemSource::Inline(_) => None,
        })
    };
    let mut files = Vec::new();
    let mut places = Places::default();
    for source in sources {
        match source {
            CertificateSource::Pair(pair) => files.extend(files_of(pair).into_iter().flatten()),
            CertificateSource::Folder(folder) => {
                places = places.and(Places::of(folder));
                let pairs = pairs_in(folder).unwrap_or_default();
                files.extend(pairs.iter().flat_map(files_of).flatten());
            }
        }
    }
    let places = files.iter().fold(places, |places, file| places.and(Places::of(file)));
    (places, stamp(files))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(folder: &Path, name: &str) {
        fs::create_dir_all(folder).expect("makable");
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("valid name");
        fs::write(folder.join("fullchain.pem"), made.cert.pem()).expect("writable");
        fs::write(folder.join("privkey.pem"), made.signing_key.serialize_pem()).expect("writable");
    }

    fn names(held: &Held) -> Vec<String> {
        held.all().iter().map(|served| served.names[0].clone()).collect()
    }

    #[test]
    fn a_folder_of_pairs_as_certbot_has_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let live = dir.path().join("live");
        let sources = [CertificateSource::Folder(live.clone())];
        fs::create_dir(&live).expect("makable");
        fs::write(live.join("README"), "certbot's").expect("writable");
        let error = read(&sources).expect_err("there is none").to_string();
        assert!(error.contains("live` holds no certificate"), "{error}");

        write(&dir.path().join("archive/b.test"), "b.test");
        symlink("../archive/b.test", live.join("b.test")).expect("linkable");
        write(&live.join("a.test"), "a.test");
        let held = read(&sources).expect("both");
        assert_eq!(names(&held), ["a.test", "b.test"]);
        assert_eq!(
            names(&read(&[CertificateSource::Folder(live.join("a.test"))]).expect("itself")),
            ["a.test"]
        );

        // A broken one keeps the old and holds up nobody; one that is gone is gone.
        fs::write(live.join("a.test/privkey.pem"), "half").expect("writable");
        write(&live.join("c.test"), "c.test");
        let mut complaints = BTreeMap::new();
        let (next, whole) = renew(&held, look_into(&sources), &mut complaints);
        let held = next.expect("one more");
        assert!(!whole);
        assert_eq!(names(&held), ["a.test", "b.test", "c.test"]);
        assert!(renew(&held, look_into(&sources), &mut complaints).0.is_none(), "nothing new");
        // Behind a link that leads nowhere for a moment, as while a backup is put back.
        let (archive, away) = (dir.path().join("archive"), dir.path().join("away"));
        fs::remove_file(live.join("b.test")).expect("removable");
        fs::create_dir(live.join("b.test")).expect("makable");
        for file in ["fullchain.pem", "privkey.pem"] {
            symlink(archive.join("b.test").join(file), live.join("b.test").join(file)).expect("linkable");
        }
        fs::rename(&archive, &away).expect("renamed");
        assert!(renew(&held, look_into(&sources), &mut complaints).0.is_none(), "it is kept");
        fs::rename(&away, &archive).expect("renamed");
        fs::remove_dir_all(live.join("c.test")).expect("removable");
        let held = renew(&held, look_into(&sources), &mut complaints).0.expect("one fewer");
        assert_eq!(names(&held), ["a.test", "b.test"]);
        fs::remove_dir_all(&live).expect("removable");
        let (next, whole) = renew(&held, look_into(&sources), &mut complaints);
        assert!(next.is_none() && !whole, "a folder that is gone says nothing");
        assert_eq!(names(&read(&[]).expect("nothing to read")), <[String; 0]>::default());
    }
}
