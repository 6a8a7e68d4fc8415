//! The export of a commit: checks everything that git lets through but a file system or a build should not see, then brings the
//! environment's `project/tree` to that commit by writing only what has changed.
//!
//! Nothing of git's checkout runs: no filters, no attributes, no hooks, no submodules.

mod apply;
mod job;
mod list;
mod places;
mod special;
#[cfg(test)]
mod tests;
mod walk;

use std::path::Path;

use git2::{ErrorCode, Oid, Repository};

pub use job::{RecipeFiles, Refusal, Source, SourceJob, SourceLimits, SourceReport};

use super::{GitFailure, WorkerPaths, hook, refs};
use crate::model::{CommitId, SourceEntry, SourceList, sanitise_reason};

/// How many commits of a push are looked at to find out whether its history is whole.
const HISTORY: usize = 50_000;

/// Worker side: does the job.
pub fn perform(paths: &WorkerPaths, job: &SourceJob) -> SourceReport {
    match run(paths, job) {
        Ok(source) => SourceReport::Ready(Box::new(source)),
        Err(Stop::Refused(refusal)) => SourceReport::Refused(refusal),
        Err(Stop::Failed(failure)) => SourceReport::Failed(failure),
    }
}

/// Why an export ends early.
#[derive(Debug)]
pub(super) enum Stop {
    Refused(Refusal),
    Failed(GitFailure),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refused(refusal)
    }
}

/// Names what was being done when git or the system failed.
fn failed<E: std::fmt::Display>(doing: impl Into<String>) -> impl FnOnce(E) -> Stop {
    let doing = doing.into();
    move |error| Stop::Failed(GitFailure::Failed { doing, why: error.to_string() })
}

fn run(paths: &WorkerPaths, job: &SourceJob) -> Result<Source, Stop> {
    let repository_path = paths.repository();
    let repository = refs::open(&repository_path).map_err(|error| failed("open the repository")(error.message()))?;
    if let Some(quarantine) = &job.quarantine {
        add_quarantine(&repository, &repository_path, quarantine)?;
    }
    let tree = tree_of(&repository, job.commit.as_str()).ok_or_else(|| no_commit(&repository, &job.commit))?;
    if job.quarantine.is_some() {
        check_history(&repository, &job.commit)?;
    }
    let place = match &paths.source {
        Some(source) if job.export || !job.fresh => Some(source.as_path()),
        _ => None,
    };
    let known = place.filter(|_| !job.fresh).and_then(|place| known_export(&repository, place));
    let plan = walk::walk(&repository, tree, known.as_ref().map(|(list, tree)| (list.entries.as_slice(), *tree)), &job.limits)?;
    let mut source = special::describe(&repository, tree, &plan, job)?;
    source.tags = refs::tags_of(&repository, &job.commit, &job.tags);
    if job.export {
        let place = place.ok_or_else(|| failed("export a commit")("this worker has no place for it"))?;
        let old = known.map(|(list, _)| list.entries);
        source.changed = Some(export(&repository_path, place, job, old.as_deref(), plan)?);
    }
    Ok(source)
}

fn export(
    repository: &Path,
    place: &Path,
    job: &SourceJob,
    old: Option<&[SourceEntry]>,
    plan: Vec<walk::Planned>,
) -> Result<u64, Stop> {
    let doing = || format!("export commit {}", job.commit.short());
    // From here until the new list is in place, a crash means "start from scratch".
    list::remove(place).map_err(failed(doing()))?;
    let incremental = old.map(|old| apply::apply(repository, place, Some(old), plan.clone()));
    let (entries, changed) = match incremental {
        Some(Ok(done)) => done,
        // Somebody has been in the tree, or it was never what the list said.
        Some(Err(_)) | None => apply::apply(repository, place, None, plan).map_err(failed(doing()))?,
    };
    let list = SourceList { format: SourceList::FORMAT, boot: list::boot(), commit: job.commit.clone(), entries };
    list::write(place, &list).map_err(failed(doing()))?;
    Ok(changed)
}

/// The previous export, if it can be believed and git still knows its commit.
fn known_export(repository: &Repository, place: &Path) -> Option<(SourceList, Oid)> {
    let list = list::read(place)?;
    let tree = tree_of(repository, list.commit.as_str())?;
    Some((list, tree))
}

fn tree_of(repository: &Repository, commit: &str) -> Option<Oid> {
    let commit = repository.find_commit(Oid::from_str(commit).ok()?).ok()?;
    Some(commit.tree_id())
}

/// The error of an id that is not that of a commit. git lets a branch be pushed at an annotated tag, which is an object of its own.
fn no_commit(repository: &Repository, id: &CommitId) -> Stop {
    let tag = Oid::from_str(id.as_str()).and_then(|oid| repository.find_tag(oid));
    let Ok(tag) = tag else { return Stop::Failed(GitFailure::NotFound(format!("commit {}", id.short()))) };
    let name = tag.name().ok().filter(|name| !name.is_empty()).unwrap_or("TAG");
    Refusal {
        path: None,
        reason: format!("is the annotated tag {}, and no commit", sanitise_reason(name)),
        hint: format!("push the commit that the tag names: git push REMOTE '{}^{{commit}}:BRANCH'", sanitise_reason(name)),
    }
    .into()
}

/// git refuses a push from a shallow clone too, after pre-receive, but says no more than "shallow update not allowed".
fn check_history(repository: &Repository, commit: &CommitId) -> Result<(), Stop> {
    let doing = || format!("read the history of commit {}", commit.short());
    let wrong = |error: git2::Error| failed(doing())(error.message());
    let mut walk = repository.revwalk().map_err(wrong)?;
    walk.push(Oid::from_str(commit.as_str()).map_err(wrong)?).map_err(wrong)?;
    for reference in repository.references().map_err(wrong)?.flatten() {
        if let Ok(known) = reference.peel_to_commit() {
            walk.hide(known.id()).map_err(wrong)?;
        }
    }
    for step in walk.take(HISTORY) {
        match step {
            Ok(_) => {}
            Err(error) if error.code() == ErrorCode::NotFound => {
                return Err(Refusal {
                    path: None,
                    reason: String::from("comes from a shallow clone, and its history is not here"),
                    hint: String::from("fetch the whole history and push again: `git fetch --unshallow`"),
                }
                .into());
            }
            Err(error) => return Err(wrong(error)),
        }
    }
    Ok(())
}

/// Lets the repository see the objects of a push that is not accepted yet.
pub(super) fn add_quarantine(repository: &Repository, path: &Path, name: &str) -> Result<(), Stop> {
    let doing = "look at the objects of a push under way";
    if !hook::is_quarantine(name) {
        return Err(failed(doing)("git did not name their directory so"));
    }
    let objects = path.join("objects").join(name);
    let objects = objects.to_str().ok_or_else(|| failed(doing)("the path of the repository is not UTF-8"))?;
    repository.odb().and_then(|odb| odb.add_disk_alternate(objects)).map_err(|error| failed(doing)(error.message()))
}
