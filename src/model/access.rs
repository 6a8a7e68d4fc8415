//! Access rights of a caller.

use serde::{Deserialize, Serialize};

/// An access right. Each right includes the rights before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// No access. The caller gets the same answers as for a project that does not exist.
    None,
    /// The right to read the project's state, logs and releases, and to clone and fetch.
    View,
    /// The right to push and to deploy.
    Push,
    /// The right to run commands, to scale processes, and to change the configuration.
    Operate,
    /// The right to create and destroy projects, and to manage users.
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
