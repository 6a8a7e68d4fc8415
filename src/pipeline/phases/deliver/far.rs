//! From another server or a shared place.

use super::{expectation, proof::RECORD_MAX, read, refused};
use crate::{
    host::files,
    model::{CommitId, Manifest, PublicKey, RemoteName},
    pipeline::{
        context::Deployment,
        phases::bundle,
        step::{Failure, chain},
    },
    release::{self, Body, Incoming, Look, trust},
    remote::{self, RemoteError},
};

/// Pulls a release from a remote, and the commit as well where the repository does not have it.
pub(super) async fn bring(deployment: &Deployment, name: &RemoteName) -> Result<Manifest, Failure> {
    let order = &deployment.order;
    let gone = || Failure::nobody(format!("the remote {name} was removed meanwhile"));
    let remote = order.environment.remotes.iter().find(|remote| remote.name == *name).ok_or_else(gone)?;
    let place = deployment.services.places.open(remote, &order.environment.project).map_err(unreached)?;
    let brought = async {
        let manifest = pull(deployment, &place, &remote.trust).await?;
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
    let record = pulled.health().map(|path| files::read_limited(&path, RECORD_MAX));
    let body = match (pulled.archive(), pulled.delta()) {
        (Some(archive), _) => pulled.manifest().map(|manifest| Incoming { manifest, body: Body::Archive(archive) }),
        (None, Some(_) | None) => None,
    };
    let taken = match body {
        Some(incoming) => {
            let context = bundle::context(deployment);
            release::take_in(&context, incoming, &expectation(deployment), trust, Look::Digests).await.map_err(refused)
        }
        None => read(deployment).await,
    };
    let kept = taken.and_then(|manifest| {
        if let Some(record) = record {
            keep_record(deployment, &record.map_err(|error| Failure::host(&error))?, &manifest, trust)?;
        }
        Ok(manifest)
    });
    remote::discard(pulled);
    kept
}

/// Keeps what the other side says about how the release went there, if it is signed by somebody who is trusted.
fn keep_record(deployment: &Deployment, bytes: &[u8], manifest: &Manifest, trust: &[PublicKey]) -> Result<(), Failure> {
    let believed = trust::read_record(bytes).and_then(|record| trust::accept_record(&record, manifest, trust));
    believed.map_err(|refusal| refused(refusal.into()))?;
    let path = deployment.paths.health(manifest.release);
    files::write_atomic(&path, bytes, 0o640).map_err(|error| Failure::host(&error))
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
