//! From another environment of the project on this server.

use std::{fs, path::Path};

use super::{expectation, read, refused};
use crate::{
    host::{files, root::EnvironmentPaths},
    model::{EnvironmentName, Manifest, ReleaseId},
    pipeline::{context::Deployment, phases::bundle, step::Failure},
    release::{self, Body, Incoming, Look, trust::Expectation},
};

/// Takes over a release that another environment of the project on this server has cooked.
pub(super) async fn bring(deployment: &Deployment, name: &EnvironmentName) -> Result<Manifest, Failure> {
    let order = &deployment.order;
    let sibling = deployment.services.root.environment(&order.environment.project, name);
    if deployment.paths.manifest(order.release).is_file() {
        keep_record(deployment)?;
        return read(deployment).await;
    }
    let (own, release) = (deployment.paths.clone(), order.release);
    let shared = tokio::task::spawn_blocking(move || share(&sibling, &own, release)).await;
    let body = shared.map_err(Failure::nobody)?.map_err(|error| Failure::host(&error))?;
    let directory = deployment.paths.incoming().join(release.to_string());
    let trust = [deployment.services.signing.public()];
    let expect = Expectation { environments: vec![name.clone()], ..expectation(deployment).await };
    let incoming = Incoming { body, record: None };
    let taken = release::take_in(&bundle::context(deployment), incoming, &expect, &trust, Look::Digests).await;
    let _ = fs::remove_dir_all(directory);
    let manifest = taken.map_err(refused)?;
    // Not before: nothing of what is refused stays.
    keep_record(deployment)?;
    Ok(manifest)
}

/// Keeps what the other environment says now about how the release goes there.
fn keep_record(deployment: &Deployment) -> Result<(), Failure> {
    let told = deployment.proof.as_ref().and_then(|record| serde_json::to_vec(record).ok());
    let Some(record) = told else { return Ok(()) };
    let path = deployment.paths.health(deployment.order.release);
    files::write_atomic(&path, &record, 0o640).map_err(|error| Failure::host(&error))
}

/// Gives the files of a sibling's release names in our own incoming directory; they are never written again, so a second name is
/// enough where the file system has them.
fn share(from: &EnvironmentPaths, to: &EnvironmentPaths, release: ReleaseId) -> Result<Body, files::FileError> {
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
    Ok(Body::Archive { archive, manifest: name(&from.manifest(release), "manifest.json")? })
}
