//! The step that creates the release archive.

use crate::{
    host::files,
    model::{Phase, ReleaseId},
    pipeline::{
        context::Deployment,
        step::{self, Acquired, Failure, Resource, Step, Work},
    },
    release::{self, ReleaseError},
};

/// The step that packs the build's result into `releases/<id>.tar.zst` with its manifest. Unchanged frames of the previous
/// archive are copied without recompression.
pub struct WriteArchive;

impl Step for WriteArchive {
    fn name(&self) -> &'static str {
        "bundle.archive"
    }

    fn phase(&self) -> Phase {
        Phase::Bundle
    }

    fn about(&self) -> &'static str {
        "pack the build's result into a reproducible archive with a manifest"
    }

    fn acquire<'a>(&'a self, deployment: &'a Deployment) -> Acquired<'a> {
        step::permit(deployment, Resource::Unpack)
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let spec = &deployment.spec;
            let services = deployment.services.clone();
            // The number is drawn once, even if this step runs twice.
            let build = *deployment.facts.build.get_or_insert_with(|| services.numbers.draw(&deployment.environment.project));
            let head = release::manifest::Head {
                project: deployment.environment.project.clone(),
                environment: deployment.environment.name.clone(),
                release: spec.release,
                commit: spec.commit.clone(),
                source: deployment.facts.source.clone(),
                build,
                tag: deployment.facts.tag.clone(),
                mode: deployment.environment.mode,
                buildpacks: deployment.facts.buildpacks.clone(),
                processes: deployment.facts.buildpack_processes.clone(),
                created: spec.release.created(),
            };
            let previous = deployment.previous_release();
            // The number is saved while the archive is written. This step succeeds only after the number and the archive are durable, so no
            // later step uses a number that is not durable.
            let saved = tokio::task::spawn_blocking(move || services.numbers.save());
            let context = context(deployment);
            let secrets = deployment.searched_secrets()?;
            let (bundled, saved) = tokio::join!(release::bundle(&context, head, previous, secrets), saved);
            let bundled = bundled.map_err(failure)?;
            saved.unwrap_or_else(|error| Err(error.into())).map_err(|error| Failure::host(&error))?;
            for warning in &bundled.report.warnings {
                deployment.transcript.error(warning);
            }
            let report = &bundled.report;
            deployment.transcript.detail(&format!(
                "build {build}: {} entries, {} changed; archive {} KiB, tree {}",
                report.entries,
                report.changed,
                report.archive_bytes.div_ceil(1024),
                report.tree.short()
            ));
            deployment.facts.tree = Some(report.tree);
            deployment.facts.archive_bytes = report.archive_bytes;
            deployment.facts.tree_bytes = report.bytes;
            Ok(())
        })
    }

    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            deployment.is_not_current()?;
            let paths = &deployment.paths;
            // The manifest is removed first, because a release without a manifest does not count as stored.
            let id = deployment.spec.release;
            for path in [paths.manifest(id), paths.index(id), paths.archive(id)] {
                files::remove_if_present(&path).map_err(|error| Failure::host(&error))?;
            }
            release::remove_unfinished(paths, id).map_err(|error| Failure::host(&error))
        })
    }
}

/// Returns the context for a worker that processes a release of the deployment's environment.
pub(in crate::pipeline) fn context(deployment: &Deployment) -> release::WorkerContext<'_> {
    deployment.services.release_context(&deployment.environment, &deployment.paths)
}

/// Returns a failure that blames the pusher for errors in the built tree, and the machine for all other errors.
pub(in crate::pipeline) fn failure(error: ReleaseError) -> Failure {
    if error.is_for_the_pusher() { Failure::pusher(crate::pipeline::chain(&error)) } else { Failure::host(&error) }
}

/// Removes the installed tree of a release. The files are deleted in the background.
pub(super) async fn remove_tree(deployment: &Deployment, release: ReleaseId) -> Result<(), Failure> {
    let environment = deployment.environment.id;
    let removed = deployment.services.launcher.reset_area(environment, crate::model::Area::Tree, Some(release), None).await;
    removed.map_err(|error| Failure::host(&error))
}
