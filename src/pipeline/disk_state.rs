//! The state of the disk measurements, in a file of its own, because both [`Pipeline`](super::Pipeline) and its operations on the disk use this
//! state.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use parking_lot::Mutex;

use super::restore_record::RestoreRecord;
use crate::{
    model::{EnvId, Environment},
    space::EnvironmentUsage,
};

/// The last measurement of each environment, and the effects of a full disk.
#[derive(Default)]
pub(super) struct DiskState {
    /// The measurements, each with its begin. One measurement runs at a time.
    pub(super) measured: tokio::sync::Mutex<HashMap<EnvId, (Instant, EnvironmentUsage)>>,
    /// The applications that the guard of the disk has stopped, each with the reason.
    pub(super) stopped: Mutex<HashMap<EnvId, String>>,
    /// The environments with a deployment that could not end because the disk was full.
    pub(super) open: Mutex<BTreeSet<EnvId>>,
    /// The environments whose live release could not be started because the disk was full, each with the time of the last attempt.
    pub(super) unserved: Mutex<HashMap<EnvId, Instant>>,
    /// The restores whose end could not be recorded.
    pub(super) unrecorded: Mutex<HashMap<EnvId, (Environment, RestoreRecord)>>,
}
