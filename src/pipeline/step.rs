//! The step: the smallest unit of work of a deployment.

use std::{future::Future, pin::Pin, time::Duration};

use super::context::Deployment;
pub use super::{
    failure::Failure,
    permits::Resource,
    util::{chain, seconds},
};
use crate::model::{Origin, Phase};

/// A boxed future, as a step returns it.
pub type Work<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// The permits and locks that a step holds while it works, as [`Step::acquire`] returns them.
pub type Acquired<'a> = Pin<Box<dyn Future<Output = Result<Vec<Box<dyn Send>>, Failure>> + Send + 'a>>;

/// Returns the permit of a resource, for [`Step::acquire`]. A rollback needs none.
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
/// Both directions may safely run twice, because a server that was killed cannot know how far a step got. `undo` must not need
/// anything that `run` failed to make, and must not fail for any reason but a broken machine: if it does, the environment is
/// frozen until a person unfreezes it.
pub trait Step: Send + Sync {
    /// The name in the journal, in `larder plan` and in the fault tests: `phase.word`.
    fn name(&self) -> &'static str;

    /// The phase that the step belongs to.
    fn phase(&self) -> Phase;

    /// One line for `larder plan`.
    fn about(&self) -> &'static str;

    /// Returns true if the work outlives a power cut: the `started` event must then be on the disk before the work begins. A step that
    /// works in scratch directories and in memory only, or has nothing to do this time, returns `false`: after a power cut there
    /// is nothing to revert.
    fn is_durable(&self, deployment: &Deployment) -> bool {
        let _ = deployment;
        true
    }

    /// Waits for what the step holds while it works. The wait does not count towards the time limit, and a cancel ends it.
    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        let _ = deployment;
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The time limit of the work, and the failure if it takes longer.
    fn limit(&self, deployment: &Deployment) -> (Duration, Failure) {
        let limit = deployment.time_limit(self.phase());
        let late = Failure::pusher(format!("took longer than {}", seconds(limit)));
        (limit, late.hint(format!("`timeouts: {{{}: ...}}` in larder.yml gives it more time", self.phase())))
    }

    /// Returns true if a cancel or the time limit may interrupt the work. A step that is short, and that leaves half a state behind
    /// if it is cut, returns `false`; a cancel then takes effect before the next step.
    fn interruptible(&self) -> bool {
        true
    }

    /// Does the work.
    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a>;

    /// Reverts the work.
    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        let _ = deployment;
        Box::pin(async { Ok(()) })
    }
}
