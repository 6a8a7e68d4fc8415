//! The record of daily totals, and the forecast of the day on which the file system will be full.

use std::{collections::BTreeMap, path::Path};

use jiff::{Timestamp, civil::Date};
use serde::{Deserialize, Serialize};

use crate::{host::files, model::ProjectId};

/// The size limit of the record, in bytes.
const MAX_RECORD: u64 = 8 << 20;

/// The number of days that the record keeps.
const MAX_DAYS: usize = 62;

/// The number of days whose rate the forecast uses.
const FORECAST_DAYS: i64 = 30;

/// The minimum number of daily totals for a forecast.
const MIN_TOTALS: usize = 3;

/// The totals of one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTotals {
    /// The day, in UTC.
    pub day: Date,
    /// The used bytes of the file system that contains larder's root.
    pub used: u64,
    /// The bytes of each project that was measured.
    #[serde(default)]
    pub projects: BTreeMap<ProjectId, u64>,
}

/// The daily totals, `state/disk.json`, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskHistory {
    version: u32,
    days: Vec<DiskTotals>,
}

/// The expected time until the file system is full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Forecast {
    /// The record of daily totals cannot be read.
    Unreadable {
        /// The reason, with a remedy.
        why: String,
    },
    /// There are too few daily totals.
    NotEnoughHistory {
        /// The number of daily totals.
        totals: usize,
        /// The minimum number of daily totals.
        needed: usize,
    },
    /// The used space did not grow.
    NotGrowing {
        /// The change per day, in bytes; zero or negative.
        bytes_per_day: i64,
    },
    /// The used space grows.
    Full {
        /// The growth per day, in bytes.
        bytes_per_day: i64,
        /// The days until no space is free.
        days: u64,
    },
}

impl Default for DiskHistory {
    fn default() -> DiskHistory {
        DiskHistory { version: DiskHistory::VERSION, days: Vec::new() }
    }
}

impl DiskHistory {
    const VERSION: u32 = 1;

    /// Reads the record. A missing record is empty.
    ///
    /// # Errors
    /// The reason, with a remedy, if the record cannot be read or was written by a newer version of larder.
    pub fn read(path: &Path) -> Result<DiskHistory, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if !path.exists() {
            return Ok(DiskHistory::default());
        }
        let unreadable = |why: String| {
            format!(
                "cannot read the record of disk usage: {why}\nhint: move {} away; the record then begins anew",
                path.display()
            )
        };
        let bytes = files::read_limited(path, MAX_RECORD).map_err(|error| unreadable(error.to_string()))?;
        let Version { version } = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if version > DiskHistory::VERSION {
            return Err(unreadable(format!("its version is {version} (expected at most {})", DiskHistory::VERSION)));
        }
        serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))
    }

    /// Writes the record durably.
    pub fn write(&self, path: &Path) -> Result<(), files::FileError> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        files::write_atomic(path, &bytes, 0o600)
    }

    /// Returns true if the totals of the day of `now` are missing.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.days.last().is_none_or(|last| last.day != day_of(now))
    }

    /// Adds the totals of the day of `now`, and removes the oldest totals. Totals of a later day, from a clock that was set back, are
    /// removed as well.
    pub fn add(&mut self, now: Timestamp, used: u64, projects: BTreeMap<ProjectId, u64>) {
        let day = day_of(now);
        self.days.retain(|totals| totals.day < day);
        self.days.push(DiskTotals { day, used, projects });
        let surplus = self.days.len().saturating_sub(MAX_DAYS);
        self.days.drain(..surplus);
    }

    /// Returns the daily totals, oldest first.
    pub fn days(&self) -> &[DiskTotals] {
        &self.days
    }

    /// Returns the time until `free` bytes are used, at the rate of the last 30 days. The rate is the slope of a least-squares line through
    /// the daily totals, so a single day with much or little usage changes the forecast little.
    pub fn forecast(&self, now: Timestamp, free: u64) -> Forecast {
        let today = day_of(now);
        let age = |totals: &DiskTotals| i64::from((today - totals.day).get_days());
        let recent: Vec<_> = self.days.iter().filter(|totals| (0..=FORECAST_DAYS).contains(&age(totals))).collect();
        if recent.len() < MIN_TOTALS {
            return Forecast::NotEnoughHistory { totals: recent.len(), needed: MIN_TOTALS };
        }
        let points: Vec<(f64, f64)> = recent.iter().map(|totals| (-(age(totals) as f64), totals.used as f64)).collect();
        let number = points.len() as f64;
        let (mean_day, mean_used) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / number, y + point.1 / number));
        let above: f64 = points.iter().map(|(x, y)| (x - mean_day) * (y - mean_used)).sum();
        let below: f64 = points.iter().map(|(x, _)| (x - mean_day).powi(2)).sum();
        let bytes_per_day = (above / below) as i64;
        match u64::try_from(bytes_per_day) {
            Ok(rate) if rate > 0 => Forecast::Full { bytes_per_day, days: free / rate },
            _ => Forecast::NotGrowing { bytes_per_day },
        }
    }
}

fn day_of(now: Timestamp) -> Date {
    now.to_zoned(jiff::tz::TimeZone::UTC).date()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn forecast_needs_three_daily_totals_and_follows_their_slope() {
        let mut history = DiskHistory::default();
        let now = at("2026-05-03T10:00:00Z");
        assert!(history.is_due(now));
        history.add(at("2026-05-01T10:00:00Z"), 1000, BTreeMap::new());
        history.add(at("2026-05-02T10:00:00Z"), 1100, BTreeMap::new());
        assert_eq!(history.forecast(now, 950), Forecast::NotEnoughHistory { totals: 2, needed: 3 });
        history.add(now, 1200, BTreeMap::new());
        assert!(!history.is_due(now));
        assert_eq!(history.forecast(now, 950), Forecast::Full { bytes_per_day: 100, days: 9 });
        history.add(now, 1000, BTreeMap::new());
        assert_eq!(history.forecast(now, 950), Forecast::NotGrowing { bytes_per_day: 0 });
        assert_eq!(history.days().len(), 3, "a second measurement of a day replaces the first");
        let later = at("2026-07-03T10:00:00Z");
        assert_eq!(history.forecast(later, 950), Forecast::NotEnoughHistory { totals: 0, needed: 3 });
    }

    #[test]
    fn history_is_read_back_and_keeps_62_days() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.json");
        let mut history = DiskHistory::read(&path).unwrap();
        for day in 0..100 {
            history.add(
                at("2026-01-01T00:00:00Z") + jiff::SignedDuration::from_hours(24 * day),
                1,
                BTreeMap::from([(ProjectId(3), 5)]),
            );
        }
        assert_eq!(history.days().len(), MAX_DAYS);
        history.write(&path).unwrap();
        assert_eq!(DiskHistory::read(&path), Ok(history));
        std::fs::write(&path, "{\"version\": 2}").unwrap();
        assert!(DiskHistory::read(&path).unwrap_err().contains("its version is 2 (expected at most 1)\nhint: move"));
    }
}
