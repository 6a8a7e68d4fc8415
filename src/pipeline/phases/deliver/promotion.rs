//! The check of a release against the promotion policy of its environment.

use crate::{
    host::files::{self, FileError},
    model::{HealthRecord, Phase},
    pipeline::{
        context::Deployment,
        step::{Failure, Step, Work},
    },
    release::{self, promotable, trust},
};

/// The step that checks the release's health record against the promotion conditions of the recipe and the server file. The conditions
/// concern the time that the release served, the checks that it passed, and the number of exits of its processes.
pub struct PromotionCheck;

impl Step for PromotionCheck {
    fn name(&self) -> &'static str {
        "gather.proof"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "check the release's health record against the promotion policy"
    }

    fn is_durable(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let policy = deployment.settings().promote;
            let release = deployment.spec.release;
            let record = record(deployment)?;
            let Err(missing) = promotable(&policy, record.as_ref(), jiff::Timestamp::now()) else { return Ok(()) };
            let what = missing.join("; ");
            let environment = deployment.environment.title();
            let Some(reason) = &deployment.spec.overriding else {
                return Err(Failure::blameless(format!("not fit for promotion: {what}"))
                    .hint("wait until the release meets the policy, then try again")
                    .hint(format!("in an emergency, run `larder pull {environment} {release} --override \"why\"`")));
            };
            deployment.transcript.error(&format!("promoted against the policy ({what}): {reason}"));
            let by = deployment.spec.trigger.by();
            tracing::warn!(%by, environment, %release, what, reason, "release promoted against the policy");
            Ok(())
        })
    }
}

/// Reads the stored health record of the release. The signature of a record from a remote was checked before the record was
/// stored.
fn record(deployment: &Deployment) -> Result<Option<HealthRecord>, Failure> {
    match files::read_limited(&deployment.paths.health(deployment.spec.release), release::MAX_RECORD) {
        Ok(bytes) => trust::read_record(&bytes).map(Some).map_err(|refusal| super::refused(refusal.into())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(Failure::host(&error)),
    }
}

fn is_missing(error: &FileError) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}
