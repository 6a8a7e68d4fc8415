//! Requests that export a release to one file and import such a file, for servers that cannot reach each other.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::Path,
};

use futures_util::future::BoxFuture;
use larder_archive::container::{ARCHIVE, Container, ContainerError, HEALTH, MANIFEST, after_all, after_part, before_part};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::releases;
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, ErrorKind, not_found, refused, run_blocking},
        request::{Context, Reply, Request, Stream},
        state::Control,
    },
    host::{
        files,
        root::EnvironmentPaths,
        stream::{Inlet, Outlet, TRANSFER_IDLE_TIMEOUT},
    },
    model::{Access, CommitId, Environment, EnvironmentName, Manifest, PublicKey, ReleaseId, Target},
    release::{
        self, Body, Incoming, MAX_RECORD, Refusal, ReleaseError, VerifyLevel,
        trust::{self, Accepted, Expectation},
    },
};

/// The request to export a release with its manifest and health record as one file.
#[derive(Debug)]
pub struct ReleaseExport {
    /// The environment.
    pub target: Target,
    /// The release.
    pub release: String,
}

impl Request for ReleaseExport {
    type View = ();
    const NAME: &'static str = "release export";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<()>, CommandError> {
        let environment = control.environment(&self.target)?;
        let all = releases::known(control, &environment).await?;
        let known = releases::named(&all, &self.release, &environment)?;
        let paths = control.root().environment(&environment.project, &environment.name);
        if !paths.archive(known.release).is_file() && paths.delta(known.release).is_file() {
            // A release that was transferred as a delta has no archive yet.
            let context = release_context(control, &environment, &paths);
            release::rebuild(&context, known.release).await.map_err(|error| of_release(&error))?;
        }
        let pipeline = control.pipeline().clone();
        // All files are opened before the answer begins, so that they can be sent even if the release is pruned meanwhile.
        let opened = run_blocking(move || {
            let release = known.release;
            let gone = |error: files::FileError| match error.kind() {
                io::ErrorKind::NotFound => not_found(format!("cannot export {}: its archive was pruned", known.name())),
                _ => CommandError::internal(&error),
            };
            let manifest = files::open_regular(&paths.manifest(release)).map_err(gone)?;
            let archive = files::open_regular(&paths.archive(release)).map_err(gone)?;
            // This server's own health record is exported. If this server has no record, the record that was transferred with the release
            // is exported.
            let record = match pipeline.health(&environment, release) {
                Some(record) => Some(serde_json::to_vec(&record).map_err(|error| CommandError::internal(&error))?),
                None => files::read_limited(&paths.health(release), MAX_RECORD).ok(),
            };
            Ok((manifest, record, archive))
        });
        let (manifest, record, archive) = opened.await?;
        let send = move |output: OwnedFd| -> BoxFuture<'static, _> {
            Box::pin(async move {
                let written = write(manifest, record, archive, output).await;
                written.map_err(|error| CommandError::new(ErrorKind::Internal, format!("cannot send the release: {error}")))
            })
        };
        Ok(Reply::Stream(Stream::Bytes(Box::new(send))))
    }
}

async fn write(manifest: File, record: Option<Vec<u8>>, archive: File, out: OwnedFd) -> io::Result<()> {
    let mut out = Outlet::within(out, TRANSFER_IDLE_TIMEOUT)?;
    let size = manifest.metadata()?.len();
    out.write(&before_part(MANIFEST, size)).await?;
    out.write_from(manifest, size).await?;
    out.write(&after_part(size)).await?;
    if let Some(record) = record {
        let size = record.len() as u64;
        out.write(&[before_part(HEALTH, size), record, after_part(size)].concat()).await?;
    }
    let size = archive.metadata()?.len();
    out.write(&before_part(ARCHIVE, size)).await?;
    out.write_from(archive, size).await?;
    out.write(&[after_part(size), after_all()].concat()).await
}

/// The request to import a release from a file that [`ReleaseExport`] wrote. The release is not deployed.
#[derive(Debug)]
pub struct ReleaseImport {
    /// The environment that receives the release.
    pub target: Target,
}

/// A release that was accepted.
#[derive(Debug, Serialize)]
pub struct Imported {
    /// The environment that the release was added to, as `project/environment`.
    pub environment: String,
    /// The id of the release.
    pub release: ReleaseId,
    /// The commit of the release.
    pub commit: CommitId,
    /// The build number of the release.
    pub build: u64,
    /// The environment that built the release.
    pub from: EnvironmentName,
}

impl Request for ReleaseImport {
    type View = Imported;
    const NAME: &'static str = "release import";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Deploy)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Imported>, CommandError> {
        let environment = control.environment(&self.target)?;
        let control = Control::clone(control);
        let accept = move |input: OwnedFd| -> BoxFuture<'static, _> {
            Box::pin(async move { accept(&control, &environment, input).await })
        };
        Ok(Reply::Upload(Box::new(accept)))
    }
}

async fn accept(control: &Control, environment: &Environment, input: OwnedFd) -> Result<Imported, CommandError> {
    let paths = control.root().environment(&environment.project, &environment.name);
    let expect = Expectation::of(environment.project.clone());
    let trust = control.trusted(environment);
    let limits = control.pipeline().services().config.limits;
    let arriving = Arriving {
        paths: paths.clone(),
        expect: expect.clone(),
        trust: trust.clone(),
        archive_bytes: limits.archive_bytes.bytes(),
        reserve: limits.disk_reserve.bytes(),
    };
    let (directory, incoming) = arrive(arriving, input).await?;
    let context = release_context(control, environment, &paths);
    let manifest = release::accept(&context, incoming, &expect, &trust, VerifyLevel::Everything).await;
    drop(directory);
    let manifest = manifest.map_err(|error| of_release(&error))?;
    Ok(Imported {
        environment: environment.title(),
        release: manifest.release,
        commit: manifest.commit,
        build: manifest.build,
        from: manifest.environment,
    })
}

/// Converts an error. The refusal of a release gets a hint; other errors are internal.
fn of_release(error: &ReleaseError) -> CommandError {
    match error {
        ReleaseError::Rejected(refusal) => refused(refusal.to_string()).hint(refusal.hint()),
        _ => CommandError::internal(error),
    }
}

fn unreadable(why: &ContainerError) -> CommandError {
    match why {
        ContainerError::Io(_) => CommandError::internal(why),
        _ => {
            let refusal = Refusal::Unreadable { what: "export".to_owned(), why: why.to_string() };
            refused(refusal.to_string()).hint("create the file again with `larder release export`, or copy it again")
        }
    }
}

fn release_context<'a>(
    control: &'a Control,
    environment: &Environment,
    paths: &'a EnvironmentPaths,
) -> release::WorkerContext<'a> {
    control.pipeline().services().release_context(environment, paths)
}

/// Reads an exported file on a separate thread, because a slow client would block a thread of the runtime. The thread ends when the future
/// is dropped.
async fn arrive(arriving: Arriving, input: OwnedFd) -> Result<(tempfile::TempDir, Incoming), CommandError> {
    let cancelled = CancellationToken::new();
    let _guard = cancelled.clone().drop_guard();
    let input = Inlet::new(input, TRANSFER_IDLE_TIMEOUT, cancelled);
    let (tell, told) = tokio::sync::oneshot::channel();
    let reading = move || drop(tell.send(arriving.read(input)));
    let thread = std::thread::Builder::new().name(String::from("import")).spawn(reading);
    thread.map_err(|error| CommandError::internal(&error))?;
    told.await.map_err(|error| CommandError::internal(&error))?
}

/// The reader of an exported file, with the conditions that the release must meet.
struct Arriving {
    paths: EnvironmentPaths,
    expect: Expectation,
    trust: Vec<PublicKey>,
    archive_bytes: u64,
    reserve: u64,
}

impl Arriving {
    /// Reads an exported file into a temporary directory. Dropping the returned `TempDir` deletes the directory.
    fn read(&self, input: Inlet) -> Result<(tempfile::TempDir, Incoming), CommandError> {
        let incoming = self.paths.incoming();
        let failed = |path: &Path, error: io::Error| {
            CommandError::new(ErrorKind::Internal, format!("cannot write {}: {error}", path.display()))
        };
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&incoming).map_err(|error| failed(&incoming, error))?;
        let directory = tempfile::Builder::new().prefix("import-").tempdir_in(&incoming);
        let directory = directory.map_err(|error| failed(&incoming, error))?;
        let at = |name: &str| directory.path().join(name);

        let mut from = Container::new(input);
        let bytes = part(&mut from, MANIFEST, release::manifest::MAX_MANIFEST)?;
        let bytes = bytes.ok_or_else(|| unreadable(&ContainerError::NotAnExport("it does not begin with a manifest")))?;
        let manifest = self.check(&bytes)?;
        write_file(&at(MANIFEST), &bytes).map_err(|error| failed(&at(MANIFEST), error))?;
        drop(bytes);

        let record = part(&mut from, HEALTH, MAX_RECORD)?;
        if let Some(record) = &record {
            write_file(&at(HEALTH), record).map_err(|error| failed(&at(HEALTH), error))?;
        }
        let size = from.next(ARCHIVE, self.archive_bytes).map_err(|error| unreadable(&error))?;
        let size = size.ok_or_else(|| unreadable(&ContainerError::NotAnExport("it holds no archive")))?;
        let release = manifest.release;
        if size != manifest.archive.bytes {
            let why = format!("the archive has {size} bytes (expected {}, as in the manifest)", manifest.archive.bytes);
            return Err(of_release(&Refusal::Disagrees { release, why }.into()));
        }
        let path = at(ARCHIVE);
        let mut file = files::create_new(&path, 0o640).map_err(|error| CommandError::internal(&error))?;
        match from.content(size, &mut file).map_err(|error| unreadable(&error))? {
            Ok(()) => {}
            Err(found) => return Err(of_release(&Refusal::Truncated { release, found, expected: size }.into())),
        }
        from.end().map_err(|error| unreadable(&error))?;
        let record = record.map(|_| at(HEALTH));
        let body = Body::Archive { manifest: at(MANIFEST), archive: path };
        Ok((directory, Incoming { body, record }))
    }

    /// Checks the manifest and the free disk space before the archive is read.
    fn check(&self, bytes: &[u8]) -> Result<Manifest, CommandError> {
        let refusal = |refusal: Refusal| of_release(&refusal.into());
        let manifest = trust::read_manifest(bytes).map_err(refusal)?;
        let accepted = Accepted::load(&self.paths.accepted()).map_err(|error| of_release(&error))?;
        trust::accept(&self.expect, &manifest, &self.trust, &accepted).map_err(refusal)?;
        let needed = manifest.archive.bytes.saturating_add(self.reserve);
        match files::free_space(&self.paths.incoming()) {
            Ok(free) if free.bytes < needed => Err(refused(format!(
                "cannot import the release: the disk has {} MiB free (expected {} MiB for the archive and {} MiB in reserve)",
                free.bytes >> 20,
                manifest.archive.bytes >> 20,
                self.reserve >> 20
            ))
            .hint("free disk space, or lower `limits: {disk_reserve: ...}` in the server file")),
            _ => Ok(manifest),
        }
    }
}

/// Reads an optional part of at most `limit` bytes into memory.
fn part(from: &mut Container<Inlet>, name: &'static str, limit: u64) -> Result<Option<Vec<u8>>, CommandError> {
    let Some(size) = from.next(name, limit).map_err(|error| unreadable(&error))? else { return Ok(None) };
    let mut bytes = Vec::new();
    match from.content(size, &mut bytes).map_err(|error| unreadable(&error))? {
        Ok(()) => Ok(Some(bytes)),
        Err(_) => Err(unreadable(&ContainerError::Cut)),
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = files::create_new(path, 0o640).map_err(io::Error::other)?;
    file.write_all(bytes)
}
