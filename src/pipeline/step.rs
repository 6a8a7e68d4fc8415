//! The step: the smallest unit of work of a deployment.

use std::{future::Future, pin::Pin, time::Duration};

use super::context::Deployment;
pub use super::{
    failure::Failure,
    permits::Resource,
    util::{chain, seconds},
};
use crate::model::{Origin, Phase};

/// The boxed future that [`Step::run`] and [`Step::undo`] return.
pub type Work<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// The boxed future that [`Step::acquire`] returns. The output of the future is the permits and locks that the step holds while
/// it works.
pub type Acquired<'a> = Pin<Box<dyn Future<Output = Result<Vec<Box<dyn Send>>, Failure>> + Send + 'a>>;

/// Returns the permit of a resource, for [`Step::acquire`]. A rollback needs no permit.
pub fn permit(deployment: &Deployment, resource: Resource) -> Acquired<'_> {
    Box::pin(async move {
        if deployment.spec.origin == Origin::Previous {
            return Ok(Vec::new());
        }
        let permit = deployment.services.permits.acquire(resource, &deployment.transcript).await;
        Ok(vec![Box::new(permit.map_err(|error| Failure::host(&error))?) as Box<dyn Send>])
    })
}

/// A unit of work that a deployment does and can revert.
///
/// `run` and `undo` may safely run twice, because the journal does not show how far a step got before the server was killed. `undo`
/// must also work if `run` created only a part of its results. `undo` may fail only because of the machine, such as a full disk: a
/// failed `undo` freezes the environment until a person unfreezes it.
pub trait Step: Send + Sync {
    /// Returns the name of the step in the journal, in `larder plan` and in the fault tests: `phase.word`.
    fn name(&self) -> &'static str;

    /// Returns the phase that the step belongs to.
    fn phase(&self) -> Phase;

    /// Returns the description of the step that `larder plan` shows, on one line.
    fn about(&self) -> &'static str;

    /// Returns true if results of the work may outlast a power cut. The `started` event is then synced to the disk before the work begins.
    /// A step returns false if it works only in scratch directories and memory, or has nothing to do: after a power cut, the step then
    /// has nothing to revert.
    fn is_durable(&self, deployment: &Deployment) -> bool {
        let _ = deployment;
        true
    }

    /// Waits for the permits and locks that the step holds while it works. The wait does not count towards the time limit. A
    /// cancel stops the wait.
    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        let _ = deployment;
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Returns the time limit of the work, and the failure of a step that exceeds the limit.
    fn limit(&self, deployment: &Deployment) -> (Duration, Failure) {
        let limit = deployment.time_limit(self.phase());
        let late = Failure::pusher(format!("took longer than {}", seconds(limit)));
        (limit, late.hint(format!("raise `timeouts: {{{}: ...}}` in larder.yml", self.phase())))
    }

    /// Returns true if a cancel or the time limit may interrupt the work. A step returns false if it is short and an interruption would
    /// leave a partial state. A cancel then takes effect before the next step.
    fn interruptible(&self) -> bool {
        true
    }

    /// Does the work.
    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a>;

    /// Acts after the success of the step is recorded, if the step is the commit point.
    fn committed(&self, deployment: &mut Deployment) {
        let _ = deployment;
    }

    /// Returns the time limit of the undo. A recipe cannot change this limit, because the release of the recipe has failed. The default is
    /// long enough to drain requests and to stop processes that ignore the stop signal.
    fn undo_limit(&self) -> Duration {
        Duration::from_secs(300)
    }

    /// Returns the later steps that must be reverted before this step. If one of their undos has failed, this undo is not attempted and counts
    /// as failed, and the next unwinding reverts the steps in the right order.
    fn undone_after(&self) -> &'static [&'static str] {
        &[]
    }

    /// Reverts the work.
    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        let _ = deployment;
        Box::pin(async { Ok(()) })
    }
}
