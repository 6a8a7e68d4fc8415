//! Requests that list, show, compare and pin releases.

use jiff::Timestamp;
use serde::Serialize;

use super::deployments::of_pipeline;
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, ErrorKind, not_found, run_blocking, similar, usage},
        request::{Context, Reply, Request},
        state::Control,
    },
    git::LogEntry,
    model::{
        Access, BuildpackUse, Digest, EntryKind, Environment, EnvironmentName, Manifest, Mode, ProcessType, ProjectName, Target,
    },
    pipeline::{self, HoldRun, KnownRelease, Pin, Pins, ReleaseNameError, Summary},
    release::{self, Change, ReleaseError, store},
};

/// The maximum number of added commits, and of removed commits, in the comparison of two releases.
const MAX_COMMITS: usize = 50;

/// The request to list the releases of an environment.
#[derive(Debug)]
pub struct ReleaseList {
    /// The environment.
    pub target: Target,
}

impl Request for ReleaseList {
    type View = Vec<KnownRelease>;
    const NAME: &'static str = "releases";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<KnownRelease>>, CommandError> {
        let environment = control.environment(&self.target)?;
        Ok(known(control, &environment).await?.into())
    }
}

/// Returns the releases of an environment, newest first.
pub(super) async fn known(control: &Control, environment: &Environment) -> Result<Vec<KnownRelease>, CommandError> {
    control.pipeline().releases(environment).await.map_err(|error| of_pipeline(&error))
}

/// Returns the release that `text` names.
pub(super) fn named(all: &[KnownRelease], text: &str, environment: &Environment) -> Result<KnownRelease, CommandError> {
    match pipeline::find(all, text, environment) {
        Ok(found) => Ok(found.clone()),
        Err(error @ ReleaseNameError::Ambiguous { .. }) => {
            Err(usage(error.to_string()).hint("give the number of the release, or more digits of its id"))
        }
        Err(error @ ReleaseNameError::Unknown { .. }) => {
            let names: Vec<String> = all.iter().flat_map(|known| known.tags.iter().cloned().chain([known.name()])).collect();
            let error = not_found(error.to_string());
            Err(match similar(text, names.iter().map(String::as_str)) {
                Some(other) => error.hint(format!("did you mean {other}?")),
                None => error.hint(format!(
                    "list the releases with `larder releases {}`; name a release by number, tag, id or commit",
                    environment.title()
                )),
            })
        }
    }
}

/// Returns the release that `name` names. Without a name, returns the live release, or the error of `missing` if nothing is live.
fn named_or_live(
    all: &[KnownRelease],
    name: Option<&str>,
    environment: &Environment,
    missing: impl FnOnce() -> CommandError,
) -> Result<KnownRelease, CommandError> {
    match name {
        Some(name) => named(all, name, environment),
        None => all.iter().find(|known| known.live).cloned().ok_or_else(missing),
    }
}

async fn manifest(control: &Control, environment: &Environment, known: &KnownRelease) -> Result<Manifest, CommandError> {
    let path = control.root().environment(&environment.project, &environment.name).manifest(known.release);
    let (name, title) = (known.name(), environment.title());
    run_blocking(move || {
        store::read(&path).map_err(|error| match &error {
            ReleaseError::File(file) if file.kind() == std::io::ErrorKind::NotFound => {
                not_found(format!("{name} of {title} was pruned: its archive and manifest are gone"))
                    .hint("keep a release with `larder release pin`, or more releases with `keep:` in larder.yml")
            }
            _ => CommandError::internal(&error),
        })
    })
    .await
}

/// The request to show one release.
#[derive(Debug)]
pub struct ReleaseShow {
    /// The environment.
    pub target: Target,
    /// The release; the live release if absent.
    pub release: Option<String>,
}

/// All information about one release.
#[derive(Debug, Clone, Serialize)]
pub struct ReleaseDetail {
    /// The release as in a list.
    #[serde(flatten)]
    pub known: KnownRelease,
    /// The manifest; absent if the release was pruned.
    pub manifest: Option<ManifestBrief>,
    /// The pin that keeps the release.
    pub pin: Option<Pin>,
    /// The deployments of the release, oldest first.
    pub deployments: Vec<Summary>,
    /// The last hold of the release, with the estimated and the measured durations; absent if no request waited.
    pub hold: Option<HoldRun>,
}

/// A manifest without its entries.
#[derive(Debug, Clone, Serialize)]
pub struct ManifestBrief {
    /// The version of the manifest format.
    pub format: u32,
    /// The project of the release.
    pub project: ProjectName,
    /// The environment that built the release.
    pub environment: EnvironmentName,
    /// The mode of the environment that built the release.
    pub mode: Mode,
    /// The build number.
    pub build: u64,
    /// The tag that the commit had at build time.
    pub tag: Option<String>,
    /// The time of the build.
    pub created: Timestamp,
    /// The digest of the tree.
    pub tree: Digest,
    /// The digest of the archive.
    pub archive: Digest,
    /// The size of the archive, in bytes.
    pub archive_bytes: u64,
    /// The number of entries in the tree: files, directories and symlinks.
    pub entries: u64,
    /// The number of files in the tree.
    pub files: u64,
    /// The size of all files together, in bytes.
    pub bytes: u64,
    /// The buildpacks that built the release.
    pub buildpacks: Vec<BuildpackUse>,
    /// The process types that buildpacks contributed, with their commands.
    pub processes: Vec<(ProcessType, String)>,
}

impl From<&Manifest> for ManifestBrief {
    fn from(manifest: &Manifest) -> ManifestBrief {
        let sizes = manifest.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File { size, .. } => Some(*size),
            _ => None,
        });
        let (files, bytes) = sizes.fold((0_u64, 0_u64), |(files, bytes), size| (files + 1, bytes.saturating_add(size)));
        ManifestBrief {
            format: manifest.format,
            project: manifest.project.clone(),
            environment: manifest.environment.clone(),
            mode: manifest.mode,
            build: manifest.build,
            tag: manifest.tag.clone(),
            created: manifest.created,
            tree: manifest.tree,
            archive: manifest.archive.digest,
            archive_bytes: manifest.archive.bytes,
            entries: manifest.entries.len() as u64,
            files,
            bytes,
            buildpacks: manifest.buildpacks.clone(),
            processes: manifest.processes.clone(),
        }
    }
}

impl Request for ReleaseShow {
    type View = ReleaseDetail;
    const NAME: &'static str = "release show";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ReleaseDetail>, CommandError> {
        let environment = control.environment(&self.target)?;
        let known = named_or_live(&known(control, &environment).await?, self.release.as_deref(), &environment, || {
            not_found(format!("nothing is live in {} yet", environment.title()))
                .hint("name a release, as in `larder release show shop v1`")
        })?;
        let manifest = match manifest(control, &environment, &known).await {
            Ok(manifest) => Some(ManifestBrief::from(&manifest)),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let paths = control.root().environment(&environment.project, &environment.name);
        let pins = Pins::read(&paths.pins()).map_err(|error| CommandError::internal(&error))?;
        let history = control.pipeline().history(environment.id);
        let deployments = history.deployments.into_iter().filter(|summary| summary.release == known.release).collect();
        let hold = known.number.and_then(|number| control.pipeline().hold_of(&environment, number));
        Ok(ReleaseDetail { pin: pins.get(known.release).cloned(), known, manifest, deployments, hold }.into())
    }
}

/// The request to compare two releases.
#[derive(Debug)]
pub struct ReleaseDiff {
    /// The environment.
    pub target: Target,
    /// The first release.
    pub from: String,
    /// The second release; the live release if absent.
    pub to: Option<String>,
}

/// The difference between two releases.
#[derive(Debug, Clone, Serialize)]
pub struct ReleaseDiffView {
    /// The first release.
    pub from: KnownRelease,
    /// The second release.
    pub to: KnownRelease,
    /// The files that differ, by path.
    pub files: Vec<Change>,
    /// The commits between the two releases; absent if the commits cannot be listed, for example because the repository no longer has one
    /// of the two commits.
    pub commits: Option<CommitsBetween>,
}

/// The commits between two releases.
#[derive(Debug, Clone, Serialize)]
pub struct CommitsBetween {
    /// The commits of the second release that the first release does not have, newest first.
    pub added: Vec<Commit>,
    /// The commits of the first release that the second release does not have, newest first.
    pub removed: Vec<Commit>,
    /// True if there are more commits than are listed.
    pub more: bool,
}

/// A commit in a list.
#[derive(Debug, Clone, Serialize)]
pub struct Commit {
    /// The id.
    pub commit: String,
    /// The first line of the message.
    pub subject: String,
    /// The author's name.
    pub author: String,
    /// The commit time.
    pub at: Option<Timestamp>,
}

impl From<LogEntry> for Commit {
    fn from(entry: LogEntry) -> Commit {
        let LogEntry { commit, subject, author, time } = entry;
        Commit { commit: commit.to_string(), subject, author, at: Timestamp::from_second(time).ok() }
    }
}

impl Request for ReleaseDiff {
    type View = ReleaseDiffView;
    const NAME: &'static str = "release diff";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ReleaseDiffView>, CommandError> {
        let environment = control.environment(&self.target)?;
        let all = known(control, &environment).await?;
        let from = named(&all, &self.from, &environment)?;
        let to = named_or_live(&all, self.to.as_deref(), &environment, || {
            not_found(format!("nothing is live in {} yet", environment.title()))
                .hint("name two releases, as in `larder release diff shop v1 v2`")
        })?;
        let (before, after) = (manifest(control, &environment, &from).await?, manifest(control, &environment, &to).await?);
        let files = run_blocking(move || Ok(release::changes(&before.entries, &after.entries))).await?;
        let commits = commits(control, &environment, &from, &to).await;
        Ok(ReleaseDiffView { from, to, files, commits }.into())
    }
}

async fn commits(control: &Control, environment: &Environment, from: &KnownRelease, to: &KnownRelease) -> Option<CommitsBetween> {
    let repositories = &control.pipeline().services().repositories;
    let log = |from: &KnownRelease, to: &KnownRelease| {
        repositories.log(environment.project_id, Some(from.commit.clone()), to.commit.clone(), MAX_COMMITS)
    };
    let (added, removed) = tokio::join!(log(from, to), log(to, from));
    let ((added, more), (removed, still_more)) = (added.ok()?, removed.ok()?);
    Some(CommitsBetween {
        added: added.into_iter().map(Into::into).collect(),
        removed: removed.into_iter().map(Into::into).collect(),
        more: more || still_more,
    })
}

/// The request to pin a release, so that it is not pruned, or to unpin a release.
#[derive(Debug)]
pub struct ReleasePin {
    /// The environment.
    pub target: Target,
    /// The release.
    pub release: String,
    /// True to pin the release, false to unpin the release.
    pub pinned: bool,
}

/// The result of [`ReleasePin`].
#[derive(Debug, Serialize)]
pub struct ReleasePinned {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The name of the release.
    pub release: String,
    /// True if the release is pinned now.
    pub pinned: bool,
    /// True if the request changed the pin.
    pub changed: bool,
}

impl Request for ReleasePin {
    type View = ReleasePinned;
    const NAME: &'static str = "release pin";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<ReleasePinned>, CommandError> {
        let ReleasePin { target, release, pinned } = self;
        let environment = control.environment(&target)?;
        // The lock is held so that the release is not pruned between the lookup and the pin.
        let _settled = control.pipeline().settled(environment.id).await;
        let known = named(&known(control, &environment).await?, &release, &environment)?;
        let paths = control.root().environment(&environment.project, &environment.name);
        if pinned && known.archive_bytes.is_none() {
            return Err(not_found(format!("cannot pin {} of {}: it was pruned", known.name(), environment.title())));
        }
        let _one_at_a_time = control.change_lock().await;
        let pin = pinned.then(|| Pin { by: caller.name(), at: Timestamp::now() });
        let changed = Pins::change(&paths.pins(), known.release, pin).map_err(|error| CommandError::internal(&error))?;
        Ok(ReleasePinned { environment: environment.title(), release: known.name(), pinned, changed }.into())
    }
}
