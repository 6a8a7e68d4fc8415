//! Checks the health record of a release against the promotion policy of an environment.

use std::time::Duration;

use jiff::Timestamp;

use crate::{config::PromotionPolicy, model::HealthRecord};

/// The maximum tolerated difference between the clocks of two servers.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(300);

/// Checks an accepted health record against the policy. The error lists every unmet requirement in words. Without a record, the error lists
/// only the missing record.
pub fn promotable(policy: &PromotionPolicy, record: Option<&HealthRecord>, now: Timestamp) -> Result<(), Vec<String>> {
    if policy.is_empty() {
        return Ok(());
    }
    let Some(record) = record else {
        return Err(vec![
            "the release has no health record of another environment or server, but `promote` requires a record".to_owned(),
        ]);
    };
    let mut missing = Vec::new();
    if between(now, record.as_of) > MAX_CLOCK_DIFFERENCE {
        missing.push(format!(
            "the health record has the time {}, which is in the future; compare the clocks of both servers",
            record.as_of
        ));
    }
    if let Some(wanted) = policy.min_healthy.map(|span| span.get()) {
        let served = served(record);
        if served < wanted {
            let (served, wanted) = (words(served), words(wanted));
            missing.push(format!("the release has served {served} of the {wanted} that `promote.min_healthy` requires"));
        }
    }
    for check in &policy.checks {
        let name = check.as_str();
        if !record.checks.iter().any(|passed| passed.name == name) {
            missing.push(format!("the release has not passed the check `{name}` that `promote.checks` requires"));
        }
    }
    if let Some(limit) = policy.max_restarts {
        let restarts = record.restarts.len();
        if restarts > usize::try_from(limit).unwrap_or(usize::MAX) {
            let last = record.restarts.last().map(|one| format!(", the last was {} ({})", one.process, one.exit));
            let processes = if restarts == 1 { "process" } else { "processes" };
            missing.push(format!(
                "{restarts} {processes} of the release exited unexpectedly{}; `promote.max_restarts` allows {limit}",
                last.unwrap_or_default()
            ));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

/// Returns the total time for which a release has served, until the moment at which its record was written. Overlapping periods count once.
pub fn served(record: &HealthRecord) -> Duration {
    let mut periods: Vec<(Timestamp, Timestamp)> = record
        .served
        .iter()
        .map(|period| (period.since, period.until.unwrap_or(record.as_of).min(record.as_of)))
        .filter(|(since, until)| since < until)
        .collect();
    periods.sort_unstable();
    let (mut sum, mut counted) = (Duration::ZERO, Timestamp::MIN);
    for (since, until) in periods {
        sum = sum.saturating_add(between(since.max(counted), until));
        counted = counted.max(until);
    }
    sum
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or(Duration::ZERO)
}

/// Formats a duration with its two largest units.
fn words(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let mut said = Vec::new();
    for (unit, name) in units {
        if rest >= unit && said.len() < 2 {
            said.push(format!("{} {name}", rest / unit));
            rest %= unit;
        }
    }
    if said.is_empty() { format!("{} ms", span.as_millis()) } else { said.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Recipe,
        model::{Digest, PassedCheck, Period, ProcessRestart, ReleaseId, ReleaseNumber},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn policy(text: &str) -> PromotionPolicy {
        Recipe::parse(format!("promote: {text}").as_bytes()).unwrap().for_environment(&"production".parse().unwrap()).promote
    }

    fn record() -> HealthRecord {
        HealthRecord {
            format: 1,
            project: "shop".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            release: ReleaseId::new(at(0)),
            number: ReleaseNumber(3),
            tree: Digest::of(b""),
            served: vec![
                Period { since: at(0), until: Some(at(60)) },
                // The first of these two periods overlaps an earlier period, and the second period ends before its own beginning. The total
                // time counts no second twice.
                Period { since: at(30), until: Some(at(90)) },
                Period { since: at(99), until: Some(at(95)) },
                Period { since: at(100), until: None },
            ],
            as_of: at(190),
            checks: vec![PassedCheck { name: "smoke".to_owned(), passed: at(1) }],
            restarts: vec![ProcessRestart { process: "web.1".to_owned(), at: at(5), exit: "exited 1".to_owned() }; 4],
            signature: None,
        }
    }

    #[test]
    fn unmet_requirement_of_a_promotion_is_named() {
        let record = record();
        let of = |text: &str| promotable(&policy(text), Some(&record), at(190));
        assert_eq!(served(&record), Duration::from_secs(180));
        assert_eq!(of("{}"), Ok(()));
        assert_eq!(of("{min_healthy: 3m, checks: [smoke], max_restarts: 4}"), Ok(()));
        assert_eq!(
            of("{min_healthy: 10m, checks: [smoke, tests], max_restarts: 2}").unwrap_err(),
            [
                "the release has served 3 min of the 10 min that `promote.min_healthy` requires",
                "the release has not passed the check `tests` that `promote.checks` requires",
                "4 processes of the release exited unexpectedly, the last was web.1 (exited 1); `promote.max_restarts` allows 2",
            ]
        );
        assert_eq!(of("{min_healthy: 181s}").unwrap_err().len(), 1);
        // Time after the record was written does not count, and a record from the future is refused.
        assert_eq!(promotable(&policy("{min_healthy: 1h}"), Some(&record), at(90_000)).unwrap_err().len(), 1);
        let early = promotable(&policy("{min_healthy: 3m}"), Some(&record), at(-200)).unwrap_err();
        assert!(early[0].contains("in the future"), "{early:?}");
        let unknown = promotable(&policy("{min_healthy: 3m}"), None, at(0)).unwrap_err();
        assert!(unknown[0].contains("no health record"), "{unknown:?}");
        assert_eq!(promotable(&PromotionPolicy::default(), None, at(0)), Ok(()));
    }

    #[test]
    fn time_spans_are_written_in_two_units() {
        for (seconds, said) in [(0, "0 ms"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_061, "1 d 1 h")] {
            assert_eq!(words(Duration::from_secs(seconds)), said);
        }
    }
}
