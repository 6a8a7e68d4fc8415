//! The state of the disk measurements, in a file of its own, because both [`Pipeline`](super::Pipeline) and its operations on the disk use this
//! state.

use std::{collections::HashMap, time::Instant};

use crate::{model::EnvId, space::EnvironmentUsage};

/// The last measurement of each environment.
#[derive(Default)]
pub(super) struct DiskState {
    /// The measurements, each with its begin. One measurement runs at a time.
    pub(super) measured: tokio::sync::Mutex<HashMap<EnvId, (Instant, EnvironmentUsage)>>,
}
