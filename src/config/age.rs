//! How old something may become that is kept.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::error::shown;

/// An age, written `12h`, `90d`, `12w` or `2y` (of 365 days); at least an hour, at most 100 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(u64);

impl Age {
    /// What is expected, for errors.
    pub(super) const EXPECTED: &'static str = "an age such as 12h, 90d, 12w or 2y";
    /// Hours of each unit, largest first.
    const UNITS: [(&'static str, u64); 4] = [("y", 365 * 24), ("w", 7 * 24), ("d", 24), ("h", 1)];
    const MOST: u64 = 100 * 365 * 24;

    /// The same for the clock.
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
            Some(age) if (1..=Age::MOST).contains(&age) => Ok(Age(age)),
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

impl TryFrom<String> for Age {
    type Error = String;
    fn try_from(text: String) -> Result<Age, String> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> String {
        age.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units_and_limits() {
        for (text, hours, shown) in [("12h", 12, "12h"), ("90d", 2160, "90d"), ("14 d", 336, "2w"), ("2y", 17520, "2y")] {
            let age: Age = text.parse().unwrap();
            assert_eq!((age.get(), age.to_string().as_str()), (Duration::from_secs(hours * 3600), shown), "{text}");
        }
        for text in ["", "90", "d", "-1d", "0d", "1.5y", "101y", "99999999999999999999w", "5m", "9d9d", "+1d"] {
            assert!(text.parse::<Age>().is_err(), "{text}");
        }
    }
}
