//! The repair of a repository with damaged files.

use std::collections::{BTreeSet, HashSet};

use rustic_core::{Id, RepairIndexOptions};

use super::{
    super::error::BackupFailure,
    OffsiteStore,
    check::{defect_of, is_whole},
    repository::OpenRepository,
};

/// The directory of a repository for damaged packs with content that cannot be copied again. restic ignores this directory.
const DAMAGED: &str = "damaged";

/// Removes the damaged files that are still damaged, corrects the index, and removes the snapshots of `replaceable` restore points that are
/// no longer complete. The next copy stores their content again. If other restore points exist, a damaged pack is first stored in the
/// directory [`DAMAGED`], because the rest of its content may be the last copy of a file.
pub(super) fn repair(store: &OffsiteStore, damaged: &[String], replaceable: &[String]) -> Result<(), BackupFailure> {
    let Some(opened) = OpenRepository::open(store, false)? else { return Ok(()) };
    let failed = opened.failed("repair the repository");
    let points = opened.points()?;
    let keeps = points.iter().any(|(point, _)| !replaceable.contains(&point.id));
    for path in damaged {
        let Some((directory, name)) = path.rsplit_once('/') else { continue };
        let Ok(id) = name.parse::<Id>() else { continue };
        match defect_of(&opened, path, &id, None)? {
            None => continue,
            Some(_) if keeps && directory.starts_with("data/") => {
                if let Ok(bytes) = opened.files.read(path, None) {
                    let saved = opened.files.write(&format!("{DAMAGED}/{name}"), &[&bytes]);
                    saved.map_err(|e| BackupFailure::io(&format!("save the damaged file {path}"), &e))?;
                }
            }
            Some(_) => {}
        }
        opened.files.remove(path).map_err(|e| BackupFailure::io(&format!("remove the damaged file {path}"), &e))?;
    }
    opened.repository.repair_index(&RepairIndexOptions::default(), false).map_err(&failed)?;
    let indexed = opened.repository.to_indexed().map_err(&failed)?;
    let mut good = HashSet::new();
    let mut is_broken = |snapshot| !is_whole(&indexed, snapshot, &BTreeSet::new(), &mut good);
    let broken: Vec<_> = points
        .iter()
        .filter(|(point, snapshot)| replaceable.contains(&point.id) && is_broken(snapshot))
        .map(|(_, snapshot)| snapshot.id)
        .collect();
    match opened.state.failure() {
        // The store failed, so a snapshot that could not be read is possibly complete.
        Some(why) => Err(BackupFailure::new(super::super::error::FailureKind::Machine, why)),
        None if broken.is_empty() => Ok(()),
        None => indexed.drop_index().delete_snapshots(&broken).map_err(&failed),
    }
}
