//! The record of the copies of one environment's restore points, `offsite.json`. Because of this record, a restart of the server repeats an
//! interrupted copy, and remembers which packs were read back.

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state::Reading;
use crate::host::files;

/// The size limit of the record, in bytes. A pack needs about 80 bytes, and packs have about 16 MiB.
const MAX_RECORD: u64 = 64 << 20;

/// The copies of one environment's restore points.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsiteState {
    version: u32,
    /// The id of this server in the snapshots of this environment.
    #[serde(default = "new_writer")]
    pub(super) writer: String,
    /// The stores by their addresses.
    pub stores: BTreeMap<String, StoreState>,
}

/// The copies in one store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreState {
    /// The copies by the ids of their restore points.
    pub copies: BTreeMap<String, CopyState>,
    /// True if a cycle has work: a restore point was taken since the last cycle, or the last cycle did not end.
    pub is_due: bool,
    /// The end of the last cycle that reached the store and checked it.
    pub checked: Option<Timestamp>,
    /// The reason why the last cycle failed.
    pub failure: Option<String>,
    /// The number of failed cycles since the last good cycle.
    pub failures: u32,
    /// The time of the next attempt after a failure.
    pub retry: Option<Timestamp>,
    /// The number of requests for a copy. A request during a cycle makes the next cycle due.
    pub(super) requests: u64,
    /// The defects that the last check found.
    pub defects: Vec<String>,
    /// The paths of the damaged files that the last check found.
    pub(super) damaged_files: Vec<String>,
    /// True if the next cycle can repair a defect.
    pub(super) is_repairable: bool,
    /// The last restore point that another server has copied to the same repository.
    pub rival: Option<String>,
    /// The packs that were read back, with the times in seconds since 1970.
    pub(super) read: Vec<(String, i64)>,
    /// The reading of packs that were read back before.
    pub(super) reading: Option<Reading>,
}

/// A copy of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyState {
    /// The time at which the copy ended.
    pub copied: Timestamp,
    /// The time at which the last part of the copy was read back; `None` if a part was never read back.
    pub verified: Option<Timestamp>,
    /// True if the last check found the copy damaged or missing.
    pub is_damaged: bool,
    /// The time at which the copy was found missing, while the restore point was no longer on this machine.
    #[serde(default)]
    pub lost: Option<Timestamp>,
}

/// Returns a new id of a server.
fn new_writer() -> String {
    uuid::Uuid::new_v4().simple().to_string().chars().take(16).collect()
}

impl OffsiteState {
    const VERSION: u32 = 1;

    /// Reads the record. A missing record is empty.
    ///
    /// # Errors
    /// The reason, with a remedy, if the record cannot be read or was written by a newer version of larder.
    pub(super) fn read(path: &Path) -> Result<OffsiteState, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if !path.exists() {
            return Ok(OffsiteState { version: OffsiteState::VERSION, writer: new_writer(), stores: BTreeMap::new() });
        }
        let unreadable = |why: String| {
            let hint = format!("hint: move {} away; the copies are then checked anew", path.display());
            format!("cannot read the record of off-site copies: {why}\n{hint}")
        };
        let bytes = files::read_limited(path, MAX_RECORD).map_err(|error| unreadable(error.to_string()))?;
        let Version { version } = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if version > OffsiteState::VERSION {
            return Err(unreadable(format!("its version is {version} (expected at most {})", OffsiteState::VERSION)));
        }
        serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))
    }

    /// Writes the record durably.
    pub(super) fn write(&self, path: &Path) -> Result<(), files::FileError> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        files::write_atomic(path, &bytes, 0o600)
    }
}

impl StoreState {
    /// Returns true if a cycle should begin.
    pub(super) fn wants_cycle(&self, now: Timestamp) -> bool {
        const CYCLE: i64 = 24 * 3600;
        let is_old = self.checked.is_none_or(|checked| !(0..CYCLE).contains(&now.duration_since(checked).as_secs()));
        (self.is_due || is_old) && self.retry.is_none_or(|retry| retry <= now || retry.duration_since(now).as_secs() > CYCLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycle_begins_after_a_restore_point_a_day_or_a_pause() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-05-02T02:00:00Z");
        assert!(StoreState::default().wants_cycle(now));
        let checked = StoreState { checked: Some(at("2026-05-02T01:00:00Z")), ..StoreState::default() };
        assert!(!checked.wants_cycle(now) && checked.wants_cycle(at("2026-05-03T01:00:00Z")));
        let due = StoreState { is_due: true, ..checked };
        assert!(due.wants_cycle(now));
        let failed = StoreState { retry: Some(at("2026-05-02T02:01:00Z")), ..due };
        assert!(!failed.wants_cycle(now) && failed.wants_cycle(at("2026-05-02T02:01:00Z")));
    }
}
