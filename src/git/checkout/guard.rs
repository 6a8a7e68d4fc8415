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
    program::{commit, failed, paths, run},
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

/// The content of [`MARK`] while git replaces files. The file of a job that was killed then, or whose git failed then, stays for the next job.
const REPLACING: &str = "checkout";

/// A job that changes the checkout. Dropping the value ends the job.
pub(super) struct Working {
    mark: PathBuf,
    is_replacing: bool,
}

impl Working {
    /// Returns true if files of the checkout may have been replaced in part, by this job or by the job before, which was killed or failed.
    pub(super) fn is_replacing(&self) -> bool {
        self.is_replacing
    }

    /// Records that git begins, or has ended, to replace files. A kill within this function records that git does not replace files, which is true.
    pub(super) fn set_replacing(&mut self, is_replacing: bool) -> Result<(), GitFailure> {
        let text = if is_replacing { REPLACING } else { "" };
        fs::write(&self.mark, text).map_err(|error| failed("record the progress of the checkout", error))?;
        self.is_replacing = is_replacing;
        Ok(())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if !self.is_replacing {
            let _ = fs::remove_file(&self.mark);
        }
    }
}

/// Begins a job. The locks of a killed job are removed. Any other lock belongs to a person; if it stays, it is the objection.
pub(super) fn begin(app: &Path) -> Result<Result<Working, CheckoutObjection>, GitFailure> {
    if let Some(objection) = no_directory(app) {
        return Ok(Err(objection));
    }
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
    let is_replacing = fs::read_to_string(&mark).is_ok_and(|text| text == REPLACING);
    if !is_replacing {
        fs::write(&mark, "").map_err(|error| failed(doing, format!("cannot write .git/{MARK}: {error}")))?;
    }
    let working = Working { mark, is_replacing };
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

/// Returns an objection if `.git` is a file or a link, so that the repository is outside of the checkout.
pub(super) fn no_directory(app: &Path) -> Option<CheckoutObjection> {
    let found = fs::symlink_metadata(app.join(".git"));
    found.is_ok_and(|found| !found.is_dir()).then_some(CheckoutObjection::NoDirectory)
}

/// Replaces an index that git cannot read by the index of the commit that is checked out. The damaged index stays as `.git/index.damaged`.
pub(super) fn mend_index(app: &Path) -> Result<(), GitFailure> {
    let doing = "read the index of the checkout";
    let (index, damaged) = (app.join(".git/index"), app.join(".git/index.damaged"));
    let read = || run(app, &["ls-files", "-z"], doing);
    let Err(failure) = read() else { return Ok(()) };
    if !index.exists() {
        return Err(failure);
    }
    fs::rename(&index, &damaged).map_err(|error| failed(doing, error))?;
    if let Err(failure) = read() {
        // The index was not the cause.
        fs::rename(&damaged, &index).map_err(|error| failed(doing, error))?;
        return Err(failure);
    }
    match commit(app, "HEAD")? {
        Some(head) => run(app, &["read-tree", head.as_str()], doing).map(drop),
        None => Ok(()),
    }
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
    let foreign = |path: &Path| {
        let owner = fs::symlink_metadata(path).ok()?.uid();
        (owner != user).then(|| CheckoutObjection::Foreign { path: shown(app, path), owner, expected: user })
    };
    // git replaces files of objects and never changes them.
    let own = WalkDir::new(app.join(".git")).sort_by_file_name().into_iter().flatten();
    let mut own = own.filter(|entry| entry.file_type().is_dir() || !entry.path().starts_with(app.join(".git/objects")));
    if let Some(objection) = own.find_map(|entry| foreign(entry.path())) {
        return Some(objection);
    }
    let mut seen = BTreeSet::from([PathBuf::new()]);
    for path in changed {
        for parent in Path::new(path).ancestors().skip(1) {
            if !seen.insert(parent.to_owned()) {
                break;
            }
            if let Some(objection) = foreign(&app.join(parent)) {
                return Some(objection);
            }
        }
    }
    None
}

fn shown(app: &Path, path: &Path) -> String {
    path.strip_prefix(app).unwrap_or(path).display().to_string()
}
