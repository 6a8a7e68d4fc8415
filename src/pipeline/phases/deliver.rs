//! Releases that are not built here: brought, proved, recalled.

use std::{fs, path::Path};

use super::{bundle, gather};
use crate::{
    host::{files, root::EnvironmentPaths},
    model::{CommitId, EnvironmentName, Manifest, Origin, Phase, PublicKey, ReleaseId, RemoteName},
    pipeline::{
        context::Deployment,
        facts::Facts,
        health,
        journal::Story,
        step::{Failure, Step, Work, chain},
    },
    release::{self, Body, Expectation, Incoming, Look, ReleaseError, store, trust},
    remote::{self, RemoteError},
};

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

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let order = &deployment.order;
            deployment.transcript.title(&format!("Bringing {} from {}", order.commit.short(), order.origin));
            let manifest = match order.origin.clone() {
                Origin::Environment(name) => from_sibling(deployment, &name).await?,
                Origin::Remote(name) => from_remote(deployment, &name).await?,
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
    read.map_err(|error| Failure::nobody(error))?.map_err(|error| Failure::host(&error))
}

/// The release asked for, of this project.
fn expectation(deployment: &Deployment) -> Expectation {
    let order = &deployment.order;
    Expectation { release: Some(order.release), ..Expectation::of(order.environment.project.clone()) }
}

/// Takes over a release that another environment of the project on this server has cooked.
async fn from_sibling(deployment: &Deployment, name: &EnvironmentName) -> Result<Manifest, Failure> {
    let order = &deployment.order;
    let sibling = deployment.services.root.environment(&order.environment.project, name);
    if deployment.paths.manifest(order.release).is_file() {
        return read(deployment).await;
    }
    let (own, release) = (deployment.paths.clone(), order.release);
    let shared = {
        let sibling = sibling.clone();
        tokio::task::spawn_blocking(move || share(&sibling, &own, release)).await
    };
    let incoming = shared.map_err(|error| Failure::nobody(error))?.map_err(|error| Failure::host(&error))?;
    let directory = incoming.manifest.parent().map(Path::to_owned);
    let trust = [deployment.services.signing.public()];
    let expect = Expectation { environments: vec![name.clone()], ..expectation(deployment) };
    let taken = release::take_in(&bundle::context(deployment), incoming, &expect, &trust, Look::Digests).await;
    if let Some(directory) = directory {
        let _ = fs::remove_dir_all(directory);
    }
    let manifest = taken.map_err(refused)?;
    let record = health::of(&sibling, &order.environment.project, name, release);
    let record = record.map(|record| health::signed(record, &deployment.services.signing));
    if let Some(text) = record.and_then(|record| serde_json::to_vec(&record).ok()) {
        files::write_atomic(&deployment.paths.health(release), &text, 0o640).map_err(|error| Failure::host(&error))?;
    }
    Ok(manifest)
}

/// Gives the files of a sibling's release names in our own incoming directory; they are never written again, so a second name is
/// enough where the file system has them.
fn share(from: &EnvironmentPaths, to: &EnvironmentPaths, release: ReleaseId) -> Result<Incoming, files::FileError> {
    let directory = to.incoming().join(release.to_string());
    fs::create_dir_all(&directory).map_err(|error| files::FileError::io("create", &directory, error))?;
    let name = |source: &Path, name: &str| {
        let target = directory.join(name);
        files::remove_if_present(&target)?;
        let linked = fs::hard_link(source, &target).or_else(|_| fs::copy(source, &target).map(drop));
        linked.map_err(|error| files::FileError::io("copy", source, error))?;
        Ok(target)
    };
    let archive = name(&from.archive(release), "archive.tar.zst")?;
    Ok(Incoming { manifest: name(&from.manifest(release), "manifest.json")?, body: Body::Archive(archive) })
}

/// Pulls a release from a remote, and the commit as well where the repository does not have it.
async fn from_remote(deployment: &Deployment, name: &RemoteName) -> Result<Manifest, Failure> {
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
    let record = pulled.health().map(|path| files::read_limited(&path, health::BYTES_MAX));
    let body = match (pulled.archive(), pulled.delta()) {
        (Some(archive), _) => pulled.manifest().map(|manifest| Incoming { manifest, body: Body::Archive(archive) }),
        (None, Some(delta)) => Some(Incoming { manifest: pulled.directory.join("manifest.json"), body: Body::Delta(delta) }),
        (None, None) => None,
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
        return Err(Failure::nobody(format!("the repository here does not have the commit {}", order.commit.short())).hint(format!(
            "{} has releases only; push the commit to any branch of this project first, then pull again",
            place.title()
        )));
    }
    let haves: Vec<CommitId> = order.previous.iter().map(|live| live.commit.clone()).collect();
    let pack = remote::pull_pack(place, order.release, &haves, &deployment.paths).await.map_err(unreached)?;
    repositories.import_pack(project, pack).await.map_err(|error| Failure::host(&error))?;
    repositories.tree(project, order.commit.clone()).await.map_err(|error| Failure::host(&error))?;
    Ok(())
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

fn unreached(error: RemoteError) -> Failure {
    let hints = error.hints();
    hints.into_iter().fold(Failure::nobody(chain(&error)), Failure::hint)
}

fn refused(error: ReleaseError) -> Failure {
    let hint = error.hint();
    let failure = Failure::nobody(chain(&error));
    hint.into_iter().fold(failure, Failure::hint)
}

/// Asks what the project's policy wants to know before it promotes: how long, which checks, how many restarts.
pub struct Proof;

impl Step for Proof {
    fn name(&self) -> &'static str {
        "gather.proof"
    }

    fn phase(&self) -> Phase {
        Phase::Gather
    }

    fn about(&self) -> &'static str {
        "hold what the release went through on staging against `promote:` of the recipe"
    }

    fn lasts(&self, _: &Deployment) -> bool {
        false
    }

    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        Box::pin(async {
            let Some(policy) = deployment.settings().promote else { return Ok(()) };
            let release = deployment.order.release;
            let record = match files::read_limited(&deployment.paths.health(release), health::BYTES_MAX) {
                Ok(bytes) => trust::read_record(&bytes).map(Some).map_err(|refusal| refused(refusal.into()))?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(Failure::host(&error)),
            };
            let missing = match &record {
                Some(record) => trust::promotable(&policy, record, jiff::Timestamp::now()).err().unwrap_or_default(),
                None => vec![String::from("there is no health record of it")],
            };
            if missing.is_empty() {
                return Ok(());
            }
            let what = missing.join("; ");
            match &deployment.order.overriding {
                Some(reason) => {
                    deployment.transcript.error(&format!("promoted against the policy ({what}): {reason}"));
                    let by = deployment.order.trigger.by();
                    let environment = deployment.order.environment.title();
                    tracing::warn!(%by, environment, %release, what, reason, "a release is promoted against the policy");
                    Ok(())
                }
                None => {
                    let target = deployment.order.environment.title();
                    Err(Failure::nobody(format!("not fit for promotion: {what}"))
                        .hint("wait, or push again when it has served long enough on staging")
                        .hint(format!("in an emergency: larder pull {target} {release} --override \"why\"")))
                }
            }
        })
    }
}

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
    Failure::nobody(format!("there is no record of how {release} went live"))
        .hint("`larder releases` lists what can be gone back to; any commit that was pushed can be deployed with `larder deploy --ref`")
}
