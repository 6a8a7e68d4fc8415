//! The copies of databases that a hold makes on database servers. Such a copy is a part of its restore point until the dump is written from
//! the copy, after the deployment has ended. [`CopyRecord`] names the copies.

use std::time::Duration;

use super::{
    copy_record::{CopiedPoint, CopyRecord},
    core::Pipeline,
    fault,
    points::PointsError,
    queue::Queue,
    util::chain,
};
use crate::{
    backup::{self, DumpJob},
    model::Environment,
};

/// The maximum time for which the removal of an environment waits for a dump.
const DUMP_WAIT: Duration = Duration::from_secs(10);

impl Pipeline {
    /// Completes restore points whose dumps are missing, and drops the copies, in the background. A frozen environment keeps all copies for
    /// the restore of its data. After a failure, the copies stay until the next deployment or the next start of the server.
    pub(super) fn settle_copies(&self, queue: &Queue) {
        let environment = queue.environment();
        let path = self.services().root.environment(&environment.project, &environment.name).copies();
        if !path.exists() {
            return;
        }
        let (this, queue) = (self.clone(), queue.clone());
        tokio::spawn(async move {
            let _locked = queue.points.lock().await;
            if queue.is_thawed().is_err() {
                return;
            }
            for copied in CopyRecord::read(&path).copies {
                match this.complete(&queue, &environment, &copied).await {
                    Ok(()) => {
                        fault::in_restore("completed");
                        CopyRecord::remove(&path, &copied.point);
                    }
                    Err(error) => tracing::error!(
                        environment = environment.title(),
                        point = copied.point,
                        error = chain(&error),
                        "cannot write the dumps of a restore point from the copies of its databases; the copies stay"
                    ),
                }
            }
        });
    }

    /// Drops all copies of an environment that is about to be removed. Returns the reasons why copies stay on their servers.
    pub(super) async fn drop_copies(&self, queue: &Queue) -> Vec<String> {
        let environment = queue.environment();
        let path = self.services().root.environment(&environment.project, &environment.name).copies();
        if !path.exists() {
            return Vec::new();
        }
        // A dump from a copy holds this lock. If the dump needs more time, the drop of the copy ends the dump.
        let _locked = tokio::time::timeout(DUMP_WAIT, queue.points.lock()).await;
        let mut left = Vec::new();
        for CopiedPoint { point, release } in CopyRecord::read(&path).copies {
            let dropped = match self.databases_of(queue, &environment, release) {
                Ok(databases) => {
                    let job = DumpJob::DropCopies { point: point.clone(), databases };
                    backup::dump(&self.backup(&environment), &job).await.map(drop).map_err(PointsError::from)
                }
                Err(error) => Err(error),
            };
            match dropped {
                Ok(()) => CopyRecord::remove(&path, &point),
                Err(error) => {
                    let (title, why) = (environment.title(), chain(&error));
                    left.push(format!("cannot drop the copies of the databases of {title} for the restore point {point}: {why}"));
                }
            }
        }
        left
    }

    async fn complete(&self, queue: &Queue, environment: &Environment, copied: &CopiedPoint) -> Result<(), PointsError> {
        let databases = self.databases_of(queue, environment, copied.release)?;
        let job = DumpJob::Complete { point: copied.point.clone(), databases };
        backup::dump(&self.backup(environment), &DumpJob::Quietly(Box::new(job))).await?;
        Ok(())
    }
}
