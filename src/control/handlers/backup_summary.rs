//! The state of the scheduled restore points of an environment, for `status` and `backup list`.

use jiff::Timestamp;
use serde::Serialize;

use super::backup_offsite::{StoreSummary, stores_of};
use crate::{
    control::state::Control,
    model::Environment,
    pipeline::{DamagedPoint, DrillRecord, LastFailure, LastRun, VerifiedPoint},
};

/// The state of the scheduled restore points of an environment.
#[derive(Debug, Clone, Serialize)]
pub struct BackupSummary {
    /// The cron pattern of the server file; absent without a schedule.
    pub schedule: Option<String>,
    /// The time of the next run; absent without a schedule. A time that has passed means that the run is under way or about to begin.
    pub next: Option<Timestamp>,
    /// The newest restore point that was read back without a difference.
    pub newest: Option<VerifiedPoint>,
    /// The age of the restore point `newest`, in seconds.
    pub age: Option<i64>,
    /// The damaged and unusable restore points, newest first.
    pub damaged: Vec<DamagedPoint>,
    /// The last run of the schedule.
    pub last_run: Option<LastRun>,
    /// The last failure of the schedule.
    pub last_failure: Option<LastFailure>,
    /// The last drill.
    pub drill: Option<DrillRecord>,
    /// The copies in off-site stores.
    pub offsite: Vec<StoreSummary>,
    /// The reason why the schedule does not work; absent if it works.
    pub problem: Option<String>,
}

impl BackupSummary {
    pub(super) fn of(control: &Control, environment: &Environment) -> BackupSummary {
        let pipeline = control.pipeline();
        let overview = pipeline.backup_overview(environment);
        let schedule = pipeline.services().config.backup.schedule.as_ref().map(|schedule| schedule.as_str().to_owned());
        let (record, problem) = match overview.record {
            Ok(record) => (Some(record), None),
            Err(why) => (None, Some(why)),
        };
        let newest = record.as_ref().and_then(|record| record.verified.clone());
        BackupSummary {
            schedule,
            next: overview.next,
            age: newest.as_ref().map(|point| Timestamp::now().duration_since(point.taken).as_secs().max(0)),
            newest,
            damaged: record.as_ref().map(|record| record.damaged.clone()).unwrap_or_default(),
            last_run: record.as_ref().and_then(|record| record.last.clone()),
            last_failure: record.as_ref().and_then(|record| record.failure.clone()),
            drill: record.and_then(|record| record.drill),
            offsite: stores_of(control, environment),
            problem,
        }
    }
}
