//! The entry points of git workers. A worker reads a job, performs the job, and writes a report. Only [`GitJob::Serve`] has no report.

use std::{
    fs::File,
    io::{self, Write},
};

use super::{
    job::{GitFailure, GitJob, GitReport, GitTask, RepositoryKind},
    lookup, maintenance, pack, pillar, pillar_commit,
    program::WorkerPaths,
    refs, serve,
    source::{self, SourceJob},
};
use crate::{
    host::launch::{read_job, write_report},
    model::sanitise_line,
};

/// Performs the job of a worker with the role [`crate::model::Role::Git`]. `job` is descriptor 3, and `report` is descriptor 4. Returns the
/// exit code.
pub fn work(mut job: File, mut report: File) -> io::Result<u8> {
    let paths = WorkerPaths::from_env().map_err(io::Error::other)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let GitTask { kind, job: task } = read_job(&mut job)?;
    if let GitJob::Serve { service, protocol, token, limits } = task {
        drop((job, report));
        let error = serve::serve(&paths, kind, service, protocol, token.as_deref(), limits);
        let why = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        writeln!(io::stderr(), "{}", sanitise_line(&format!("larder: {error}{why}")))?;
        return Ok(1);
    }
    write_report(&mut report, &perform(&paths, kind, &task))?;
    Ok(0)
}

/// Performs any job except [`GitJob::Serve`], which has no report.
fn perform(paths: &WorkerPaths, kind: RepositoryKind, job: &GitJob) -> GitReport {
    let repository = paths.repository_of(kind);
    match job {
        GitJob::Serve { .. } => {
            Err(GitFailure::Failed { doing: String::from("serve a client"), why: String::from("the job has no report") })
        }
        GitJob::Init { head } => refs::init(&repository, head),
        GitJob::MoveRef(change) => refs::move_ref(&repository, change),
        GitJob::ReadRefs { limit } => refs::read_refs(&repository, *limit),
        GitJob::Tags => lookup::tags(&repository),
        GitJob::Resolve { spec } => lookup::resolve(&repository, spec),
        GitJob::Tree { commit } => lookup::tree(&repository, commit),
        GitJob::Log { from, to, limit, quarantine } => lookup::log(&repository, from.as_ref(), to, *limit, quarantine.as_deref()),
        GitJob::ExportPack { want, haves } => pack::export(&repository, want, haves),
        GitJob::ImportPack { want, bytes } => pack::import(&repository, want, *bytes),
        GitJob::ReadPillar { commit, after, quarantine } => {
            pillar::read(&repository, commit.as_ref(), after.as_ref(), quarantine.as_deref())
        }
        GitJob::CommitPillar { parent, new } => pillar_commit::commit(&repository, parent.as_ref(), new),
        GitJob::PillarHistory { from } => pillar_commit::history(&repository, from),
        GitJob::RemoveLocks => maintenance::remove_locks(&repository),
        GitJob::Gc => maintenance::gc(&repository),
    }
}

/// Performs the job of a worker with the role [`crate::model::Role::Source`]. `job` is descriptor 3, and `report` is descriptor 4. Returns
/// the exit code.
pub fn work_source(mut job: File, mut report: File) -> io::Result<u8> {
    let paths = WorkerPaths::from_env().map_err(io::Error::other)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let task: SourceJob = read_job(&mut job)?;
    write_report(&mut report, &source::perform(&paths, &task))?;
    Ok(0)
}
