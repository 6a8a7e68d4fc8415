//! The mode of an environment.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The way in which an environment deploys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Development: the checkout itself runs, and builds are incremental. Reserved.
    Editable,
    /// Staging: builds from a clean tree and makes the release archives that production uses.
    Cooking,
    /// Production: never builds, and installs the archives of staging.
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
