//! Removes stale locks from a repository and runs `git gc`. This code runs in a git worker. No other process may use the repository at the
//! same time.

use std::{fs, path::Path, process::Stdio};

use walkdir::WalkDir;

use super::{
    job::{GitAnswer, GitFailure, GitReport},
    libgit::failed_io,
    program::{self, GitSettings},
};
use crate::model::sanitise_reason;

/// Removes the lock files of killed git processes: the locks of refs, `HEAD`, the packed refs, the configuration and the files in
/// `objects/info`. While a lock file exists, git refuses to change the locked file. Call this function only if no other process uses the
/// repository.
pub fn remove_locks(repository: &Path) -> GitReport {
    let top = WalkDir::new(repository).max_depth(1);
    let inside = ["refs", "objects/info"].map(|name| WalkDir::new(repository.join(name)));
    // A directory that cannot be listed is skipped. Either the directory does not exist, or the next git command that uses
    // the directory reports the error.
    for entry in [top].into_iter().chain(inside).flatten().flatten().filter(|entry| entry.file_type().is_file()) {
        let name = entry.file_name().to_string_lossy();
        if name.ends_with(".lock") || name == "packed-refs.new" {
            fs::remove_file(entry.path()).map_err(|error| GitFailure::Failed {
                doing: format!("remove the stale lock {}", entry.path().display()),
                why: error.to_string(),
            })?;
        }
    }
    Ok(GitAnswer::Done)
}

/// Removes stale locks and runs `git gc`. Call this function only if no other process uses the repository.
pub fn gc(path: &Path) -> GitReport {
    remove_locks(path)?;
    let git = program::find().ok_or(GitFailure::NoGit)?;
    let output = GitSettings::new()
        .config("gc.pruneExpire", "2.weeks.ago")
        .config("gc.packRefs", "true")
        .config("pack.threads", "1")
        .command(&git)
        .arg("--git-dir")
        .arg(path)
        .args(["gc", "--quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(failed_io("pack the repository"))?;
    if !output.status.success() {
        let why = sanitise_reason(&String::from_utf8_lossy(&output.stderr));
        return Err(GitFailure::Failed { doing: String::from("pack the repository"), why });
    }
    Ok(GitAnswer::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{Expected, MoveRef, refs, testing::World};

    #[test]
    fn stale_locks_are_removed_and_refs_stay() {
        let world = World::new();
        let path = world.repository();
        let commit = world.commit(&[("a", false, b"1")]);
        let change = |name: &str| MoveRef {
            refname: format!("refs/heads/{name}"),
            expected: Expected::Missing,
            new: Some(commit.clone()),
            keep: None,
            forget: Vec::new(),
        };
        refs::move_ref(&path, &change("team/one")).unwrap();
        let left = ["refs/heads/main.lock", "refs/heads/team/two.lock", "HEAD.lock", "packed-refs.lock", "packed-refs.new"];
        for name in left {
            fs::write(path.join(name), "").unwrap();
        }
        let refused = refs::move_ref(&path, &change("main")).unwrap_err();
        assert!(refused.to_string().contains("main.lock"), "{refused}");
        remove_locks(&path).unwrap();
        for name in left {
            assert!(!path.join(name).exists(), "{name}");
        }
        refs::move_ref(&path, &change("main")).unwrap();
        world.git(&["pack-refs", "--all"], b"");
        assert_eq!(world.git(&["rev-parse", "main", "team/one"], b""), format!("{commit}\n{commit}"));
    }
}
