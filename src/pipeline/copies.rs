//! The copies of databases that a hold makes on database servers. Such a copy is a part of its restore point until the dump is written from
//! the copy, after the deployment has ended. [`CopyRecord`] names the copies.

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

    async fn complete(&self, queue: &Queue, environment: &Environment, copied: &CopiedPoint) -> Result<(), PointsError> {
        let databases = self.databases_of(queue, environment, copied.release)?;
        let job = DumpJob::Complete { point: copied.point.clone(), databases };
        backup::dump(&self.backup(environment), &DumpJob::Quietly(Box::new(job))).await?;
        Ok(())
    }
}
