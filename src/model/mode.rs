//! How an environment deploys.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What happens to a push in an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Development: the checkout itself runs, builds are incremental.
    Editable,
    /// Staging: builds from a clean tree and makes the release archives that production uses.
    Cooking,
    /// Production: never builds; installs what staging cooked.
    Final,
}

impl Mode {
    /// The word that people type.
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
