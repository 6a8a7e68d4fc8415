//! Computes when a process is restarted and killed. The caller starts, signals and kills the process.

use std::time::{Duration, Instant};

/// The running time of a process after which its pauses begin with the first pause again.
pub const STABLE: Duration = Duration::from_secs(10);

/// The minimum length of all pauses after the first pause.
const SMALLEST: Duration = Duration::from_millis(100);

/// Pauses between starts, doubled with each start, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    /// Returns pauses that begin with `first` and end with `last`. After a first pause of zero, the second pause is 100 ms.
    pub fn new(first: Duration, last: Duration) -> Backoff {
        Backoff { next: first, first, last }
    }

    /// Returns the pause before the next start of a process that ran for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= STABLE {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(SMALLEST, self.last);
        pause
    }
}

/// The interval at which a killed process that has not exited yet is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// The times of restarts and kills of a process that is restarted whenever it exits, until it is stopped.
#[derive(Debug, Clone)]
pub struct RestartSchedule {
    backoff: Backoff,
    restarts: u32,
    restart_at: Option<Instant>,
    /// The time of the next kill. If the time is set, the process is being stopped or was killed, and must not be restarted.
    kill_at: Option<Instant>,
}

impl RestartSchedule {
    /// Returns the schedule of a process that runs.
    pub fn new(backoff: Backoff) -> RestartSchedule {
        RestartSchedule { backoff, restarts: 0, restart_at: None, kill_at: None }
    }

    /// Returns the number of restarts so far.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Returns the time of the next kill, or `None` if the process is neither being stopped nor killed.
    pub fn kill_at(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Returns true if the process is being stopped and must not be restarted.
    pub fn is_stopping(&self) -> bool {
        self.kill_at.is_some()
    }

    /// Returns the time of the next kill if the process is `running`, otherwise the time of the next restart.
    pub fn next(&self, running: bool) -> Option<Instant> {
        if running { self.kill_at } else { self.restart_at }
    }

    /// Schedules the next restart of a process that has exited after it ran for `lived`, or that could not be started.
    pub fn exited(&mut self, now: Instant, lived: Duration) {
        self.restart_at = Some(now + self.backoff.after(lived));
    }

    /// Returns true if the process must be restarted now, and counts this restart.
    pub fn begin_restart(&mut self, now: Instant) -> bool {
        let due = self.restart_at.is_some_and(|at| at <= now);
        if due {
            (self.restart_at, self.restarts) = (None, self.restarts.saturating_add(1));
        }
        due
    }

    /// Cancels restarts. Sets the time of the kill to `by`, unless an earlier time is set. Returns true if the stop signal must be sent.
    ///
    /// A second stop signal is never sent, because many programs react by exiting at once.
    pub fn begin_stop(&mut self, by: Instant) -> bool {
        self.restart_at = None;
        let first = self.kill_at.is_none();
        self.kill_at = Some(self.kill_at.map_or(by, |at| at.min(by)));
        first
    }

    /// Records that the process was killed, so that it is not restarted. The time of the next kill stays if it is already set.
    pub fn killed(&mut self, now: Instant) {
        self.kill_at.get_or_insert(now + KILL_AGAIN);
    }

    /// Returns true if the process must be killed now, and schedules the next kill.
    pub fn begin_kill(&mut self, now: Instant) -> bool {
        let due = self.kill_at.is_some_and(|at| at <= now);
        if due {
            self.kill_at = Some(now + KILL_AGAIN);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_until_a_process_is_stable() {
        for (first, last) in
            [(100, 30_000), (0, 10_000)].map(|(first, last)| (Duration::from_millis(first), Duration::from_millis(last)))
        {
            let mut backoff = Backoff::new(first, last);
            let mut waited = Duration::ZERO;
            let mut before = None;
            for _ in 0..10 {
                let next = backoff.after(Duration::from_millis(1));
                assert!(before.is_none_or(|before| next > before || next == last), "{next:?} after {before:?}");
                before = Some(next);
                waited += next;
            }
            assert!(waited >= Duration::from_secs(15), "ten starts within {waited:?}");
            assert_eq!(backoff.after(Duration::ZERO), last);
            assert_eq!(backoff.after(STABLE), first);
        }
    }

    fn schedule() -> (RestartSchedule, Instant) {
        (RestartSchedule::new(Backoff::new(Duration::from_secs(1), Duration::from_secs(30))), Instant::now())
    }

    #[test]
    fn exited_process_is_restarted_after_its_pause_once() {
        let (mut schedule, start) = schedule();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!schedule.begin_restart(at(100)), "the process runs");
        schedule.exited(at(5), Duration::ZERO);
        assert_eq!((schedule.next(false), schedule.next(true)), (Some(at(6)), None));
        assert!(!schedule.begin_restart(at(5)));
        assert!(schedule.begin_restart(at(6)) && !schedule.begin_restart(at(7)));
        assert_eq!(schedule.restarts(), 1);
        schedule.exited(at(8), Duration::ZERO);
        assert_eq!(schedule.next(false), Some(at(10)), "the second pause is longer");
    }

    #[test]
    fn stop_cancels_the_restart_and_sends_one_signal() {
        let (mut schedule, start) = schedule();
        let at = |seconds| start + Duration::from_secs(seconds);
        schedule.exited(at(0), Duration::ZERO);
        assert!(schedule.begin_stop(at(20)) && schedule.is_stopping());
        assert!(!schedule.begin_restart(at(100)), "a stopped process is not restarted");
        assert!(!schedule.begin_stop(at(30)), "no second signal");
        assert_eq!(schedule.kill_at(), Some(at(20)), "a later stop does not give more time");
        assert!(!schedule.begin_stop(at(10)));
        assert_eq!(schedule.next(true), Some(at(10)), "an earlier stop shortens the time");
    }

    #[test]
    fn process_that_survives_a_kill_is_killed_again() {
        let (mut schedule, start) = schedule();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!schedule.begin_kill(at(100)), "the process is not being stopped");
        schedule.killed(at(0));
        assert!(!schedule.begin_kill(at(0)) && schedule.begin_kill(at(1)) && !schedule.begin_kill(at(1)));
        assert!(schedule.begin_kill(at(2)));
        schedule.begin_stop(at(50));
        assert_eq!(schedule.kill_at(), Some(at(3)), "a stop does not delay the kill");
    }
}
