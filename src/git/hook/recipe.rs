//! Reads the recipe of a push that is not accepted yet. The pre-receive hook runs as the git user and can read git's quarantine, so the
//! server does not start a worker to read the recipe. The server can refuse a malformed recipe before any object is kept.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use git2::{ObjectType, Oid, Repository, Tree};

use super::wire::{MAX_RECIPE_BYTES, MAX_RECIPE_COMMITS, RecipeFile, RefChange};
use crate::{
    git::{libgit, source::RecipeFiles},
    model::CommitId,
};

/// The maximum size of the tree object of a root directory, in bytes. If the tree object of a root directory is larger, the hook does not
/// read the recipe.
const MAX_ROOT: usize = 1 << 20;

/// Returns the recipes of at most [`MAX_RECIPE_COMMITS`] pushed branches, together at most [`MAX_RECIPE_BYTES`]. The recipe of a commit
/// without the files of a recipe is empty. A recipe that cannot be read, or that exceeds the rest of this size, is left out. The export
/// reads all recipes again, and reports why a recipe cannot be read.
pub(super) fn read(repository: &Path, quarantine: Option<&str>, refs: &[RefChange]) -> Vec<(CommitId, RecipeFiles)> {
    let mut found: Vec<(CommitId, RecipeFiles)> = Vec::new();
    let branches = refs.iter().filter(|change| change.refname.starts_with("refs/heads/") && !change.new.is_zero());
    let Ok(opened) = libgit::open(repository) else { return found };
    if quarantine.is_some_and(|name| libgit::add_quarantine(&opened, repository, name).is_err()) {
        return found;
    }
    let mut left = MAX_RECIPE_BYTES;
    for change in branches.take(MAX_RECIPE_COMMITS) {
        if found.iter().any(|(commit, _)| *commit == change.new) {
            continue;
        }
        let Some((files, bytes)) = of_commit(&opened, &change.new).filter(|(_, bytes)| *bytes <= left) else {
            continue;
        };
        left = left.saturating_sub(bytes);
        found.push((change.new.clone(), files));
    }
    found
}

fn of_commit(repository: &Repository, commit: &CommitId) -> Option<(RecipeFiles, usize)> {
    let commit = repository.find_commit(Oid::from_str(commit.as_str()).ok()?).ok()?;
    let (size, _) = repository.odb().ok()?.read_header(commit.tree_id()).ok()?;
    let tree = if size <= MAX_ROOT { commit.tree().ok()? } else { return None };
    let (mut files, mut bytes) = (RecipeFiles::default(), 0_usize);
    for file in RecipeFile::ALL {
        let content = content(repository, &tree, file.path());
        bytes = bytes.saturating_add(content.as_ref().map_or(0, Vec::len));
        *file.of(&mut files) = content;
    }
    Some((files, bytes))
}

fn content(repository: &Repository, tree: &Tree<'_>, path: &str) -> Option<Vec<u8>> {
    let entry = tree.get_path(Path::new(path)).ok()?;
    let regular = entry.filemode() & 0o170_000 == 0o100_000;
    let (size, kind) = repository.odb().ok()?.read_header(entry.id()).ok()?;
    if !regular || kind != ObjectType::Blob || size as u64 > RecipeFiles::LIMIT {
        return None;
    }
    Some(repository.find_blob(entry.id()).ok()?.content().to_vec())
}

/// Empties git's quarantine, so that a push without any accepted ref leaves no objects.
pub(super) fn discard(quarantine: &Path) -> io::Result<()> {
    for entry in fs::read_dir(quarantine)? {
        let path: PathBuf = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testing::World;

    fn branch(new: &CommitId) -> RefChange {
        RefChange { old: new.clone(), new: new.clone(), refname: String::from("refs/heads/main") }
    }

    #[test]
    fn large_or_irregular_file_is_not_read_and_commit_is_read_once() {
        let world = World::new();
        let large = vec![b'#'; RecipeFiles::LIMIT as usize + 1];
        let commit =
            world.commit(&[("larder.yml", false, b"a: 1\n"), ("Procfile", false, &large), ("sub/app.json", false, b"{}")]);
        let tag = RefChange { refname: String::from("refs/tags/v1"), ..branch(&commit) };
        let found = read(&world.repository(), None, &[branch(&commit), branch(&commit), tag]);
        let expected = RecipeFiles { larder_yml: Some(b"a: 1\n".to_vec()), ..RecipeFiles::default() };
        assert_eq!(found, [(commit, expected)]);
        let plain = world.commit(&[("index.html", false, b"hello\n")]);
        assert_eq!(read(&world.repository(), None, &[branch(&plain)]), [(plain, RecipeFiles::default())]);
        let link = world.blob(b"/etc/passwd");
        let commit = world.commit_tree(&world.tree_object(&[("120000", b"larder.yml", &link)]));
        assert_eq!(read(&world.repository(), None, &[branch(&commit)]), [(commit, RecipeFiles::default())]);
    }
}
