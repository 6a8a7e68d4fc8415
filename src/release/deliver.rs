//! The server side of deltas: made for other servers and kept for the next one that asks; and what came as a delta, packed again.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::{
    ReleaseError,
    delta::{self, DeltaReport},
    pack::{ArchiveJob, ArchiveReport, DeltaJob, Origin, PackJob},
    server::{Context, Files, blocking, lost, run},
    store,
};
use crate::{
    host::{
        archive::{Archive, Limits},
        files::{FileError, create_new, durable, open_regular, remove_if_present, rename_over, sync_dir},
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
        if open_regular(&cached).is_ok_and(|file| delta::base_of(&file).is_ok_and(|ends| ends == (from, to))) {
            return Ok(None);
        }
        Ok(Some(open(&paths, from, to, threads)?))
    })
    .await?;
    let Some((job, out, extra)) = opened else { return Ok(path) };
    let report: DeltaReport = run(context, "pack", Role::Pack, to, &PackJob::Delta(job), extra).await?;
    let (cached, directory) = (path.clone(), context.paths.deltas());
    blocking(move || {
        let found = out.as_file().metadata().map_err(|e| lost(&cached, e))?.len();
        if found != report.bytes || delta::base_of(out.as_file())? != (from, to) {
            return Err(ReleaseError::Delta { why: "it is not what its worker reported".to_owned() });
        }
        out.as_file().sync_all().map_err(|e| lost(&cached, e))?;
        out.persist(&cached).map_err(|e| FileError::io("replace", &cached, e.error))?;
        Ok(sync_dir(&directory)?)
    })
    .await?;
    Ok(path)
}

type Opened = (DeltaJob, tempfile::NamedTempFile, Vec<OwnedFd>);

fn open(paths: &EnvironmentPaths, from: ReleaseId, to: ReleaseId, threads: usize) -> Result<Opened, ReleaseError> {
    let directory = paths.deltas();
    match std::fs::create_dir(&directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(lost(&directory, e)),
        _ => {}
    }
    let out = tempfile::Builder::new().prefix(".new-").tempfile_in(&directory).map_err(|e| lost(&directory, e))?;
    let mut extra = vec![OwnedFd::from(out.as_file().try_clone().map_err(|e| lost(&directory, e))?)];
    for release in [from, to] {
        extra.push(known(paths, release, &paths.manifest(release))?.into());
    }
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
    open_regular(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => ReleaseError::Unknown { release, path: paths.releases() },
        _ => e.into(),
    })
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
            let manifest = known(&paths, release, &files.manifest)?;
            if open_regular(&files.archive).is_ok() {
                // A power cut may have come before this.
                remove_if_present(&paths.delta(release))?;
                return Ok(Err(store::parse(&manifest, &files.manifest)?));
            }
            let base = open_regular(&paths.delta(release)).ok().and_then(|delta| delta::base_of(&delta).ok());
            let before = base.and_then(|(base, _)| {
                Some((open_regular(&paths.archive(base)).ok()?, open_regular(&paths.manifest(base)).ok()?))
            });
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
    let mut known = store::parse(known, &files.manifest)?;
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
    remove_if_present(delta)?;
    Ok(manifest)
}
