//! The requests to list the restore points, to remove the restore points that no rule keeps, and to test a restore.

use serde::Serialize;

use super::{
    backup::{PointView, of_points, point_name},
    backup_offsite::{CopyView, copies_of},
    backup_summary::BackupSummary,
};
use crate::{
    control::{
        authz::Needs,
        error::CommandError,
        request::{Context, Reply, Request},
    },
    model::{Access, Target},
    pipeline::{DrillRecord, RestoreRecord},
};

/// The request to list the restore points.
#[derive(Debug)]
pub struct BackupList {
    /// The environment.
    pub target: Target,
}

/// A request to remove the restore points that no rule of `backup.keep` selects.
#[derive(Debug)]
pub struct BackupPrune {
    /// The environment.
    pub target: Target,
    /// True to list the restore points without removing them.
    pub dry_run: bool,
}

/// The answer to [`BackupPrune`].
#[derive(Debug, Clone, Serialize)]
pub struct PruneView {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// True if nothing was removed.
    pub dry_run: bool,
    /// The restore points that were removed or, in a dry run, would be removed.
    pub removed: Vec<PointView>,
    /// The number of restore points that stay.
    pub kept: usize,
    /// The disk space that the removal frees, in bytes.
    pub freed: u64,
}

/// A restore point in a list.
#[derive(Debug, Clone, Serialize)]
pub struct ListedPoint {
    /// The restore point.
    #[serde(flatten)]
    pub point: PointView,
    /// False if the next run of the schedule removes the restore point.
    pub kept: bool,
    /// The rules that select the restore point, such as `daily`, `live release` or `not verified`.
    pub kept_by: Vec<String>,
    /// The copies in off-site stores.
    pub offsite: Vec<CopyView>,
}

/// The restore points of an environment.
#[derive(Debug, Clone, Serialize)]
pub struct PointList {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The restore points, newest first.
    pub points: Vec<ListedPoint>,
    /// The total disk usage of the restore points in bytes, where shared files count once.
    pub bytes: u64,
    /// The schedule.
    pub schedule: BackupSummary,
    /// The last restore of the live data.
    pub last_restore: Option<RestoreRecord>,
}

impl Request for BackupList {
    type View = PointList;
    const NAME: &'static str = "backup list";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<PointList>, CommandError> {
        let environment = control.environment(&self.target)?;
        let pipeline = control.pipeline();
        let plan = pipeline.plan_points(&environment).await.map_err(|error| of_points(&error))?;
        let copies = pipeline.offsite_record(&environment).unwrap_or_default();
        let listed = plan.points.into_iter().zip(plan.decisions).map(|(info, decision)| ListedPoint {
            offsite: copies_of(&copies, &info.id),
            point: PointView::new(&environment, info),
            kept: decision.is_kept,
            kept_by: decision.reasons,
        });
        let list = PointList {
            environment: environment.title(),
            points: listed.collect(),
            bytes: plan.bytes,
            schedule: BackupSummary::of(control, &environment),
            last_restore: pipeline.last_restore(&environment),
        };
        Ok(list.into())
    }
}

/// The request to restore a restore point into a scratch directory, and to compare each restored file.
#[derive(Debug)]
pub struct BackupDrill {
    /// The environment.
    pub target: Target,
    /// The id of the restore point, the beginning or end of its id, or `latest`.
    pub point: String,
}

/// The answer to [`BackupDrill`].
#[derive(Debug, Clone, Serialize)]
pub struct DrillView {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The drill.
    #[serde(flatten)]
    pub drill: DrillRecord,
}

impl Request for BackupDrill {
    type View = DrillView;
    const NAME: &'static str = "backup drill";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<DrillView>, CommandError> {
        point_name(&self.point)?;
        let environment = control.environment(&self.target)?;
        let drill = control.pipeline().drill(&environment, self.point).await.map_err(|error| of_points(&error))?;
        Ok(DrillView { environment: environment.title(), drill }.into())
    }
}

impl Request for BackupPrune {
    type View = PruneView;
    const NAME: &'static str = "backup prune";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<PruneView>, CommandError> {
        let environment = control.environment(&self.target)?;
        let pruned = control.pipeline().prune_points(&environment, self.dry_run).await.map_err(|error| of_points(&error))?;
        let view = PruneView {
            environment: environment.title(),
            dry_run: self.dry_run,
            removed: pruned.removed.into_iter().map(|info| PointView::new(&environment, info)).collect(),
            kept: pruned.kept,
            freed: pruned.freed,
        };
        Ok(view.into())
    }
}
