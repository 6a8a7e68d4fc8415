//! Parts of the settings that have no keys of their own: the settings of the build, required variables, and the time limits of phases.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    quantity::{ByteSize, TimeSpan},
    reader::ConfigReader,
    value::VariableName,
    yaml::Node,
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
    /// The variables that only builds get.
    #[serde(default)]
    pub secrets: Vec<VariableName>,
}

/// The maximum number of variables that only builds get.
const MAX_SECRETS: usize = 64;

/// Reads the names of the variables that only builds get.
pub(super) fn read_secrets(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<VariableName> {
    let nodes = reader.list_up_to(node, key, "[NPM_TOKEN, COMPOSER_AUTH]", MAX_SECRETS);
    let name = |node| reader.value(node, key, "the name of a variable, such as NPM_TOKEN", str::parse::<VariableName>);
    nodes.iter().filter_map(name).collect()
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
