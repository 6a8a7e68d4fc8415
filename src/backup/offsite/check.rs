//! The check of a repository by reading: no answer of the store is believed. A store that accepted a file may have lost the file or a part of
//! it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use rustic_core::{
    FileType, Id, IndexedFullStatus, Repository, TreeId,
    repofile::{IndexFile, NodeType, SnapshotFile},
};

use super::{
    super::error::BackupFailure,
    OffsiteCheck, OffsiteStore,
    backend::{attempts, path_of},
    repository::{OpenRepository, full_name, is_content_of},
};

/// The maximum number of defects in a report.
const MAX_DEFECTS: usize = 100;

/// Checks a repository. All files of a repository except `config` are named by the SHA-256 digest of their content.
///
/// - The lists of files, keys and snapshots are read and compared with their names.
/// - All packs must be present with their sizes, and all trees of all restore points must be complete.
/// - Packs that were never read back are read; then the packs whose reading is oldest, up to `budget` bytes.
///
/// A missing repository lacks all expected restore points.
pub(super) fn check(
    store: &OffsiteStore,
    read: &[(String, i64)],
    budget: u64,
    expected: &[String],
) -> Result<OffsiteCheck, BackupFailure> {
    let mut report = OffsiteCheck::default();
    let Some(opened) = OpenRepository::open(store, false)? else {
        report.missing_points = expected.to_vec();
        add_missing(&mut report);
        return Ok(report);
    };
    let is_index_damaged = check_lists(&opened, &mut report)?;
    report.is_sound = report.damaged_files.is_empty();
    let points = opened.points()?;
    report.missing_points = expected.iter().filter(|id| points.iter().all(|(point, _)| point.id != **id)).cloned().collect();
    add_missing(&mut report);
    if is_index_damaged {
        // Without its index, no content can be found.
        report.damaged_points = points.iter().map(|(point, _)| point.id.clone()).collect();
        report.read = read.to_vec();
    } else {
        let damaged = check_packs(&opened, read, budget, &mut report)?;
        report.is_sound &= damaged.is_empty();
        check_points(opened, &points, &damaged, &mut report)?;
    }
    report.defects.truncate(MAX_DEFECTS);
    Ok(report)
}

fn add_missing(report: &mut OffsiteCheck) {
    report.defects.extend(report.missing_points.iter().map(|id| format!("the copy of {id} is missing")));
}

/// Compares the content of the small files with their names. Returns true if a list of files is damaged.
fn check_lists(opened: &OpenRepository, report: &mut OffsiteCheck) -> Result<bool, BackupFailure> {
    let mut is_index_damaged = false;
    for directory in ["keys", "index", "snapshots"] {
        let listed = attempts(|| opened.files.list(directory));
        for (name, _) in listed.map_err(|e| BackupFailure::io(&format!("list {directory}"), &e))? {
            let (Ok(id), path) = (name.parse::<Id>(), format!("{directory}/{name}")) else { continue };
            if let Some(defect) = defect_of(opened, &path, &id, None)? {
                report.defects.push(format!("{path}: {defect}"));
                is_index_damaged |= directory == "index";
                // A damaged key stays: the repository was opened with another key.
                if directory != "keys" {
                    report.damaged_files.push(path);
                }
            }
        }
    }
    Ok(is_index_damaged)
}

/// Reads a file, and returns its defect. A file whose content is wrong is read a second time, because the network may be the cause.
pub(super) fn defect_of(
    opened: &OpenRepository,
    path: &str,
    id: &Id,
    size: Option<u64>,
) -> Result<Option<String>, BackupFailure> {
    let mut found = None;
    for _ in 0..2 {
        let bytes = match attempts(|| opened.files.read(path, None)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(String::from("it is missing"))),
            Err(error) => return Err(BackupFailure::io(&format!("read {path}"), &error)),
        };
        let seen = bytes.len() as u64;
        found = match size {
            Some(size) if size != seen => Some(wrong_size(seen, size)),
            _ if is_content_of(id, &bytes) => return Ok(None),
            _ => Some(String::from("its content does not have the digest of its name")),
        };
    }
    Ok(found)
}

fn wrong_size(seen: u64, expected: u64) -> String {
    format!("it has {seen} bytes (expected {expected})")
}

/// Checks the packs that the index names. Returns the packs that are missing or damaged.
fn check_packs(
    opened: &OpenRepository,
    read: &[(String, i64)],
    budget: u64,
    report: &mut OffsiteCheck,
) -> Result<BTreeSet<Id>, BackupFailure> {
    let failed = opened.failed("check the files");
    let mut packs: BTreeMap<Id, u64> = BTreeMap::new();
    for index in opened.repository.stream_files::<IndexFile>().map_err(&failed)? {
        let (_, index) = index.map_err(&failed)?;
        packs.extend(index.packs.iter().map(|pack| (*pack.id, u64::from(pack.pack_size()))));
    }
    let listed = attempts(|| opened.files.list_packs()).map_err(|e| BackupFailure::io("list the packs", &e))?;
    let listed: BTreeMap<Id, u64> = listed.into_iter().filter_map(|(name, size)| Some((name.parse().ok()?, size))).collect();
    let read: BTreeMap<Id, i64> = read.iter().filter_map(|(pack, at)| Some((pack.parse().ok()?, *at))).collect();
    let mut turn: Vec<(Option<i64>, Id, u64)> = packs.iter().map(|(id, size)| (read.get(id).copied(), *id, *size)).collect();
    turn.sort();
    let mut damaged: BTreeSet<Id> = BTreeSet::new();
    for (last, id, size) in turn {
        let path = path_of(FileType::Pack, &id);
        let is_turn = report.interrupted.is_none() && (last.is_none() || report.bytes_again < budget);
        let defect = match listed.get(&id) {
            None => Some(String::from("it is missing")),
            Some(seen) if *seen != size => {
                report.damaged_files.push(path.clone());
                Some(wrong_size(*seen, size))
            }
            Some(_) if !is_turn => {
                report.read.extend(last.map(|at| (full_name(&id), at)));
                continue;
            }
            Some(_) => match defect_of(opened, &path, &id, Some(size)) {
                Ok(None) => None,
                Ok(Some(defect)) => {
                    report.damaged_files.push(path.clone());
                    Some(defect)
                }
                // The packs that were read until now count, so that the next check continues here.
                Err(failure) => {
                    report.interrupted = Some(failure.why);
                    report.read.extend(last.map(|at| (full_name(&id), at)));
                    continue;
                }
            },
        };
        if let Some(defect) = defect {
            report.defects.push(format!("pack {path}: {defect}"));
            damaged.insert(id);
            continue;
        }
        report.bytes = report.bytes.saturating_add(size);
        if last.is_some() {
            report.bytes_again = report.bytes_again.saturating_add(size);
        }
        report.read.push((full_name(&id), Timestamp::now().as_second()));
    }
    report.unread = packs.len().saturating_sub(report.read.len()) as u64;
    Ok(damaged)
}

/// Finds the restore points whose trees or contents are not complete.
fn check_points(
    opened: OpenRepository,
    points: &[(super::OffsitePoint, SnapshotFile)],
    damaged: &BTreeSet<Id>,
    report: &mut OffsiteCheck,
) -> Result<(), BackupFailure> {
    let (failed, state) = (opened.failed("check the files"), opened.state.clone());
    let indexed = opened.repository.to_indexed().map_err(&failed)?;
    let mut good = HashSet::new();
    for (point, snapshot) in points {
        if !is_whole(&indexed, snapshot, damaged, &mut good) {
            if let Some(why) = state.failure() {
                report.interrupted.get_or_insert(why);
                return Ok(());
            }
            report.damaged_points.push(point.id.clone());
            report.defects.push(format!("the copy of {} is incomplete", point.id));
        }
    }
    Ok(())
}

/// Returns true if all trees of a snapshot can be read, and all contents are in good packs. `good` has the trees of whole snapshots, which
/// are not read again.
pub(super) fn is_whole(
    indexed: &Repository<IndexedFullStatus>,
    snapshot: &SnapshotFile,
    damaged: &BTreeSet<Id>,
    good: &mut HashSet<TreeId>,
) -> bool {
    let mut trees: Vec<TreeId> = vec![snapshot.tree];
    let mut seen: HashSet<TreeId> = HashSet::new();
    while let Some(id) = trees.pop() {
        if good.contains(&id) || !seen.insert(id) {
            continue;
        }
        let is_good_tree = indexed.get_index_entry(&id).is_ok_and(|entry| !damaged.contains(&*entry.pack));
        let Some(tree) = is_good_tree.then(|| indexed.get_tree(&id).ok()).flatten() else { return false };
        for node in tree.nodes {
            match (&node.node_type, node.subtree) {
                (NodeType::Dir, Some(subtree)) => trees.push(subtree),
                (NodeType::Dir, None) => return false,
                _ => {}
            }
            for content in node.content.iter().flatten() {
                if !indexed.get_index_entry(content).is_ok_and(|entry| !damaged.contains(&*entry.pack)) {
                    return false;
                }
            }
        }
    }
    good.extend(seen);
    true
}
