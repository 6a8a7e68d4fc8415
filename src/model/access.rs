//! Access rights of a caller.

use serde::{Deserialize, Serialize};

/// An access right. Each right includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// No access: the project does not exist for the caller.
    None,
    /// Reads the project's state, logs and releases; clones and fetches.
    View,
    /// Pushes and deploys.
    Push,
    /// Runs commands, scales, changes configuration.
    Operate,
    /// Creates and destroys projects, manages users.
    Admin,
}

impl Access {
    /// Returns the word for command lines and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Access::None => "none",
            Access::View => "view",
            Access::Push => "push",
            Access::Operate => "operate",
            Access::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
