//! The server side of deltas: it makes and caches deltas for other servers, and packs releases that were transferred as a delta.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use larder_archive::{Archive, ArchiveLimits, delta::DeltaReport, pool::both};

use super::{
    ReleaseError, delta,
    manifest::{self, index},
    pack::{ArchiveJob, ArchiveReport, DeltaJob, PackJob, PackSource},
    store,
    worker::{Files, WorkerContext, blocking, installed, known_manifest, lost, run},
};
use crate::{
    host::{
        files::{FileError, durable, free_space, open_regular, remove_if_present, rename_over, sync_dir},
        root::EnvironmentPaths,
    },
    model::{Manifest, ReleaseId, Role},
};

/// Returns the path of the delta between two releases, each of which is in the store or installed. Makes the delta if the cache does not
/// have it. The file never changes, but may be removed at any time, so callers must open it at once.
pub async fn make_delta(context: &WorkerContext<'_>, from: ReleaseId, to: ReleaseId) -> Result<PathBuf, ReleaseError> {
    let path = store::cached_delta(context.paths, from, to);
    let paths = context.paths.clone();
    let (cached, threads) = (path.clone(), context.threads);
    let opened = blocking(move || {
        // The rename to the cached name is the last step, so a cached delta is complete.
        if open_regular(&cached).is_ok_and(|file| delta::endpoints(&file).is_ok_and(|ends| ends == (from, to))) {
            return Ok(None);
        }
        Ok(Some(open(&paths, from, to, threads)?))
    })
    .await?;
    let Some((job, out, extra)) = opened else { return Ok(path) };
    let limit = context.archive_limit;
    let report: DeltaReport = run(context, "pack", Role::Pack, to, &PackJob::Delta(job), extra).await?;
    let (cached, directory) = (path.clone(), context.paths.deltas());
    blocking(move || {
        let found = out.as_file().metadata().map_err(|e| lost(&cached, e))?.len();
        if found != report.bytes || delta::endpoints(out.as_file())? != (from, to) {
            return Err(ReleaseError::delta("it does not match the report of its worker"));
        }
        out.as_file().sync_all().map_err(|e| lost(&cached, e))?;
        out.persist(&cached).map_err(|e| FileError::io("replace", &cached, e.error))?;
        forget_oldest(&directory, &cached, limit);
        Ok(sync_dir(&directory)?)
    })
    .await?;
    Ok(path)
}

/// The maximum number of cached deltas of an environment.
const MAX_CACHED: usize = 16;
/// The disk space that must stay free, in bytes.
const RESERVE: u64 = 256 << 20;

/// Keeps at most [`MAX_CACHED`] cached deltas with a total size of at most `limit` bytes, newest first, and removes all others. The delta
/// `newest` always stays, because a caller waits for it.
fn forget_oldest(directory: &Path, newest: &Path, limit: u64) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    // The name of an unfinished delta begins with a dot.
    let finished = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let mut others: Vec<_> = finished
        .map(|entry| entry.path())
        .filter(|path| path != newest)
        .filter_map(|path| {
            let found = path.symlink_metadata().ok()?;
            Some((found.modified().ok()?, found.len(), path))
        })
        .collect();
    others.sort_by(|one, other| other.cmp(one));
    let mut left = limit.saturating_sub(newest.symlink_metadata().map_or(0, |found| found.len()));
    let mut kept = 1_usize;
    for (_, bytes, path) in others {
        if kept < MAX_CACHED && bytes <= left {
            (kept, left) = (kept.saturating_add(1), left.saturating_sub(bytes));
        } else if let Err(error) = remove_if_present(&path) {
            tracing::warn!(%error, "cannot remove an old delta");
        }
    }
}

/// Returns an error if the disk has too little space for a delta and the files that its worker unpacks. A client that gets this error tries
/// another delta, or fetches the whole archive. `archives` is the total size of the archives of both releases, in bytes.
fn require_space(directory: &Path, archives: u64) -> Result<(), ReleaseError> {
    let free = free_space(directory)?.bytes;
    let needed = archives.saturating_add(RESERVE);
    if free < needed {
        let (free, needed) = (free >> 20, needed >> 20);
        return Err(ReleaseError::delta(format!("the disk has {free} MiB of free space (expected {needed} MiB)")));
    }
    Ok(())
}

type Opened = (DeltaJob, tempfile::NamedTempFile, Vec<OwnedFd>);

/// Creates the file of a delta and opens the files of both releases. Returns the job, the new file and the worker's descriptors.
fn open(paths: &EnvironmentPaths, from: ReleaseId, to: ReleaseId, threads: usize) -> Result<Opened, ReleaseError> {
    let directory = paths.deltas();
    match std::fs::DirBuilder::new().mode(0o750).create(&directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(lost(&directory, e)),
        _ => {}
    }
    let size = |release| paths.archive(release).metadata().map_or(0, |found| found.len());
    require_space(&directory, size(from).saturating_add(size(to)))?;
    let out = tempfile::Builder::new().prefix(".new-").tempfile_in(&directory).map_err(|e| lost(&directory, e))?;
    let mut extra = vec![OwnedFd::from(out.as_file().try_clone().map_err(|e| lost(&directory, e))?)];
    // Opening a manifest reads the whole index of the manifest and checks the digest of the index. Therefore both manifests are opened in
    // parallel.
    let (of_old, of_new) = both(|| known_manifest(paths, from), || known_manifest(paths, to));
    extra.extend([of_old?.into(), of_new?.into()]);
    let mut origin = |release: ReleaseId| {
        let tree = installed(paths, release).then_some(release);
        let archive = match open_regular(&paths.archive(release)) {
            Ok(archive) => Some(archive),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(ReleaseError::from(e)),
        };
        if tree.is_none() && archive.is_none() {
            return Err(ReleaseError::Unknown { release, path: paths.releases() });
        }
        let origin = PackSource { tree, archive: archive.is_some() };
        if let Some(archive) = archive {
            let spool = tempfile::tempfile_in(&directory).map_err(|e| lost(&directory, e))?;
            extra.extend([OwnedFd::from(archive), spool.into()]);
        }
        Ok(origin)
    };
    let (old, new) = (origin(from)?, origin(to)?);
    Ok((DeltaJob { old, new, threads }, out, extra))
}

/// Packs the installed tree of a release into `<release>.tar.zst`, adds the frames to the manifest of the release, and removes the delta
/// with which the release was transferred. If the archive exists, only the delta is removed.
///
/// # Errors
///
/// Returns an error and changes nothing if the new archive is not byte for byte the archive that the manifest names.
pub async fn rebuild(context: &WorkerContext<'_>, release: ReleaseId) -> Result<Manifest, ReleaseError> {
    let files = Files::of(context.paths, release);
    let paths = context.paths.clone();
    let opened = {
        let files = files.clone();
        blocking(move || {
            let manifest = known_manifest(&paths, release)?;
            if open_regular(&files.archive).is_ok() {
                // If an earlier attempt crashed, the delta may still be beside the archive.
                remove_if_present(&paths.delta(release))?;
                return Ok(Err(manifest::parse_known(&manifest, &files.manifest)?));
            }
            let base = open_regular(&paths.delta(release)).ok().and_then(|delta| delta::endpoints(&delta).ok());
            let before = base
                .and_then(|(base, _)| Some((open_regular(&paths.archive(base)).ok()?, index::open(&paths.manifest(base)).ok()?)));
            Ok(Ok((manifest, files.create_new()?, before)))
        })
        .await?
    };
    let (manifest, (archive, written), before) = match opened {
        Ok(opened) => opened,
        Err(there) => return Ok(there),
    };
    let job = ArchiveJob { release, previous: before.is_some(), threads: context.threads };
    let again = |file: &File| file.try_clone().map(OwnedFd::from).map_err(|e| lost(&files.new_archive, e));
    let mut extra = vec![again(&archive)?, again(&written)?, again(&manifest)?];
    if let Some((archive, manifest)) = before {
        extra.extend([archive.into(), manifest.into()]);
    }
    let report: Result<ArchiveReport, ReleaseError> =
        run(context, "pack", Role::Pack, release, &PackJob::Archive(job), extra).await;
    let delta = context.paths.delta(release);
    blocking(move || {
        let kept = report.and_then(|_| keep(&files, &manifest, &archive, &written, &delta));
        if kept.is_err() {
            // Errors of the removal are ignored, so that the first error is reported. The next attempt removes these files.
            let _ = files.remove_new();
        }
        kept
    })
    .await
}

/// Checks the files that the worker wrote, and then gives these files their final names. At every moment, the store has the delta or the
/// archive, and a manifest that is valid for the delta and for the archive.
fn keep(files: &Files, known: &File, archive: &File, written: &File, delta: &Path) -> Result<Manifest, ReleaseError> {
    let mut known = manifest::parse_known(known, &files.manifest)?;
    let manifest = manifest::parse(written, &files.new_manifest)?;
    known.archive.frames.clone_from(&manifest.archive.frames);
    if known != manifest {
        let why = "it does not describe the release that was packed".to_owned();
        return Err(ReleaseError::Manifest { path: files.new_manifest.clone(), why });
    }
    Archive::open(archive, &manifest.entries, &manifest.archive, &ArchiveLimits::default())
        .map_err(|source| ReleaseError::Archive { doing: "accept", source })?;
    durable::begin(archive);
    archive.sync_all().map_err(|e| lost(&files.new_archive, e))?;
    written.sync_all().map_err(|e| lost(&files.new_manifest, e))?;
    rename_over(&files.new_manifest, &files.manifest)?;
    rename_over(&files.new_archive, &files.archive)?;
    index::keep(&files.manifest, index::identity(written), &manifest);
    remove_if_present(delta)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_deltas_beyond_number_or_size_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, age: u64, bytes: usize| {
            let path = dir.path().join(name);
            std::fs::write(&path, vec![0; bytes]).unwrap();
            let at = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
            path
        };
        let left = || std::fs::read_dir(dir.path()).unwrap().count();
        let newest = make("a..b", 0, 100);
        (1..=40).for_each(|age| drop(make(&format!("{age}..b"), age, 10)));
        make(".new-x", 90, 10);
        forget_oldest(dir.path(), &newest, 1 << 20);
        assert_eq!(left(), MAX_CACHED + 1);
        assert!(dir.path().join("15..b").exists() && !dir.path().join("16..b").exists());
        // The total size of the deltas is limited as well. The newest delta stays, whatever its size.
        forget_oldest(dir.path(), &newest, 125);
        assert_eq!(left(), 4);
        forget_oldest(dir.path(), &newest, 1);
        assert!(newest.exists() && left() == 2);
        assert!(require_space(dir.path(), 0).is_ok() && require_space(dir.path(), u64::MAX / 2).is_err());
    }
}
