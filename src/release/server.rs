//! The server side: opens the files, starts the workers, believes nothing that they did not prove.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use larder_archive::{Limits, pool::both};

use super::{
    ReleaseError, SigningKey,
    bundle::{BundleJob, BundleReport, Head},
    deliver::{installed, known, known_manifest},
    delta,
    error::Answer,
    index,
    install::{Content, UnpackJob, UnpackReport},
    store,
};
use crate::{
    host::{
        files::{FileError, create_new, durable, open_regular, remove_if_present, rename_over, sync_dir},
        launch::{Launcher, Stdio},
        root::EnvironmentPaths,
    },
    model::{Digest, EnvId, Exit, Launch, LimitClass, Manifest, ProjectId, ReleaseId, Role, Supervision},
};

/// The largest report of a worker, in bytes.
const MAX_REPORT: usize = 1 << 20;

/// Where and for whom.
#[derive(Debug)]
pub struct Context<'a> {
    /// Starts the workers.
    pub launcher: &'a Launcher,
    /// The project.
    pub project: ProjectId,
    /// The environment.
    pub environment: EnvId,
    /// Its paths.
    pub paths: &'a EnvironmentPaths,
    /// Where a worker's own words go, the log of the deployment.
    pub output: Option<OwnedFd>,
    /// How many threads a worker uses; two is a good number.
    pub threads: usize,
    /// Signs what is made here.
    pub signing: &'a SigningKey,
    /// The largest archive that is made, in bytes.
    pub archive_limit: u64,
}

/// A release that is in `releases/` now.
#[derive(Debug)]
pub struct Bundled {
    /// Its manifest, read back and checked.
    pub manifest: Manifest,
    /// The worker's figures and warnings.
    pub report: BundleReport,
}

/// A release whose tree is complete in `deploy/` and on the disk.
#[derive(Debug)]
pub struct Installed {
    /// The figures.
    pub report: UnpackReport,
}

/// Makes a release of the built tree. `previous` is a release in `releases/` that may share frames. May be repeated: what an
/// interrupted attempt left is replaced.
pub async fn bundle(context: &Context<'_>, head: Head, previous: Option<ReleaseId>) -> Result<Bundled, ReleaseError> {
    let release = head.release;
    let files = Files::of(context.paths, release);
    let before = previous.map(|id| Files::of(context.paths, id));
    let opened = {
        let files = files.clone();
        blocking(move || {
            // Reuse is worth having, never worth failing for.
            let before = before.and_then(|files| Some((open_regular(&files.archive).ok()?, index::open(&files.manifest).ok()?)));
            for path in [&files.new_archive, &files.new_manifest] {
                remove_if_present(path)?;
            }
            Ok((create_new(&files.new_archive, 0o640)?, create_new(&files.new_manifest, 0o640)?, before))
        })
        .await?
    };
    let (archive, manifest, before) = opened;
    let job =
        BundleJob { head: head.clone(), previous: before.is_some(), threads: context.threads, limit: context.archive_limit };
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
            // The refusal matters more than what could not be tidied up; the next attempt replaces it.
            let _ = (remove_if_present(&files.new_archive), remove_if_present(&files.new_manifest));
        }
        kept
    })
    .await
}

/// Checks what the worker wrote and gives it its names: first the archive, then the manifest, which makes the release exist.
fn keep(
    files: &Files,
    archive: &File,
    manifest: &File,
    head: &Head,
    report: BundleReport,
    signing: &SigningKey,
) -> Result<Bundled, ReleaseError> {
    let mut parsed = store::parse(manifest, &files.new_manifest)?;
    let wrong = |why: &str| ReleaseError::Manifest { path: files.new_manifest.clone(), why: why.to_owned() };
    if Head::of(&parsed) != *head {
        return Err(wrong("it describes another release than the one asked for"));
    }
    if (parsed.tree, parsed.archive.digest, parsed.archive.bytes) != (report.tree, report.archive, report.archive_bytes) {
        return Err(wrong("it differs from what its worker reported"));
    }
    larder_archive::Archive::open(archive, &parsed.entries, &parsed.archive, &Limits::default())
        .map_err(|source| ReleaseError::Archive { doing: "accepted", source })?;
    sign(&mut parsed, manifest, files, signing)?;
    // Both begin before the first is waited for, so that the file system has one commit to make.
    durable::begin(archive);
    durable::begin(manifest);
    archive.sync_all().map_err(|e| lost(&files.new_archive, e))?;
    manifest.sync_all().map_err(|e| lost(&files.new_manifest, e))?;
    // A manifest never stands beside an archive that is not its own, not even while an attempt is repeated.
    remove_if_present(&files.manifest)?;
    std::fs::rename(&files.new_archive, &files.archive).map_err(|e| lost(&files.archive, e))?;
    rename_over(&files.new_manifest, &files.manifest)?;
    index::keep(&files.manifest, index::identity(manifest), &parsed);
    Ok(Bundled { manifest: parsed, report })
}

/// Adds the signature to a manifest and to the end of its file, which need not be written again for that.
fn sign(parsed: &mut Manifest, file: &File, files: &Files, signing: &SigningKey) -> Result<(), ReleaseError> {
    let wrong = |why: &str| ReleaseError::Manifest { path: files.new_manifest.clone(), why: why.to_owned() };
    if parsed.signature.is_some() {
        return Err(wrong("its worker signed it, and has no key"));
    }
    let signature = signing.sign(&parsed.statement());
    let size = file.metadata().map_err(|e| lost(&files.new_manifest, e))?.len();
    // `}` and a line break, as the worker writes them.
    let at = size.checked_sub(2).ok_or_else(|| wrong("it is empty"))?;
    let mut end = [0; 2];
    file.read_exact_at(&mut end, at).map_err(|e| lost(&files.new_manifest, e))?;
    if end != *b"}\n" {
        return Err(wrong("it does not end as manifests do"));
    }
    let text = serde_json::to_string(&signature).map_err(|e| wrong(&e.to_string()))?;
    file.write_all_at(format!(",\"signature\":{text}}}\n").as_bytes(), at).map_err(|e| lost(&files.new_manifest, e))?;
    parsed.signature = Some(signature);
    Ok(())
}

/// Installs a release of `releases/` into `deploy/<release>`, which the keeper has made for the unpack user: from its archive, else from
/// its delta if the release that it starts from is installed. `previous` is an installed release that may share files. `spare` is the
/// seal that [`spare`] reported when it filled that directory with a copy of `previous`; a repeated attempt must not give it again. May be repeated.
pub async fn install(
    context: &Context<'_>,
    release: ReleaseId,
    previous: Option<ReleaseId>,
    spare: Option<Digest>,
) -> Result<Installed, ReleaseError> {
    unpack(context, release, release, previous, spare).await
}

/// Fills `deploy/<next>` with a copy of the installed release `live`, by hard links: work that the next installation is spared.
/// `next` is the id that the next release will get. Nobody waits for this, and nothing is lost if it fails or never runs.
pub async fn spare(context: &Context<'_>, next: ReleaseId, live: ReleaseId) -> Result<Installed, ReleaseError> {
    unpack(context, next, live, Some(live), None).await
}

/// Puts the content of `release` into the tree of `tree`.
async fn unpack(
    context: &Context<'_>,
    tree: ReleaseId,
    release: ReleaseId,
    previous: Option<ReleaseId>,
    spare: Option<Digest>,
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
    // A spare is a copy of what the caller named, which may not be what a delta starts from.
    let spare = spare.filter(|_| base == previous);
    let job = UnpackJob { previous: base, content, spare, threads: context.threads, limits: Limits::default() };
    let file = match file {
        Some(file) => OwnedFd::from(file),
        None => manifest.try_clone().map_err(|e| lost(&context.paths.manifest(release), e))?.into(),
    };
    let mut extra = vec![file, OwnedFd::from(manifest)];
    extra.extend(before.map(|(_, manifest)| OwnedFd::from(manifest)));
    let report = run(context, "unpack", Role::Unpack, tree, &job, extra).await?;
    // The worker synced what is in the tree; the name of the tree itself is in a directory that it cannot write.
    blocking(move || Ok(sync_dir(&deploy)?)).await?;
    Ok(Installed { report })
}

/// What a release is installed from: its archive; else, for a copy, the tree itself; else a delta whose base is installed. With the
/// file, and the release to share files with.
fn content(
    paths: &EnvironmentPaths,
    release: ReleaseId,
    previous: Option<ReleaseId>,
) -> Result<(Content, Option<File>, Option<ReleaseId>), ReleaseError> {
    let unknown = match known(paths, release, &paths.archive(release)) {
        Ok(archive) => return Ok((Content::Archive, Some(archive), previous)),
        Err(e @ ReleaseError::Unknown { .. }) => e,
        Err(e) => return Err(e),
    };
    if previous == Some(release) && installed(paths, release) {
        return Ok((Content::Previous, None, previous));
    }
    let Ok(file) = open_regular(&paths.delta(release)) else { return Err(unknown) };
    let (base, _) = delta::endpoints(&file)?;
    if installed(paths, base) { Ok((Content::Delta, Some(file), Some(base))) } else { Err(unknown) }
}

#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) archive: PathBuf,
    pub(super) manifest: PathBuf,
    pub(super) new_archive: PathBuf,
    pub(super) new_manifest: PathBuf,
}

impl Files {
    pub(super) fn of(paths: &EnvironmentPaths, release: ReleaseId) -> Files {
        let releases = paths.releases();
        Files {
            archive: paths.archive(release),
            manifest: paths.manifest(release),
            new_archive: releases.join(format!(".new-{release}.tar.zst")),
            new_manifest: releases.join(format!(".new-{release}.manifest.json")),
        }
    }
}

pub(super) async fn run<J: serde::Serialize, R: serde::de::DeserializeOwned>(
    context: &Context<'_>,
    what: &'static str,
    role: Role,
    release: impl Into<Option<ReleaseId>>,
    job: &J,
    extra: Vec<OwnedFd>,
) -> Result<R, ReleaseError> {
    let failed = |source| ReleaseError::Launch { what, source };
    let launch = Launch {
        role,
        project: context.project,
        environment: Some(context.environment),
        release: release.into(),
        slot: None,
        limits: LimitClass::Service,
        supervision: Supervision::Once,
    };
    let output = |which: &Option<OwnedFd>| {
        which.as_ref().map(OwnedFd::try_clone).transpose().map_err(|e| FileError::io("share", "the log of the deployment", e))
    };
    let stdio = Stdio { stdin: None, stdout: output(&context.output)?, stderr: output(&context.output)?, extra };
    let mut child = context.launcher.launch(launch, job, stdio).await.map_err(failed)?;
    let report: Option<Answer<R>> = child.report(MAX_REPORT).await.map_err(failed)?;
    if let Some(Answer::Done(report)) = report {
        // Said when all is on the disk; nobody has to wait until the worker's sandbox is taken down.
        return Ok(report);
    }
    // What failed is put back, and for that its worker must have gone.
    let exit: Exit = child.wait().await.map_err(failed)?;
    match report {
        Some(answer) => answer.into_result(),
        None => Err(ReleaseError::Died { what, exit }),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ReleaseError> + Send + 'static,
) -> Result<T, ReleaseError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| ReleaseError::Cancelled)?
}

pub(super) fn lost(path: &Path, e: std::io::Error) -> ReleaseError {
    FileError::io("use", path, e).into()
}
