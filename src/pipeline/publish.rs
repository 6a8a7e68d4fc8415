//! What was cooked and serves, put where other servers fetch it.

use super::{context::Deployment, step::chain};
use crate::{
    host::files,
    model::{Digest, Live, Mode, Remote},
    release::store,
    remote::{self, Blob, Offer, Share},
};

/// Publishes the release that has just become live to every remote of its environment that wants it. Nothing follows from a
/// failure but a line in the server's log: `larder promote` and `larder pull` say themselves what is not there.
pub(super) async fn everywhere(deployment: &Deployment, live: &Live) {
    let environment = &deployment.order.environment;
    if environment.mode != Mode::Cooking {
        return;
    }
    for remote in environment.remotes.iter().filter(|remote| remote.publish) {
        match publish(deployment, live, remote).await {
            Ok(bytes) => tracing::info!(remote = %remote.name, release = %live.release, bytes, "published"),
            Err(why) => tracing::error!(remote = %remote.name, release = %live.release, why, "not published"),
        }
    }
}

async fn publish(deployment: &Deployment, live: &Live, remote: &Remote) -> Result<u64, String> {
    let (paths, release) = (deployment.paths.clone(), live.release);
    let (number, since) = (live.number, jiff::Timestamp::now());
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
            live: true,
            healthy_since: Some(since),
        };
        Ok::<_, String>(Share { offer, archive: paths.archive(release), manifest: path, health: None })
    });
    let share = read.await.map_err(|error| error.to_string())??;
    let share = Share { health: deployment.record.clone(), ..share };
    let place = deployment.services.places.open(remote, &deployment.order.environment.project).map_err(|error| chain(&error))?;
    let published = remote::publish(&place, &share).await;
    place.leave().await;
    published.map_err(|error| chain(&error))
}
