//! The state of the watches of checkouts, in a file of its own, because both [`Pipeline`](crate::pipeline::Pipeline) and its watches use this state.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::model::EnvId;

/// The pause before a worker that ended is started again. The pause doubles with each further end.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The maximum pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The watches of the checkouts of all editable environments.
#[derive(Default)]
pub(in crate::pipeline) struct SaveWatches(Mutex<HashMap<EnvId, SaveWatch>>);

/// The watch of one checkout.
#[derive(Default)]
struct SaveWatch {
    runs: bool,
    /// The reason why the checkout is not watched.
    problem: Option<String>,
    /// The number of ends in a row.
    ends: u32,
    retry: Option<Instant>,
    /// The time up to which all saved files were handled.
    seen: Option<Timestamp>,
}

impl SaveWatches {
    /// Marks a watch as running, if it may start now. Returns the time up to which an earlier watch of this server handled all saved files.
    pub(super) fn begin(&self, environment: EnvId, now: Instant) -> Option<Option<Timestamp>> {
        let mut all = self.0.lock();
        let watch = all.entry(environment).or_default();
        if watch.runs || watch.retry.is_some_and(|retry| now < retry) {
            return None;
        }
        watch.runs = true;
        Some(watch.seen)
    }

    /// Records that the checkout is watched.
    pub(super) fn works(&self, environment: EnvId) {
        if let Some(watch) = self.0.lock().get_mut(&environment) {
            watch.problem = None;
        }
    }

    /// Records that all files that were saved up to now were handled.
    pub(super) fn has_seen(&self, environment: EnvId) {
        if let Some(watch) = self.0.lock().get_mut(&environment) {
            (watch.seen, watch.ends) = (Some(Timestamp::now()), 0);
        }
    }

    /// Records the end of a watch. Returns true if the problem is a new one.
    pub(super) fn end(&self, environment: EnvId, problem: Option<&str>, now: Instant) -> bool {
        let mut all = self.0.lock();
        let watch = all.entry(environment).or_default();
        watch.runs = false;
        let Some(problem) = problem else {
            all.remove(&environment);
            return false;
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << watch.ends.min(10)).min(MAX_PAUSE);
        watch.ends = watch.ends.saturating_add(1);
        watch.retry = Some(now + pause);
        watch.problem.replace(problem.to_owned()).as_deref() != Some(problem)
    }

    /// Returns the reason why a checkout is not watched.
    pub(in crate::pipeline) fn problem(&self, environment: EnvId) -> Option<String> {
        self.0.lock().get(&environment)?.problem.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_watch_is_started_again_after_growing_pauses() {
        let (watches, one, start) = (SaveWatches::default(), EnvId(1), Instant::now());
        assert_eq!(watches.begin(one, start), Some(None));
        assert_eq!(watches.begin(one, start), None, "a running watch starts no second one");
        assert!(watches.end(one, Some("it broke"), start));
        assert_eq!(watches.begin(one, start), None);
        let later = start + FIRST_PAUSE;
        assert_eq!(watches.begin(one, later), Some(None));
        assert!(!watches.end(one, Some("it broke"), later), "a problem is news once");
        assert_eq!(watches.begin(one, later + FIRST_PAUSE), None);
        assert_eq!(watches.problem(one).as_deref(), Some("it broke"));
        assert!(watches.begin(one, later + MAX_PAUSE).is_some());
        watches.works(one);
        watches.has_seen(one);
        assert_eq!(watches.problem(one), None);
        watches.end(one, Some("it broke again"), later);
        assert!(watches.begin(one, later + FIRST_PAUSE).flatten().is_some());
        watches.end(one, None, later);
        assert_eq!(watches.begin(one, later), Some(None));
    }
}
