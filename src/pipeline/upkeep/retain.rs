//! The removal of restore points that no rule of `backup.keep` selects.

use crate::{
    backup::{self, BackupError, DumpJob, DumpReport, FailureKind, PointInfo, ProtectedReleases, RetentionPlan, SpaceEstimate},
    model::Environment,
    pipeline::{core::Pipeline, points::PointsError, state_files::Pins, util::chain},
};

/// The number of releases whose last restore points stay: the live release and its two predecessors. The last restore point of the older
/// predecessor was taken before the upgrade to the newer predecessor.
const RECENT: usize = 3;

/// The result of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The restore points that were removed, or that would be removed.
    pub removed: Vec<PointInfo>,
    /// The restore points that stay.
    pub kept: usize,
    /// The disk space that the removal frees, in bytes.
    pub freed: u64,
}

impl Pipeline {
    /// Returns the restore points of an environment with the decisions of the retention rules.
    pub async fn plan_points(&self, environment: &Environment) -> Result<RetentionPlan, PointsError> {
        let job = DumpJob::Plan { keep: self.services().config.backup.keep, protected: self.protected(environment)? };
        match backup::dump(&self.backup(environment), &job).await? {
            DumpReport::Plan(plan) => {
                self.note_points(environment, &plan.points);
                Ok(plan)
            }
            _ => Err(BackupError::Confused { role: "dump" }.into()),
        }
    }

    /// Records the present states of the restore points. A failure is only logged; the next run or list records the states.
    pub(in crate::pipeline) async fn refresh_points(&self, environment: &Environment) {
        if let Err(error) = self.plan_points(environment).await {
            tracing::warn!(environment = environment.title(), error = chain(&error), "cannot list the restore points");
        }
    }

    /// Returns the releases whose last restore points stay. If the pins cannot be read, returns an error, so that nothing is removed.
    fn protected(&self, environment: &Environment) -> Result<ProtectedReleases, PointsError> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let pins = Pins::read(&paths.pins()).map_err(|error| PointsError::refused(error.to_string()))?;
        let (live, history) = self.queue_of(environment)?.snapshot();
        let mut recent: Vec<_> = live.map(|live| live.release).into_iter().collect();
        for made in history.releases().rev() {
            if recent.len() < RECENT && !recent.contains(&made.release) {
                recent.push(made.release);
            }
        }
        Ok(ProtectedReleases { recent, pinned: pins.releases() })
    }

    /// Measures the disk space for a capture of the live data, and for a restore of `restored`.
    pub(in crate::pipeline) async fn measure(
        &self,
        environment: &Environment,
        restored: Option<String>,
    ) -> Result<SpaceEstimate, PointsError> {
        match backup::dump(&self.backup(environment), &DumpJob::Measure { restored }).await? {
            DumpReport::Space(space) => Ok(space),
            _ => Err(BackupError::Confused { role: "dump" }.into()),
        }
    }

    /// Removes the restore points that no rule keeps. With `dry_run`, only returns these restore points. In a frozen environment, no
    /// restore point is removed, because the repair may need any of them.
    pub async fn prune_points(&self, environment: &Environment, dry_run: bool) -> Result<Pruned, PointsError> {
        let queue = self.queue_of(environment)?;
        if !dry_run {
            queue.is_thawed()?;
        }
        let plan = self.plan_points(environment).await?;
        let doomed = plan.points.iter().zip(&plan.decisions).filter(|(_, decision)| !decision.is_kept);
        let doomed: Vec<PointInfo> = doomed.map(|(info, _)| info.clone()).collect();
        let kept = plan.points.len() - doomed.len();
        let freed = plan.bytes.saturating_sub(plan.kept_bytes);
        if dry_run || doomed.is_empty() {
            return Ok(Pruned { removed: doomed, kept, freed });
        }
        let (_queue, _locked) = self.lock_points(environment)?;
        let mut removed = Vec::new();
        for info in doomed {
            match backup::dump(&self.backup(environment), &DumpJob::Remove { point: info.id.clone() }).await {
                Ok(_) => removed.push(info),
                Err(BackupError::Failed(failure)) if failure.kind == FailureKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        tracing::info!(environment = environment.title(), removed = removed.len(), kept, "old restore points removed");
        self.refresh_points(environment).await;
        Ok(Pruned { removed, kept, freed })
    }

    /// Removes the restore points that no rule keeps. If another operation holds the lock, the next run removes these restore points.
    pub(super) async fn remove_unkept(&self, environment: &Environment) -> Result<(), PointsError> {
        match self.prune_points(environment, false).await {
            Ok(_) => Ok(()),
            Err(PointsError::NotNow(why)) => {
                tracing::info!(environment = environment.title(), %why, "old restore points stay until the next run");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
