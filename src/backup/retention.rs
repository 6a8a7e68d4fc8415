//! Retention of restore points: the decision of the dump worker which restore points of an environment stay, and why. This file removes
//! nothing.

use larder_points::{Candidate, Keep, Point, Usage, plan_retention};
use serde::{Deserialize, Serialize};

use super::{PointInfo, PointState};
use crate::{config::BackupKeep, model::ReleaseId};

/// The releases whose last restore points stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectedReleases {
    /// The live release and its two predecessors, newest first. The last restore point of a release is the state of the data before the
    /// upgrade to the next release.
    pub recent: Vec<ReleaseId>,
    /// The pinned releases.
    pub pinned: Vec<ReleaseId>,
}

/// The restore points of an environment with the decisions of the retention rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionPlan {
    /// All restore points, newest first.
    pub points: Vec<PointInfo>,
    /// The decision about each restore point, in the order of `points`.
    pub decisions: Vec<PointDecision>,
    /// The disk usage of all restore points in bytes, where shared files count once.
    pub bytes: u64,
    /// The disk usage of the restore points that stay, in bytes, where shared files count once.
    pub kept_bytes: u64,
}

/// The decision about a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointDecision {
    /// True if the restore point stays.
    pub is_kept: bool,
    /// The reasons: the names of rules of `backup.keep`, `newest`, `live release`, `pinned release`, `not verified`, `damaged`, `unusable`.
    /// If a restore point that a rule selected is removed because of `backup.keep.bytes`, also `bytes`.
    pub reasons: Vec<String>,
}

/// Decides about all restore points. Only restore points that were read back compete for the rules, because a damaged restore point must not
/// displace a good one. `infos` describes `points`, and `unusable` describes the restore points that cannot be opened.
pub(super) fn plan(
    points: &[Point],
    infos: Vec<PointInfo>,
    unusable: Vec<PointInfo>,
    used: &Usage,
    keep: &BackupKeep,
    protected: &ProtectedReleases,
) -> RetentionPlan {
    let guarded = guarded(points, &infos, protected);
    let candidates: Vec<Candidate> = points
        .iter()
        .filter(|point| point.is_verified())
        .map(|point| Candidate { id: point.id().to_owned(), taken: point.manifest.taken })
        .collect();
    let rules = Keep {
        last: keep.last,
        daily: keep.daily,
        weekly: keep.weekly,
        monthly: keep.monthly,
        yearly: keep.yearly,
        bytes: keep.bytes.map(|size| size.bytes()),
    };
    let protected: Vec<&str> = guarded.iter().map(|(id, _)| id.as_str()).collect();
    let others: Vec<&str> = points.iter().filter(|point| !point.is_verified()).map(Point::id).collect();
    // The restore points that do not compete use space as well.
    let size_of = |ids: &[&str]| used.bytes_of(&[ids, &others].concat());
    let planned = plan_retention(&candidates, &rules, &protected, size_of);
    let mut plan = RetentionPlan { bytes: used.total, ..RetentionPlan::default() };
    let mut all: Vec<(PointInfo, PointDecision)> = infos
        .into_iter()
        .map(|info| {
            let decision = match planned.iter().find(|decision| decision.id == info.id) {
                Some(found) => PointDecision { is_kept: found.is_kept, reasons: reasons(&found.rules, &info.id, &guarded) },
                None => kept(match info.state {
                    PointState::Unverified => "not verified",
                    PointState::Incomplete(_) => "not complete",
                    _ => "damaged",
                }),
            };
            (info, decision)
        })
        .collect();
    all.extend(unusable.into_iter().map(|info| (info, kept("unusable"))));
    all.sort_by(|(a, _), (b, _)| b.id.cmp(&a.id));
    let staying: Vec<&str> = all.iter().filter(|(_, decision)| decision.is_kept).map(|(info, _)| info.id.as_str()).collect();
    plan.kept_bytes = used.bytes_of(&staying);
    (plan.points, plan.decisions) = all.into_iter().unzip();
    plan
}

fn kept(reason: &str) -> PointDecision {
    PointDecision { is_kept: true, reasons: vec![reason.to_owned()] }
}

/// Returns the reasons of a decision: the names of the rules, with `live release` or `pinned release` in place of `protected`.
fn reasons(rules: &[&'static str], id: &str, guarded: &[(String, &'static str)]) -> Vec<String> {
    let mut all: Vec<String> = rules.iter().filter(|rule| **rule != "protected").map(|rule| (*rule).to_owned()).collect();
    for (_, reason) in guarded.iter().filter(|(guarded, _)| guarded == id) {
        if all.iter().all(|known| known != reason) {
            all.push((*reason).to_owned());
        }
    }
    all
}

/// Returns, for each protected release, the newest of its restore points that were read back, with the reason to keep this restore point.
fn guarded(points: &[Point], infos: &[PointInfo], protected: &ProtectedReleases) -> Vec<(String, &'static str)> {
    let last_of = |release: &ReleaseId| {
        let of_it = |(_, info): &(&Point, &PointInfo)| info.label.as_ref().is_some_and(|label| label.release == Some(*release));
        let good = points.iter().zip(infos).filter(|(point, _)| point.is_verified()).filter(of_it);
        good.max_by_key(|(point, _)| (point.manifest.taken, point.id().to_owned())).map(|(point, _)| point.id().to_owned())
    };
    let recent = protected.recent.iter().filter_map(last_of).map(|id| (id, "live release"));
    recent.chain(protected.pinned.iter().filter_map(last_of).map(|id| (id, "pinned release"))).collect()
}
