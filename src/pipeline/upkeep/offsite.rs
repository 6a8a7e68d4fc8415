//! Copies of restore points in off-site stores. A cycle of one environment and one store copies the restore points that the store does not
//! have, checks the store by reading, and removes the copies that no rule of `backup.keep` selects.
//!
//! A cycle follows each restore point, repeats every 24 hours, and is repeated with increasing pauses while the store fails. No deployment
//! waits for a cycle.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::offsite_state::{CopyState, OffsiteState, StoreState};
use super::state::Reading;
use crate::{
    backup::{
        self, BackupError, DumpJob, DumpReport, OffsiteCheck, OffsiteJob, OffsitePoint, OffsiteReport, OffsiteStore, PointInfo,
        PointState,
    },
    config::OffsiteConfig,
    model::{Environment, sanitise_line},
    pipeline::{
        core::Pipeline,
        fault,
        observe::BackupNews,
        points::{PointsError, owner},
        util::{chain, run_blocking},
    },
};

/// The pause between two looks at the records.
const POLL: Duration = Duration::from_secs(5);

/// The first pause after a failed cycle. Each further failure doubles the pause, up to [`MAX_PAUSE`].
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// The maximum pause after a failed cycle.
const MAX_PAUSE: SignedDuration = SignedDuration::from_hours(6);

fn confused() -> PointsError {
    BackupError::Confused { role: backup::OFFSITE_WORKER }.into()
}

impl Pipeline {
    /// Copies and checks restore points until the server stops.
    pub fn run_offsite(&self) {
        if self.services().config.backup.offsite.is_empty() {
            return;
        }
        let this = self.clone();
        self.0.tasks.spawn(async move {
            loop {
                for environment in this.environments() {
                    for index in 0..this.services().config.backup.offsite.len() {
                        if this.0.stopping.is_cancelled() {
                            return;
                        }
                        this.cycle_if_due(&environment, index).await;
                    }
                }
                tokio::select! {
                    () = this.0.stopping.cancelled() => return,
                    () = tokio::time::sleep(POLL) => {}
                    () = this.0.upkeep.copy_requested() => {}
                }
            }
        });
    }

    fn environments(&self) -> Vec<Environment> {
        self.0.queues.lock().values().map(|queue| queue.environment()).collect()
    }

    async fn cycle_if_due(&self, environment: &Environment, index: usize) {
        let Some(store) = self.services().config.backup.offsite.get(index) else { return };
        let Ok(state) = self.offsite_record(environment) else { return };
        let known = state.stores.get(&store.url.to_string());
        if known.cloned().unwrap_or_default().wants_cycle(Timestamp::now()) {
            let cycle = self.offsite_cycle(environment, store);
            tokio::select! {
                () = self.0.stopping.cancelled() => {}
                _ = cycle => {}
            }
        }
    }

    fn offsite_record_path(&self, environment: &Environment) -> PathBuf {
        self.backup_record_path(environment).with_file_name("offsite.json")
    }

    /// Returns the record of the copies of an environment; the error is the reason why the record cannot be used.
    pub fn offsite_record(&self, environment: &Environment) -> Result<OffsiteState, String> {
        let path = self.offsite_record_path(environment);
        self.0.upkeep.offsite(environment.id, || run_blocking(|| OffsiteState::read(&path)))
    }

    fn change_store(&self, environment: &Environment, store: &OffsiteConfig, change: impl FnOnce(&mut StoreState)) {
        let path = self.offsite_record_path(environment);
        if self.offsite_record(environment).is_err() {
            return;
        }
        let url = store.url.to_string();
        self.0.upkeep.change_offsite(environment.id, |state| {
            let before = state.clone();
            change(state.stores.entry(url).or_default());
            if *state != before
                && let Err(error) = run_blocking(|| state.write(&path))
            {
                tracing::error!(environment = environment.title(), error = chain(&error), "cannot record the off-site copies");
            }
        });
    }

    /// Requests a copy of the restore points of an environment. The request is durable.
    pub(in crate::pipeline) fn request_copies(&self, environment: &Environment) {
        for store in &self.services().config.backup.offsite {
            self.change_store(environment, store, |state| state.is_due = true);
        }
        self.0.upkeep.request_copy();
    }

    /// Copies and checks the restore points of an environment now, in each store.
    pub async fn copy_points(&self, environment: &Environment) -> Result<OffsiteState, PointsError> {
        let stores = &self.services().config.backup.offsite;
        if stores.is_empty() {
            return Err(PointsError::refused_with(
                String::from("cannot copy restore points: the server file names no store"),
                "add backup.offsite to the server file, and restart larder",
            ));
        }
        for store in stores {
            self.offsite_cycle(environment, store).await;
        }
        self.offsite_record(environment).map_err(PointsError::refused)
    }

    /// Runs a cycle, and records and announces its result.
    async fn offsite_cycle(&self, environment: &Environment, store: &OffsiteConfig) {
        let lock = self.0.upkeep.offsite_lock(environment.id);
        let _locked = lock.lock().await;
        let (title, url) = (environment.title(), store.url.to_string());
        self.change_store(environment, store, |state| state.is_due = true);
        let before = self.offsite_record(environment).ok().and_then(|state| state.stores.get(&url).cloned()).unwrap_or_default();
        let result = self.cycle_steps(environment, store, &before).await;
        let now = Timestamp::now();
        let id = |what: &str| format!("backup.{}.offsite.{what}.{now}", environment.id.0);
        match result {
            Ok(found) => {
                let defects = found.defects.clone();
                self.change_store(environment, store, |state| {
                    (state.is_due, state.checked, state.failure, state.failures, state.retry) =
                        (!found.defects.is_empty(), Some(now), None, 0, None);
                    if !found.defects.is_empty() {
                        // The next cycle repairs the store. If that does not help, the pauses increase.
                        state.failures = before.failures.saturating_add(1);
                        state.retry = now.checked_add(pause(state.failures)).ok();
                    }
                    state.defects = found.defects;
                });
                if !defects.is_empty() && defects != before.defects {
                    let first = defects.first().map(String::as_str).unwrap_or_default();
                    for point in &found.damaged_points {
                        let news = BackupNews::Damaged { point: point.clone(), why: format!("its copy in {url}: {first}") };
                        self.announce_backup(environment, id(point), news);
                    }
                    if found.damaged_points.is_empty() {
                        let why = format!("the off-site store {url} is damaged: {first}");
                        self.announce_backup(environment, id("damaged"), BackupNews::Failed { why });
                    }
                }
                tracing::info!(environment = title, store = url, defects = defects.len(), "off-site copies checked");
            }
            Err(error) => {
                let why = sanitise_line(&chain(&error));
                let is_known = before.failure.is_some();
                self.change_store(environment, store, |state| {
                    state.failures = state.failures.saturating_add(1);
                    state.retry = now.checked_add(pause(state.failures)).ok();
                    state.failure = Some(why.clone());
                });
                if is_known {
                    tracing::warn!(environment = title, store = url, why, "off-site copies failed again");
                } else {
                    let news = BackupNews::Failed { why: format!("the copies to {url} failed: {why}") };
                    self.announce_backup(environment, id("failed"), news);
                }
            }
        }
    }

    async fn cycle_steps(
        &self,
        environment: &Environment,
        config: &OffsiteConfig,
        before: &StoreState,
    ) -> Result<OffsiteCheck, PointsError> {
        let store = backup::open_secret(config, environment).map_err(BackupError::from)?;
        let local = self.copyable(environment).await?;
        if !before.defects.is_empty() {
            let replaceable = local.iter().map(|info| info.id.clone()).collect();
            backup::offsite(&store, &OffsiteJob::Repair { replaceable }).await?;
        }
        let mut present = self.offsite_points(&store).await?;
        if local.is_empty() && present.is_empty() {
            return Ok(OffsiteCheck::default());
        }
        let known: BTreeSet<String> = present.iter().map(|point| point.id.clone()).collect();
        // The oldest restore point first, so that each copy finds the content of the previous one.
        for info in local.iter().rev().filter(|info| !known.contains(&info.id)) {
            fault::delay("offsite.copy").await;
            match backup::offsite_copy(&self.backup(environment), &store, info.id.clone(), owner(environment)).await {
                Ok(OffsiteReport::Copied(point)) => {
                    let copy = CopyState { copied: Timestamp::now(), verified: None, is_damaged: false };
                    self.change_store(environment, config, |state| {
                        state.copies.insert(point.id.clone(), copy);
                    });
                    present.push(point);
                }
                Ok(_) => return Err(confused()),
                // A person or the schedule removed the restore point meanwhile.
                Err(BackupError::Failed(failure)) if failure.kind == backup::FailureKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            fault::in_upkeep("copied");
        }
        // What the schedule keeps here stays in the store as well.
        let (expected, removed) = self.retain_copies(environment, &store, &present).await?;
        let found = self.check_store(environment, config, &store, before, &expected, &removed).await?;
        Ok(found)
    }

    /// Returns the restore points of this machine that belong into a store, newest first.
    async fn copyable(&self, environment: &Environment) -> Result<Vec<PointInfo>, PointsError> {
        let plan = self.plan_points(environment).await?;
        let points = plan.points.into_iter().zip(plan.decisions);
        let is_good = |info: &PointInfo| matches!(info.state, PointState::Unverified | PointState::Verified(_));
        Ok(points.filter(|(info, decision)| decision.is_kept && is_good(info)).map(|(info, _)| info).collect())
    }

    async fn offsite_points(&self, store: &OffsiteStore) -> Result<Vec<OffsitePoint>, PointsError> {
        match backup::offsite(store, &OffsiteJob::List).await? {
            OffsiteReport::List(points) => Ok(points),
            _ => Err(confused()),
        }
    }

    /// Applies the rules of retention. Returns the copies that must exist, and the copies that were removed.
    async fn retain_copies(
        &self,
        environment: &Environment,
        store: &OffsiteStore,
        present: &[OffsitePoint],
    ) -> Result<(Vec<String>, Vec<String>), PointsError> {
        let protected = self.copyable(environment).await?.into_iter().map(|info| info.id).collect();
        let keep = self.services().config.backup.keep;
        let removed = match backup::offsite(store, &OffsiteJob::Retain { keep, protected }).await? {
            OffsiteReport::Removed(removed) => removed,
            _ => return Err(confused()),
        };
        let ids = present.iter().map(|point| point.id.clone()).filter(|id| !removed.contains(id));
        Ok((ids.collect(), removed))
    }

    async fn check_store(
        &self,
        environment: &Environment,
        config: &OffsiteConfig,
        store: &OffsiteStore,
        before: &StoreState,
        present: &[String],
        removed: &[String],
    ) -> Result<OffsiteCheck, PointsError> {
        let now = Timestamp::now();
        let mut expected: BTreeSet<String> = before.copies.keys().filter(|id| !removed.contains(id)).cloned().collect();
        expected.extend(present.iter().cloned());
        let mut reading = before.reading.unwrap_or(Reading { since: now, bytes: 0 });
        let budget = config.verify.bytes();
        let left = if reading.may_read(budget, now) { budget.saturating_sub(reading.bytes) } else { 0 };
        let job = OffsiteJob::Check { read: before.read.clone(), budget: left, expected: expected.iter().cloned().collect() };
        let found = match backup::offsite(store, &job).await? {
            OffsiteReport::Checked(found) => found,
            _ => return Err(confused()),
        };
        reading.bytes = reading.bytes.saturating_add(found.bytes_again);
        self.change_store(environment, config, |state| {
            state.read = found.read.clone();
            state.reading = Some(reading);
            state.copies.retain(|id, _| expected.contains(id));
            for id in &expected {
                let copy = CopyState { copied: now, verified: None, is_damaged: false };
                let copy = state.copies.entry(id.clone()).or_insert(copy);
                copy.is_damaged = found.damaged_points.contains(id);
                let is_read = !copy.is_damaged && found.unread == 0;
                // A copy is verified by the last of its packs, so all packs count.
                copy.verified =
                    if is_read { copy.verified.or(Some(Timestamp::now())) } else { copy.verified.filter(|_| !copy.is_damaged) };
            }
        });
        Ok(found)
    }

    /// Lists the restore points of an environment in a store.
    pub async fn list_copies(&self, environment: &Environment, config: &OffsiteConfig) -> Result<Vec<OffsitePoint>, PointsError> {
        let store = backup::open_secret(config, environment).map_err(BackupError::from)?;
        self.offsite_points(&store).await
    }

    /// Brings a restore point from a store into the environment, and reads it back.
    pub async fn import_point(
        &self,
        environment: &Environment,
        config: &OffsiteConfig,
        point: String,
    ) -> Result<PointInfo, PointsError> {
        let store = backup::open_secret(config, environment).map_err(BackupError::from)?;
        let (_queue, _locked) = self.lock_points(environment)?;
        let id = backup::offsite_fetch(&self.backup(environment), &store, point, owner(environment)).await?;
        match backup::dump(&self.backup(environment), &DumpJob::Verify { point: id }).await? {
            DumpReport::Point(info, _) => {
                self.refresh_points(environment).await;
                Ok(*info)
            }
            _ => Err(confused()),
        }
    }
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
    fn cycle_begins_after_a_restore_point_a_day_or_a_pause() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-05-02T02:00:00Z");
        assert!(StoreState::default().wants_cycle(now));
        let checked = StoreState { checked: Some(at("2026-05-02T01:00:00Z")), ..StoreState::default() };
        assert!(!checked.wants_cycle(now) && checked.wants_cycle(at("2026-05-03T01:00:00Z")));
        let due = StoreState { is_due: true, ..checked };
        assert!(due.wants_cycle(now));
        let failed = StoreState { retry: Some(at("2026-05-02T02:01:00Z")), ..due };
        assert!(!failed.wants_cycle(now) && failed.wants_cycle(at("2026-05-02T02:01:00Z")));
    }
}
