//! The record of the last restore of an environment's live data, `restore.json`.

use std::{io, os::unix::fs::MetadataExt, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::util::{chain, run_blocking};
use crate::{
    backup::DatabaseJob,
    host::{
        files::{self, FileError, reserved},
        root::EnvironmentPaths,
    },
    model::{Environment, UserName},
};

/// The size limit of the record, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// The mode of the record.
const MODE: u32 = 0o600;

/// The record of the last restore of the live data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRecord {
    version: u32,
    /// The id of the restore point.
    pub point: String,
    /// The user who requested the restore.
    pub by: UserName,
    /// The time at which the restore began.
    pub begun: Timestamp,
    /// The id of the restore point of the replaced data; absent until that restore point is taken.
    pub before: Option<String>,
    /// The inode of `data/` before the exchange.
    inode: u64,
    /// True if the files were put back in place, without an exchange of `data/`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) put_back: bool,
    /// True if the restored data includes the files of `.larder/backup`, so that a repeated undo does not restore these files again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) has_custom: bool,
    /// True if the files of `.larder/backup` must still be restored after the exchange of `data/`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) owes_custom: bool,
    /// The work on databases that is in flight; absent if files and databases belong together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<RestoreStage>,
    /// The databases that the restore replaces. The locations contain passwords, so the file does not contain this list.
    #[serde(skip)]
    pub(super) databases: Vec<DatabaseJob>,
    /// The end; absent while the restore is in flight.
    pub end: Option<RestoreEnd>,
}

/// The fields that every version of the record has.
#[derive(Deserialize)]
struct Head {
    version: u32,
    end: Option<serde_json::Value>,
}

/// The reason why the record of a restore cannot be used. The live data may then be a mixture of two states.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read.
    #[error(transparent)]
    File(FileError),
    /// The file is not a record.
    #[error("cannot read restore.json: it is not the record of a restore")]
    Malformed(#[source] serde_json::Error),
    /// A newer version of larder was restoring the data.
    #[error("cannot use restore.json: its version is {version} (expected at most {known}), and its restore has not ended")]
    Newer {
        /// The version of the record.
        version: u32,
        /// The newest version that this program can use.
        known: u32,
    },
}

/// The work on databases that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreStage {
    /// The databases are being replaced with those of the restore point. The exchange of the files follows.
    Applying,
    /// The databases are being replaced with those of the restore point [`RestoreRecord::before`]. The files stay unchanged.
    Reverting,
}

/// The end of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreEnd {
    /// The data of the restore point is live.
    Restored,
    /// The live data is the data from before the restore.
    Unchanged,
}

impl RestoreRecord {
    /// The version of a record whose restore replaces databases. An older server would start the release with a mixture after a kill.
    const VERSION: u32 = 2;
    /// The version of any other record.
    const FILES_VERSION: u32 = 1;

    /// Creates the record of a restore that is about to begin.
    pub(super) fn begin(point: String, by: UserName, paths: &EnvironmentPaths) -> Result<RestoreRecord, FileError> {
        let inode = inode(&paths.data())?;
        let begun = Timestamp::now();
        Ok(RestoreRecord {
            version: RestoreRecord::FILES_VERSION,
            point,
            by,
            begun,
            before: None,
            inode,
            put_back: false,
            has_custom: false,
            owes_custom: false,
            stage: None,
            databases: Vec::new(),
            end: None,
        })
    }

    /// Writes the record of a restore that has ended, because the live data is already that of `point`.
    pub(super) fn note(point: String, by: UserName, paths: &EnvironmentPaths) -> Result<(), FileError> {
        let record = RestoreRecord::begin(point, by, paths)?;
        RestoreRecord { put_back: true, end: Some(RestoreEnd::Restored), ..record }.write(paths)
    }

    /// Reads the record. Returns `None` if the record is missing, or if a newer version of larder wrote it after the end of its restore.
    pub(super) fn read(paths: &EnvironmentPaths) -> Result<Option<RestoreRecord>, RecordError> {
        let path = paths.restore_record();
        let bytes = match files::read_limited(&path, MAX_RECORD) {
            Ok(bytes) => bytes,
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::File(source)),
        };
        let Head { version, end } = serde_json::from_slice(&bytes).map_err(RecordError::Malformed)?;
        if version <= RestoreRecord::VERSION {
            return serde_json::from_slice(&bytes).map(Some).map_err(RecordError::Malformed);
        }
        // The data is complete after the end of a restore, whatever the newer version has recorded about it.
        if end.is_some() { Ok(None) } else { Err(RecordError::Newer { version, known: RestoreRecord::VERSION }) }
    }

    /// Reserves the disk space for the record of a restore that is about to begin. Later writes of the record then succeed on a full disk.
    pub(super) fn reserve(paths: &EnvironmentPaths) -> Result<(), FileError> {
        run_blocking(|| reserved::reserve(&paths.restore_record(), MODE))
    }

    /// Releases the reserved disk space of a restore whose record was not written.
    pub(super) fn release(paths: &EnvironmentPaths) {
        let released = run_blocking(|| reserved::release(&paths.restore_record()));
        warn_of(released);
    }

    /// Writes the record durably. While the restore is in flight, the disk space for the next write stays reserved.
    pub(super) fn write(&self, paths: &EnvironmentPaths) -> Result<(), FileError> {
        let version = if self.stage.is_some() { RestoreRecord::VERSION } else { RestoreRecord::FILES_VERSION };
        let bytes = serde_json::to_vec_pretty(&RestoreRecord { version, ..self.clone() }).unwrap_or_default();
        let path = paths.restore_record();
        run_blocking(|| {
            reserved::replace(&path, &bytes, MODE)?;
            // Without the reserve, the next write needs new space, which usually exists.
            warn_of(if self.end.is_none() { reserved::reserve(&path, MODE) } else { reserved::release(&path) });
            Ok(())
        })
    }

    /// Returns the end of the restore according to the disk. The exchange happened if the inode of `data/` differs from the recorded inode.
    pub(super) fn end_by(&self, paths: &EnvironmentPaths) -> RestoreEnd {
        match inode(&paths.data()) {
            _ if self.put_back => RestoreEnd::Restored,
            Ok(found) if found != self.inode => RestoreEnd::Restored,
            _ => RestoreEnd::Unchanged,
        }
    }

    /// Returns true if this restore has made the data of `point` live.
    pub(super) fn has_restored(&self, point: &str, paths: &EnvironmentPaths) -> bool {
        self.point == point && self.end.unwrap_or_else(|| self.end_by(paths)) == RestoreEnd::Restored
    }

    /// Returns true if the last restore has made the data of `point` live.
    pub(super) fn is_live(point: &str, paths: &EnvironmentPaths) -> bool {
        RestoreRecord::read(paths).ok().flatten().is_some_and(|record| record.has_restored(point, paths))
    }

    /// Returns true if the files, the databases and the project's own data do not belong together.
    pub(super) fn is_mixed(&self, paths: &EnvironmentPaths) -> bool {
        match self.end_by(paths) {
            RestoreEnd::Unchanged => self.stage.is_some(),
            RestoreEnd::Restored => self.owes_custom,
        }
    }

    /// Records the end of the restore. Returns false if the end could not be written.
    pub(super) fn close(&mut self, environment: &Environment, paths: &EnvironmentPaths) -> bool {
        self.end = Some(self.end_by(paths));
        self.stage = None;
        self.owes_custom = false;
        let written = self.write(paths);
        if let Err(error) = &written {
            tracing::warn!(environment = environment.title(), error = chain(error), "cannot record the end of the restore");
        }
        written.is_ok()
    }

    /// Returns true if the record on the disk is an earlier state of this record.
    pub(super) fn is_unrecorded(&self, paths: &EnvironmentPaths) -> bool {
        matches!(RestoreRecord::read(paths), Ok(Some(found)) if found.begun == self.begun && found.end.is_none())
    }
}

fn warn_of(reserve: Result<(), FileError>) {
    if let Err(error) = reserve {
        tracing::warn!(error = chain(&error), "cannot reserve disk space for the record of a restore, or release it");
    }
}

/// Returns the inode of a directory.
fn inode(path: &Path) -> Result<u64, FileError> {
    std::fs::symlink_metadata(path).map(|found| found.ino()).map_err(|e| FileError::io("look at", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_in_flight_needs_no_new_file_for_its_record() {
        let directory = tempfile::tempdir().unwrap();
        let paths = EnvironmentPaths::at(directory.path());
        std::fs::create_dir(paths.data()).unwrap();
        let inodes = || {
            let mut found: Vec<_> =
                std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ino()).collect();
            found.sort_unstable();
            found
        };
        let mut record = RestoreRecord::begin("point".into(), "alex".parse().unwrap(), &paths).unwrap();
        RestoreRecord::reserve(&paths).unwrap();
        record.write(&paths).unwrap();
        let begun = inodes();
        for stage in [Some(RestoreStage::Applying), Some(RestoreStage::Reverting), None] {
            record.stage = stage;
            record.before = Some("before".into());
            record.write(&paths).unwrap();
            let read = RestoreRecord::read(&paths).unwrap().unwrap();
            assert_eq!((inodes(), read.stage, read.before), (begun.clone(), stage, record.before.clone()));
        }
        record.end = Some(RestoreEnd::Unchanged);
        record.write(&paths).unwrap();
        assert_eq!(inodes().len(), 2, "the reserve is left: {begun:?}");
        assert_eq!(RestoreRecord::read(&paths).unwrap().unwrap().end, record.end);
    }
}
