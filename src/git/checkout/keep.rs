//! The commits and files of a person that an update or a revert would leave behind: commits get a branch, and stashed files are restored.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    EditKind, EditedFile, MAX_FILES,
    content::{TreeFile, is_equal, literal, tree},
    program::{commit, paths, run, run_with, succeeds},
};
use crate::{
    git::job::GitFailure,
    model::{BranchName, CommitId},
};

/// The beginning of the names of branches that keep commits.
const KEPT: &str = "kept-";

/// Gives a branch to each commit of a person that no branch and no tag would contain after `branch` has moved to `target`. Returns the names of the new
/// branches. Commits that larder checked out are in the project's repository.
pub(super) fn keep_commits(app: &Path, branch: &BranchName, target: &CommitId, doing: &str) -> Result<Vec<String>, GitFailure> {
    let mut tips = vec![format!("refs/heads/{branch}")];
    // A branch that is checked out keeps its commits.
    if run(app, &["symbolic-ref", "--quiet", "HEAD"], doing).is_err() {
        tips.push(String::from("HEAD"));
    }
    let mut names = Vec::new();
    for tip in tips {
        let Some(tip) = commit(app, &tip)? else { continue };
        let except = format!("--exclude={branch}");
        let words = [
            "rev-list",
            "--max-count=1",
            tip.as_str(),
            "--not",
            target.as_str(),
            &except,
            "--branches",
            "--tags",
            "--glob=refs/larder",
        ];
        if run(app, &words, doing)?.is_empty() {
            continue;
        }
        let name = format!("{KEPT}{}", tip.short());
        run(app, &["update-ref", &format!("refs/heads/{name}"), tip.as_str()], doing)?;
        names.push(name);
    }
    Ok(names)
}

/// Returns the branches that keep commits of a person.
pub(super) fn kept_branches(app: &Path, doing: &str) -> Result<Vec<String>, GitFailure> {
    let output = run(app, &["for-each-ref", "--format=%(refname:short)", &format!("refs/heads/{KEPT}*")], doing)?;
    Ok(String::from_utf8_lossy(&output).lines().map(str::to_owned).collect())
}

/// Puts files into the stash, also files that git ignores.
pub(super) fn stash(app: &Path, files: &BTreeMap<String, EditKind>, message: &str, doing: &str) -> Result<(), GitFailure> {
    let specs: Vec<_> = files.keys().map(|path| literal(path)).collect();
    // `git stash` passes over a file that a person has marked as unchanged, and a checkout would then overwrite the file.
    let marked: Vec<_> = marked(app, doing)?.into_iter().filter(|path| files.contains_key(path)).collect();
    for mark in ["--no-assume-unchanged", "--no-skip-worktree"] {
        run_with(app, &["update-index", mark, "-z", "--stdin"], marked.join("\0").as_bytes(), doing)?;
    }
    let words = ["stash", "push", "--quiet", "--all", "--message", message, "--pathspec-from-file=-", "--pathspec-file-nul"];
    run_with(app, &words, specs.join("\0").as_bytes(), doing).map(drop)
}

/// Returns the files that a person has marked as unchanged or as not in the work tree, so that git does not report their changes.
pub(super) fn marked(app: &Path, doing: &str) -> Result<Vec<String>, GitFailure> {
    let output = run(app, &["ls-files", "-v", "-z"], doing)?;
    let lines = paths(&output).into_iter().filter_map(|line| {
        let (tag, path) = line.split_once(' ')?;
        (tag == "S" || tag.chars().all(char::is_lowercase)).then(|| path.to_owned())
    });
    Ok(lines.collect())
}

/// Restores the files that were put into the stash with `message`. A file that is different now stays, and its entry stays in the stash, as does an entry
/// with a staged content of its own. The function may be repeated after a kill. Returns the files that were not restored completely.
pub(super) fn restore(app: &Path, message: &str, doing: &str) -> Result<Vec<EditedFile>, GitFailure> {
    let list = run(app, &["stash", "list", "--format=%H %gs"], doing)?;
    let list = String::from_utf8_lossy(&list).into_owned();
    let mut left = Vec::new();
    // Newest first: the later content of a file counts.
    for entry in list.lines().filter(|line| line.ends_with(message)).filter_map(|line| line.split(' ').next()) {
        let before = left.len();
        for file in stashed(app, entry, doing)? {
            if !restore_file(app, &file, doing)? {
                left.push(EditedFile { path: file.path, edit: file.edit });
            }
        }
        left.extend(staged_differently(app, entry, doing)?);
        if left.len() == before {
            let list = run(app, &["stash", "list", "--format=%H %gd"], doing)?;
            let list = String::from_utf8_lossy(&list).into_owned();
            if let Some(name) = list.lines().find_map(|line| line.strip_prefix(entry)) {
                run(app, &["stash", "drop", "--quiet", name.trim()], doing)?;
            }
        }
    }
    left.truncate(MAX_FILES);
    Ok(left)
}

/// Returns the files of an entry whose staged content is neither the content of the commit nor that of the checkout. Only the entry has this content.
fn staged_differently(app: &Path, entry: &str, doing: &str) -> Result<Vec<EditedFile>, GitFailure> {
    let changed = |from: &str, to: &str| {
        let words = ["diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", from, to, "--"];
        run(app, &words, doing).map(|output| paths(&output))
    };
    let (parent, index) = (format!("{entry}^1"), format!("{entry}^2"));
    let since = changed(&index, entry)?;
    let staged = changed(&parent, &index)?.into_iter().filter(|path| since.contains(path));
    Ok(staged.map(|path| EditedFile { path, edit: EditKind::Changed }).collect())
}

/// A file of an entry of the stash.
struct StashedFile {
    path: String,
    edit: EditKind,
    /// The commit with the content, and the content; `None` for a deleted file.
    content: Option<(String, TreeFile)>,
}

fn stashed(app: &Path, entry: &str, doing: &str) -> Result<Vec<StashedFile>, GitFailure> {
    let parse = |name: &str| name.parse::<CommitId>().map_err(|_| super::program::failed(doing, format!("{name} is no commit")));
    let tracked = tree(app, &parse(entry)?, doing)?;
    let output =
        run(app, &["diff", "--name-status", "-z", "--no-renames", "--no-ext-diff", &format!("{entry}^1"), entry, "--"], doing)?;
    let mut parts = paths(&output).into_iter();
    let mut files = Vec::new();
    while let (Some(_), Some(path)) = (parts.next(), parts.next()) {
        let content = tracked.get(&path).map(|file| (entry.to_owned(), file.clone()));
        let edit = if content.is_some() { EditKind::Changed } else { EditKind::Deleted };
        files.push(StashedFile { path, edit, content });
    }
    // The third parent has the files that git does not track.
    if let Some(untracked) = commit(app, &format!("{entry}^3"))? {
        files.extend(tree(app, &untracked, doing)?.into_iter().map(|(path, file)| StashedFile {
            path,
            edit: EditKind::Added,
            content: Some((untracked.to_string(), file)),
        }));
    }
    Ok(files)
}

/// Restores a file. Returns false if the path has another content of a person.
fn restore_file(app: &Path, file: &StashedFile, doing: &str) -> Result<bool, GitFailure> {
    let path: PathBuf = app.join(&file.path);
    let exists = fs::symlink_metadata(&path).is_ok();
    let is_restored = match &file.content {
        Some((_, content)) => exists && is_equal(app, &file.path, content, doing)?,
        None => !exists,
    };
    if is_restored {
        return Ok(true);
    }
    let is_changed = match file.edit {
        EditKind::Added => exists,
        _ => !succeeds(app, &["diff", "--quiet", "--no-ext-diff", "HEAD", "--", &literal(&file.path)], doing)?,
    };
    if is_changed {
        return Ok(false);
    }
    Ok(match &file.content {
        None => fs::remove_file(&path).is_ok(),
        Some((source, _)) => run(app, &["restore", "--source", source, "--worktree", "--", &literal(&file.path)], doing).is_ok(),
    })
}
