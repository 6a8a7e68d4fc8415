//! What other servers may pull from this one: releases that went live, or were taken in from elsewhere, with their files.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Seek, SeekFrom},
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::not_found;
use crate::{
    control::{CommandError, Control, Kind, Reply, SendFuture, Target},
    git::GitError,
    host::{
        files,
        root::EnvironmentPaths,
        stream::{Outlet, TRANSFER_IDLE_LIMIT},
    },
    model::{CommitId, Digest, Environment, EnvironmentName, ProjectName, ReleaseId},
    pipeline::Summary,
    release::{self, ReleaseError, store},
    remote::{Blob, Found, Object, Offer, find},
};

/// What an offer says of a release, and what never changes about it. Entries and frames are passed over: they may be many.
#[derive(Debug, Clone, Deserialize)]
struct Head {
    project: ProjectName,
    environment: EnvironmentName,
    commit: CommitId,
    #[serde(default)]
    source: Option<CommitId>,
    build: u64,
    #[serde(default)]
    tag: Option<String>,
    tree: Digest,
    created: Timestamp,
    archive: HeadArchive,
}

#[derive(Debug, Clone, Deserialize)]
struct HeadArchive {
    bytes: u64,
}

/// A head, and its manifest as a file.
type KnownHead = Arc<(Head, Blob)>;

/// Heads of manifests that were read before, with the manifests' sizes and digests.
#[derive(Debug, Clone, Default)]
pub struct Heads {
    known: Arc<Mutex<HashMap<PathBuf, KnownHead>>>,
    /// One delta is made at a time: it takes the processor from what serves.
    making: Arc<tokio::sync::Mutex<()>>,
}

/// How many threads make a delta.
const THREADS: usize = 2;

/// How much of a pack is passed on at once.
const PIECE: usize = 256 * 1024;

/// More heads than this are not remembered.
const HEADS: usize = 4096;

/// A release that is offered, and where it is.
struct Offered {
    environment: Environment,
    paths: EnvironmentPaths,
    offer: Offer,
}

fn internal(path: &Path, error: io::Error) -> CommandError {
    CommandError::internal(&files::FileError::Io { doing: "read", path: path.to_owned(), source: error })
}

/// The digest of a whole file.
fn digest(path: &Path) -> Result<Blob, CommandError> {
    let file = files::open_regular(path).map_err(|error| CommandError::internal(&error))?;
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut hasher).map_err(|error| internal(path, error))?;
    Ok(Blob { bytes, digest: Digest::from(hasher.finalize()) })
}

fn head(heads: &Heads, path: &Path) -> Result<Arc<(Head, Blob)>, CommandError> {
    if let Some(known) = heads.known.lock().get(path) {
        return Ok(Arc::clone(known));
    }
    let file = files::open_regular(path).map_err(|error| CommandError::internal(&error))?;
    let head: Head = serde_json::from_reader(BufReader::new(file)).map_err(|error| internal(path, io::Error::other(error)))?;
    let known = Arc::new((head, digest(path)?));
    let mut heads = heads.known.lock();
    if heads.len() >= HEADS {
        heads.clear();
    }
    heads.insert(path.to_owned(), Arc::clone(&known));
    Ok(known)
}

/// Everything on offer, newest first.
async fn offered(control: &Control, target: &Target) -> Result<Vec<Offered>, CommandError> {
    let project = control.0.registry.read().project(&target.project).cloned();
    let project = project.ok_or_else(|| super::super::error::no_project(&target.project, &[]))?;
    let environments: Vec<_> = match &target.environment {
        Some(_) => vec![control.environment(target)?],
        None => project.environments,
    };
    let mut all = Vec::new();
    for environment in environments {
        let (control, heads) = (control.clone(), control.0.heads.clone());
        let looking = tokio::task::spawn_blocking(move || of(&control, &heads, environment));
        all.extend(looking.await.map_err(|error| CommandError::internal(&error))??);
    }
    all.sort_by_key(|offered| std::cmp::Reverse((offered.offer.release, offered.offer.live)));
    Ok(all)
}

fn of(control: &Control, heads: &Heads, environment: Environment) -> Result<Vec<Offered>, CommandError> {
    let paths = control.0.root.environment(&environment.project, &environment.name);
    let history = control.pipeline().history(environment.id);
    let live = control.pipeline().live(environment.id).map(|live| live.release);
    let (running, _) = control.pipeline().under_way(environment.id);
    let mut found = Vec::new();
    for release in store::list(&paths.releases()).map_err(|error| CommandError::internal(&error))? {
        let made: Vec<&Summary> = history.deployments.iter().filter(|summary| summary.release == release).collect();
        let went_live = made.iter().rev().find(|summary| summary.went_live());
        // One that no deployment here has made was taken in from elsewhere, or is being made just now.
        let being_made = running.as_ref().is_some_and(|ticket| release.created() >= ticket.deployment.created());
        let wanted = if made.is_empty() { !being_made } else { went_live.is_some() };
        if !wanted || !paths.archive(release).is_file() {
            continue;
        }
        // A manifest that is pruned at this moment is not on offer.
        let Ok(known) = head(heads, &paths.manifest(release)) else { continue };
        let (head, manifest) = &*known;
        let offer = Offer {
            project: head.project.clone(),
            environment: head.environment.clone(),
            release,
            number: went_live.map(|summary| summary.number),
            build: head.build,
            commit: head.commit.clone(),
            source: head.source.clone(),
            tag: head.tag.clone(),
            tree: head.tree,
            created: head.created,
            archive_bytes: head.archive.bytes,
            manifest: *manifest,
            live: live == Some(release),
            healthy_since: went_live.and_then(|summary| summary.ended),
        };
        found.push(Offered { environment: environment.clone(), paths: paths.clone(), offer });
    }
    Ok(found)
}

pub(super) async fn list(control: &Control, target: &Target) -> Result<Reply, CommandError> {
    let offered = offered(control, target).await?;
    Ok(Reply::Offers(offered.into_iter().map(|offered| offered.offer).collect()))
}

/// The release that is meant.
async fn one(control: &Control, target: &Target, text: &str) -> Result<Offered, CommandError> {
    let mut offered = offered(control, target).await?;
    let offers: Vec<_> = offered.iter().map(|offered| offered.offer.clone()).collect();
    let here = || match offers.iter().take(5).map(Offer::title).collect::<Vec<_>>().as_slice() {
        [] => format!("{target} has no deliverable yet"),
        titles => format!("there are {}", titles.join(", ")),
    };
    match find(&offers, text) {
        Found::One(offer) => {
            let at = offered.iter().position(|known| known.offer == *offer);
            Ok(offered.swap_remove(at.unwrap_or_default()))
        }
        Found::Ambiguous => Err(CommandError::new(Kind::Usage, format!("{text} names more than one release of {target}"))
            .hint("name the environment too, as in shop/staging, or give more digits")),
        Found::None if was_here(control, target, text) => {
            Err(not_found(format!("{text} of {target} is not here any more; {}", here())))
        }
        Found::None => Err(not_found(format!("{target} has no release {text}; {}", here()))),
    }
}

/// Whether a release with this name was live once, so that it must have been pruned.
fn was_here(control: &Control, target: &Target, text: &str) -> bool {
    let project = control.0.registry.read().project(&target.project).cloned();
    let environments = project.into_iter().flat_map(|project| project.environments);
    let mut wanted = environments.filter(|one| target.environment.as_ref().is_none_or(|name| *name == one.name));
    wanted.any(|environment| {
        let history = control.pipeline().history(environment.id);
        history.releases().any(|made| {
            made.number.to_string() == text
                || made.release.to_string() == text
                || (text.len() >= 7 && made.commit.as_str().starts_with(text))
        })
    })
}

/// The file of a release that holds an object.
async fn file_of(control: &Control, target: &Target, offered: &Offered, object: Object) -> Result<PathBuf, CommandError> {
    let release = offered.offer.release;
    match object {
        Object::Manifest => Ok(offered.paths.manifest(release)),
        Object::Archive => Ok(offered.paths.archive(release)),
        Object::Health => {
            let (control, environment, paths) = (control.clone(), offered.environment.clone(), offered.paths.clone());
            let found = tokio::task::spawn_blocking(move || record(&control, &environment, &paths, release));
            let found = found.await.map_err(|error| CommandError::internal(&error))??;
            found.ok_or_else(|| not_found(format!("there is no health record of {}", offered.offer.title())))
        }
        Object::Delta { from } => delta(control, target, offered, from).await,
        Object::Pack => Err(CommandError::new(Kind::Usage, "the size of a pack is not known before it is made")),
    }
}

/// The delta from another release of the same environment, made if nobody has asked for it before.
async fn delta(control: &Control, target: &Target, offered: &Offered, from: ReleaseId) -> Result<PathBuf, CommandError> {
    let title = offered.offer.title();
    let all = self::offered(control, target).await?;
    let here = all.iter().any(|other| other.offer.release == from && other.environment.id == offered.environment.id);
    if !here || from == offered.offer.release {
        return Err(not_found(format!("there is no delta from {from} to {title}, because {from} is not here")));
    }
    let services = control.pipeline().services();
    let context = release::Context {
        launcher: &services.launcher,
        project: offered.environment.project_id,
        environment: offered.environment.id,
        paths: &offered.paths,
        output: None,
        threads: THREADS,
        signing: &services.signing,
        archive_limit: services.config.limits.archive_bytes.bytes(),
    };
    let _one_at_a_time = control.0.heads.making.lock().await;
    release::make_delta(&context, from, offered.offer.release).await.map_err(|error| match error {
        ReleaseError::Unknown { .. } => not_found(format!("the delta from {from} to {title} cannot be made: {error}")),
        other => CommandError::internal(&other),
    })
}

/// A record of this moment is good for so long: whoever asks for its digest asks for its bytes next.
const RECORD_FRESH: Duration = Duration::from_secs(10);

/// The file with what is known of how a release ran: here, else elsewhere.
fn record(
    control: &Control,
    environment: &Environment,
    paths: &EnvironmentPaths,
    release: ReleaseId,
) -> Result<Option<PathBuf>, CommandError> {
    let path = paths.ran(release);
    let age = std::fs::metadata(&path).and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
    if age.is_some_and(|age| age < RECORD_FRESH) {
        return Ok(Some(path));
    }
    let Some(record) = control.pipeline().health(environment, release) else {
        return Ok(Some(paths.health(release)).filter(|path| path.is_file()));
    };
    let bytes = serde_json::to_vec(&record).map_err(|error| CommandError::internal(&error))?;
    files::place_file(&path, &bytes, 0o640).map_err(|error| CommandError::internal(&error))?;
    Ok(Some(path))
}

pub(super) async fn info(control: &Control, target: &Target, release: &str, object: Object) -> Result<Reply, CommandError> {
    let offered = one(control, target, release).await?;
    let path = file_of(control, target, &offered, object).await?;
    let looking = tokio::task::spawn_blocking(move || digest(&path));
    Ok(Reply::Blob(looking.await.map_err(|error| CommandError::internal(&error))??))
}

pub(super) async fn get(
    control: &Control,
    target: &Target,
    release: &str,
    object: Object,
    parts: Vec<Range<u64>>,
    haves: Vec<CommitId>,
) -> Result<Reply, CommandError> {
    let offered = one(control, target, release).await?;
    if object == Object::Pack {
        let repositories = control.pipeline().services().repositories.clone();
        let (project, want) = (offered.environment.project_id, offered.offer.commit);
        let skipped = match parts.as_slice() {
            [] => 0,
            [Range { start, end: u64::MAX }] => *start,
            _ => return Err(CommandError::new(Kind::Usage, "of a pack there is no part but the rest, from an --offset on")),
        };
        let send = move |output: OwnedFd| -> SendFuture {
            Box::pin(async move {
                let packed = if skipped == 0 {
                    repositories.export_pack(project, want, haves, output).await
                } else {
                    let (output, passing) = skipping(skipped, output).map_err(|error| CommandError::internal(&error))?;
                    let (packed, passed) = tokio::join!(repositories.export_pack(project, want, haves, output), passing);
                    passed.map_err(|error| CommandError::internal(&error))?;
                    packed
                };
                packed.map_err(|error| match error {
                    GitError::Failure(failure) => not_found(failure.to_string()),
                    other => CommandError::internal(&other),
                })
            })
        };
        return Ok(Reply::Bytes(Box::new(send)));
    }
    let path = file_of(control, target, &offered, object).await?;
    // Opened before anything is said: from here on a pruned release can still be read to its end.
    let file = files::open_regular(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => not_found(format!("{} of {target} is not here any more", offered.offer.title())),
        _ => CommandError::internal(&error),
    })?;
    let send = move |output: OwnedFd| -> SendFuture {
        Box::pin(async move { copy(file, &parts, output).await.map_err(|error| unsent(&path, &error)) })
    };
    Ok(Reply::Bytes(Box::new(send)))
}

fn unsent(path: &Path, error: &io::Error) -> CommandError {
    CommandError::new(Kind::Internal, format!("{} cannot be sent: {error}", path.display())).hint("ask for it again")
}

/// Passes on what is written to the descriptor that this gives, but for so many bytes at its beginning. Whoever writes hears of it
/// if nobody listens any more.
fn skipping(bytes: u64, output: OwnedFd) -> io::Result<(OwnedFd, impl Future<Output = io::Result<()>>)> {
    let (reader, writer) = io::pipe()?;
    let mut from = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into())?;
    let mut output = Outlet::within(output, TRANSFER_IDLE_LIMIT)?;
    let passing = async move {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut piece = vec![0; PIECE];
        loop {
            let count = from.read(&mut piece).await?;
            if count == 0 {
                return Ok(());
            }
            let skipped = left.min(count);
            left = left.saturating_sub(skipped);
            output.write(piece.get(skipped..count).unwrap_or_default()).await?;
        }
    };
    Ok((writer.into(), passing))
}

/// Writes parts of a file. No thread waits for a slow reader, and one that takes nothing at all is not waited for.
async fn copy(mut file: File, parts: &[Range<u64>], output: OwnedFd) -> io::Result<()> {
    let mut output = Outlet::within(output, TRANSFER_IDLE_LIMIT)?;
    for part in parts {
        // A part that goes beyond the end ends there.
        let end = part.end.min(file.metadata()?.len());
        file.seek(SeekFrom::Start(part.start))?;
        file = output.write_from(file, end.saturating_sub(part.start)).await?;
    }
    Ok(())
}
