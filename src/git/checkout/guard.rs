//! The states of a checkout in which a push changes nothing: an operation of a person is in progress, or a part of the checkout belongs to another user.
//! Also removes the locks that a killed git has left.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use walkdir::WalkDir;

use super::{
    CheckoutObjection,
    content::literal,
    program::{failed, paths, run},
};
use crate::git::job::GitFailure;

/// The file that exists while a job of larder changes the checkout. If it exists when a job starts, the job before was killed.
const MARK: &str = "larder-working";
/// The time after which a lock is not the lock of a short command of a person. A `git commit -a` holds its lock as long as the editor is open.
const PATIENCE: Duration = Duration::from_secs(5);
/// The files with which git records an operation in progress, and what git calls the operation.
const OPERATIONS: [(&str, &str); 5] = [
    ("MERGE_HEAD", "merge"),
    ("rebase-merge", "rebase"),
    ("rebase-apply", "rebase"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
];

/// A job that changes the checkout. Dropping the value ends the job.
pub(super) struct Working(PathBuf);

impl Drop for Working {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Begins a job. The locks of a killed job are removed. Any other lock belongs to a person; if it stays, it is the objection.
pub(super) fn begin(app: &Path) -> Result<Result<Working, CheckoutObjection>, GitFailure> {
    let mark = app.join(".git").join(MARK);
    let is_killed = mark.exists();
    let end = Instant::now() + PATIENCE;
    while !is_killed && let Some(lock) = locks(app).pop() {
        if Instant::now() >= end {
            return Ok(Err(CheckoutObjection::Locked(shown(app, &lock))));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    take(app, mark).map(Ok)
}

/// Begins a job that must not be refused, the undo of an update. A person's lock that stays is removed: that person's git command fails without damage.
pub(super) fn begin_undo(app: &Path) -> Result<Working, GitFailure> {
    let mark = app.join(".git").join(MARK);
    let end = Instant::now() + PATIENCE;
    while !mark.exists() && !locks(app).is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    take(app, mark)
}

fn take(app: &Path, mark: PathBuf) -> Result<Working, GitFailure> {
    let doing = "begin a change of the checkout";
    fs::write(&mark, "").map_err(|error| failed(doing, format!("cannot write .git/{MARK}: {error}")))?;
    let working = Working(mark);
    for lock in locks(app) {
        fs::remove_file(&lock).map_err(|error| failed(doing, format!("cannot remove {}: {error}", shown(app, &lock))))?;
    }
    Ok(working)
}

/// Returns the lock files of git. Locks of objects do not matter: git creates each object under a name of its own.
fn locks(app: &Path) -> Vec<PathBuf> {
    let git = app.join(".git");
    let entries = WalkDir::new(&git).into_iter().filter_entry(|entry| entry.depth() != 1 || entry.file_name() != "objects");
    let files = entries.flatten().filter(|entry| entry.file_type().is_file());
    files.map(walkdir::DirEntry::into_path).filter(|path| path.extension().is_some_and(|end| end == "lock")).collect()
}

/// Returns the operation that a person has not ended yet.
pub(super) fn operation(app: &Path) -> Result<Option<CheckoutObjection>, GitFailure> {
    let found = OPERATIONS.iter().find(|(file, _)| app.join(".git").join(file).exists());
    if let Some((_, name)) = found {
        return Ok(Some(CheckoutObjection::InProgress((*name).to_owned())));
    }
    Ok(unmerged(app)?.pop_first().map(CheckoutObjection::Unmerged))
}

fn unmerged(app: &Path) -> Result<BTreeSet<String>, GitFailure> {
    let output = run(app, &["ls-files", "--unmerged", "-z"], "find the files with conflicts")?;
    Ok(paths(&output).iter().filter_map(|line| line.split_once('\t')).map(|(_, path)| path.to_owned()).collect())
}

/// Ends an operation in progress, so that the earlier commit can be checked out. The content of all files stays, and so do all commits.
pub(super) fn end_operation(app: &Path) -> Result<(), GitFailure> {
    let doing = "end the operation in progress";
    for path in unmerged(app)? {
        run(app, &["add", "--all", "--force", "--", &literal(&path)], doing)?;
    }
    while let Some((_, name)) = OPERATIONS.iter().find(|(file, _)| app.join(".git").join(file).exists()) {
        run(app, &[name, "--quit"], doing)?;
    }
    Ok(())
}

/// Returns the first part of the checkout that an update of `changed` would replace and that belongs to another user, so that git could fail in the
/// middle of its work: a directory, or a file of git's own.
pub(super) fn foreign<'a>(app: &Path, changed: impl Iterator<Item = &'a String>) -> Option<CheckoutObjection> {
    let user = rustix::process::geteuid().as_raw();
    let is_foreign = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.uid() != user);
    let objection = |path: &Path| Some(CheckoutObjection::Foreign(shown(app, path)));
    // git replaces files of objects and never changes them.
    let own = WalkDir::new(app.join(".git")).sort_by_file_name().into_iter().flatten();
    let mut own = own.filter(|entry| entry.file_type().is_dir() || !entry.path().starts_with(app.join(".git/objects")));
    if let Some(entry) = own.find(|entry| is_foreign(entry.path())) {
        return objection(entry.path());
    }
    let mut seen = BTreeSet::from([PathBuf::new()]);
    for path in changed {
        for parent in Path::new(path).ancestors().skip(1) {
            if !seen.insert(parent.to_owned()) {
                break;
            }
            if is_foreign(&app.join(parent)) {
                return objection(&app.join(parent));
            }
        }
    }
    None
}

fn shown(app: &Path, path: &Path) -> String {
    path.strip_prefix(app).unwrap_or(path).display().to_string()
}
