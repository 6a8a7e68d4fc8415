//! The messages between the server and the build worker: the server sends a job, and the worker answers with a report.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use super::deploy_key::BuildKey;
use crate::{
    config::BuildpackRef,
    model::{Blame, BuildpackUse, Phase, ProcessType},
};

/// One task of the worker. A job's steps run in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildStep {
    /// Runs the project's `.larder/<phase>` if it is executable.
    Script(Phase),
    /// Selects the buildpacks.
    Detect,
    /// Runs `bin/compile` of each buildpack.
    Compile,
    /// Reads the process types from `bin/release` of each buildpack.
    Release,
    /// Reads from `bin/inputs` of each buildpack which files the build is made from.
    Inputs,
}

impl std::fmt::Display for BuildStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BuildStep::Script(phase) => write!(f, ".larder/{phase}"),
            BuildStep::Detect => f.write_str("detect"),
            BuildStep::Compile => f.write_str("compile"),
            BuildStep::Release => f.write_str("release"),
            BuildStep::Inputs => f.write_str("inputs"),
        }
    }
}

/// A build, or some steps of a build. One worker runs all steps of a job, so that fewer processes are started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildJob {
    /// The steps in order. [`BuildStep::Compile`] and [`BuildStep::Release`] select the buildpacks themselves if no
    /// [`BuildStep::Detect`] precedes them in the job.
    pub steps: Vec<BuildStep>,
    /// The buildpacks that the recipe names, in order. If empty, the first built-in buildpack that accepts the project is used.
    pub buildpacks: Vec<BuildpackRef>,
    /// The project's configuration: files in `ENV_DIR` for buildpacks, variables for phase scripts.
    pub configuration: Vec<(String, OsString)>,
    /// larder's own environment variables for every script, such as `LARDER_PROJECT`, `SOURCE_VERSION` and `REQUEST_ID`.
    pub environment: Vec<(String, String)>,
    /// The merged variables of the deployment, a JSON object.
    pub variables: String,
    /// The memory limit of the recipe in bytes. The operator's limit applies as well.
    pub memory: Option<u64>,
    /// The deploy key of the project, which git gets in every script.
    pub deploy_key: Option<BuildKey>,
}

/// A finished step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneStep {
    /// The step of the job.
    pub step: BuildStep,
    /// The duration in milliseconds.
    pub took: u64,
}

/// The worker's result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildReport {
    /// The finished steps in order.
    pub steps: Vec<DoneStep>,
    /// The selected buildpacks in order.
    pub buildpacks: Vec<BuildpackUse>,
    /// The process types that the buildpacks provide.
    pub processes: Vec<(ProcessType, String)>,
    /// Patterns, as in `.gitignore`, of the files from which the build is made. `None` stands for every file.
    pub inputs: Option<Vec<String>>,
    /// The variables after all scripts, if a script changed them.
    pub variables: Option<String>,
    /// The failure that ended the job early.
    pub failure: Option<BuildFailure>,
}

/// A failure inside the worker, as the report contains it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// The step that failed.
    pub step: BuildStep,
    /// The script or file that failed, such as `buildpack node: bin/compile`.
    pub what: String,
    /// The cause in one line, for git's rejected line.
    pub why: String,
    /// The party that has to act.
    pub blame: Blame,
    /// The next action for the pusher; may be empty.
    pub hint: String,
    /// The script's exit status. `None` if a signal ended the script, or if the failure is not that of a script.
    pub code: Option<i32>,
    /// The last lines of the script's output.
    pub tail: Vec<String>,
}

/// The hint for a build that ran out of memory.
pub(super) const MORE_MEMORY: &str = "raise build.memory in larder.yml; the operator's limit is builds.memory in the server file";

impl BuildFailure {
    /// Adds to the cause that the build was out of memory: the keeper has reported that the kernel killed a process of the build at
    /// the memory limit. The original cause stays, because the build may have failed for another reason.
    pub(super) fn out_of_memory(&mut self) {
        self.why = format!("out of memory: {}", self.why);
        self.hint = MORE_MEMORY.to_owned();
    }
}

impl std::fmt::Display for BuildFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// A successful build.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// The finished steps in order.
    pub steps: Vec<DoneStep>,
    /// The buildpacks that were used, in order.
    pub buildpacks: Vec<BuildpackUse>,
    /// The process types that the buildpacks provide. The process types of the Procfile take precedence.
    pub processes: Vec<(ProcessType, String)>,
    /// Patterns, as in `.gitignore`, of the files from which the build is made. `None` stands for every file, or for a job without
    /// [`BuildStep::Inputs`].
    pub inputs: Option<Vec<String>>,
    /// The variables after all phase scripts, if a script changed them.
    pub variables: Option<serde_json::Map<String, serde_json::Value>>,
}
