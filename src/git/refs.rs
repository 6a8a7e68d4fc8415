//! Creates the repository, moves refs and lists refs. This code runs in a git worker, reads refs with libgit2, and moves refs with git's
//! own program.

use std::{fs::File, io::Write, path::Path, process::Stdio};

use git2::{ErrorCode, Repository};

use super::{
    job::{GitAnswer, GitFailure, GitReport, MoveRef, OWN_REFS, RefEntry},
    libgit::{commit_id, failed, failed_io, open},
    program::{self, GitSettings},
};
use crate::{
    host::files::durable,
    model::{BranchName, CommitId, sanitise_reason},
};

/// The maximum number of refs that [`read_refs`] returns.
const MAX_REFS: usize = 10_000;

/// Creates the repository if it does not exist, and sets its `HEAD` to the branch `head`.
pub fn init(path: &Path, head: &BranchName) -> GitReport {
    let doing = || format!("create the repository for branch {head}");
    let repository = match open(path) {
        Ok(repository) => repository,
        Err(error) if error.code() == ErrorCode::NotFound => {
            let mut options = git2::RepositoryInitOptions::new();
            // Templates are not used, because they come from the host and contain sample hooks.
            options.bare(true).no_reinit(true).mkdir(true).external_template(false).initial_head(head.as_str());
            Repository::init_opts(path, &options).map_err(failed(doing()))?
        }
        Err(error) => return Err(failed(doing())(error)),
    };
    repository.set_head(&format!("refs/heads/{head}")).map_err(failed(doing()))?;
    File::open(path).and_then(|directory| rustix::fs::syncfs(directory).map_err(Into::into)).map_err(failed_io(doing()))?;
    Ok(GitAnswer::Done)
}

/// Moves a ref by compare and swap, with `git update-ref`. Returns after the change is on the disk.
pub fn move_ref(path: &Path, change: &MoveRef) -> GitReport {
    if !git2::Reference::is_valid_name(&change.refname) || !change.refname.starts_with("refs/") {
        return Err(GitFailure::BadName(change.refname.clone()));
    }
    let repository = open(path).map_err(failed("open the repository"))?;
    let actual = current(&repository, &change.refname)?;
    let there = actual == change.new;
    if !change.expected.is_met_by(actual.as_ref()) && !there {
        return Err(GitFailure::Moved { refname: change.refname.clone(), actual });
    }
    let mut script = Script::default();
    match (&change.new, there) {
        (_, true) => {}
        (Some(new), false) => script.update(&change.refname, new, actual.as_ref()),
        (None, false) => script.delete(&change.refname, actual.as_ref()),
    }
    if let Some((release, commit)) = &change.keep {
        script.set(&release.refname(), commit);
    }
    for release in &change.forget {
        let name = release.refname();
        if current(&repository, &name)?.is_some() {
            script.delete(&name, None);
        }
    }
    if !script.0.is_empty() {
        run_update_ref(path, &script.0, change)?;
    }
    // git has only started to write the files to the disk (`writeout-only`). This sync waits for the files, their names, and the pushed
    // objects.
    File::open(path).and_then(durable::commit).map_err(failed_io(format!("write {} to the disk", change.refname)))?;
    // A concurrent process can move the ref after this function has read `actual`. git compares the old value while it holds the ref's
    // lock, and the comparison with `after` verifies the result.
    let after = current(&open(path).map_err(failed("open the repository"))?, &change.refname)?;
    if after == change.new {
        Ok(GitAnswer::Done)
    } else {
        Err(GitFailure::Moved { refname: change.refname.clone(), actual: after })
    }
}

/// Commands for `git update-ref --stdin -z`. With `-z`, names end with NUL, so no name can contain a command.
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
    let mut child = GitSettings::new()
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
        // This write fails if git rejects the script early. The error is ignored, because git's own message names the cause.
        let _ = stdin.write_all(script);
    }
    let output = child.wait_with_output().map_err(failed_io(doing()))?;
    if output.status.success() {
        return Ok(());
    }
    let actual = current(&open(path).map_err(failed("open the repository"))?, &change.refname)?;
    if !change.expected.is_met_by(actual.as_ref()) {
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

/// Returns at most `limit` refs, and never more than [`MAX_REFS`], sorted by name. larder's own refs are left out.
pub fn read_refs(path: &Path, limit: usize) -> GitReport {
    let repository = open(path).map_err(failed("open the repository"))?;
    let (mut refs, limit) = (Vec::new(), limit.min(MAX_REFS));
    let mut more = false;
    for reference in repository.references().map_err(failed("read the refs"))? {
        let reference = reference.map_err(failed("read the refs"))?;
        let (Ok(name), Some(id)) = (reference.name(), reference.target()) else { continue };
        if name.strip_prefix(OWN_REFS).is_some_and(|rest| rest.starts_with('/')) {
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
