//! The server side of taking a deliverable from elsewhere into `releases/`.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::{
    Context, Refusal, ReleaseError,
    check::{self, Verdict, VerifyJob},
    server::{blocking, lost, run},
    store,
    trust::{self, Accepted, Expectation},
};
use crate::{
    host::{
        archive::Limits,
        files::{create_new, durable, open_regular, read_limited, remove_if_present, rename_over},
        root::EnvironmentPaths,
    },
    model::{Manifest, PublicKey, Role},
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
    /// The manifest.
    pub manifest: PathBuf,
    /// What it describes.
    pub body: Body,
}

/// The content of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The whole archive.
    Archive(PathBuf),
}

/// Checks `incoming` against what was asked for and who is trusted, and gives it its names in `releases/`, the manifest last: it
/// makes the release exist. What is refused stays where it was, for whoever brought it to remove. May be repeated.
pub async fn take_in(
    context: &Context<'_>,
    incoming: Incoming,
    expect: &Expectation,
    trust: &[PublicKey],
    look: Look,
) -> Result<Manifest, ReleaseError> {
    let (expect, trust, paths) = (expect.clone(), trust.to_vec(), context.paths.clone());
    let from = incoming.clone();
    let manifest = blocking(move || admit(&paths, &from, &expect, &trust)).await?;
    let Body::Archive(path) = incoming.body.clone();
    match look {
        Look::Digests => {
            let (path, manifest) = (path.clone(), manifest.clone());
            let verdict = blocking(move || {
                let file = open_regular(&path)?;
                check::verdict(&manifest, check::read_digests(&file, &manifest, &Limits::default()))
            });
            verdict.await??;
        }
        Look::Everything => {
            let (path, described) = (path.clone(), incoming.manifest.clone());
            let (archive, described) = blocking(move || Ok((open_regular(&path)?, open_regular(&described)?))).await?;
            verify_archive(context, archive, described).await??;
        }
    }
    let paths = context.paths.clone();
    blocking(move || {
        place(&paths, &path, &manifest)?;
        remove_if_present(&incoming.manifest)?;
        Ok(manifest)
    })
    .await
}

/// Has a worker read a whole archive; both descriptors are only read.
pub async fn verify_archive(context: &Context<'_>, archive: File, manifest: File) -> Result<Verdict, ReleaseError> {
    let job = VerifyJob { threads: context.threads, limits: Limits::default() };
    run(context, "verify", Role::Verify, None, &job, vec![OwnedFd::from(archive), OwnedFd::from(manifest)]).await
}

/// All that can be said without the archive.
fn admit(
    paths: &EnvironmentPaths,
    incoming: &Incoming,
    expect: &Expectation,
    trust: &[PublicKey],
) -> Result<Manifest, ReleaseError> {
    let bytes = read_limited(&incoming.manifest, store::MAX_MANIFEST)?;
    let manifest = trust::read_manifest(&bytes)?;
    trust::accept(expect, &manifest, trust, &Accepted::load(&paths.accepted())?)?;
    match store::read(&paths.manifest(manifest.release)) {
        Ok(known) if known.statement() != manifest.statement() => Err(Refusal::Contradicts { release: manifest.release }.into()),
        // One that cannot be read is replaced by one that can.
        _ => Ok(manifest),
    }
}

/// What was accepted is read, changed and written by one at a time.
static ACCEPTED: Mutex<()> = Mutex::new(());

/// Gives an archive that was checked its name, with a manifest that says what was checked and nothing else.
fn place(paths: &EnvironmentPaths, archive: &Path, manifest: &Manifest) -> Result<(), ReleaseError> {
    let release = manifest.release;
    let described = paths.releases().join(format!(".new-{release}.manifest.json"));
    remove_if_present(&described)?;
    let mut file = create_new(&described, 0o640)?;
    let mut text = serde_json::to_vec(manifest)
        .map_err(|error| ReleaseError::Manifest { path: described.clone(), why: error.to_string() })?;
    text.push(b'\n');
    std::io::Write::write_all(&mut file, &text).map_err(|error| lost(&described, error))?;
    let content = open_regular(archive)?;
    durable::begin(&content);
    durable::begin(&file);
    content.sync_all().map_err(|error| lost(archive, error))?;
    file.sync_all().map_err(|error| lost(&described, error))?;
    let _one_at_a_time = ACCEPTED.lock();
    let mut accepted = Accepted::load(&paths.accepted())?;
    // Before it has its names: what is remembered too early refuses nothing that would be right.
    if accepted.note(manifest) {
        accepted.save(&paths.accepted())?;
    }
    remove_if_present(&paths.manifest(release))?;
    rename_over(archive, &paths.archive(release))?;
    rename_over(&described, &paths.manifest(release))?;
    Ok(())
}
