//! Lists the entries of a built tree.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use larder_archive::{Item, ItemKind};
use rustix::fs::FileType;

use super::{
    ReleaseError, ignored,
    walk::{self, Warnings, check_count, checked, classify},
};
use crate::{
    host::files::Confined,
    model::{SourceEntry, SourceKind, SourceList},
};

/// Returns the entries of the built tree `app`, except the entries that match `.larderignore`. `source` is the list of exported files, and
/// `upper` is the upper directory of the overlay. If both are given, only the directories that the build changed are read, and the digests
/// of unchanged files are taken from the list. Otherwise, `threads` threads read all directories. Sockets and FIFOs are left out with a
/// warning.
pub fn listing(
    app: &Confined,
    source: Option<SourceList>,
    upper: Option<&Confined>,
    threads: usize,
    warnings: &mut Warnings,
) -> Result<Vec<Item>, ReleaseError> {
    let mut items = match (source, upper) {
        (Some(source), Some(upper)) => merged(app, source, upper, warnings)?,
        _ => walk::walk(app, OsString::new(), 0, threads, warnings)?,
    };
    ignored::apply(app, &mut items)?;
    Ok(items)
}

type Found = BTreeMap<String, ItemKind>;

/// Lists the entries of a built tree, starting with the list of exported files. Of the directories in this list, only those that exist in
/// `upper` are read, because the other directories are unchanged. A directory that is in neither the list nor `upper` is walked completely.
/// The names in a directory are read from the merged view `app`, to which the kernel has applied all whiteouts and opaque marks of the
/// overlay. An unprivileged worker cannot read some of these marks.
fn merged(app: &Confined, source: SourceList, upper: &Confined, warnings: &mut Warnings) -> Result<Vec<Item>, ReleaseError> {
    let mut found: Found = source.entries.into_iter().map(exported).collect();
    let mut pending = vec![OsString::new()];
    while let Some(directory) = pending.pop() {
        let above = upper.open_dir(&directory)?;
        let view = app.open_dir(&directory)?;
        let changed: std::collections::HashSet<OsString> = above.names()?.into_iter().collect();
        let names = view.names()?;
        // The build has deleted the entries that the merged view no longer has.
        let prefix = directory.to_string_lossy();
        let kept: std::collections::HashSet<&OsStr> = names.iter().map(OsString::as_os_str).collect();
        for name in children(&found, &prefix) {
            if !kept.contains(OsStr::new(&name)) {
                forget(&mut found, &join(&prefix, &name));
            }
        }
        let mut here = view.cursor();
        let mut there = above.cursor();
        for name in &names {
            let path = checked(&directory, name)?;
            if !changed.contains(name) && found.contains_key(&path) {
                continue;
            }
            let stat = here.stat(name)?;
            let was_dir = matches!(found.get(&path), Some(ItemKind::Dir));
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if was_dir && !is_dir {
                forget(&mut found, &path);
            }
            match classify(&path, &stat, &mut here, name, warnings)? {
                Some(kind) => found.insert(path.clone(), kind),
                None => found.remove(&path),
            };
            if is_dir {
                let in_upper = changed.contains(name)
                    && there.stat(name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                if in_upper {
                    pending.push(path.into());
                } else {
                    // This directory of a lower layer is not in the list, so it is walked.
                    walk(app, path.into(), &mut found, warnings)?;
                }
            }
        }
        check_count(found.len() as u64)?;
    }
    Ok(found.into_iter().map(|(path, kind)| Item { path, kind }).collect())
}

fn exported(entry: SourceEntry) -> (String, ItemKind) {
    let kind = match entry.kind {
        SourceKind::Dir => ItemKind::Dir,
        SourceKind::File { size, digest, executable, .. } => ItemKind::File { size, digest: Some(digest), executable },
        SourceKind::Link { target } => ItemKind::Link { target },
    };
    (entry.path, kind)
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// Returns the names of the entries that are directly in a directory.
fn children(found: &Found, directory: &str) -> Vec<String> {
    let start = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let mut names = Vec::new();
    let mut from = std::ops::Bound::Included(start.clone());
    // The loop skips the entries below each child, so the cost depends only on the number of children.
    while let Some((path, _)) = found.range((from.clone(), std::ops::Bound::Unbounded)).next() {
        let Some(rest) = path.strip_prefix(&start) else { break };
        match rest.split_once('/') {
            // The byte '0' follows '/', so this is the first possible path after all entries below the child.
            Some((name, _)) => from = std::ops::Bound::Included(format!("{start}{name}0")),
            None => {
                names.push(rest.to_owned());
                from = std::ops::Bound::Excluded(path.clone());
            }
        }
    }
    names
}

/// Removes a path and everything below it from `found`.
fn forget(found: &mut Found, path: &str) {
    found.remove(path);
    let below: Vec<String> = found.range(format!("{path}/")..format!("{path}0")).map(|(path, _)| path.clone()).collect();
    for path in below {
        found.remove(&path);
    }
}

fn walk(app: &Confined, from: OsString, found: &mut Found, warnings: &mut Warnings) -> Result<(), ReleaseError> {
    found.extend(walk::walk(app, from, found.len() as u64, 1, warnings)?.into_iter().map(|item| (item.path, item.kind)));
    Ok(())
}
