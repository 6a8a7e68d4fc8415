//! The server side of bundling and installing: it opens the files, starts the workers and checks their results.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use larder_archive::{ArchiveLimits, pool::both};

use super::{
    ReleaseError, SigningKey,
    bundle::{BundleJob, BundleReport},
    delta,
    install::{ContentSource, LiveSince, UnpackJob, UnpackReport},
    manifest::{self, Head, index},
    worker::{Files, WorkerContext, blocking, installed, known, known_manifest, lost, run},
};
use crate::{
    host::{
        files::{FileError, durable, open_regular, remove_if_present, rename_over, sync_dir},
        root::EnvironmentPaths,
    },
    model::{ConfigVariables, Digest, Manifest, ReleaseId, Role},
};

/// A release that was added to the store.
#[derive(Debug)]
pub struct Bundled {
    /// The manifest, read back and checked.
    pub manifest: Manifest,
    /// The report of the worker, with figures and warnings.
    pub report: BundleReport,
}

/// A release whose tree is complete in `deploy/` and synced.
#[derive(Debug)]
pub struct Installed {
    /// The report of the worker.
    pub report: UnpackReport,
}

/// Removes the temporary files of a release, which a cancelled bundling leaves.
pub fn remove_unfinished(paths: &EnvironmentPaths, release: ReleaseId) -> Result<(), FileError> {
    Files::of(paths, release).remove_new()
}

/// Bundles the built tree into a release. `previous` is a release in the store whose frames may be reused. The call may be repeated: the
/// files of an interrupted attempt are replaced.
pub async fn bundle(
    context: &WorkerContext<'_>,
    head: Head,
    previous: Option<ReleaseId>,
    secrets: ConfigVariables,
) -> Result<Bundled, ReleaseError> {
    let release = head.release;
    let files = Files::of(context.paths, release);
    let before = previous.map(|id| Files::of(context.paths, id));
    let opened = {
        let files = files.clone();
        blocking(move || {
            // The reuse of frames only saves time, so an unreadable previous release does not fail the job.
            let before = before.and_then(|files| Some((open_regular(&files.archive).ok()?, index::open(&files.manifest).ok()?)));
            let (archive, manifest) = files.create_new()?;
            Ok((archive, manifest, before))
        })
        .await?
    };
    let (archive, manifest, before) = opened;
    let (threads, limit) = (context.threads, context.archive_limit);
    let job = BundleJob { head: head.clone(), previous: before.is_some(), threads, limit, secrets };
    let mut extra = vec![OwnedFd::from(archive.try_clone().map_err(|e| lost(&files.new_archive, e))?)];
    extra.push(manifest.try_clone().map_err(|e| lost(&files.new_manifest, e))?.into());
    if let Some((archive, manifest)) = before {
        extra.extend([archive.into(), manifest.into()]);
    }
    let report: Result<BundleReport, ReleaseError> = run(context, "bundle", Role::Bundle, release, &job, extra).await;
    let signing = context.signing.clone();
    blocking(move || {
        let kept = report.and_then(|report| keep(&files, &archive, &manifest, &head, report, &signing));
        if kept.is_err() {
            // Errors of the removal are ignored, so that the first error is reported. The next attempt removes these files.
            let _ = files.remove_new();
        }
        kept
    })
    .await
}

/// Checks the files that the worker wrote, and then gives these files their final names. The manifest is renamed last, because a release
/// counts as stored as soon as its manifest exists.
fn keep(
    files: &Files,
    archive: &File,
    manifest: &File,
    head: &Head,
    report: BundleReport,
    signing: &SigningKey,
) -> Result<Bundled, ReleaseError> {
    let mut parsed = manifest::parse(manifest, &files.new_manifest)?;
    let wrong = |why: &str| ReleaseError::Manifest { path: files.new_manifest.clone(), why: why.to_owned() };
    if Head::of(&parsed) != *head {
        return Err(wrong("it does not describe the requested release"));
    }
    if (parsed.tree, parsed.archive.digest, parsed.archive.bytes) != (report.tree, report.archive, report.archive_bytes) {
        return Err(wrong("it does not match the report of its worker"));
    }
    larder_archive::Archive::open(archive, &parsed.entries, &parsed.archive, &ArchiveLimits::default())
        .map_err(|source| ReleaseError::Archive { doing: "accept", source })?;
    sign(&mut parsed, manifest, files, signing)?;
    // The writing of both files starts before the first sync, so that the file system makes one commit.
    durable::begin(archive);
    durable::begin(manifest);
    archive.sync_all().map_err(|e| lost(&files.new_archive, e))?;
    manifest.sync_all().map_err(|e| lost(&files.new_manifest, e))?;
    // The manifest of an earlier attempt must never describe the archive of this attempt.
    remove_if_present(&files.manifest)?;
    std::fs::rename(&files.new_archive, &files.archive).map_err(|e| lost(&files.archive, e))?;
    rename_over(&files.new_manifest, &files.manifest)?;
    index::keep(&files.manifest, index::identity(manifest), &parsed);
    Ok(Bundled { manifest: parsed, report })
}

/// Adds the signature to a manifest and to the end of its file, without rewriting the whole file.
fn sign(parsed: &mut Manifest, file: &File, files: &Files, signing: &SigningKey) -> Result<(), ReleaseError> {
    let wrong = |why: &str| ReleaseError::Manifest { path: files.new_manifest.clone(), why: why.to_owned() };
    if parsed.signature.is_some() {
        return Err(wrong("it is signed, although its worker has no key"));
    }
    let signature = signing.sign(&parsed.statement());
    let size = file.metadata().map_err(|e| lost(&files.new_manifest, e))?.len();
    // The signature overwrites the last two bytes, `}` and a newline, and ends with the same two bytes.
    let at = size.checked_sub(2).ok_or_else(|| wrong("it is empty"))?;
    let mut end = [0; 2];
    file.read_exact_at(&mut end, at).map_err(|e| lost(&files.new_manifest, e))?;
    if end != *b"}\n" {
        return Err(wrong("it does not end with a closing brace and a newline"));
    }
    let text = serde_json::to_string(&signature).map_err(|e| wrong(&e.to_string()))?;
    file.write_all_at(format!(",\"signature\":{text}}}\n").as_bytes(), at).map_err(|e| lost(&files.new_manifest, e))?;
    parsed.signature = Some(signature);
    Ok(())
}

/// Installs a release of the store into `deploy/<release>`, a directory that the keeper has created for the unpack user. The content is
/// read from the archive of the release. Without an archive, the content is read from the delta of the release, if the base of the delta is
/// installed. `previous` is an installed release that may share files. `spare` is the fingerprint that [`spare`] reported when it filled
/// the directory with a copy of `previous`. `live_since` is the time at which `previous` went live, in seconds since 1970: files that
/// differ from `previous` get later times. The call may be repeated, but only the first attempt may pass `spare`.
pub async fn install(
    context: &WorkerContext<'_>,
    release: ReleaseId,
    previous: Option<ReleaseId>,
    spare: Option<Digest>,
    live_since: Option<u64>,
) -> Result<Installed, ReleaseError> {
    unpack(context, release, release, previous, spare, live_since).await
}

/// Renews the times of files of an installed release. Each file that differs from the release `live` gets a time after `live_since`, the
/// time at which `live` went live. See [`LiveSince`].
pub async fn renew_times(
    context: &WorkerContext<'_>,
    release: ReleaseId,
    live: ReleaseId,
    live_since: u64,
) -> Result<(), ReleaseError> {
    let paths = context.paths.clone();
    let (manifest, before) = blocking(move || {
        let (manifest, before) = both(|| known_manifest(&paths, release), || index::open(&paths.manifest(live)).ok());
        Ok((manifest?, before))
    })
    .await?;
    let job = UnpackJob {
        previous: before.as_ref().map(|_| live),
        content: ContentSource::Installed,
        spare: None,
        live: Some(LiveSince { second: live_since, is_previous: before.is_some() }),
        threads: context.threads,
        limits: ArchiveLimits::default(),
    };
    // An unpack worker gets its content as descriptor 5. This job has no content, so descriptor 5 is any file, and is not read.
    let mut extra = vec![OwnedFd::from(manifest.try_clone().map_err(|e| lost(&context.paths.manifest(release), e))?)];
    extra.push(OwnedFd::from(manifest));
    extra.extend(before.map(OwnedFd::from));
    let report: UnpackReport = run(context, "unpack", Role::Unpack, release, &job, extra).await?;
    warn_of_outdated(release, &report);
    Ok(())
}

fn warn_of_outdated(release: ReleaseId, report: &UnpackReport) {
    if report.outdated > 0 {
        tracing::warn!(%release, files = report.outdated, "cannot renew the times of files; browsers may keep the files of the live release");
    }
}

/// Fills `deploy/<next>` with a copy of the installed release `live`, in advance of the next installation. `next` is a new id; the next
/// installation renames the tree to the id of its own release. Callers run this function in the background. After a failure, the next
/// installation only takes longer.
pub async fn spare(context: &WorkerContext<'_>, next: ReleaseId, live: ReleaseId) -> Result<Installed, ReleaseError> {
    unpack(context, next, live, Some(live), None, None).await
}

/// Fills the tree named `tree` with the content of `release`.
async fn unpack(
    context: &WorkerContext<'_>,
    tree: ReleaseId,
    release: ReleaseId,
    previous: Option<ReleaseId>,
    spare: Option<Digest>,
    live_since: Option<u64>,
) -> Result<Installed, ReleaseError> {
    let deploy = context.paths.deploy();
    let paths = context.paths.clone();
    let (manifest, content, file, before) = blocking(move || {
        let (content, file, previous) = content(&paths, release, previous)?;
        let before = || previous.and_then(|id| Some((id, index::open(&paths.manifest(id)).ok()?)));
        let (manifest, before) = both(|| known_manifest(&paths, release), before);
        Ok((manifest?, content, file, before))
    })
    .await?;
    let base = before.as_ref().map(|(id, _)| *id);
    // A spare is a copy of `previous`. The spare is not used if the base of the delta is not `previous`.
    let spare = spare.filter(|_| base == previous);
    let live = live_since.map(|second| LiveSince { second, is_previous: base.is_some() && base == previous });
    let job = UnpackJob { previous: base, content, spare, live, threads: context.threads, limits: ArchiveLimits::default() };
    let file = match file {
        Some(file) => OwnedFd::from(file),
        None => manifest.try_clone().map_err(|e| lost(&context.paths.manifest(release), e))?.into(),
    };
    let mut extra = vec![file, OwnedFd::from(manifest)];
    extra.extend(before.map(|(_, manifest)| OwnedFd::from(manifest)));
    let report: UnpackReport = run(context, "unpack", Role::Unpack, tree, &job, extra).await?;
    if let (1.., Some(first)) = (report.damaged, &report.first_damaged) {
        let (release, files) = (base.map(|id| id.to_string()), report.damaged);
        tracing::error!(release, files, first, "installed files differ from their manifest; unpacked again instead of shared");
    }
    warn_of_outdated(release, &report);
    // The worker has synced the tree. The server syncs the directory that contains the name of the tree, because the worker cannot write
    // that directory.
    blocking(move || Ok(sync_dir(&deploy)?)).await?;
    Ok(Installed { report })
}

/// Returns the kind of content that a release is installed from, the file with the content, and the release to share files with. The
/// archive is preferred. Without an archive, the content is read from the tree of `previous` if `previous` is this release, or else from a
/// delta whose base is installed.
fn content(
    paths: &EnvironmentPaths,
    release: ReleaseId,
    previous: Option<ReleaseId>,
) -> Result<(ContentSource, Option<File>, Option<ReleaseId>), ReleaseError> {
    let unknown = match known(paths, release, &paths.archive(release)) {
        Ok(archive) => return Ok((ContentSource::Archive, Some(archive), previous)),
        Err(e @ ReleaseError::Unknown { .. }) => e,
        Err(e) => return Err(e),
    };
    if previous == Some(release) && installed(paths, release) {
        return Ok((ContentSource::Previous, None, previous));
    }
    let Ok(file) = open_regular(&paths.delta(release)) else { return Err(unknown) };
    let (base, _) = delta::endpoints(&file)?;
    if installed(paths, base) { Ok((ContentSource::Delta, Some(file), Some(base))) } else { Err(unknown) }
}
