//! Reads the files of a pillar. This code runs in a git worker, and does not parse the files.

use std::path::Path;

use git2::{ErrorCode, ObjectType, Oid, Repository, Tree};

use super::{
    job::{GitAnswer, GitFailure, GitReport, PillarFiles, PillarRefusal},
    libgit::{add_quarantine, commit_id, failed, open},
};
use crate::model::{CommitId, sanitise_reason};

/// The maximum compressed size of a push to a pillar, in bytes.
pub const MAX_PILLAR_PACK: u64 = 32 << 20;
/// The maximum size of all files of a commit together, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// The maximum number of files and directories of a commit.
const MAX_ENTRIES: usize = 1000;
/// The maximum depth of directories.
const MAX_DEPTH: usize = 8;
/// The maximum size of a tree object, in bytes.
const MAX_TREE: usize = 1 << 20;
/// The maximum size of a file that is searched for the line that makes the file too large, in bytes.
const MAX_SEARCHED: usize = 64 << 20;
/// The branch with the values that count.
const BRANCH: &str = "refs/heads/main";

/// Reads the files of `commit`, or of the branch `main`. Refuses links, submodules, and commits that are not after `after`.
pub fn read(path: &Path, commit: Option<&CommitId>, after: Option<&CommitId>, quarantine: Option<&str>) -> GitReport {
    let repository = match open(path) {
        Ok(repository) => repository,
        Err(error) if error.code() == ErrorCode::NotFound => return Ok(GitAnswer::Pillar(None)),
        Err(error) => return Err(failed("open the pillar")(error)),
    };
    if let Some(quarantine) = quarantine {
        add_quarantine(&repository, path, quarantine)?;
    }
    let id = match commit {
        Some(commit) => Oid::from_str(commit.as_str()).map_err(failed("read the id of a commit"))?,
        None => match repository.find_reference(BRANCH) {
            Ok(reference) => reference.peel(ObjectType::Commit).map_err(failed("find the commit of the pillar"))?.id(),
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(GitAnswer::Pillar(None)),
            Err(error) => return Err(failed("read the branch of the pillar")(error)),
        },
    };
    match files(&repository, id, after) {
        Ok(files) => Ok(GitAnswer::Pillar(Some(files))),
        Err(Stop::Refused(refusal)) => Ok(GitAnswer::PillarRefused(refusal)),
        Err(Stop::Failed(failure)) => Err(failure),
    }
}

/// The reason why a commit is not read.
enum Stop {
    Refused(PillarRefusal),
    Failed(GitFailure),
}

impl From<GitFailure> for Stop {
    fn from(failure: GitFailure) -> Stop {
        Stop::Failed(failure)
    }
}

fn refused(path: Option<&str>, reason: impl Into<String>, hint: &str) -> Stop {
    let subject = path.map_or_else(|| String::from("the commit"), sanitise_reason);
    Stop::Refused(PillarRefusal { reason: format!("{subject} {}", reason.into()), hint: hint.to_owned() })
}

fn files(repository: &Repository, id: Oid, after: Option<&CommitId>) -> Result<PillarFiles, Stop> {
    let commit = repository.find_commit(id).map_err(|_| {
        refused(None, "is not a commit", "push the commit that the tag names, as in `git push pillar 'v1^{commit}:main'`")
    })?;
    if let Some(after) = after {
        let after = Oid::from_str(after.as_str()).map_err(failed("read the id of a commit"))?;
        let follows = after == id || repository.graph_descendant_of(id, after).map_err(failed("compare two commits"))?;
        if !follows {
            let reason = "does not contain the present values (non-fast-forward)";
            return Err(refused(None, reason, "fetch, merge, and push again; the history of a pillar is never rewritten"));
        }
    }
    let mut reading = Reading { repository, entries: 0, bytes: 0, files: Vec::new() };
    reading.directory(commit.tree_id(), "", 0)?;
    reading.files.sort();
    Ok(PillarFiles { commit: commit_id(id)?, files: reading.files })
}

/// Returns true for the path of a file that larder reads: values, encrypted values, and the recipients of secrets.
pub(super) fn is_read(path: &str) -> bool {
    !path.contains('/') && (path.ends_with(".yml") || path.ends_with(".yaml") || path.ends_with(".age") || path == "recipients")
}

struct Reading<'r> {
    repository: &'r Repository,
    entries: usize,
    bytes: usize,
    files: Vec<(String, Vec<u8>)>,
}

impl Reading<'_> {
    fn directory(&mut self, tree: Oid, prefix: &str, depth: usize) -> Result<(), Stop> {
        let odb = self.repository.odb().map_err(failed("read the pillar"))?;
        let (size, _) = odb.read_header(tree).map_err(failed("read a directory of the pillar"))?;
        if size > MAX_TREE || depth >= MAX_DEPTH {
            let reason = if size > MAX_TREE { "has too many entries" } else { "is nested too deeply" };
            return Err(refused(Some(prefix), reason, "remove the files that are no configuration"));
        }
        let tree: Tree<'_> = self.repository.find_tree(tree).map_err(failed("read a directory of the pillar"))?;
        for entry in &tree {
            let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            self.entries = self.entries.saturating_add(1);
            if self.entries > MAX_ENTRIES {
                let reason = format!("has more than {MAX_ENTRIES} files and directories");
                return Err(refused(None, reason, "remove the files that are no configuration"));
            }
            match entry.filemode() & 0o170_000 {
                0o040_000 => self.directory(entry.id(), &path, depth.saturating_add(1))?,
                0o100_000 => self.file(entry.id(), path)?,
                0o120_000 => {
                    return Err(refused(Some(&path), "is a symbolic link", "commit the file itself, not a link"));
                }
                _ => {
                    let hint = format!("remove the submodule with `git rm --cached {}`", sanitise_reason(&path));
                    return Err(refused(Some(&path), "is a git submodule", &hint));
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, id: Oid, path: String) -> Result<(), Stop> {
        let odb = self.repository.odb().map_err(failed("read the pillar"))?;
        let (size, _) = odb.read_header(id).map_err(failed("read a file of the pillar"))?;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_BYTES {
            return Err(self.too_large(id, &path, size));
        }
        if is_read(&path) {
            let blob = self.repository.find_blob(id).map_err(failed("read a file of the pillar"))?;
            self.files.push((path, blob.content().to_vec()));
        }
        Ok(())
    }

    /// Returns the refusal of a file that is too large. If a single value is too large, the refusal names its line and key.
    fn too_large(&self, id: Oid, path: &str, size: usize) -> Stop {
        let blob = (size <= MAX_SEARCHED).then(|| self.repository.find_blob(id).ok()).flatten();
        let longest = blob.as_ref().and_then(|blob| {
            let lines = blob.content().split(|byte| *byte == b'\n').enumerate();
            lines.max_by_key(|(_, line)| line.len()).filter(|(_, line)| line.len() > 64 * 1024)
        });
        if let Some((at, line)) = longest {
            let key = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
            let is_key = key.len() <= 128 && key.iter().all(|c| c.is_ascii_alphanumeric() || b"_-.".contains(c));
            let key = if is_key { String::from_utf8_lossy(key).into_owned() } else { String::from("the value") };
            let reason = format!("line {}: {key} has {} bytes (limit {})", at.saturating_add(1), line.len(), 64 * 1024);
            return refused(Some(path), reason, "store the value in a file below data/, and write its path");
        }
        let reason = format!("has {size} bytes, and all files of the pillar have more than {MAX_BYTES} bytes (the limit)");
        refused(Some(path), reason, "remove the files that are no configuration")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testing::World;

    fn reason(world: &World, commit: &CommitId, after: Option<&CommitId>) -> String {
        match read(&world.repository(), Some(commit), after, None).unwrap() {
            GitAnswer::PillarRefused(refusal) => format!("{refusal}; {}", refusal.hint),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_of_the_top_directory_are_read() {
        let world = World::new();
        let commit = world.commit(&[("init.yml", false, b"a: 1\n"), ("README.md", false, b"x"), ("sub/b.yml", false, b"b: 1\n")]);
        let found = read(&world.repository(), Some(&commit), None, None).unwrap();
        let files = vec![(String::from("init.yml"), b"a: 1\n".to_vec())];
        assert_eq!(found, GitAnswer::Pillar(Some(PillarFiles { commit, files })));
        assert!(!format!("{found:?}").contains("a: 1"));
        assert_eq!(read(Path::new("/nonexistent"), None, None, None).unwrap(), GitAnswer::Pillar(None));
    }

    #[test]
    fn link_submodule_and_large_file_are_refused() {
        let world = World::new();
        let link = world.blob(b"/etc/passwd");
        let commit = world.commit_tree(&world.tree_object(&[("120000", b"init.yml", &link)]));
        assert!(reason(&world, &commit, None).starts_with("init.yml is a symbolic link; commit the file itself"));
        let gitlink = commit.clone();
        let commit = world.commit_tree(&world.tree_object(&[("160000", b"lib", gitlink.as_str())]));
        assert!(reason(&world, &commit, None).starts_with("lib is a git submodule"));
        let long = [b"a: 1\nbig: ".as_slice(), &vec![b'x'; 10 << 20], b"\n"].concat();
        let commit = world.commit(&[("init.yml", false, &long)]);
        assert!(reason(&world, &commit, None).starts_with("init.yml line 2: big has 10485765 bytes (limit 65536)"));
        let many = "a: 1\n".repeat(1 << 18);
        let commit = world.commit(&[("init.yml", false, many.as_bytes())]);
        assert!(reason(&world, &commit, None).contains("has 1310720 bytes"));
    }

    #[test]
    fn rewritten_history_is_refused() {
        let world = World::new();
        let (first, other) = (world.commit(&[("init.yml", false, b"a: 1\n")]), world.commit(&[("init.yml", false, b"a: 2\n")]));
        assert!(reason(&world, &first, Some(&other)).contains("non-fast-forward"));
        assert!(matches!(read(&world.repository(), Some(&first), Some(&first), None).unwrap(), GitAnswer::Pillar(Some(_))));
    }
}
