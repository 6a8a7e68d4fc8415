//! What a release went through where it ran, as proof for those who want it next.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Digest, EnvironmentName, ProjectName, ReleaseId, ReleaseNumber, Signature};

/// A signed statement of a server about a release that it has run; `<id>.health.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthRecord {
    /// The version of this format; a reader refuses a newer one.
    pub format: u32,
    /// The project.
    pub project: ProjectName,
    /// The environment that ran it.
    pub environment: EnvironmentName,
    /// The release.
    pub release: ReleaseId,
    /// Its number there.
    pub number: ReleaseNumber,
    /// The digest of its tree.
    pub tree: Digest,
    /// When it served, oldest first; the last has no end while it serves.
    pub served: Vec<Period>,
    /// When this was said.
    pub as_of: Timestamp,
    /// The checks that it passed.
    pub checks: Vec<Check>,
    /// Processes of it that ended without being asked to, oldest first.
    pub restarts: Vec<Restart>,
    /// Who says so, over everything above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl HealthRecord {
    /// The version that this code writes, and the newest that it reads.
    pub const FORMAT: u32 = 1;

    /// What a signature is over: everything that the record says, in one spelling.
    pub fn statement(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Statement<'a> {
            larder: &'static str,
            record: &'a HealthRecord,
        }
        let record = HealthRecord { signature: None, ..self.clone() };
        // Strings and numbers only: nothing in it can fail to become text.
        serde_json::to_vec(&Statement { larder: "health record", record: &record }).unwrap_or_default()
    }
}

/// A time in which a release served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Period {
    /// From when; it was healthy then.
    pub since: Timestamp,
    /// Until when; nothing while it serves.
    pub until: Option<Timestamp>,
}

/// A check that was passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Its name: `smoke`, `health`, `tests` (the project's post_build script).
    pub name: String,
    /// When.
    pub passed: Timestamp,
}

/// A process that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// The process, such as `web.1`.
    pub process: String,
    /// When.
    pub at: Timestamp,
    /// How it ended, in words.
    pub exit: String,
}
