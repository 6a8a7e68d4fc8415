//! The words of records and command lines for a few choices: the mode of an environment, a slot, an access right.
//!
//! Each variant of these types has one word, which is also the serialised form of the variant.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The way in which an environment deploys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Development: the environment runs the checkout itself, and builds are incremental. The mode is reserved for a later version.
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

/// One of the workspaces of an environment. At most one slot is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// An overlay over a release. With the strategy blue-green, a new release boots in the overlay slot that is not live.
    Blue,
    /// The other overlay over a release.
    Green,
    /// A real directory of the run user, in which the strategy in-place replaces one release by the next release.
    InPlace,
}

impl Slot {
    pub const ALL: [Slot; 3] = [Slot::Blue, Slot::Green, Slot::InPlace];

    /// Returns the name of the directory below `slots/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Slot::Blue => "blue",
            Slot::Green => "green",
            Slot::InPlace => "in-place",
        }
    }

    /// Returns the kind of the workspace.
    pub fn workspace(self) -> Workspace {
        match self {
            Slot::Blue | Slot::Green => Workspace::Overlay,
            Slot::InPlace => Workspace::Directory,
        }
    }
}

/// The way in which a slot contains the files of its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workspace {
    /// The installed tree of the release, read-only, below a scratch layer that each boot of the slot empties.
    Overlay,
    /// A copy of the release in a real directory, which survives restarts.
    Directory,
}

impl Slot {
    /// Returns true if the workspace is a [`Workspace::Directory`].
    pub fn is_directory(self) -> bool {
        self.workspace() == Workspace::Directory
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An access right. Each right includes the rights that precede it in this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// No access. The caller gets the same answers as for a project that does not exist.
    None,
    /// The right to read the project's state, logs and releases, and to clone and fetch.
    View,
    /// The right to push to the deploy branch, and to retry and cancel deployments.
    Push,
    /// The right to deploy without a push, to roll back, pull, promote and import releases, to read patches, and to take and verify
    /// restore points.
    Deploy,
    /// The right to run commands, to scale and restart processes, to pin releases, to check remotes, to unfreeze environments, and to save
    /// and drop patches. The right includes the restore of data, also by a rollback, and the export and removal of restore points.
    Operate,
    /// On a project or an environment, the right to give rights to other users. On the whole server, the right to create and destroy
    /// projects, and to manage users, keys, trusted signers and remotes.
    Admin,
}

impl Access {
    /// Returns the word for command lines and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Access::None => "none",
            Access::View => "view",
            Access::Push => "push",
            Access::Deploy => "deploy",
            Access::Operate => "operate",
            Access::Admin => "admin",
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
