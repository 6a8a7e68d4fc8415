//! Converts manifests to the endpoints of `larder_archive::delta`, and rebuilds the manifest of the newer release from a delta.

use std::fs::File;

use larder_archive::delta::{self, Changes, DeltaEndpoint, DeltaError};

use super::{ReleaseError, manifest::other_format};
use crate::model::{Manifest, ReleaseId};

/// Returns a release as one end of a delta. The head is the manifest without entries and frames, as JSON.
pub fn endpoint(manifest: &Manifest) -> Result<DeltaEndpoint<'_>, ReleaseError> {
    Ok(DeltaEndpoint { head: head(manifest)?, ..plain_endpoint(manifest) })
}

/// Returns a release as one end of a delta that is applied. The head is empty, because [`delta::Delta::open`] does not use the head.
pub(super) fn plain_endpoint(manifest: &Manifest) -> DeltaEndpoint<'_> {
    let Manifest { release, tree, archive, entries, .. } = manifest;
    DeltaEndpoint { id: release.to_string(), tree: *tree, archive, entries, head: Vec::new() }
}

fn head(manifest: &Manifest) -> Result<Vec<u8>, ReleaseError> {
    serde_json::to_vec(&manifest.without_entries()).map_err(|e| ReleaseError::delta(e.to_string()))
}

/// Returns the older and the newer release of a delta. The file may still be in transfer, since only its first bytes are read.
pub fn endpoints(file: &File) -> Result<(ReleaseId, ReleaseId), ReleaseError> {
    let (from, to) = delta::endpoints(file)?;
    let id = |text: String| text.parse().map_err(|why| ReleaseError::delta(format!("its outline cannot be read: {why}")));
    Ok((id(from)?, id(to)?))
}

/// Rebuilds the manifest of the newer release from the delta `file` and the manifest `old`. The result is complete except for
/// `archive.frames`, which is empty. The entries of the result match its tree digest. The caller must check the signature of the result.
///
/// # Errors
///
/// Returns an error if the delta starts from a release other than `old`, if the difference of the two manifests is damaged, or if this
/// version cannot read the manifest of the newer release.
pub fn manifest(file: &File, old: Manifest) -> Result<Manifest, ReleaseError> {
    let changes = Changes::read(file, &old.release.to_string(), &old.tree, &head(&old)?)?;
    let mut manifest: Manifest =
        serde_json::from_slice(changes.head()).map_err(|e| ReleaseError::delta(format!("its manifest cannot be read: {e}")))?;
    if manifest.format != Manifest::FORMAT {
        return Err(ReleaseError::delta(other_format("its manifest", manifest.format, Manifest::FORMAT)));
    }
    if manifest.release.to_string() != changes.id() || manifest.tree != changes.tree() {
        return Err(ReleaseError::delta("its manifest and its outline are of different releases"));
    }
    if !manifest.entries.is_empty() || !manifest.archive.frames.is_empty() {
        return Err(ReleaseError::delta("its manifest contains entries or frames (expected none)"));
    }
    manifest.entries = changes.entries(old.entries)?;
    Ok(manifest)
}

impl ReleaseError {
    /// Returns the error for a delta that cannot be used. `why` is the cause.
    pub(super) fn delta(why: impl Into<String>) -> ReleaseError {
        ReleaseError::Delta(DeltaError::Refused { why: why.into() })
    }
}

impl From<DeltaError> for ReleaseError {
    fn from(error: DeltaError) -> ReleaseError {
        match error {
            DeltaError::File(error) => ReleaseError::File(error),
            DeltaError::Archive { doing, source } => ReleaseError::Archive { doing, source },
            error => ReleaseError::Delta(error),
        }
    }
}
