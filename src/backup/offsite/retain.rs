//! Retention in a repository: removes the restore points that no rule selects, and the data that only they need.

use std::collections::{BTreeMap, BTreeSet};

use larder_points::{Candidate, Keep, plan_retention};
use rustic_core::PruneOptions;

use crate::config::BackupKeep;

use super::{super::error::BackupFailure, OffsiteRetention, OffsiteStore, repository::OpenRepository};

/// Returns the rules without the limit `bytes`, which is for the disk of this machine.
fn rules(keep: &BackupKeep) -> Keep {
    Keep { last: keep.last, daily: keep.daily, weekly: keep.weekly, monthly: keep.monthly, yearly: keep.yearly, bytes: None }
}

/// Returns the ids of the restore points that the rules of a store select, and of the newest restore point. `points` has ids and times of capture,
/// in seconds since 1970.
pub fn select_copies(keep: &BackupKeep, points: impl Iterator<Item = (String, i64)>) -> BTreeSet<String> {
    let points: BTreeMap<String, i64> = points.collect();
    let candidates: Vec<Candidate> = points.into_iter().map(|(id, taken)| Candidate { id, taken }).collect();
    let plan = plan_retention(&candidates, &rules(keep), &[], |_| 0);
    plan.into_iter().filter(|decision| decision.is_kept).map(|decision| decision.id).collect()
}

/// Removes the restore points that neither a rule nor `protected` keeps, and, with `frees`, the data that only they need. An incomplete copy
/// does not tell which data it needs, so no data is removed while such a copy exists. Data that a removed snapshot needed is first marked, and removed by a
/// later run at the earliest 23 hours later, so that another program that uses the repository at the same time loses nothing.
pub(super) fn retain(store: &OffsiteStore, retention: &OffsiteRetention, frees: bool) -> Result<Vec<String>, BackupFailure> {
    let OffsiteRetention { keep, protected } = retention;
    let opened = OpenRepository::existing(store)?;
    let points = opened.points()?;
    let candidates: Vec<Candidate> =
        points.iter().map(|(point, _)| Candidate { id: point.id.clone(), taken: point.taken }).collect();
    let protected: Vec<&str> = protected.iter().map(String::as_str).collect();
    let plan = plan_retention(&candidates, &rules(keep), &protected, |_| 0);
    let is_doomed = |id: &str| plan.iter().any(|decision| decision.id == id && !decision.is_kept);
    let doomed: Vec<_> = points.iter().filter(|(point, _)| is_doomed(&point.id)).collect();
    if !doomed.is_empty() {
        let failed = opened.failed("remove old copies");
        let ids: Vec<_> = doomed.iter().map(|(_, snapshot)| snapshot.id).collect();
        opened.repository.delete_snapshots(&ids).map_err(&failed)?;
        if frees {
            let options = PruneOptions::default();
            let plan = opened.repository.prune_plan(&options).map_err(&failed)?;
            opened.repository.prune(&options, plan).map_err(&failed)?;
        }
    }
    Ok(doomed.into_iter().map(|(point, _)| point.id.clone()).collect())
}
