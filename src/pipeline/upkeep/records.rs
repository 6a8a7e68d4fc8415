//! The scheduled work of all environments: their records, and the runs under way.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::{
    super::util::{chain, run_blocking},
    offsite_state::OffsiteState,
    state::BackupState,
};
use crate::{
    config::BackupConfig,
    model::{EnvId, Environment},
};

/// The locks of the cycles of copies, by environment and store.
type CycleLocks = HashMap<(EnvId, String), Arc<tokio::sync::Mutex<()>>>;

/// The scheduled work of all environments.
pub struct Upkeep {
    records: Mutex<HashMap<EnvId, Result<BackupState, String>>>,
    /// The environments whose run is under way or waits for a permit.
    running: Mutex<HashSet<EnvId>>,
    left: Notify,
    permits: Arc<Semaphore>,
    offsite: Mutex<HashMap<EnvId, Result<OffsiteState, String>>>,
    /// The locks of the cycles of off-site copies.
    cycles: Mutex<CycleLocks>,
    copy_requested: Notify,
}

impl Upkeep {
    /// Creates the state of a server that has just started.
    pub fn new(config: &BackupConfig) -> Upkeep {
        let permits = Arc::new(Semaphore::new(config.parallel.into()));
        Upkeep {
            records: Mutex::default(),
            running: Mutex::default(),
            left: Notify::new(),
            permits,
            offsite: Mutex::default(),
            cycles: Mutex::default(),
            copy_requested: Notify::new(),
        }
    }

    /// Marks the run of an environment as under way. Returns false if the run is under way already.
    pub(super) fn enter(&self, environment: EnvId) -> bool {
        self.running.lock().insert(environment)
    }

    /// Reverts [`Upkeep::enter`].
    pub(super) fn leave(&self, environment: EnvId) {
        self.running.lock().remove(&environment);
        self.left.notify_one();
    }

    /// Waits until a run ends.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }

    pub(super) fn is_running(&self, environment: EnvId) -> bool {
        self.running.lock().contains(&environment)
    }

    /// Acquires the permit for scheduled work. Returns `None` if the semaphore is closed, which larder never does.
    pub(super) async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().acquire_owned().await.ok()
    }

    /// Returns the lock that excludes two cycles of off-site copies of one environment to the store with the address `url`.
    pub(super) fn offsite_lock(&self, environment: EnvId, url: String) -> Arc<tokio::sync::Mutex<()>> {
        self.cycles.lock().entry((environment, url)).or_default().clone()
    }

    /// Wakes the tasks that copy restore points.
    pub(super) fn request_copy(&self) {
        self.copy_requested.notify_waiters();
    }

    /// Waits for a request to copy restore points.
    pub(super) async fn copy_requested(&self) {
        self.copy_requested.notified().await;
    }

    /// Returns the record of the off-site copies. The first call reads the record with `read`.
    pub(super) fn offsite(
        &self,
        environment: EnvId,
        read: impl FnOnce() -> Result<OffsiteState, String>,
    ) -> Result<OffsiteState, String> {
        if let Some(known) = self.offsite.lock().get(&environment) {
            return known.clone();
        }
        let found = read();
        self.offsite.lock().entry(environment).or_insert(found).clone()
    }

    /// Changes the record of the off-site copies. The lock is held, so that an older record never replaces a newer record.
    pub(super) fn change_offsite(&self, environment: EnvId, change: impl FnOnce(&mut OffsiteState)) {
        if let Some(Ok(state)) = self.offsite.lock().get_mut(&environment) {
            change(state);
        }
    }

    /// Returns the record of an environment, which is in the file `path`. The first call reads the file, or begins the record of a new
    /// environment. The error is the reason why the record cannot be used.
    pub(super) fn record(&self, environment: &Environment, path: &Path) -> Result<BackupState, String> {
        if let Some(known) = self.records.lock().get(&environment.id) {
            return known.clone();
        }
        let record = run_blocking(|| match BackupState::read(path) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => {
                let record = BackupState::new(Timestamp::now());
                if let Err(error) = record.write(path) {
                    tracing::warn!(environment = environment.title(), error = chain(&error), "cannot record the schedule");
                }
                Ok(record)
            }
            Err(why) => {
                tracing::error!(environment = environment.title(), why, "no scheduled restore points");
                Err(why)
            }
        });
        self.records.lock().entry(environment.id).or_insert(record).clone()
    }

    /// Changes the record of an environment, and writes the record durably. An unusable record is not changed.
    pub(super) fn change(&self, environment: &Environment, path: &Path, change: impl FnOnce(&mut BackupState)) {
        if self.record(environment, path).is_err() {
            return;
        }
        // The lock is held while the file is written, so that an older record never replaces a newer record.
        let mut records = self.records.lock();
        let Some(Ok(record)) = records.get_mut(&environment.id) else { return };
        let before = record.clone();
        change(record);
        if *record != before
            && let Err(error) = run_blocking(|| record.write(path))
        {
            tracing::error!(environment = environment.title(), error = chain(&error), "cannot record the scheduled run");
        }
    }
}
