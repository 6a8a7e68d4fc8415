//! The directory of one transfer, `releases/.incoming/<id>/`, and the lock that reserves the directory for one pull.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    host::{files::FileError, root::EnvironmentPaths},
    model::ReleaseId,
    remote::error::RemoteError,
};

/// The name of the file that a pull locks.
pub(super) const LOCK: &str = "lock";

/// The lock of one incoming directory. All threads that write to the directory share the lock. The threads of an aborted pull may
/// still be writing, so the next pull begins after the last of these threads has finished.
#[derive(Debug, Clone)]
pub(super) struct IncomingLease {
    _lock: Arc<File>,
}

impl IncomingLease {
    /// Runs `act` on a thread for blocking calls. The thread holds the lease until `act` returns.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let kept = self.clone();
        blocking(move || {
            let done = act();
            drop(kept);
            done
        })
        .await
    }
}

/// Removes the incoming directories of interrupted pulls that were not resumed within `age`. A directory that a pull uses is not removed.
pub fn sweep(paths: &EnvironmentPaths, age: Duration) {
    for entry in fs::read_dir(paths.incoming()).into_iter().flatten().flatten() {
        let path = entry.path();
        let inside = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
        let touched = inside.chain([path.clone()]).filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max();
        let old = touched.is_some_and(|touched| SystemTime::now().duration_since(touched).is_ok_and(|since| since > age));
        if !old {
            continue;
        }
        // The lock is held during the removal, so that no pull enters the directory.
        let removed = match lock(&path) {
            Ok(Some(held)) => remove(&path).map(|()| drop(held)),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(directory = %path.display(), %error, "cannot remove the directory of an interrupted pull");
            }
            _ => {}
        }
    }
}

/// Removes an incoming directory whose lock the caller holds. The directory is renamed first: without the rename, another pull could create
/// a new lock in the directory as soon as the old lock is removed, and would lose its files. A later [`sweep`] removes a renamed directory
/// that an interrupted removal has left.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let renamed = directory.with_file_name(format!("{name}.removed-{}", fs::metadata(directory)?.ino()));
    if name.contains(".removed-") {
        return fs::remove_dir_all(directory);
    }
    fs::rename(directory, &renamed)?;
    fs::remove_dir_all(&renamed)
}

/// Locks an incoming directory. Returns `None` if another pull has the lock, or if the lock file was removed before this call locked the
/// file.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let path = directory.join(LOCK);
    let lock = File::options().create(true).append(true).open(&path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    let is_same = match (lock.metadata(), fs::metadata(&path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    };
    Ok(is_same.then_some(lock))
}

/// Removes all files of an incoming directory except its lock.
pub(super) fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.file_name() != LOCK) {
        let _ = fs::remove_file(entry.path());
    }
}

fn make(directory: &Path) -> Result<(), RemoteError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(directory);
    Ok(made.map_err(|error| FileError::io("create", directory, error))?)
}

/// Creates and locks the incoming directory of a release.
pub(super) async fn enter(paths: &EnvironmentPaths, release: ReleaseId) -> Result<(PathBuf, IncomingLease), RemoteError> {
    enter_directory(paths.incoming().join(release.to_string())).await
}

/// Creates and locks an incoming directory. Waits while another pull uses the directory.
pub(super) async fn enter_directory(directory: PathBuf) -> Result<(PathBuf, IncomingLease), RemoteError> {
    loop {
        let wanted = directory.clone();
        let locked = blocking(move || {
            make(&wanted)?;
            Ok(lock(&wanted).map_err(|error| FileError::io("lock", wanted.join(LOCK), error))?)
        });
        match locked.await {
            Ok(Some(lock)) => return Ok((directory, IncomingLease { _lock: Arc::new(lock) })),
            Ok(None) => {}
            // The directory was removed after it was created and before it was locked.
            Err(RemoteError::File(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs `act` on a thread for blocking calls.
pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| RemoteError::Aborted)?
}
