//! The files of commits, and their comparison with the files of the checkout.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use super::program::{paths, run, run_with};
use crate::{git::job::GitFailure, model::CommitId};

/// A file in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TreeFile {
    mode: String,
    blob: String,
}

/// Returns a pathspec that matches the path itself only.
pub(super) fn literal(path: &str) -> String {
    format!(":(literal){path}")
}

/// Returns true if the file in the checkout has the content and the mode of the commit.
pub(super) fn is_equal(app: &Path, path: &str, file: &TreeFile, doing: &str) -> Result<bool, GitFailure> {
    let Ok(found) = fs::symlink_metadata(app.join(path)) else { return Ok(false) };
    let mode = match (found.is_file(), found.permissions().mode() & 0o100 != 0) {
        (true, true) => "100755",
        (true, false) => "100644",
        (false, _) if found.is_symlink() => "120000",
        (false, _) => return Ok(false),
    };
    if mode != file.mode {
        return Ok(false);
    }
    if let Ok(target) = fs::read_link(app.join(path)) {
        let blob = run_with(app, &["hash-object", "--stdin"], target.as_os_str().as_bytes(), doing)?;
        return Ok(String::from_utf8_lossy(&blob).trim() == file.blob);
    }
    let blob = run(app, &["hash-object", "--", path], doing)?;
    Ok(String::from_utf8_lossy(&blob).trim() == file.blob)
}

/// Returns true if the file in the checkout has the beginning of the content that git writes for a file of a commit.
pub(super) fn is_beginning(app: &Path, path: &str, commit: &CommitId, doing: &str) -> Result<bool, GitFailure> {
    let name = app.join(path);
    if !fs::symlink_metadata(&name).is_ok_and(|found| found.is_file()) {
        return Ok(false);
    }
    let Ok(found) = fs::read(&name) else { return Ok(false) };
    let whole = run(app, &["cat-file", "--filters", &format!("{commit}:{path}")], doing)?;
    Ok(found.len() < whole.len() && whole.starts_with(&found))
}

/// Returns the files of a commit.
pub(super) fn tree(app: &Path, commit: &CommitId, doing: &str) -> Result<BTreeMap<String, TreeFile>, GitFailure> {
    let output = run(app, &["ls-tree", "-r", "-z", "--full-tree", commit.as_str()], doing)?;
    let entries = paths(&output).into_iter().filter_map(|line| {
        let (about, path) = line.split_once('\t')?;
        let mut words = about.split(' ');
        let (mode, _, blob) = (words.next()?, words.next()?, words.next()?);
        Some((path.to_owned(), TreeFile { mode: mode.to_owned(), blob: blob.to_owned() }))
    });
    Ok(entries.collect())
}
