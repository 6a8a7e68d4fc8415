//! The fingerprint of a spare tree. The fingerprint changes when an entry of the tree is added, removed or replaced, and is computed from
//! the metadata of directories alone; files are not examined.

use std::sync::atomic::{AtomicUsize, Ordering};

use larder_archive::pool::each_thread;

use crate::{
    host::files::{Confined, FileError},
    model::{Digest, Entry, EntryKind},
};

/// The number of directories that a thread reads at a time.
const PART: usize = 256;

/// Returns the digest of the inode, mode and change time of every directory. Every addition, removal or replacement of a name changes the
/// ctime of the directory, and no process can set a ctime. Of the root, only inode and mtime are used, because an installation renames the
/// spare, which changes the ctime of the root. File contents are not covered: the files are shared with the live release, and their digests
/// were compared when the spare was made.
pub(super) fn fingerprint(tree: &Confined, entries: &[Entry], threads: usize) -> Result<Digest, FileError> {
    let directories: Vec<&str> =
        entries.iter().filter(|entry| entry.kind == EntryKind::Dir).map(|entry| entry.path.as_str()).collect();
    let parts: Vec<&[&str]> = directories.chunks(PART).collect();
    let next = AtomicUsize::new(0);
    let seen = each_thread(threads.min(parts.len()), || {
        let (mut cursor, mut seen) = (tree.cursor(), Vec::new());
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(index) else { return Ok(seen) };
            let mut hasher = blake3::Hasher::new();
            for path in *part {
                let stat = cursor.stat(path)?;
                hasher.update(&stat.st_ino.to_le_bytes()).update(&stat.st_mode.to_le_bytes());
                hasher.update(&stat.st_ctime.to_le_bytes()).update(&stat.st_ctime_nsec.to_le_bytes());
            }
            seen.push((index, Digest::from(hasher.finalize())));
        }
    });
    let mut seen = seen.into_iter().collect::<Result<Vec<_>, FileError>>()?.concat();
    seen.sort_unstable();
    let root = tree.stat()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&root.st_ino.to_le_bytes()).update(&root.st_mtime.to_le_bytes()).update(&root.st_mtime_nsec.to_le_bytes());
    for (_, digest) in seen {
        hasher.update(digest.as_bytes());
    }
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn fingerprint_changes_with_every_change_of_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        for path in ["top", "a/f", "a/b/g"] {
            fs::write(root.join(path), path).unwrap();
        }
        let entries = ["a", "a/b"].map(|path| Entry { path: path.into(), kind: EntryKind::Dir });
        let now = || fingerprint(&Confined::open(&root).unwrap(), &entries, 2).unwrap();
        let mut before = now();
        assert_eq!(before, now());
        let mut broken = |what: &str, act: &dyn Fn()| {
            // The clock of file systems advances in steps of some milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            act();
            assert_ne!(before, now(), "{what}");
            before = now();
        };
        broken("a new file", &|| fs::write(root.join("a/b/new"), "").unwrap());
        broken("a file that is gone", &|| fs::remove_file(root.join("a/b/new")).unwrap());
        broken("a file in the root", &|| fs::write(root.join("new"), "").unwrap());
        broken("a file that was replaced", &|| fs::rename(root.join("new"), root.join("a/f")).unwrap());
        broken("a link", &|| symlink("f", root.join("a/l")).unwrap());
        broken("a mode", &|| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(root.join("a/b"), mode).unwrap();
        });
        broken("a time that was restored", &|| {
            let found = fs::metadata(root.join("a/b")).unwrap();
            fs::write(root.join("a/b/h"), "").unwrap();
            fs::File::open(root.join("a/b")).unwrap().set_modified(found.modified().unwrap()).unwrap();
        });
        // An installation renames the root before it compares the fingerprint.
        fs::rename(&root, dir.path().join("named")).unwrap();
        let tree = Confined::open(&dir.path().join("named")).unwrap();
        assert_eq!(before, fingerprint(&tree, &entries, 1).unwrap());
        fs::remove_dir_all(dir.path().join("named/a/b")).unwrap();
        assert!(fingerprint(&tree, &entries, 2).is_err());
    }
}
