//! The server side of deltas: made for other servers and kept for the next one that asks; and what came as a delta, packed again.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use larder_archive::{Archive, Limits, delta::DeltaReport, pool::both};

use super::{
    ReleaseError, delta, index,
    pack::{ArchiveJob, ArchiveReport, DeltaJob, Origin, PackJob},
    server::{Context, Files, blocking, lost, run},
    store,
};
use crate::{
    host::{
        files::{FileError, create_new, durable, free_space, open_regular, remove_if_present, rename_over, sync_dir},
        root::EnvironmentPaths,
    },
    model::{Manifest, ReleaseId, Role},
};

/// The delta that leads from one release to another, both in `releases/` or installed; made if nobody asked for it before. The file
/// does not change any more, but it may be removed at any time once nobody has it open.
pub async fn make_delta(context: &Context<'_>, from: ReleaseId, to: ReleaseId) -> Result<PathBuf, ReleaseError> {
    let path = store::cached_delta(context.paths, from, to);
    let paths = context.paths.clone();
    let (cached, threads) = (path.clone(), context.threads);
    let opened = blocking(move || {
        // What is there was finished before it got its name.
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
            return Err(ReleaseError::delta("it is not what its worker reported"));
        }
        out.as_file().sync_all().map_err(|e| lost(&cached, e))?;
        out.persist(&cached).map_err(|e| FileError::io("replace", &cached, e.error))?;
        forget_oldest(&directory, &cached, limit);
        Ok(sync_dir(&directory)?)
    })
    .await?;
    Ok(path)
}

/// So many deltas of an environment are kept for the next one that asks.
const CACHED: usize = 16;
/// So much of the disk is left to others, in bytes.
const RESERVE: u64 = 256 << 20;

/// Removes deltas, the oldest first, until no more are there than are kept, and in all no more than `limit` bytes. Not `newest`,
/// which somebody waits for.
fn forget_oldest(directory: &Path, newest: &Path, limit: u64) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    // One that is being made begins with a dot.
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
    let mut room = limit.saturating_sub(newest.symlink_metadata().map_or(0, |found| found.len()));
    let mut kept = 1_usize;
    for (_, bytes, path) in others {
        if kept < CACHED && bytes <= room {
            (kept, room) = (kept.saturating_add(1), room.saturating_sub(bytes));
        } else if let Err(error) = remove_if_present(&path) {
            tracing::warn!(%error, "an old delta stays");
        }
    }
}

/// Refuses where the disk is too full for a delta and what its worker needs beside it: whoever wants it can do without.
fn room(directory: &Path, archives: u64) -> Result<(), ReleaseError> {
    let free = free_space(directory)?.bytes;
    if free < archives.saturating_add(RESERVE) {
        return Err(ReleaseError::delta(format!("there is no room to make one: {} MiB are free", free >> 20)));
    }
    Ok(())
}

type Opened = (DeltaJob, tempfile::NamedTempFile, Vec<OwnedFd>);

fn open(paths: &EnvironmentPaths, from: ReleaseId, to: ReleaseId, threads: usize) -> Result<Opened, ReleaseError> {
    let directory = paths.deltas();
    match std::fs::DirBuilder::new().mode(0o750).create(&directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(lost(&directory, e)),
        _ => {}
    }
    let size = |release| paths.archive(release).metadata().map_or(0, |found| found.len());
    room(&directory, size(from).saturating_add(size(to)))?;
    let out = tempfile::Builder::new().prefix(".new-").tempfile_in(&directory).map_err(|e| lost(&directory, e))?;
    let mut extra = vec![OwnedFd::from(out.as_file().try_clone().map_err(|e| lost(&directory, e))?)];
    // Each is read to see whether it is whole.
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
        let origin = Origin { tree, archive: archive.is_some() };
        if let Some(archive) = archive {
            let spool = tempfile::tempfile_in(&directory).map_err(|e| lost(&directory, e))?;
            extra.extend([OwnedFd::from(archive), spool.into()]);
        }
        Ok(origin)
    };
    let (old, new) = (origin(from)?, origin(to)?);
    Ok((DeltaJob { old, new, threads }, out, extra))
}

/// Whether a tree has this name. That it is complete, its files' digests have to show.
pub(super) fn installed(paths: &EnvironmentPaths, release: ReleaseId) -> bool {
    paths.tree(release).symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Opens a file of a release; that there is none is said of the release.
pub(super) fn known(paths: &EnvironmentPaths, release: ReleaseId, path: &Path) -> Result<File, ReleaseError> {
    open_regular(path).map_err(|e| unknown(paths, release, e))
}

/// The same of its manifest, or the index of that.
pub(super) fn known_manifest(paths: &EnvironmentPaths, release: ReleaseId) -> Result<File, ReleaseError> {
    index::open(&paths.manifest(release)).map_err(|e| unknown(paths, release, e))
}

fn unknown(paths: &EnvironmentPaths, release: ReleaseId, error: FileError) -> ReleaseError {
    match error.kind() {
        std::io::ErrorKind::NotFound => ReleaseError::Unknown { release, path: paths.releases() },
        _ => error.into(),
    }
}

/// Makes `<release>.tar.zst` again from the installed tree of a release that came as a delta; afterwards its manifest lists the frames
/// and the delta is gone. The archive is byte for byte the one that the manifest names, or nothing is changed and this fails. Nothing to
/// do where the archive is there.
pub async fn rebuild(context: &Context<'_>, release: ReleaseId) -> Result<Manifest, ReleaseError> {
    let files = Files::of(context.paths, release);
    let paths = context.paths.clone();
    let opened = {
        let files = files.clone();
        blocking(move || {
            let manifest = known_manifest(&paths, release)?;
            if open_regular(&files.archive).is_ok() {
                // A power cut may have come before this.
                remove_if_present(&paths.delta(release))?;
                return Ok(Err(store::parse_known(&manifest, &files.manifest)?));
            }
            let base = open_regular(&paths.delta(release)).ok().and_then(|delta| delta::endpoints(&delta).ok());
            let before = base
                .and_then(|(base, _)| Some((open_regular(&paths.archive(base)).ok()?, index::open(&paths.manifest(base)).ok()?)));
            for path in [&files.new_archive, &files.new_manifest] {
                remove_if_present(path)?;
            }
            let out = (create_new(&files.new_archive, 0o640)?, create_new(&files.new_manifest, 0o640)?);
            Ok(Ok((manifest, out, before)))
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
            // The reason matters more than what could not be tidied up; the next attempt replaces it.
            let _ = (remove_if_present(&files.new_archive), remove_if_present(&files.new_manifest));
        }
        kept
    })
    .await
}

/// Checks what the worker wrote and gives it its names. At every moment there is either the delta or the archive, and a manifest that
/// is good for both.
fn keep(files: &Files, known: &File, archive: &File, written: &File, delta: &Path) -> Result<Manifest, ReleaseError> {
    let mut known = store::parse_known(known, &files.manifest)?;
    let manifest = store::parse(written, &files.new_manifest)?;
    known.archive.frames.clone_from(&manifest.archive.frames);
    if known != manifest {
        let why = "it describes another release than the one that was packed".to_owned();
        return Err(ReleaseError::Manifest { path: files.new_manifest.clone(), why });
    }
    Archive::open(archive, &manifest.entries, &manifest.archive, &Limits::default())
        .map_err(|source| ReleaseError::Archive { doing: "accepted", source })?;
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
    fn deltas_that_were_made_for_others_do_not_fill_the_disk() {
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
        assert_eq!(left(), CACHED + 1);
        assert!(dir.path().join("15..b").exists() && !dir.path().join("16..b").exists());
        // Also by their size; the one that is waited for stays, whatever it has.
        forget_oldest(dir.path(), &newest, 125);
        assert_eq!(left(), 4);
        forget_oldest(dir.path(), &newest, 1);
        assert!(newest.exists() && left() == 2);
        assert!(room(dir.path(), 0).is_ok() && room(dir.path(), u64::MAX / 2).is_err());
    }
}
