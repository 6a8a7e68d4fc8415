//! The pipeline: all environments of this server with their queues.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    context::{Deployment, Memory, Services},
    disk_state::DiskState,
    error::PipelineError,
    facts::Facts,
    failure::Failure,
    fault,
    history::History,
    journal::{JournalError, JournalState},
    pillar_state::{Pillars, of_pillar},
    queue::{DeployRequest, Queue, Ticket},
    reserve,
    saves::state::SaveWatches,
    transcript::Transcript,
    upkeep::records::Upkeep,
    verdict,
    watch_state::Watch,
};
use crate::{
    backup::OtherSessions,
    config::Settings,
    model::{
        DeploymentSpec, EnvId, Environment, HealthRecord, Live, Mode, Origin, Outcome, ProjectId, ReleaseId, SlotTable,
        StorageKind,
    },
    remote::ssh::DeployKey,
};

/// The checks of a submission, which the start of the deployment repeats, because the deployment may have waited for a long time.
pub trait StartCheck: Send + Sync {
    /// Returns the environment as registered now, or the reason why the deployment must not start.
    fn check(&self, request: &DeployRequest) -> Result<Environment, String>;
}

/// The limits of the disk space of projects.
pub trait ProjectLimits: Send + Sync {
    /// Returns the means by which the kernel limits the project's space; `None` if the kernel enforces no limit.
    fn storage(&self, project: ProjectId) -> Option<StorageKind>;

    /// Returns the limit of a project in bytes; `None` without a limit.
    fn limit(&self, project: ProjectId) -> Option<u64>;

    /// Records a higher limit. The error is the reason as text.
    fn raise(&self, project: ProjectId, to: u64) -> BoxFuture<'_, Result<(), String>>;
}

pub(super) struct PipelineState {
    pub(super) services: Arc<Services>,
    pub(super) queues: Mutex<HashMap<EnvId, Queue>>,
    /// The environments that the starting server has yet to attach.
    pub(super) awaited: Mutex<HashSet<EnvId>>,
    pub(super) upkeep: Upkeep,
    pub(super) disk: DiskState,
    pub(super) watch: Watch,
    pub(super) saves: SaveWatches,
    pub(super) start_check: OnceLock<Arc<dyn StartCheck>>,
    pub(super) limits: OnceLock<Arc<dyn ProjectLimits>>,
    pub(super) tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
    pub(super) pillars: Pillars,
}

/// All deployments of this server; cheap to clone.
#[derive(Clone)]
pub struct Pipeline(pub(super) Arc<PipelineState>);

/// The live application of one environment, as the running deployment sees it.
pub(super) struct LiveHandle {
    pub(super) pipeline: Pipeline,
    pub(super) queue: Queue,
    /// The guard of the restore points' lock, while the deployment or a task of the deployment uses the restore points.
    pub(super) locked: Mutex<Option<Arc<tokio::sync::OwnedMutexGuard<()>>>>,
    /// The sessions of other clients on the databases that were replaced.
    pub(super) sessions: Mutex<Vec<OtherSessions>>,
}

impl Pipeline {
    /// Creates a pipeline without environments; [`Pipeline::attach`] adds them.
    pub fn new(services: Arc<Services>) -> Pipeline {
        Pipeline(Arc::new(PipelineState {
            upkeep: Upkeep::new(&services.config.backup),
            disk: DiskState::default(),
            watch: Watch::default(),
            saves: SaveWatches::default(),
            services,
            queues: Mutex::default(),
            awaited: Mutex::default(),
            start_check: OnceLock::new(),
            limits: OnceLock::new(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            pillars: Pillars::default(),
        }))
    }

    /// Sets the check that runs before each deployment starts. Only the first call has an effect.
    pub fn check_starts(&self, check: Arc<dyn StartCheck>) {
        let _ = self.0.start_check.set(check);
    }

    /// Sets the limits of the disk space of projects. Only the first call has an effect.
    pub fn limit_projects(&self, limits: Arc<dyn ProjectLimits>) {
        let _ = self.0.limits.set(limits);
    }

    /// Returns the subsystems.
    pub fn services(&self) -> &Arc<Services> {
        &self.0.services
    }

    pub(super) fn queue(&self, environment: EnvId) -> Option<Queue> {
        self.0.queues.lock().get(&environment).cloned()
    }

    /// Registers the environments that will be attached. Until an environment is attached, requests for this environment are
    /// refused with [`PipelineError::Recovering`].
    pub fn await_all<'e>(&self, environments: impl IntoIterator<Item = &'e Environment>) {
        self.0.awaited.lock().extend(environments.into_iter().map(|environment| environment.id));
    }

    /// Returns true until an environment is attached after the start of the server.
    pub fn is_recovering(&self, environment: EnvId) -> bool {
        self.0.awaited.lock().contains(&environment)
    }

    /// Returns the queue of an environment, or an error that states why the queue does not exist.
    pub(super) fn queue_of(&self, environment: &Environment) -> Result<Queue, PipelineError> {
        let missing = || match self.is_recovering(environment.id) {
            true => PipelineError::Recovering(environment.title()),
            false => PipelineError::NoEnvironment(environment.title()),
        };
        self.queue(environment.id).ok_or_else(missing)
    }

    /// Waits until no release of an environment is being removed. No release is removed while the caller holds the returned
    /// guard.
    pub async fn settled(&self, environment: EnvId) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        Some(self.queue(environment)?.store.lock_owned().await)
    }

    /// Returns the live release of an environment.
    pub fn live(&self, environment: EnvId) -> Option<Live> {
        self.queue(environment)?.state.lock().live.clone()
    }

    /// Returns the use of an environment's slots.
    pub fn slots(&self, environment: EnvId) -> SlotTable {
        self.queue(environment).map(|queue| queue.slots.table()).unwrap_or_default()
    }

    /// Returns the deployments of an environment, oldest first.
    pub fn history(&self, environment: EnvId) -> History {
        self.queue(environment).map(|queue| queue.state.lock().history.clone()).unwrap_or_default()
    }

    /// Returns the running deployment of an environment, and the deployment that runs next.
    pub fn under_way(&self, environment: EnvId) -> (Option<Ticket>, Option<Ticket>) {
        let Some(queue) = self.queue(environment) else { return (None, None) };
        let state = queue.state.lock();
        (state.running.clone(), state.waiting.front().map(|pending| pending.ticket.clone()))
    }

    /// Returns the facts of the last deployment that made `release` live, or the defaults if no deployment made the release live.
    pub fn facts(&self, environment: &Environment, release: ReleaseId) -> Result<Facts, JournalError> {
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        match self.history(environment.id).of_release(release) {
            Some(summary) => Ok(JournalState::read(&paths.deployment(summary.deployment))?.facts),
            None => Ok(Facts::default()),
        }
    }

    /// Returns the settings with which a live release was deployed, or the defaults if these settings cannot be read.
    pub(super) fn settings_of(&self, environment: &Environment, live: &Live) -> Settings {
        self.facts(environment, live.release).ok().and_then(|facts| facts.settings).unwrap_or_default()
    }

    /// Creates a deployment from its specification and facts: a new deployment, or a deployment that a journal describes. All
    /// values that are neither in the specification nor in the facts are rebuilt here.
    pub(super) fn revive(
        &self,
        queue: &Queue,
        spec: DeploymentSpec,
        facts: Facts,
        transcript: Transcript,
        cancelled: CancellationToken,
    ) -> Deployment {
        let services = self.0.services.clone();
        let environment = Environment { mode: spec.mode, ..queue.environment() };
        let paths = services.root.environment(&environment.project, &environment.name);
        let mut configuration = self.load_configuration(&paths, spec.configuration.as_ref());
        // Before the recipe is read, the sample of the pillar is not known.
        if facts.settings.is_some() {
            let sample = self.sample(&environment, facts.pillar_sample.as_deref()).map_err(|error| of_pillar(&error));
            configuration = configuration.and_then(|loaded| loaded.evaluated(sample?));
        }
        let deploy_key = self.deploy_key(&environment, &spec);
        if let Ok(loaded) = &configuration {
            transcript.redact_with(loaded.redactor(deploy_key.as_ref().ok().and_then(Option::as_ref)));
        }
        let memory = Memory {
            cancelled,
            previous_settings: spec.previous.as_ref().map(|live| self.previous_settings(queue, &environment, live)),
            sibling_record: self.sibling_record(&environment, &spec),
            slots: queue.slots.clone(),
            retired: None,
            replaced_state: None,
            hold: None,
            committed: false,
            configuration,
            deploy_key,
            live_app: Arc::new(LiveHandle {
                pipeline: self.clone(),
                queue: queue.clone(),
                locked: Mutex::default(),
                sessions: Mutex::default(),
            }),
            spare: queue.spare.clone(),
            renewed: queue.renewed.clone(),
            entries: 0,
            space_timeout: fault::space_limit().map_or(reserve::TIMEOUT, Duration::from_millis),
        };
        Deployment { spec, facts, environment, services, paths, transcript, memory }
    }

    /// Returns the deploy key for a deployment that may build. A final environment never builds.
    fn deploy_key(&self, environment: &Environment, spec: &DeploymentSpec) -> Result<Option<DeployKey>, Failure> {
        if spec.mode == Mode::Final {
            return Ok(None);
        }
        let own = self.project_key(environment.project_id).map_err(|error| Failure::host(&error))?;
        self.0.services.deploy_keys.load(environment.project_id, &own).map_err(|error| {
            let hint = error.hint(&environment.project);
            hint.into_iter().fold(Failure::host(&error), Failure::hint)
        })
    }

    /// Returns the settings of the previous release. This function reads `queue` and not the map of queues, because the map lacks
    /// the queue of an environment that is being recovered.
    fn previous_settings(&self, queue: &Queue, environment: &Environment, live: &Live) -> Settings {
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        let made = queue.state.lock().history.of_release(live.release).map(|summary| summary.deployment);
        let state = made.and_then(|id| JournalState::read(&paths.deployment(id)).ok());
        state.and_then(|state| state.facts.settings).unwrap_or_default()
    }

    /// Returns the health record of a release that comes from another environment of the project; `None` for other origins, or if
    /// there is no record.
    fn sibling_record(&self, environment: &Environment, spec: &DeploymentSpec) -> Option<HealthRecord> {
        let Origin::Environment(name) = &spec.origin else { return None };
        let is_it = |other: &Environment| other.project_id == environment.project_id && other.name == *name;
        let siblings: Vec<_> = self.0.queues.lock().values().map(Queue::environment).collect();
        self.health(&siblings.into_iter().find(is_it)?, spec.release)
    }

    /// Returns the reason that git prints for an outcome; `None` for a success.
    pub fn reason(&self, outcome: &Outcome, environment: EnvId) -> Option<String> {
        verdict::reason(outcome, self.live(environment).as_ref())
    }

    /// Refuses further requests, and waits at most `limit` for the deployments under way. The next server finishes or unwinds the
    /// deployments that are still under way.
    pub async fn drain(&self, limit: Duration) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(limit, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("deployments are still under way; the next server takes them over");
        }
    }
}
