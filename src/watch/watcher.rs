//! [`Watcher`] collects the changes of files in batches.

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use file_events::{
    ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, MetadataKind, ModifyKind},
};
use tokio::{sync::mpsc, time::Instant};

use super::rules::{IGNORE_FILES, WatchRules};

/// The time without a further change after which a batch is complete. Editors write a file in several steps within a few milliseconds.
const QUIET: Duration = Duration::from_millis(50);
/// The maximum duration of a batch, for changes that do not end, such as those of a large checkout.
const MAX_BATCH: Duration = Duration::from_secs(1);
/// The maximum number of events that wait. Further events are lost, and the next batch says so.
const MAX_EVENTS: usize = 16_384;

/// The reason why a checkout cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The user has no further watch or instance of inotify (`inotify(7)`).
    #[error("cannot watch {path}: this user watches too many directories already")]
    Limit {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel refused to watch a directory.
    #[error("cannot watch {path}")]
    Watch {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: file_events::Error,
    },
    /// The thread that reads events has ended.
    #[error("cannot watch files: the connection to the kernel has ended")]
    Ended,
}

impl WatchError {
    /// Returns the remedy, if the user has one.
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, WatchError::Limit { .. }).then_some(
            "raise the limit with `sysctl fs.inotify.max_user_watches=524288`, or name large directories in .larderignore",
        )
    }
}

/// The changes of files within a short time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileChanges {
    /// The changed paths, relative to the checkout. A removed or renamed directory is one path.
    pub paths: BTreeSet<String>,
    /// True if further changes were lost, because there were too many.
    pub are_lost: bool,
}

impl FileChanges {
    /// Returns true if nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.are_lost
    }

    /// Adds other changes.
    pub fn merge(&mut self, other: FileChanges) {
        self.paths.extend(other.paths);
        self.are_lost |= other.are_lost;
    }
}

/// Watches the directories of a checkout that the rules do not ignore. Ignored directories, which are often large, are not watched.
pub struct Watcher {
    inner: RecommendedWatcher,
    events: mpsc::Receiver<file_events::Result<Event>>,
    are_lost: Arc<AtomicBool>,
    rules: WatchRules,
    watched: BTreeSet<PathBuf>,
    /// The changes that [`Watcher::next`] has not returned yet.
    batch: FileChanges,
    /// The time of the first change of the last batch, by both clocks.
    began: jiff::Timestamp,
    first: Instant,
    /// The files that were created in this batch.
    created: BTreeSet<String>,
}

impl Watcher {
    /// Starts to watch the checkout of `rules`. Changes from now on are reported.
    pub fn start(rules: WatchRules) -> Result<Watcher, WatchError> {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let are_lost = Arc::new(AtomicBool::new(false));
        let lost = Arc::clone(&are_lost);
        let receive = move |event: file_events::Result<Event>| {
            if !event.as_ref().is_ok_and(|event| !is_change(&event.kind) && !event.need_rescan())
                && sender.try_send(event).is_err()
            {
                lost.store(true, Ordering::Relaxed);
            }
        };
        let root = rules.root.clone();
        let inner = file_events::recommended_watcher(receive).map_err(|source| failed(&root, source))?;
        let mut watcher = Watcher {
            inner,
            events,
            are_lost,
            rules,
            watched: BTreeSet::new(),
            batch: FileChanges::default(),
            began: jiff::Timestamp::now(),
            first: Instant::now(),
            created: BTreeSet::new(),
        };
        watcher.add_tree(&root, &mut FileChanges::default())?;
        Ok(watcher)
    }

    /// Waits for changes, and returns them when no further change follows at once. The method may be cancelled at any time: the next call, or
    /// [`Watcher::pending`], returns the changes.
    pub async fn next(&mut self) -> Result<FileChanges, WatchError> {
        loop {
            while self.batch.is_empty() {
                let event = self.events.recv().await.ok_or(WatchError::Ended)?;
                self.collect(event)?;
            }
            let deadline = self.first + MAX_BATCH;
            while let Ok(event) = tokio::time::timeout_at(deadline.min(Instant::now() + QUIET), self.events.recv()).await {
                self.collect(event.ok_or(WatchError::Ended)?)?;
                if Instant::now() >= deadline {
                    break;
                }
            }
            let changes = self.take_batch();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// Adds an event to the batch.
    fn collect(&mut self, event: file_events::Result<Event>) -> Result<(), WatchError> {
        let mut changes = std::mem::take(&mut self.batch);
        let is_first = changes.is_empty();
        let added = self.add(event, &mut changes);
        if is_first && !changes.is_empty() {
            (self.began, self.first) = (jiff::Timestamp::now(), Instant::now());
        }
        self.batch = changes;
        added
    }

    /// Ends the batch. Leaves out the files that were created in this batch and are gone: the drafts of editors, which give the draft the name of the
    /// saved file.
    fn take_batch(&mut self) -> FileChanges {
        let mut changes = std::mem::take(&mut self.batch);
        let created = std::mem::take(&mut self.created);
        let root = &self.rules.root;
        changes.paths.retain(|path| !created.contains(path) || root.join(path).symlink_metadata().is_ok());
        changes
    }

    /// Returns the time of the first change of the last batch, in milliseconds since the Unix epoch.
    pub fn began_at(&self) -> i64 {
        self.began.as_millisecond()
    }

    /// Returns the watched files whose content, mode or name was changed since a time, in milliseconds since the Unix epoch. Removed files are not
    /// found.
    pub fn changed_since(&self, since: i64) -> FileChanges {
        let mut changes = FileChanges::default();
        for directory in &self.watched {
            for entry in directory.read_dir().into_iter().flatten().flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                let changed = metadata.ctime().saturating_mul(1000).saturating_add(metadata.ctime_nsec() / 1_000_000);
                let path = entry.path();
                if changed >= since && !metadata.is_dir() && !self.rules.ignore(&path, false) {
                    changes.paths.extend(self.relative(&path));
                }
            }
        }
        changes
    }

    /// Returns the changes that have been reported so far, without waiting.
    pub fn pending(&mut self) -> Result<FileChanges, WatchError> {
        while let Ok(event) = self.events.try_recv() {
            self.collect(event)?;
        }
        Ok(self.take_batch())
    }

    fn add(&mut self, event: file_events::Result<Event>, changes: &mut FileChanges) -> Result<(), WatchError> {
        changes.are_lost |= self.are_lost.swap(false, Ordering::Relaxed);
        // An error about a single path, such as a directory that was removed meanwhile, is no loss of other events.
        let Ok(event) = event else { return Ok(()) };
        changes.are_lost |= event.need_rescan();
        let mut are_rules_changed = false;
        for path in &event.paths {
            let metadata = path.symlink_metadata().ok();
            let is_dir = metadata.as_ref().is_some_and(std::fs::Metadata::is_dir);
            if path.file_name().is_some_and(|name| IGNORE_FILES.iter().any(|file| name == *file)) {
                are_rules_changed = true;
            }
            // The pattern of a directory also concerns a directory that no longer exists.
            if self.rules.ignore(path, is_dir) || (metadata.is_none() && self.rules.ignore(path, true)) {
                continue;
            }
            if is_dir {
                // Files may have been created before the new directory was watched.
                if !self.watched.contains(path) || matches!(event.kind, EventKind::Modify(ModifyKind::Name(_))) {
                    self.add_tree(path, changes)?;
                }
                continue;
            }
            if metadata.is_none() {
                self.remove_tree(path);
            }
            let relative = self.relative(path);
            if matches!(event.kind, EventKind::Create(_)) {
                self.created.extend(relative.iter().filter(|path| !changes.paths.contains(*path)).cloned());
            }
            changes.paths.extend(relative);
        }
        if are_rules_changed {
            let root = self.rules.root.clone();
            self.add_tree(&root, &mut FileChanges::default())?;
        }
        Ok(())
    }

    fn relative(&self, path: &Path) -> Option<String> {
        let relative = path.strip_prefix(&self.rules.root).ok()?;
        (!relative.as_os_str().is_empty()).then(|| relative.to_string_lossy().into_owned())
    }

    /// Watches a directory and those below it, and adds their files to `changes`.
    fn add_tree(&mut self, directory: &Path, changes: &mut FileChanges) -> Result<(), WatchError> {
        let mut waiting = vec![directory.to_owned()];
        while let Some(directory) = waiting.pop() {
            match self.inner.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {}
                // The directory was removed meanwhile.
                Err(error) if is_missing(&error) && directory != self.rules.root => continue,
                Err(error) => return Err(failed(&directory, error)),
            }
            self.watched.insert(directory.clone());
            self.rules.add_directory(&directory);
            let Ok(entries) = directory.read_dir() else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if self.rules.ignore(&path, is_dir) {
                    continue;
                }
                match is_dir {
                    true => waiting.push(path),
                    false => changes.paths.extend(self.relative(&path)),
                }
            }
        }
        Ok(())
    }

    /// Forgets a removed directory and those below it, so that a new directory of the same name is watched again.
    fn remove_tree(&mut self, path: &Path) {
        if self.watched.contains(path) {
            let gone: Vec<_> = self.watched.iter().filter(|watched| watched.starts_with(path)).cloned().collect();
            for directory in gone {
                // The kernel has already removed the watch of a removed directory.
                let _ = self.inner.unwatch(&directory);
                self.watched.remove(&directory);
            }
        }
    }
}

/// Returns true for events after which a file may have another content, another mode or another name.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Any => true,
        EventKind::Modify(ModifyKind::Metadata(kind)) => *kind != MetadataKind::AccessTime,
        EventKind::Modify(_) => true,
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) | EventKind::Other => false,
    }
}

fn is_missing(error: &file_events::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn failed(path: &Path, source: file_events::Error) -> WatchError {
    let is_limit = match &source.kind {
        ErrorKind::MaxFilesWatch => true,
        ErrorKind::Io(error) => matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EMFILE)),
        _ => false,
    };
    match is_limit {
        true => WatchError::Limit { path: path.to_owned() },
        false => WatchError::Watch { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Collects changes until `path` is among them.
    async fn until(watcher: &mut Watcher, path: &str) -> BTreeSet<String> {
        let mut all = FileChanges::default();
        while !all.paths.contains(path) {
            let next = tokio::time::timeout(Duration::from_secs(30), watcher.next()).await;
            all.merge(next.unwrap_or_else(|_| panic!("no change of {path}: {all:?}")).unwrap());
        }
        all.paths
    }

    #[tokio::test]
    async fn saved_files_are_reported_and_ignored_files_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("node_modules/a")).unwrap();
        fs::create_dir_all(root.join("src")).unwrap();
        fs::write(root.join(".gitignore"), "*.out\n").unwrap();
        fs::write(root.join("src/app.py"), "1").unwrap();
        let mut watcher = Watcher::start(WatchRules::new(&root, [])).unwrap();
        assert!(!watcher.watched.contains(&root.join("node_modules")));
        fs::write(root.join("node_modules/a/index.js"), "1").unwrap();
        fs::write(root.join("src/a.out"), "1").unwrap();
        fs::write(root.join("src/app.py"), "2").unwrap();
        assert_eq!(until(&mut watcher, "src/app.py").await, BTreeSet::from([String::from("src/app.py")]));
        // An editor replaces the file by a rename.
        fs::write(root.join("src/draft"), "3").unwrap();
        fs::rename(root.join("src/draft"), root.join("src/app.py")).unwrap();
        assert_eq!(until(&mut watcher, "src/app.py").await, BTreeSet::from([String::from("src/app.py")]));
    }

    #[tokio::test]
    async fn change_is_not_lost_by_a_wait_that_is_cancelled() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let mut watcher = Watcher::start(WatchRules::new(&root, [])).unwrap();
        fs::write(root.join("app.py"), "1").unwrap();
        // The batch is complete after a longer time.
        while watcher.batch.is_empty() {
            assert!(tokio::time::timeout(QUIET / 4, watcher.next()).await.is_err());
        }
        assert_eq!(until(&mut watcher, "app.py").await.len(), 1);
        fs::write(root.join("app.py"), "2").unwrap();
        while watcher.batch.is_empty() {
            assert!(tokio::time::timeout(QUIET / 4, watcher.next()).await.is_err());
        }
        assert!(watcher.pending().unwrap().paths.contains("app.py") && watcher.pending().unwrap().is_empty());
    }

    #[tokio::test]
    async fn new_and_removed_directories_are_followed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let mut watcher = Watcher::start(WatchRules::new(&root, [])).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/one"), "1").unwrap();
        until(&mut watcher, "a/b/one").await;
        fs::write(root.join("a/b/two"), "1").unwrap();
        until(&mut watcher, "a/b/two").await;
        fs::rename(root.join("a"), root.join("c")).unwrap();
        until(&mut watcher, "c/b/two").await;
        fs::write(root.join("c/b/three"), "1").unwrap();
        until(&mut watcher, "c/b/three").await;
        fs::remove_dir_all(root.join("c")).unwrap();
        until(&mut watcher, "c/b/three").await;
        fs::create_dir_all(root.join("c/b")).unwrap();
        fs::write(root.join("c/b/four"), "1").unwrap();
        until(&mut watcher, "c/b/four").await;
    }

    #[tokio::test]
    async fn changed_gitignore_applies_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let mut watcher = Watcher::start(WatchRules::new(&root, [])).unwrap();
        fs::write(root.join(".gitignore"), "*.out\n").unwrap();
        until(&mut watcher, ".gitignore").await;
        fs::write(root.join("a.out"), "1").unwrap();
        fs::write(root.join("b.txt"), "1").unwrap();
        assert_eq!(until(&mut watcher, "b.txt").await, BTreeSet::from([String::from("b.txt")]));
    }
}
