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
    history::Summary,
    journal::JournalState,
    pillar_state::{LoadedConfiguration, effective, secret_files, without_build_secrets},
    points::PointsError,
    queue::{DeployRequest, Goal, PillarGoal, Queue},
    state_files::Secrets,
    util::chain,
};
use crate::{
    backup::PointConfiguration,
    config::VariableName,
    host::root::EnvironmentPaths,
    model::{CommitId, ConfigChange, ConfigVariables, Environment, Live, ReleaseId, SnapshotNumber, SnapshotRef, UserName},
    runtime::SecretFiles,
    snapshots::{PillarContent, Snapshot, SnapshotDraft, SnapshotError, StagedSnapshot},
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
    /// The variables of the snapshot `next`, without those of the pillar.
    pub variables: ConfigVariables,
    /// The values of the pillar in the snapshot `next`.
    pub pillar: Option<PillarContent>,
}

/// The configuration that was chosen for a deployment.
#[derive(Debug, Clone, Default)]
pub(super) struct ChosenConfiguration {
    /// The snapshot; `None` without a configuration.
    pub(super) snapshot: Option<SnapshotRef>,
    /// The commit of the pillar in the snapshot.
    pub(super) pillar: Option<CommitId>,
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
        let (variables, pillar) = match &next {
            Some(next) => {
                let snapshot = snapshots.read(&paths.configuration(), next)?;
                (snapshot.variables, snapshot.pillar)
            }
            None => Default::default(),
        };
        Ok(EnvironmentConfiguration { release, live, next, variables, pillar })
    }

    /// Returns the variables of the pillar and of the configuration with which `release` went live last, without those that only builds get.
    pub fn configuration_of(&self, environment: &Environment, release: ReleaseId) -> Result<ConfigVariables, SnapshotError> {
        self.secrets_of(environment, release).map(|(variables, _)| variables)
    }

    /// Returns the variables and the secret files with which `release` went live last.
    pub fn secrets_of(
        &self,
        environment: &Environment,
        release: ReleaseId,
    ) -> Result<(ConfigVariables, SecretFiles), SnapshotError> {
        let Some(summary) = self.history(environment.id).of_release(release).cloned() else { return Ok(Default::default()) };
        let paths = self.paths_of(environment);
        let snapshot = summary.configuration.map(|snapshot| self.services().snapshots.read(&paths.configuration(), &snapshot));
        let snapshot = snapshot.transpose()?;
        let number = summary.configuration.map_or(SnapshotNumber(0), |snapshot| snapshot.number);
        let wrong = |why: String| SnapshotError::Content { number, why };
        let state = JournalState::read(&paths.deployment(summary.deployment)).map_err(|error| wrong(chain(&error)))?;
        let own = snapshot.as_ref().map(|snapshot| snapshot.variables.clone()).unwrap_or_default();
        let pillar = snapshot.as_ref().and_then(|snapshot| snapshot.pillar.as_ref());
        let sample = self.sample(environment, state.facts.pillar_sample.as_deref()).map_err(|error| wrong(error.to_string()))?;
        let evaluated = effective(&own, pillar, sample.as_ref());
        let (variables, values) = evaluated.map_err(|error| wrong(error.to_string()))?;
        let settings = state.facts.settings.unwrap_or_default();
        let files = secret_files(&values.tree, &settings).map_err(|error| wrong(error.to_string()))?;
        Ok((without_build_secrets(&variables, &settings), files))
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

    /// Returns the variables of the snapshot with a number, with those of its pillar. If the pillar needs values that the sample of the live
    /// release no longer has, only the variables of `larder config` are returned.
    pub fn variables_numbered(
        &self,
        environment: &Environment,
        number: SnapshotNumber,
    ) -> Result<ConfigVariables, SnapshotError> {
        let snapshot = self.configuration_numbered(environment, number)?;
        let live = self.live(environment.id);
        let facts = live.and_then(|live| self.facts(environment, live.release).ok()).unwrap_or_default();
        let sample = self.sample(environment, facts.pillar_sample.as_deref());
        let all = sample.and_then(|sample| effective(&snapshot.variables, snapshot.pillar.as_ref(), sample.as_ref()));
        Ok(all.map_or(snapshot.variables, |(variables, _)| variables))
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
        let base = self.base(environment, live.as_ref())?;
        let pillar = base.as_ref().and_then(|(_, base)| base.pillar.clone());
        let snapshot = self.change(environment, base, by, change, seen, pillar)?;
        let staged = StagedSnapshot { snapshot, live: live.map(|live| live.number) };
        self.services().snapshots.stage(&self.paths_of(environment).configuration(), &staged)?;
        Ok(snapshot)
    }

    /// Returns the snapshot on which the next deployment is based.
    fn base(
        &self,
        environment: &Environment,
        live: Option<&SnapshotRef>,
    ) -> Result<Option<(SnapshotRef, Snapshot)>, SnapshotError> {
        let directory = self.paths_of(environment).configuration();
        let snapshots = &self.services().snapshots;
        let head = snapshots.head(&directory, live)?;
        head.map(|head| Ok((head, snapshots.read(&directory, &head)?))).transpose()
    }

    /// Creates the snapshot after a change of `base`. The caller holds the lock of deployments.
    fn change(
        &self,
        environment: &Environment,
        base: Option<(SnapshotRef, Snapshot)>,
        by: UserName,
        change: &ConfigChange,
        seen: Option<SnapshotRef>,
        pillar: Option<PillarContent>,
    ) -> Result<SnapshotRef, ChangeError> {
        let directory = self.paths_of(environment).configuration();
        let snapshots = &self.services().snapshots;
        let before = base.as_ref().map(|(_, base)| base.variables.clone()).unwrap_or_default();
        let head = base.as_ref().map(|(head, _)| *head);
        if let Some(head) = head.filter(|head| seen.is_none_or(|seen| seen.number != head.number)) {
            let known = match &seen {
                Some(seen) => snapshots.read(&directory, seen)?.variables,
                None => ConfigVariables::default(),
            };
            if let Some(name) = change.conflict(&known, &before) {
                let based =
                    seen.map_or_else(|| String::from("no configuration"), |seen| format!("configuration {}", seen.number));
                let by =
                    self.configuration_author(environment, head.number, name).map(|by| format!(" by {by}")).unwrap_or_default();
                return Err(ChangeError::Conflict { name: name.to_owned(), by, now: head.number, based });
            }
        }
        let has_same_pillar = base.as_ref().and_then(|(_, base)| base.pillar.as_ref()) == pillar.as_ref();
        if change.applied(&before) == before && has_same_pillar {
            return Err(ChangeError::Unchanged);
        }
        let base = base.map(|(head, _)| (head, before));
        Ok(snapshots.create(&directory, SnapshotDraft { by, base, change: change.clone(), pillar })?)
    }

    /// Returns the author of the last change of a variable in the snapshot `number` or in the snapshots on which it is based.
    pub fn configuration_author(&self, environment: &Environment, number: SnapshotNumber, name: &str) -> Option<UserName> {
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

    /// Chooses the snapshot of a deployment before its first step, and creates it if the request changes the configuration, or if the pillar
    /// has newer values. The caller holds the lock of deployments.
    pub(super) async fn choose_configuration(
        &self,
        queue: &Queue,
        request: &DeployRequest,
    ) -> Result<ChosenConfiguration, Failure> {
        let environment = queue.environment();
        if let Some(recorded) = request.recorded {
            let state = queue.state.lock();
            let made = state.history.deployments.iter().find(|summary| summary.deployment == recorded);
            let chosen = |made: &Summary| ChosenConfiguration { snapshot: made.configuration, pillar: made.pillar.clone() };
            return Ok(made.map(chosen).unwrap_or_default());
        }
        let (release, live) = live_snapshot(queue);
        let base = self.base(&environment, live.as_ref()).map_err(|error| unusable(&error))?;
        let (change, seen, goal) = match &request.goal {
            Goal::Configure { change, seen, pillar } => (change.clone(), *seen, pillar.clone()),
            _ => (ConfigChange::default(), base.as_ref().map(|(head, _)| *head), PillarGoal::Usual),
        };
        let is_change = matches!(request.goal, Goal::Configure { .. });
        if is_change && release.is_none() {
            return Err(Failure::blameless(format!("nothing is live in {}", environment.title()))
                .hint("change the configuration with --no-restart; the next push uses the configuration"));
        }
        let pillar = self.choose_pillar(queue, &goal, base.as_ref().map(|(_, base)| base)).await?;
        let commit = pillar.as_ref().map(|pillar| pillar.commit.clone());
        let head = base.as_ref().map(|(head, _)| *head);
        match self.change(&environment, base, request.trigger.by().clone(), &change, seen, pillar) {
            Ok(snapshot) => Ok(ChosenConfiguration { snapshot: Some(snapshot), pillar: commit }),
            // Another person has made the same change meanwhile, so that nothing is left to do.
            Err(ChangeError::Unchanged) if !is_change || goal != PillarGoal::Usual => {
                Ok(ChosenConfiguration { snapshot: head, pillar: commit })
            }
            Err(ChangeError::Unchanged) if head != live => Ok(ChosenConfiguration { snapshot: head, pillar: commit }),
            Err(error) => Err(hinted(Failure::blameless(chain(&error)), error.hint())),
        }
    }

    /// Returns the configuration of a snapshot, before the values of its pillar are computed. The error fails each step that starts a process.
    pub(super) fn load_configuration(
        &self,
        paths: &EnvironmentPaths,
        snapshot: Option<&SnapshotRef>,
    ) -> Result<LoadedConfiguration, Failure> {
        let Some(snapshot) = snapshot else { return Ok(LoadedConfiguration::default()) };
        let read = self.services().snapshots.read(&paths.configuration(), snapshot);
        read.map(LoadedConfiguration::new).map_err(|error| unusable(&error))
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
