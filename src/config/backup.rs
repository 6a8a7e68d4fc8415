//! The section `backup:` of the server file: the schedule of restore points, and the rules by which they are verified and removed.

use croner::{Cron, parser::CronParser};
use jiff::{Timestamp, tz::TimeZone};

use super::{
    error::shown,
    keep::{self, BackupKeep, KEEP_KEYS, number, set},
    keys::{
        self,
        Fallback::{Is, Says, Unstated},
        KeyRow,
    },
    offsite::{self, OffsiteConfig},
    quantity::{Age, ByteSize, TimeSpan},
};

/// The maximum length of a schedule or of the name of a time zone, in bytes.
const MAX_TEXT: usize = 100;

/// Settings of scheduled restore points.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupConfig {
    /// The times at which a restore point of each environment is taken; `None` if no restore points are scheduled.
    pub schedule: Option<Schedule>,
    /// The time zone of the schedules.
    pub time_zone: TimeZone,
    /// The time over which the runs of the environments are distributed.
    pub spread: TimeSpan,
    /// The maximum number of environments whose scheduled work runs at the same time.
    pub parallel: u16,
    /// The maximum number of bytes of older restore points that are read back within 24 hours, for each environment.
    pub reverify: ByteSize,
    /// The time after which the next run repeats the drill; `None` if the schedule starts no drills.
    pub drill: Option<Age>,
    /// The rules by which restore points are removed.
    pub keep: BackupKeep,
    /// The stores outside of this machine to which restore points are copied.
    pub offsite: Vec<OffsiteConfig>,
}

impl Default for BackupConfig {
    fn default() -> BackupConfig {
        BackupConfig {
            schedule: Schedule::parse("0 2 * * *").ok(),
            time_zone: TimeZone::UTC,
            spread: TimeSpan::minutes(120),
            parallel: 1,
            reverify: ByteSize::mebibytes(10 << 10),
            drill: None,
            keep: BackupKeep::default(),
            offsite: Vec::new(),
        }
    }
}

/// A cron pattern of five fields, or of six fields with the seconds first.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Schedule) -> bool {
        self.text == other.text
    }
}

impl Schedule {
    /// Parses a cron pattern. Returns the reason as the error if the pattern is invalid or matches no time.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("the schedule has {} bytes (limit {MAX_TEXT})", text.len()));
        }
        let cron = CronParser::new().parse(text).map_err(|error| {
            let why = error.to_string();
            format!("{} is not a schedule: {}", shown(text), why.trim_end_matches('.'))
        })?;
        let schedule = Schedule { text: text.to_owned(), cron };
        match schedule.next_after(Timestamp::now(), &TimeZone::UTC) {
            Some(_) => Ok(schedule),
            None => Err(format!("{} matches no time", shown(text))),
        }
    }

    /// Returns the first time after `after` that the pattern matches; `None` if no time follows. If a change of the clock skips a matching
    /// time, the moment of the change is returned instead.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        self.cron.find_next_occurrence(&after.to_zoned(zone.clone()), false).ok().map(|next| next.timestamp())
    }

    /// Returns the last time at or before `at` that the pattern matches; `None` if no time precedes.
    pub fn last_until(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        self.cron.find_previous_occurrence(&at.to_zoned(zone.clone()), true).ok().map(|last| last.timestamp())
    }

    /// Returns the pattern.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The keys of the section `backup:`.
pub(super) const BACKUP_KEYS: &[KeyRow<BackupConfig>] = &[
    KeyRow::value(
        "schedule",
        "The times at which a restore point of each environment with data is taken and read back: a cron pattern (minute, hour, day of the month, month, day of the week), a pattern with seconds as a sixth field in front, or off. If runs were missed while the server did not run, one run makes up for all of them.",
        Is("\"0 2 * * *\""),
        "\"0 2 * * *\"",
        |reader, node, key, backup| {
            const EXPECTED: &str = "a cron pattern such as \"0 2 * * *\", or off";
            let read = |text: &str| if text == "off" { Ok(None) } else { Schedule::parse(text).map(Some) };
            set(&mut backup.schedule, reader.value(node, key, EXPECTED, read));
        },
    ),
    KeyRow::value(
        "time_zone",
        "The time zone of the schedule, as a name of the IANA database, such as Europe/Berlin.",
        Is("UTC"),
        "UTC",
        |reader, node, key, backup| {
            let expected = "a time zone that this machine has, such as UTC or Europe/Berlin";
            set(&mut backup.time_zone, reader.value(node, key, expected, time_zone));
        },
    ),
    KeyRow::value(
        "spread",
        "The time over which the runs of the environments are distributed. Each environment starts at its own, constant delay after the scheduled time.",
        Is("2h"),
        "2h",
        |reader, node, key, backup| set(&mut backup.spread, reader.time_within(node, key, TimeSpan::minutes(24 * 60))),
    ),
    KeyRow::value(
        "parallel",
        "The maximum number of environments whose restore points are taken, read back or removed by the schedule at the same time.",
        Is("1"),
        "1",
        |reader, node, key, backup| set(&mut backup.parallel, number(reader, node, key, 1, 64)),
    ),
    KeyRow::value(
        "reverify",
        "The bytes of older restore points of one environment that are read back within 24 hours, in turn, beginning with the restore points that were never read back. 0 reads back only new restore points.",
        Is("10G"),
        "10G",
        |reader, node, key, backup| set(&mut backup.reverify, reader.size(node, key)),
    ),
    KeyRow::value(
        "drill",
        "The time after which a run repeats the drill: a restore of the new restore point into a scratch place, in which the live release is started and checked. A drill needs the disk space of a restore.",
        Says("no drills"),
        "30d",
        |reader, node, key, backup| backup.drill = reader.age(node, key),
    ),
    KeyRow::custom(
        "keep",
        "The restore points that stay after each successful run; the others are removed. A restore point stays if at least one of these rules selects it and `bytes` is not exceeded. Days, weeks, months and years are in UTC. The newest restore point that was read back, and the last restore points of the live release, of its two predecessors and of pinned releases always stay. Restore points that are not read back yet, or that are damaged, are not removed and do not count.",
        Unstated,
        || keys::render(KEEP_KEYS),
        |reader, node, key, backup| keep::read_keep(reader, node, key, &mut backup.keep),
    ),
    KeyRow::custom(
        "offsite",
        "The stores to which each restore point is copied after it was taken, encrypted and in the format of restic. The rules of `keep` apply to the copies as well.",
        Says("none"),
        offsite::render_store,
        |reader, node, key, backup| backup.offsite = offsite::read_stores(reader, node, key),
    ),
];

/// Finds a time zone by its name. UTC is found even if the machine has no database of time zones.
fn time_zone(text: &str) -> Result<TimeZone, String> {
    if text == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let is_name = text.len() <= MAX_TEXT && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"/_+-".contains(&c));
    let found = if is_name { TimeZone::get(text).ok() } else { None };
    found.ok_or_else(|| format!("{} is not a time zone of this machine", shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServerConfig;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn parsed(text: &str) -> Result<BackupConfig, String> {
        ServerConfig::parse("", text.as_bytes()).map(|config| config.backup).map_err(|problems| problems[0].to_string())
    }

    #[test]
    fn schedule_follows_the_time_zone_over_a_change_of_the_clock() {
        let schedule = Schedule::parse("30 2 * * *").unwrap();
        let Ok(berlin) = time_zone("Europe/Berlin") else {
            eprintln!("SKIPPED: this machine has no time zones");
            return;
        };
        let next = |after| schedule.next_after(at(after), &berlin).unwrap();
        assert_eq!(next("2026-03-27T12:00:00Z"), at("2026-03-28T01:30:00Z"));
        // On 29 March, 02:30 does not exist: the clock goes from 02:00 to 03:00.
        assert_eq!(next("2026-03-28T12:00:00Z"), at("2026-03-29T01:00:00Z"));
        // On 25 October, 02:30 exists twice, and the pattern matches once.
        assert_eq!(next("2026-10-24T12:00:00Z"), at("2026-10-25T00:30:00Z"));
        assert_eq!(next("2026-10-25T00:30:00Z"), at("2026-10-26T01:30:00Z"));
        assert_eq!(schedule.last_until(at("2026-10-26T01:30:00Z"), &berlin), Some(at("2026-10-26T01:30:00Z")));
    }

    #[test]
    fn bad_schedule_time_zone_or_number_is_reported() {
        let backup = parsed("backup: {schedule: '*/10 * * * * *', time_zone: UTC, keep: {daily: 30, bytes: 5G}}").unwrap();
        assert_eq!(backup.schedule.unwrap().as_str(), "*/10 * * * * *");
        assert_eq!((backup.keep.daily, backup.keep.bytes), (30, "5G".parse().ok()));
        assert_eq!(parsed("backup: {schedule: off}").unwrap().schedule, None);
        for bad in [
            "schedule: ''",
            "schedule: daily",
            "schedule: '61 * * * *'",
            "schedule: '0 2 30 2 *'",
            "schedule: [1]",
            "time_zone: Mars/Olympus",
            "time_zone: ../../etc/passwd",
            "spread: 2d",
            "parallel: 0",
            "keep: {daily: -1}",
            "keep: {hourly: 1}",
            "nightly: true",
        ] {
            let why = parsed(&format!("backup: {{{bad}}}")).unwrap_err();
            assert!(why.starts_with("larder.yml:1: "), "{bad}: {why}");
        }
    }
}
