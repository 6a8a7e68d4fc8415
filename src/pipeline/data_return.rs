//! The choice of the restore point from which a rollback restores the data, and the list of the release commands that ran since a
//! deployment. This file changes nothing.

use jiff::Timestamp;

use super::{
    core::Pipeline, history::Summary, journal::JournalState, live_app::UpgradePlan, points::PointsError, queue::Queue,
    util::run_blocking,
};
use crate::{
    backup::{PointInfo, PointState},
    host::root::EnvironmentPaths,
    model::{CommitId, Environment, ReleaseNumber, StepStatus},
};

/// The maximum number of restore points that a refusal lists.
const MAX_CANDIDATES: usize = 10;

/// The step that runs the release command.
const UPGRADE: &str = "deploy.release";

/// A release command that ran in a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// The number of the deployment's release.
    pub number: ReleaseNumber,
    /// The commit of the deployment.
    pub commit: CommitId,
    /// The moment at which the deployment began.
    pub at: Timestamp,
    /// The command.
    pub command: String,
    /// True if the deployment went live.
    pub went_live: bool,
}

/// The reason why no restore point belongs to a release.
#[derive(Debug, thiserror::Error)]
pub enum PointChoiceError {
    /// The restore points could not be read.
    #[error(transparent)]
    Points(#[from] PointsError),
    /// No usable restore point was taken while the release was live.
    #[error("cannot bring back the data of {number} in {environment}: no usable restore point was taken while {number} was live")]
    None {
        /// The number of the release.
        number: ReleaseNumber,
        /// The environment, as `project/environment`.
        environment: String,
        /// The newest usable restore points, none of which belongs to the release.
        candidates: Vec<PointInfo>,
    },
}

impl Pipeline {
    /// Returns the restore point from which a rollback to the release of `made` restores the data: the restore point `named`, or the newest
    /// usable restore point that was taken while this release was live.
    pub async fn point_of(
        &self,
        environment: &Environment,
        made: &Summary,
        named: Option<String>,
    ) -> Result<PointInfo, PointChoiceError> {
        if let Some(name) = named {
            return Ok(self.point(environment, name).await?);
        }
        let (points, ..) = self.points(environment).await?;
        match points.iter().find(|point| is_usable(point) && belongs_to(point, made)) {
            Some(point) => Ok(point.clone()),
            None => Err(PointChoiceError::None {
                number: made.number,
                environment: environment.title(),
                candidates: points.into_iter().filter(is_usable).take(MAX_CANDIDATES).collect(),
            }),
        }
    }

    /// Deletes the data that a rollback with data has replaced. The fresh restore point of the rollback has this data, too. A frozen
    /// environment keeps all files for the person who repairs it.
    pub(super) async fn discard_replaced(&self, queue: &Queue) {
        let _locked = queue.points.lock().await;
        if queue.is_thawed().is_ok() {
            self.clear_restoring(&queue.environment()).await;
        }
    }

    /// Returns the release commands that ran after the deployment `made` began, oldest first. A failed deployment counts,
    /// too, unless the data was restored. Deployments whose journals no longer exist are not known.
    pub fn upgrades_since(&self, environment: &Environment, made: &Summary) -> Vec<Upgrade> {
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let history = self.history(environment.id);
        let later = history.deployments.iter().filter(|summary| summary.opened > made.opened && !summary.dry_run);
        run_blocking(|| later.filter_map(|summary| upgrade(&paths, summary)).collect())
    }
}

fn is_usable(point: &PointInfo) -> bool {
    !matches!(point.state, PointState::Damaged(..) | PointState::Unusable(_) | PointState::Incomplete(_))
}

/// Returns true if the restore point was taken while the release of the deployment `made` was live. A release that went live several times
/// has several numbers, so the label's number must match, too.
fn belongs_to(point: &PointInfo, made: &Summary) -> bool {
    point.label.as_ref().is_some_and(|label| label.release == Some(made.release) && label.number == Some(made.number))
}

/// Returns the release command of a deployment, if the deployment began to run it and has not restored the data.
fn upgrade(paths: &EnvironmentPaths, summary: &Summary) -> Option<Upgrade> {
    let state = JournalState::read(&paths.deployment(summary.deployment)).ok()?;
    if state.status(UPGRADE) == StepStatus::Waiting {
        return None;
    }
    if state.facts.upgrade.as_ref().is_some_and(UpgradePlan::is_held) && !state.was_committed {
        return None;
    }
    let command = state.facts.release_command()?;
    let Summary { number, opened, .. } = *summary;
    Some(Upgrade { number, commit: summary.commit.clone(), at: opened, command, went_live: summary.went_live() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backup::{PointCounts, PointLabel},
        model::{DeploymentId, ReleaseId, Slot, Trigger},
    };

    fn made(number: u32, second: i64) -> Summary {
        let at = Timestamp::from_second(second).unwrap();
        Summary {
            deployment: DeploymentId::new(at),
            trigger: Trigger::Push { by: "ann".parse().unwrap() },
            branch: "main".parse().unwrap(),
            commit: "a".repeat(40).parse().unwrap(),
            release: ReleaseId::new(at),
            number: ReleaseNumber(number),
            build: None,
            tag: None,
            slot: Slot::Blue,
            opened: at,
            ended: Some(at),
            outcome: None,
            cleared: false,
            dry_run: false,
            interruption: None,
            configuration: None,
            pillar: None,
            previous: None,
            ending: None,
        }
    }

    fn point(of: &Summary, number: u32, state: PointState) -> PointInfo {
        let label = PointLabel {
            project: "shop".parse().unwrap(),
            environment: "production".parse().unwrap(),
            release: Some(of.release),
            number: Some(ReleaseNumber(number)),
            commit: Some(of.commit.clone()),
            by: "ann".parse().unwrap(),
            reason: String::from("requested"),
            databases: Vec::new(),
            custom: false,
            sessions: Vec::new(),
            configuration: None,
        };
        let (id, counts) = (String::from("x"), PointCounts::default());
        PointInfo { id, taken: Some(5), label: Some(label), state, counts, skipped: Vec::new(), runs: Vec::new() }
    }

    #[test]
    fn restore_point_belongs_to_the_release_that_was_live() {
        let (first, second) = (made(1, 1000), made(2, 2000));
        assert!(belongs_to(&point(&first, 1, PointState::Unverified), &first));
        assert!(!belongs_to(&point(&second, 2, PointState::Unverified), &first));
        // The release went live again as v3, and has other data since then.
        assert!(!belongs_to(&point(&first, 3, PointState::Unverified), &first));
        assert!(is_usable(&point(&first, 1, PointState::Verified(7))));
        assert!(!is_usable(&point(&first, 1, PointState::Damaged(1, 7))));
        assert!(!is_usable(&point(&first, 1, PointState::Unusable(String::from("version 99")))));
    }
}
