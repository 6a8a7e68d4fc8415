//! Starts workers for operations on releases, and opens the files that the workers receive.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::{ReleaseError, SigningKey, error::WorkerAnswer, manifest::index};
use crate::{
    host::{
        files::{FileError, create_new, open_regular, remove_if_present},
        launch::{Launcher, Stdio},
        root::EnvironmentPaths,
    },
    model::{EnvId, Exit, Launch, LimitClass, ProjectId, ReleaseId, Role, Slot, Supervision},
};

/// The maximum size of the report of a worker, in bytes.
const MAX_REPORT: usize = 1 << 20;

/// The context of an operation on a release: the environment, the launcher of the worker, and the limits.
#[derive(Debug)]
pub struct WorkerContext<'a> {
    /// The launcher that starts the worker.
    pub launcher: &'a Launcher,
    pub project: ProjectId,
    pub environment: EnvId,
    /// The paths of the environment.
    pub paths: &'a EnvironmentPaths,
    /// The log of the deployment, which is the worker's stdout and stderr.
    pub output: Option<OwnedFd>,
    /// The number of threads of a worker.
    pub threads: usize,
    /// The key that signs the manifests of releases that this server builds.
    pub signing: &'a SigningKey,
    /// The maximum size of a written archive, in bytes. The total size of the environment's cached deltas has the same limit.
    pub archive_limit: u64,
}

/// The paths of a release's files in the store, and the temporary paths under which they are written.
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

    /// Creates the temporary files of the archive and the manifest. The files of an interrupted attempt are replaced. If one of the files cannot
    /// be created, neither stays.
    pub(super) fn create_new(&self) -> Result<(File, File), FileError> {
        self.remove_new()?;
        let created =
            create_new(&self.new_archive, 0o640).and_then(|archive| Ok((archive, create_new(&self.new_manifest, 0o640)?)));
        if created.is_err() {
            // The first error is reported. The next attempt repeats a failed removal.
            let _ = self.remove_new();
        }
        created
    }

    /// Removes the temporary files.
    pub(super) fn remove_new(&self) -> Result<(), FileError> {
        [&self.new_archive, &self.new_manifest].into_iter().try_for_each(|path| remove_if_present(path))
    }
}

/// Runs a worker and returns its report.
///
/// # Errors
///
/// Returns an error if the worker cannot be started, exits without a report, or reports a failure.
pub(super) async fn run<J: serde::Serialize, R: serde::de::DeserializeOwned>(
    context: &WorkerContext<'_>,
    what: &'static str,
    role: Role,
    release: impl Into<Option<ReleaseId>>,
    job: &J,
    extra: Vec<OwnedFd>,
) -> Result<R, ReleaseError> {
    run_in(context, what, role, release, None, job, extra).await
}

/// Like [`run`], for a worker that uses a slot.
pub(super) async fn run_in<J: serde::Serialize, R: serde::de::DeserializeOwned>(
    context: &WorkerContext<'_>,
    what: &'static str,
    role: Role,
    release: impl Into<Option<ReleaseId>>,
    slot: Option<Slot>,
    job: &J,
    extra: Vec<OwnedFd>,
) -> Result<R, ReleaseError> {
    let failed = |source| ReleaseError::Launch { what, source };
    let launch = Launch {
        role,
        project: context.project,
        environment: Some(context.environment),
        release: release.into(),
        slot,
        limits: LimitClass::Service,
        supervision: Supervision::Once,
    };
    let output = |which: &Option<OwnedFd>| {
        which.as_ref().map(OwnedFd::try_clone).transpose().map_err(|e| FileError::io("share", "the log of the deployment", e))
    };
    let stdio = Stdio { stdin: None, stdout: output(&context.output)?, stderr: output(&context.output)?, extra };
    let mut child = context.launcher.launch(launch, job, stdio).await.map_err(failed)?;
    let report: Option<WorkerAnswer<R>> = child.report(MAX_REPORT).await.map_err(failed)?;
    if let Some(WorkerAnswer::Done(report)) = report {
        // The worker reports after it has synced everything, so the removal of its sandbox need not be awaited.
        return Ok(report);
    }
    // The worker must have exited before the caller reverts the failed job.
    let exit: Exit = child.wait().await.map_err(failed)?;
    match report {
        Some(answer) => answer.into_result(),
        None => Err(ReleaseError::Died { what, exit }),
    }
}

/// Runs file operations on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ReleaseError> + Send + 'static,
) -> Result<T, ReleaseError> {
    tokio::task::spawn_blocking(act).await.map_err(|_| ReleaseError::Cancelled)?
}

/// Returns the error of an operation on an open file.
pub(super) fn lost(path: &Path, e: std::io::Error) -> ReleaseError {
    FileError::io("use", path, e).into()
}

/// Returns true if a tree with the name of the release exists. The tree may be incomplete, so readers of the tree must compare digests.
pub(super) fn installed(paths: &EnvironmentPaths, release: ReleaseId) -> bool {
    paths.tree(release).symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Opens a file of a release. If the file is missing, returns [`ReleaseError::Unknown`].
pub(super) fn known(paths: &EnvironmentPaths, release: ReleaseId, path: &Path) -> Result<File, ReleaseError> {
    open_regular(path).map_err(|e| unknown(paths, release, e))
}

/// Opens the index or the manifest of a release. If the manifest is missing, returns [`ReleaseError::Unknown`].
pub(super) fn known_manifest(paths: &EnvironmentPaths, release: ReleaseId) -> Result<File, ReleaseError> {
    index::open(&paths.manifest(release)).map_err(|e| unknown(paths, release, e))
}

fn unknown(paths: &EnvironmentPaths, release: ReleaseId, error: FileError) -> ReleaseError {
    match error.kind() {
        std::io::ErrorKind::NotFound => ReleaseError::Unknown { release, path: paths.releases() },
        _ => error.into(),
    }
}
