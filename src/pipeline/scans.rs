//! The locks and last results of drift scans. Each environment has one lock and one result.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::OwnedMutexGuard;

use crate::{
    drift::Drift,
    model::{EnvId, Live, Slot},
};

/// The result of the last scan of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastScan {
    /// The live release that was scanned.
    pub live: Live,
    /// The time of the scan.
    pub at: Timestamp,
    /// The number of changes that count as drift.
    pub changes: u64,
    /// The number of expected changes.
    pub noise: u64,
}

#[derive(Debug, Default)]
struct ScanState {
    busy: Arc<tokio::sync::Mutex<()>>,
    last: Mutex<Option<LastScan>>,
}

/// The drift scans of all environments. Each environment has at most one running scan, and keeps its last result.
#[derive(Debug, Default)]
pub struct DriftScans(Mutex<HashMap<EnvId, Arc<ScanState>>>);

impl DriftScans {
    fn state(&self, environment: EnvId) -> Arc<ScanState> {
        self.0.lock().entry(environment).or_default().clone()
    }

    /// Waits until no scan of an environment's slots runs. No scan starts while the caller holds the returned guard.
    pub async fn hold(&self, environment: EnvId) -> OwnedMutexGuard<()> {
        self.state(environment).busy.clone().lock_owned().await
    }

    /// Returns the result of the last scan.
    pub fn last(&self, environment: EnvId) -> Option<LastScan> {
        self.state(environment).last.lock().clone()
    }

    /// Drops the result for a slot that is being emptied.
    pub fn forget(&self, environment: EnvId, slot: Slot) {
        self.state(environment).last.lock().take_if(|last| last.live.slot == slot);
    }

    /// Stores the result of a scan.
    pub(super) fn note(&self, environment: EnvId, live: &Live, drift: &Drift) {
        let (changes, noise) = drift.counts();
        let scan = LastScan { live: live.clone(), at: Timestamp::now(), changes, noise };
        *self.state(environment).last.lock() = Some(scan);
    }
}
