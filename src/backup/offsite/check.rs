//! The check of a repository by reading: no answer of the store is believed. A store that accepted a file may have lost the file or a part of
//! it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use rustic_core::{
    CheckOptions, FileType, Id, IndexedFullStatus, RepairIndexOptions, Repository, TreeId,
    repofile::{IndexFile, IndexId, NodeType, PackId, SnapshotFile, SnapshotId},
};

use super::{
    super::error::BackupFailure,
    OffsiteCheck, OffsiteStore,
    backend::path_of,
    repository::{OpenRepository, full_name},
};
use crate::model::sanitise_line;

/// The maximum number of defects in a report.
const MAX_DEFECTS: usize = 100;

/// Checks that all files are present with their sizes, that all trees are complete, and that packs have the content of their names. A pack is
/// named by the SHA-256 digest of its content. Packs that were never read are read first; then the packs whose reading is oldest, up to
/// `budget` bytes.
pub(super) fn check(
    store: &OffsiteStore,
    read: Vec<(String, i64)>,
    budget: u64,
    expected: &[String],
) -> Result<OffsiteCheck, BackupFailure> {
    let opened = OpenRepository::existing(store)?;
    let mut report = OffsiteCheck::default();
    let points = opened.points()?;
    for id in expected.iter().filter(|id| points.iter().all(|(point, _)| point.id != **id)) {
        report.defects.push(format!("the copy of {id} is missing"));
        report.damaged_points.push(id.clone());
    }
    let failed = opened.failed("check the files");
    let found = opened.repository.check(CheckOptions::default()).map_err(&failed)?;
    // A pack without an entry in the index is the leftover of a killed copy, and only a warning.
    let errors = found.0.iter().filter(|(level, _)| format!("{level:?}") == "Error");
    let mut defects: Vec<String> = errors.map(|(_, error)| sanitise_line(&error.to_string())).collect();
    let mut packs: BTreeMap<Id, u64> = BTreeMap::new();
    for index in opened.repository.stream_files::<IndexFile>().map_err(&failed)? {
        let (_, index) = index.map_err(&failed)?;
        packs.extend(index.packs.iter().map(|pack| (*pack.id, u64::from(pack.pack_size()))));
    }
    let read: BTreeMap<Id, i64> = read.into_iter().filter_map(|(pack, at)| Some((pack.parse().ok()?, at))).collect();
    let mut turn: Vec<(Option<i64>, Id, u64)> = packs.iter().map(|(id, size)| (read.get(id).copied(), *id, *size)).collect();
    turn.sort();
    let mut good: Vec<(Id, i64)> = Vec::new();
    let mut damaged: BTreeSet<Id> = BTreeSet::new();
    for (last, id, size) in turn {
        if let Some(at) = last.filter(|_| report.bytes_again >= budget) {
            good.push((id, at));
            continue;
        }
        let path = path_of(FileType::Pack, &id);
        let defect = match opened.files.read(&path, None) {
            Ok(bytes) if bytes.len() as u64 != size => Some(format!("it has {} bytes (expected {size})", bytes.len())),
            Ok(bytes) if !id.blob_matches_reader(bytes.len() as u64, &mut bytes.as_slice()) => {
                Some(String::from("its content does not have the digest of its name"))
            }
            Ok(_) => None,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(String::from("it is missing")),
            Err(error) => return Err(BackupFailure::io(&format!("read {path}"), &error)),
        };
        match defect {
            Some(defect) => {
                defects.push(format!("pack {path}: {defect}"));
                damaged.insert(id);
            }
            None => {
                report.bytes = report.bytes.saturating_add(size);
                if last.is_some() {
                    report.bytes_again = report.bytes_again.saturating_add(size);
                }
                good.push((id, Timestamp::now().as_second()));
            }
        }
    }
    // Packs that are missing but were not read in this turn.
    let present = list(&opened, FileType::Pack)?;
    damaged.extend(packs.keys().filter(|pack| !present.contains(*pack)).copied());
    if !defects.is_empty() || !damaged.is_empty() {
        let indexed = opened.repository.to_indexed().map_err(&failed)?;
        for (point, snapshot) in &points {
            if !is_whole(&indexed, snapshot, &damaged) {
                report.damaged_points.push(point.id.clone());
            }
        }
    }
    let good = good.iter().filter(|(id, _)| !damaged.contains(id));
    report.read = good.map(|(id, at)| (full_name(id), *at)).collect();
    report.unread = (packs.len().saturating_sub(report.read.len())) as u64;
    report.damaged_packs = damaged.iter().map(full_name).collect();
    report.defects.append(&mut defects);
    report.defects.truncate(MAX_DEFECTS);
    Ok(report)
}

fn list(opened: &OpenRepository, kind: FileType) -> Result<HashSet<Id>, BackupFailure> {
    let failed = opened.failed("list the files");
    Ok(match kind {
        FileType::Pack => opened.repository.list::<PackId>().map_err(&failed)?.map(PackId::into_inner).collect(),
        FileType::Index => opened.repository.list::<IndexId>().map_err(&failed)?.map(IndexId::into_inner).collect(),
        _ => opened.repository.list::<SnapshotId>().map_err(&failed)?.map(SnapshotId::into_inner).collect(),
    })
}

/// Returns true if all trees of a snapshot can be read, and no content is in a damaged pack.
fn is_whole(indexed: &Repository<IndexedFullStatus>, snapshot: &SnapshotFile, damaged: &BTreeSet<Id>) -> bool {
    let mut trees: Vec<TreeId> = vec![snapshot.tree];
    let mut seen: HashSet<TreeId> = HashSet::new();
    while let Some(id) = trees.pop() {
        if !seen.insert(id) {
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
    true
}

/// Removes damaged snapshot, index and pack files, corrects the index, and removes the snapshots of `replaceable` restore points that are no
/// longer complete. The next copy stores their content again.
pub(super) fn repair(store: &OffsiteStore, replaceable: &[String]) -> Result<(), BackupFailure> {
    let opened = OpenRepository::existing(store)?;
    let failed = opened.failed("repair the repository");
    for kind in [FileType::Snapshot, FileType::Index, FileType::Pack] {
        for id in list(&opened, kind)? {
            let path = path_of(kind, &id);
            let removing = |e: std::io::Error| BackupFailure::io(&format!("repair {path}"), &e);
            let bytes = opened.files.read(&path, None).map_err(removing)?;
            if !id.blob_matches_reader(bytes.len() as u64, &mut bytes.as_slice()) {
                opened.files.remove(&path).map_err(removing)?;
            }
        }
    }
    opened.repository.repair_index(&RepairIndexOptions::default(), false).map_err(&failed)?;
    let points = opened.points()?;
    let indexed = opened.repository.to_indexed().map_err(&failed)?;
    let broken: Vec<_> = points
        .iter()
        .filter(|(point, snapshot)| replaceable.contains(&point.id) && !is_whole(&indexed, snapshot, &BTreeSet::new()))
        .map(|(_, snapshot)| snapshot.id)
        .collect();
    if !broken.is_empty() {
        indexed.drop_index().delete_snapshots(&broken).map_err(&failed)?;
    }
    Ok(())
}
