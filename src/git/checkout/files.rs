//! The files of a checkout that a person changed.

use std::{collections::BTreeMap, io::Write as _, path::Path, process::Stdio};

use super::{
    CheckoutAnswer, CheckoutObjection, CheckoutReport, CheckoutState, EditKind, EditedFile, MAX_FILES, guard,
    keep::{keep_commits, kept_branches},
    program::{BASE, commit, failed, git, paths, run},
};
use crate::{
    git::job::GitFailure,
    model::{BranchName, CommitId},
};

/// Returns the files that differ from the commit that is checked out, without files that git ignores.
pub(super) fn edits(app: &Path) -> Result<BTreeMap<String, EditKind>, GitFailure> {
    let doing = "find the files that were changed by hand";
    let mut edits = BTreeMap::new();
    if commit(app, "HEAD")?.is_some() {
        let output = run(app, &["diff", "--name-status", "-z", "--no-renames", "--no-ext-diff", "HEAD", "--"], doing)?;
        let mut parts = paths(&output).into_iter();
        while let (Some(status), Some(path)) = (parts.next(), parts.next()) {
            let edit = match status.as_str() {
                "A" => EditKind::Added,
                "D" => EditKind::Deleted,
                _ => EditKind::Changed,
            };
            edits.insert(path, edit);
        }
    }
    let output = run(app, &["ls-files", "--others", "--exclude-standard", "-z"], doing)?;
    edits.extend(paths(&output).into_iter().map(|path| (path, EditKind::Added)));
    Ok(edits)
}

/// The comment above the patterns that larder adds to `.git/info/exclude`.
const RESULTS: &str = "# Results of builds (larder)";
/// The directories that buildpacks write in the checkout, and that a project on a server does not expect to ignore.
const RESULT_PATTERNS: [&str; 6] = ["/.profile.d/", "/.venv/", "/node_modules/", "/vendor/bundle/", "/.bundle/", "__pycache__/"];

/// Lets git ignore the results of builds, which are no changes by hand. Files that git tracks are not concerned.
pub(super) fn ignore_results(app: &Path, doing: &str) -> Result<(), GitFailure> {
    let path = app.join(".git/info/exclude");
    let mut text = std::fs::read_to_string(&path).unwrap_or_default();
    if text.lines().any(|line| line == RESULTS) {
        return Ok(());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{RESULTS}\n{}\n", RESULT_PATTERNS.join("\n")));
    let written = std::fs::create_dir_all(app.join(".git/info")).and_then(|()| std::fs::write(&path, text));
    written.map_err(|error| failed(doing, format!("cannot write .git/info/exclude: {error}")))
}

/// Returns the list for a report.
pub(super) fn listed(edits: &BTreeMap<String, EditKind>) -> Vec<EditedFile> {
    edits.iter().take(MAX_FILES).map(|(path, edit)| EditedFile { path: path.clone(), edit: *edit }).collect()
}

/// Returns the state of the checkout.
pub(super) fn look(app: &Path) -> Result<CheckoutState, GitFailure> {
    if !app.join(".git").exists() {
        return Ok(CheckoutState::default());
    }
    let doing = "read the state of the checkout";
    let edits = edits(app)?;
    let branch = git(app, &["symbolic-ref", "--quiet", "--short", "HEAD"])?.output();
    let branch = branch.ok().filter(|output| output.status.success());
    let stashes = run(app, &["stash", "list", "--format=%gs"], doing)?;
    Ok(CheckoutState {
        head: commit(app, "HEAD")?,
        branch: branch.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        base: commit(app, BASE)?,
        count: edits.len(),
        edits: listed(&edits),
        stashes: String::from_utf8_lossy(&stashes).lines().map(str::to_owned).collect(),
        kept: kept_branches(app, doing)?,
    })
}

/// Commits all changed and new files. Returns the commit that is checked out afterwards. Without changes, this is the commit that a person has made.
pub(super) fn commit_all(app: &Path, message: &str, author: &str, branch: &BranchName) -> CheckoutReport {
    let doing = "commit the files that were changed by hand";
    let _working = match guard::begin(app)? {
        Ok(working) => working,
        Err(objection) => return Ok(CheckoutAnswer::Objection(objection)),
    };
    guard::mend_index(app)?;
    if let Some(objection) = guard::operation(app)? {
        return Ok(CheckoutAnswer::Objection(objection));
    }
    // The deployment of a commit with a submodule is refused, so the commit would be in the way of every push.
    let changed = edits(app)?;
    let nested = changed.keys().map(|path| path.trim_end_matches('/')).find(|path| app.join(path).join(".git").exists());
    if let Some(path) = nested {
        return Ok(CheckoutAnswer::Objection(CheckoutObjection::Nested(path.to_owned())));
    }
    // The branch moves to the commits of a detached `HEAD`.
    if let Some(head) = commit(app, "HEAD")? {
        keep_commits(app, branch, &head, doing)?;
    }
    run(app, &["checkout", "--quiet", "-B", branch.as_str(), "HEAD", "--"], doing)?;
    if !changed.is_empty() {
        run(app, &["add", "--all", "--", "."], doing)?;
        let author = format!("--author={author} <{author}@localhost>");
        run(app, &["commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message", message, &author], doing)?;
    }
    commit(app, "HEAD")?.map(CheckoutAnswer::Committed).ok_or_else(|| failed(doing, "the checkout has no commit"))
}

/// Puts all changed and new files into the stash.
pub(super) fn drop_all(app: &Path) -> CheckoutReport {
    let _working = match guard::begin(app)? {
        Ok(working) => working,
        Err(objection) => return Ok(CheckoutAnswer::Objection(objection)),
    };
    let dropped = edits(app)?;
    if !dropped.is_empty() {
        let words = ["stash", "push", "--quiet", "--include-untracked", "--message", "larder: dropped with `larder edits`"];
        run(app, &words, "put the files that were changed by hand into the stash")?;
    }
    Ok(CheckoutAnswer::Dropped(listed(&dropped)))
}

/// Writes a pack with the objects of a commit to `output`, except those that are reachable from `known`.
pub(super) fn pack(app: &Path, commit: &CommitId, known: &[CommitId], output: Stdio) -> CheckoutReport {
    let doing = "pack the commit of the checkout";
    let mut list = String::new();
    for have in known {
        // git fails on the id of a missing object.
        if super::program::commit(app, have.as_str())?.is_some() {
            list.push_str(&format!("^{have}\n"));
        }
    }
    list.push_str(&format!("{commit}\n"));
    let mut command = git(app, &["pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "-q"])?;
    let mut child = command.stdin(Stdio::piped()).stdout(output).spawn().map_err(|error| failed(doing, error))?;
    if let Some(mut input) = child.stdin.take() {
        // A command that exits before it has read its input reports the reason on its standard error.
        let _ = input.write_all(list.as_bytes());
    }
    let ended = child.wait_with_output().map_err(|error| failed(doing, error))?;
    match ended.status.success() {
        true => Ok(CheckoutAnswer::Packed),
        false => Err(failed(doing, String::from_utf8_lossy(&ended.stderr).trim())),
    }
}
