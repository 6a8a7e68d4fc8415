//! A release in one file, out and in: for networks that do not touch.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::Path,
};

use larder_archive::container::{ARCHIVE, Container, ContainerError, HEALTH, MANIFEST, after_all, after_part, before_part};
use tokio_util::sync::CancellationToken;

use super::{refused, releases};
use crate::{
    control::{CommandError, Control, Kind, Reply, SendFuture, TakeFuture, Target},
    host::{
        files,
        root::EnvironmentPaths,
        stream::{Inlet, Outlet, TRANSFER_IDLE_LIMIT},
    },
    model::{Environment, Manifest, PublicKey},
    release::{
        self, Body, Incoming, Look, MAX_RECORD, Refusal, ReleaseError, store,
        trust::{self, Accepted, Expectation},
    },
};

/// Refusals with their hints; everything else is the machine's.
pub(super) fn of_release(error: &ReleaseError) -> CommandError {
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
            refused(refusal.to_string()).hint("`larder release export` makes such a file; make it again, or copy it again")
        }
    }
}

pub(super) async fn export(control: &Control, target: &Target, name: &str) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let all = releases::known(control, &environment).await?;
    let known = releases::named(&all, name, &environment)?;
    let paths = control.0.root.environment(&environment.project, &environment.name);
    if !paths.archive(known.release).is_file() && paths.delta(known.release).is_file() {
        // It came as a difference to the one before.
        let context = context(control, &environment, &paths);
        release::rebuild(&context, known.release).await.map_err(|error| of_release(&error))?;
    }
    let pipeline = control.pipeline().clone();
    let opened = tokio::task::spawn_blocking(move || {
        let release = known.release;
        let gone = |error: files::FileError| match error.kind() {
            io::ErrorKind::NotFound => super::not_found(format!("{} was pruned: its archive is gone", known.name())),
            _ => CommandError::internal(&error),
        };
        let manifest = files::open_regular(&paths.manifest(release)).map_err(gone)?;
        let archive = files::open_regular(&paths.archive(release)).map_err(gone)?;
        // What happened to it here, else what is known of it from elsewhere.
        let record = match pipeline.health(&environment, release) {
            Some(record) => Some(serde_json::to_vec(&record).map_err(|error| CommandError::internal(&error))?),
            None => files::read_limited(&paths.health(release), MAX_RECORD).ok(),
        };
        Ok((manifest, record, archive))
    });
    let (manifest, record, archive) = opened.await.map_err(|error| CommandError::internal(&error))??;
    let send = move |output: OwnedFd| -> SendFuture {
        Box::pin(async move {
            let written = write(manifest, record, archive, output).await;
            written.map_err(|error| CommandError::new(Kind::Internal, format!("the release cannot be sent: {error}")))
        })
    };
    Ok(Reply::Bytes(Box::new(send)))
}

async fn write(manifest: File, record: Option<Vec<u8>>, archive: File, out: OwnedFd) -> io::Result<()> {
    let mut out = Outlet::within(out, TRANSFER_IDLE_LIMIT)?;
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

pub(super) async fn import(control: &Control, target: &Target) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let control = control.clone();
    let take = move |input: OwnedFd| -> TakeFuture { Box::pin(async move { take(&control, &environment, input).await }) };
    Ok(Reply::Take(Box::new(take)))
}

async fn take(control: &Control, environment: &Environment, input: OwnedFd) -> Result<String, CommandError> {
    let paths = control.0.root.environment(&environment.project, &environment.name);
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
    let context = context(control, environment, &paths);
    let manifest = release::take_in(&context, incoming, &expect, &trust, Look::Everything).await;
    drop(directory);
    let manifest = manifest.map_err(|error| of_release(&error))?;
    Ok(format!(
        "{} has release {} now: commit {}, build {}, from {}\nnothing was deployed; to do that, push {} or name the release in `larder pull`",
        environment.title(),
        manifest.release,
        manifest.commit.short(),
        manifest.build,
        manifest.environment,
        manifest.commit.short(),
    ))
}

fn context<'a>(control: &'a Control, environment: &Environment, paths: &'a EnvironmentPaths) -> release::Context<'a> {
    control.pipeline().services().release_context(environment, paths)
}

/// Has a thread of its own read what comes: it may come slowly, and then none of the runtime's threads should wait for it. It is not
/// wanted any more when nobody waits for the answer.
async fn arrive(arriving: Arriving, input: OwnedFd) -> Result<(tempfile::TempDir, Incoming), CommandError> {
    let unwanted = CancellationToken::new();
    let _guard = unwanted.clone().drop_guard();
    let input = Inlet::new(input, TRANSFER_IDLE_LIMIT, unwanted);
    let (tell, told) = tokio::sync::oneshot::channel();
    let reading = move || drop(tell.send(arriving.read(input)));
    let thread = std::thread::Builder::new().name(String::from("import")).spawn(reading);
    thread.map_err(|error| CommandError::internal(&error))?;
    told.await.map_err(|error| CommandError::internal(&error))?
}

/// What has to be known to refuse as early as possible.
struct Arriving {
    paths: EnvironmentPaths,
    expect: Expectation,
    trust: Vec<PublicKey>,
    archive_bytes: u64,
    reserve: u64,
}

impl Arriving {
    /// Reads a container into a directory of its own, which goes with the value that stands for it.
    fn read(&self, input: Inlet) -> Result<(tempfile::TempDir, Incoming), CommandError> {
        let incoming = self.paths.incoming();
        let failed = |path: &Path, error: io::Error| {
            CommandError::new(Kind::Internal, format!("{} cannot be written: {error}", path.display()))
        };
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&incoming).map_err(|error| failed(&incoming, error))?;
        let directory = tempfile::Builder::new().prefix("import-").tempdir_in(&incoming);
        let directory = directory.map_err(|error| failed(&incoming, error))?;
        let at = |name: &str| directory.path().join(name);

        let mut from = Container::new(input);
        let bytes = part(&mut from, MANIFEST, store::MAX_MANIFEST)?;
        let bytes = bytes.ok_or_else(|| unreadable(&ContainerError::Strange("it does not begin with a manifest")))?;
        let manifest = self.admit(&bytes)?;
        write_file(&at(MANIFEST), &bytes).map_err(|error| failed(&at(MANIFEST), error))?;
        drop(bytes);

        let record = part(&mut from, HEALTH, MAX_RECORD)?;
        if let Some(record) = &record {
            write_file(&at(HEALTH), record).map_err(|error| failed(&at(HEALTH), error))?;
        }
        let size = from.next(ARCHIVE, self.archive_bytes).map_err(|error| unreadable(&error))?;
        let size = size.ok_or_else(|| unreadable(&ContainerError::Strange("it holds no archive")))?;
        let release = manifest.release;
        if size != manifest.archive.bytes {
            let why = format!("it has {size} bytes, and {} in the manifest", manifest.archive.bytes);
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

    /// All that can be refused before the archive has come.
    fn admit(&self, bytes: &[u8]) -> Result<Manifest, CommandError> {
        let refusal = |refusal: Refusal| of_release(&refusal.into());
        let manifest = trust::read_manifest(bytes).map_err(refusal)?;
        let accepted = Accepted::load(&self.paths.accepted()).map_err(|error| of_release(&error))?;
        trust::accept(&self.expect, &manifest, &self.trust, &accepted).map_err(refusal)?;
        let needed = manifest.archive.bytes.saturating_add(self.reserve);
        match files::free_space(&self.paths.incoming()) {
            Ok(free) if free.bytes < needed => Err(refused(format!(
                "the archive has {} MiB and the disk has {} MiB left, of which {} are kept free",
                manifest.archive.bytes >> 20,
                free.bytes >> 20,
                self.reserve >> 20
            ))),
            _ => Ok(manifest),
        }
    }
}

/// A small part, if it is there.
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
