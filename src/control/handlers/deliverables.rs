//! Deliverables: the releases that other servers may pull, with their files. A server offers the releases of an environment that went live
//! there, and the releases that the environment accepted from another environment or server.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt;

use crate::{
    control::{
        authz::Needs,
        error::{CommandError, ErrorKind, not_found, run_blocking, usage},
        heads,
        request::{Context, Reply, Request, Stream},
        state::Control,
    },
    git::GitError,
    host::{
        files,
        root::EnvironmentPaths,
        stream::{Outlet, TRANSFER_IDLE_TIMEOUT},
    },
    model::{Access, CommitId, Environment, ReleaseId, Target},
    pipeline::Summary,
    release::{self, ReleaseError, store},
    remote::{Blob, Found, Object, Offer, find},
};

/// The number of threads that make a delta.
const DELTA_THREADS: usize = 2;

/// The lock that limits the server to one delta at a time, because making a delta takes processor time from applications.
static DELTA_LOCK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The size of the buffer through which a pack is copied, in bytes.
const PIECE: usize = 256 * 1024;

/// The request to list the releases that other servers may pull, newest first.
#[derive(Debug)]
pub struct DeliverableList {
    /// The environment; all environments of the project if the target names none.
    pub target: Target,
}

impl Request for DeliverableList {
    type View = Vec<Offer>;
    const NAME: &'static str = "deliverable list";

    // This request needs the same right as `git fetch`.
    fn needs(&self) -> Needs {
        Needs::parts(&self.target, Access::View)
    }

    async fn handle(self, context: &Context<'_>) -> Result<Reply<Vec<Offer>>, CommandError> {
        let offered = offered(context, &self.target).await?;
        Ok(offered.into_iter().map(|offered| offered.offer).collect::<Vec<_>>().into())
    }
}

/// The request for the size and digest of a file of a release.
#[derive(Debug)]
pub struct DeliverableInfo {
    /// The environment; all environments of the project if the target names none.
    pub target: Target,
    /// The release: its number, id or tag, or the first digits of its commit.
    pub release: String,
    /// The file.
    pub object: Object,
}

impl Request for DeliverableInfo {
    type View = Blob;
    const NAME: &'static str = "deliverable info";

    fn needs(&self) -> Needs {
        Needs::parts(&self.target, Access::View)
    }

    async fn handle(self, context: &Context<'_>) -> Result<Reply<Blob>, CommandError> {
        let offered = one(context, &self.target, &self.release).await?;
        let path = file_of(context, &self.target, &offered, self.object).await?;
        Ok(run_blocking(move || heads::digest(&path)).await?.into())
    }
}

/// The request for the bytes of a file of a release.
#[derive(Debug)]
pub struct DeliverableGet {
    /// The environment; all environments of the project if the target names none.
    pub target: Target,
    /// The release: its number, id or tag, or the first digits of its commit.
    pub release: String,
    /// The file.
    pub object: Object,
    /// The byte ranges to send, in this order; the part of a range beyond the end of the file is ignored.
    pub parts: Vec<Range<u64>>,
    /// The commits that a pack leaves out, because the caller has them already.
    pub haves: Vec<CommitId>,
}

impl Request for DeliverableGet {
    type View = ();
    const NAME: &'static str = "deliverable get";

    fn needs(&self) -> Needs {
        Needs::parts(&self.target, Access::View)
    }

    async fn handle(self, context: &Context<'_>) -> Result<Reply<()>, CommandError> {
        let DeliverableGet { target, release, object, parts, haves } = self;
        let offered = one(context, &target, &release).await?;
        if object == Object::Pack {
            return send_pack(context.control, offered, &parts, haves);
        }
        let path = file_of(context, &target, &offered, object).await?;
        // The file is opened before the answer begins, so that the whole file can be sent even if the release is pruned meanwhile.
        let file = files::open_regular(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => not_found(format!("{} of {target} was pruned", offered.offer.title())),
            _ => CommandError::internal(&error),
        })?;
        let send = move |output: OwnedFd| -> BoxFuture<'static, _> {
            Box::pin(async move { copy(file, &parts, output).await.map_err(|error| unsent(&path, &error)) })
        };
        Ok(Reply::Stream(Stream::Bytes(Box::new(send))))
    }
}

fn send_pack(control: &Control, offered: Offered, parts: &[Range<u64>], haves: Vec<CommitId>) -> Result<Reply<()>, CommandError> {
    let repositories = control.pipeline().services().repositories.clone();
    let (project, want) = (offered.environment.project_id, offered.offer.commit);
    let skipped = match parts {
        [] => 0,
        [Range { start, end: u64::MAX }] => *start,
        _ => return Err(usage("cannot send parts of a pack: a pack is sent from an --offset to its end")),
    };
    let send = move |output: OwnedFd| -> BoxFuture<'static, _> {
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
    Ok(Reply::Stream(Stream::Bytes(Box::new(send))))
}

/// An offer, with the environment and the directories that contain the release.
struct Offered {
    environment: Environment,
    paths: EnvironmentPaths,
    offer: Offer,
}

/// Returns the offers of the environments that `target` names, newest first.
async fn offered(Context { control, caller }: &Context<'_>, target: &Target) -> Result<Vec<Offered>, CommandError> {
    let project = control.visible_project(caller, &target.project)?;
    let environments: Vec<_> = match &target.environment {
        Some(_) => vec![control.environment(target)?],
        None => project.environments,
    };
    let mut all = Vec::new();
    for environment in environments {
        let control = Control::clone(control);
        all.extend(run_blocking(move || offered_by(&control, environment)).await?);
    }
    all.sort_by_key(|offered| std::cmp::Reverse((offered.offer.release, offered.offer.live)));
    Ok(all)
}

fn offered_by(control: &Control, environment: Environment) -> Result<Vec<Offered>, CommandError> {
    let paths = control.root().environment(&environment.project, &environment.name);
    let history = control.pipeline().history(environment.id);
    let live = control.pipeline().live(environment.id).map(|live| live.release);
    let (running, _) = control.pipeline().under_way(environment.id);
    let mut found = Vec::new();
    for release in store::list(&paths.releases()).map_err(|error| CommandError::internal(&error))? {
        let made: Vec<&Summary> = history.deployments.iter().filter(|summary| summary.release == release).collect();
        let went_live = made.iter().rev().find(|summary| summary.went_live());
        // A release without a deployment in this environment was accepted from another environment or server, or is being built.
        let being_made = running.as_ref().is_some_and(|ticket| release.created() >= ticket.deployment.created());
        let wanted = if made.is_empty() { !being_made } else { went_live.is_some() };
        if !wanted || !paths.archive(release).is_file() {
            continue;
        }
        // The manifest may have been pruned since the directory was read.
        let Ok(known) = control.heads().get(&paths.manifest(release)) else { continue };
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

/// Returns the offer that `text` names.
async fn one(context: &Context<'_>, target: &Target, text: &str) -> Result<Offered, CommandError> {
    let mut offered = offered(context, target).await?;
    let offers: Vec<_> = offered.iter().map(|offered| offered.offer.clone()).collect();
    let here = || match offers.iter().take(5).map(Offer::title).collect::<Vec<_>>().as_slice() {
        [] => format!("{target} has no deliverable yet"),
        titles => format!("available: {}", titles.join(", ")),
    };
    match find(&offers, text) {
        Found::One(offer) => {
            let at = offered.iter().position(|known| known.offer == *offer);
            Ok(offered.swap_remove(at.unwrap_or_default()))
        }
        Found::Ambiguous(several) => {
            let titles: Vec<_> =
                several.iter().take(5).map(|offer| format!("{} of {}", offer.title(), offer.environment)).collect();
            Err(usage(format!("{text} names more than one release of {target}: {}", titles.join(", ")))
                .hint("name the environment too, as in shop/staging, or give more digits"))
        }
        Found::None if was_here(context, target, text) => Err(not_found(format!("{text} of {target} was pruned; {}", here()))),
        Found::None => Err(not_found(format!("{target} has no release {text}; {}", here()))),
    }
}

/// Returns true if a release with this name was live once. If no offer has this name, the release was pruned.
fn was_here(Context { control, caller }: &Context<'_>, target: &Target, text: &str) -> bool {
    let project = control.visible_project(caller, &target.project).ok();
    let environments = project.into_iter().flat_map(|project| project.environments);
    let mut wanted = environments.filter(|one| target.environment.as_ref().is_none_or(|name| *name == one.name));
    wanted.any(|environment| {
        let history = control.pipeline().history(environment.id);
        history
            .releases()
            .any(|made| made.number.to_string() == text || made.release.to_string() == text || made.commit.begins_with(text))
    })
}

/// Returns the path of a file of a release. Makes a requested delta that does not exist yet.
async fn file_of(context: &Context<'_>, target: &Target, offered: &Offered, object: Object) -> Result<PathBuf, CommandError> {
    let Context { control, .. } = context;
    let release = offered.offer.release;
    match object {
        Object::Manifest => Ok(offered.paths.manifest(release)),
        Object::Archive => Ok(offered.paths.archive(release)),
        Object::Health => {
            let (control, environment, paths) = (Control::clone(control), offered.environment.clone(), offered.paths.clone());
            let found = run_blocking(move || record(&control, &environment, &paths, release)).await?;
            found.ok_or_else(|| not_found(format!("there is no health record of {}", offered.offer.title())))
        }
        Object::Delta { from } => delta(context, target, offered, from).await,
        Object::Pack => Err(usage("cannot show the size of a pack: a pack is made while it is sent")),
    }
}

/// Returns the path of the delta from `from`, which must be a release of the same environment, to the offered release. The first request
/// for a delta makes the file.
async fn delta(context: &Context<'_>, target: &Target, offered: &Offered, from: ReleaseId) -> Result<PathBuf, CommandError> {
    let title = offered.offer.title();
    let Context { control, .. } = context;
    let all = self::offered(context, target).await?;
    let here = all.iter().any(|other| other.offer.release == from && other.environment.id == offered.environment.id);
    if from == offered.offer.release {
        return Err(usage(format!("cannot make a delta from {from} to {title}: both are the same release")));
    }
    if !here {
        return Err(not_found(format!("cannot make a delta from {from} to {title}: this server does not have {from}")));
    }
    let services = control.pipeline().services();
    let context = release::WorkerContext {
        launcher: &services.launcher,
        project: offered.environment.project_id,
        environment: offered.environment.id,
        paths: &offered.paths,
        output: None,
        threads: DELTA_THREADS,
        signing: &services.signing,
        archive_limit: services.config.limits.archive_bytes.bytes(),
    };
    let _one_at_a_time = DELTA_LOCK.lock().await;
    release::make_delta(&context, from, offered.offer.release).await.map_err(|error| match error {
        ReleaseError::Unknown { .. } => not_found(format!("cannot make the delta from {from} to {title}: {error}")),
        other => CommandError::internal(&other),
    })
}

/// The time for which a written health record is reused. A client first requests the digest of the record and then the record itself, which
/// must match the digest.
const RECORD_FRESH: Duration = Duration::from_secs(10);

/// Returns the path of the health record of a release: this server's own record, or else the record that was transferred with the release.
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

fn unsent(path: &Path, error: &io::Error) -> CommandError {
    CommandError::new(ErrorKind::Internal, format!("cannot send {}: {error}", path.display())).hint("repeat the request")
}

/// Returns the write end of a pipe, and a future that copies the bytes in this pipe to `output`, except the first `bytes` bytes. A write to
/// the pipe fails with a broken pipe after `output` was closed.
fn skipping(bytes: u64, output: OwnedFd) -> io::Result<(OwnedFd, impl Future<Output = io::Result<()>>)> {
    let (reader, writer) = io::pipe()?;
    let mut from = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into())?;
    let mut output = Outlet::within(output, TRANSFER_IDLE_TIMEOUT)?;
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

/// Writes parts of a file to `output`. A slow reader blocks no thread. Returns an error if the reader reads nothing for
/// [`TRANSFER_IDLE_TIMEOUT`].
async fn copy(mut file: File, parts: &[Range<u64>], output: OwnedFd) -> io::Result<()> {
    let mut output = Outlet::within(output, TRANSFER_IDLE_TIMEOUT)?;
    for part in parts {
        let end = part.end.min(file.metadata()?.len());
        file.seek(SeekFrom::Start(part.start))?;
        file = output.write_from(file, end.saturating_sub(part.start)).await?;
    }
    Ok(())
}
