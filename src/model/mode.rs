//! The mode of an environment.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The way in which an environment deploys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Development: the environment runs the checkout itself, and builds are incremental. Reserved for a later version.
    Editable,
    /// Staging: the environment builds from a clean tree, and makes the release archives that final environments install.
    Cooking,
    /// Production: the environment never builds, and installs release archives of cooking environments.
    Final,
}

impl Mode {
    /// Returns the word for command lines and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Editable => "editable",
            Mode::Cooking => "cooking",
            Mode::Final => "final",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
