//! Retention: chooses the releases to remove.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::model::ReleaseId;

/// The facts about a release that retention depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseSummary {
    /// The release.
    pub id: ReleaseId,
    /// True if the release has been live. A release that was never live counts against a limit only if it is pinned, and only against the
    /// limit `bytes`.
    pub good: bool,
    /// The size of the archive in bytes.
    pub bytes: u64,
}

/// The limits of retention. A release that exceeds any limit is removed, with the exceptions of [`prune_plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The maximum number of good releases.
    pub releases: usize,
    /// The maximum age of a release at the time `now`.
    pub age: Option<Duration>,
    /// The maximum total size of the archives of good and pinned releases, in bytes. The newest releases are kept.
    pub bytes: Option<u64>,
    /// The current time.
    pub now: Timestamp,
}

/// Returns the releases to remove, oldest first: all good releases that exceed a limit of `keep`, except the live release, its predecessor
/// and the pinned releases. Releases that were never live and are not pinned are removed as soon as a newer good release exists. A release
/// that was never live counts against a limit only if it is pinned, and only against the limit `bytes`. `releases` may be in any order.
pub fn prune_plan(
    releases: &[ReleaseSummary],
    live: Option<ReleaseId>,
    previous: Option<ReleaseId>,
    pinned: &[ReleaseId],
    keep: &Keep,
) -> Vec<ReleaseId> {
    let mut newest_first: Vec<ReleaseSummary> = releases.to_vec();
    newest_first.sort_unstable_by_key(|info| std::cmp::Reverse(info.id));
    let newest_good = newest_first.iter().find(|info| info.good).map(|info| info.id);
    let safe: BTreeSet<ReleaseId> = pinned.iter().copied().chain(live).chain(previous).collect();
    // Releases that must stay are counted first, whatever their age.
    let mut left = keep.bytes.map(|bytes| {
        let taken =
            newest_first.iter().filter(|info| safe.contains(&info.id)).map(|info| info.bytes).fold(0, u64::saturating_add);
        bytes.saturating_sub(taken)
    });
    let mut full = false;
    let mut fits = |info: &ReleaseSummary| {
        let Some(left) = left.as_mut().filter(|_| !safe.contains(&info.id)) else { return true };
        // A small old release does not stay if a newer release was removed.
        full |= info.bytes > *left;
        *left = if full { 0 } else { left.saturating_sub(info.bytes) };
        !full
    };
    let young = |info: &ReleaseSummary| {
        let age = keep.now.duration_since(info.id.created());
        keep.age.is_none_or(|most| age <= SignedDuration::try_from(most).unwrap_or(SignedDuration::MAX))
    };
    let mut kept = safe.clone();
    let good = newest_first.iter().filter(|info| info.good).take(keep.releases);
    kept.extend(good.filter(|info| young(info) && fits(info)).map(|info| info.id));
    // Releases that are newer than the newest good release are kept: such a release may still go live, or has just failed and may be
    // examined.
    kept.extend(
        newest_first.iter().filter(|info| !info.good && newest_good.is_none_or(|good| info.id > good)).map(|info| info.id),
    );
    newest_first.iter().rev().map(|info| info.id).filter(|id| !kept.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(second: i64) -> ReleaseId {
        ReleaseId::new(jiff::Timestamp::from_second(second).unwrap())
    }

    fn keep(releases: usize) -> Keep {
        Keep { releases, age: None, bytes: None, now: Timestamp::from_second(11_000).unwrap() }
    }

    /// Returns ten releases of 100 bytes, one every thousand seconds. The releases with an index in `good` have been live.
    fn ten(good: &[usize]) -> (Vec<ReleaseId>, Vec<ReleaseSummary>) {
        let ids: Vec<ReleaseId> = (1..=10).map(|n| id(n * 1000)).collect();
        let infos = ids.iter().enumerate().map(|(n, id)| ReleaseSummary { id: *id, good: good.contains(&n), bytes: 100 });
        (ids.clone(), infos.collect())
    }

    const ALL: [usize; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

    #[test]
    fn prune_plan_keeps_needed_releases_and_does_not_count_failed_releases() {
        let (ids, all) = ten(&ALL);
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &keep(3)), ids[..7]);
        // After a rollback, an old release is live. The predecessor of the live release and a pinned release stay as well.
        let gone = prune_plan(&all, Some(ids[2]), Some(ids[9]), &[ids[0]], &keep(2));
        assert_eq!(gone, [ids[1], ids[3], ids[4], ids[5], ids[6], ids[7]]);
        // Failed releases after the newest good release do not displace a good release. A release that failed before the newest good
        // release is removed.
        let (ids, some) = ten(&[0, 2]);
        assert_eq!(prune_plan(&some, Some(ids[2]), Some(ids[0]), &[], &keep(2)), [ids[1]]);
        assert_eq!(prune_plan(&ten(&[]).1, None, None, &[], &keep(1)), []);
        assert_eq!(prune_plan(&[], Some(ids[0]), None, &[], &keep(0)), []);
    }

    #[test]
    fn prune_plan_removes_old_releases_that_are_not_needed() {
        let (ids, all) = ten(&ALL);
        let rule = Keep { age: Some(Duration::from_secs(3500)), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..7]);
        assert_eq!(prune_plan(&all, Some(ids[0]), Some(ids[3]), &[ids[1]], &rule), [ids[2], ids[4], ids[5], ids[6]]);
        // If the clock was set back, no release is too old.
        let rule = Keep { age: Some(Duration::from_secs(1)), now: Timestamp::from_second(1).unwrap(), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), None, &[], &rule), []);
    }

    #[test]
    fn prune_plan_removes_the_oldest_releases_beyond_the_size() {
        let (ids, mut all) = ten(&ALL);
        let rule = Keep { bytes: Some(450), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..6]);
        // Releases that must stay count before all other releases. Such a release stays whatever its age, and even beyond the limit.
        assert_eq!(prune_plan(&all, Some(ids[0]), Some(ids[1]), &[ids[2]], &rule), ids[3..9]);
        let nothing = Keep { bytes: Some(0), ..keep(100) };
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[ids[0]], &nothing), ids[1..8]);
        // With a release that is too large, all older releases are removed, so that there are no gaps.
        all[6].bytes = 1000;
        assert_eq!(prune_plan(&all, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..7]);
        // Failed releases do not count against the size.
        let (ids, some) = ten(&[7, 8, 9]);
        let rule = Keep { bytes: Some(300), ..keep(100) };
        assert_eq!(prune_plan(&some, Some(ids[9]), Some(ids[8]), &[], &rule), ids[..7]);
    }
}
