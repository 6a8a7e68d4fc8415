//! Copies of restore points in off-site stores: the tasks that start the cycles, and the record of the copies. `offsite_cycle.rs` is one
//! cycle.
//!
//! A cycle follows each restore point, repeats every 24 hours, and is repeated with increasing pauses while the store fails. No deployment
//! waits for a cycle, and no store waits for another store.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;

use super::offsite_state::{OffsiteState, StoreState};
use crate::{
    backup::{self, BackupError, DumpJob, DumpReport, OffsiteJob, OffsitePoint, OffsiteReport, OffsiteStore, PointInfo},
    config::OffsiteConfig,
    model::Environment,
    pipeline::{
        core::Pipeline,
        points::{PointsError, owner},
        util::{chain, run_blocking},
    },
};

/// The pause between two looks at the records.
const POLL: Duration = Duration::from_secs(5);

pub(super) fn confused() -> PointsError {
    BackupError::Confused { role: backup::OFFSITE_WORKER }.into()
}

impl Pipeline {
    /// Copies and checks restore points until the server stops. Each store has a task of its own.
    pub fn run_offsite(&self) {
        for index in 0..self.services().config.backup.offsite.len() {
            let this = self.clone();
            self.0.tasks.spawn(async move {
                loop {
                    for environment in this.environments() {
                        if this.0.stopping.is_cancelled() {
                            return;
                        }
                        this.cycle_if_due(&environment, index).await;
                    }
                    tokio::select! {
                        () = this.0.stopping.cancelled() => return,
                        () = tokio::time::sleep(POLL) => {}
                        () = this.0.upkeep.copy_requested() => {}
                    }
                }
            });
        }
    }

    fn environments(&self) -> Vec<Environment> {
        self.0.queues.lock().values().map(|queue| queue.environment()).collect()
    }

    async fn cycle_if_due(&self, environment: &Environment, index: usize) {
        let Some(store) = self.services().config.backup.offsite.get(index) else { return };
        if self.offsite_record(environment).is_ok() && self.store_record(environment, store).wants_cycle(Timestamp::now()) {
            let cycle = self.offsite_cycle(environment, store, true);
            tokio::select! {
                () = self.0.stopping.cancelled() => {}
                () = cycle => {}
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

    /// Returns the record of one store.
    pub(super) fn store_record(&self, environment: &Environment, store: &OffsiteConfig) -> StoreState {
        let state = self.offsite_record(environment).unwrap_or_default();
        state.stores.get(&store.url.to_string()).cloned().unwrap_or_default()
    }

    pub(super) fn change_store(&self, environment: &Environment, store: &OffsiteConfig, change: impl FnOnce(&mut StoreState)) {
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
            self.change_store(environment, store, |state| {
                state.is_due = true;
                state.requests = state.requests.wrapping_add(1);
            });
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
            self.offsite_cycle(environment, store, false).await;
        }
        self.offsite_record(environment).map_err(PointsError::refused)
    }

    /// Returns the restore points in a store.
    pub(super) async fn offsite_points(&self, store: &OffsiteStore) -> Result<Vec<OffsitePoint>, PointsError> {
        match backup::offsite(store, &OffsiteJob::List).await? {
            OffsiteReport::List(points) => Ok(points),
            _ => Err(confused()),
        }
    }

    /// Lists the restore points of an environment in a store.
    pub async fn list_copies(&self, environment: &Environment, config: &OffsiteConfig) -> Result<Vec<OffsitePoint>, PointsError> {
        let store = backup::open_secret(config, environment, "").map_err(BackupError::from)?;
        self.offsite_points(&store).await
    }

    /// Brings a restore point from a store into the environment, and reads it back.
    pub async fn import_point(
        &self,
        environment: &Environment,
        config: &OffsiteConfig,
        point: String,
    ) -> Result<PointInfo, PointsError> {
        let store = backup::open_secret(config, environment, "").map_err(BackupError::from)?;
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
