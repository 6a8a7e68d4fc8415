//! The releases of an environment, and their names: number, id, commit and tag.

use std::{collections::HashMap, path::Path};

use jiff::Timestamp;
use serde::Serialize;

use super::{core::Pipeline, error::PipelineError, history::Summary, state_files::Pins, util::chain};
use crate::{
    model::{CommitId, Environment, ReleaseId, ReleaseNameForm, ReleaseNumber, SnapshotNumber, UserName, best_tag},
    release::store,
};

/// A release that went live in an environment, or that is in its store.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KnownRelease {
    /// The id.
    pub release: ReleaseId,
    /// The number in this environment; `None` for a release that never went live here.
    pub number: Option<ReleaseNumber>,
    /// The build number, if it is known.
    pub build: Option<u64>,
    /// The commit.
    pub commit: CommitId,
    /// The highest version tag of the commit, else the tag in the record of the deployment or in the manifest.
    pub tag: Option<String>,
    /// All tags of the commit, and the tag in the record of the deployment or in the manifest.
    pub tags: Vec<String>,
    /// The number of the configuration with which the release went live; `None` without a configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<SnapshotNumber>,
    /// The commit of the pillar with which the release went live; `None` without a pillar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pillar: Option<CommitId>,
    /// The user who deployed the release; `None` if the release never went live here.
    pub by: Option<UserName>,
    /// The time at which the release went live.
    pub since: Option<Timestamp>,
    /// True for the live release.
    pub live: bool,
    /// True if the release is never pruned.
    pub pinned: bool,
    /// True if the tree of the release is installed, so that a rollback needs no installation.
    pub installed: bool,
    /// The size of the archive in bytes; `None` if the archive was pruned, or is not rebuilt yet after the transfer of a delta.
    pub archive_bytes: Option<u64>,
}

/// The reason why a name does not identify one release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseNameError {
    /// No release has this name.
    #[error("there is no release {text} in {environment}")]
    Unknown {
        /// The name.
        text: String,
        /// The environment.
        environment: String,
    },
    /// Several releases have this name.
    #[error("the release name {text} is ambiguous: it matches {}", names.join(", "))]
    Ambiguous {
        /// The name.
        text: String,
        /// The releases that match the name.
        names: Vec<String>,
    },
}

impl KnownRelease {
    /// Returns the name for messages: the number, else the tag, else the id.
    pub fn name(&self) -> String {
        match (&self.number, &self.tag) {
            (Some(number), _) => number.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => self.release.to_string(),
        }
    }
}

/// Finds a release by number (`v42`), tag, id or commit; the first four or more characters of an id or commit are enough. If several
/// releases of one commit match, returns the newest release. A name such as `v3` is always a number; `refs/tags/v3` is the tag. `releases` is
/// newest first.
pub fn find<'k>(
    releases: &'k [KnownRelease],
    text: &str,
    environment: &Environment,
) -> Result<&'k KnownRelease, ReleaseNameError> {
    match ReleaseNameForm::of(text) {
        ReleaseNameForm::Tag(tag) => return one(releases.iter().filter(|known| has_tag(known, tag)), text, environment),
        ReleaseNameForm::Number(number) => {
            return one(releases.iter().filter(|known| number.is_some() && known.number == number), text, environment);
        }
        ReleaseNameForm::Text(_) => {}
    }
    if releases.iter().any(|known| has_tag(known, text)) {
        return one(releases.iter().filter(|known| has_tag(known, text)), text, environment);
    }
    let begins = |known: &&KnownRelease| {
        text.len() >= 4 && (known.release.to_string().starts_with(text) || known.commit.begins_with(text))
    };
    one(releases.iter().filter(begins), text, environment)
}

fn has_tag(known: &KnownRelease, tag: &str) -> bool {
    known.tags.iter().any(|other| other == tag)
}

/// Returns the first release in `found`, if all releases in `found` have the same commit.
fn one<'k>(
    mut found: impl Iterator<Item = &'k KnownRelease>,
    text: &str,
    environment: &Environment,
) -> Result<&'k KnownRelease, ReleaseNameError> {
    let first = found.next().ok_or_else(|| ReleaseNameError::Unknown {
        text: crate::model::sanitise_reason(text),
        environment: environment.title(),
    })?;
    let others: Vec<_> = found.filter(|known| known.commit != first.commit).take(4).collect();
    if others.is_empty() {
        return Ok(first);
    }
    let names = std::iter::once(first).chain(others).map(|known| format!("{} ({})", known.name(), known.commit.short()));
    Err(ReleaseNameError::Ambiguous { text: crate::model::sanitise_reason(text), names: names.collect() })
}

impl Pipeline {
    /// Returns the releases of an environment: the releases that went live, newest first, then the releases in `releases/` that no
    /// deployment of this environment has used. Tags are read from the repository. If the repository cannot be read, the tags in records
    /// and manifests are used.
    pub async fn releases(&self, environment: &Environment) -> Result<Vec<KnownRelease>, PipelineError> {
        let services = self.services();
        let mut tags: HashMap<CommitId, Vec<String>> = HashMap::new();
        match services.repositories.tags(environment.project_id).await {
            Ok((all, _)) => all.into_iter().for_each(|(name, commit)| tags.entry(commit).or_default().push(name)),
            Err(error) => tracing::warn!(error = chain(&error), "cannot read tags"),
        }
        let (this, environment) = (self.clone(), environment.clone());
        let read = tokio::task::spawn_blocking(move || this.read_releases(&environment, &tags));
        read.await.map_err(|_| PipelineError::Stopping)
    }

    fn read_releases(&self, environment: &Environment, tags: &HashMap<CommitId, Vec<String>>) -> Vec<KnownRelease> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let pins = Pins::read(&paths.pins()).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read pins");
            Pins::default()
        });
        let (live, in_progress, history) = match self.queue(environment.id) {
            Some(queue) => {
                let state = queue.state.lock();
                (state.live.clone(), state.in_progress, state.history.clone())
            }
            None => Default::default(),
        };
        let known =
            |release: ReleaseId, commit: CommitId, build: Option<u64>, written: Option<String>, made: Option<&Summary>| {
                let mut tags = tags.get(&commit).cloned().unwrap_or_default();
                let tag = best_tag(tags.iter().map(String::as_str)).map(str::to_owned).or_else(|| written.clone());
                tags.extend(written.filter(|written| !tags.contains(written)));
                KnownRelease {
                    release,
                    number: made.map(|made| made.number),
                    build,
                    commit,
                    tag,
                    tags,
                    configuration: made.and_then(|made| made.configuration).map(|snapshot| snapshot.number),
                    pillar: made.and_then(|made| made.pillar.clone()),
                    by: made.map(|made| made.trigger.by().clone()),
                    since: made.and_then(|made| made.ended),
                    live: live.as_ref().is_some_and(|live| live.release == release),
                    pinned: pins.get(release).is_some(),
                    installed: paths.tree(release).exists(),
                    archive_bytes: size(&paths.archive(release)),
                }
            };
        // A release that went live several times has one entry for each of its numbers.
        let mut all: Vec<KnownRelease> = Vec::new();
        for made in history.releases().rev() {
            if all.iter().all(|known| known.release != made.release || known.number != Some(made.number)) {
                all.push(known(made.release, made.commit.clone(), made.build, made.tag.clone(), Some(made)));
            }
        }
        let tried: Vec<ReleaseId> = history.deployments.iter().map(|summary| summary.release).chain(in_progress).collect();
        let stored = store::list(&paths.releases()).unwrap_or_default();
        for release in stored.into_iter().filter(|release| !tried.contains(release)) {
            match store::head(&paths.manifest(release)) {
                Ok(head) => all.push(known(release, head.commit, Some(head.build), head.tag, None)),
                Err(error) => tracing::error!(%release, error = chain(&error), "manifest skipped"),
            }
        }
        all
    }
}

fn size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(number: u32, commit: &str, tag: Option<&str>) -> KnownRelease {
        KnownRelease {
            release: ReleaseId::new(Timestamp::from_second(1_700_000_000 + i64::from(number) * 100_000).unwrap()),
            number: Some(ReleaseNumber(number)),
            build: None,
            commit: commit.repeat(40).get(..40).unwrap().parse().unwrap(),
            tag: tag.map(str::to_owned),
            tags: tag.iter().map(|tag| (*tag).to_owned()).collect(),
            configuration: None,
            pillar: None,
            by: None,
            since: None,
            live: false,
            pinned: false,
            installed: true,
            archive_bytes: None,
        }
    }

    #[test]
    fn release_is_found_by_each_of_its_names() {
        let all = [
            known(4, "abcd1", Some("v1.1.0")),
            known(3, "abcd2", Some("v2")),
            known(2, "abcd2", Some("v2")),
            known(1, "beef", None),
        ];
        let number =
            |text: &str| find(&all, text, &Environment::of_shop("production", "main")).map(|known| known.number.unwrap().0);
        for (text, expected) in
            [("v4", 4), ("v1.1.0", 4), ("abcd1", 4), ("ABCD2", 3), ("beef", 1), ("refs/tags/v2", 3), (all[3].commit.as_str(), 1)]
        {
            assert_eq!(number(text), Ok(expected), "{text}");
        }
        // A number is never a tag, even if such a tag exists.
        assert_eq!(number("v2"), Ok(2));
        assert_eq!(number(&all[2].release.to_string()), Ok(2));
        assert_eq!(number(all[1].release.to_string().get(..12).unwrap()), Ok(3));
        for text in ["v9", "v0", "v", "", "bee", "beefy", "refs/tags/beef", "v1.2.0", "--x"] {
            assert!(matches!(number(text), Err(ReleaseNameError::Unknown { .. })), "{text}");
        }
        let ambiguous = number("abcd").unwrap_err().to_string();
        assert_eq!(ambiguous, "the release name abcd is ambiguous: it matches v4 (abcd1abcd1), v3 (abcd2abcd2), v2 (abcd2abcd2)");
    }
}
