//! Accepts received deliverables: checks their files and moves the content into the store. [`trust`] decides which deliverables are
//! accepted.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use larder_archive::ArchiveLimits;
use parking_lot::Mutex;

use super::{
    Refusal, ReleaseError, WorkerContext,
    check::{self, Verdict, VerifyJob},
    delta,
    manifest::{MAX_MANIFEST, encode::EncodedManifest, index},
    store,
    trust::{self, Accepted, Expectation},
    worker::{blocking, lost, run},
};
use crate::{
    host::{
        files::{create_new, durable, open_regular, read_limited, remove_if_present, rename_over, write_atomic},
        root::EnvironmentPaths,
    },
    model::{HealthRecord, Manifest, PublicKey, Role},
};

/// The thoroughness of the check of an archive before it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyLevel {
    /// The server compares every byte with the signed digests. This level is enough before an installation, because the installation checks
    /// the content as well.
    Digests,
    /// The server compares every byte with the signed digests, and a worker checks the content of the archive.
    Everything,
}

/// A deliverable to accept: files that only the server can change, on the file system of `releases/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// The content of the release.
    pub body: Body,
    /// A health record of the release. If the record is refused, its file stays, and the deliverable may still be accepted.
    pub record: Option<PathBuf>,
}

/// The content of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A manifest and the whole archive.
    Archive {
        /// The manifest.
        manifest: PathBuf,
        /// The archive.
        archive: PathBuf,
    },
    /// A delta that starts from a release in `releases/`. The manifest of the new release is in the delta.
    Delta(PathBuf),
}

impl Body {
    fn path(&self) -> &Path {
        match self {
            Body::Archive { archive, .. } => archive,
            Body::Delta(path) => path,
        }
    }
}

/// Checks `incoming` against the expectation and the trusted keys, and renames the archive or the delta into `releases/`. The checked
/// manifest is written to a new file. This file is renamed last, because a release counts as stored as soon as its manifest exists. The
/// files of a refused deliverable are not renamed, and the caller must remove them. Of a delta, only the manifest is checked; the
/// installation checks the content of every file. The call may be repeated.
pub async fn accept(
    context: &WorkerContext<'_>,
    incoming: Incoming,
    expect: &Expectation,
    trust: &[PublicKey],
    level: VerifyLevel,
) -> Result<Manifest, ReleaseError> {
    let (expect, trust, paths) = (expect.clone(), trust.to_vec(), context.paths.clone());
    let (body, keys) = (incoming.body.clone(), trust.clone());
    let manifest = blocking(move || admit(&paths, &body, &expect, &keys)).await?;
    match (incoming.body.clone(), level) {
        (Body::Archive { archive, .. }, VerifyLevel::Digests) => {
            let manifest = manifest.clone();
            let verdict = blocking(move || {
                let file = open_regular(&archive)?;
                check::verdict(&manifest, check::read_digests(&file, &manifest, &ArchiveLimits::default()))
            });
            verdict.await??;
        }
        (Body::Archive { archive, manifest }, VerifyLevel::Everything) => {
            let (archive, described) = blocking(move || Ok((open_regular(&archive)?, open_regular(&manifest)?))).await?;
            verify_archive(context, archive, described).await??;
        }
        (Body::Delta(_), _) => {}
    }
    let (paths, threads) = (context.paths.clone(), context.threads);
    blocking(move || {
        place(&paths, &incoming.body, &manifest, threads)?;
        if let Some(record) = &incoming.record
            && let Err(error) = accept_record(&paths, record, &manifest, &trust)
        {
            tracing::warn!(release = %manifest.release, %error, "health record not accepted");
        }
        if let Body::Archive { manifest, .. } = &incoming.body {
            remove_if_present(manifest)?;
        }
        Ok(manifest)
    })
    .await
}

/// The maximum size of a health record, in bytes.
pub const MAX_RECORD: u64 = 4 << 20;

/// Accepts a health record of a release if a trusted key signed the record. Returns the newest accepted record. An older record does not
/// replace a newer record, because a remote may still offer an outdated record.
pub fn accept_record(
    paths: &EnvironmentPaths,
    record: &Path,
    manifest: &Manifest,
    trust: &[PublicKey],
) -> Result<HealthRecord, ReleaseError> {
    let bytes = read_limited(record, MAX_RECORD)?;
    let record = trust::read_record(&bytes)?;
    trust::accept_record(&record, manifest, trust)?;
    if let Some(known) = known_record(paths, manifest, trust).filter(|known| known.as_of > record.as_of) {
        return Ok(known);
    }
    let path = paths.health(manifest.release);
    let text =
        serde_json::to_vec(&record).map_err(|error| ReleaseError::Manifest { path: path.clone(), why: error.to_string() })?;
    write_atomic(&path, &text, 0o640)?;
    Ok(record)
}

/// Returns the accepted health record of a release, if a key in `trust` signed the record.
pub fn known_record(paths: &EnvironmentPaths, manifest: &Manifest, trust: &[PublicKey]) -> Option<HealthRecord> {
    let bytes = read_limited(&paths.health(manifest.release), MAX_RECORD).ok()?;
    let record = trust::read_record(&bytes).ok()?;
    trust::accept_record(&record, manifest, trust).is_ok().then_some(record)
}

/// Verifies a whole archive in a worker. Both files are only read.
pub async fn verify_archive(context: &WorkerContext<'_>, archive: File, manifest: File) -> Result<Verdict, ReleaseError> {
    let job = VerifyJob { threads: context.threads, limits: ArchiveLimits::default() };
    run(context, "verify", Role::Verify, None, &job, vec![OwnedFd::from(archive), OwnedFd::from(manifest)]).await
}

/// Reads and checks the manifest of a deliverable. The archive is not read.
fn admit(paths: &EnvironmentPaths, body: &Body, expect: &Expectation, trust: &[PublicKey]) -> Result<Manifest, ReleaseError> {
    match body {
        Body::Archive { manifest, .. } => accept_manifest(paths, manifest, expect, trust),
        Body::Delta(path) => {
            let delta = open_regular(path)?;
            let (base, _) = delta::endpoints(&delta)?;
            believe(paths, delta::manifest(&delta, store::read(&paths.manifest(base))?)?, expect, trust)
        }
    }
}

/// Checks a manifest file without its archive, so that the archive of a refused manifest need not be fetched.
pub fn accept_manifest(
    paths: &EnvironmentPaths,
    manifest: &Path,
    expect: &Expectation,
    trust: &[PublicKey],
) -> Result<Manifest, ReleaseError> {
    believe(paths, trust::read_manifest(&read_limited(manifest, MAX_MANIFEST)?)?, expect, trust)
}

/// Checks that the manifest is trusted, and that it does not contradict the store.
fn believe(
    paths: &EnvironmentPaths,
    manifest: Manifest,
    expect: &Expectation,
    trust: &[PublicKey],
) -> Result<Manifest, ReleaseError> {
    trust::accept(expect, &manifest, trust, &Accepted::load(&paths.accepted())?)?;
    match store::read(&paths.manifest(manifest.release)) {
        Ok(known) if known.statement() != manifest.statement() => Err(Refusal::Contradicts { release: manifest.release }.into()),
        // An unreadable manifest in the store is replaced.
        _ => Ok(manifest),
    }
}

/// The lock that serialises changes of `accepted.json`.
static ACCEPTED: Mutex<()> = Mutex::new(());

/// Renames checked content into the store, and writes the checked manifest beside the content.
fn place(paths: &EnvironmentPaths, body: &Body, manifest: &Manifest, threads: usize) -> Result<(), ReleaseError> {
    let release = manifest.release;
    let described = paths.releases().join(format!(".new-{release}.manifest.json"));
    remove_if_present(&described)?;
    let mut file = create_new(&described, 0o640)?;
    let encoded = EncodedManifest::of(manifest, threads)
        .map_err(|error| ReleaseError::Manifest { path: described.clone(), why: error.to_string() })?;
    std::io::Write::write_all(&mut file, &encoded.text).map_err(|error| lost(&described, error))?;
    let content = open_regular(body.path())?;
    durable::begin(&content);
    durable::begin(&file);
    content.sync_all().map_err(|error| lost(body.path(), error))?;
    file.sync_all().map_err(|error| lost(&described, error))?;
    let _one_at_a_time = ACCEPTED.lock();
    let mut accepted = Accepted::load(&paths.accepted())?;
    // The build is recorded in `accepted.json` before the rename. If the rename fails, the record still permits another attempt with the
    // same release.
    if accepted.note(manifest) {
        accepted.save(&paths.accepted())?;
    }
    remove_if_present(&paths.manifest(release))?;
    match body {
        Body::Archive { archive, .. } => rename_over(archive, &paths.archive(release))?,
        Body::Delta(path) => rename_over(path, &paths.delta(release))?,
    }
    rename_over(&described, &paths.manifest(release))?;
    encoded.keep_index(&paths.manifest(release), index::identity(&file));
    Ok(())
}
