//! What is known of a release that was live here before.

use crate::{
    model::{Phase, ReleaseId},
    pipeline::{
        context::Deployment,
        facts::Facts,
        journal::Story,
        phases::gather,
        step::{Failure, Step, Work},
    },
};

/// Takes over what the deployment that made a release live found out about it.
pub struct Recall;

impl Step for Recall {
    fn name(&self) -> &'static str {
        "gather.recall"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "take settings and processes from the record of the deployment that made the release live"
    }

    fn lasts(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let order = &deployment.order;
            let release = order.release;
            deployment.transcript.title(&format!("Going back to {} in {}", order.commit.short(), order.environment.title()));
            let known = match &order.recorded {
                Some(id) => Story::read(&deployment.paths.deployment(*id)).map_err(|error| Failure::host(&error))?.facts,
                None => Facts::default(),
            };
            let Some(settings) = known.settings else { return Err(unknown(release)) };
            // The machine's words about this deployment are new; everything else is as it was.
            let mut variables = known.variables;
            variables.insert(String::from("deployment"), gather::about(deployment));
            deployment.facts = Facts { settings: Some(settings), variables, processes: Vec::new(), ..known };
            Ok(())
        })
    }
}

fn unknown(release: ReleaseId) -> Failure {
    Failure::nobody(format!("there is no record of how {release} went live")).hint(
        "`larder releases` lists what can be gone back to; any commit that was pushed can be deployed with `larder deploy --ref`",
    )
}
