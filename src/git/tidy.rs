//! Worker side: locks of git processes that were killed.

use std::{fs, path::Path};

use walkdir::WalkDir;

use super::job::{GitAnswer, GitFailure, GitReport};

/// Removes the lock files that a git which was killed has left: of refs, of `HEAD`, of the packed refs, of the configuration. As long
/// as one is there, git refuses to move what it locks, for good. Nobody else may use the repository meanwhile.
pub fn tidy(repository: &Path) -> GitReport {
    let top = WalkDir::new(repository).max_depth(1);
    let inside = ["refs", "objects/info"].map(|name| WalkDir::new(repository.join(name)));
    // What cannot be listed is not there, or whoever needs it will say so.
    for entry in [top].into_iter().chain(inside).flatten().flatten().filter(|entry| entry.file_type().is_file()) {
        let name = entry.file_name().to_string_lossy();
        if name.ends_with(".lock") || name == "packed-refs.new" {
            fs::remove_file(entry.path()).map_err(|error| GitFailure::Failed {
                doing: format!("remove {}, which a killed git has left", entry.path().display()),
                why: error.to_string(),
            })?;
        }
    }
    Ok(GitAnswer::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{Expected, MoveRef, refs, testing::World};

    #[test]
    fn locks_of_a_killed_git_are_removed_and_nothing_else() {
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
        tidy(&path).unwrap();
        for name in left {
            assert!(!path.join(name).exists(), "{name}");
        }
        refs::move_ref(&path, &change("main")).unwrap();
        world.git(&["pack-refs", "--all"], b"");
        assert_eq!(world.git(&["rev-parse", "main", "team/one"], b""), format!("{commit}\n{commit}"));
    }
}
