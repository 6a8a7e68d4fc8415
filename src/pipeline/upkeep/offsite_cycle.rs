//! One cycle of one environment and one store: damaged files are removed, the restore points that the store does not have are copied, the
//! store is checked by reading, and the copies that no rule of `backup.keep` selects are removed.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::{
    offsite::confused,
    offsite_state::{CopyState, StoreState},
    state::Reading,
};
use crate::{
    backup::{
        self, BackupError, FailureKind, OffsiteCheck, OffsiteJob, OffsitePoint, OffsiteReport, OffsiteRetention, OffsiteStore,
        PointInfo, PointState,
    },
    config::OffsiteConfig,
    model::{Environment, sanitise_line},
    pipeline::{
        core::Pipeline,
        fault,
        observe::BackupNews,
        points::{PointsError, owner},
        util::chain,
    },
};

/// The first pause after a failed cycle. Each further failure doubles the pause, up to [`MAX_PAUSE`].
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// The maximum pause after a failed cycle.
const MAX_PAUSE: SignedDuration = SignedDuration::from_hours(6);

/// The time for which a lost copy is shown: a copy that is missing, and whose restore point is no longer on this machine.
const LOST_SHOWN: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The time for which the last copy of another server prevents the removal of copies. A project that has moved to this server has such
/// copies as well.
const RIVAL_SHOWN: SignedDuration = SignedDuration::from_hours(48);

/// The result of a cycle that reached the store.
struct CycleResult {
    found: OffsiteCheck,
    /// True if the next cycle can repair a defect.
    is_repairable: bool,
    /// The last restore point that another server has copied to the same repository.
    rival: Option<String>,
}

impl Pipeline {
    /// Runs a cycle, and records and announces its result.
    /// With `only_if_due`, a cycle that has become unnecessary while another cycle was under way does not begin.
    pub(super) async fn offsite_cycle(&self, environment: &Environment, store: &OffsiteConfig, only_if_due: bool) {
        let lock = self.0.upkeep.offsite_lock(environment.id, store.url.to_string());
        let _locked = lock.lock().await;
        if only_if_due && !self.store_record(environment, store).wants_cycle(Timestamp::now()) {
            return;
        }
        let (title, url) = (environment.title(), store.url.to_string());
        self.change_store(environment, store, |state| state.is_due = true);
        let before = self.store_record(environment, store);
        let result = self.cycle_steps(environment, store, &before).await;
        let now = Timestamp::now();
        let failure = match result {
            Ok(result) => {
                let why = result.found.interrupted.clone();
                self.announce_defects(environment, &url, &before, &result, now);
                tracing::info!(environment = title, store = url, defects = result.found.defects.len(), "off-site copies checked");
                self.change_store(environment, store, |state| conclude(state, &before, result, now));
                why
            }
            Err(error) => {
                if is_unusable(&error) {
                    self.change_store(environment, store, |state| {
                        state.copies.values_mut().for_each(|copy| (copy.is_damaged, copy.verified) = (true, None));
                    });
                }
                Some(chain(&error))
            }
        };
        let Some(why) = failure.map(|why| sanitise_line(&why)) else { return };
        self.change_store(environment, store, |state| {
            state.is_due = true;
            state.failures = before.failures.saturating_add(1);
            state.retry = now.checked_add(pause(state.failures)).ok();
            state.failure = Some(why.clone());
        });
        if before.failure.is_some() {
            tracing::warn!(environment = title, store = url, why, "off-site copies failed again");
        } else {
            let id = format!("backup.{}.offsite.failed.{now}", environment.id.0);
            self.announce_backup(environment, id, BackupNews::Failed { why: format!("the copies to {url} failed: {why}") });
        }
    }

    /// Announces the defects that were not known before.
    fn announce_defects(&self, environment: &Environment, url: &str, before: &StoreState, result: &CycleResult, now: Timestamp) {
        let id = |what: &str| format!("backup.{}.offsite.{what}.{now}", environment.id.0);
        if let Some(point) = result.rival.as_ref().filter(|_| before.rival.is_none()) {
            let why =
                format!("another server has copied {point} to the same repository in {url}; no copy is removed for 48 hours");
            self.announce_backup(environment, id("rival"), BackupNews::Failed { why });
        }
        let found = &result.found;
        let Some(first) = found.defects.first() else { return };
        let is_new = |point: &&String| !before.copies.get(*point).is_some_and(|copy| copy.is_damaged);
        let new: Vec<&String> = found.damaged_points.iter().chain(&found.missing_points).filter(is_new).collect();
        for point in &new {
            let why = format!("its copy in {url}: {first}");
            self.announce_backup(environment, id(point), BackupNews::Damaged { point: (*point).clone(), why });
        }
        if new.is_empty() && found.defects != before.defects {
            let why = format!("the off-site store {url} is damaged: {first}");
            self.announce_backup(environment, id("damaged"), BackupNews::Failed { why });
        }
    }

    async fn cycle_steps(
        &self,
        environment: &Environment,
        config: &OffsiteConfig,
        before: &StoreState,
    ) -> Result<CycleResult, PointsError> {
        let writer = self.offsite_record(environment).map(|state| state.writer).map_err(PointsError::refused)?;
        let store = backup::open_secret(config, environment, &writer).map_err(BackupError::from)?;
        let mut local = self.copyable(environment).await?;
        if before.is_repairable {
            let replaceable = local.iter().map(|info| info.id.clone()).collect();
            backup::offsite(&store, &OffsiteJob::Repair { damaged: before.damaged_files.clone(), replaceable }).await?;
        }
        let mut present = self.offsite_points(&store).await?;
        if local.is_empty() && present.is_empty() && before.copies.is_empty() {
            return Ok(CycleResult { found: OffsiteCheck::default(), is_repairable: false, rival: None });
        }
        let wanted = config.keep.as_ref().map(|keep| {
            let here = local.iter().filter_map(|info| Some((info.id.clone(), info.taken?)));
            backup::select_copies(keep, here.chain(present.iter().map(|point| (point.id.clone(), point.taken))))
        });
        let is_wanted = |id: &String| wanted.as_ref().is_none_or(|wanted| wanted.contains(id));
        local.retain(|info| is_wanted(&info.id));
        let known: BTreeSet<String> = present.iter().map(|point| point.id.clone()).collect();
        // The oldest restore point first, so that each copy finds the content of the previous one.
        for info in local.iter().rev().filter(|info| !known.contains(&info.id)) {
            fault::delay("offsite.copy").await;
            match backup::offsite_copy(&self.backup(environment), &store, info.id.clone(), owner(environment)).await {
                Ok(OffsiteReport::Copied(point)) => {
                    let copy = CopyState { copied: Timestamp::now(), verified: None, is_damaged: false, lost: None };
                    self.change_store(environment, config, |state| {
                        state.copies.insert(point.id.clone(), copy);
                    });
                    present.push(point);
                }
                Ok(_) => return Err(confused()),
                // A person or the schedule removed the restore point meanwhile.
                Err(BackupError::Failed(failure)) if failure.kind == FailureKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            fault::in_upkeep("copied");
        }
        let rival = rival(&present, &writer, Timestamp::now());
        let local: BTreeSet<String> =
            self.copyable(environment).await?.into_iter().map(|info| info.id).filter(&is_wanted).collect();
        // While two servers use one repository, neither removes the copies of the other. Without rules of the store, each restore point that is
        // kept on this machine stays in the store.
        let keep = config.keep.unwrap_or(self.services().config.backup.keep);
        let retention = rival.is_none().then(|| OffsiteRetention { keep, protected: local.iter().cloned().collect() });
        let found = self.check_store(environment, config, &store, &present, &local, retention).await?;
        let is_local = |ids: &[String]| ids.iter().any(|id| local.contains(id));
        let is_repairable = !found.is_sound || is_local(&found.damaged_points) || is_local(&found.missing_points);
        Ok(CycleResult { found, is_repairable, rival })
    }

    /// Returns the restore points of this machine that belong into a store, newest first.
    async fn copyable(&self, environment: &Environment) -> Result<Vec<PointInfo>, PointsError> {
        let plan = self.plan_points(environment).await?;
        let points = plan.points.into_iter().zip(plan.decisions);
        let is_good = |info: &PointInfo| matches!(info.state, PointState::Unverified | PointState::Verified(_));
        Ok(points.filter(|(info, decision)| decision.is_kept && is_good(info)).map(|(info, _)| info).collect())
    }

    async fn check_store(
        &self,
        environment: &Environment,
        config: &OffsiteConfig,
        store: &OffsiteStore,
        present: &[OffsitePoint],
        local: &BTreeSet<String>,
        retention: Option<OffsiteRetention>,
    ) -> Result<OffsiteCheck, PointsError> {
        let now = Timestamp::now();
        let known = self.store_record(environment, config);
        let mut expected: BTreeSet<String> = known.copies.keys().cloned().collect();
        expected.extend(present.iter().map(|point| point.id.clone()));
        let mut reading = known.reading.unwrap_or(Reading { since: now, bytes: 0 });
        let budget = config.verify.bytes();
        let left = if reading.may_read(budget, now) { budget.saturating_sub(reading.bytes) } else { 0 };
        let job = OffsiteJob::Check { read: known.read, budget: left, expected: expected.iter().cloned().collect(), retention };
        let found = match backup::offsite(store, &job).await? {
            OffsiteReport::Checked(found) => found,
            _ => return Err(confused()),
        };
        reading.bytes = reading.bytes.saturating_add(found.bytes_again);
        let now = Timestamp::now();
        self.change_store(environment, config, |state| {
            state.read = found.read.clone();
            state.reading = Some(reading);
            for id in &expected {
                let new = CopyState { copied: now, verified: None, is_damaged: false, lost: None };
                let copy = state.copies.entry(id.clone()).or_insert(new);
                let is_missing = found.missing_points.contains(id);
                copy.is_damaged = is_missing || found.damaged_points.contains(id);
                copy.lost = (is_missing && !local.contains(id)).then(|| copy.lost.unwrap_or(now));
                // A copy is verified by the last of its packs, so all packs count.
                let is_read = found.unread == 0 && found.interrupted.is_none();
                copy.verified = match copy.is_damaged {
                    true => None,
                    false if is_read => copy.verified.or(Some(now)),
                    false => copy.verified,
                };
            }
            let is_shown = |copy: &CopyState| copy.lost.is_none_or(|lost| now.duration_since(lost) < LOST_SHOWN);
            state.copies.retain(|id, copy| expected.contains(id) && !found.removed.contains(id) && is_shown(copy));
        });
        Ok(found)
    }
}

/// Returns true if the repository cannot be used at all, so that no copy can be restored.
fn is_unusable(error: &PointsError) -> bool {
    matches!(error, PointsError::Worker(BackupError::Failed(failure)) if failure.kind == FailureKind::Damaged)
}

/// Records the result of a cycle that reached the store.
fn conclude(state: &mut StoreState, before: &StoreState, result: CycleResult, now: Timestamp) {
    let CycleResult { found, is_repairable, rival } = result;
    // A restore point that was taken during this cycle is copied by the next cycle.
    state.is_due = is_repairable || state.requests != before.requests;
    (state.failure, state.failures, state.retry) = (None, 0, None);
    if is_repairable {
        // The next cycle repairs the store. If that does not help, the pauses increase.
        state.failures = before.failures.saturating_add(1);
        state.retry = now.checked_add(pause(state.failures)).ok();
    }
    (state.is_repairable, state.rival) = (is_repairable, rival);
    (state.defects, state.damaged_files) = (found.defects, found.damaged_files);
    if found.interrupted.is_none() {
        state.checked = Some(now);
    }
}

/// Returns the last restore point that another server has copied to the repository within [`RIVAL_SHOWN`].
fn rival(present: &[OffsitePoint], writer: &str, now: Timestamp) -> Option<String> {
    let recent = now.as_second().saturating_sub(RIVAL_SHOWN.as_secs());
    let is_other = |point: &&OffsitePoint| point.writer.as_deref().is_some_and(|other| other != writer);
    let last = present.iter().filter(is_other).max_by_key(|point| point.copied)?;
    (last.copied > recent).then(|| last.id.clone())
}

/// Returns the pause after a number of failures.
fn pause(failures: u32) -> SignedDuration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_doubles_up_to_its_limit() {
        let pauses: Vec<i64> = [1, 2, 3, 9, 10, 4_000_000].into_iter().map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(pauses, [60, 120, 240, 15_360, 21_600, 21_600]);
    }

    #[test]
    fn server_that_copied_lately_is_found() {
        let now = Timestamp::now();
        let point = |id: &str, age: i64, writer: Option<&str>| OffsitePoint {
            id: id.to_owned(),
            taken: 0,
            copied: now.as_second() - age * 3600,
            snapshot: String::new(),
            added: 0,
            writer: writer.map(str::to_owned),
        };
        let both = [point("a", 9, Some("own")), point("b", 5, Some("other")), point("c", 3, Some("own"))];
        assert_eq!(rival(&both, "own", now).as_deref(), Some("b"));
        assert_eq!(rival(&both, "other", now).as_deref(), Some("c"));
        let moved = [point("a", 50, Some("other")), point("b", 5, Some("own"))];
        assert_eq!(rival(&moved, "own", now), None, "the project has moved to this server");
        assert_eq!(rival(&[point("a", 9, Some("own")), point("b", 5, None)], "own", now), None);
    }

    #[test]
    fn restore_point_that_is_taken_during_a_cycle_is_copied_by_the_next_cycle() {
        let (now, before) = (Timestamp::now(), StoreState::default());
        let good = || CycleResult { found: OffsiteCheck::default(), is_repairable: false, rival: None };
        let mut state = StoreState { is_due: true, ..StoreState::default() };
        conclude(&mut state, &before, good(), now);
        assert!(!state.is_due && !state.wants_cycle(now));
        let mut state = StoreState { is_due: true, requests: 1, ..StoreState::default() };
        conclude(&mut state, &before, good(), now);
        assert!(state.wants_cycle(now));
    }
}
