//! What is known of releases: the list, one of them, two compared, and those to keep.

use jiff::Timestamp;

use super::not_found;
use crate::{
    control::{
        Caller, CommandError, Control, Kind, ManifestBrief, ReleaseDetail, ReleaseDiff, Reply, Target, error::similar,
        releases::CommitsBetween,
    },
    model::{Environment, Manifest},
    pipeline::{self, KnownRelease, NameError, Pin, Pins},
    release::{self, ReleaseError, store},
};

/// How many commits between two releases are listed.
const COMMITS: usize = 50;

pub(super) async fn list(control: &Control, target: &Target) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    Ok(Reply::Releases(known(control, &environment).await?))
}

pub(super) async fn known(control: &Control, environment: &Environment) -> Result<Vec<KnownRelease>, CommandError> {
    control.pipeline().releases(environment).await.map_err(|error| super::deployments::of_pipeline(&error))
}

/// The release that a person names.
pub(super) fn named(all: &[KnownRelease], text: &str, environment: &Environment) -> Result<KnownRelease, CommandError> {
    match pipeline::find(all, text, environment) {
        Ok(found) => Ok(found.clone()),
        Err(error @ NameError::Ambiguous { .. }) => {
            Err(CommandError::new(Kind::Usage, error.to_string()).hint("give its number, or more of its id"))
        }
        Err(error @ NameError::Unknown { .. }) => {
            let names: Vec<String> = all.iter().flat_map(|known| known.tags.iter().cloned().chain([known.name()])).collect();
            let error = not_found(error.to_string());
            Err(match similar(text, names.iter().map(String::as_str)) {
                Some(other) => error.hint(format!("did you mean {other}?")),
                None => error.hint(format!(
                    "`larder releases {}` lists them; a number, a tag, an id or a commit names one",
                    environment.title()
                )),
            })
        }
    }
}

/// A manifest, read where it does not hold up others.
async fn manifest(control: &Control, environment: &Environment, known: &KnownRelease) -> Result<Manifest, CommandError> {
    let paths = control.0.root.environment(&environment.project, &environment.name);
    let path = paths.manifest(known.release);
    let read = tokio::task::spawn_blocking(move || store::read(&path)).await.unwrap_or(Err(ReleaseError::Cancelled));
    read.map_err(|error| match &error {
        ReleaseError::File(file) if file.kind() == std::io::ErrorKind::NotFound => {
            not_found(format!("{} of {} was pruned: its archive and manifest are gone", known.name(), environment.title()))
                .hint("`larder release pin` keeps a release; `keep:` in larder.yml says how many there are")
        }
        _ => CommandError::internal(&error),
    })
}

pub(super) async fn show(control: &Control, target: &Target, name: Option<&str>) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let all = known(control, &environment).await?;
    let known = match name {
        Some(name) => named(&all, name, &environment)?,
        None => all.iter().find(|known| known.live).cloned().ok_or_else(|| {
            not_found(format!("nothing is live in {} yet", environment.title()))
                .hint("name a release, as in `larder release show shop v1`")
        })?,
    };
    let manifest = match manifest(control, &environment, &known).await {
        Ok(manifest) => Some(ManifestBrief::from(&manifest)),
        Err(error) if error.kind == Kind::NotFound => None,
        Err(error) => return Err(error),
    };
    let paths = control.0.root.environment(&environment.project, &environment.name);
    let pins = Pins::read(&paths.pins()).map_err(|error| CommandError::internal(&error))?;
    let history = control.pipeline().history(environment.id);
    let deployments = history.deployments.into_iter().filter(|summary| summary.release == known.release).collect();
    Ok(Reply::Release(Box::new(ReleaseDetail { pin: pins.get(known.release).cloned(), known, manifest, deployments })))
}

pub(super) async fn diff(control: &Control, target: &Target, from: &str, to: Option<&str>) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let all = known(control, &environment).await?;
    let from = named(&all, from, &environment)?;
    let to = match to {
        Some(to) => named(&all, to, &environment)?,
        None => all.iter().find(|known| known.live).cloned().ok_or_else(|| {
            CommandError::new(Kind::Usage, "compare with which release?").hint("name two, as in `larder release diff shop v1 v2`")
        })?,
    };
    let (before, after) = (manifest(control, &environment, &from).await?, manifest(control, &environment, &to).await?);
    let compare = tokio::task::spawn_blocking(move || release::changes(&before.entries, &after.entries));
    let files = compare.await.map_err(|_| CommandError::internal(&ReleaseError::Cancelled))?;
    let commits = commits(control, &environment, &from, &to).await;
    Ok(Reply::ReleaseDiff(Box::new(ReleaseDiff { from, to, files, commits })))
}

/// Nothing where the repository cannot tell: the files are what matters.
async fn commits(control: &Control, environment: &Environment, from: &KnownRelease, to: &KnownRelease) -> Option<CommitsBetween> {
    let repositories = &control.pipeline().services().repositories;
    let log = |from: &KnownRelease, to: &KnownRelease| {
        repositories.log(environment.project_id, Some(from.commit.clone()), to.commit.clone(), COMMITS)
    };
    let (added, removed) = tokio::join!(log(from, to), log(to, from));
    let ((added, more), (removed, still_more)) = (added.ok()?, removed.ok()?);
    Some(CommitsBetween {
        added: added.into_iter().map(Into::into).collect(),
        removed: removed.into_iter().map(Into::into).collect(),
        more: more || still_more,
    })
}

pub(super) async fn pin(
    control: &Control,
    caller: &Caller,
    target: &Target,
    name: &str,
    wanted: bool,
) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    // What is found now must still be there when it is pinned.
    let _settled = control.pipeline().settled(environment.id).await;
    let known = named(&known(control, &environment).await?, name, &environment)?;
    let paths = control.0.root.environment(&environment.project, &environment.name);
    if wanted && known.archive_bytes.is_none() {
        return Err(not_found(format!("{} of {} was pruned; it is too late to pin it", known.name(), environment.title())));
    }
    // The lock of the registry serves for this small file too: one change at a time.
    let _one_at_a_time = control.0.change.lock().await;
    let pin = wanted.then(|| Pin { by: caller.name(), at: Timestamp::now() });
    let changed = Pins::change(&paths.pins(), known.release, pin).map_err(|error| CommandError::internal(&error))?;
    let (name, title) = (known.name(), environment.title());
    Ok(Reply::Done(match (wanted, changed) {
        (true, true) => format!("{name} of {title} stays until it is unpinned"),
        (true, false) => format!("{name} of {title} is pinned already"),
        (false, true) => format!("{name} of {title} is pruned like any other from now on"),
        (false, false) => format!("{name} of {title} was not pinned"),
    }))
}
