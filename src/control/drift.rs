//! Answers about drift.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    drift::{Drift, Patch},
    model::{CommitId, Live, ReleaseId, ReleaseNumber, UserName},
};

/// Where what runs differs from its release.
#[derive(Debug, Clone, Serialize)]
pub struct DriftReport {
    /// `project/environment`.
    pub environment: String,
    /// What is live.
    pub live: Live,
    /// What was changed in the slot.
    #[serde(flatten)]
    pub drift: Drift,
    /// How the installed tree differs from its manifest; nothing where nobody looked.
    pub tree: Option<TreeReport>,
    /// The patch that keeps it, if it was kept now.
    pub patch: Option<String>,
}

/// How an installed tree differs from its manifest.
#[derive(Debug, Clone, Serialize)]
pub struct TreeReport {
    /// The places.
    pub differences: Vec<TreeDifference>,
    /// How many more there are.
    pub more: u64,
}

/// A place where an installed tree differs from its manifest.
#[derive(Debug, Clone, Serialize)]
pub struct TreeDifference {
    /// Where.
    pub path: String,
    /// What is wrong there.
    pub what: String,
}

/// A patch in a list.
#[derive(Debug, Clone, Serialize)]
pub struct PatchRow {
    /// Its name.
    pub id: String,
    /// The release that was changed.
    pub release: ReleaseId,
    /// The number of that release, if there is still a record of it.
    pub number: Option<ReleaseNumber>,
    /// The commit of that release.
    pub commit: CommitId,
    /// When it was kept.
    pub created: Timestamp,
    /// Who kept it; nobody where larder did it by itself.
    pub by: Option<UserName>,
    /// How many changes it has.
    pub changes: u64,
}

/// A patch with its text.
#[derive(Debug, Clone, Serialize)]
pub struct PatchDetail {
    /// It.
    #[serde(flatten)]
    pub patch: Patch,
    /// The differences of its texts.
    pub text: String,
}
