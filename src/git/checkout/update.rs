//! Updates a checkout to a commit, and reverts an update. No file that a person changed is lost: it stays, or it is in the stash, or the update is
//! refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
};

use super::{
    CheckoutAnswer, CheckoutReport, CheckoutUpdate, EditKind, files,
    program::{BASE, commit, failed, git, paths, run, succeeds},
};
use crate::{
    git::job::GitFailure,
    model::{BranchName, CommitId, DeploymentId},
};

/// The refs of the commits that were checked out before deployments.
const BEFORE: &str = "refs/larder/before/";
/// The ref that keeps the objects of an update from git's garbage collection.
const INCOMING: &str = "refs/larder/incoming";

/// A file in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TreeFile {
    mode: String,
    blob: String,
}

/// Checks out a commit. The pack with its objects is `pack`.
pub(super) fn update(app: &Path, job: &CheckoutUpdate, pack: Stdio) -> CheckoutReport {
    let doing = format!("update the checkout to {}", job.commit.short());
    if !app.join(".git").exists() {
        run(app, &["init", "--quiet", &format!("--initial-branch={}", job.branch)], &doing)?;
    }
    remove_locks(app);
    receive(app, &job.commit, pack, &doing)?;
    let head = commit(app, "HEAD")?;
    if let Some(head) = own_commits(app, head.as_ref(), &job.commit, &doing)? {
        return Ok(CheckoutAnswer::Ahead(head));
    }
    let edits = files::edits(app)?;
    let conflicts = conflicts(app, head.as_ref(), &job.commit, &edits, &doing)?;
    if !conflicts.is_empty() && (!job.stash || head.is_none()) {
        return Ok(CheckoutAnswer::Conflicts(files::listed(&conflicts)));
    }
    remember(app, job.deployment, head.as_ref(), &doing)?;
    if !conflicts.is_empty() {
        stash(app, job, &conflicts, &doing)?;
    }
    check_out(app, &job.branch, &job.commit, &doing)?;
    run(app, &["update-ref", BASE, job.commit.as_str()], &doing)?;
    let kept = edits.keys().filter(|path| !conflicts.contains_key(*path)).count();
    Ok(CheckoutAnswer::Updated { stashed: files::listed(&conflicts), kept })
}

/// Checks out the commit that was checked out before a deployment. Does nothing if the deployment has not begun to change the checkout.
pub(super) fn revert(app: &Path, deployment: DeploymentId, branch: &BranchName) -> CheckoutReport {
    let doing = String::from("check out the earlier commit again");
    let name = format!("{BEFORE}{deployment}");
    if !app.join(".git").exists() {
        return Ok(CheckoutAnswer::Reverted);
    }
    remove_locks(app);
    if let Some(before) = commit(app, &name)? {
        check_out(app, branch, &before, &doing)?;
        run(app, &["update-ref", BASE, before.as_str()], &doing)?;
        unstash(app, deployment, &doing)?;
        run(app, &["update-ref", "-d", &name], &doing)?;
    }
    Ok(CheckoutAnswer::Reverted)
}

/// Removes the lock files of a git process that was killed. While the worker runs, no other process of larder uses the checkout; a git command of a
/// person holds a lock for milliseconds only, and fails without damage if its lock is gone.
fn remove_locks(app: &Path) {
    const STALE: std::time::Duration = std::time::Duration::from_secs(60);
    for name in ["index.lock", "HEAD.lock", "refs/larder/base.lock", "refs/stash.lock"] {
        let path = app.join(".git").join(name);
        let age = fs::metadata(&path).and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_file(path);
        }
    }
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
) -> Result<BTreeMap<String, EditKind>, GitFailure> {
    let after = tree(app, new, doing)?;
    let before = head.map(|head| tree(app, head, doing)).transpose()?.unwrap_or_default();
    let incoming: BTreeSet<&String> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    let mut found = BTreeMap::new();
    for path in incoming {
        let edit = match edits.get(path.as_str()) {
            Some(edit) => Some(*edit),
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
    Ok(found)
}

/// Returns the file of a person that stands where the commit has a directory.
fn blocking(app: &Path, path: &str, before: &BTreeMap<String, TreeFile>) -> Option<String> {
    let parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
    let is_file = |parent: &&str| {
        !before.contains_key(*parent) && fs::symlink_metadata(app.join(parent)).is_ok_and(|found| !found.is_dir())
    };
    parents.into_iter().find(is_file).map(str::to_owned)
}

/// Returns a pathspec that matches the path itself only.
fn literal(path: &str) -> String {
    format!(":(literal){path}")
}

/// Returns true if the file in the checkout has the content and the mode of the commit.
fn is_equal(app: &Path, path: &str, file: &TreeFile, doing: &str) -> Result<bool, GitFailure> {
    let Ok(found) = fs::symlink_metadata(app.join(path)) else { return Ok(false) };
    let mode = match (found.is_file(), found.permissions().mode() & 0o100 != 0) {
        (true, true) => "100755",
        (true, false) => "100644",
        // Links and other kinds are rare, and count as different.
        (false, _) => return Ok(false),
    };
    if mode != file.mode {
        return Ok(false);
    }
    let blob = run(app, &["hash-object", "--", path], doing)?;
    Ok(String::from_utf8_lossy(&blob).trim() == file.blob)
}

/// Returns the files of a commit.
fn tree(app: &Path, commit: &CommitId, doing: &str) -> Result<BTreeMap<String, TreeFile>, GitFailure> {
    let output = run(app, &["ls-tree", "-r", "-z", "--full-tree", commit.as_str()], doing)?;
    let entries = paths(&output).into_iter().filter_map(|line| {
        let (about, path) = line.split_once('\t')?;
        let mut words = about.split(' ');
        let (mode, _, blob) = (words.next()?, words.next()?, words.next()?);
        Some((path.to_owned(), TreeFile { mode: mode.to_owned(), blob: blob.to_owned() }))
    });
    Ok(entries.collect())
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
fn message(deployment: DeploymentId) -> String {
    format!("larder: files that the deployment {deployment} changed, too")
}

fn stash(app: &Path, job: &CheckoutUpdate, conflicts: &BTreeMap<String, EditKind>, doing: &str) -> Result<(), GitFailure> {
    let specs: Vec<_> = conflicts.keys().map(|path| literal(path)).collect();
    let message = message(job.deployment);
    let mut words = vec!["stash", "push", "--quiet", "--all", "--message", &message, "--"];
    words.extend(specs.iter().map(String::as_str));
    run(app, &words, doing).map(drop)
}

/// Brings the files back that a deployment put into the stash.
fn unstash(app: &Path, deployment: DeploymentId, doing: &str) -> Result<(), GitFailure> {
    let list = run(app, &["stash", "list", "--format=%gd %gs"], doing)?;
    let message = message(deployment);
    let list = String::from_utf8_lossy(&list).into_owned();
    let entry = list.lines().find(|line| line.ends_with(&message)).and_then(|line| line.split(' ').next());
    match entry {
        Some(entry) => run(app, &["stash", "pop", "--quiet", entry], doing).map(drop),
        None => Ok(()),
    }
}

/// Moves the branch and the files to a commit. git refuses if a file of a person would be overwritten.
fn check_out(app: &Path, branch: &BranchName, commit: &CommitId, doing: &str) -> Result<(), GitFailure> {
    run(app, &["checkout", "--quiet", "--no-overwrite-ignore", "-B", branch.as_str(), commit.as_str(), "--"], doing).map(drop)
}
