//! Updates a checkout to a commit, and reverts an update. No file that a person changed is lost: it stays, or it is in the stash, or the update is
//! refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Stdio,
};

use super::{
    CheckoutAnswer, CheckoutReport, CheckoutRevert, CheckoutUpdate, EditKind,
    content::{TreeFile, is_equal, literal, tree},
    files, guard,
    keep::{keep_commits, marked, restore, stash},
    program::{BASE, commit, failed, git, paths, run, succeeds},
    settle::settle,
};
use crate::{
    git::job::GitFailure,
    model::{BranchName, CommitId, DeploymentId},
};

/// The refs of the commits that were checked out before deployments.
const BEFORE: &str = "refs/larder/before/";
/// The ref that keeps the objects of an update from git's garbage collection.
const INCOMING: &str = "refs/larder/incoming";

/// Checks out a commit. The pack with its objects is `pack`.
pub(super) fn update(app: &Path, job: &CheckoutUpdate, pack: Stdio) -> CheckoutReport {
    let doing = format!("update the checkout to {}", job.commit.short());
    if let Some(objection) = guard::no_directory(app) {
        return Ok(CheckoutAnswer::Objection(objection));
    }
    // A killed `git init` leaves a directory without `HEAD`.
    if !app.join(".git/HEAD").exists() {
        run(app, &["init", "--quiet", &format!("--initial-branch={}", job.branch)], &doing)?;
    }
    if let Some(foreign) = guard::foreign(app, std::iter::empty()) {
        return Ok(CheckoutAnswer::Objection(foreign));
    }
    let mut working = match guard::begin(app)? {
        Ok(working) => working,
        Err(objection) => return Ok(CheckoutAnswer::Objection(objection)),
    };
    guard::mend_index(app)?;
    if let Some(objection) = guard::operation(app)? {
        return Ok(CheckoutAnswer::Objection(objection));
    }
    files::ignore_results(app, &doing)?;
    let received = commit(app, INCOMING)?;
    receive(app, &job.commit, pack, &doing)?;
    adopt(app, job, &doing)?;
    let head = commit(app, "HEAD")?;
    let before = commit(app, &format!("{BEFORE}{}", job.deployment))?;
    if working.is_replacing() {
        // A job that was killed after the record of another deployment is reverted, so this is the same deployment, or no commit was checked out before.
        if before.is_some() || head.is_none() {
            settle(app, &[&received, &before].map(Option::as_ref), head.as_ref(), &doing)?;
        }
        working.set_replacing(false)?;
    }
    // The first checkout may have been killed before it recorded that larder made it.
    if let Some(head) = own_commits(app, head.as_ref(), &job.commit, &doing)?.filter(|head| received.as_ref() != Some(head)) {
        return Ok(CheckoutAnswer::Ahead(head));
    }
    let edits = files::edits(app)?;
    let (conflicts, incoming) = conflicts(app, head.as_ref(), &job.commit, &edits, &doing)?;
    if let Some(foreign) = guard::foreign(app, incoming.iter()) {
        return Ok(CheckoutAnswer::Objection(foreign));
    }
    if !conflicts.is_empty() && (!job.stash || head.is_none()) {
        return Ok(CheckoutAnswer::Conflicts(files::listed(&conflicts)));
    }
    remember(app, job.deployment, head.as_ref(), &doing)?;
    if !conflicts.is_empty() {
        stash(app, &conflicts, &message(job.deployment), &doing)?;
    }
    let branches = keep_commits(app, &job.branch, &job.commit, &doing)?;
    working.set_replacing(true)?;
    check_out(app, &job.branch, &job.commit, &doing)?;
    working.set_replacing(false)?;
    run(app, &["update-ref", BASE, job.commit.as_str()], &doing)?;
    let kept = edits.keys().filter(|path| !conflicts.contains_key(*path)).count();
    Ok(CheckoutAnswer::Updated { stashed: files::listed(&conflicts), kept, branches })
}

/// Checks out the commit that was checked out before a deployment. Does nothing if the deployment has not begun to change the checkout. What a person did
/// meanwhile is kept: commits get a branch, and changed files that the earlier commit would overwrite are put into the stash.
pub(super) fn revert(app: &Path, deployment: DeploymentId, branch: &BranchName) -> CheckoutReport {
    let doing = String::from("check out the earlier commit again");
    let name = format!("{BEFORE}{deployment}");
    if !app.join(".git").exists() {
        return Ok(CheckoutAnswer::Reverted(CheckoutRevert::default()));
    }
    let Some(before) = commit(app, &name)? else { return Ok(CheckoutAnswer::Reverted(CheckoutRevert::default())) };
    // A job that did not begin leaves the locks of a person alone.
    let mut working = guard::begin_undo(app)?;
    guard::mend_index(app)?;
    guard::end_operation(app)?;
    let head = commit(app, "HEAD")?;
    if working.is_replacing() {
        settle(app, &[commit(app, INCOMING)?.as_ref(), Some(&before)], head.as_ref(), &doing)?;
        working.set_replacing(false)?;
    }
    let (conflicts, _) = conflicts(app, head.as_ref(), &before, &files::edits(app)?, &doing)?;
    if !conflicts.is_empty() {
        stash(app, &conflicts, &format!("larder: files that were changed during the deployment {deployment}"), &doing)?;
    }
    let branches = keep_commits(app, branch, &before, &doing)?;
    working.set_replacing(true)?;
    check_out(app, branch, &before, &doing)?;
    working.set_replacing(false)?;
    run(app, &["update-ref", BASE, before.as_str()], &doing)?;
    let mut stashed = files::listed(&conflicts);
    stashed.extend(restore(app, &message(deployment), &doing)?);
    run(app, &["update-ref", "-d", &name], &doing)?;
    Ok(CheckoutAnswer::Reverted(CheckoutRevert { branches, stashed }))
}

/// Adds the objects of a commit to the checkout.
fn receive(app: &Path, new: &CommitId, pack: Stdio, doing: &str) -> Result<(), GitFailure> {
    let mut command = git(app, &["index-pack", "--stdin", "--fix-thin"])?;
    let output = command.stdin(pack).output().map_err(|error| failed(doing, error))?;
    if !output.status.success() {
        return Err(failed(doing, String::from_utf8_lossy(&output.stderr).trim()));
    }
    run(app, &["update-ref", INCOMING, new.as_str()], doing).map(drop)
}

/// Makes the live commit the commit that is checked out, if the checkout has files but no commit: a person has removed `.git`. The files stay, so those
/// that differ from the live commit are changes by hand.
fn adopt(app: &Path, job: &CheckoutUpdate, doing: &str) -> Result<(), GitFailure> {
    let Some(live) = &job.live else { return Ok(()) };
    let branch = format!("refs/heads/{}", job.branch);
    let is_used = commit(app, "HEAD")?.is_some() || commit(app, &branch)?.is_some() || app.join(".git/index").exists();
    if is_used {
        return Ok(());
    }
    if commit(app, live.as_str())?.is_none() {
        // A complete pack has no other commits than those before the new commit.
        return if job.is_complete { Ok(()) } else { Err(failed(doing, "the live commit is missing in the checkout")) };
    }
    run(app, &["read-tree", live.as_str()], doing)?;
    run(app, &["update-ref", BASE, live.as_str()], doing)?;
    run(app, &["symbolic-ref", "HEAD", &branch], doing)?;
    run(app, &["update-ref", &branch, live.as_str()], doing).map(drop)
}

/// Returns the commit that is checked out, if a person made it, and the new commit does not contain it.
fn own_commits(app: &Path, head: Option<&CommitId>, new: &CommitId, doing: &str) -> Result<Option<CommitId>, GitFailure> {
    let Some(head) = head else { return Ok(None) };
    let is_larders = commit(app, BASE)?.as_ref() == Some(head);
    if is_larders || head == new || succeeds(app, &["merge-base", "--is-ancestor", head.as_str(), new.as_str()], doing)? {
        return Ok(None);
    }
    Ok(Some(head.clone()))
}

/// Returns the files that a person changed, and that the new commit would change, too. A file that already has the content of the new commit is no
/// conflict; it is added to the index, so that git accepts it.
fn conflicts(
    app: &Path,
    head: Option<&CommitId>,
    new: &CommitId,
    edits: &BTreeMap<String, EditKind>,
    doing: &str,
) -> Result<(BTreeMap<String, EditKind>, BTreeSet<String>), GitFailure> {
    let after = tree(app, new, doing)?;
    let before = head.map(|head| tree(app, head, doing)).transpose()?.unwrap_or_default();
    let incoming: BTreeSet<String> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).cloned().collect();
    let marked = marked(app, doing)?;
    let mut found = BTreeMap::new();
    for path in &incoming {
        let edit = match edits.get(path.as_str()) {
            Some(edit) => Some(*edit),
            // git does not list a changed file that a person has marked as unchanged, and overwrites it.
            None if marked.contains(path) => match before.get(path.as_str()) {
                Some(file) if fs::symlink_metadata(app.join(path)).is_ok() && !is_equal(app, path, file, doing)? => {
                    Some(EditKind::Changed)
                }
                _ => None,
            },
            // A directory without files of a person becomes a file.
            None if fs::symlink_metadata(app.join(path)).is_ok_and(|found| found.is_dir()) => {
                let others = run(app, &["ls-files", "--others", "-z", "--", &literal(path)], doing)?;
                found.extend(paths(&others).into_iter().map(|other| (other, EditKind::Added)));
                None
            }
            // git does not list files that it ignores, and overwrites them.
            None if !before.contains_key(path.as_str()) && fs::symlink_metadata(app.join(path)).is_ok() => Some(EditKind::Added),
            None => None,
        };
        if let Some(edit) = edit {
            match after.get(path.as_str()) {
                Some(file) if is_equal(app, path, file, doing)? => {
                    drop(run(app, &["add", "--force", "--", &literal(path)], doing)?)
                }
                None if edit == EditKind::Deleted => {}
                _ => drop(found.insert(path.clone(), edit)),
            }
        }
        if let Some(blocking) = blocking(app, path, &before) {
            found.insert(blocking, EditKind::Added);
        }
        // A new file of a person below a path that becomes a file.
        if after.contains_key(path.as_str()) {
            let below = format!("{path}/");
            let inside = edits.range(below.clone()..).take_while(|(other, _)| other.starts_with(&below));
            found.extend(inside.filter(|(_, edit)| **edit != EditKind::Deleted).map(|(other, edit)| (other.clone(), *edit)));
        }
    }
    Ok((found, incoming))
}

/// Returns the file of a person that stands where the commit has a directory.
fn blocking(app: &Path, path: &str, before: &BTreeMap<String, TreeFile>) -> Option<String> {
    let parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
    let is_file = |parent: &&str| {
        !before.contains_key(*parent) && fs::symlink_metadata(app.join(parent)).is_ok_and(|found| !found.is_dir())
    };
    parents.into_iter().find(is_file).map(str::to_owned)
}

/// Records the commit that is checked out before a deployment. The record of a repeated job stays. The records of earlier deployments are removed.
fn remember(app: &Path, deployment: DeploymentId, head: Option<&CommitId>, doing: &str) -> Result<(), GitFailure> {
    let name = format!("{BEFORE}{deployment}");
    let known = run(app, &["for-each-ref", "--format=%(refname)", BEFORE], doing)?;
    for other in String::from_utf8_lossy(&known).lines().filter(|other| *other != name) {
        run(app, &["update-ref", "-d", other], doing)?;
    }
    match head {
        Some(head) if commit(app, &name)?.is_none() => run(app, &["update-ref", &name, head.as_str()], doing).map(drop),
        _ => Ok(()),
    }
}

/// Returns the message of a deployment's entry in the stash.
pub(super) fn message(deployment: DeploymentId) -> String {
    format!("larder: files that the deployment {deployment} changed, too")
}

/// Moves the branch and the files to a commit. git refuses if a file of a person would be overwritten.
fn check_out(app: &Path, branch: &BranchName, commit: &CommitId, doing: &str) -> Result<(), GitFailure> {
    run(app, &["checkout", "--quiet", "--no-overwrite-ignore", "-B", branch.as_str(), commit.as_str(), "--"], doing).map(drop)
}
