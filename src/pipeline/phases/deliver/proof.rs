//! Whether a release has proved itself where it ran before.

use crate::{
    host::files::{self, FileError},
    model::{HealthRecord, Phase},
    pipeline::{
        context::Deployment,
        step::{Failure, Step, Work},
    },
    release::{promotion::promotable, trust},
};

/// A larger health record is none, in bytes.
pub(super) const RECORD_MAX: u64 = 1 << 20;

/// Holds the release against the project's promotion policy: how long it served, which checks it passed, how often it fell over.
pub struct Proof;

impl Step for Proof {
    fn name(&self) -> &'static str {
        "gather.proof"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "hold what the release went through on staging against `promote:` of the recipe"
    }

    fn lasts(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let policy = deployment.settings().promote;
            let release = deployment.order.release;
            let record = record(deployment)?;
            let Err(missing) = promotable(&policy, record.as_ref(), jiff::Timestamp::now()) else { return Ok(()) };
            let what = missing.join("; ");
            let environment = deployment.order.environment.title();
            let Some(reason) = &deployment.order.overriding else {
                return Err(Failure::nobody(format!("not fit for promotion: {what}"))
                    .hint("wait until it has proved itself there, then try again")
                    .hint(format!("in an emergency: larder pull {environment} {release} --override \"why\"")));
            };
            deployment.transcript.error(&format!("promoted against the policy ({what}): {reason}"));
            let by = deployment.order.trigger.by();
            tracing::warn!(%by, environment, %release, what, reason, "a release is promoted against the policy");
            Ok(())
        })
    }
}

/// The record that came with the release. It was believed when it came.
fn record(deployment: &Deployment) -> Result<Option<HealthRecord>, Failure> {
    match files::read_limited(&deployment.paths.health(deployment.order.release), RECORD_MAX) {
        Ok(bytes) => trust::read_record(&bytes).map(Some).map_err(|refusal| super::refused(refusal.into())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(Failure::host(&error)),
    }
}

fn is_missing(error: &FileError) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}
