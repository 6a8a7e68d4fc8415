//! Parts of the settings that have no keys of their own: the settings of the build, required variables, and the time limits of phases.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    quantity::{ByteSize, TimeSpan},
    value::VariableName,
};
use crate::model::Phase;

/// Settings of the build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildSettings {
    /// Variables that are set only for the build.
    pub env: IndexMap<VariableName, String>,
    /// The memory limit of the recipe. [`Settings::on_server`](super::Settings::on_server) sets a missing limit, and lowers a limit above
    /// the server's limit.
    pub memory: Option<ByteSize>,
    /// True if buildpacks keep their cache between builds.
    pub cache: bool,
}

/// A variable that must have a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredVariable {
    /// The name of the variable.
    pub name: VariableName,
    /// True if larder generates a random value for a variable without a value.
    pub generate: bool,
    /// The description of the variable in `app.json`.
    pub description: Option<String>,
}

/// Returns the time limit of a phase for which the recipe sets no limit.
pub(super) fn default_timeout(phase: Phase) -> TimeSpan {
    match phase {
        Phase::Gather | Phase::PreInstall | Phase::Configure | Phase::PostInstall => TimeSpan::minutes(5),
        Phase::Build => TimeSpan::minutes(15),
        Phase::PostBuild | Phase::Bundle | Phase::Deploy | Phase::PostDeploy => TimeSpan::minutes(10),
    }
}
