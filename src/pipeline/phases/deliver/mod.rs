//! Releases that are not built here: brought, proved, recalled.

mod far;
mod near;
mod proof;
mod recall;

use std::time::Duration;

pub use self::{proof::Proof, recall::Recall};

use crate::{
    model::{Manifest, Origin, Phase},
    pipeline::{
        context::Deployment,
        runner::seconds,
        step::{Failure, Step, Work, chain},
    },
    release::{ReleaseError, store, trust::Expectation},
};

/// How long a release may take to come.
const LIMIT: Duration = Duration::from_secs(6 * 3600);

/// Sees that the release is in the environment's own store, and is what it says: from there on nobody else is needed.
pub struct Deliverable;

impl Step for Deliverable {
    fn name(&self) -> &'static str {
        "gather.deliverable"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "find the deliverable, pull what is missing of it, check signature and digests"
    }

    fn limit(&self, _: &Deployment) -> (Duration, Failure) {
        // The recipe is not known yet, and the line to the other place is not the project's. A transfer that stands still ends sooner.
        let why = format!("took longer than {}", seconds(LIMIT));
        (LIMIT, Failure::nobody(why).hint("what has arrived is kept: the next attempt goes on where this one ended"))
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let order = &deployment.order;
            deployment.transcript.title(&format!("Bringing {} from {}", order.commit.short(), order.origin));
            let manifest = match order.origin.clone() {
                Origin::Environment(name) => near::bring(deployment, &name).await?,
                Origin::Remote(name) => far::bring(deployment, &name).await?,
                Origin::Store | Origin::Past | Origin::Commit => read(deployment).await?,
            };
            is_of_commit(deployment, &manifest).await?;
            deployment.transcript.detail(&format!(
                "build {} of {}, made {}, tree {}, signed by {}",
                manifest.build,
                manifest.environment,
                manifest.created.strftime("%Y-%m-%d %H:%M:%S UTC"),
                manifest.tree.short(),
                manifest.signature.map_or_else(|| String::from("nobody"), |signature| signature.key.to_string()),
            ));
            deployment.facts.tree = Some(manifest.tree);
            deployment.facts.archive_bytes = manifest.archive.bytes;
            deployment.facts.build = Some(manifest.build);
            deployment.facts.buildpacks = manifest.buildpacks;
            deployment.facts.buildpack_processes = manifest.processes;
            Ok(())
        })
    }

    // What was brought stays: it is complete, it was believed, and the next attempt need not bring it again.
}

/// The manifest in the environment's own store.
async fn read(deployment: &Deployment) -> Result<Manifest, Failure> {
    let path = deployment.paths.manifest(deployment.order.release);
    let read = tokio::task::spawn_blocking(move || store::read(&path)).await;
    read.map_err(Failure::nobody)?.map_err(|error| Failure::host(&error))
}

/// The release asked for, of this project, made of the commit that is deployed or of one with the same tree; and no old one, where
/// the newest was asked for.
async fn expectation(deployment: &Deployment) -> Expectation {
    let order = &deployment.order;
    let source = deployment.services.repositories.tree(order.environment.project_id, order.commit.clone()).await.ok();
    let (release, commit) = (Some(order.release), Some(order.commit.clone()));
    Expectation { release, commit, source, newest: deployment.newest, ..Expectation::of(order.environment.project.clone()) }
}

/// A list is a hint; this is what counts: the release was made of the commit that is deployed, or of one with the same tree.
async fn is_of_commit(deployment: &Deployment, manifest: &Manifest) -> Result<(), Failure> {
    let order = &deployment.order;
    if manifest.commit == order.commit {
        return Ok(());
    }
    let tree = deployment.services.repositories.tree(order.environment.project_id, order.commit.clone()).await;
    if manifest.source.is_some() && manifest.source == tree.ok() {
        let same = format!("built from {}, which has the same tree as {}", manifest.commit.short(), order.commit.short());
        deployment.transcript.detail(&same);
        return Ok(());
    }
    let why = format!("release {} was made of {}, not of {}", order.release, manifest.commit.short(), order.commit.short());
    Err(Failure::nobody(why).hint("the place that offered it is wrong or lies; `larder remote check` looks at it"))
}

fn refused(error: ReleaseError) -> Failure {
    let hint = error.hint();
    let failure = Failure::nobody(chain(&error));
    hint.into_iter().fold(failure, Failure::hint)
}
