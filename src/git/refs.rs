//! Worker side: the repository itself and its refs. Reads by libgit2, writes by git's own programs.

use std::{fs::File, io::Write, path::Path, process::Stdio};

use git2::{ErrorCode, ObjectType, Oid, Repository, RepositoryOpenFlags, Sort};

use super::{
    job::{Expected, GitAnswer, GitFailure, GitReport, Kept, LogEntry, MoveRef, RefEntry, Spec},
    program::{self, Settings},
    tidy::tidy,
};
use crate::host::files::durable;
use crate::model::{BranchName, CommitId, sanitise_reason};

/// The refs that larder keeps for itself; clients neither see nor write them.
pub const OWN_REFS: &str = "refs/larder";
/// The most entries that a log shows.
const LOG_LIMIT: usize = 50;
/// The most tags that are read.
const TAGS_LIMIT: usize = 10_000;
/// The most refs that are read.
const REFS_LIMIT: usize = 10_000;

/// The ref that keeps a release's objects for an environment.
pub fn keep_ref(Kept { environment, release }: Kept) -> String {
    format!("{OWN_REFS}/keep/{}/{release}", environment.0)
}

fn failed(doing: impl Into<String>) -> impl FnOnce(git2::Error) -> GitFailure {
    let doing = doing.into();
    move |error| GitFailure::Failed { doing, why: error.message().to_owned() }
}

fn failed_io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> GitFailure {
    let doing = doing.into();
    move |error| GitFailure::Failed { doing, why: error.to_string() }
}

/// Opens the repository itself: no search in parent directories, no environment, no configuration but its own.
pub fn open(path: &Path) -> Result<Repository, git2::Error> {
    super::libgit::prepare();
    Repository::open_ext(path, RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE, None::<&Path>)
}

/// Makes the repository, or finds it made.
pub fn init(path: &Path, head: &BranchName) -> GitReport {
    let doing = || format!("create the repository for branch {head}");
    let repository = match open(path) {
        Ok(repository) => repository,
        Err(error) if error.code() == ErrorCode::NotFound => {
            let mut options = git2::RepositoryInitOptions::new();
            // No templates: they hold sample hooks and come from the host.
            options.bare(true).no_reinit(true).mkdir(true).external_template(false).initial_head(head.as_str());
            Repository::init_opts(path, &options).map_err(failed(doing()))?
        }
        Err(error) => return Err(failed(doing())(error)),
    };
    repository.set_head(&format!("refs/heads/{head}")).map_err(failed(doing()))?;
    File::open(path).and_then(|directory| rustix::fs::syncfs(directory).map_err(Into::into)).map_err(failed_io(doing()))?;
    Ok(GitAnswer::Done)
}

/// Compare and swap, by `git update-ref`, and everything on the disk before it is answered.
pub fn move_ref(path: &Path, change: &MoveRef) -> GitReport {
    if !git2::Reference::is_valid_name(&change.refname) || !change.refname.starts_with("refs/") {
        return Err(GitFailure::BadName(change.refname.clone()));
    }
    let repository = open(path).map_err(failed("open the repository"))?;
    let actual = current(&repository, &change.refname)?;
    let there = actual == change.new;
    let fits = match &change.expected {
        Expected::Anything => true,
        Expected::Missing => actual.is_none(),
        Expected::At(id) => actual.as_ref() == Some(id),
    };
    if !fits && !there {
        return Err(GitFailure::Moved { refname: change.refname.clone(), actual });
    }
    let mut script = Script::default();
    match (&change.new, there) {
        (_, true) => {}
        (Some(new), false) => script.update(&change.refname, new, actual.as_ref()),
        (None, false) => script.delete(&change.refname, actual.as_ref()),
    }
    if let Some((release, commit)) = &change.keep {
        script.set(&keep_ref(*release), commit);
    }
    for release in &change.forget {
        let name = keep_ref(*release);
        if current(&repository, &name)?.is_some() {
            script.delete(&name, None);
        }
    }
    if !script.0.is_empty() {
        run_update_ref(path, &script.0, change)?;
    }
    // git has written the files out; one wait for them, their names, and those of the objects that were pushed.
    File::open(path).and_then(durable::commit).map_err(failed_io(format!("write {} to the disk", change.refname)))?;
    // Somebody may have been faster between our look and git's lock; git has checked that, this checks git.
    let after = current(&open(path).map_err(failed("open the repository"))?, &change.refname)?;
    if after == change.new {
        Ok(GitAnswer::Done)
    } else {
        Err(GitFailure::Moved { refname: change.refname.clone(), actual: after })
    }
}

/// Commands for `git update-ref --stdin -z`, which takes every name as data.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn update(&mut self, refname: &str, new: &CommitId, old: Option<&CommitId>) {
        let zero = "0".repeat(new.as_str().len());
        let old = old.map_or(zero.as_str(), CommitId::as_str);
        self.0.extend_from_slice(format!("update {refname}\0{new}\0{old}\0").as_bytes());
    }

    fn set(&mut self, refname: &str, new: &CommitId) {
        self.0.extend_from_slice(format!("update {refname}\0{new}\0\0").as_bytes());
    }

    fn delete(&mut self, refname: &str, old: Option<&CommitId>) {
        let old = old.map_or("", CommitId::as_str);
        self.0.extend_from_slice(format!("delete {refname}\0{old}\0").as_bytes());
    }
}

fn run_update_ref(path: &Path, script: &[u8], change: &MoveRef) -> Result<(), GitFailure> {
    let doing = || format!("move {}", change.refname);
    let git = program::find().ok_or(GitFailure::NoGit)?;
    let mut child = Settings::new()
        .config("core.fsyncMethod", "writeout-only")
        .command(&git)
        .arg("--git-dir")
        .arg(path)
        .args(["update-ref", "--no-deref", "--stdin", "-z"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed_io(doing()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A git that refuses early closes its end; its own words say more than the broken pipe.
        let _ = stdin.write_all(script);
    }
    let output = child.wait_with_output().map_err(failed_io(doing()))?;
    if output.status.success() {
        return Ok(());
    }
    let actual = current(&open(path).map_err(failed("open the repository"))?, &change.refname)?;
    let fits = match &change.expected {
        Expected::Anything => true,
        Expected::Missing => actual.is_none(),
        Expected::At(id) => actual.as_ref() == Some(id),
    };
    if !fits {
        return Err(GitFailure::Moved { refname: change.refname.clone(), actual });
    }
    Err(GitFailure::Failed { doing: doing(), why: sanitise_reason(&String::from_utf8_lossy(&output.stderr)) })
}

fn current(repository: &Repository, refname: &str) -> Result<Option<CommitId>, GitFailure> {
    match repository.find_reference(refname) {
        Ok(reference) => Ok(reference.target().and_then(|oid| commit_id(oid).ok())),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(failed(format!("read {refname}"))(error)),
    }
}

fn commit_id(oid: Oid) -> Result<CommitId, GitFailure> {
    oid.to_string().parse().map_err(|why| GitFailure::Failed { doing: String::from("read an object's name"), why })
}

/// All refs but larder's own.
pub fn read_refs(path: &Path, limit: usize) -> GitReport {
    let repository = open(path).map_err(failed("open the repository"))?;
    let (mut refs, limit) = (Vec::new(), limit.min(REFS_LIMIT));
    let mut more = false;
    for reference in repository.references().map_err(failed("read the refs"))? {
        let reference = reference.map_err(failed("read the refs"))?;
        let (Ok(name), Some(id)) = (reference.name(), reference.target()) else { continue };
        if name.starts_with("refs/larder/") {
            continue;
        }
        if refs.len() == limit {
            more = true;
            break;
        }
        refs.push(RefEntry { refname: name.to_owned(), id: commit_id(id)? });
    }
    refs.sort_by(|a, b| a.refname.cmp(&b.refname));
    Ok(GitAnswer::Refs { refs, more })
}

/// The tags of commits.
pub fn tags(path: &Path) -> GitReport {
    let repository = open(path).map_err(failed("open the repository"))?;
    let (mut found, mut more) = (Vec::new(), false);
    each_tag(&repository, |name, commit| {
        more = found.len() == TAGS_LIMIT;
        if !more && let Ok(id) = commit_id(commit) {
            found.push(RefEntry { refname: name.to_owned(), id });
        }
        !more
    })
    .map_err(failed("read the tags"))?;
    found.sort_by(|a, b| a.refname.cmp(&b.refname));
    Ok(GitAnswer::Refs { refs: found, more })
}

/// The tags of `commit`; `coming` are tags that are not stored yet. A repository whose tags cannot be read has none: they are a
/// name for people, and nothing depends on them.
pub fn tags_of(repository: &Repository, commit: &CommitId, coming: &[(String, CommitId)]) -> Vec<String> {
    let Ok(wanted) = Oid::from_str(commit.as_str()) else { return Vec::new() };
    let mut names = Vec::new();
    let _ = each_tag(repository, |name, target| {
        if target == wanted && !coming.iter().any(|(other, _)| other == name) {
            names.push(name.to_owned());
        }
        names.len() < 100
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

/// Calls `found` with each tag's name and commit until it says no.
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

/// Finds the commit that `spec` names. Only whole names are looked up, so no expression of git's is ever evaluated.
pub fn resolve(path: &Path, spec: &Spec) -> GitReport {
    let repository = open(path).map_err(failed("open the repository"))?;
    let (names, what) = match spec {
        Spec::Branch(branch) => (vec![format!("refs/heads/{branch}")], format!("branch {branch}")),
        Spec::Release(release) => (vec![keep_ref(*release)], format!("commit of release {}", release.release)),
        Spec::Text(text) => {
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
    if let Spec::Text(text) = spec
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

/// The tree of a commit.
pub fn tree(repository: &Path, commit: &CommitId) -> GitReport {
    let repository = open(repository).map_err(failed("open the repository"))?;
    let found = Oid::from_str(commit.as_str()).and_then(|id| repository.find_commit(id));
    let found = found.map_err(|_| GitFailure::NotFound(format!("commit {}", commit.short())))?;
    Ok(GitAnswer::Tree(commit_id(found.tree_id())?))
}

/// Whether `text` may be the first digits of a commit.
fn is_digits(text: &str) -> bool {
    (4..=40).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// The commits that `to` has and `from` has not.
pub fn log(path: &Path, from: Option<&CommitId>, to: &CommitId, limit: usize) -> GitReport {
    let doing = || format!("read the log up to {}", to.short());
    let repository = open(path).map_err(failed("open the repository"))?;
    let oid = |id: &CommitId| Oid::from_str(id.as_str()).map_err(failed(doing()));
    let mut walk = repository.revwalk().map_err(failed(doing()))?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME).map_err(failed(doing()))?;
    walk.push(oid(to)?).map_err(failed(doing()))?;
    if let Some(from) = from {
        // An older commit that has been removed since hides nothing.
        let _ = walk.hide(oid(from)?);
    }
    let limit = limit.min(LOG_LIMIT);
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

/// git's own housekeeping; and what killed pushes have left. Nobody else may use the repository meanwhile.
pub fn gc(path: &Path) -> GitReport {
    tidy(path)?;
    let git = program::find().ok_or(GitFailure::NoGit)?;
    let output = Settings::new()
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
#[path = "refs_tests.rs"]
mod tests;
