//! Retention: decides which restore points are kept. The decision depends only on the times and sizes of the restore points, on the rules,
//! and on the ids of the protected restore points.

use std::collections::HashSet;

use jiff::{Timestamp, civil::Date, tz::Offset};

/// A restore point that can be kept or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The id.
    pub id: String,
    /// Time of the capture, in seconds since 1970.
    pub taken: i64,
}

/// The rules. A restore point is kept if at least one rule selects it. Days, weeks, months and years are in UTC; weeks begin on
/// Monday.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// The number of newest restore points that are kept.
    pub last: u32,
    /// The number of days of which the newest restore point is kept. Days without a restore point do not count.
    pub daily: u32,
    /// The number of weeks of which the newest restore point is kept. Weeks without a restore point do not count.
    pub weekly: u32,
    /// The number of months of which the newest restore point is kept. Months without a restore point do not count.
    pub monthly: u32,
    /// The number of years of which the newest restore point is kept. Years without a restore point do not count.
    pub yearly: u32,
    /// The maximum size of all kept restore points together, in bytes. The oldest restore points are removed first. The newest restore
    /// point and the protected restore points are never removed, even if they exceed this size.
    pub bytes: Option<u64>,
}

/// The decision about a restore point, with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The id.
    pub id: String,
    /// True if the restore point is kept.
    pub is_kept: bool,
    /// The rules that select the restore point: `last`, `daily`, `weekly`, `monthly`, `yearly`, `protected`, `newest`. If the
    /// restore point is nevertheless removed because of its size, also `bytes`.
    pub rules: Vec<&'static str>,
}

/// A function that returns the day, week, month or year of a date.
type Period = fn(Date) -> (i16, i16);

/// Returns the decisions about all `points`, newest first. `size_of` returns the bytes that a set of restore points uses, where
/// shared files count once; see [`Usage::bytes_of`](crate::Usage::bytes_of). The newest restore point is always kept.
pub fn plan_retention(points: &[Candidate], keep: &Keep, protected: &[&str], size_of: impl Fn(&[&str]) -> u64) -> Vec<Decision> {
    let mut sorted: Vec<&Candidate> = points.iter().collect();
    sorted.sort_by(|a, b| b.taken.cmp(&a.taken).then_with(|| b.id.cmp(&a.id)));
    let mut decisions: Vec<Decision> =
        sorted.iter().map(|point| Decision { id: point.id.clone(), is_kept: false, rules: Vec::new() }).collect();
    for (at, decision) in decisions.iter_mut().enumerate() {
        if at == 0 {
            decision.rules.push("newest");
        }
        if protected.contains(&decision.id.as_str()) {
            decision.rules.push("protected");
        }
        if at < keep.last as usize {
            decision.rules.push("last");
        }
    }
    let periods: [(&'static str, u32, Period); 4] = [
        ("daily", keep.daily, |date| (date.year(), date.day_of_year())),
        ("weekly", keep.weekly, |date| (date.iso_week_date().year(), date.iso_week_date().week().into())),
        ("monthly", keep.monthly, |date| (date.year(), date.month().into())),
        ("yearly", keep.yearly, |date| (date.year(), 0)),
    ];
    for (rule, number, period) in periods {
        let mut seen = HashSet::new();
        for (point, decision) in sorted.iter().zip(&mut decisions) {
            if seen.len() < number as usize && seen.insert(period(date(point.taken))) {
                decision.rules.push(rule);
            }
        }
    }
    for decision in &mut decisions {
        decision.is_kept = !decision.rules.is_empty();
    }
    if let Some(limit) = keep.bytes {
        while size_of(&kept(&decisions)) > limit {
            let is_free = |decision: &&mut Decision| {
                decision.is_kept && !decision.rules.contains(&"newest") && !decision.rules.contains(&"protected")
            };
            let Some(oldest) = decisions.iter_mut().rev().find(is_free) else { break };
            oldest.is_kept = false;
            oldest.rules.push("bytes");
        }
    }
    decisions
}

fn kept(decisions: &[Decision]) -> Vec<&str> {
    decisions.iter().filter(|decision| decision.is_kept).map(|decision| decision.id.as_str()).collect()
}

/// Returns the date of a time in UTC. A time outside of the calendar becomes the first or the last day.
fn date(taken: i64) -> Date {
    let last = if taken < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Offset::UTC.to_datetime(Timestamp::from_second(taken).unwrap_or(last)).date()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns candidates that are named after their times: `YYYY-MM-DD`, or `MM-DD` of 2026, each with an hour or without.
    fn points(times: &[&str]) -> Vec<Candidate> {
        let second = |time: &str| {
            let (day, hour) = time.split_once(' ').unwrap_or((time, "12"));
            let day = if day.len() == 5 { format!("2026-{day}") } else { day.to_owned() };
            format!("{day}T{hour}:00:00Z").parse::<Timestamp>().unwrap().as_second()
        };
        times.iter().map(|time| Candidate { id: (*time).to_owned(), taken: second(time) }).collect()
    }

    fn kept_of(times: &[&str], keep: Keep, protected: &[&str]) -> Vec<String> {
        let decisions = plan_retention(&points(times), &keep, protected, |ids| ids.len() as u64 * 10);
        assert_eq!(decisions.len(), times.len());
        decisions.into_iter().filter(|decision| decision.is_kept).map(|decision| decision.id).collect()
    }

    #[test]
    fn rules_keep_expected_points() {
        let none = Keep::default();
        let days = ["01-01", "01-02", "01-03 06", "01-03 18", "01-05", "01-12", "02-01", "2025-12-31", "2024-06-01"];
        let table: &[(Keep, &[&str], &[&str])] = &[
            (none, &[], &["02-01"]),
            (Keep { last: 2, ..none }, &[], &["02-01", "01-12"]),
            (
                Keep { last: 99, ..none },
                &[],
                &["02-01", "01-12", "01-05", "01-03 18", "01-03 06", "01-02", "01-01", "2025-12-31", "2024-06-01"],
            ),
            // Two restore points of one day count as one day. The newest restore point of the day is kept.
            (Keep { daily: 4, ..none }, &[], &["02-01", "01-12", "01-05", "01-03 18"]),
            // Thursday 1 January 2026 and 31 December 2025 are in one week.
            (Keep { weekly: 4, ..none }, &[], &["02-01", "01-12", "01-05", "01-03 18"]),
            (Keep { weekly: 5, ..none }, &[], &["02-01", "01-12", "01-05", "01-03 18", "2024-06-01"]),
            (Keep { monthly: 3, ..none }, &[], &["02-01", "01-12", "2025-12-31"]),
            (Keep { yearly: 2, ..none }, &[], &["02-01", "2025-12-31"]),
            (Keep { yearly: 9, last: 2, ..none }, &[], &["02-01", "01-12", "2025-12-31", "2024-06-01"]),
            (none, &["2024-06-01", "01-02"], &["02-01", "01-02", "2024-06-01"]),
            // Each restore point has 10 bytes. The oldest restore points are removed, but neither the newest nor the protected restore
            // points.
            (Keep { last: 5, bytes: Some(30), ..none }, &[], &["02-01", "01-12", "01-05"]),
            (Keep { last: 5, bytes: Some(30), ..none }, &["01-01"], &["02-01", "01-12", "01-01"]),
            (Keep { last: 5, bytes: Some(0), ..none }, &[], &["02-01"]),
        ];
        for (keep, protected, expected) in table {
            assert_eq!(kept_of(&days, *keep, protected), *expected, "{keep:?} {protected:?}");
        }
        assert!(plan_retention(&[], &Keep { last: 1, ..none }, &["x"], |_| 0).is_empty());
    }

    #[test]
    fn reasons_are_named_and_absurd_times_are_ordered() {
        let mut points = points(&["01-01", "01-02"]);
        points.push(Candidate { id: "first".into(), taken: i64::MIN });
        points.push(Candidate { id: "last".into(), taken: i64::MAX });
        let keep = Keep { last: 1, daily: 2, bytes: Some(10), ..Keep::default() };
        let decisions = plan_retention(&points, &keep, &[], |ids| ids.len() as u64 * 10);
        let ids: Vec<_> = decisions.iter().map(|decision| decision.id.as_str()).collect();
        assert_eq!(ids, ["last", "01-02", "01-01", "first"]);
        assert_eq!(decisions[0].rules, ["newest", "last", "daily"]);
        assert_eq!((decisions[1].is_kept, decisions[1].rules.as_slice()), (false, &["daily", "bytes"][..]));
        assert!(!decisions[3].is_kept && decisions[3].rules.is_empty());
    }
}
