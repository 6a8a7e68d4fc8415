//! The clone of a project's pillar beside the clone of its code, for `larder push`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::sources::git;
use crate::{
    control::{CommandError, ErrorKind},
    model::{ProjectName, SshUrl},
};

/// The key of git's configuration with the directory of the pillar, relative to the top directory of the clone.
const KEY: &str = "larder.pillar";

/// The clone of a pillar.
pub(super) struct PillarClone {
    directory: PathBuf,
    /// The address of the pillar.
    url: String,
}

impl PillarClone {
    /// Finds the clone of the pillar of a project: the directory that `git config larder.pillar` names, or else `PROJECT-pillar` beside the
    /// clone of the code. `url` is the address of the project.
    pub(super) fn find(project: &ProjectName, url: &SshUrl) -> Result<Option<PillarClone>, CommandError> {
        let Some(top) = git(Path::new("."), &["rev-parse", "--show-toplevel"]) else { return Ok(None) };
        let top = PathBuf::from(top.trim_end_matches('\n'));
        let named = git(&top, &["config", "--local", "--get", KEY]).map(|path| path.trim_end_matches('\n').to_owned());
        let directory = match &named {
            Some(path) => top.join(path),
            None => top.with_file_name(format!("{project}-pillar")),
        };
        // A directory below another repository would be that repository.
        let is_clone = directory.join(".git").exists();
        let has_commit = is_clone && git(&directory, &["rev-parse", "--verify", "--quiet", "HEAD"]).is_some();
        match (named, has_commit) {
            (_, true) => Ok(Some(PillarClone { directory, url: format!("{url}/pillar") })),
            (None, false) => Ok(None),
            (Some(path), false) => {
                let message = format!("{KEY} names {path:?}, which is no clone with a commit");
                Err(CommandError::new(ErrorKind::NotFound, message)
                    .hint(format!("clone the pillar with `git clone {url}/pillar`, or push with --no-pillar")))
            }
        }
    }

    /// Pushes the pillar. The environment `waits` uses the values with its next deployment. Returns the exit status of git.
    pub(super) fn push(&self, waits: Option<&str>, is_quiet: bool) -> Result<u8, CommandError> {
        if is_pushed_from(&self.directory, &self.url, "HEAD", "refs/heads/main") {
            return Ok(0);
        }
        let mut push = Command::new("git");
        push.arg("-C").arg(&self.directory).arg("push").args(is_quiet.then_some("--quiet"));
        push.args(waits.map(|environment| format!("--push-option=no-restart={environment}")));
        push.args(["--", &self.url, "HEAD:refs/heads/main"]);
        let status = push.status();
        let status = status.map_err(|error| CommandError::new(ErrorKind::Internal, format!("cannot start git: {error}")))?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}

/// Returns true if the ref of a repository names the commit of `reference` in this clone.
pub(super) fn is_pushed(url: &str, reference: &str, refname: &str) -> bool {
    is_pushed_from(Path::new("."), url, reference, refname)
}

fn is_pushed_from(directory: &Path, url: &str, reference: &str, refname: &str) -> bool {
    let own = git(directory, &["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{reference}^{{commit}}")]);
    let listed = git(directory, &["ls-remote", "--", url, refname]);
    let there = listed.as_deref().and_then(|listed| listed.split_whitespace().next());
    own.as_deref().map(str::trim).is_some_and(|own| there == Some(own))
}
