//! What a caller may do.

use serde::{Deserialize, Serialize};

/// A right, each including the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Nothing: the project does not exist for this caller.
    None,
    /// See the project's state, logs and releases; clone and fetch.
    View,
    /// Push and deploy.
    Push,
    /// Run commands, scale, change configuration.
    Operate,
    /// Create and destroy projects, manage users.
    Admin,
}

impl Access {
    /// The word that people type.
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
