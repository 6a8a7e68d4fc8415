//! What the steps of a deployment find out, as later steps, an undo or a recovery need it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    config::Settings,
    model::{BuildpackUse, CommitId, Digest, ProcessType},
    runtime::Process,
};

/// The typed fold of all successes. It is journalled whole with every step that changed it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// What the project says about its deployment, merged for this environment; from `gather.recipe`.
    pub settings: Option<Settings>,
    /// The phases for which the project has an executable `.larder/<phase>`; from `gather.source`.
    pub scripts: Vec<String>,
    /// The git tree of the commit; from `gather.source`.
    pub source: Option<CommitId>,
    /// The variables that phase scripts read and change; from `gather.recipe` on.
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// The version tag of the commit; from `gather.source`.
    pub tag: Option<String>,
    /// The patch that is to be put onto the release; from `gather.source`.
    pub patch: Option<String>,
    /// The number of the build; from `bundle.archive`.
    pub build: Option<u64>,
    /// The buildpacks that took part; from `build.compile`.
    pub buildpacks: Vec<BuildpackUse>,
    /// The processes that buildpacks gave; from `build.compile`.
    pub buildpack_processes: Vec<(ProcessType, String)>,
    /// The built tree; from `bundle.archive`.
    pub tree: Option<Digest>,
    /// Size of the archive in bytes; from `bundle.archive`.
    pub archive_bytes: u64,
    /// What will run; from `deploy.slot`.
    pub processes: Vec<Process>,
    /// The environment of all processes; from `deploy.slot`.
    pub env: BTreeMap<String, String>,
}
