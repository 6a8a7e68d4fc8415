//! The deployments of an environment, as their journals tell it.

use std::{fs, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    journal::{Journal, JournalError, Story},
    step::chain,
    verdict,
};
use crate::{
    host::root::EnvironmentPaths,
    model::{BranchName, CommitId, DeploymentId, Event, Live, Outcome, ReleaseId, ReleaseNumber, Slot, Trigger},
};

/// One deployment, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Which.
    pub deployment: DeploymentId,
    /// Why.
    pub trigger: Trigger,
    /// The branch.
    pub branch: BranchName,
    /// The commit.
    pub commit: CommitId,
    /// The release that it made or would have made.
    pub release: ReleaseId,
    /// Its number.
    pub number: ReleaseNumber,
    /// The number of its build, once it was packed.
    #[serde(default)]
    pub build: Option<u64>,
    /// The version tag that its commit had when it was deployed.
    #[serde(default)]
    pub tag: Option<String>,
    /// The slot that it booted in.
    pub slot: Slot,
    /// When it began.
    pub opened: Timestamp,
    /// When it ended; nothing while it runs.
    pub ended: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Whether a person has released the environment after it got stuck.
    pub cleared: bool,
    /// Whether it was only a trial.
    pub trial: bool,
    /// What served when it began.
    #[serde(skip)]
    pub previous: Option<Live>,
}

impl Summary {
    /// What a journal says; nothing where it was cut before its first event.
    pub fn of(story: &Story) -> Option<Summary> {
        let record = story.opened.as_ref()?;
        let Event::Opened { deployment, trigger, branch, commit, release, number, slot, previous, trial, .. } = &record.event
        else {
            return None;
        };
        Some(Summary {
            deployment: *deployment,
            trigger: trigger.clone(),
            branch: branch.clone(),
            commit: commit.clone(),
            release: *release,
            number: *number,
            build: story.facts.build,
            tag: story.facts.tag.clone(),
            slot: *slot,
            opened: record.at,
            ended: story.ended.as_ref().map(|(at, _)| *at),
            outcome: story.ended.as_ref().map(|(_, outcome)| outcome.clone()),
            cleared: story.cleared,
            trial: !trial.is_empty(),
            previous: previous.clone(),
        })
    }

    /// Whether it ended with its release serving.
    pub fn went_live(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Live { .. }))
    }

    /// Whether it froze its environment and nobody has looked yet.
    pub fn is_stuck(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Stuck { .. })) && !self.cleared
    }

    /// Its release, as something that can be live.
    pub fn live(&self) -> Live {
        Live { release: self.release, number: self.number, commit: self.commit.clone(), slot: self.slot }
    }
}

/// All deployments of an environment, oldest first, and those that a dead server left unfinished.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Oldest first.
    pub deployments: Vec<Summary>,
    /// Those whose record cannot be read, and why not. Nothing is known of what they have done.
    pub unreadable: Vec<(DeploymentId, String)>,
}

impl History {
    /// Reads all journals.
    pub fn read(paths: &EnvironmentPaths) -> History {
        let (mut deployments, mut unreadable) = (Vec::new(), Vec::new());
        for id in ids(&paths.deployments()) {
            match Story::read(&paths.deployment(id)) {
                Err(JournalError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Ok(story) => deployments.extend(Summary::of(&story)),
                Err(error) => {
                    tracing::error!(deployment = %id, error = chain(&error), "a journal cannot be read");
                    unreadable.push((id, chain(&error)));
                }
            }
        }
        let mut history = History { deployments, unreadable };
        history.sort();
        history
    }

    /// The deployment that made `release` live.
    pub fn of_release(&self, release: ReleaseId) -> Option<&Summary> {
        self.deployments.iter().rev().find(|summary| summary.release == release && summary.went_live())
    }

    /// The releases that went live, oldest first.
    pub fn releases(&self) -> impl DoubleEndedIterator<Item = &Summary> {
        self.deployments.iter().filter(|summary| summary.went_live())
    }

    /// The release that went live and has this name: its number, its id, or the first digits of its commit; the newest where
    /// several fit.
    pub fn named(&self, name: &str) -> Option<&Summary> {
        let number = name.parse::<ReleaseNumber>().ok();
        let id = name.parse::<ReleaseId>().ok();
        let digits = name.len() >= 4 && name.bytes().all(|c| c.is_ascii_hexdigit());
        let commit = name.to_ascii_lowercase();
        let by_name = |summary: &&Summary| Some(summary.number) == number || Some(summary.release) == id;
        let by_commit = |summary: &&Summary| digits && summary.commit.as_str().starts_with(&commit);
        self.releases().rev().find(by_name).or_else(|| self.releases().rev().find(by_commit))
    }

    /// The last deployment that should have gone live, if it did not.
    pub fn last_failed(&self) -> Option<&Summary> {
        self.deployments.iter().rev().find(|summary| !summary.trial).filter(|summary| !summary.went_live())
    }

    /// The number for the next release. A failed deployment uses none up.
    pub fn next_number(&self) -> ReleaseNumber {
        let last = self.releases().map(|summary| summary.number.0).max().unwrap_or(0);
        ReleaseNumber(last.saturating_add(1))
    }

    /// The highest build number that any record tells of. Before there were build numbers, manifests had the release's.
    pub fn last_build(&self) -> u64 {
        let builds = self.deployments.iter().map(|summary| summary.build.unwrap_or(0).max(u64::from(summary.number.0)));
        builds.max().unwrap_or(0)
    }

    /// The deployment that froze the environment, if it is frozen, and why.
    pub fn frozen(&self) -> Option<(DeploymentId, String)> {
        let stuck = self.deployments.iter().rev().find(|summary| summary.is_stuck());
        let stuck = stuck.map(|summary| (summary.deployment, verdict::stuck_reason(summary)));
        stuck.or_else(|| self.unreadable.last().cloned())
    }

    /// Adds a deployment, or replaces what was known of it.
    pub fn record(&mut self, summary: Summary) {
        self.deployments.retain(|known| known.deployment != summary.deployment);
        self.deployments.push(summary);
        self.sort();
    }

    /// By numbers, which rise whatever the clock does.
    fn sort(&mut self) {
        self.deployments.sort_by_key(|summary| (summary.number, summary.opened, summary.deployment));
    }

    /// What serves, as the links on disk say it.
    pub fn live(&self, paths: &EnvironmentPaths) -> Option<Live> {
        let release: ReleaseId = named_by(&paths.current())?.parse().ok()?;
        // A release can be live more than once; a deployment of it that failed says nothing. One that never went live is named where
        // the link could not be put back: then what it was to replace serves.
        let Some(made) = self.of_release(release) else {
            return self.deployments.iter().rev().find(|summary| summary.release == release)?.previous.clone();
        };
        let mut live = made.live();
        live.slot = active_slot(paths).unwrap_or(live.slot);
        Some(live)
    }

    /// The records that may go: the oldest beyond `keep`, but none whose release is in `releases`, and none that is unfinished or
    /// stuck.
    pub fn prunable(&self, keep: usize, releases: &[ReleaseId]) -> Vec<DeploymentId> {
        let spare = self.deployments.len().saturating_sub(keep);
        let free = |summary: &&Summary| summary.ended.is_some() && !summary.is_stuck() && !releases.contains(&summary.release);
        self.deployments.iter().take(spare).filter(free).map(|summary| summary.deployment).collect()
    }
}

fn named_by(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

/// The slot that serves, as the link on disk says it.
pub fn active_slot(paths: &EnvironmentPaths) -> Option<Slot> {
    let name = named_by(&paths.run())?;
    Slot::ALL.into_iter().find(|slot| slot.as_str() == name)
}

/// Removes what is left of deployments that a dead server had not even opened: a directory whose journal has no
/// whole line. Only for a time in which no deployment runs.
pub fn remove_unopened(paths: &EnvironmentPaths) {
    for id in ids(&paths.deployments()) {
        let directory = paths.deployment(id);
        let nothing = match fs::read(directory.join(Journal::FILE)) {
            Ok(lines) => !lines.contains(&b'\n'),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if nothing && let Err(error) = fs::remove_dir_all(&directory) {
            tracing::warn!(deployment = %id, %error, "what is left of a deployment that never began stays");
        }
    }
}

/// The deployments that have a directory.
fn ids(directory: &Path) -> Vec<DeploymentId> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::root::Root, model::DeploymentId};

    fn summary(number: u32, second: i64, outcome: bool) -> Summary {
        let release = ReleaseId::new(Timestamp::from_second(second).unwrap());
        let number = ReleaseNumber(number);
        let opened = Timestamp::from_second(second).unwrap();
        Summary {
            deployment: DeploymentId::new(opened),
            trigger: Trigger::Push { by: "ann".parse().unwrap() },
            branch: "main".parse().unwrap(),
            commit: "a".repeat(40).parse().unwrap(),
            release,
            number,
            build: None,
            tag: None,
            slot: Slot::Blue,
            opened,
            ended: Some(opened),
            outcome: outcome.then_some(Outcome::Live { release, number }),
            cleared: false,
            trial: false,
            previous: None,
        }
    }

    #[test]
    fn a_clock_that_was_put_back_changes_no_order() {
        let mut history = History::default();
        for (number, second) in [(1, 1000), (2, 3000), (3, 2000)] {
            history.record(summary(number, second, true));
        }
        let numbers: Vec<_> = history.releases().map(|summary| summary.number.0).collect();
        assert_eq!(numbers, [1, 2, 3]);
        // Whatever is found out about an old one later, it stays where it was.
        let first = history.deployments[0].clone();
        history.record(first);
        assert_eq!(history.releases().next_back().unwrap().number.0, 3);
    }

    #[test]
    fn what_never_went_live_is_not_live_though_current_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        fs::create_dir_all(paths.deploy()).unwrap();
        let (old, mut new) = (summary(1, 1000, true), summary(2, 2000, false));
        new.previous = Some(old.live());
        let mut history = History::default();
        history.record(old.clone());
        history.record(new.clone());
        std::os::unix::fs::symlink(new.release.to_string(), paths.current()).unwrap();
        assert_eq!(history.live(&paths), Some(old.live()));
    }

    #[test]
    fn a_record_that_cannot_be_read_freezes() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        let id = DeploymentId::new(Timestamp::now());
        fs::create_dir_all(paths.deployment(id)).unwrap();
        fs::write(paths.deployment(id).join(Journal::FILE), "garbage\n").unwrap();
        let (frozen, why) = History::read(&paths).frozen().unwrap();
        assert!(frozen == id && why.contains(":1:"), "{why}");
    }

    #[test]
    fn only_what_never_began_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        let make = |journal: Option<&str>| {
            let id = DeploymentId::new(Timestamp::now());
            fs::create_dir_all(paths.deployment(id)).unwrap();
            if let Some(text) = journal {
                fs::write(paths.deployment(id).join(Journal::FILE), text).unwrap();
            }
            id
        };
        let (bare, empty, cut) = (make(None), make(Some("")), make(Some("{\"at\":\"2026-11-")));
        let (garbage, begun) =
            (make(Some("garbage\n")), make(Some("{\"at\":\"2026-11-21T15:42:14Z\",\"event\":\"recovered\"}\n")));
        fs::create_dir(paths.deployments().join("a person's notes")).unwrap();
        remove_unopened(&paths);
        for gone in [bare, empty, cut] {
            assert!(!paths.deployment(gone).exists());
        }
        assert!(paths.deployment(garbage).exists(), "a record that cannot be read is for a person to look at");
        assert!(paths.deployment(begun).exists());
        assert!(paths.deployments().join("a person's notes").exists());
    }
}
