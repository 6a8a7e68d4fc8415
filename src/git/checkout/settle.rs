//! Finishes a checkout that ended in the middle: git was killed, or failed on a full disk. Git replaces one file after the other and moves `HEAD` at the
//! end, so the files are then a mixture of two commits, which git reports as changes by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{
    content::{TreeFile, is_beginning, is_equal, literal, tree},
    program::{failed, run_with},
};
use crate::{git::job::GitFailure, model::CommitId};

/// Gives the files that differ between some commits the content of `target`, or removes them without a target. A file is replaced only if git can have
/// left the file: the file is missing, or has the content of one of the commits, or a beginning of this content. The files of a person stay.
pub(super) fn settle(
    app: &Path,
    commits: &[Option<&CommitId>],
    target: Option<&CommitId>,
    doing: &str,
) -> Result<(), GitFailure> {
    let read = |commit: &CommitId| Ok::<_, GitFailure>((commit.clone(), tree(app, commit, doing)?));
    let commits: BTreeSet<_> = commits.iter().copied().chain([target]).flatten().collect();
    let trees = commits.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let wanted = target.map(|target| tree(app, target, doing)).transpose()?.unwrap_or_default();
    let all: BTreeSet<_> = trees.iter().flat_map(|(_, tree)| tree.keys()).collect();
    let differs = |path: &&String| trees.iter().any(|(_, tree)| tree.get(*path) != wanted.get(*path));
    let (mut replaced, mut removed) = (Vec::new(), Vec::new());
    for path in all.into_iter().filter(differs) {
        if is_left(app, path, &trees, doing)? {
            if wanted.contains_key(path) { &mut replaced } else { &mut removed }.push(path);
        }
    }
    for path in &removed {
        remove(app, path).map_err(|error| failed(doing, format!("cannot remove {path}: {error}")))?;
    }
    let list = removed.iter().map(|path| path.as_str()).collect::<Vec<_>>().join("\0");
    run_with(app, &["update-index", "--force-remove", "-z", "--stdin"], list.as_bytes(), doing)?;
    replaced.retain(|path| is_free(app, path));
    let Some(target) = target.filter(|_| !replaced.is_empty()) else { return Ok(()) };
    let specs = replaced.iter().map(|path| literal(path)).collect::<Vec<_>>().join("\0");
    let words =
        ["restore", "--staged", "--worktree", "--pathspec-from-file=-", "--pathspec-file-nul", "--source", target.as_str()];
    run_with(app, &words, specs.as_bytes(), doing).map(drop)
}

/// Returns true if git can have left the file.
fn is_left(app: &Path, path: &str, trees: &[(CommitId, BTreeMap<String, TreeFile>)], doing: &str) -> Result<bool, GitFailure> {
    // A directory is in the place of a file of the target, or has files that are looked at by themselves.
    if !fs::symlink_metadata(app.join(path)).is_ok_and(|found| !found.is_dir()) {
        return Ok(true);
    }
    for (commit, tree) in trees {
        let Some(file) = tree.get(path) else { continue };
        if is_equal(app, path, file, doing)? || is_beginning(app, path, commit, doing)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes a file and the directories above it that are empty afterwards.
fn remove(app: &Path, path: &str) -> std::io::Result<()> {
    if !fs::symlink_metadata(app.join(path)).is_ok_and(|found| !found.is_dir()) {
        return Ok(());
    }
    fs::remove_file(app.join(path))?;
    let parents = Path::new(path).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
    let _ = parents.map(|parent| fs::remove_dir(app.join(parent))).find(Result::is_err);
    Ok(())
}

/// Returns true if a file can be written to the path without the removal of anything else of a person: no directory is there, and no file or link is in
/// the place of a directory above.
fn is_free(app: &Path, path: &str) -> bool {
    let found = |path: &Path| fs::symlink_metadata(app.join(path)).ok();
    let mut above = Path::new(path).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
    !found(Path::new(path)).is_some_and(|found| found.is_dir())
        && above.all(|parent| found(parent).is_none_or(|found| found.is_dir()))
}
