//! The modification times of installed files. A browser sends the time of its cached copy of a page (`If-Modified-Since`). Many servers
//! (those of Python, PHP and Go) answer 304 (Not Modified) if their file is not newer. A file that differs from the live release must
//! therefore be newer than everything that the live release has served at the path of the file. This rule also applies to a rollback to a
//! tree that was installed long ago.

use std::{
    collections::BTreeSet,
    fs::FileTimes,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use larder_archive::{compared, pool::for_each};
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::reuse::ReuseBase;
use crate::{
    host::files::{Confined, FileError},
    model::{Entry, EntryKind},
};

/// The facts about the live release that determine the times of the files of its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSince {
    /// The time of the switch to the live release, in seconds since 1970.
    pub second: u64,
    /// True if the live release is the job's `previous`. Otherwise the differences are not known, and all files count as different.
    pub is_previous: bool,
}

/// The maximum number of seconds by which a file of the live release is newer than the switch to this release. A file that replaces a file
/// of the same second gets the time of the next second. Several fast deployments therefore give files a time in the future.
const AHEAD: u64 = 60;

/// Gives every file that differs from the live release a time after the switch to the live release. A file that is already newer keeps its
/// time. Times are compared in seconds, as in HTTP. `previous` is the job's previous release, with its tree. Returns the number of files
/// whose time could not be set; such files are no reason to refuse a release.
///
/// A file that is shared with other releases gets the new time in all of them, which costs the visitors of these releases one more
/// transfer.
pub(super) fn renew(
    tree: &Confined,
    entries: &[Entry],
    previous: Option<ReuseBase<'_>>,
    live: LiveSince,
    threads: usize,
) -> Result<u64, FileError> {
    let previous = previous.filter(|_| live.is_previous);
    let same = previous.map(|previous| compared(previous.entries, entries).1).unwrap_or_default();
    let is_same = |index: usize| same.get(index) == Some(&true);
    // If the target of a symbolic link has changed, other files are served at the path of the link. These files need a new time even if
    // they are unchanged.
    let links = entries.iter().enumerate().filter(|(index, _)| !is_same(*index));
    let reached: BTreeSet<String> = links.filter_map(|(_, entry)| target(entry)).collect();
    let is_reached = |path: &str| {
        let parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
        !reached.is_empty() && parents.chain([path, ""]).any(|part| reached.contains(part))
    };
    let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
    let different: Vec<&Entry> = entries
        .iter()
        .enumerate()
        .filter(|(index, entry)| is_file(entry) && (!is_same(*index) || is_reached(&entry.path)))
        .map(|(_, entry)| entry)
        .collect();
    let now = SystemTime::now();
    let recent = now <= UNIX_EPOCH + Duration::from_secs(live.second.saturating_add(AHEAD));
    let replaced = previous.filter(|_| recent).map(|previous| previous.tree);
    let second = |stat: &Stat| u64::try_from(stat.st_mtime).unwrap_or(0);
    let failed = AtomicU64::new(0);
    for_each(
        &different,
        threads,
        || (tree.cursor(), replaced.map(Confined::cursor)),
        |(cursor, replaced), entry| {
            let served = replaced.as_mut().and_then(|replaced| replaced.stat(&entry.path).ok());
            let served = served.as_ref().map_or(0, second).max(live.second);
            if second(&cursor.stat(&entry.path)?) > served {
                return Ok(());
            }
            let time = now.max(UNIX_EPOCH + Duration::from_secs(served.saturating_add(1)));
            let set = cursor.open(&entry.path).map(|file| file.set_times(FileTimes::new().set_modified(time)));
            if !matches!(set, Ok(Ok(()))) {
                failed.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), FileError>(())
        },
    )?;
    Ok(failed.into_inner())
}

/// Returns the path in the tree that a symbolic link points to; the root is the empty path. Returns `None` if the target is outside of the
/// tree. Further links in the target are not followed, because each link of a chain has its own entry.
fn target(entry: &Entry) -> Option<String> {
    let EntryKind::Link { target } = &entry.kind else { return None };
    let (mut parts, rest): (Vec<&str>, &str) = match target.strip_prefix("/app/") {
        Some(rest) => (Vec::new(), rest),
        None if target.starts_with('/') => return None,
        None => (entry.path.split('/').collect(), target),
    };
    // A relative target starts at the directory of the link, so the name of the link is dropped.
    parts.pop();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::model::Digest;

    fn file(path: &str, content: &str) -> Entry {
        let kind = EntryKind::File { size: content.len() as u64, digest: Digest::of(content.as_bytes()), executable: false };
        Entry { path: path.into(), kind }
    }

    fn link(path: &str, target: &str) -> Entry {
        Entry { path: path.into(), kind: EntryKind::Link { target: target.into() } }
    }

    fn second(root: &Path, path: &str) -> u64 {
        fs::metadata(root.join(path)).unwrap().modified().unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    fn install(root: &Path, entries: &[Entry], at: u64) {
        for entry in entries.iter().filter(|entry| matches!(entry.kind, EntryKind::File { .. })) {
            let path = root.join(&entry.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            let time = UNIX_EPOCH + Duration::from_secs(at);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
    }

    #[test]
    fn file_that_differs_from_the_live_release_is_newer_than_the_switch() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let live = [link("current", "new"), file("index.html", "bad"), file("new/a", "n"), file("old/a", "o"), file("same", "s")];
        let old = [
            link("current", "old"),
            file("back", "b"),
            file("index.html", "good"),
            file("new/a", "n"),
            file("old/a", "o"),
            file("same", "s"),
        ];
        let (live_root, root) = (root.join("live"), root.join("old"));
        install(&live_root, &live, 2000);
        install(&root, &old, 1000);
        let (tree, live_tree) = (Confined::open(&root).unwrap(), Confined::open(&live_root).unwrap());
        let base = Some(ReuseBase { tree: &live_tree, entries: &live });
        let renew = |second: u64, is_previous: bool| renew(&tree, &old, base, LiveSince { second, is_previous }, 2).unwrap();
        assert_eq!(renew(2000, true), 0);
        let times = |of: u64| ["back", "index.html", "new/a", "old/a", "same"].map(|path| second(&root, path) > of);
        assert_eq!(times(2000), [true, true, false, true, false], "back and index.html differ, and current leads to old/");
        // A file that is already newer keeps its time.
        let before = second(&root, "index.html");
        renew(2000, true);
        assert_eq!(second(&root, "index.html"), before);
        // The clock was set back, and the live file is newer than the switch to its release.
        let future = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 100;
        install(&live_root, &live, future + 1);
        renew(future, true);
        assert_eq!(second(&root, "index.html"), future + 2);
        assert_eq!(second(&root, "back"), future + 1, "the live release has no such file");
        // If the base is not the live release, all files count as different.
        renew(1500, false);
        assert_eq!(times(1500), [true; 5]);
    }

    #[test]
    fn link_is_followed_inside_the_tree_only() {
        for (path, to, expected) in [
            ("current", "old", Some("old")),
            ("a/b", "../c/./d", Some("c/d")),
            ("a", ".", Some("")),
            ("a/b", "../../etc", None),
            ("a", "/app/x/y", Some("x/y")),
            ("a", "/usr/bin", None),
        ] {
            assert_eq!(target(&link(path, to)).as_deref(), expected, "{path} -> {to}");
        }
    }
}
