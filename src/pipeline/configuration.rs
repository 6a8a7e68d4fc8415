//! The configuration of an environment: the choice of the snapshot for a deployment, and changes of the configuration.
//!
//! Live is a release together with a snapshot, as the journal of the deployment that went live records them. The next deployment uses the
//! live snapshot, unless a snapshot was staged after it. A change of the configuration is a deployment of the live release with a new
//! snapshot; until this deployment has succeeded, the old snapshot stays live.

use std::time::Duration;

use data_encoding::BASE64;

use super::{
    core::Pipeline,
    error::PipelineError,
    failure::Failure,
    points::PointsError,
    queue::{DeployRequest, Goal, Queue},
    state_files::Secrets,
    util::chain,
};
use crate::{
    backup::PointConfiguration,
    config::VariableName,
    host::root::EnvironmentPaths,
    model::{ConfigChange, ConfigVariables, Environment, Live, ReleaseId, SnapshotNumber, SnapshotRef, UserName},
    snapshots::{Snapshot, SnapshotDraft, SnapshotError, StagedSnapshot},
};

/// The time for which a change without a restart waits for the end of a deployment.
const STAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The configuration of an environment.
#[derive(Debug, Clone, Default)]
pub struct EnvironmentConfiguration {
    /// The live release; `None` if nothing is live.
    pub release: Option<Live>,
    /// The snapshot with which the live release runs; `None` without a configuration.
    pub live: Option<SnapshotRef>,
    /// The snapshot that the next deployment uses.
    pub next: Option<SnapshotRef>,
    /// The variables of the snapshot `next`.
    pub variables: ConfigVariables,
}

/// The reason why a change of the configuration was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Another person has changed the same variable meanwhile.
    #[error("{name} was changed meanwhile{by}, in configuration {now} (your change is based on {based})")]
    Conflict {
        /// The variable.
        name: String,
        /// The author of the other change, as a clause.
        by: String,
        /// The configuration that has the other change.
        now: SnapshotNumber,
        /// The configuration that the author of this change has seen.
        based: String,
    },
    /// The configuration has these values already.
    #[error("there is nothing to change: the configuration has these values already")]
    Unchanged,
    /// The snapshot cannot be read or created.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The environment cannot be changed now.
    #[error(transparent)]
    NotNow(#[from] PipelineError),
}

impl ChangeError {
    /// Returns the remedy, as an imperative.
    pub fn hint(&self) -> Option<String> {
        match self {
            ChangeError::Conflict { .. } => Some(String::from(
                "look at the new value with `larder config show`, and repeat the command if your value is right",
            )),
            ChangeError::Snapshot(error) => error.hint(),
            ChangeError::Unchanged | ChangeError::NotNow(_) => None,
        }
    }
}

impl Pipeline {
    /// Returns the configuration of an environment.
    pub fn configuration(&self, environment: &Environment) -> Result<EnvironmentConfiguration, SnapshotError> {
        let paths = self.paths_of(environment);
        let (release, live) = self.queue(environment.id).map(|queue| live_snapshot(&queue)).unwrap_or_default();
        let snapshots = &self.services().snapshots;
        let next = snapshots.head(&paths.configuration(), live.as_ref())?;
        let variables = match &next {
            Some(next) => snapshots.read(&paths.configuration(), next)?.variables,
            None => ConfigVariables::default(),
        };
        Ok(EnvironmentConfiguration { release, live, next, variables })
    }

    /// Returns the configuration variables with which `release` went live last.
    pub fn configuration_of(&self, environment: &Environment, release: ReleaseId) -> Result<ConfigVariables, SnapshotError> {
        let snapshot = self.history(environment.id).of_release(release).and_then(|summary| summary.configuration);
        match snapshot {
            Some(snapshot) => {
                Ok(self.services().snapshots.read(&self.paths_of(environment).configuration(), &snapshot)?.variables)
            }
            None => Ok(ConfigVariables::default()),
        }
    }

    /// Returns the names of the variables that larder has generated for an environment.
    pub fn generated_variables(&self, environment: &Environment) -> std::io::Result<Vec<VariableName>> {
        Ok(Secrets::open(&self.paths_of(environment).secrets())?.names().cloned().collect())
    }

    /// Returns the snapshots of an environment, newest first. A snapshot that cannot be read is the error.
    pub fn configurations(&self, environment: &Environment) -> Result<Vec<(SnapshotRef, Snapshot)>, SnapshotError> {
        let directory = self.paths_of(environment).configuration();
        let snapshots = &self.services().snapshots;
        snapshots.numbers(&directory)?.into_iter().rev().map(|number| snapshots.find(&directory, number)).collect()
    }

    /// Returns the snapshot with a number.
    pub fn configuration_numbered(&self, environment: &Environment, number: SnapshotNumber) -> Result<Snapshot, SnapshotError> {
        let directory = self.paths_of(environment).configuration();
        self.services().snapshots.find(&directory, number).map(|(_, snapshot)| snapshot)
    }

    /// Creates a snapshot that the next deployment uses, without a deployment. Waits for the end of a deployment that is under way, at most 30
    /// seconds.
    pub async fn stage_configuration(
        &self,
        environment: &Environment,
        by: UserName,
        change: &ConfigChange,
        seen: Option<SnapshotRef>,
    ) -> Result<SnapshotRef, ChangeError> {
        let queue = self.queue_of(environment)?;
        let Ok(_work) = tokio::time::timeout(STAGE_TIMEOUT, queue.work.clone().lock_owned()).await else {
            let running = queue.state.lock().running.as_ref().map(|running| running.deployment);
            return Err(queue.busy(running).into());
        };
        let (_, live) = live_snapshot(&queue);
        let snapshot = self.change(environment, live.as_ref(), by, change, seen)?;
        let staged = StagedSnapshot { snapshot, live: live.map(|live| live.number) };
        self.services().snapshots.stage(&self.paths_of(environment).configuration(), &staged)?;
        Ok(snapshot)
    }

    /// Creates the snapshot after a change. The caller holds the lock of deployments.
    fn change(
        &self,
        environment: &Environment,
        live: Option<&SnapshotRef>,
        by: UserName,
        change: &ConfigChange,
        seen: Option<SnapshotRef>,
    ) -> Result<SnapshotRef, ChangeError> {
        let directory = self.paths_of(environment).configuration();
        let snapshots = &self.services().snapshots;
        let head = snapshots.head(&directory, live)?;
        let base = head.map(|head| Ok::<_, SnapshotError>((head, snapshots.read(&directory, &head)?.variables))).transpose()?;
        let before = base.as_ref().map(|(_, variables)| variables.clone()).unwrap_or_default();
        if let Some(head) = head.filter(|head| seen.is_none_or(|seen| seen.number != head.number)) {
            let known = match &seen {
                Some(seen) => snapshots.read(&directory, seen)?.variables,
                None => ConfigVariables::default(),
            };
            if let Some(name) = change.conflict(&known, &before) {
                let based =
                    seen.map_or_else(|| String::from("no configuration"), |seen| format!("configuration {}", seen.number));
                let by = self.author(environment, head.number, name).map(|by| format!(" by {by}")).unwrap_or_default();
                return Err(ChangeError::Conflict { name: name.to_owned(), by, now: head.number, based });
            }
        }
        if change.applied(&before) == before {
            return Err(ChangeError::Unchanged);
        }
        Ok(snapshots.create(&directory, SnapshotDraft { by, base, change: change.clone() })?)
    }

    /// Returns the author of the last change of a variable in the snapshot `number` or in the snapshots on which it is based.
    fn author(&self, environment: &Environment, number: SnapshotNumber, name: &str) -> Option<UserName> {
        let mut next = Some(number);
        while let Some(number) = next {
            let snapshot = self.configuration_numbered(environment, number).ok()?;
            if snapshot.set.iter().chain(&snapshot.unset).any(|changed| changed == name) {
                return Some(snapshot.by);
            }
            next = snapshot.based_on.filter(|based_on| *based_on < number);
        }
        None
    }

    /// Returns the snapshot of the live release with its encrypted file, for a restore point. A file that cannot be read does not prevent the
    /// restore point of the data.
    pub(super) fn configuration_for_point(&self, environment: &Environment, live: Option<&Live>) -> Option<PointConfiguration> {
        let snapshot = self.history(environment.id).of_release(live?.release)?.configuration?;
        let bytes = self.services().snapshots.bytes(&self.paths_of(environment).configuration(), snapshot.number);
        let file = bytes.map(|bytes| BASE64.encode(&bytes)).unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::error!(environment = environment.title(), error, "a restore point lacks the configuration");
            String::new()
        });
        Some(PointConfiguration { snapshot, file })
    }

    /// Writes the configuration of a restore point into `config/`, if its file no longer exists there.
    pub async fn put_back_configuration(&self, environment: &Environment, point: String) -> Result<(), PointsError> {
        let label = self.point(environment, point).await?.label;
        let Some(configuration) = label.and_then(|label| label.configuration) else { return Ok(()) };
        let directory = self.paths_of(environment).configuration();
        let snapshots = &self.services().snapshots;
        if configuration.file.is_empty() || snapshots.bytes(&directory, configuration.snapshot.number).is_ok() {
            return Ok(());
        }
        let wrong =
            |why: String| PointsError::refused(format!("cannot restore configuration {}: {why}", configuration.snapshot.number));
        let bytes = BASE64.decode(configuration.file.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        snapshots.put_back(&directory, &configuration.snapshot, &bytes).map_err(|error| wrong(chain(&error)))
    }

    /// Chooses the snapshot of a deployment before its first step, and creates it if the request changes the configuration. The caller holds
    /// the lock of deployments.
    pub(super) fn choose_configuration(&self, queue: &Queue, request: &DeployRequest) -> Result<Option<SnapshotRef>, Failure> {
        let environment = queue.environment();
        let (release, live) = live_snapshot(queue);
        if let Goal::Configure { change, seen } = &request.goal {
            if release.is_none() {
                return Err(Failure::blameless(format!("nothing is live in {}", environment.title()))
                    .hint("change the configuration with --no-restart; the next push uses the configuration"));
            }
            let changed = self.change(&environment, live.as_ref(), request.trigger.by().clone(), change, *seen);
            return changed.map(Some).map_err(|error| hinted(Failure::blameless(chain(&error)), error.hint()));
        }
        if let Some(recorded) = request.recorded {
            let state = queue.state.lock();
            let made = state.history.deployments.iter().find(|summary| summary.deployment == recorded);
            return Ok(made.and_then(|made| made.configuration));
        }
        let head = self.services().snapshots.head(&self.paths_of(&environment).configuration(), live.as_ref());
        head.map_err(|error| unusable(&error))
    }

    /// Returns the variables of a snapshot. The error fails each step that starts a process.
    pub(super) fn load_configuration(
        &self,
        paths: &EnvironmentPaths,
        snapshot: Option<&SnapshotRef>,
    ) -> Result<ConfigVariables, Failure> {
        let Some(snapshot) = snapshot else { return Ok(ConfigVariables::default()) };
        let read = self.services().snapshots.read(&paths.configuration(), snapshot);
        read.map(|snapshot| snapshot.variables).map_err(|error| unusable(&error))
    }

    fn paths_of(&self, environment: &Environment) -> EnvironmentPaths {
        self.services().root.environment(&environment.project, &environment.name)
    }
}

/// Returns the live release, and the snapshot with which it went live.
fn live_snapshot(queue: &Queue) -> (Option<Live>, Option<SnapshotRef>) {
    let state = queue.state.lock();
    let live = state.live.clone();
    let snapshot = live.as_ref().and_then(|live| state.history.of_release(live.release)).and_then(|made| made.configuration);
    (live, snapshot)
}

/// Returns the failure of a deployment whose snapshot cannot be read.
fn unusable(error: &SnapshotError) -> Failure {
    hinted(Failure::host(error), error.hint())
}

fn hinted(failure: Failure, hint: Option<String>) -> Failure {
    hint.into_iter().fold(failure, Failure::hint)
}
