//! Parts of the settings that have no keys of their own: the settings of the build, required variables, and the time limits of phases.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    quantity::{ByteSize, TimeSpan},
    reader::ConfigReader,
    secret_file,
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
    /// The keys of the pillar whose encrypted values a release may contain.
    #[serde(default)]
    pub allow_leaks: Vec<String>,
}

impl Default for BuildSettings {
    fn default() -> BuildSettings {
        BuildSettings { env: IndexMap::new(), memory: None, cache: true, secrets: Vec::new(), allow_leaks: Vec::new() }
    }
}

impl BuildSettings {
    /// Returns true if a release may contain the value of a key of the pillar. The name of a variable may be written without `env.`.
    pub fn allows_leak(&self, path: &str) -> bool {
        self.allow_leaks.iter().any(|allowed| allowed == path || path.strip_prefix("env.") == Some(allowed))
    }
}

/// The reference of `build.secrets`.
pub(super) const ABOUT_SECRETS: &str = "Variables of the pillar or the configuration that only builds get, such as the token of a registry (docs/secrets.md). A release \
     that contains one of their values is refused.";

/// The reference of `build.allow_leaks`.
pub(super) const ABOUT_ALLOWED_LEAKS: &str =
    "Encrypted values of the pillar that releases may contain, by their keys (docs/secrets.md).";

/// The maximum number of variables that only builds get.
const MAX_SECRETS: usize = 64;

/// Reads the names of the variables that only builds get.
pub(super) fn read_secrets(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<VariableName> {
    let nodes = reader.list_up_to(node, key, "[NPM_TOKEN, COMPOSER_AUTH]", MAX_SECRETS);
    let name = |node| reader.value(node, key, "the name of a variable, such as NPM_TOKEN", str::parse::<VariableName>);
    nodes.iter().filter_map(name).collect()
}

/// Reads the keys of the pillar whose values a release may contain.
pub(super) fn read_allowed_leaks(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<String> {
    let nodes = reader.list_up_to(node, key, "[maps.public_key]", MAX_SECRETS);
    let name = |node| reader.value(node, key, "a key of the pillar, such as maps.public_key", secret_file::key_of_pillar);
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
