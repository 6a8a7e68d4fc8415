//! From another server or a shared place.

use std::sync::Arc;

use super::{expectation, read, refused};
use crate::{
    model::{CommitId, Manifest, PublicKey, RemoteName},
    pipeline::{
        context::Deployment,
        phases::{bundle, deploy::install},
        step::{Failure, chain},
    },
    release::{self, Body, Incoming, Look, ReleaseError, trust::Expectation},
    remote::{self, Judge, RemoteError},
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
            false => pull(deployment, &place, &remote.trust).await,
            true => match pull(deployment, &place.clone().with_deltas(), &remote.trust).await {
                Err(trouble) if trouble.is_of_a_delta() => {
                    deployment.transcript.detail(&format!("No delta ({trouble}); bringing the whole archive."));
                    pull(deployment, &place, &remote.trust).await
                }
                other => other,
            },
        };
        let manifest = manifest?;
        commit(deployment, &place).await?;
        Ok(manifest)
    };
    let brought = brought.await;
    place.leave().await;
    brought
}

/// Why a pull brought nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{}", chain(.0))]
    Place(#[from] RemoteError),
    #[error("{}", chain(.0))]
    Release(#[from] ReleaseError),
    #[error("{}", .0.why)]
    Other(Failure),
}

impl Trouble {
    /// Whether the whole archive may still be had. A place that cannot be reached, a full disk or a release that is not believed are
    /// the same with it.
    fn is_of_a_delta(&self) -> bool {
        use ReleaseError::{Damaged, Delta, Manifest, Unknown};
        match self {
            Trouble::Place(error) => error.is_of_a_delta(),
            // What it starts from may be what is wrong.
            Trouble::Release(error) => matches!(error, Delta { .. } | Damaged { .. } | Manifest { .. } | Unknown { .. }),
            Trouble::Other(_) => false,
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Place(error) => unreached(error),
            Trouble::Release(error) => refused(error),
            Trouble::Other(failure) => failure,
        }
    }
}

async fn pull(deployment: &Deployment, place: &remote::Place, trust: &[PublicKey]) -> Result<Manifest, Trouble> {
    let order = &deployment.order;
    let offers = place.list().await?;
    let offer = offers.into_iter().find(|offer| offer.release == order.release);
    let gone = || Failure::nobody(format!("{} does not offer {} any more", place.title(), order.release));
    let offer = offer.ok_or_else(|| Trouble::Other(gone()))?;
    let transcript = deployment.transcript.clone();
    let progress = remote::tenths(move |line| transcript.detail(line));
    let held: Vec<_> = deployment.previous_release().into_iter().collect();
    let expect =
        Expectation { environments: place.environment().into_iter().cloned().collect(), ..expectation(deployment).await };
    let judge = judge(deployment, expect.clone(), trust);
    let pulled = remote::pull_believed(place, &offer, &held, &deployment.paths, &progress, &judge).await?;
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
            let (context, incoming) = (bundle::context(deployment), Incoming { body, record: None });
            release::take_in(&context, incoming, &expect, trust, Look::Digests).await.map_err(Trouble::from)
        }
        // It is here already; what is said about it may be news.
        None => read(deployment).await.map_err(Trouble::Other),
    };
    if let (Ok(manifest), Some(record)) = (&taken, record)
        && let Err(error) = release::take_record(&deployment.paths, &record, manifest, trust)
    {
        deployment.transcript.error(&format!("the health record was not taken over: {}", chain(&error)));
    }
    remote::discard(pulled);
    taken
}

/// Refuses by the manifest what would be refused with the archive.
fn judge(deployment: &Deployment, expect: Expectation, trust: &[PublicKey]) -> Judge {
    let (paths, trust) = (deployment.paths.clone(), trust.to_vec());
    Arc::new(move |manifest| match release::admit_manifest(&paths, manifest, &expect, &trust) {
        Err(error @ ReleaseError::Rejected(_)) => Err(RemoteError::Rejected { why: chain(&error), hint: error.hint() }),
        // Anything else is said again by whoever takes it in.
        _ => Ok(()),
    })
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
    let limit = deployment.services.config.limits.push_bytes.bytes();
    let mut attempts = 0..3;
    loop {
        let another = attempts.next().is_some();
        let pack = remote::pull_pack(place, order.release, &haves, &deployment.paths).await.map_err(unreached)?;
        let (file, resumed) = (pack.file.try_clone(), pack.resumed);
        let file = file.map_err(|error| Failure::host(&error))?;
        let imported = repositories.import_pack(project, order.commit.clone(), file.into(), limit).await;
        pack.discard();
        match imported {
            Ok(()) => break,
            // Of two requests, between which the repository there changed: both halves do not fit.
            Err(error) if resumed && another => tracing::warn!(%error, "a commit that came in two parts comes once more"),
            Err(error) => return Err(Failure::host(&error)),
        }
    }
    repositories.tree(project, order.commit.clone()).await.map_err(|error| Failure::host(&error))?;
    Ok(())
}

fn unreached(error: RemoteError) -> Failure {
    let hints = error.hints();
    hints.into_iter().fold(Failure::nobody(chain(&error)), Failure::hint)
}
