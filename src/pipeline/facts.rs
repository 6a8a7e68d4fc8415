//! The facts of a deployment: the results of its steps that later steps, an undo or a recovery need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    failure::Failure,
    live_app::{DataReturn, Replaced, UpgradeCase, UpgradePlan},
};
use crate::{
    config::Settings,
    model::{BuildpackUse, CommitId, Digest, ProcessType},
    runtime::Process,
};

/// The version of the format of facts in journals. Facts without a version are of version 1.
const VERSION: u64 = 1;

/// The maximum size of a deployment's facts in bytes. An event with the facts must fit in one line of the journal.
const MAX_BYTES: usize = 768 * 1024;

/// The results of a deployment's steps so far. Every step that changes a fact journals all facts. Each field names the steps that set it;
/// in a rollback, `gather.recall` copies the facts of an earlier deployment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The project's settings, merged for this environment; from `gather.source`.
    pub settings: Option<Settings>,
    /// The phases for which the project has an executable `.larder/<phase>`; from `gather.source`.
    pub scripts: Vec<String>,
    /// The project's page for visitors while the application is stopped; from `gather.source`, absent if the project has no page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance_page: Option<String>,
    /// The project's `.larder/pillar.sample.yml`; from `gather.source`, absent if the project has no such file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pillar_sample: Option<String>,
    /// The git tree of the commit; from `gather.source`.
    pub source: Option<CommitId>,
    /// The variables that phase scripts read and change; from `gather.source` on.
    pub variables: serde_json::Map<String, Value>,
    /// The version tag of the commit; from `gather.source`.
    pub tag: Option<String>,
    /// The id of the patch to apply to the release; from `gather.source`.
    pub patch: Option<String>,
    /// The number of the build; from `bundle.archive` or `gather.deliverable`.
    pub build: Option<u64>,
    /// The buildpacks that built the release; from `build.compile` or `gather.deliverable`.
    pub buildpacks: Vec<BuildpackUse>,
    /// The processes that the buildpacks defined; from `build.compile` or `gather.deliverable`.
    pub buildpack_processes: Vec<(ProcessType, String)>,
    /// The files of which the build is made; from `build.compile` in an editable environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<BuildInputs>,
    /// The digest of the built tree; from `bundle.archive` or `gather.deliverable`.
    pub tree: Option<Digest>,
    /// The size of the archive in bytes; from `bundle.archive` or `gather.deliverable`.
    pub archive_bytes: u64,
    /// The total size of the files of the built tree in bytes; from `bundle.archive`.
    #[serde(skip_serializing_if = "is_zero")]
    pub tree_bytes: u64,
    /// The size of the files that the installation did not share with the previous release, in bytes; from `deploy.install`.
    #[serde(skip_serializing_if = "is_zero")]
    pub installed_bytes: u64,
    /// The number of entries of the installed tree; from `deploy.install`.
    #[serde(skip_serializing_if = "is_zero")]
    pub entries: u64,
    /// The processes that will run; from `deploy.slot`.
    pub processes: Vec<Process>,
    /// The environment variables of all processes; from `deploy.slot`.
    pub env: BTreeMap<String, String>,
    /// The protection of the data; from `deploy.hold`, absent without an upgrade command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradePlan>,
    /// The data that a rollback returns; from `deploy.fill`, absent in other deployments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_return: Option<DataReturn>,
    /// The workspace that a deployment in place replaces; from `deploy.stop`, absent in other deployments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Replaced>,
}

/// The files of which a build is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildInputs {
    /// Every file.
    #[default]
    Every,
    /// The files that these patterns select, as in `.gitignore`.
    Files(Vec<String>),
}

impl BuildInputs {
    /// Returns the patterns; `None` selects every file.
    pub fn patterns(self) -> Option<Vec<String>> {
        match self {
            BuildInputs::Every => None,
            BuildInputs::Files(patterns) => Some(patterns),
        }
    }
}

impl From<Option<Vec<String>>> for BuildInputs {
    fn from(patterns: Option<Vec<String>>) -> BuildInputs {
        patterns.map_or(BuildInputs::Every, BuildInputs::Files)
    }
}

/// Returns true for a size that is not known. Such a size is not written.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Facts {
    /// Reads the facts of a journal event; `None` if the step changed no fact.
    ///
    /// # Errors
    /// The facts have a version that this program does not support, or a value that does not fit its type. A default instead of
    /// such a value would be wrong: without processes, for example, recovery would stop the live release.
    pub fn from_journal(value: &Value) -> Result<Option<Facts>, String> {
        if value.is_null() {
            return Ok(None);
        }
        match value.get("version") {
            None => {}
            Some(version) if version.as_u64() == Some(VERSION) => {}
            Some(version) => return Err(format!("facts of version {version} (this larder reads version {VERSION})")),
        }
        serde_json::from_value(value.clone()).map(Some).map_err(|error| error.to_string())
    }

    /// Returns the upgrade command of the recipe or the Procfile, or else the release command of the buildpack. Returns `None` if the
    /// deployment skips the command.
    pub fn release_command(&self) -> Option<String> {
        if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.case == UpgradeCase::Skipped || upgrade.unchanged) {
            return None;
        }
        let own = self.settings.as_ref().and_then(|settings| settings.upgrade_command()).map(|command| command.to_string());
        let of_buildpack = || self.buildpack_processes.iter().find(|(process, _)| process.is_release());
        own.or_else(|| of_buildpack().map(|(_, command)| command.clone()))
    }

    /// Returns the journal value for a step that changed the facts from `before` to `self`: null if the step changed no fact.
    pub fn changed_facts(&self, before: &Facts) -> Result<Value, Failure> {
        if self == before {
            return Ok(Value::Null);
        }
        let mut value = serde_json::to_value(self).map_err(|error| Failure::host(&error))?;
        if let Value::Object(map) = &mut value {
            map.insert(String::from("version"), Value::from(VERSION));
        }
        let bytes = serde_json::to_vec(&value).map_or(0, |bytes| bytes.len());
        if bytes > MAX_BYTES {
            let why = format!("variables and settings take {} KiB in all (at most {} KiB)", bytes >> 10, MAX_BYTES >> 10);
            return Err(
                Failure::pusher(why).hint("reduce `env:`, and the variables that phase scripts write to $LARDER_VARIABLES")
            );
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Blame;

    #[test]
    fn facts_too_large_for_a_line_are_blamed_on_the_project() {
        let before = Facts::default();
        assert_eq!(before.changed_facts(&before), Ok(Value::Null));
        let mut now = Facts::default();
        now.env.insert(String::from("SMALL"), "x".repeat(500 * 1024));
        assert!(now.changed_facts(&before).is_ok_and(|value| value["env"]["SMALL"].is_string()));
        now.env.insert(String::from("LARGE"), "x".repeat(300 * 1024));
        let failure = now.changed_facts(&before).unwrap_err();
        assert!(failure.blame == Blame::Pusher && failure.why.contains("KiB"), "{failure:?}");
    }

    #[test]
    fn facts_of_unknown_version_or_type_are_rejected() {
        let mut facts = Facts { build: Some(7), ..Facts::default() };
        let written = facts.changed_facts(&Facts::default()).unwrap();
        assert_eq!(Facts::from_journal(&written), Ok(Some(facts.clone())));
        let mut old = written.clone();
        old.as_object_mut().unwrap().remove("version");
        assert_eq!(Facts::from_journal(&old), Ok(Some(facts.clone())));
        assert_eq!(Facts::from_journal(&Value::Null), Ok(None));
        facts.build = None;
        for (key, wrong) in [("version", 2.into()), ("build", "seven".into()), ("processes", serde_json::json!({}))] {
            let mut value = written.clone();
            value[key] = wrong;
            assert!(Facts::from_journal(&value).is_err(), "{key}");
        }
    }
}
