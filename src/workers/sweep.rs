//! The sweep worker, which deletes the files of one user in a directory. The worker runs as this user, in a sandbox that contains no other
//! directory.

use std::{env, ffi::CStr, io, path::Path};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, Mode, OFlags, chmodat, openat, renameat, unlinkat},
    io::Errno,
};

/// The maximum number of nested directories that are open at a time. Deeper directories are first moved to the top directory.
const MAX_DEPTH: usize = 64;

/// Empties the directory that `LARDER_AREA` names, as far as the user of this process may delete the files.
pub fn work() -> io::Result<()> {
    let area = env::var_os("LARDER_AREA").ok_or_else(|| io::Error::other("LARDER_AREA is not set"))?;
    empty(Path::new(&area))
}

/// Deletes the content of `area`, including unreadable, read-only and very deep directories. Files of other users stay. The function deletes
/// in rounds, and an error does not stop a round. Returns the first error of the last round.
pub fn empty(area: &Path) -> io::Result<()> {
    empty_except(area, c"")
}

/// Deletes the content of `area` as [`empty`] does, but keeps the entry `kept` directly in `area`.
pub fn empty_except(area: &Path, kept: &'static CStr) -> io::Result<()> {
    let _ = chmodat(CWD, area, open_mode(), AtFlags::empty());
    let top = openat(CWD, area, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut sweep = Sweep { top, kept, moved: 0, failure: None };
    loop {
        let before = sweep.moved;
        sweep.failure = None;
        let top = sweep.top.try_clone()?;
        sweep.clear(top, 0);
        // Directories that were moved to the top are deleted in the next round.
        if sweep.moved == before {
            return sweep.failure.map_or(Ok(()), |error| Err(error.into()));
        }
    }
}

/// Returns the mode that lets the sweep workers of other users enter a directory.
fn open_mode() -> Mode {
    Mode::from_raw_mode(0o755)
}

struct Sweep {
    top: OwnedFd,
    kept: &'static CStr,
    moved: u64,
    failure: Option<Errno>,
}

impl Sweep {
    fn clear(&mut self, directory: OwnedFd, depth: usize) {
        let listing = match Dir::read_from(&directory) {
            Ok(listing) => listing,
            Err(error) => return self.fail(error),
        };
        for entry in listing {
            let name = match entry {
                Ok(entry) if entry.file_name() == c"." || entry.file_name() == c".." => continue,
                Ok(entry) if depth == 0 && entry.file_name() == self.kept => continue,
                Ok(entry) => entry.file_name().to_owned(),
                Err(error) => return self.fail(error),
            };
            if let Err(error) = self.remove(&directory, &name, depth) {
                self.fail(error);
            }
        }
    }

    fn remove(&mut self, parent: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
        // If `unlinkat` fails, the entry is a directory, or belongs to another user but may contain files of this user.
        let refused = match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => error,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // If a symlink replaces the directory meanwhile, `chmodat` follows the symlink. Following the symlink is harmless, because this
        // process can change only the modes of its own user's files.
        let _ = chmodat(parent, name, open_mode(), AtFlags::empty());
        let directory = match openat(parent, name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(refused),
            other => other?,
        };
        if depth >= MAX_DEPTH {
            self.moved += 1;
            return renameat(parent, name, &self.top, format!(".sweep-{}-{}", std::process::id(), self.moved));
        }
        self.clear(directory, depth + 1);
        match unlinkat(parent.as_fd(), name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    fn fail(&mut self, error: Errno) {
        self.failure.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn locked_and_very_deep_directories_are_deleted_and_link_targets_stay() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), b"x").unwrap();
        let area = tempfile::tempdir().unwrap();
        let mut at = openat(CWD, area.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let locked = area.path().join("locked");
        fs::create_dir_all(locked.join("inner")).unwrap();
        fs::write(locked.join("inner/file"), b"x").unwrap();
        fs::set_permissions(locked.join("inner"), fs::Permissions::from_mode(0o500)).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        std::os::unix::fs::symlink(outside.path(), area.path().join("link")).unwrap();
        empty(area.path()).unwrap();
        assert_eq!(fs::read_dir(area.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn kept_entry_stays_at_the_top_only() {
        let area = tempfile::tempdir().unwrap();
        for name in ["mark", "a", "z", "below/mark", "below/x"] {
            let path = area.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
        empty_except(area.path(), c"mark").unwrap();
        let left: Vec<_> = fs::read_dir(area.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["mark"]);
    }
}
