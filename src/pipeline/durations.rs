//! The record of the durations of restore points and holds of an environment, `durations.json`. The next hold is estimated from this record.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::util::{chain, run_blocking, seconds};
use crate::{
    backup::{CaptureMethod, DatabaseSurvey, MethodRun, PointCounts, PointInfo},
    host::files,
    model::ReleaseNumber,
    space::shown,
};

/// The version of the record.
const VERSION: u32 = 1;

/// The size limit of the record, in bytes.
const MAX_RECORD: u64 = 256 << 10;

/// The number of restore points and of holds that the record keeps.
const KEPT: usize = 32;

/// The number of dumps and copies that the record keeps.
const KEPT_METHODS: usize = 96;

/// The assumed time of a method for each database, and for a million bytes. A busy virtual machine with two processors needs about these times; a
/// copy on the server begins with a checkpoint of all databases (`benches/run hold`).
const RATES: [(CaptureMethod, Duration, Duration); 4] = [
    (CaptureMethod::TemplateCopy, Duration::from_secs(3), Duration::from_millis(12)),
    (CaptureMethod::Dump, Duration::from_millis(500), Duration::from_millis(80)),
    (CaptureMethod::SqliteBackup, Duration::from_millis(50), Duration::from_millis(10)),
    (CaptureMethod::Reflink, Duration::from_millis(50), Duration::ZERO),
];

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
    /// The durations of dumps and copies of databases. larder 0.1 did not write this list.
    #[serde(default)]
    methods: Vec<TimedRun>,
}

/// The duration of one dump or copy of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TimedRun {
    at: Timestamp,
    #[serde(flatten)]
    run: MethodRun,
}

/// The method for one part of an exact restore point, with its estimated and measured duration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodEstimate {
    /// The name of the database, or `files`.
    pub what: String,
    /// The method.
    pub method: CaptureMethod,
    /// The size of the database or the files in bytes.
    pub bytes: u64,
    /// The estimated duration in milliseconds.
    pub estimate_ms: u64,
    /// The time of the measurement from which the duration is estimated; absent if a rate is assumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Timestamp>,
    /// The reason why no cheaper method is possible; empty if the method is the cheapest one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The estimated duration of a dump, in milliseconds; absent if the method is a dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump_ms: Option<u64>,
    /// The measured duration in milliseconds; absent until the restore point is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

impl MethodEstimate {
    /// The name of the part with the files.
    pub(super) const FILES: &'static str = "files";
}

impl std::fmt::Display for MethodEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = match self.measured {
            Some(at) => format!("measured on {}", at.strftime("%Y-%m-%d")),
            None => String::from("assumed rate"),
        };
        let time = seconds(Duration::from_millis(self.estimate_ms));
        write!(f, "{}: {} of {}, {time} ({source})", self.what, self.method.title(), shown(self.bytes))?;
        if self.why.is_empty() { Ok(()) } else { write!(f, ", because {}", self.why) }
    }
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The methods of the restore point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodEstimate>,
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
        self.methods.drain(..self.methods.len().saturating_sub(KEPT_METHODS));
        let bytes = serde_json::to_vec(&self).unwrap_or_default();
        if let Err(error) = run_blocking(|| files::write_atomic(path, &bytes, 0o600)) {
            tracing::warn!(error = chain(&error), "cannot record a duration");
        }
    }

    /// Records the duration of a restore point.
    pub(super) fn add_point(path: &Path, point: &PointInfo) {
        let (mut record, counts, at) = (Durations::read(path), &point.counts, Timestamp::now());
        record.methods.extend(point.runs.iter().map(|run| TimedRun { at, run: run.clone() }));
        record.points.push(PointRun {
            at,
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

    /// Returns the duration of the hold of a release, if a hold of this release is recorded.
    pub(super) fn hold_of(&self, number: ReleaseNumber) -> Option<&HoldRun> {
        self.holds.iter().rev().find(|run| run.number == number)
    }

    /// Returns the methods of the exact restore point that follows `early`, a restore point that was just taken, with their estimated
    /// durations. `clones` is true if the file system clones files. Without `early`, the recorded durations are used.
    pub(super) fn methods(&self, early: Option<&PointInfo>, surveys: &[DatabaseSurvey], clones: bool) -> Vec<MethodEstimate> {
        let runs = early.map(|early| early.runs.as_slice()).unwrap_or_default();
        let surveyed = surveys.iter().map(|survey| (survey.name.as_str(), survey.method, survey.bytes, survey.why.as_str()));
        // A database without a survey is captured in the same way again.
        let others = runs.iter().filter(|run| surveys.iter().all(|survey| survey.name.as_str() != run.what));
        let others = others.map(|run| (run.what.as_str(), run.method, run.bytes, ""));
        let mut methods: Vec<_> = surveyed.chain(others).map(|part| self.of_database(part, runs)).collect();
        let (files, measured) = match early {
            Some(early) => self.files(&early.counts),
            None => self.last_files(),
        };
        methods.push(MethodEstimate {
            what: String::from(MethodEstimate::FILES),
            method: if clones { CaptureMethod::Reflink } else { CaptureMethod::Copy },
            bytes: early.map_or(0, |early| early.counts.bytes.saturating_sub(early.counts.dump_bytes)),
            estimate_ms: millis(files),
            measured,
            why: String::new(),
            dump_ms: None,
            took_ms: None,
        });
        methods
    }

    fn of_database(
        &self,
        (name, method, bytes, why): (&str, CaptureMethod, u64, &str),
        just_now: &[MethodRun],
    ) -> MethodEstimate {
        let (estimate_ms, measured) = self.of_method(name, method, bytes, just_now);
        let is_copy = method == CaptureMethod::TemplateCopy;
        let dump_ms = is_copy.then(|| self.of_method(name, CaptureMethod::Dump, bytes, just_now).0);
        let (what, why) = (name.to_owned(), why.to_owned());
        MethodEstimate { what, method, bytes, estimate_ms, measured, why, dump_ms, took_ms: None }
    }

    /// Estimates the duration of a method for a database in milliseconds, with the time of the measurement.
    fn of_method(&self, name: &str, method: CaptureMethod, bytes: u64, just_now: &[MethodRun]) -> (u64, Option<Timestamp>) {
        let is_this = |run: &MethodRun| run.what == name && run.method == method;
        if let Some(run) = just_now.iter().find(|run| is_this(run)) {
            return (run.ms, Some(Timestamp::now()));
        }
        let scaled = |run: &MethodRun| {
            let scaled = u128::from(run.ms) * u128::from(bytes) / u128::from(run.bytes.max(1));
            u64::try_from(scaled).unwrap_or(u64::MAX).max(run.ms)
        };
        let known = self.methods.iter().rev().filter(|timed| is_this(&timed.run)).take(COMPARED);
        match known.max_by_key(|timed| scaled(&timed.run)) {
            Some(timed) => (scaled(&timed.run), Some(timed.at)),
            None => {
                let megabytes = u32::try_from(bytes / 1_000_000).unwrap_or(u32::MAX);
                let rate = RATES.iter().find(|(of, ..)| *of == method);
                (rate.map_or(0, |(_, base, each)| millis(base.saturating_add(each.saturating_mul(megabytes)))), None)
            }
        }
    }

    /// Returns the longest of the last captures of files, and its time.
    fn last_files(&self) -> (Duration, Option<Timestamp>) {
        let last = self.points.iter().rev().take(COMPARED).max_by_key(|run| run.files_ms);
        last.map_or((LEAST, None), |run| (Duration::from_millis(run.files_ms), Some(run.at)))
    }

    /// Estimates the duration of the exact capture of the files that follows `early`, a restore point that was just taken, and returns the time
    /// of the measurement.
    fn files(&self, early: &PointCounts) -> (Duration, Option<Timestamp>) {
        let took = Duration::from_millis(early.files_ms);
        // A capture that copied nothing has done the work of the next capture.
        let copied = early.copied_bytes.saturating_sub(early.dump_bytes);
        if copied == 0 {
            return (took, Some(Timestamp::now()));
        }
        let entries = u32::try_from(early.entries).unwrap_or(u32::MAX);
        // Only a few files change until the exact restore point. A capture that copied much says nothing about such a capture.
        let few = |run: &&PointRun| run.copied_bytes.saturating_sub(run.dump_bytes) <= early.bytes / 20;
        let scaled = |run: &PointRun| {
            let millis = run.files_ms.saturating_mul(early.entries.max(1)) / run.entries.max(1);
            Duration::from_millis(millis.max(run.files_ms))
        };
        let known = self.points.iter().rev().filter(few).take(COMPARED).map(|run| (scaled(run), run.at)).max();
        let assumed = || {
            let share = u32::try_from(copied / 20 / 1_000_000).unwrap_or(u32::MAX);
            LEAST.saturating_add(ENTRY.saturating_mul(entries)).saturating_add(MEGABYTE.saturating_mul(share))
        };
        let (time, measured) = known.map_or_else(|| (assumed(), None), |(time, at)| (time, Some(at)));
        // The next capture reads less than the capture that has just copied the files, so it does not take longer.
        if time > took.max(LEAST) { (took.max(LEAST), Some(Timestamp::now())) } else { (time, measured) }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
        let first = Durations::read(&path).files(&full);
        assert_eq!(first, (Duration::from_millis(300 + 3_000 + 50 * 20), None), "assumed rates");
        for (copied, millis) in [(0, 5_000), (10_000_000, 400), (900_000_000, 8_000), (0, 700), (0, 600)] {
            Durations::add_point(&path, &point(counts(20_000, copied, millis, 0), Vec::new()));
        }
        let time = |of: &PointCounts| Durations::read(&path).files(of).0;
        assert_eq!(time(&full), Duration::from_millis(700));
        assert!(Durations::read(&path).files(&full).1.is_some());
        let twice = counts(40_000, 1_000_000_000, 9_000, 0);
        assert_eq!(time(&twice), Duration::from_millis(1_400), "scaled with the entries");
        assert_eq!(time(&counts(20_000, 0, 450, 30)), Duration::from_millis(450), "just measured");
    }

    fn point(counts: PointCounts, runs: Vec<MethodRun>) -> PointInfo {
        let (id, state) = (String::from("x"), crate::backup::PointState::Unverified);
        PointInfo { id, taken: None, label: None, state, counts, skipped: Vec::new(), runs }
    }

    #[test]
    fn database_is_estimated_from_its_last_runs_or_an_assumed_rate() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("durations.json");
        let run = |method, bytes, ms| MethodRun { what: String::from("main"), method, bytes, ms, fallback: String::new() };
        let dump = run(CaptureMethod::Dump, 100_000_000, 4_000);
        let early = point(counts(1, 0, 100, 4_000), vec![dump]);
        let survey = |bytes| {
            let (method, why) = (CaptureMethod::TemplateCopy, String::new());
            vec![DatabaseSurvey { name: "main".parse().unwrap(), bytes, method, why }]
        };
        let main = |bytes| Durations::read(&path).methods(Some(&early), &survey(bytes), false).swap_remove(0);
        let assumed = main(100_000_000);
        assert_eq!((assumed.estimate_ms, assumed.measured, assumed.dump_ms), (3_000 + 12 * 100, None, Some(4_000)));
        assert!(assumed.to_string().ends_with("(assumed rate)"), "{assumed}");
        for ms in [9_000, 300, 500, 400] {
            Durations::add_point(&path, &point(counts(1, 0, 1, 1), vec![run(CaptureMethod::TemplateCopy, 50_000_000, ms)]));
        }
        let measured = main(100_000_000);
        assert_eq!(measured.estimate_ms, 1_000, "the slowest of the last three runs, scaled with the size");
        assert!(
            measured.to_string().contains("copy on the server") && measured.to_string().contains("measured on "),
            "{measured}"
        );
        assert_eq!(main(1).estimate_ms, 500, "a small database takes as long as a larger one at least");
        let all = Durations::read(&path).methods(Some(&early), &[], true);
        assert_eq!(all.iter().map(|one| one.method).collect::<Vec<_>>(), [CaptureMethod::Dump, CaptureMethod::Reflink]);
        let later = Durations::read(&path).methods(None, &survey(100_000_000), false);
        assert_eq!(later[0].dump_ms, Some(500 + 80 * 100));
    }

    #[test]
    fn record_is_bounded_and_a_damaged_record_is_empty() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("durations.json");
        let hold = HoldRun {
            at: Timestamp::now(),
            number: ReleaseNumber(1),
            estimate_ms: None,
            held_ms: 5,
            committed: true,
            methods: Vec::new(),
        };
        for _ in 0..40 {
            Durations::add_point(&path, &point(counts(1, 1, 1, 1), Vec::new()));
            Durations::add_hold(&path, hold.clone());
        }
        let record = Durations::read(&path);
        assert_eq!((record.points.len(), record.holds.len()), (KEPT, KEPT));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Durations::read(&path), Durations::default());
    }
}
