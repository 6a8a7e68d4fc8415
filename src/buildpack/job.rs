//! What travels between the two sides: the job of a build and its report.

use serde::{Deserialize, Serialize};

use crate::model::{BuildpackUse, Phase, ProcessType};

use super::{BuildpackRef, Failure};

/// One thing to do in the worker, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildStep {
    /// Run the project's `.larder/<phase>`, if it is executable.
    Script(Phase),
    /// Choose the buildpacks.
    Detect,
    /// Run `bin/compile` of each.
    Compile,
    /// Ask `bin/release` of each for process types.
    Release,
}

impl std::fmt::Display for BuildStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BuildStep::Script(phase) => write!(f, ".larder/{phase}"),
            BuildStep::Detect => f.write_str("detect"),
            BuildStep::Compile => f.write_str("compile"),
            BuildStep::Release => f.write_str("release"),
        }
    }
}

/// A build, or a part of one. Several steps share one worker: a process less each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildJob {
    /// What to do. [`BuildStep::Compile`] and [`BuildStep::Release`] choose the buildpacks themselves where no
    /// [`BuildStep::Detect`] came before them in the same job.
    pub steps: Vec<BuildStep>,
    /// The buildpacks that the recipe names, in order; empty: the first of ours that detects the project.
    pub buildpacks: Vec<BuildpackRef>,
    /// The project's configuration: files in `ENV_DIR` for buildpacks, variables for phase scripts.
    pub configuration: Vec<(String, String)>,
    /// What larder itself says: `LARDER_PROJECT`, `SOURCE_VERSION`, `REQUEST_ID`, ... Every child has these.
    pub environment: Vec<(String, String)>,
    /// The merged variables of the deployment, a JSON object.
    pub variables: String,
    /// The most memory that it may use, in bytes; the operator's limit counts too.
    pub memory: Option<u64>,
    /// Whether a buildpack may be cloned from a path of this machine.
    pub local_git: bool,
}

/// A step that was done, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneStep {
    /// Which.
    pub step: BuildStep,
    /// Milliseconds.
    pub took: u64,
}

/// What the worker found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildReport {
    /// The steps that were done, in order.
    pub steps: Vec<DoneStep>,
    /// The buildpacks that were chosen, in order.
    pub buildpacks: Vec<BuildpackUse>,
    /// The process types that they give.
    pub processes: Vec<(ProcessType, String)>,
    /// The variables after all scripts; nothing where no script changed them.
    pub variables: Option<String>,
    /// Why it stopped before the end.
    pub failure: Option<Failure>,
}

/// A build that went well.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// The steps that were done, in order.
    pub steps: Vec<DoneStep>,
    /// The buildpacks that took part, in order.
    pub buildpacks: Vec<BuildpackUse>,
    /// The process types that they give, to be used where the Procfile has none.
    pub processes: Vec<(ProcessType, String)>,
    /// The variables as phase scripts left them; nothing where none changed them.
    pub variables: Option<serde_json::Map<String, serde_json::Value>>,
}
