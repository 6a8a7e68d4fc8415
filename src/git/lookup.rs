//! Finds commits, tags and logs with libgit2. This code runs in a git worker.

use std::path::Path;

use git2::{ErrorCode, ObjectType, Oid, Repository, Sort};

use super::{
    job::{CommitSpec, GitAnswer, GitFailure, GitReport, LogEntry, RefEntry},
    libgit::{add_quarantine, commit_id, failed, open},
};
use crate::model::{CommitId, sanitise_reason};

/// The maximum number of entries in a log.
const MAX_LOG: usize = 50;
/// The maximum number of tags that are listed.
const MAX_TAGS: usize = 10_000;
/// The maximum number of stored tags that are returned for one commit.
const MAX_TAGS_OF_COMMIT: usize = 100;

/// Returns the tags of all commits, sorted by name, at most [`MAX_TAGS`].
pub fn tags(path: &Path) -> GitReport {
    let repository = open(path).map_err(failed("open the repository"))?;
    let (mut found, mut more) = (Vec::new(), false);
    each_tag(&repository, |name, commit| {
        more = found.len() == MAX_TAGS;
        if !more && let Ok(id) = commit_id(commit) {
            found.push(RefEntry { refname: name.to_owned(), id });
        }
        !more
    })
    .map_err(failed("read the tags"))?;
    found.sort_by(|a, b| a.refname.cmp(&b.refname));
    Ok(GitAnswer::Refs { refs: found, more })
}

/// Returns the tags of `commit`. `coming` contains the pushed tags that git has not stored yet. Errors are ignored, because a tag
/// is only a name of a release: users see the tag and find the release by the tag, and no deployment fails without the tag.
pub fn tags_of(repository: &Repository, commit: &CommitId, coming: &[(String, CommitId)]) -> Vec<String> {
    let Ok(wanted) = Oid::from_str(commit.as_str()) else { return Vec::new() };
    let mut names = Vec::new();
    let _ = each_tag(repository, |name, target| {
        if target == wanted && !coming.iter().any(|(other, _)| other == name) {
            names.push(name.to_owned());
        }
        names.len() < MAX_TAGS_OF_COMMIT
    });
    for (name, id) in coming {
        let object = Oid::from_str(id.as_str()).and_then(|id| repository.find_object(id, None));
        if object.and_then(|object| object.peel(ObjectType::Commit)).is_ok_and(|commit| commit.id() == wanted) {
            names.push(name.clone());
        }
    }
    names.retain(|name| sanitise_reason(name) == *name);
    names
}

/// Calls `found` with the name and commit of each tag, until `found` returns `false`.
fn each_tag(repository: &Repository, mut found: impl FnMut(&str, Oid) -> bool) -> Result<(), git2::Error> {
    for reference in repository.references_glob("refs/tags/*")? {
        let Ok(reference) = reference else { continue };
        let Ok(commit) = reference.peel(ObjectType::Commit) else { continue };
        let Ok(Some(name)) = reference.name().map(|name| name.strip_prefix("refs/tags/")) else { continue };
        if !found(name, commit.id()) {
            break;
        }
    }
    Ok(())
}

/// Finds the commit that `spec` describes. Revision expressions of git, such as `main~1`, are never evaluated.
pub fn resolve(path: &Path, spec: &CommitSpec) -> GitReport {
    let repository = open(path).map_err(failed("open the repository"))?;
    let (names, what) = match spec {
        CommitSpec::Branch(branch) => (vec![format!("refs/heads/{branch}")], format!("branch {branch}")),
        CommitSpec::Release(release) => (vec![release.refname()], format!("commit of release {}", release.release)),
        CommitSpec::Text(text) => {
            let names = [format!("refs/heads/{text}"), format!("refs/tags/{text}")];
            if !is_digits(text) && !names.iter().any(|name| git2::Reference::is_valid_name(name)) {
                return Err(GitFailure::BadName(sanitise_reason(text)));
            }
            (names.to_vec(), format!("branch, tag or commit {text}"))
        }
    };
    for name in names.iter().filter(|name| git2::Reference::is_valid_name(name)) {
        match repository.find_reference(name) {
            Ok(reference) => {
                let commit = reference.peel(ObjectType::Commit).map_err(failed(format!("find the commit of {name}")))?;
                return Ok(GitAnswer::Commit(commit_id(commit.id())?));
            }
            Err(error) if error.code() == ErrorCode::NotFound => {}
            Err(error) => return Err(failed(format!("read {name}"))(error)),
        }
    }
    if let CommitSpec::Text(text) = spec
        && is_digits(text)
    {
        match repository.find_commit_by_prefix(&text.to_ascii_lowercase()) {
            Ok(commit) => return Ok(GitAnswer::Commit(commit_id(commit.id())?)),
            Err(error) if error.code() == ErrorCode::Ambiguous => return Err(GitFailure::Ambiguous(text.clone())),
            Err(_) => {}
        }
    }
    Err(GitFailure::NotFound(what))
}

/// Returns the tree of a commit.
pub fn tree(repository: &Path, commit: &CommitId) -> GitReport {
    let repository = open(repository).map_err(failed("open the repository"))?;
    let found = Oid::from_str(commit.as_str()).and_then(|id| repository.find_commit(id));
    let found = found.map_err(|_| GitFailure::NotFound(format!("commit {}", commit.short())))?;
    Ok(GitAnswer::Tree(commit_id(found.tree_id())?))
}

/// Returns true if `text` can be the first digits of a commit id.
fn is_digits(text: &str) -> bool {
    (4..=40).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// Returns the commits that are reachable from `to` and not from `from`, newest first, at most `limit` and at most [`MAX_LOG`]. The objects in
/// `quarantine` count as part of the repository.
pub fn log(path: &Path, from: Option<&CommitId>, to: &CommitId, limit: usize, quarantine: Option<&str>) -> GitReport {
    let doing = || format!("read the log up to {}", to.short());
    let repository = open(path).map_err(failed("open the repository"))?;
    if let Some(name) = quarantine {
        add_quarantine(&repository, path, name)?;
    }
    let oid = |id: &CommitId| Oid::from_str(id.as_str()).map_err(failed(doing()));
    let mut walk = repository.revwalk().map_err(failed(doing()))?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME).map_err(failed(doing()))?;
    walk.push(oid(to)?).map_err(failed(doing()))?;
    if let Some(from) = from {
        // `hide` fails if the repository no longer has `from`. The log then also contains commits older than `from`.
        let _ = walk.hide(oid(from)?);
    }
    let limit = limit.min(MAX_LOG);
    let (mut entries, mut more) = (Vec::new(), false);
    for id in walk {
        if entries.len() == limit {
            more = true;
            break;
        }
        let commit = id.and_then(|id| repository.find_commit(id)).map_err(failed(doing()))?;
        let subject = commit.summary_bytes().unwrap_or_default();
        entries.push(LogEntry {
            commit: commit_id(commit.id())?,
            subject: sanitise_reason(&String::from_utf8_lossy(subject)),
            author: sanitise_reason(&String::from_utf8_lossy(commit.author().name_bytes())),
            time: commit.time().seconds(),
        });
    }
    Ok(GitAnswer::Log { entries, more })
}
