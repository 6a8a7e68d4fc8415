//! git in the checkout. Git reads the settings of the checkout, which belongs to the same user, but runs no hooks.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    git::{
        job::GitFailure,
        program::{self, GitSettings},
    },
    model::{CommitId, sanitise_reason},
};

/// The ref of the commit that larder checked out last.
pub(super) const BASE: &str = "refs/larder/base";

/// Returns the git command with these words in the checkout.
pub(super) fn git(app: &Path, words: &[&str]) -> Result<Command, GitFailure> {
    let git = program::find().ok_or(GitFailure::NoGit)?;
    let settings = GitSettings::new()
        .config("core.hooksPath", "/dev/null")
        .config("core.fileMode", "true")
        .config("core.quotePath", "false")
        // A person's file of this setting may be missing, and every diff would fail.
        .config("diff.orderFile", "/dev/null")
        .config("core.symlinks", "true")
        .config("core.ignoreCase", "false")
        .config("core.safecrlf", "false")
        .config("core.logAllRefUpdates", "true")
        .config("submodule.recurse", "false")
        .config("user.name", "larder")
        .config("user.email", "larder@localhost");
    let mut command = settings.command(&git);
    // The settings of the checkout may name another work tree.
    command
        .arg("-C")
        .arg(app)
        .args(["--git-dir=.git", "--work-tree=."])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

pub(super) fn failed(doing: &str, why: impl std::fmt::Display) -> GitFailure {
    GitFailure::Failed { doing: doing.to_owned(), why: sanitise_reason(&why.to_string()) }
}

/// Runs git to its end, and returns its standard output.
pub(super) fn run(app: &Path, words: &[&str], doing: &str) -> Result<Vec<u8>, GitFailure> {
    let output = git(app, words)?.output().map_err(|error| failed(doing, error))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(failed(doing, String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Runs git to its end with a standard input, and returns its standard output.
pub(super) fn run_with(app: &Path, words: &[&str], input: &[u8], doing: &str) -> Result<Vec<u8>, GitFailure> {
    let mut child = git(app, words)?.stdin(Stdio::piped()).spawn().map_err(|error| failed(doing, error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that exits before it has read its input reports the reason on its standard error.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(|error| failed(doing, error))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(failed(doing, String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Returns true if git exits with 0.
pub(super) fn succeeds(app: &Path, words: &[&str], doing: &str) -> Result<bool, GitFailure> {
    Ok(git(app, words)?.output().map_err(|error| failed(doing, error))?.status.success())
}

/// Returns the commit that a name stands for, if there is one.
pub(super) fn commit(app: &Path, name: &str) -> Result<Option<CommitId>, GitFailure> {
    let doing = "read a ref of the checkout";
    let name = format!("{name}^{{commit}}");
    let output = git(app, &["rev-parse", "--verify", "--quiet", &name])?.output().map_err(|error| failed(doing, error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.success() {
        true => text.trim().parse().map(Some).map_err(|_| failed(doing, format!("{name} is no commit"))),
        false => Ok(None),
    }
}

/// Splits the output of git with `-z`.
pub(super) fn paths(output: &[u8]) -> Vec<String> {
    let parts = output.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}
