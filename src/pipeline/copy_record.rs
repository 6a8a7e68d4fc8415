//! The record of the copies of databases on their servers, `copies.json`. The record names each copy before the copy is made, so that a copy is
//! dropped whatever happens.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::util::{chain, run_blocking};
use crate::{
    host::files::{self, FileError},
    model::{PointId, ReleaseId},
};

/// The size limit of the record, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// The version of the record.
const VERSION: u32 = 1;

/// The copies of databases that exist or are being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CopyRecord {
    version: u32,
    pub copies: Vec<CopiedPoint>,
}

/// A restore point whose databases are copies on their servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CopiedPoint {
    /// The id of the restore point.
    pub point: String,
    /// The release whose variables have the URLs of the databases.
    pub release: Option<ReleaseId>,
}

impl CopyRecord {
    pub(super) fn read(path: &Path) -> CopyRecord {
        let read = files::read_limited(path, MAX_RECORD).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let read = read.filter(|record: &CopyRecord| record.version == VERSION);
        read.unwrap_or(CopyRecord { version: VERSION, copies: Vec::new() })
    }

    fn write(&self, path: &Path) -> Result<(), FileError> {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        run_blocking(|| files::write_atomic(path, &bytes, 0o600))
    }

    /// Names a restore point durably, before its copies are made.
    pub(super) fn add(path: &Path, point: PointId, release: Option<ReleaseId>) -> Result<(), FileError> {
        let mut record = CopyRecord::read(path);
        record.copies.push(CopiedPoint { point: point.to_string(), release });
        record.write(path)
    }

    /// Removes a restore point from the record, whose copies are dropped.
    pub(super) fn remove(path: &Path, point: &str) {
        let mut record = CopyRecord::read(path);
        record.copies.retain(|copied| copied.point != point);
        let removed = match record.copies.is_empty() {
            true => std::fs::remove_file(path).map_err(|e| FileError::io("remove", path, e)),
            false => record.write(path),
        };
        if let Err(error) = removed {
            tracing::warn!(error = chain(&error), "cannot remove a copy of a database from its record");
        }
    }
}
