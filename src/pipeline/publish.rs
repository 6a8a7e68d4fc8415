//! What was cooked and serves, put where other servers fetch it.

use std::time::Duration;

use super::{Pipeline, Summary, context::Deployment, step::chain};
use crate::{
    host::{files, root::EnvironmentPaths},
    model::{Digest, Environment, Live, Mode, ReleaseId, ReleaseNumber, Remote},
    release::store,
    remote::{self, Blob, Offer, Places, Share},
};

/// How long a place may take for a release in all. A transfer that stands still ends much sooner.
const LIMIT: Duration = Duration::from_secs(6 * 3600);

/// Publishes the release that has just become live to every remote of its environment that wants it. Nothing follows from a
/// failure but a line in the server's log: `larder promote` and `larder pull` say themselves what is not there.
pub(super) async fn everywhere(deployment: &Deployment, live: &Live) {
    let environment = &deployment.order.environment;
    if environment.mode != Mode::Cooking {
        return;
    }
    let said = Said { release: live.release, number: live.number, live: true, since: Some(jiff::Timestamp::now()) };
    for remote in environment.remotes.iter().filter(|remote| remote.publish) {
        let places = &deployment.services.places;
        let published = publish(places, environment, &deployment.paths, &said, deployment.record.clone(), remote);
        let late = || Err(format!("it took longer than {} hours", LIMIT.as_secs() / 3600));
        match tokio::time::timeout(LIMIT, published).await.unwrap_or_else(|_| late()) {
            Ok(bytes) => tracing::info!(remote = %remote.name, release = %live.release, bytes, "published"),
            Err(why) => tracing::error!(remote = %remote.name, release = %live.release, why, "not published"),
        }
    }
}

impl Pipeline {
    /// Publishes a release that was live here to one remote, again where it is there already: with what is known of it by now.
    pub async fn publish(&self, environment: &Environment, release: &Summary, remote: &Remote) -> Result<u64, String> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let (this, its, id) = (self.clone(), environment.clone(), release.release);
        let record = tokio::task::spawn_blocking(move || this.health(&its, id)).await.map_err(|error| error.to_string())?;
        let record = record.and_then(|record| serde_json::to_vec(&record).ok());
        let live = self.live(environment.id).is_some_and(|live| live.release == id);
        let said = Said { release: id, number: release.number, live, since: release.ended };
        publish(&self.services().places, environment, &paths, &said, record, remote).await
    }
}

/// What an offer says that stands in no manifest.
struct Said {
    release: ReleaseId,
    number: ReleaseNumber,
    live: bool,
    since: Option<jiff::Timestamp>,
}

async fn publish(
    places: &Places,
    environment: &Environment,
    paths: &EnvironmentPaths,
    said: &Said,
    health: Option<Vec<u8>>,
    remote: &Remote,
) -> Result<u64, String> {
    let (release, number, live, healthy_since) = (said.release, said.number, said.live, said.since);
    let paths = paths.clone();
    let read = tokio::task::spawn_blocking(move || {
        let path = paths.manifest(release);
        let manifest = store::read(&path).map_err(|error| chain(&error))?;
        let bytes = files::read_limited(&path, store::MAX_MANIFEST).map_err(|error| chain(&error))?;
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
        Ok::<_, String>(Share { offer, archive: paths.archive(release), manifest: path, health })
    });
    let share = read.await.map_err(|error| error.to_string())??;
    let place = places.open(remote, &environment.project).map_err(|error| chain(&error))?;
    let published = remote::publish(&place, &share).await;
    place.leave().await;
    published.map_err(|error| chain(&error))
}
