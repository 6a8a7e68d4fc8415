//! The task that starts the scheduled runs.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;

use super::{
    due::{Due, DueRun, Timetable, delay},
    state::{BackupState, DamagedPoint, RunningRun},
};
use crate::{
    backup::PointInfo,
    model::Environment,
    pipeline::{core::Pipeline, observe::BackupNews, queue::Queue},
};

/// The maximum time between two looks at the clock and at the environments. The clock may be set, and an environment may be created, at any
/// moment.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// The scheduled restore points of an environment.
#[derive(Debug, Clone)]
pub struct BackupOverview {
    /// The record; the error is the reason why the record cannot be used.
    pub record: Result<BackupState, String>,
    /// The time of the next run; `None` without a schedule. A time that has passed means that the run is under way or about to begin.
    pub next: Option<Timestamp>,
}

impl Pipeline {
    /// Takes, verifies and removes restore points on the schedule of the server file, until the server stops.
    pub fn run_upkeep(&self) {
        self.run_disk_totals();
        if self.services().config.backup.schedule.is_none() {
            return;
        }
        let this = self.clone();
        self.0.tasks.spawn(async move {
            loop {
                let queues: Vec<Queue> = this.0.queues.lock().values().cloned().collect();
                let waits = queues.iter().filter_map(|queue| this.start_due(queue));
                let wait = waits.min().unwrap_or(MAX_SLEEP).min(MAX_SLEEP);
                tokio::select! {
                    () = this.0.stopping.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                    () = this.0.upkeep.left() => {}
                }
            }
        });
    }

    /// Starts the run of an environment if the run is due. Otherwise returns the time until the run is due.
    fn start_due(&self, queue: &Queue) -> Option<Duration> {
        let upkeep = &self.0.upkeep;
        if upkeep.is_running(queue.id) {
            return None;
        }
        let environment = queue.environment();
        let record = self.backup_record(&environment).ok()?;
        let now = Timestamp::now();
        let run = match (record.running, self.due(&environment, record.covered, now)?) {
            // The previous server began this run.
            (Some(RunningRun { scheduled, missed, .. }), _) | (None, Due::Now(DueRun { scheduled, missed })) => {
                DueRun { scheduled, missed }
            }
            (None, Due::At(begin)) => return Some(begin.duration_since(now).unsigned_abs()),
            (None, Due::Never) => return None,
        };
        if !upkeep.enter(queue.id) {
            return None;
        }
        let this = self.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                // The record shows the run as not ended, so the next server repeats the run.
                () = this.0.stopping.cancelled() => {}
                () = this.run_backup(&environment, run) => {}
            }
            this.0.upkeep.leave(environment.id);
        });
        None
    }

    fn due(&self, environment: &Environment, covered: Timestamp, now: Timestamp) -> Option<Due> {
        let config = &self.services().config.backup;
        let schedule = config.schedule.as_ref()?;
        let table = Timetable { schedule, zone: &config.time_zone, delay: delay(environment.id, config.spread.get()) };
        Some(table.due(covered, now))
    }

    pub(super) fn backup_record(&self, environment: &Environment) -> Result<BackupState, String> {
        self.0.upkeep.record(environment, &self.backup_record_path(environment))
    }

    pub(super) fn change_record(&self, environment: &Environment, change: impl FnOnce(&mut BackupState)) {
        self.0.upkeep.change(environment, &self.backup_record_path(environment), change);
    }

    pub(super) fn backup_record_path(&self, environment: &Environment) -> PathBuf {
        self.services().root.environment(&environment.project, &environment.name).backup_record()
    }

    /// Records the states of all restore points of an environment, and announces defects that were not recorded before.
    pub(in crate::pipeline) fn note_points(&self, environment: &Environment, points: &[PointInfo]) {
        let mut found = Vec::new();
        self.change_record(environment, |record| {
            let before = record.damaged.clone();
            record.adopt(points);
            let is_new = |point: &&DamagedPoint| !before.iter().any(|known| known.id == point.id);
            found = record.damaged.iter().filter(is_new).cloned().collect();
        });
        for DamagedPoint { id, defect } in found {
            let news = BackupNews::Damaged { point: id.clone(), why: defect };
            self.announce_backup(environment, format!("backup.{id}.damaged"), news);
        }
    }

    /// Returns the scheduled restore points of an environment.
    pub fn backup_overview(&self, environment: &Environment) -> BackupOverview {
        let record = self.backup_record(environment);
        let next = record.as_ref().ok().and_then(|record| {
            let now = Timestamp::now();
            match (&record.running, self.due(environment, record.covered, now)?) {
                (Some(_), _) | (None, Due::Now(_)) => Some(now),
                (None, Due::At(begin)) => Some(begin),
                (None, Due::Never) => None,
            }
        });
        BackupOverview { record, next }
    }
}
