//! One scheduled run of one environment: a restore point is taken and read back, older restore points are read back, and the restore points
//! that no rule keeps are removed.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};

use super::{
    due::DueRun,
    state::{LastFailure, LastRun, RunResult, RunningRun, defect},
};
use crate::{
    backup::{self, DumpJob, DumpReport, PointInfo, PointState},
    model::{Environment, UserName},
    pipeline::{
        core::Pipeline,
        fault,
        observe::{Announcement, BackupNews, News},
        points::{PointsError, Priority},
        queue::Queue,
        util::chain,
    },
};

/// The reason of a scheduled restore point.
const SCHEDULED: &str = "scheduled";

/// The time for which a run waits until no deployment and no restore is under way.
const MAX_WAIT: Duration = Duration::from_secs(2 * 3600);

/// The reason of a run that waited in vain.
const NEVER_IDLE: &str = "a deployment or a restore was under way for 2 hours";

/// The pause between two looks at the environment's queue.
const POLL: Duration = Duration::from_millis(200);

/// The maximum number of interruptions of one run's capture by deployments. After the last of them, the run fails.
const MAX_INTERRUPTIONS: u32 = 5;

/// The maximum number of servers that begin the same run. If all of them exited during the run, the run may be the cause, so the next
/// server records the run as failed.
const MAX_ATTEMPTS: u32 = 3;

/// The time for which an interrupted capture may hold the lock of the store.
const MAX_SWEEP: Duration = Duration::from_secs(10);

impl Pipeline {
    /// Carries out a run, and records and announces its result.
    pub(super) async fn run_backup(&self, environment: &Environment, run: DueRun) {
        let title = environment.title();
        let mut attempts = 0;
        self.change_record(environment, |record| {
            let mut running = record.running.take().unwrap_or(RunningRun {
                scheduled: run.scheduled,
                missed: run.missed,
                attempts: 0,
                point: None,
            });
            running.attempts = running.attempts.saturating_add(1);
            attempts = running.attempts;
            record.running = Some(running);
        });
        if run.missed > 0 {
            tracing::warn!(environment = title, missed = run.missed, "missed scheduled restore points are made up for once");
        }
        let result = if attempts > MAX_ATTEMPTS {
            RunResult::Failed(format!("the run was interrupted {MAX_ATTEMPTS} times"))
        } else {
            if attempts > 1 {
                tracing::warn!(environment = title, attempts, "an interrupted scheduled restore point is repeated");
            }
            self.backup_steps(environment).await.unwrap_or_else(|error| RunResult::Failed(chain(&error)))
        };
        fault::in_upkeep("done");
        if self.is_gone(environment) {
            return;
        }
        let now = Timestamp::now();
        let id = format!("backup.{}.{}", environment.id.0, run.scheduled);
        match &result {
            RunResult::Verified(point) => {
                self.announce_backup(environment, id, BackupNews::Verified { point: point.clone() });
            }
            RunResult::Skipped(why) => tracing::info!(environment = title, why, "no scheduled restore point"),
            RunResult::Failed(why) => self.announce_backup(environment, id, BackupNews::Failed { why: why.clone() }),
        }
        self.change_record(environment, |record| {
            record.running = None;
            record.covered = run.scheduled.max(record.covered.min(now));
            if let RunResult::Failed(why) = &result {
                record.failure = Some(LastFailure { at: now, why: crate::model::sanitise_line(why) });
            }
            record.last = Some(LastRun { scheduled: run.scheduled, ended: now, missed: run.missed, result });
        });
    }

    async fn backup_steps(&self, environment: &Environment) -> Result<RunResult, PointsError> {
        let earlier = self.backup_record(environment).ok().and_then(|record| record.running).and_then(|run| run.point);
        let (id, _permit) = match earlier {
            // The previous server took the restore point, and was stopped before the verification.
            Some(id) => (id, self.upkeep_permit().await),
            None => {
                let (queue, locked, permit) = match self.until_idle(environment).await {
                    Some(idle) => idle,
                    None => return Ok(RunResult::Failed(String::from(NEVER_IDLE))),
                };
                // The measurement needs no lock. The capture acquires the lock again.
                drop(locked);
                let space = self.measure(environment, None).await?;
                if space.files == 0 && self.databases(&queue, environment)?.is_empty() {
                    return Ok(RunResult::Skipped(String::from("the environment has no data")));
                }
                let reserve = self.services().config.limits.disk_reserve.bytes();
                space.check("take a scheduled restore point", reserve).map_err(backup::BackupError::from)?;
                drop(permit);
                match self.take_when_idle(environment).await? {
                    Some((id, permit)) => (id, permit),
                    None => return Ok(RunResult::Failed(String::from(NEVER_IDLE))),
                }
            }
        };
        self.change_record(environment, |record| {
            if let Some(running) = &mut record.running {
                running.point = Some(id.clone());
            }
        });
        fault::in_upkeep("taken");
        self.request_copies(environment);
        let taken = self.read_back(environment, &id).await?;
        let result = match defect(&taken.state) {
            Some(why) => RunResult::Failed(format!("restore point {id} is damaged: {why}")),
            None => RunResult::Verified(id.clone()),
        };
        self.read_older(environment, &id).await?;
        if matches!(result, RunResult::Verified(_)) {
            self.remove_unkept(environment).await?;
            self.drill_if_due(environment, &id).await;
        }
        Ok(result)
    }

    async fn upkeep_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.0.upkeep.permit().await
    }

    /// Waits until no deployment, restore or other capture is under way, and returns the lock of the restore points and the permit for
    /// scheduled work. Returns `None` after [`MAX_WAIT`].
    async fn until_idle(&self, environment: &Environment) -> Option<(Queue, OwnedMutexGuard<()>, Option<OwnedSemaphorePermit>)> {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < MAX_WAIT && !self.is_gone(environment) {
            if self.idle(environment).is_some() {
                // Other environments work while this environment waits, so the permit is acquired last.
                let permit = self.upkeep_permit().await;
                if let Some((queue, locked)) = self.idle(environment) {
                    return Some((queue, locked, permit));
                }
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// Returns true if the environment was removed, or is being removed.
    fn is_gone(&self, environment: &Environment) -> bool {
        self.queue_of(environment).map_or(true, |queue| queue.state.lock().closed)
    }

    /// Returns the lock of the restore points if no deployment and no restore is under way.
    fn idle(&self, environment: &Environment) -> Option<(Queue, OwnedMutexGuard<()>)> {
        let (queue, locked) = self.lock_points(environment).ok()?;
        let is_idle = queue.state.lock().running.is_none() && queue.work.try_lock().is_ok();
        is_idle.then_some((queue, locked))
    }

    /// Takes a restore point while no deployment is under way. A deployment that arrives does not wait: the deployment interrupts the
    /// capture, which begins again after the deployment.
    async fn take_when_idle(
        &self,
        environment: &Environment,
    ) -> Result<Option<(String, Option<OwnedSemaphorePermit>)>, PointsError> {
        for _ in 0..MAX_INTERRUPTIONS {
            let Some((queue, _locked, permit)) = self.until_idle(environment).await else { return Ok(None) };
            let arrives = async {
                while queue.state.lock().running.is_none() {
                    tokio::time::sleep(POLL).await;
                }
            };
            let reason = String::from(SCHEDULED);
            let take = async {
                fault::delay("upkeep.capture").await;
                self.take_with(&queue, environment, UserName::operator(), reason, false, Priority::Low).await
            };
            tokio::select! {
                taken = take => return Ok(Some((taken?.id, permit))),
                () = arrives => {}
            }
            tracing::info!(environment = environment.title(), "a deployment interrupts the scheduled restore point");
            self.sweep(environment).await;
        }
        Err(PointsError::refused(format!("{MAX_INTERRUPTIONS} deployments interrupted the capture")))
    }

    /// Removes the files of an interrupted capture. The killed worker may hold the lock of the store for a moment.
    async fn sweep(&self, environment: &Environment) {
        let begun = tokio::time::Instant::now();
        while let Err(error) = backup::dump(&self.backup(environment), &DumpJob::Sweep).await {
            if begun.elapsed() > MAX_SWEEP {
                return tracing::warn!(
                    environment = environment.title(),
                    error = chain(&error),
                    "cannot remove a partial restore point"
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Reads a restore point back with low priority. [`Pipeline::note_points`] records and announces a defect.
    async fn read_back(&self, environment: &Environment, id: &str) -> Result<PointInfo, PointsError> {
        let job = DumpJob::Quietly(Box::new(DumpJob::Verify { point: id.to_owned() }));
        let DumpReport::Point(info, _) = backup::dump(&self.backup(environment), &job).await? else {
            return Err(backup::BackupError::Confused { role: "dump" }.into());
        };
        Ok(*info)
    }

    /// Reads older restore points back, within the daily budget: first the restore points that were never read back, then the restore points
    /// whose verification is oldest. A restore point that is known to be damaged is not read again.
    async fn read_older(&self, environment: &Environment, taken: &str) -> Result<(), PointsError> {
        let read = self.read_in_turn(environment, taken).await;
        self.refresh_points(environment).await;
        read
    }

    async fn read_in_turn(&self, environment: &Environment, taken: &str) -> Result<(), PointsError> {
        let budget = self.services().config.backup.reverify.bytes();
        let plan = self.plan_points(environment).await?;
        let mut turn: Vec<(i64, &PointInfo)> = plan
            .points
            .iter()
            .filter(|info| info.id != taken)
            .filter_map(|info| match info.state {
                PointState::Unverified => Some((i64::MIN, info)),
                PointState::Verified(at) => Some((at, info)),
                _ => None,
            })
            .collect();
        turn.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| one.id.cmp(&other.id)));
        for (_, info) in turn {
            let mut may_read = false;
            self.change_record(environment, |record| may_read = record.reading.may_read(budget, Timestamp::now()));
            if !may_read {
                break;
            }
            match self.read_back(environment, &info.id).await {
                Ok(_) => {}
                // A person removed the restore point meanwhile, or its index is damaged. The worker has recorded the damage, and the other restore
                // points are still read.
                Err(PointsError::Worker(backup::BackupError::Failed(failure)))
                    if matches!(failure.kind, backup::FailureKind::NotFound | backup::FailureKind::Damaged) => {}
                Err(error) => return Err(error),
            }
            self.change_record(environment, |record| {
                record.reading.bytes = record.reading.bytes.saturating_add(info.counts.bytes)
            });
        }
        Ok(())
    }

    /// Announces a result of the scheduled work. A failure is delivered again until every observer has accepted it.
    pub(super) fn announce_backup(&self, environment: &Environment, id: String, news: BackupNews) {
        let is_failure = !matches!(news, BackupNews::Verified { .. } | BackupNews::Drilled { .. });
        let announcement = Announcement {
            id,
            at: Timestamp::now(),
            environment: environment.title(),
            deployment: None,
            news: News::Backup(news),
        };
        let services = self.services().clone();
        if !is_failure {
            return services.observers.milestone(announcement);
        }
        self.0.tasks.spawn(async move { services.observers.ending(announcement).await });
    }
}
