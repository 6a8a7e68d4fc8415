//! From another server or a shared place.

use super::{expectation, read, refused};
use crate::{
    model::{CommitId, Manifest, PublicKey, RemoteName},
    pipeline::{
        context::Deployment,
        phases::{bundle, deploy::install},
        step::{Failure, chain},
    },
    release::{self, Body, Incoming, Look},
    remote::{self, RemoteError},
};

/// Pulls a release from a remote, and the commit as well where the repository does not have it.
pub(super) async fn bring(deployment: &Deployment, name: &RemoteName) -> Result<Manifest, Failure> {
    let order = &deployment.order;
    let gone = || Failure::nobody(format!("the remote {name} was removed meanwhile"));
    let remote = order.environment.remotes.iter().find(|remote| remote.name == *name).ok_or_else(gone)?;
    let place = deployment.services.places.open(remote, &order.environment.project).map_err(unreached)?;
    let brought = async {
        // A delta needs what it starts from; where it turns out to be no good, the archive does without.
        let base = deployment.previous_release().filter(|release| deployment.paths.manifest(*release).is_file());
        let by_delta = base.is_some() && !install::distrusts_deltas(&deployment.paths);
        let manifest = match by_delta {
            false => pull(deployment, &place, &remote.trust).await?,
            true => match pull(deployment, &place.clone().with_deltas(), &remote.trust).await {
                Ok(manifest) => manifest,
                Err(_) => pull(deployment, &place, &remote.trust).await?,
            },
        };
        commit(deployment, &place).await?;
        Ok(manifest)
    };
    let brought = brought.await;
    place.leave().await;
    brought
}

async fn pull(deployment: &Deployment, place: &remote::Place, trust: &[PublicKey]) -> Result<Manifest, Failure> {
    let order = &deployment.order;
    let offers = place.list().await.map_err(unreached)?;
    let offer = offers.into_iter().find(|offer| offer.release == order.release);
    let offer = offer.ok_or_else(|| Failure::nobody(format!("{} does not offer {} any more", place.title(), order.release)))?;
    let transcript = deployment.transcript.clone();
    let progress = remote::tenths(move |line| transcript.detail(line));
    let held: Vec<_> = deployment.previous_release().into_iter().collect();
    let pulled = remote::pull(place, &offer, &held, &deployment.paths, &progress).await.map_err(unreached)?;
    deployment.transcript.detail(&format!(
        "{} KiB pulled, {} KiB were here already",
        pulled.fetched.div_ceil(1024),
        pulled.reused.div_ceil(1024)
    ));
    let record = pulled.health();
    let body = match (pulled.manifest().zip(pulled.archive()), pulled.delta()) {
        (Some((manifest, archive)), _) => Some(Body::Archive { manifest, archive }),
        (None, delta) => delta.map(Body::Delta),
    };
    let taken = match body {
        Some(body) => {
            let (context, incoming) = (bundle::context(deployment), Incoming { body, record });
            release::take_in(&context, incoming, &expectation(deployment), trust, Look::Digests).await.map_err(refused)
        }
        // It is here already; what is said about it may be news.
        None => read(deployment).await.inspect(|manifest| {
            let taken = record.map(|record| release::take_record(&deployment.paths, &record, manifest, trust));
            if let Some(Err(error)) = taken {
                deployment.transcript.error(&format!("the health record was not taken over: {}", chain(&error)));
            }
        }),
    };
    remote::discard(pulled);
    taken
}

/// The deploy branch is going to name the commit, so the repository must have it.
async fn commit(deployment: &Deployment, place: &remote::Place) -> Result<(), Failure> {
    let order = &deployment.order;
    let repositories = &deployment.services.repositories;
    let project = order.environment.project_id;
    if repositories.tree(project, order.commit.clone()).await.is_ok() {
        return Ok(());
    }
    if !place.is_server() {
        return Err(Failure::nobody(format!("the repository here does not have the commit {}", order.commit.short())).hint(
            format!("{} has releases only; push the commit to any branch of this project first, then pull again", place.title()),
        ));
    }
    let haves: Vec<CommitId> = order.previous.iter().map(|live| live.commit.clone()).collect();
    let pack = remote::pull_pack(place, order.release, &haves, &deployment.paths).await.map_err(unreached)?;
    repositories
        .import_pack(project, order.commit.clone(), pack.into(), deployment.services.config.limits.push_bytes.bytes())
        .await
        .map_err(|error| Failure::host(&error))?;
    repositories.tree(project, order.commit.clone()).await.map_err(|error| Failure::host(&error))?;
    Ok(())
}

fn unreached(error: RemoteError) -> Failure {
    let hints = error.hints();
    hints.into_iter().fold(Failure::nobody(chain(&error)), Failure::hint)
}
