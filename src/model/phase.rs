//! The nine phases of a deployment.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A part of a deployment. A project can add work to each phase with an executable file `.larder/<phase>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Gather,
    PreInstall,
    Configure,
    Build,
    PostBuild,
    Bundle,
    Deploy,
    PostDeploy,
    PostInstall,
}

impl Phase {
    /// All phases in the order in which they run.
    pub const ALL: [Phase; 9] = [
        Phase::Gather,
        Phase::PreInstall,
        Phase::Configure,
        Phase::Build,
        Phase::PostBuild,
        Phase::Bundle,
        Phase::Deploy,
        Phase::PostDeploy,
        Phase::PostInstall,
    ];

    /// Returns the word for file names, logs and options.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Gather => "gather",
            Phase::PreInstall => "pre_install",
            Phase::Configure => "configure",
            Phase::Build => "build",
            Phase::PostBuild => "post_build",
            Phase::Bundle => "bundle",
            Phase::Deploy => "deploy",
            Phase::PostDeploy => "post_deploy",
            Phase::PostInstall => "post_install",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Phase {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Phase::ALL.into_iter().find(|phase| phase.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is not a phase; the phases are {}", Phase::ALL.map(Phase::as_str).join(", ")))
    }
}
