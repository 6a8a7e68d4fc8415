//! Creates commits of a pillar, and reads its history. This code runs in a git worker, and does not parse the files.

use std::{collections::HashMap, path::Path};

use git2::{ObjectType, Oid, Repository, Signature, Sort, Time};

use super::{
    job::{GitAnswer, GitFailure, GitReport, PillarCommit, PillarHistory},
    libgit::{commit_id, failed, open},
    pillar::is_read,
};
use crate::model::CommitId;

/// The maximum number of commits that are read.
const MAX_COMMITS: usize = 10_000;
/// The maximum size of all versions of all files together, in bytes.
const MAX_BYTES: usize = 64 << 20;
/// The name of larder in commits.
const COMMITTER: &str = "larder";

/// Creates the objects of a commit. No ref names the commit afterwards.
pub fn commit(path: &Path, parent: Option<&CommitId>, new: &PillarCommit) -> GitReport {
    let doing = || String::from("commit to the pillar");
    let repository = open(path).map_err(failed(doing()))?;
    let parent = parent.map(|id| Oid::from_str(id.as_str()).and_then(|id| repository.find_commit(id)));
    let parent = parent.transpose().map_err(failed(doing()))?;
    let before = parent.as_ref().map(|parent| parent.tree()).transpose().map_err(failed(doing()))?;
    let mut tree = repository.treebuilder(before.as_ref()).map_err(failed(doing()))?;
    for (name, content) in &new.files {
        match content {
            Some(content) => {
                let blob = repository.blob(content).map_err(failed(doing()))?;
                tree.insert(name, blob, 0o100_644).map_err(failed(doing()))?;
            }
            None if matches!(tree.get(name), Ok(Some(_))) => tree.remove(name).map_err(failed(doing()))?,
            None => {}
        }
    }
    let tree = tree.write().and_then(|id| repository.find_tree(id)).map_err(failed(doing()))?;
    let at = Time::new(new.time, 0);
    let signature = |name: &str| Signature::new(name, &format!("{name}@localhost"), &at).map_err(failed(doing()));
    let (author, committer) = (signature(&new.author)?, signature(COMMITTER)?);
    let parents: Vec<_> = parent.iter().collect();
    let id = repository.commit(None, &author, &committer, &new.message, &tree, &parents).map_err(failed(doing()))?;
    Ok(GitAnswer::Commit(commit_id(id)?))
}

/// Returns the files of all commits that are reachable from `from`, newest first. Each version of a file is returned once.
pub fn history(path: &Path, from: &CommitId) -> GitReport {
    let doing = || String::from("read the history of the pillar");
    let repository = open(path).map_err(failed(doing()))?;
    let mut walk = repository.revwalk().map_err(failed(doing()))?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME).map_err(failed(doing()))?;
    walk.push(Oid::from_str(from.as_str()).map_err(failed(doing()))?).map_err(failed(doing()))?;
    let mut history = PillarHistory::default();
    let mut known: HashMap<Oid, usize> = HashMap::new();
    let mut bytes = 0_usize;
    for id in walk {
        let commit = id.and_then(|id| repository.find_commit(id)).map_err(failed(doing()))?;
        let mut files = Vec::new();
        for (name, blob) in blobs(&repository, commit.tree_id()).map_err(failed(doing()))? {
            let at = match known.get(&blob) {
                Some(at) => *at,
                None => {
                    let content = repository.find_blob(blob).map_err(failed(doing()))?.content().to_vec();
                    bytes = bytes.saturating_add(content.len());
                    let at = history.versions.len();
                    history.versions.push(content);
                    known.insert(blob, at);
                    at
                }
            };
            files.push((name, at));
        }
        history.commits.push(files);
        if bytes > MAX_BYTES || history.commits.len() > MAX_COMMITS {
            let why = format!("the pillar has more than {MAX_COMMITS} commits, or more than {MAX_BYTES} bytes in all versions");
            return Err(GitFailure::Failed { doing: doing(), why });
        }
    }
    Ok(GitAnswer::PillarHistory(history))
}

/// Returns the files of the top directory that are read, with their objects.
fn blobs(repository: &Repository, tree: Oid) -> Result<Vec<(String, Oid)>, git2::Error> {
    let tree = repository.find_tree(tree)?;
    let entries = tree.iter().filter(|entry| entry.kind() == Some(ObjectType::Blob));
    let named = entries.map(|entry| (String::from_utf8_lossy(entry.name_bytes()).into_owned(), entry.id()));
    Ok(named.filter(|(name, _)| is_read(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testing::World;

    fn made(world: &World, parent: Option<&CommitId>, files: &[(&str, Option<&[u8]>)]) -> CommitId {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.map(<[u8]>::to_vec))).collect();
        let new = PillarCommit { files, author: String::from("ann"), message: String::from("Set a secret"), time: 1_700_000_000 };
        match commit(&world.repository(), parent, &new).unwrap() {
            GitAnswer::Commit(id) => id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commit_changes_the_named_files_only() {
        let world = World::new();
        let first = made(&world, None, &[("init.yml", Some(b"a: 1\n")), ("b.secrets.yml", Some(b"b: 2\n"))]);
        let second = made(&world, Some(&first), &[("b.secrets.yml", None), ("recipients", Some(b"c\n")), ("none", None)]);
        let listed = world.git(&["ls-tree", "--name-only", second.as_str()], b"");
        assert_eq!(listed, "init.yml\nrecipients");
        let log = world.git(&["log", "--format=%an <%ae> %cn %s %at", second.as_str()], b"");
        assert_eq!(log.lines().next(), Some("ann <ann@localhost> larder Set a secret 1700000000"));
        world.git(&["fsck", "--strict"], b"");
        let GitAnswer::PillarHistory(history) = history(&world.repository(), &second).unwrap() else { panic!() };
        let commits: Vec<Vec<_>> = history.files().map(|files| files.iter().map(|(name, _)| *name).collect()).collect();
        assert_eq!(commits, [vec!["init.yml", "recipients"], vec!["b.secrets.yml", "init.yml"]]);
        assert_eq!(history.versions.len(), 3);
        assert!(!format!("{history:?}").contains("97, 58"));
    }
}
