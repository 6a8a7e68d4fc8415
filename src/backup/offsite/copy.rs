//! The copy of a restore point into a repository.

use std::{os::unix::net::UnixStream, path::PathBuf, sync::Arc};

use rustic_core::BackupOptions;

use super::{
    super::error::{BackupFailure, FailureKind},
    OffsitePoint, OffsiteStore,
    exchange::RemotePoint,
    repository::{OpenRepository, TOP, described, full_name, new_snapshot},
    source::PointSource,
};

/// Copies the restore point that the dump worker sends. A restore point that the repository has already is not copied again. The snapshot
/// is the last file that is written, so a killed copy leaves no snapshot, and the next copy uses the files that were written.
pub(super) fn copy(store: &OffsiteStore, socket: UnixStream) -> Result<OffsitePoint, BackupFailure> {
    let missing =
        || BackupFailure::new(FailureKind::Machine, "cannot create the repository: the store has none after its creation");
    let opened = OpenRepository::open(store, true)?.ok_or_else(missing)?;
    let point = Arc::new(RemotePoint::open(socket, opened.state.clone())?);
    let id = point.parts.manifest.id.clone();
    let existing = opened.points()?;
    if let Some((known, _)) = existing.iter().find(|(known, _)| known.id == id) {
        return Ok(OffsitePoint { added: 0, ..known.clone() });
    }
    let failed = opened.failed(&format!("copy {id}"));
    let snapshot = new_snapshot(&id, point.parts.manifest.taken, store)?;
    let mut options = BackupOptions::default();
    // Files that are unchanged since the newest copy are not read.
    match existing.first() {
        Some((_, parent)) => options.parent_opts.parents = vec![full_name(&parent.id)],
        None => options.parent_opts.force = true,
    }
    options.no_scan = true;
    let source = PointSource(point);
    let expected = source.expected_files();
    let indexed = opened.repository.to_indexed_ids().map_err(&failed)?;
    let made = indexed.archive(&options, &source, snapshot, &[PathBuf::from(TOP)]).map_err(&failed)?;
    // rustic leaves a file out of the snapshot if rustic cannot read the file. After a failed read, `BackendState` prevents the snapshot.
    // This comparison finds all other missing files.
    let copied = made.summary.as_ref().map_or(0, |summary| summary.total_files_processed);
    if copied != expected {
        indexed.drop_index().delete_snapshots(&[made.id]).map_err(&failed)?;
        let why = format!("cannot copy {id}: the snapshot has {copied} files (expected {expected})");
        return Err(BackupFailure::new(FailureKind::Machine, why));
    }
    described(&made).ok_or_else(|| {
        BackupFailure::new(FailureKind::Machine, format!("cannot describe the copy of {id}: its snapshot has no name"))
    })
}
