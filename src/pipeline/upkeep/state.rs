//! The record of the scheduled restore points of one environment, `backups.json`. Because of this record, a restart of the server neither
//! repeats a run that has ended nor forgets a run that has not ended.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    backup::{PointInfo, PointState},
    host::files,
    model::{DatabaseEngine, DatabaseName, ReleaseNumber, sanitise_line},
};

/// The size limit of the record, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// The maximum number of damaged restore points in the record.
const MAX_DAMAGED: usize = 100;

/// The scheduled work of one environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupState {
    version: u32,
    /// The last scheduled time that a run has handled. For a new environment, the time from which the schedule applies.
    pub(super) covered: Timestamp,
    /// The run that has not ended.
    pub(super) running: Option<RunningRun>,
    /// The last run that has ended.
    pub last: Option<LastRun>,
    /// The last failure.
    pub failure: Option<LastFailure>,
    /// The newest restore point that was read back without a difference.
    pub verified: Option<VerifiedPoint>,
    /// The restore points that are damaged or unusable, newest first.
    pub damaged: Vec<DamagedPoint>,
    /// The last drill.
    #[serde(default)]
    pub drill: Option<DrillRecord>,
    /// The reading of older restore points.
    pub(super) reading: Reading,
}

/// A drill: a restore of a restore point into a scratch place, in which the release is started and checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// The restore point.
    pub point: String,
    /// The time at which the drill began.
    pub begun: Timestamp,
    /// The duration, in milliseconds.
    pub millis: u64,
    /// The number of restored files.
    pub files: u64,
    /// The total size of the restored files, in bytes.
    pub bytes: u64,
    /// The reason why the drill failed; `None` after a success.
    pub failure: Option<String>,
    /// The databases whose dumps were loaded into scratch databases, and the SQLite files that were checked.
    #[serde(default)]
    pub databases: Vec<DrilledDatabase>,
    /// The release that was started on the copy; absent if none was started.
    #[serde(default)]
    pub release: Option<ReleaseNumber>,
    /// The checks that the release passed on the copy: `restore script`, `health`, `smoke`, `script`.
    #[serde(default)]
    pub checks: Vec<String>,
    /// Sentences about everything that the drill did not prove.
    #[serde(default)]
    pub unproven: Vec<String>,
}

/// A database in a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrilledDatabase {
    /// The name.
    pub name: DatabaseName,
    /// The engine.
    pub engine: DatabaseEngine,
    /// The size of the dump, in bytes.
    pub bytes: u64,
    /// The time of the load, in milliseconds; zero for an SQLite file.
    pub millis: u64,
}

/// A run that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunningRun {
    /// The scheduled time.
    pub scheduled: Timestamp,
    /// The number of missed runs that this run makes up for.
    pub missed: u32,
    /// The number of servers that have begun this run.
    pub attempts: u32,
    /// The restore point of this run, after it was taken.
    pub point: Option<String>,
}

/// The last run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// The scheduled time.
    pub scheduled: Timestamp,
    /// The end of the run.
    pub ended: Timestamp,
    /// The number of missed runs that this run made up for.
    pub missed: u32,
    /// The result.
    pub result: RunResult,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunResult {
    /// The restore point with this id was taken, and read back without a difference.
    Verified(String),
    /// No restore point was taken, for this reason.
    Skipped(String),
    /// The run failed, for this reason.
    Failed(String),
}

/// A failure of the scheduled work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// The time of the failure.
    pub at: Timestamp,
    /// The failed action and its cause, as one line.
    pub why: String,
}

/// A restore point that was read back without a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedPoint {
    /// The id.
    pub id: String,
    /// The time of the capture.
    pub taken: Timestamp,
    /// The time of the verification.
    pub verified: Timestamp,
}

/// A restore point that is damaged or unusable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPoint {
    /// The id.
    pub id: String,
    /// The defect, as one line.
    pub defect: String,
}

/// The bytes of older restore points that were read. An amount above the daily budget is carried over to the following days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reading {
    /// The beginning of the day of the budget.
    pub since: Timestamp,
    /// The bytes that count against the budget.
    pub bytes: u64,
}

impl Reading {
    /// Subtracts the budgets of the days that have passed, and returns true if a part of the budget is left.
    pub(super) fn may_read(&mut self, budget: u64, now: Timestamp) -> bool {
        const DAY: i64 = 24 * 3600;
        let passed = now.duration_since(self.since).as_secs();
        // A clock that was set back begins a new day.
        let days = if passed < 0 { 1 } else { passed / DAY };
        if days > 0 {
            self.bytes = self.bytes.saturating_sub(budget.saturating_mul(days.unsigned_abs()));
            self.since = now;
        }
        self.bytes < budget
    }
}

impl BackupState {
    const VERSION: u32 = 1;

    /// Creates the record of an environment whose schedule applies from `now` on.
    pub(super) fn new(now: Timestamp) -> BackupState {
        BackupState {
            version: BackupState::VERSION,
            covered: now,
            running: None,
            last: None,
            failure: None,
            verified: None,
            damaged: Vec::new(),
            drill: None,
            reading: Reading { since: now, bytes: 0 },
        }
    }

    /// Reads the record. Returns `None` if the record does not exist.
    ///
    /// # Errors
    /// The reason, with a remedy, if the record cannot be read or was written by a newer version of larder.
    pub(super) fn read(path: &Path) -> Result<Option<BackupState>, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if !path.exists() {
            return Ok(None);
        }
        let hint = || format!("hint: move {} away, and restart larder; the schedule then begins anew", path.display());
        let unreadable = |why: String| format!("cannot read the record of scheduled restore points: {why}\n{}", hint());
        let bytes = files::read_limited(path, MAX_RECORD).map_err(|error| unreadable(error.to_string()))?;
        let Version { version } = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if version > BackupState::VERSION {
            return Err(unreadable(format!("its version is {version} (expected at most {})", BackupState::VERSION)));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| unreadable(error.to_string()))
    }

    /// Writes the record durably.
    pub(super) fn write(&self, path: &Path) -> Result<(), files::FileError> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        files::write_atomic(path, &bytes, 0o600)
    }

    /// Takes the newest verified restore point and the damaged restore points from the states of all restore points.
    pub(super) fn adopt(&mut self, points: &[PointInfo]) {
        let at = |second: i64| Timestamp::from_second(second).unwrap_or(Timestamp::MIN);
        let verified = points.iter().filter_map(|info| match info.state {
            PointState::Verified(time) => Some(VerifiedPoint { id: info.id.clone(), taken: at(info.taken?), verified: at(time) }),
            _ => None,
        });
        self.verified = verified.max_by(|a, b| (a.taken, &a.id).cmp(&(b.taken, &b.id)));
        let damaged = points.iter().filter_map(|info| {
            let defect = defect(&info.state)?;
            Some(DamagedPoint { id: info.id.clone(), defect })
        });
        self.damaged = damaged.take(MAX_DAMAGED).collect();
    }
}

/// Returns the defect of a damaged or unusable restore point, as one line.
pub(super) fn defect(state: &PointState) -> Option<String> {
    match state {
        PointState::Unverified | PointState::Verified(_) | PointState::Incomplete(_) => None,
        PointState::Damaged(1, _) => Some(String::from("1 stored file differs")),
        PointState::Damaged(count, _) => Some(format!("{count} stored files differ")),
        PointState::Unusable(why) => Some(sanitise_line(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::PointCounts;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn record_is_read_back_and_a_newer_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backups.json");
        assert_eq!(BackupState::read(&path), Ok(None));
        let mut state = BackupState::new(at("2026-05-01T00:00:00Z"));
        state.running = Some(RunningRun { scheduled: state.covered, missed: 2, attempts: 1, point: None });
        state.last = Some(LastRun {
            scheduled: state.covered,
            ended: state.covered,
            missed: 0,
            result: RunResult::Failed(String::from("full")),
        });
        state.write(&path).unwrap();
        assert_eq!(BackupState::read(&path), Ok(Some(state)));
        for (text, why) in [("{\"version\": 2}", "its version is 2"), ("{", "cannot read")] {
            std::fs::write(&path, text).unwrap();
            let error = BackupState::read(&path).unwrap_err();
            assert!(error.contains(why) && error.contains("\nhint: move"), "{error}");
        }
    }

    #[test]
    fn reading_beyond_the_daily_budget_is_carried_over() {
        let mut reading = Reading { since: at("2026-05-01T02:00:00Z"), bytes: 0 };
        assert!(reading.may_read(100, at("2026-05-01T02:00:00Z")));
        reading.bytes += 250;
        assert!(!reading.may_read(100, at("2026-05-02T01:00:00Z")));
        assert!(!reading.may_read(100, at("2026-05-02T03:00:00Z")), "150 of 250 bytes are left");
        assert!(reading.may_read(100, at("2026-05-03T03:00:00Z")));
        assert_eq!(reading.bytes, 50);
        assert!(!Reading { since: reading.since, bytes: 0 }.may_read(0, reading.since), "without a budget, nothing is read");
    }

    #[test]
    fn newest_verified_and_damaged_points_are_adopted() {
        let point = |id: &str, taken: i64, state| PointInfo {
            id: id.to_owned(),
            taken: Some(taken),
            label: None,
            state,
            counts: PointCounts::default(),
            skipped: Vec::new(),
            runs: Vec::new(),
        };
        let mut state = BackupState::new(Timestamp::UNIX_EPOCH);
        state.adopt(&[
            point("d", 40, PointState::Unverified),
            point("c", 30, PointState::Damaged(1, 35)),
            point("b", 20, PointState::Verified(25)),
            point("a", 10, PointState::Verified(45)),
            PointInfo { taken: None, ..point("0", 0, PointState::Unusable(String::from("no\nmanifest"))) },
        ]);
        assert_eq!(state.verified.as_ref().map(|point| point.id.as_str()), Some("b"));
        let damaged: Vec<_> = state.damaged.iter().map(|point| point.id.as_str()).collect();
        assert_eq!(damaged, ["c", "0"]);
        assert!(!state.damaged[1].defect.contains('\n'));
    }
}
