//! The record of the durations of restore points and holds of an environment, `durations.json`. The next hold is estimated from this record.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::util::{chain, run_blocking};
use crate::{backup::PointCounts, host::files, model::ReleaseNumber};

/// The version of the record.
const VERSION: u32 = 1;

/// The size limit of the record, in bytes.
const MAX_RECORD: u64 = 256 << 10;

/// The number of restore points and of holds that the record keeps.
const KEPT: usize = 32;

/// The number of earlier restore points that are compared. The estimate uses the slowest of them.
const COMPARED: usize = 3;

/// The durations without a record: the time for each file or directory, and the time for a million copied bytes. A virtual machine with two
/// processors needs a third of these times.
const ENTRY: Duration = Duration::from_micros(150);
const MEGABYTE: Duration = Duration::from_millis(20);

/// The time that every capture needs, whatever its size: the start of the worker, and a sync of the file system.
const LEAST: Duration = Duration::from_millis(300);

/// The durations of the restore points and of the holds, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Durations {
    version: u32,
    points: Vec<PointRun>,
    holds: Vec<HoldRun>,
}

/// The duration of one restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PointRun {
    at: Timestamp,
    /// The number of files, directories and links.
    entries: u64,
    /// The bytes that were copied or cloned.
    copied_bytes: u64,
    /// The time in which the files were captured, in milliseconds.
    files_ms: u64,
    /// The bytes of the dumps of databases.
    dump_bytes: u64,
    /// The time in which the databases were dumped, in milliseconds.
    dumps_ms: u64,
}

/// The duration of one hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRun {
    /// The moment at which the hold ended.
    pub at: Timestamp,
    /// The number of the release of the deployment.
    pub number: ReleaseNumber,
    /// The estimate before the hold, in milliseconds; absent in a rollback with data.
    pub estimate_ms: Option<u64>,
    /// The time for which requests waited, in milliseconds.
    pub held_ms: u64,
    /// True if the deployment reached its commit point.
    pub committed: bool,
}

impl Durations {
    /// Reads the record. A missing, unreadable or newer record counts as empty, because the record only improves estimates.
    pub(super) fn read(path: &Path) -> Durations {
        let read = files::read_limited(path, MAX_RECORD).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        read.filter(|record: &Durations| record.version == VERSION).unwrap_or_default()
    }

    fn write(mut self, path: &Path) {
        self.version = VERSION;
        self.points.drain(..self.points.len().saturating_sub(KEPT));
        self.holds.drain(..self.holds.len().saturating_sub(KEPT));
        let bytes = serde_json::to_vec(&self).unwrap_or_default();
        if let Err(error) = run_blocking(|| files::write_atomic(path, &bytes, 0o600)) {
            tracing::warn!(error = chain(&error), "cannot record a duration");
        }
    }

    /// Records the duration of a restore point.
    pub(super) fn add_point(path: &Path, counts: &PointCounts) {
        let mut record = Durations::read(path);
        record.points.push(PointRun {
            at: Timestamp::now(),
            entries: counts.entries,
            copied_bytes: counts.copied_bytes,
            files_ms: counts.files_ms,
            dump_bytes: counts.dump_bytes,
            dumps_ms: counts.dumps_ms,
        });
        record.write(path);
    }

    /// Records the duration of a hold.
    pub(super) fn add_hold(path: &Path, run: HoldRun) {
        let mut record = Durations::read(path);
        record.holds.push(run);
        record.write(path);
    }

    /// Estimates the duration of the exact restore point that follows `early`, a restore point that was just taken. The exact restore point
    /// dumps all databases again, and copies the files that change meanwhile.
    pub(super) fn estimate(&self, early: &PointCounts) -> Duration {
        let dumps = Duration::from_millis(early.dumps_ms);
        // A capture that copied nothing has done the work of the next capture.
        let copied = early.copied_bytes.saturating_sub(early.dump_bytes);
        if copied == 0 {
            return dumps.saturating_add(Duration::from_millis(early.files_ms));
        }
        let entries = u32::try_from(early.entries).unwrap_or(u32::MAX);
        // Only a few files change until the exact restore point. A capture that copied much says nothing about such a capture.
        let few = |run: &&PointRun| run.copied_bytes.saturating_sub(run.dump_bytes) <= early.bytes / 20;
        let scaled = |run: &PointRun| {
            let millis = run.files_ms.saturating_mul(early.entries.max(1)) / run.entries.max(1);
            Duration::from_millis(millis.max(run.files_ms))
        };
        let known = self.points.iter().rev().filter(few).take(COMPARED).map(scaled).max();
        let assumed = || {
            let share = u32::try_from(copied / 20 / 1_000_000).unwrap_or(u32::MAX);
            LEAST.saturating_add(ENTRY.saturating_mul(entries)).saturating_add(MEGABYTE.saturating_mul(share))
        };
        // The next capture reads less than the capture that has just copied the files, so it does not take longer.
        dumps.saturating_add(known.unwrap_or_else(assumed).min(Duration::from_millis(early.files_ms).max(LEAST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(entries: u64, copied_bytes: u64, files_ms: u64, dumps_ms: u64) -> PointCounts {
        PointCounts { entries, bytes: 1_000_000_000, copied_bytes, files_ms, dumps_ms, ..PointCounts::default() }
    }

    #[test]
    fn estimate_uses_the_slowest_of_the_last_captures_of_few_files() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("durations.json");
        let full = counts(20_000, 1_000_000_000, 9_000, 500);
        let first = Durations::read(&path).estimate(&full);
        assert_eq!(first, Duration::from_millis(500 + 300 + 3_000 + 50 * 20), "assumed rates");
        for (copied, millis) in [(0, 5_000), (10_000_000, 400), (900_000_000, 8_000), (0, 700), (0, 600)] {
            Durations::add_point(&path, &counts(20_000, copied, millis, 0));
        }
        assert_eq!(Durations::read(&path).estimate(&full), Duration::from_millis(500 + 700));
        let twice = counts(40_000, 1_000_000_000, 9_000, 0);
        assert_eq!(Durations::read(&path).estimate(&twice), Duration::from_millis(1_400), "scaled with the entries");
        assert_eq!(Durations::read(&path).estimate(&counts(20_000, 0, 450, 30)), Duration::from_millis(480), "just measured");
    }

    #[test]
    fn record_is_bounded_and_a_damaged_record_is_empty() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("durations.json");
        let hold = HoldRun { at: Timestamp::now(), number: ReleaseNumber(1), estimate_ms: None, held_ms: 5, committed: true };
        for _ in 0..40 {
            Durations::add_point(&path, &counts(1, 1, 1, 1));
            Durations::add_hold(&path, hold);
        }
        let record = Durations::read(&path);
        assert_eq!((record.points.len(), record.holds.len()), (KEPT, KEPT));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Durations::read(&path), Durations::default());
    }
}
