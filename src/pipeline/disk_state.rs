//! The state of the disk measurements, in a file of its own, because both [`Pipeline`](super::Pipeline) and its operations on the disk use this
//! state.

use std::{collections::HashMap, time::Instant};

use parking_lot::Mutex;

use crate::{model::EnvId, space::EnvironmentUsage};

/// The last measurement of each environment, and the applications that were stopped on a full disk.
#[derive(Default)]
pub(super) struct DiskState {
    /// The measurements, each with its begin. One measurement runs at a time.
    pub(super) measured: tokio::sync::Mutex<HashMap<EnvId, (Instant, EnvironmentUsage)>>,
    /// The applications that the guard of the disk has stopped, each with the reason.
    pub(super) stopped: Mutex<HashMap<EnvId, String>>,
}
