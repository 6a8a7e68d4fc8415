//! The server side of restore points. These functions start the dump worker or the restore worker, and wait for its report and its exit.

use std::{os::fd::OwnedFd, time::Duration};

use super::{BackupError, DatabaseStream, DumpJob, DumpReport, DumpWork, Filled, PointOwner, RestoreJob, error::BackupFailure};
use crate::{
    host::launch::{Child, Launcher, Stdio},
    model::{EnvId, Launch, LimitClass, ProjectId, Role, Supervision},
};

/// The maximum size of a worker's report, in bytes.
const MAX_REPORT: usize = 16 << 20;

/// The time limit of a job that reads or writes all files.
const FILES_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// The time limit of all other jobs, which read only records, names and sizes, or remove files.
const RECORDS_LIMIT: Duration = Duration::from_secs(600);

/// The environment whose restore points are used, and the means to start workers.
#[derive(Debug, Clone)]
pub struct BackupContext {
    /// The launcher that starts the workers.
    pub launcher: Launcher,
    /// The project.
    pub project: ProjectId,
    /// The environment.
    pub environment: EnvId,
}

/// Runs a job of the dump worker.
pub async fn dump(context: &BackupContext, job: &DumpJob) -> Result<DumpReport, BackupError> {
    run(context, Role::Dump, &DumpWork::Job(job.clone()), limit_of(job), Stdio::default()).await
}

/// Describes a restore point. Runs the job once more if the worker is killed, because a restore that is under way needs the description.
pub async fn describe(context: &BackupContext, point: String) -> Result<DumpReport, BackupError> {
    let job = DumpJob::Show { point };
    match dump(context, &job).await {
        Err(BackupError::Died { role, exit }) => {
            tracing::warn!(role, %exit, "a worker was killed; its job is repeated");
            dump(context, &job).await
        }
        other => other,
    }
}

/// Runs a job of the dump worker that uses a descriptor.
pub(super) async fn dump_with(context: &BackupContext, job: &DumpJob, with: OwnedFd) -> Result<DumpReport, BackupError> {
    let stdio = Stdio { extra: vec![with], ..Stdio::default() };
    run(context, Role::Dump, &DumpWork::Job(job.clone()), limit_of(job), stdio).await
}

fn limit_of(job: &DumpJob) -> Duration {
    match job {
        DumpJob::Take { .. }
        | DumpJob::Complete { .. }
        | DumpJob::Verify { .. }
        | DumpJob::Diff { .. }
        | DumpJob::Export { .. } => FILES_LIMIT,
        DumpJob::Serve { .. } | DumpJob::Receive { .. } => 4 * FILES_LIMIT,
        DumpJob::List
        | DumpJob::Show { .. }
        | DumpJob::Remove { .. }
        | DumpJob::Plan { .. }
        | DumpJob::Measure { .. }
        | DumpJob::Survey { .. }
        | DumpJob::DropCopies { .. }
        | DumpJob::Sweep => RECORDS_LIMIT,
        DumpJob::Quietly(job) => limit_of(job),
    }
}

/// Writes a restore point as an archive to `out`, which may be slow. Returns the id of the restore point. If the returned future is dropped,
/// the worker is killed.
pub async fn export(context: &BackupContext, point: String, owner: PointOwner, out: OwnedFd) -> Result<String, BackupError> {
    let stdio = Stdio { extra: vec![out], ..Stdio::default() };
    match run(context, Role::Dump, &DumpWork::Job(DumpJob::Export { point, owner }), FILES_LIMIT, stdio).await? {
        DumpReport::Exported(id) => Ok(id),
        _ => Err(BackupError::Confused { role: Role::Dump.as_str() }),
    }
}

/// Runs a job of the restore worker.
pub async fn restore(context: &BackupContext, job: &RestoreJob) -> Result<Filled, BackupError> {
    run(context, Role::Restore, job, FILES_LIMIT, Stdio::default()).await
}

/// Runs a job of the restore worker like [`restore`], and runs the job once more if the worker is killed, for example because the machine has
/// too little memory. A repeated job has the same result.
pub async fn restore_again(context: &BackupContext, job: &RestoreJob) -> Result<Filled, BackupError> {
    match restore(context, job).await {
        Err(BackupError::Died { role, exit }) => {
            tracing::warn!(role, %exit, "a worker was killed; its job is repeated");
            restore(context, job).await
        }
        other => other,
    }
}

/// Starts a dump or a load whose input and output are those of the caller.
pub async fn stream(context: &BackupContext, stream: DatabaseStream, stdio: Stdio) -> Result<Child, BackupError> {
    let role = Role::Dump;
    let started = context.launcher.launch(launch(context, role), &DumpWork::Stream(stream), stdio).await;
    started.map_err(|source| BackupError::Launch { role: role.as_str(), source })
}

fn launch(context: &BackupContext, role: Role) -> Launch {
    Launch {
        role,
        project: context.project,
        environment: Some(context.environment),
        release: None,
        slot: None,
        limits: LimitClass::Service,
        supervision: Supervision::Once,
    }
}

/// Returns true if the failpoint `worker.JOB` is active, for example `worker.PutBack`, so that the worker of this job is killed. With
/// `return(FILE)`, the failpoint kills one worker after each creation of the file.
fn is_killed(job: &impl std::fmt::Debug) -> bool {
    if fail::has_failpoints() {
        // The name of a job precedes its fields: `Job(Quietly(Complete { point: …`.
        let text = format!("{job:?}");
        let name = text.split([' ', '{']).next().and_then(|words| words.rsplit('(').next()).unwrap_or_default();
        fail::fail_point!(&format!("worker.{name}"), |file| file.is_none_or(|file| std::fs::remove_file(file).is_ok()));
        let _ = name;
    }
    false
}

async fn run<J: serde::Serialize + std::fmt::Debug, R: serde::de::DeserializeOwned>(
    context: &BackupContext,
    role: Role,
    job: &J,
    limit: Duration,
    stdio: Stdio,
) -> Result<R, BackupError> {
    let name = role.as_str();
    let failed = |source| BackupError::Launch { role: name, source };
    let mut child = context.launcher.launch(launch(context, role), job, stdio).await.map_err(failed)?;
    if is_killed(job) {
        child.kill().await.map_err(failed)?;
        return Err(BackupError::Died { role: name, exit: child.wait().await.map_err(failed)? });
    }
    let ended = async {
        let report: Option<Result<R, BackupFailure>> = child.report(MAX_REPORT).await.map_err(failed)?;
        // The worker holds locks of the store until it exits, so the report alone does not complete the job.
        Ok::<_, BackupError>((report, child.wait().await.map_err(failed)?))
    };
    // After a timeout, the dropped handle kills the worker.
    let late = |_| BackupError::Late { role: name, seconds: limit.as_secs() };
    let (report, exit) = tokio::time::timeout(limit, ended).await.map_err(late)??;
    match report {
        Some(report) => Ok(report?),
        None => Err(BackupError::Died { role: name, exit }),
    }
}
