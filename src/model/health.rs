//! Health records: signed statements about releases that have run.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Digest, EnvironmentName, ProjectName, ReleaseId, ReleaseNumber, Signature};

/// A server's signed statement about a release that the server has run. The file `<id>.health.json` contains the statement, and servers
/// that pull the release check the statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthRecord {
    /// The version of this format. A reader refuses newer versions.
    pub format: u32,
    pub project: ProjectName,
    /// The environment that ran the release.
    pub environment: EnvironmentName,
    pub release: ReleaseId,
    /// The number of the release in the environment that ran the release.
    pub number: ReleaseNumber,
    /// The digest of the release's tree.
    pub tree: Digest,
    /// The periods in which the release served, oldest first. The last period has no end while the release serves.
    pub served: Vec<Period>,
    /// The time of the statement.
    pub as_of: Timestamp,
    /// The checks that the release passed.
    pub checks: Vec<PassedCheck>,
    /// The processes of the release that exited unexpectedly, oldest first.
    pub restarts: Vec<ProcessRestart>,
    /// The server's signature over [`HealthRecord::statement`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

impl HealthRecord {
    /// The version that this code writes, and the newest version that it reads.
    pub const FORMAT: u32 = 1;

    /// Returns the signed text, which contains all fields except the signature in one canonical encoding.
    pub fn statement(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Statement<'a> {
            larder: &'static str,
            record: &'a HealthRecord,
        }
        let record = HealthRecord { signature: None, ..self.clone() };
        // Serialisation cannot fail, because the statement consists of strings and numbers.
        serde_json::to_vec(&Statement { larder: "health record", record: &record }).unwrap_or_default()
    }
}

/// A period in which a release served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Period {
    /// The start of the period, at which the release was healthy.
    pub since: Timestamp,
    /// The end of the period; absent while the release serves.
    pub until: Option<Timestamp>,
}

/// A passed check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassedCheck {
    /// The name: `smoke`, `health` or `tests` (the project's post_build script).
    pub name: String,
    pub passed: Timestamp,
}

/// A process that exited unexpectedly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRestart {
    /// The process, such as `web.1`.
    pub process: String,
    pub at: Timestamp,
    /// The exit status or signal, as text.
    pub exit: String,
}
