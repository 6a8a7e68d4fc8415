//! Checks one commit, describes it, and exports its tree.

use std::path::Path;

use git2::{ErrorCode, Oid, Repository};

use super::{
    apply,
    job::{CommitSource, ExportStop, SourceJob, SourceRefusal, SourceReport, failed},
    special, tree, walk,
};
use crate::{
    git::{job::GitFailure, libgit, lookup, program::WorkerPaths},
    model::{CommitId, SourceEntry, SourceList, sanitise_reason},
};

/// The maximum number of new commits of a push that are checked for missing parents.
const MAX_HISTORY: usize = 50_000;

/// Performs the job of a source worker.
pub fn perform(paths: &WorkerPaths, job: &SourceJob) -> SourceReport {
    match run(paths, job) {
        Ok(source) => SourceReport::Ready(Box::new(source)),
        Err(ExportStop::Refused(refusal)) => SourceReport::Refused(refusal),
        Err(ExportStop::Failed(failure)) => SourceReport::Failed(failure),
    }
}

fn run(paths: &WorkerPaths, job: &SourceJob) -> Result<CommitSource, ExportStop> {
    let repository_path = paths.repository();
    let repository = libgit::open(&repository_path).map_err(|error| failed("open the repository")(error.message()))?;
    if let Some(quarantine) = &job.quarantine {
        libgit::add_quarantine(&repository, &repository_path, quarantine)?;
    }
    let root = tree_of(&repository, job.commit.as_str()).ok_or_else(|| no_commit(&repository, &job.commit))?;
    if job.quarantine.is_some() {
        check_history(&repository, &job.commit)?;
    }
    let project = match &paths.source {
        Some(source) if job.export || !job.fresh => Some(source.as_path()),
        _ => None,
    };
    let known = project.filter(|_| !job.fresh).and_then(|project| known_export(&repository, project));
    let plan = walk::walk(&repository, root, known.as_ref().map(|(list, root)| (list.entries.as_slice(), *root)), &job.limits)?;
    let mut source = special::describe(&repository, root, &plan, job)?;
    source.tags = lookup::tags_of(&repository, &job.commit, &job.tags);
    if job.export {
        let project = project.ok_or_else(|| failed("export a commit")("LARDER_SOURCE is not set"))?;
        let old = known.map(|(list, _)| list.entries);
        source.changed = Some(export(&repository_path, project, job, old.as_deref(), plan)?);
    }
    Ok(source)
}

fn export(
    repository: &Path,
    project: &Path,
    job: &SourceJob,
    old: Option<&[SourceEntry]>,
    plan: Vec<walk::PlannedEntry>,
) -> Result<u64, ExportStop> {
    let doing = || format!("export commit {}", job.commit.short());
    // If a crash prevents the writing of the new list, the next export finds no list and starts from scratch.
    tree::remove_list(project).map_err(failed(doing()))?;
    let incremental = old.map(|old| apply::apply(repository, project, Some(old), plan.clone()));
    let (entries, changed) = match incremental {
        Some(Ok(done)) => done,
        // The incremental export fails if another process has changed the tree, or if the list is wrong. All files are then exported again.
        Some(Err(_)) | None => apply::apply(repository, project, None, plan).map_err(failed(doing()))?,
    };
    let list = SourceList { format: SourceList::FORMAT, boot: tree::boot(), commit: job.commit.clone(), entries };
    tree::write_list(project, &list).map_err(failed(doing()))?;
    Ok(changed)
}

/// Returns the list and the git tree of the previous export, if the list is valid and the repository still has the exported commit.
fn known_export(repository: &Repository, project: &Path) -> Option<(SourceList, Oid)> {
    let list = tree::read_list(project)?;
    let root = tree_of(repository, list.commit.as_str())?;
    Some((list, root))
}

fn tree_of(repository: &Repository, commit: &str) -> Option<Oid> {
    let commit = repository.find_commit(Oid::from_str(commit).ok()?).ok()?;
    Some(commit.tree_id())
}

/// Returns the error for an id that is not the id of a commit. The id can be the id of an annotated tag, because git accepts a branch that
/// points to the object of a tag.
fn no_commit(repository: &Repository, id: &CommitId) -> ExportStop {
    let tag = Oid::from_str(id.as_str()).and_then(|oid| repository.find_tag(oid));
    let Ok(tag) = tag else { return ExportStop::Failed(GitFailure::NotFound(format!("commit {}", id.short()))) };
    let name = tag.name().ok().filter(|name| !name.is_empty()).unwrap_or("TAG");
    SourceRefusal {
        path: None,
        reason: format!("is missing, because the branch points to the annotated tag {}", sanitise_reason(name)),
        hint: format!("push the commit that the tag names: git push REMOTE '{}^{{commit}}:BRANCH'", sanitise_reason(name)),
    }
    .into()
}

/// Refuses a push from a shallow clone with a hint. Without this check, git would refuse the push later, with only the message "shallow
/// update not allowed".
fn check_history(repository: &Repository, commit: &CommitId) -> Result<(), ExportStop> {
    let doing = || format!("read the history of commit {}", commit.short());
    let wrong = |error: git2::Error| failed(doing())(error.message());
    let mut walk = repository.revwalk().map_err(wrong)?;
    walk.push(Oid::from_str(commit.as_str()).map_err(wrong)?).map_err(wrong)?;
    for reference in repository.references().map_err(wrong)?.flatten() {
        if let Ok(known) = reference.peel_to_commit() {
            walk.hide(known.id()).map_err(wrong)?;
        }
    }
    for step in walk.take(MAX_HISTORY) {
        match step {
            Ok(_) => {}
            Err(error) if error.code() == ErrorCode::NotFound => {
                return Err(SourceRefusal {
                    path: None,
                    reason: String::from("comes from a shallow clone, so its history is incomplete"),
                    hint: String::from("fetch the whole history with `git fetch --unshallow`, then push again"),
                }
                .into());
            }
            Err(error) => return Err(wrong(error)),
        }
    }
    Ok(())
}
