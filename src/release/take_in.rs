//! The server side of taking a deliverable from elsewhere into `releases/`.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use larder_archive::Limits;
use parking_lot::Mutex;

use super::{
    Context, Refusal, ReleaseError,
    check::{self, Verdict, VerifyJob},
    delta,
    forms::Forms,
    index,
    server::{blocking, lost, run},
    store,
    trust::{self, Accepted, Expectation},
};
use crate::{
    host::{
        files::{create_new, durable, open_regular, read_limited, remove_if_present, rename_over, write_atomic},
        root::EnvironmentPaths,
    },
    model::{HealthRecord, Manifest, PublicKey, Role},
};

/// How closely an archive is looked at before it gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Every byte against the digests that were signed. Enough where it is installed next: that reads the rest as strictly.
    Digests,
    /// Everything in it as well, by a worker.
    Everything,
}

/// What came from elsewhere: files that nobody but the server can change, in a directory on the file system of `releases/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// What makes the release.
    pub body: Body,
    /// What somebody says of how it ran; left where it is if it is not accepted, and nothing else changes by that.
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
    /// A delta, which starts from a release in `releases/` and holds its manifest.
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

/// Checks `incoming` against what was asked for and who is trusted, and gives it its names in `releases/`, the manifest last: it
/// makes the release exist. What is refused stays where it was, for whoever brought it to remove. May be repeated. Of a delta, only
/// the manifest can be checked here; its content is, file by file, when it is installed.
pub async fn take_in(
    context: &Context<'_>,
    incoming: Incoming,
    expect: &Expectation,
    trust: &[PublicKey],
    look: Look,
) -> Result<Manifest, ReleaseError> {
    let (expect, trust, paths) = (expect.clone(), trust.to_vec(), context.paths.clone());
    let (body, keys) = (incoming.body.clone(), trust.clone());
    let manifest = blocking(move || admit(&paths, &body, &expect, &keys)).await?;
    match (incoming.body.clone(), look) {
        (Body::Archive { archive, .. }, Look::Digests) => {
            let manifest = manifest.clone();
            let verdict = blocking(move || {
                let file = open_regular(&archive)?;
                check::verdict(&manifest, check::read_digests(&file, &manifest, &Limits::default()))
            });
            verdict.await??;
        }
        (Body::Archive { archive, manifest }, Look::Everything) => {
            let (archive, described) = blocking(move || Ok((open_regular(&archive)?, open_regular(&manifest)?))).await?;
            verify_archive(context, archive, described).await??;
        }
        (Body::Delta(_), _) => {}
    }
    let (paths, threads) = (context.paths.clone(), context.threads);
    blocking(move || {
        place(&paths, &incoming.body, &manifest, threads)?;
        if let Some(record) = &incoming.record
            && let Err(error) = take_record(&paths, record, &manifest, &trust)
        {
            tracing::warn!(release = %manifest.release, %error, "a health record was not taken over");
        }
        if let Body::Archive { manifest, .. } = &incoming.body {
            remove_if_present(manifest)?;
        }
        Ok(manifest)
    })
    .await
}

/// The largest health record, in bytes.
pub const MAX_RECORD: u64 = 4 << 20;

/// Takes over what somebody trusted says of how a release ran elsewhere, in place of what was known before, unless that is newer: a
/// place may offer what was published long ago. Gives what is known now.
pub fn take_record(
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

/// What was taken over of how a release ran elsewhere, if it is still by somebody in `trust`.
pub fn known_record(paths: &EnvironmentPaths, manifest: &Manifest, trust: &[PublicKey]) -> Option<HealthRecord> {
    let bytes = read_limited(&paths.health(manifest.release), MAX_RECORD).ok()?;
    let record = trust::read_record(&bytes).ok()?;
    trust::accept_record(&record, manifest, trust).is_ok().then_some(record)
}

/// Has a worker read a whole archive; both descriptors are only read.
pub async fn verify_archive(context: &Context<'_>, archive: File, manifest: File) -> Result<Verdict, ReleaseError> {
    let job = VerifyJob { threads: context.threads, limits: Limits::default() };
    run(context, "verify", Role::Verify, None, &job, vec![OwnedFd::from(archive), OwnedFd::from(manifest)]).await
}

/// All that can be said without the archive.
fn admit(paths: &EnvironmentPaths, body: &Body, expect: &Expectation, trust: &[PublicKey]) -> Result<Manifest, ReleaseError> {
    match body {
        Body::Archive { manifest, .. } => admit_manifest(paths, manifest, expect, trust),
        Body::Delta(path) => {
            let delta = open_regular(path)?;
            let (base, _) = delta::endpoints(&delta)?;
            believe(paths, delta::manifest(&delta, store::read(&paths.manifest(base))?)?, expect, trust)
        }
    }
}

/// The same of a manifest's file: what is refused here need not be fetched.
pub fn admit_manifest(
    paths: &EnvironmentPaths,
    manifest: &Path,
    expect: &Expectation,
    trust: &[PublicKey],
) -> Result<Manifest, ReleaseError> {
    believe(paths, trust::read_manifest(&read_limited(manifest, store::MAX_MANIFEST)?)?, expect, trust)
}

fn believe(
    paths: &EnvironmentPaths,
    manifest: Manifest,
    expect: &Expectation,
    trust: &[PublicKey],
) -> Result<Manifest, ReleaseError> {
    trust::accept(expect, &manifest, trust, &Accepted::load(&paths.accepted())?)?;
    match store::read(&paths.manifest(manifest.release)) {
        Ok(known) if known.statement() != manifest.statement() => Err(Refusal::Contradicts { release: manifest.release }.into()),
        // One that cannot be read is replaced by one that can.
        _ => Ok(manifest),
    }
}

/// What was accepted is read, changed and written by one at a time.
static ACCEPTED: Mutex<()> = Mutex::new(());

/// Gives what was checked its name, with a manifest that says what was checked and nothing else.
fn place(paths: &EnvironmentPaths, body: &Body, manifest: &Manifest, threads: usize) -> Result<(), ReleaseError> {
    let release = manifest.release;
    let described = paths.releases().join(format!(".new-{release}.manifest.json"));
    remove_if_present(&described)?;
    let mut file = create_new(&described, 0o640)?;
    let forms = Forms::of(manifest, threads)
        .map_err(|error| ReleaseError::Manifest { path: described.clone(), why: error.to_string() })?;
    std::io::Write::write_all(&mut file, &forms.text).map_err(|error| lost(&described, error))?;
    let content = open_regular(body.path())?;
    durable::begin(&content);
    durable::begin(&file);
    content.sync_all().map_err(|error| lost(body.path(), error))?;
    file.sync_all().map_err(|error| lost(&described, error))?;
    let _one_at_a_time = ACCEPTED.lock();
    let mut accepted = Accepted::load(&paths.accepted())?;
    // Before it has its names: what is remembered too early refuses nothing that would be right.
    if accepted.note(manifest) {
        accepted.save(&paths.accepted())?;
    }
    remove_if_present(&paths.manifest(release))?;
    match body {
        Body::Archive { archive, .. } => rename_over(archive, &paths.archive(release))?,
        Body::Delta(path) => rename_over(path, &paths.delta(release))?,
    }
    rename_over(&described, &paths.manifest(release))?;
    forms.keep_index(&paths.manifest(release), index::identity(&file));
    Ok(())
}
