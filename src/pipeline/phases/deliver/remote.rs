//! Pulls a release from another server or a shared location.

use std::sync::Arc;

use super::{expectation, read, refused};
use crate::{
    model::{CommitId, Manifest, PublicKey, RemoteName},
    pipeline::{
        context::Deployment,
        phases::{bundle, deploy::install},
        step::{Failure, chain},
    },
    release::{self, Body, Incoming, ReleaseError, VerifyLevel, trust::Expectation},
    remote::{self, ManifestCheck, RemoteError},
};

/// Pulls a release from a remote. If the repository lacks the commit, pulls the commit as well.
pub(super) async fn bring(deployment: &Deployment, name: &RemoteName) -> Result<Manifest, Failure> {
    let gone =
        || Failure::blameless(format!("cannot pull {}: the remote {name} was removed in the meantime", deployment.spec.release));
    let remote = deployment.environment.remotes.iter().find(|remote| remote.name == *name).ok_or_else(gone)?;
    let place = deployment.services.places.open(remote, &deployment.environment.project).map_err(unreached)?;
    let brought = async {
        // A delta needs the release that it starts from. If the delta is not usable, the whole archive is pulled.
        let base = deployment.previous_release().filter(|release| deployment.paths.manifest(*release).is_file());
        let by_delta = base.is_some() && !install::distrusts_deltas(&deployment.paths);
        let manifest = match by_delta {
            false => pull(deployment, &place, &remote.trust).await,
            true => match pull(deployment, &place.clone().with_deltas(), &remote.trust).await {
                Err(error) if error.is_of_a_delta() => {
                    deployment.transcript.detail(&format!("cannot use a delta: {error}; pulling the whole archive"));
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

/// An error of a pull.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("{}", chain(.0))]
    Remote(#[from] RemoteError),
    #[error("{}", chain(.0))]
    Release(#[from] ReleaseError),
    #[error("{}", .0.why)]
    Other(Failure),
}

impl PullError {
    /// Returns true if a pull of the whole archive may succeed. With an unreachable remote, a full disk or an untrusted release, this pull
    /// would fail, too.
    fn is_of_a_delta(&self) -> bool {
        use ReleaseError::{Delta, Manifest, Unknown};
        match self {
            PullError::Remote(error) => error.is_of_a_delta(),
            // The release that the delta starts from may be damaged.
            PullError::Release(error) => matches!(error, Delta(_) | Manifest { .. } | Unknown { .. }),
            PullError::Other(_) => false,
        }
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Failure {
        match error {
            PullError::Remote(error) => unreached(error),
            PullError::Release(error) => refused(error),
            PullError::Other(failure) => failure,
        }
    }
}

async fn pull(deployment: &Deployment, place: &remote::DeliverableStore, trust: &[PublicKey]) -> Result<Manifest, PullError> {
    let spec = &deployment.spec;
    let offers = place.list().await?;
    let offer = offers.into_iter().find(|offer| offer.release == spec.release);
    let gone = || Failure::blameless(format!("cannot pull {}: {} no longer offers the release", spec.release, place.title()));
    let offer = offer.ok_or_else(|| PullError::Other(gone()))?;
    let transcript = deployment.transcript.clone();
    let progress = remote::tenths(move |line| transcript.detail(line));
    let held: Vec<_> = deployment.previous_release().into_iter().collect();
    let expect =
        Expectation { environments: place.environment().into_iter().cloned().collect(), ..expectation(deployment).await };
    let judge = judge(deployment, expect.clone(), trust);
    let pulled = remote::pull_checked(place, &offer, &held, &deployment.paths, &progress, &judge).await?;
    deployment.transcript.detail(&format!(
        "{} KiB pulled, {} KiB were already present",
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
            release::accept(&context, incoming, &expect, trust, VerifyLevel::Digests).await.map_err(PullError::from)
        }
        // The release is already in the store, but the pulled health record may be newer than the stored record.
        None => read(deployment).await.map_err(PullError::Other),
    };
    if let (Ok(manifest), Some(record)) = (&taken, record)
        && let Err(error) = release::accept_record(&deployment.paths, &record, manifest, trust)
    {
        deployment.transcript.error(&format!("cannot accept the health record: {}", chain(&error)));
    }
    remote::discard(pulled);
    taken
}

/// Returns a check that refuses a release by its manifest, before the archive is fetched.
fn judge(deployment: &Deployment, expect: Expectation, trust: &[PublicKey]) -> ManifestCheck {
    let (paths, trust) = (deployment.paths.clone(), trust.to_vec());
    Arc::new(move |manifest| match release::accept_manifest(&paths, manifest, &expect, &trust) {
        Err(error @ ReleaseError::Rejected(_)) => Err(RemoteError::Rejected { why: chain(&error), hint: error.hint() }),
        // Errors of other kinds occur again when the release is accepted, and are reported then.
        _ => Ok(()),
    })
}

/// Fetches the commit if the repository lacks it, because the deploy branch will name this commit.
async fn commit(deployment: &Deployment, place: &remote::DeliverableStore) -> Result<(), Failure> {
    let spec = &deployment.spec;
    let repositories = &deployment.services.repositories;
    let project = deployment.environment.project_id;
    if repositories.tree(project, spec.commit.clone()).await.is_ok() {
        return Ok(());
    }
    if !place.is_server() {
        return Err(Failure::blameless(format!(
            "cannot deploy the commit {}: the repository on this server does not have the commit",
            spec.commit.short()
        ))
        .hint(format!(
            "push the commit to any branch of this project first, then pull again: {} has releases only",
            place.title()
        )));
    }
    let haves: Vec<CommitId> = spec.previous.iter().map(|live| live.commit.clone()).collect();
    let limit = deployment.services.config.limits.push_bytes.bytes();
    let mut attempts = 0..3;
    loop {
        let another = attempts.next().is_some();
        let pack = remote::pull_pack(place, spec.release, &haves, &deployment.paths).await.map_err(unreached)?;
        let (file, resumed) = (pack.file.try_clone(), pack.resumed);
        let file = file.map_err(|error| Failure::host(&error))?;
        let imported = repositories.import_pack(project, spec.commit.clone(), file.into(), limit).await;
        pack.discard();
        match imported {
            Ok(()) => break,
            // The pack was fetched in two requests. If the remote repository changed between the requests, the two parts do not fit
            // together.
            Err(error) if resumed && another => tracing::warn!(%error, "resumed pack is not usable; fetching the pack again"),
            Err(error) => return Err(Failure::host(&error)),
        }
    }
    repositories.tree(project, spec.commit.clone()).await.map_err(|error| Failure::host(&error))?;
    Ok(())
}

fn unreached(error: RemoteError) -> Failure {
    let hints = error.hints();
    hints.into_iter().fold(Failure::blameless(chain(&error)), Failure::hint)
}
