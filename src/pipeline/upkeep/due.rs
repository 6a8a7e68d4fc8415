//! The times of scheduled runs: the next run of an environment, and the runs that were missed while the server did not run. These functions
//! depend only on their arguments.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use crate::{config::Schedule, model::EnvId};

/// The maximum delay of the begin of a run. A scheduled time whose run begins later counts as missed.
const LATE: SignedDuration = SignedDuration::from_mins(5);

/// The maximum number of missed runs that are counted.
const MAX_COUNTED: u32 = 1000;

/// The time by which a clock may be set back before the recorded times count as wrong.
const MAX_CLOCK_STEP: SignedDuration = SignedDuration::from_hours(1);

/// A run that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DueRun {
    /// The scheduled time, without the delay of the environment.
    pub scheduled: Timestamp,
    /// The number of scheduled times that were missed and that this run makes up for, at most [`MAX_COUNTED`].
    pub missed: u32,
}

/// The state of a schedule at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A run is due.
    Now(DueRun),
    /// The next run begins at this time.
    At(Timestamp),
    /// The schedule has no further time.
    Never,
}

/// The schedule of one environment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timetable<'a> {
    pub schedule: &'a Schedule,
    pub zone: &'a TimeZone,
    /// The delay of the environment after each scheduled time.
    pub delay: Duration,
}

impl Timetable<'_> {
    /// Returns the run that is due at `now`, or the time of the next run. `covered` is the last scheduled time that a run has handled.
    pub(super) fn due(&self, covered: Timestamp, now: Timestamp) -> Due {
        // If the clock was ahead when `covered` was recorded, the runs must not wait until that time.
        let covered = if covered.duration_since(now) > MAX_CLOCK_STEP { now } else { covered };
        let Some(first) = self.schedule.next_after(covered, self.zone) else { return Due::Never };
        if self.begin(first) > now {
            return Due::At(self.begin(first));
        }
        let (mut scheduled, mut passed) = (first, 1);
        while let Some(next) = self.schedule.next_after(scheduled, self.zone).filter(|next| self.begin(*next) <= now) {
            (scheduled, passed) = (next, passed + 1);
            if passed >= MAX_COUNTED {
                let last = self.schedule.last_until(now, self.zone).unwrap_or(scheduled);
                scheduled = if self.begin(last) <= now { last } else { scheduled.max(self.before(last)) };
                break;
            }
        }
        let is_late = now.duration_since(self.begin(scheduled)) > LATE;
        Due::Now(DueRun { scheduled, missed: if is_late { passed } else { passed - 1 } })
    }

    /// Returns the time at which the run of a scheduled time begins. The delay is shorter than the time until the next run.
    fn begin(&self, scheduled: Timestamp) -> Timestamp {
        let next = self.schedule.next_after(scheduled, self.zone);
        let interval = next.map_or(Duration::MAX, |next| next.duration_since(scheduled).unsigned_abs());
        let delay = if self.delay < interval { self.delay } else { interval.mul_f64(0.9).min(self.delay) };
        scheduled.checked_add(delay).unwrap_or(Timestamp::MAX)
    }

    fn before(&self, scheduled: Timestamp) -> Timestamp {
        let earlier = scheduled.checked_sub(Duration::from_secs(1)).unwrap_or(scheduled);
        self.schedule.last_until(earlier, self.zone).unwrap_or(scheduled)
    }
}

/// Returns the delay of an environment: a part of `spread` that depends only on the environment's number. Environments with consecutive
/// numbers are far apart, because multiples of the golden ratio divide the unit interval evenly.
pub(super) fn delay(environment: EnvId, spread: Duration) -> Duration {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let part = (f64::from(environment.0) * GOLDEN).fract();
    Duration::from_secs(spread.mul_f64(part).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn due(pattern: &str, delay: u64, covered: &str, now: &str) -> Due {
        let schedule = Schedule::parse(pattern).unwrap();
        let table = Timetable { schedule: &schedule, zone: &TimeZone::UTC, delay: Duration::from_secs(delay) };
        table.due(at(covered), at(now))
    }

    fn now(scheduled: &str, missed: u32) -> Due {
        Due::Now(DueRun { scheduled: at(scheduled), missed })
    }

    #[test]
    fn run_begins_once_at_its_time_plus_the_delay() {
        let nightly = |covered, now| due("0 2 * * *", 600, covered, now);
        assert_eq!(nightly("2026-05-01T02:00:00Z", "2026-05-01T09:00:00Z"), Due::At(at("2026-05-02T02:10:00Z")));
        assert_eq!(nightly("2026-05-01T02:00:00Z", "2026-05-02T02:09:59Z"), Due::At(at("2026-05-02T02:10:00Z")));
        assert_eq!(nightly("2026-05-01T02:00:00Z", "2026-05-02T02:10:00Z"), now("2026-05-02T02:00:00Z", 0));
        // After the run, the next run is a day later, also after a restart of the server.
        assert_eq!(nightly("2026-05-02T02:00:00Z", "2026-05-02T02:10:05Z"), Due::At(at("2026-05-03T02:10:00Z")));
    }

    #[test]
    fn missed_runs_are_made_up_for_by_one_run() {
        let nightly = |covered, now| due("0 2 * * *", 0, covered, now);
        assert_eq!(nightly("2026-05-01T02:00:00Z", "2026-05-04T12:00:00Z"), now("2026-05-04T02:00:00Z", 3));
        assert_eq!(nightly("2026-05-04T02:00:00Z", "2026-05-04T12:00:00Z"), Due::At(at("2026-05-05T02:00:00Z")));
        // The last of three runs is on time, so two were missed.
        assert_eq!(nightly("2026-05-01T02:00:00Z", "2026-05-04T02:00:01Z"), now("2026-05-04T02:00:00Z", 2));
        // After years, the number of missed runs is bounded, and the run handles the last scheduled time.
        assert_eq!(due("* * * * *", 0, "2020-01-01T00:00:00Z", "2026-05-04T12:00:30Z"), now("2026-05-04T12:00:00Z", 999));
    }

    #[test]
    fn delay_is_shorter_than_the_interval() {
        assert_eq!(due("* * * * *", 7200, "2026-05-01T02:00:00Z", "2026-05-01T02:00:10Z"), Due::At(at("2026-05-01T02:01:54Z")));
        assert_eq!(due("* * * * *", 7200, "2026-05-01T02:00:00Z", "2026-05-01T02:01:54Z"), now("2026-05-01T02:01:00Z", 0));
    }

    #[test]
    fn clock_that_was_ahead_does_not_stop_the_schedule() {
        let nightly = |covered, now| due("0 2 * * *", 0, covered, now);
        assert_eq!(nightly("2031-01-01T02:00:00Z", "2026-05-01T12:00:00Z"), Due::At(at("2026-05-02T02:00:00Z")));
        // A small step back does not repeat the run.
        assert_eq!(nightly("2026-05-01T02:00:00Z", "2026-05-01T01:30:00Z"), Due::At(at("2026-05-02T02:00:00Z")));
    }

    #[test]
    fn delays_of_20_environments_are_distributed() {
        let mut delays: Vec<u64> = (1..=20).map(|number| delay(EnvId(number), Duration::from_secs(7200)).as_secs()).collect();
        assert!(delays.iter().all(|delay| *delay < 7200), "{delays:?}");
        delays.sort_unstable();
        assert!(delays.windows(2).all(|pair| pair[1] - pair[0] > 120), "{delays:?}");
        assert_eq!(delay(EnvId(7), Duration::ZERO), Duration::ZERO);
    }
}
