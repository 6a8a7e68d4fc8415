//! The directory of one transfer, `releases/.incoming/<id>/`, and the lock that reserves it for one pull.

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

/// The file that pulls lock.
pub(super) const LOCK: &str = "lock";

/// The lock of one incoming directory. All threads that write to the directory share the lock, because the threads of an aborted pull may
/// still be writing, and another pull must not begin before the last of them has ended.
#[derive(Debug, Clone)]
pub(super) struct IncomingLease {
    _lock: Arc<File>,
}

impl IncomingLease {
    /// Runs `act` on a thread that holds the lease until it is done.
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

/// Removes the incoming directories of interrupted pulls that were not resumed within `age`.
pub fn sweep(paths: &EnvironmentPaths, age: Duration) {
    for entry in fs::read_dir(paths.incoming()).into_iter().flatten().flatten() {
        let path = entry.path();
        let inside = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
        let touched = inside.chain([path.clone()]).filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max();
        let old = touched.is_some_and(|touched| SystemTime::now().duration_since(touched).is_ok_and(|since| since > age));
        let free = || File::open(path.join(LOCK)).map_or(true, |lock| lock.try_lock().is_ok());
        if old && free() && fs::remove_dir_all(&path).is_err() {
            tracing::warn!(directory = %path.display(), "cannot remove the directory of an interrupted pull");
        }
    }
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

/// Creates and locks an incoming directory. Waits while another pull uses it.
pub(super) async fn enter_directory(directory: PathBuf) -> Result<(PathBuf, IncomingLease), RemoteError> {
    loop {
        let wanted = directory.clone();
        let locked = blocking(move || {
            make(&wanted)?;
            let path = wanted.join(LOCK);
            let failed = |error: io::Error| FileError::io("lock", path.clone(), error);
            let lock = File::options().create(true).append(true).open(&path).map_err(failed)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(error)) => return Err(failed(error).into()),
            }
            // Another pull may have removed the directory before this pull got the lock.
            let same = match (lock.metadata(), fs::metadata(&path)) {
                (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
                _ => false,
            };
            Ok(same.then_some(lock))
        });
        match locked.await {
            Ok(Some(lock)) => return Ok((directory, IncomingLease { _lock: Arc::new(lock) })),
            Ok(None) => {}
            // The directory was removed between two steps.
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
