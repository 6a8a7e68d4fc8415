//! Publishes releases that are or were live to the remotes from which other servers fetch them.

use std::time::Duration;

use super::{context::Deployment, core::Pipeline, history::Summary, util::chain};
use crate::{
    host::{files, root::EnvironmentPaths},
    model::{Digest, Environment, Live, Mode, ReleaseId, ReleaseNumber, Remote},
    release::store,
    remote::{self, Blob, DeliverableStores, Offer, Publication},
};

/// The time limit for publishing a release to one remote. A transfer that stalls fails much sooner.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// Publishes the release that has just gone live in a cooking environment to each of the environment's remotes for which `publish` is true.
/// A failure is only logged, because `larder promote` and `larder pull` report a missing release themselves.
pub(super) async fn everywhere(deployment: &Deployment, live: &Live, record: Option<Vec<u8>>) {
    let environment = &deployment.environment;
    if environment.mode != Mode::Cooking {
        return;
    }
    let state = OfferState { release: live.release, number: live.number, live: true, since: Some(jiff::Timestamp::now()) };
    for remote in environment.remotes.iter().filter(|remote| remote.publish) {
        let places = &deployment.services.places;
        let published = publish(places, environment, &deployment.paths, &state, record.clone(), remote);
        let late = || Err(format!("publishing took longer than {} hours", PUBLISH_TIMEOUT.as_secs() / 3600));
        match tokio::time::timeout(PUBLISH_TIMEOUT, published).await.unwrap_or_else(|_| late()) {
            Ok(bytes) => tracing::info!(remote = %remote.name, release = %live.release, bytes, "published"),
            Err(why) => tracing::error!(remote = %remote.name, release = %live.release, why, "cannot publish"),
        }
    }
}

impl Pipeline {
    /// Publishes a release that was live in this environment to one remote. A release that is already on the remote is published
    /// again, with its current health record.
    pub async fn publish(&self, environment: &Environment, release: &Summary, remote: &Remote) -> Result<u64, String> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let (this, its, id) = (self.clone(), environment.clone(), release.release);
        let record = tokio::task::spawn_blocking(move || this.health(&its, id)).await.map_err(|error| error.to_string())?;
        let record = record.and_then(|record| serde_json::to_vec(&record).ok());
        let live = self.live(environment.id).is_some_and(|live| live.release == id);
        let state = OfferState { release: id, number: release.number, live, since: release.ended };
        publish(&self.services().places, environment, &paths, &state, record, remote).await
    }
}

/// The release of an offer, and the data of the offer that is not in the manifest.
struct OfferState {
    release: ReleaseId,
    number: ReleaseNumber,
    live: bool,
    since: Option<jiff::Timestamp>,
}

async fn publish(
    places: &DeliverableStores,
    environment: &Environment,
    paths: &EnvironmentPaths,
    state: &OfferState,
    health: Option<Vec<u8>>,
    remote: &Remote,
) -> Result<u64, String> {
    let (release, number, live, healthy_since) = (state.release, state.number, state.live, state.since);
    let paths = paths.clone();
    let read = tokio::task::spawn_blocking(move || {
        let path = paths.manifest(release);
        let manifest = store::read(&path).map_err(|error| chain(&error))?;
        let bytes = files::read_limited(&path, crate::release::manifest::MAX_MANIFEST).map_err(|error| chain(&error))?;
        let offer = Offer {
            project: manifest.project,
            environment: manifest.environment,
            release,
            number: Some(number),
            build: manifest.build,
            commit: manifest.commit,
            source: manifest.source,
            tag: manifest.tag,
            tree: manifest.tree,
            created: manifest.created,
            archive_bytes: manifest.archive.bytes,
            manifest: Blob { bytes: bytes.len() as u64, digest: Digest::of(&bytes) },
            live,
            healthy_since,
        };
        Ok::<_, String>(Publication { offer, archive: paths.archive(release), manifest: path, health })
    });
    let share = read.await.map_err(|error| error.to_string())??;
    let place = places.open(remote, &environment.project).map_err(|error| chain(&error))?;
    let published = remote::publish(&place, &share).await;
    place.leave().await;
    published.map_err(|error| chain(&error))
}
