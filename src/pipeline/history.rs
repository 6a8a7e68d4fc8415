//! The deployments of an environment, as recorded in their journals.

use std::{fs, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    journal::{self, JournalError, JournalState},
    util::chain,
};
use crate::{
    host::root::EnvironmentPaths,
    model::{BranchName, CommitId, DeploymentId, Live, Outcome, ReleaseId, ReleaseNumber, Slot, SnapshotRef, Trigger},
};

/// The summary of one deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The request that started the deployment.
    pub trigger: Trigger,
    /// The branch that was deployed.
    pub branch: BranchName,
    /// The commit that was deployed.
    pub commit: CommitId,
    /// The release that the deployment made live or would have made live.
    pub release: ReleaseId,
    /// The number of the release.
    pub number: ReleaseNumber,
    /// The number of the build; `None` until a step has recorded the number.
    #[serde(default)]
    pub build: Option<u64>,
    /// The version tag of the commit at the time of the deployment.
    #[serde(default)]
    pub tag: Option<String>,
    /// The slot that the release booted in.
    pub slot: Slot,
    /// The moment at which the deployment began.
    pub opened: Timestamp,
    /// The moment at which the deployment ended; `None` if the deployment has not ended.
    pub ended: Option<Timestamp>,
    /// The outcome; `None` if the deployment has not ended.
    pub outcome: Option<Outcome>,
    /// True if a person has unfrozen the environment after the deployment got stuck.
    pub cleared: bool,
    /// True for a dry run.
    #[serde(rename = "trial")]
    pub dry_run: bool,
    /// The time for which visitors got the maintenance page, in milliseconds; absent unless the deployment replaced a release in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption: Option<u64>,
    /// The configuration snapshot of the processes; absent if the environment had no configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<SnapshotRef>,
    /// The commit of the pillar in the configuration snapshot; absent without a pillar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pillar: Option<CommitId>,
    /// The release that was live when the deployment began.
    #[serde(skip)]
    pub previous: Option<Live>,
    /// The number of the last end, if the journal does not record this end as announced.
    #[serde(skip)]
    pub ending: Option<u32>,
}

impl Summary {
    /// Returns the summary of a journal; `None` if the journal has no first event.
    pub fn of(state: &JournalState) -> Option<Summary> {
        let (spec, opened) = (state.spec.as_ref()?, state.opened?);
        // larder 0.1, which wrote version 1, had no observers, so the ends of its deployments are never announced.
        let missed = spec.version > 1 && state.announced < state.endings;
        Some(Summary {
            deployment: spec.id,
            trigger: spec.trigger.clone(),
            branch: spec.branch.clone(),
            commit: spec.commit.clone(),
            release: spec.release,
            number: spec.number,
            build: state.facts.build,
            tag: state.facts.tag.clone(),
            slot: spec.slot,
            opened,
            ended: state.ended.as_ref().map(|(at, _)| *at),
            outcome: state.ended.as_ref().map(|(_, outcome)| outcome.clone()),
            cleared: state.cleared,
            dry_run: !spec.dry_run.is_empty(),
            interruption: state.interruption(),
            configuration: spec.configuration,
            pillar: spec.pillar.clone(),
            previous: spec.previous.clone(),
            ending: missed.then_some(state.endings),
        })
    }

    /// Returns the last end, if the journal does not record this end as announced: the deployment, the number of the end, and the outcome.
    pub fn unannounced(&self) -> Option<(DeploymentId, u32, Outcome)> {
        Some((self.deployment, self.ending?, self.outcome.clone()?))
    }

    /// Returns a title such as `v42 (1a2b3c4d5e)`, for messages.
    pub fn title(&self) -> String {
        format!("{} ({})", self.number, self.commit.short())
    }

    /// Returns true if the release went live.
    pub fn went_live(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Live { .. }))
    }

    /// Returns true if the deployment froze its environment, and no person has unfrozen it yet.
    pub fn is_stuck(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Stuck { .. })) && !self.cleared
    }

    /// Returns the deployment's release as a `Live` value. The caller must ensure that the release is live.
    pub fn live(&self) -> Live {
        Live { release: self.release, number: self.number, commit: self.commit.clone(), slot: self.slot }
    }
}

/// All deployments of an environment.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The deployments, oldest first.
    pub deployments: Vec<Summary>,
    /// The deployments whose journals cannot be used, with the reasons. The effects of these deployments are unknown, so the
    /// environment is frozen.
    pub unreadable: Vec<(DeploymentId, String)>,
    /// The reason why the record of the slots cannot be used. If there is such a reason, the environment is frozen.
    pub slots: Option<String>,
    /// The reason why the record of the last restore cannot be used. If there is such a reason, the environment is frozen, and no process
    /// is started.
    pub restore: Option<String>,
}

impl History {
    /// Reads all journals of an environment.
    pub fn read(paths: &EnvironmentPaths) -> History {
        let (mut deployments, mut unreadable) = (Vec::new(), Vec::new());
        for id in ids(&paths.deployments()) {
            match JournalState::read(&paths.deployment(id)) {
                Err(JournalError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Ok(state) => deployments.extend(Summary::of(&state)),
                Err(error) => {
                    tracing::error!(deployment = %id, error = chain(&error), "cannot read a journal");
                    unreadable.push((id, chain(&error)));
                }
            }
        }
        let mut history = History { deployments, unreadable, slots: None, restore: None };
        history.sort();
        history
    }

    /// Records that the journal of a deployment cannot be used, which freezes the environment.
    pub fn cannot_use(&mut self, id: DeploymentId, why: String) {
        self.deployments.retain(|known| known.deployment != id);
        self.unreadable.retain(|(known, _)| *known != id);
        self.unreadable.push((id, why));
    }

    /// Returns the last deployment that made `release` live.
    pub fn of_release(&self, release: ReleaseId) -> Option<&Summary> {
        self.deployments.iter().rev().find(|summary| summary.release == release && summary.went_live())
    }

    /// Returns the deployments whose releases went live, oldest first.
    pub fn releases(&self) -> impl DoubleEndedIterator<Item = &Summary> {
        self.deployments.iter().filter(|summary| summary.went_live())
    }

    /// Returns the deployment whose release went live and has the name `name`: the release's number, its id, or the beginning of its commit.
    /// If several deployments of one commit match, returns the newest. If several commits match, returns the newest deployment of each of
    /// these commits as the error.
    pub fn named(&self, name: &str) -> Result<Option<&Summary>, Vec<&Summary>> {
        let number = name.parse::<ReleaseNumber>().ok();
        let id = name.parse::<ReleaseId>().ok();
        let by_name = |summary: &&Summary| Some(summary.number) == number || Some(summary.release) == id;
        if let Some(found) = self.releases().rev().find(by_name) {
            return Ok(Some(found));
        }
        let mut found: Vec<&Summary> = Vec::new();
        for summary in self.releases().rev().filter(|summary| summary.commit.begins_with(name)) {
            if found.iter().all(|known| known.commit != summary.commit) {
                found.push(summary);
            }
        }
        if found.len() > 1 { Err(found) } else { Ok(found.pop()) }
    }

    /// Returns the last deployment that was not a dry run, if this deployment did not go live.
    pub fn last_failed(&self) -> Option<&Summary> {
        self.deployments.iter().rev().find(|summary| !summary.dry_run).filter(|summary| !summary.went_live())
    }

    /// Returns the number for the next release. A failed deployment does not use up a number.
    pub fn next_number(&self) -> ReleaseNumber {
        let last = self.releases().map(|summary| summary.number.0).max().unwrap_or(0);
        ReleaseNumber(last.saturating_add(1))
    }

    /// Returns the highest build number or release number of all records. Release numbers count, because manifests contained the release
    /// number before build numbers existed.
    pub fn last_build(&self) -> u64 {
        let builds = self.deployments.iter().map(|summary| summary.build.unwrap_or(0).max(u64::from(summary.number.0)));
        builds.max().unwrap_or(0)
    }

    /// Returns the reason why the environment is frozen, after the deployment that froze the environment; `None` if the environment
    /// is not frozen.
    pub fn frozen(&self) -> Option<(DeploymentId, String)> {
        let stuck = self.deployments.iter().rev().filter(|summary| !summary.cleared).find_map(|summary| match &summary.outcome {
            Some(Outcome::Stuck { undo, .. }) => Some((summary.deployment, undo.clone())),
            _ => None,
        });
        let records = || Some((self.deployments.last()?.deployment, self.restore.clone().or_else(|| self.slots.clone())?));
        stuck.or_else(|| self.unreadable.last().cloned()).or_else(records)
    }

    /// Adds a deployment, or replaces the entry of the same deployment.
    pub fn record(&mut self, summary: Summary) {
        self.deployments.retain(|known| known.deployment != summary.deployment);
        self.deployments.push(summary);
        self.sort();
    }

    /// Sorts the deployments by release number, because the numbers rise even if the clock is set back.
    fn sort(&mut self) {
        self.deployments.sort_by_key(|summary| (summary.number, summary.opened, summary.deployment));
    }

    /// Returns the live release according to the links on disk.
    pub fn live(&self, paths: &EnvironmentPaths) -> Option<Live> {
        let release: ReleaseId = named_by(&paths.current())?.parse().ok()?;
        // A release can go live more than once, so its last successful deployment counts. If the link names a release that never
        // went live, or that a stuck deployment could not make live, the undo of the switch has failed, and the previous release serves.
        let last = self.deployments.iter().rev().find(|summary| summary.release == release && !summary.dry_run);
        let Some(made) = self.of_release(release).filter(|_| !last.is_some_and(Summary::is_stuck)) else {
            return last?.previous.clone();
        };
        let mut live = made.live();
        live.slot = active_slot(paths).unwrap_or(live.slot);
        Some(live)
    }

    /// Returns the records that may be removed: the oldest records beyond `keep`. Excludes unfinished and stuck deployments, and
    /// deployments of the releases in `releases`.
    pub fn prunable(&self, keep: usize, releases: &[ReleaseId]) -> Vec<DeploymentId> {
        let spare = self.deployments.len().saturating_sub(keep);
        let free = |summary: &&Summary| summary.ended.is_some() && !summary.is_stuck() && !releases.contains(&summary.release);
        self.deployments.iter().take(spare).filter(free).map(|summary| summary.deployment).collect()
    }
}

fn named_by(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

/// Returns the live slot according to the link on disk.
pub fn active_slot(paths: &EnvironmentPaths) -> Option<Slot> {
    let target = fs::read_link(paths.run()).ok()?;
    Slot::ALL.into_iter().find(|slot| target.starts_with(Path::new("slots").join(slot.as_str())))
}

/// Removes the directories of deployments that an earlier server queued and never began: the journals of such deployments have no
/// complete line. Call this function only while no deployment runs.
pub fn remove_unopened(paths: &EnvironmentPaths) {
    for id in ids(&paths.deployments()) {
        let directory = paths.deployment(id);
        if let Err(error) = journal::remove_unopened(&directory) {
            tracing::warn!(deployment = %id, %error, "cannot remove the directory of a deployment that never began");
        }
    }
}

/// Returns the deployments that have a directory.
fn ids(directory: &Path) -> Vec<DeploymentId> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::root::Root,
        model::{Blame, DeploymentId, Fault, Phase},
        pipeline::journal::Journal,
    };

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
            dry_run: false,
            interruption: None,
            configuration: None,
            pillar: None,
            previous: None,
            ending: None,
        }
    }

    #[test]
    fn history_stays_ordered_after_the_clock_was_set_back() {
        let mut history = History::default();
        for (number, second) in [(1, 1000), (2, 3000), (3, 2000)] {
            history.record(summary(number, second, true));
        }
        let numbers: Vec<_> = history.releases().map(|summary| summary.number.0).collect();
        assert_eq!(numbers, [1, 2, 3]);
        // An old deployment that is recorded again keeps its place.
        let first = history.deployments[0].clone();
        history.record(first);
        assert_eq!(history.releases().next_back().unwrap().number.0, 3);
    }

    #[test]
    fn beginning_of_several_commits_names_no_release() {
        let mut history = History::default();
        for (number, commit) in [(1, "abcd1"), (2, "abcd2"), (3, "abcd2")] {
            let commit = format!("{commit:0<40}").parse().unwrap();
            history.record(Summary { commit, ..summary(number, i64::from(number), true) });
        }
        let named = |name: &str| history.named(name).map(|found| found.map(|found| found.number.0));
        for name in ["abcd", "ABCD"] {
            let candidates: Vec<_> = named(name).unwrap_err().iter().map(|found| found.number.0).collect();
            assert_eq!(candidates, [3, 1], "{name}: the newest release of each commit");
        }
        assert_eq!((named("abcd1"), named("ABCD2"), named("v2")), (Ok(Some(1)), Ok(Some(3)), Ok(Some(2))));
        assert_eq!((named("abc"), named("abce"), named("")), (Ok(None), Ok(None), Ok(None)));
    }

    #[test]
    fn release_that_never_went_live_is_not_live() {
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
    fn release_that_a_stuck_rollback_names_is_not_live() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        fs::create_dir_all(paths.deploy()).unwrap();
        let (first, second) = (summary(1, 1000, true), summary(2, 2000, true));
        let fault = Fault { phase: Phase::Deploy, blame: Blame::Host, why: String::new(), hints: Vec::new() };
        let mut back = Summary { release: first.release, previous: Some(second.live()), ..summary(3, 3000, false) };
        back.outcome = Some(Outcome::Stuck { fault, undo: String::new() });
        let mut history = History::default();
        for made in [&first, &second, &back] {
            history.record(made.clone());
        }
        std::os::unix::fs::symlink(first.release.to_string(), paths.current()).unwrap();
        assert_eq!(history.live(&paths), Some(second.live()));
        history.record(Summary { cleared: true, ..back });
        assert_eq!(history.live(&paths), Some(first.live()));
    }

    #[test]
    fn unreadable_journal_freezes_environment() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Root::new(directory.path()).environment(&"shop".parse().unwrap(), &"production".parse().unwrap());
        let id = DeploymentId::new(Timestamp::now());
        fs::create_dir_all(paths.deployment(id)).unwrap();
        fs::write(paths.deployment(id).join(Journal::FILE), "garbage\n").unwrap();
        let (frozen, why) = History::read(&paths).frozen().unwrap();
        assert!(frozen == id && why.contains(":1:"), "{why}");
    }

    #[test]
    fn only_deployments_that_never_began_are_removed() {
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
        assert!(paths.deployment(garbage).exists(), "an unreadable record must stay, so that a person can read it");
        assert!(paths.deployment(begun).exists());
        assert!(paths.deployments().join("a person's notes").exists());
    }
}
