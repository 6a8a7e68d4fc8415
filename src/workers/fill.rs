//! Fills `/app` on machines without overlays: copies the lower directory, which an overlay would show, into the scratch layer. Each scratch
//! layer is filled once.
//!
//! The copy runs in the sandbox as the worker's user, before the worker's own task. Processes of one slot that start at the same time wait
//! for one copy.

use std::{
    env,
    ffi::{CStr, OsStr},
    fs::{self, File, FileTimes},
    io,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::sweep;

/// The name of the file that exists while the copy is incomplete.
const MARK: &CStr = c".larder-filling";

/// Copies the directory `LARDER_LOWER` to the directory `LARDER_APP`, if the keeper has set both variables.
pub fn work() -> io::Result<()> {
    match (env::var_os("LARDER_LOWER"), env::var_os("LARDER_APP")) {
        (Some(lower), Some(app)) => fill(Path::new(&lower), Path::new(&app)),
        _ => Ok(()),
    }
}

/// Copies `lower` to `app`. Does nothing if `app` has a complete copy. Deletes an interrupted copy and starts again.
fn fill(lower: &Path, app: &Path) -> io::Result<()> {
    // The kernel releases the lock when this function returns, and also when the process is killed.
    let lock = File::open(app)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let mark = mark(app);
    if mark.exists() {
        // The mark stays until the copy is complete. Without the mark, a copy that is half deleted by a killed worker would look complete.
        sweep::empty_except(app, MARK)?;
    } else if fs::read_dir(app)?.next().is_some() {
        return Ok(());
    }
    File::create(&mark)?;
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(lower.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let failed = |error: io::Error| io::Error::new(error.kind(), format!("cannot copy {}: {error}", path.display()));
            if copy(&entry, &app.join(&path)).map_err(failed)? {
                directories.push(path);
            }
        }
    }
    fs::remove_file(mark)
}

fn mark(app: &Path) -> PathBuf {
    app.join(OsStr::from_bytes(MARK.to_bytes()))
}

/// Copies one entry, but not the content of a directory. Returns true if the entry is a directory.
fn copy(entry: &fs::DirEntry, to: &Path) -> io::Result<bool> {
    let (from, kind) = (entry.path(), entry.file_type()?);
    if kind.is_dir() {
        fs::create_dir(to)?;
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        // This call shares blocks with the original if the file system supports shared blocks.
        fs::copy(&from, to)?;
        // The modification time is copied, too, because build tools compare times. An overlay would also show the original time.
        let times = FileTimes::new().set_modified(entry.metadata()?.modified()?);
        if let Ok(file) = File::open(to) {
            let _ = file.set_times(times);
        }
    }
    Ok(kind.is_dir())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn interrupted_copy_starts_again_and_complete_copy_is_kept() {
        let (lower, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(lower.path().join("a/b")).unwrap();
        fs::write(lower.path().join("a/b/tool"), b"1").unwrap();
        fs::set_permissions(lower.path().join("a/b/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("b/tool", lower.path().join("a/link")).unwrap();
        fill(lower.path(), app.path()).unwrap();
        assert_eq!(fs::read(app.path().join("a/link")).unwrap(), b"1");
        assert_eq!(fs::metadata(app.path().join("a/b/tool")).unwrap().permissions().mode() & 0o777, 0o755);

        fs::remove_file(app.path().join("a/link")).unwrap();
        fill(lower.path(), app.path()).unwrap();
        assert!(!app.path().join("a/link").exists(), "changes of the application are kept");

        File::create(mark(app.path())).unwrap();
        fill(lower.path(), app.path()).unwrap();
        assert!(app.path().join("a/link").exists() && !mark(app.path()).exists());
    }
}
