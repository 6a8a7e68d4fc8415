//! The worker that syncs a directory of an application with an installed release, and the server side of this worker. `larder_sync`
//! describes the sync itself.
//!
//! The server keeps the record of the last sync, by which the worker recognises unchanged files. The worker gets the record as a descriptor, so
//! that no process of the application reaches the record.

use std::{
    fs::{File, Permissions},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

pub use larder_sync::SyncPolicy;
use larder_sync::{SyncRecord, SyncReport};
use serde::{Deserialize, Serialize};

use super::{
    ReleaseError, WorkerAnswer, manifest,
    manifest::index,
    worker::{WorkerContext, blocking, known_manifest, lost, run_in},
};
use crate::{
    host::files::{Confined, create_new, open_regular, remove_if_present, rename_over},
    model::{ReleaseId, Role, Slot},
};

/// The job of the sync worker. Descriptor 5 is the manifest of the release, and 6 is the new, empty record. If the directory was synced
/// before, descriptor 7 is the record of the last sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncJob {
    /// The owners, modes and exceptions.
    pub policy: SyncPolicy,
}

/// The paths that the sync worker uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncPaths {
    /// The installed tree.
    pub tree: PathBuf,
    /// The directory that becomes equal to the tree.
    pub target: PathBuf,
}

impl SyncPaths {
    /// Reads `LARDER_TREE` and `LARDER_TARGET`.
    pub fn from_environment() -> SyncPaths {
        let place = |name: &str, default: &str| std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from);
        SyncPaths { tree: place("LARDER_TREE", "/deploy"), target: place("LARDER_TARGET", "/target") }
    }
}

/// Syncs the target. When this function returns a report, the target is complete and durable. A job may be repeated.
pub fn work(
    job: &SyncJob,
    paths: &SyncPaths,
    manifest: &File,
    record: &File,
    previous: Option<&File>,
) -> WorkerAnswer<SyncReport> {
    sync(job, paths, manifest, record, previous).into()
}

fn sync(
    job: &SyncJob,
    paths: &SyncPaths,
    manifest: &File,
    mut record: &File,
    previous: Option<&File>,
) -> Result<SyncReport, ReleaseError> {
    let decoded = || previous.and_then(|file| SyncRecord::decode(&index::read_at_start(file, Path::new("the record")).ok()?));
    let (manifest, previous) = std::thread::scope(|scope| {
        let previous = scope.spawn(decoded);
        let manifest = manifest::parse_known(manifest, Path::new("the manifest"));
        (manifest, previous.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let manifest = manifest?;
    // The application may have taken permissions for the directory away from its own user.
    let _ = std::fs::set_permissions(&paths.target, Permissions::from_mode(0o755));
    let (tree, target) = (Confined::open(&paths.tree)?, Confined::open(&paths.target)?);
    let synced = larder_sync::sync(&tree, &target, &manifest.entries, previous.as_ref(), &job.policy);
    let (report, synced) = synced.map_err(|source| ReleaseError::Sync { source })?;
    let written = record.write_all(&synced.encode()).and_then(|()| record.sync_data());
    written.map_err(|e| lost(Path::new("the record"), e))?;
    // The process exits next; freeing a hundred thousand strings first would only take time.
    std::mem::forget((manifest, previous, synced));
    Ok(report)
}

/// Makes the directory of a slot equal to an installed release. No process may run in the slot. The call may be repeated.
///
/// # Errors
///
/// Returns an error if the release is not installed, or if the worker fails. The directory is then partly synced.
pub async fn sync_directory(
    context: &WorkerContext<'_>,
    release: ReleaseId,
    slot: Slot,
    policy: SyncPolicy,
) -> Result<SyncReport, ReleaseError> {
    let paths = context.paths.clone();
    let (record, new) = (paths.sync_record(slot), paths.sync_record(slot).with_extension("new"));
    let (old, written) = (record.clone(), new.clone());
    let files = blocking(move || {
        remove_if_present(&written)?;
        let mut files = vec![OwnedFd::from(known_manifest(&paths, release)?), create_new(&written, 0o600)?.into()];
        match open_regular(&old) {
            Ok(file) => files.push(file.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(files)
    })
    .await?;
    let report = run_in(context, "sync", Role::Sync, release, Some(slot), &SyncJob { policy }, files).await;
    let synced = report.is_ok();
    blocking(move || if synced { Ok(rename_over(&new, &record)?) } else { Ok(remove_if_present(&new)?) }).await?;
    report
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use super::*;
    use crate::model::{Digest, Entry, EntryKind};

    #[test]
    fn worker_syncs_a_locked_directory_and_writes_a_record_that_the_next_sync_uses() {
        let world = tempfile::tempdir().unwrap();
        let paths = SyncPaths { tree: world.path().join("tree"), target: world.path().join("target") };
        for directory in [&paths.tree, &paths.target] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(paths.tree.join("file"), "text").unwrap();
        fs::write(paths.target.join("extra"), "x").unwrap();
        fs::set_permissions(&paths.target, Permissions::from_mode(0o0)).unwrap();
        let mut manifest = manifest::from_bytes(include_bytes!("../../fuzz/seeds/manifest/small"), Path::new("m")).unwrap();
        let kind = EntryKind::File { size: 4, digest: Digest::of(b"text"), executable: false };
        manifest.entries = vec![Entry { path: "file".into(), kind }];
        let path = world.path().join("x.manifest.json");
        fs::write(&path, "{}").unwrap();
        index::keep(&path, index::identity(&File::open(&path).unwrap()), &manifest);
        let manifest = File::open(index::beside(&path)).unwrap();
        let job = SyncJob { policy: SyncPolicy::default() };
        let record = |name: &str| create_new(&world.path().join(name), 0o600).unwrap();
        let (first, second) = (record("first"), record("second"));
        let report = work(&job, &paths, &manifest, &first, None).into_result().unwrap();
        assert_eq!(report, SyncReport { entries: 1, changed: 1, deleted: 1, bytes: 4 });
        assert_eq!(fs::read_to_string(paths.target.join("file")).unwrap(), "text");
        let report = work(&job, &paths, &manifest, &second, Some(&first)).into_result().unwrap();
        assert_eq!((report.changed, report.deleted), (0, 0));
        let encoded = |name: &str| fs::read(world.path().join(name)).unwrap();
        assert!(encoded("first") == encoded("second") && SyncRecord::decode(&encoded("first")).is_some());
        assert!(rustix::fs::fstat(first.as_fd()).unwrap().st_size > 0);
    }
}
