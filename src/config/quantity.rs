//! Amounts in configuration files: durations, sizes, ages and ranges of HTTP statuses. A duration, a size or an age is a number with a
//! unit.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::error::shown;
use crate::model::text_form;

/// A span of time of at most 30 days, written as `500ms`, `90s`, `15m`, `1h` or `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeSpan(Duration);

impl TimeSpan {
    /// The expected form of the text, for errors.
    pub(super) const EXPECTED: &'static str = "a duration such as 500ms, 90s, 15m or 1h";
    /// The maximum span: 30 days.
    const MAX: Duration = Duration::from_secs(30 * 24 * 3600);

    /// The maximum of `drain` in a recipe.
    pub const MAX_DRAIN: TimeSpan = TimeSpan::minutes(15);
    /// The maximum of `hold` in a recipe.
    pub const MAX_HOLD: TimeSpan = TimeSpan::minutes(5);
    /// The maximum of `stop.grace` in a recipe.
    pub const MAX_GRACE: TimeSpan = TimeSpan::minutes(15);
    /// The maximum of `health.timeout` in a recipe.
    pub const MAX_HEALTH: TimeSpan = TimeSpan::minutes(60);
    /// The maximum of `health.interval` in a recipe.
    pub const MAX_INTERVAL: TimeSpan = TimeSpan::minutes(1);
    /// The maximum time limit of a phase in a recipe.
    pub const MAX_PHASE: TimeSpan = TimeSpan::minutes(24 * 60);

    /// Creates a span of whole seconds.
    pub const fn seconds(seconds: u64) -> TimeSpan {
        TimeSpan(Duration::from_secs(seconds))
    }

    /// Creates a span of whole minutes.
    pub const fn minutes(minutes: u64) -> TimeSpan {
        TimeSpan(Duration::from_secs(minutes * 60))
    }

    /// Returns the span as a [`Duration`].
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeSpan {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text);
        let number: u64 = number.parse().map_err(|_| format!("{} is not a duration", shown(text)))?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(format!("{} has no unit", shown(text))),
            other => return Err(format!("{} has the unknown unit {}", shown(text), shown(other))),
        };
        let span = number.checked_mul(milliseconds).map(Duration::from_millis).filter(|span| *span <= Self::MAX);
        span.map(TimeSpan).ok_or_else(|| format!("{} is longer than 30 days", shown(text)))
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
        match units.into_iter().find(|(unit, _)| milliseconds > 0 && milliseconds.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", milliseconds / unit),
            None => write!(f, "{milliseconds}ms"),
        }
    }
}

text_form!(TimeSpan, String);

/// An amount of memory or disk space. The text is a number of bytes, or a number with a unit, such as `512K`, `64M`, `2G` or `1T`. The
/// units are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

impl ByteSize {
    /// The expected form of the text, for errors.
    pub(super) const EXPECTED: &'static str = "a size such as 512M or 2G";
    /// The maximum size in bytes: 1024T. With this limit, sums of sizes do not overflow, and every size fits into the kernel's signed
    /// 64-bit integers.
    const MAX_BYTES: u64 = 1 << 50;

    /// Creates a size of whole MiB.
    pub const fn mebibytes(number: u64) -> ByteSize {
        ByteSize(number << 20)
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text);
        let number: u64 = number.parse().map_err(|_| format!("{} is not a size", shown(text)))?;
        let factor: u64 = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 1,
            "K" | "KB" | "KIB" => 1 << 10,
            "M" | "MB" | "MIB" => 1 << 20,
            "G" | "GB" | "GIB" => 1 << 30,
            "T" | "TB" | "TIB" => 1 << 40,
            _ => return Err(format!("{} has the unknown unit {}", shown(text), shown(unit))),
        };
        let bytes = number.checked_mul(factor).filter(|bytes| *bytes <= Self::MAX_BYTES);
        bytes.map(ByteSize).ok_or_else(|| format!("{} is more than 1024T", shown(text)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        match units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((shift, name)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

text_form!(ByteSize, String);

fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    (number, unit.trim_start_matches(' '))
}

/// A range of HTTP statuses, written as `200` or `200-399`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StatusRange {
    /// The lowest status of the range.
    pub from: u16,
    /// The highest status of the range, inclusive.
    pub to: u16,
}

impl StatusRange {
    /// Returns true if `status` is within the range.
    pub fn contains(self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

impl FromStr for StatusRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let status = |text: &str| {
            let text = text.trim();
            (text.len() == 3).then(|| text.parse::<u16>().ok()).flatten().filter(|status| (100..=599).contains(status))
        };
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (status(from), status(to)) {
            (Some(from), Some(to)) if from <= to => Ok(StatusRange { from, to }),
            _ => Err(format!("{} is neither a status nor a range of statuses", shown(text))),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { write!(f, "{}", self.from) } else { write!(f, "{}-{}", self.from, self.to) }
    }
}

text_form!(StatusRange, String);

/// An age from 1 hour to 100 years, written as `12h`, `90d`, `12w` or `2y`. A year has 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(u64);

impl Age {
    /// The expected form of the text, for errors.
    pub(super) const EXPECTED: &'static str = "an age such as 12h, 90d, 12w or 2y";
    /// The hours of each unit, largest unit first.
    const UNITS: [(&'static str, u64); 4] = [("y", 365 * 24), ("w", 7 * 24), ("d", 24), ("h", 1)];
    /// The maximum age in hours: 100 years.
    const MAX_HOURS: u64 = 100 * 365 * 24;

    /// Returns the age as a [`Duration`].
    pub const fn get(self) -> Duration {
        Duration::from_secs(self.0 * 3600)
    }
}

impl FromStr for Age {
    type Err = String;
    fn from_str(text: &str) -> Result<Age, String> {
        let wrong = || format!("{} is not an age", shown(text));
        let (unit, hours) = Age::UNITS.into_iter().find(|(unit, _)| text.ends_with(unit)).ok_or_else(wrong)?;
        let number = text.strip_suffix(unit).map(str::trim_end).unwrap_or_default();
        if number.is_empty() || !number.bytes().all(|c| c.is_ascii_digit()) {
            return Err(wrong());
        }
        let age = number.parse::<u64>().ok().and_then(|number| number.checked_mul(hours));
        match age {
            Some(age) if (1..=Age::MAX_HOURS).contains(&age) => Ok(Age(age)),
            Some(0) => Err(format!("{} is less than an hour", shown(text))),
            _ => Err(format!("{} is more than 100 years", shown(text))),
        }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = Age::UNITS.into_iter().find(|(_, hours)| self.0.is_multiple_of(*hours));
        let (unit, hours) = unit.unwrap_or(("h", 1));
        write!(f, "{}{unit}", self.0 / hours)
    }
}

text_form!(Age, String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_or_size_with_a_bad_number_or_unit_is_rejected() {
        for text in ["500ms", "90s", "15m", "1h", "2d", "0ms"] {
            assert_eq!(text.parse::<TimeSpan>().unwrap().to_string(), text);
        }
        for text in ["1", "512K", "64M", "2G", "1T", "0"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        assert_eq!("2 GiB".parse::<ByteSize>().unwrap().bytes(), 2 << 30);
        assert_eq!("60s".parse::<TimeSpan>().unwrap(), TimeSpan::minutes(1));
        for bad in ["", "s", "5", "5 weeks", "-5s", "99999999999999999999s", "40d", "1.5h", "5\u{20ac}"] {
            assert!(bad.parse::<TimeSpan>().is_err(), "{bad}");
        }
        for bad in ["", "M", "-1", "5X", "99999999999999999999", "2048T", "1.5G"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn status_range_outside_100_to_599_is_rejected() {
        assert!("200-399".parse::<StatusRange>().unwrap().contains(302));
        for bad in ["", "20", "399-200", "200-", "600", "+20"] {
            assert!(bad.parse::<StatusRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn age_without_unit_or_beyond_a_limit_is_rejected() {
        for (text, hours, shown) in [("12h", 12, "12h"), ("90d", 2160, "90d"), ("14 d", 336, "2w"), ("2y", 17520, "2y")] {
            let age: Age = text.parse().unwrap();
            assert_eq!((age.get(), age.to_string().as_str()), (Duration::from_secs(hours * 3600), shown), "{text}");
        }
        for text in ["", "90", "d", "-1d", "0d", "1.5y", "101y", "99999999999999999999w", "5m", "9d9d", "+1d"] {
            assert!(text.parse::<Age>().is_err(), "{text}");
        }
    }
}
