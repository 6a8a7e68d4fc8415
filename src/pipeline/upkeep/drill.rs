//! Drills: restores of a restore point into a scratch directory, which prove that the restore works and show its duration. A drill compares
//! each restored file with the restore point. It does not start the release on the copy.

use std::time::Instant;

use jiff::Timestamp;

use super::state::DrillRecord;
use crate::{
    backup::{self, BackupError, RestoreJob},
    model::{Environment, sanitise_line},
    pipeline::{
        core::Pipeline,
        observe::BackupNews,
        points::{PointsError, owner},
        util::chain,
    },
};

impl Pipeline {
    /// Restores a restore point into a scratch directory, compares each file, deletes the directory, and records the result. An unknown
    /// restore point, or a lack of disk space, is an error and not a result.
    pub async fn drill(&self, environment: &Environment, point: String) -> Result<DrillRecord, PointsError> {
        let point = self.point(environment, point).await?.id;
        let (_queue, _locked) = self.lock_points(environment)?;
        let space = self.measure(environment, Some(point.clone())).await?;
        space.without_capture().check("restore for a drill", 0).map_err(BackupError::from)?;
        let (begun, clock) = (Timestamp::now(), Instant::now());
        let job = RestoreJob::Drill { point: point.clone(), owner: owner(environment) };
        let result = backup::restore(&self.backup(environment), &job).await;
        let millis = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        let record = match result {
            Ok(filled) => DrillRecord { point, begun, millis, files: filled.files, bytes: filled.bytes, failure: None },
            Err(error) => DrillRecord { point, begun, millis, files: 0, bytes: 0, failure: Some(sanitise_line(&chain(&error))) },
        };
        self.change_record(environment, |known| known.drill = Some(record.clone()));
        if let Some(why) = &record.failure {
            let news = BackupNews::Failed { why: format!("the drill of {} failed: {why}", record.point) };
            self.announce_backup(environment, format!("backup.{}.drill.{begun}", environment.id.0), news);
        }
        Ok(record)
    }

    /// Starts a drill of a restore point if the last drill is older than `backup.drill`.
    pub(super) async fn drill_if_due(&self, environment: &Environment, point: &str) {
        let Some(age) = self.services().config.backup.drill else { return };
        let last = self.backup_record(environment).ok().and_then(|record| record.drill).map(|drill| drill.begun);
        if last.is_some_and(|last| Timestamp::now().duration_since(last).unsigned_abs() < age.get()) {
            return;
        }
        if let Err(error) = self.drill(environment, point.to_owned()).await {
            let news = BackupNews::Failed { why: format!("cannot start the drill of {point}: {}", chain(&error)) };
            self.announce_backup(environment, format!("backup.{point}.drill"), news);
        }
    }
}
