//! The context of a step: the deployment's specification, the subsystems, and the results of earlier steps.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    facts::Facts,
    failure::Failure,
    live_app::LiveApp,
    observe::{Announcement, News, Observers},
    permits::Permits,
    pillar_state::{LoadedConfiguration, of_pillar, sample_level, secret_files, without_build_secrets},
    scans::DriftScans,
    slots::Slots,
    spare::{RenewedTree, SpareTree},
    state_files::BuildNumbers,
    template_job::template_job,
    transcript::Transcript,
};
use crate::{
    config::{ServerConfig, Settings},
    git::Repositories,
    host::{
        launch::Launcher,
        root::{EnvironmentPaths, Root},
    },
    model::{
        ConfigVariables, DeploymentSpec, EnvId, Environment, HealthRecord, Launch, LimitClass, Phase, ReleaseId, Role,
        Supervision, UserNumbers,
    },
    notify::Notifier,
    proxy::{Connector, Hold, Proxy, Retired, Route, RouteState, RouteTarget, TcpConnector},
    release::{self, SigningKey},
    remote::{
        DeliverableStores,
        ssh::{DeployKey, DeployKeyStore},
    },
    runtime::{Runtime, SecretFiles, TemplateJob},
    snapshots::SnapshotStore,
};

/// The subsystems and limits that all deployments of this server share.
pub struct Services {
    /// The paths below the server's root directory.
    pub root: Root,
    /// The server file.
    pub config: ServerConfig,
    /// The key that signs the deliverables of this server.
    pub signing: SigningKey,
    /// The launcher, which starts workers through the keeper.
    pub launcher: Launcher,
    /// The git repositories.
    pub repositories: Repositories,
    /// The remotes from which deliverables are pulled, and to which they are published.
    pub places: DeliverableStores,
    /// The deploy keys of projects.
    pub deploy_keys: DeployKeyStore,
    /// The application processes.
    pub runtime: Runtime,
    /// The HTTP proxy.
    pub proxy: Proxy,
    /// The configuration snapshots.
    pub snapshots: SnapshotStore,
    /// The numbers of the environments' users; `None` if all environments run as the same user.
    pub users: Option<UserNumbers>,
    /// The address of the SSH server.
    pub ssh: SocketAddr,
    /// The address of the proxy, for smoke checks.
    pub http: SocketAddr,
    /// The limits on concurrent heavy work.
    pub permits: Permits,
    /// The last build number of each project.
    pub numbers: BuildNumbers,
    /// The scans for drift.
    pub drift: DriftScans,
    /// The observers, which are notified of endings and milestones.
    pub observers: Observers,
    /// The notifications.
    pub notifier: Notifier,
    /// The proxy's route to each environment.
    pub routes: Mutex<HashMap<EnvId, Arc<Route>>>,
}

/// The number of threads that a worker uses for the files of a release.
const THREADS: usize = 2;

impl Services {
    /// Returns the context for a worker that processes a release of `environment`.
    pub fn release_context<'s>(&'s self, environment: &Environment, paths: &'s EnvironmentPaths) -> release::WorkerContext<'s> {
        release::WorkerContext {
            launcher: &self.launcher,
            project: environment.project_id,
            environment: environment.id,
            paths,
            output: None,
            threads: THREADS,
            signing: &self.signing,
            archive_limit: self.config.limits.archive_bytes.bytes(),
        }
    }

    /// Returns the route to an environment. The first call creates the route; every call adds the environment's hosts to the
    /// proxy.
    pub fn route(&self, environment: &Environment) -> Arc<Route> {
        let mut routes = self.routes.lock();
        let route = routes.entry(environment.id).or_insert_with(|| Route::new(&environment.title()));
        for host in environment.hosts(self.config.domain.as_str()) {
            if let Err(error) = self.proxy.set_route(&host, route.clone()) {
                tracing::error!(%host, %error, "cannot add a route for a host");
            }
        }
        route.clone()
    }

    /// Returns a proxy upstream with the addresses of an environment's web processes.
    pub fn target(&self, environment: &Environment, addresses: Vec<SocketAddr>) -> RouteTarget {
        RouteTarget::new(addresses, self.connector(environment))
    }

    /// Returns the connector to the processes of an environment. If environments have users of their own, the connector rejects
    /// the processes of other users.
    pub fn connector(&self, environment: &Environment) -> Arc<dyn Connector> {
        Arc::new(TcpConnector::new(self.users.map(|users| users.run(environment.id))))
    }

    /// Returns the name of another environment that has the host name `host`, if there is such an environment.
    pub fn taken(&self, environment: &Environment, host: &str) -> Option<String> {
        let own = self.route(environment);
        self.proxy.route(host).filter(|route| !Arc::ptr_eq(route, &own)).map(|route| route.name().to_owned())
    }

    /// Removes the route to an environment and all hosts of this route.
    pub fn close_route(&self, environment: EnvId) {
        let Some(route) = self.routes.lock().remove(&environment) else { return };
        for (host, _) in self.proxy.routes().into_iter().filter(|(_, other)| Arc::ptr_eq(other, &route)) {
            self.proxy.remove_route(&host);
        }
        // A connection that still holds the route must not reach a port that another environment uses later.
        drop(route.set(RouteState::Empty));
    }

    /// Adds the domains of a recipe to an environment's route. Removes all other domains from the route, except the environment's
    /// own hosts. A domain that another environment has taken meanwhile keeps its route.
    pub fn open_domains(&self, environment: &Environment, settings: &Settings) {
        let route = self.route(environment);
        let own = environment.hosts(self.config.domain.as_str());
        let named = |host: &str| {
            let domains = settings.domains.iter().map(|domain| domain.as_str());
            own.iter().map(String::as_str).chain(domains).any(|named| named.eq_ignore_ascii_case(host))
        };
        for (host, _) in self.proxy.routes().into_iter().filter(|(host, other)| Arc::ptr_eq(other, &route) && !named(host)) {
            self.proxy.remove_route(&host);
        }
        for domain in &settings.domains {
            if let Some(other) = self.taken(environment, domain.as_str()) {
                tracing::error!(%domain, other, "domain belongs to another environment");
            } else if let Err(error) = self.proxy.set_route(domain.as_str(), route.clone()) {
                tracing::error!(%domain, %error, "cannot add a route for a domain");
            }
        }
    }
}

/// A deployment as passed to its steps: specification, facts and memory. [`Pipeline::revive`](super::Pipeline) is the only
/// function that creates a `Deployment`, both for a new deployment and for a deployment that a journal describes.
pub struct Deployment {
    /// The specification, which contains all decisions that precede the first step.
    pub spec: DeploymentSpec,
    /// The results of the steps so far.
    pub facts: Facts,
    /// The environment as registered now, with the mode of the specification.
    pub environment: Environment,
    /// The subsystems.
    pub services: Arc<Services>,
    /// The environment's paths.
    pub paths: EnvironmentPaths,
    /// The output for the pusher.
    pub transcript: Transcript,
    /// The state that exists only in this process.
    pub memory: Memory,
}

/// The state of a deployment that exists only in this process. The state is never journalled; a revived deployment starts with
/// new state.
pub struct Memory {
    /// The token that cancels the deployment.
    pub cancelled: CancellationToken,
    /// The settings of the previous release.
    pub previous_settings: Option<Settings>,
    /// The health record of the release, if the release comes from another environment of the project. The record is stored with the
    /// release.
    pub sibling_record: Option<HealthRecord>,
    /// The use of the environment's slots.
    pub(super) slots: Slots,
    /// The upstream that the switch replaced, for the drain. The field is not journalled, because the requests of the upstream
    /// end with the server.
    pub retired: Option<Retired>,
    /// The route's state before the switch, if visitors were shown a page of larder's own.
    pub replaced_state: Option<RouteState>,
    /// The hold of an upgrade, and the moment at which the hold began. The field is not journalled, because the waiting requests end with
    /// the server.
    pub hold: Option<(Hold, Instant)>,
    /// True if the deployment has passed its commit point, even if the commit was undone since. Visitors may have written data from then on.
    pub committed: bool,
    /// The configuration, or the reason why it cannot be used.
    pub(super) configuration: Result<LoadedConfiguration, Failure>,
    /// The deploy key of the project, for deployments that build; or the reason why the key cannot be used.
    pub(super) deploy_key: Result<Option<DeployKey>, Failure>,
    /// The live release and its data.
    pub(super) live_app: Arc<dyn LiveApp>,
    /// The store of the spare tree, from which the installation may start.
    pub(super) spare: SpareTree,
    /// The last renewal of the modification times of a release's files, so that a renewal is not repeated.
    pub(super) renewed: RenewedTree,
    /// The number of entries of the installed tree; 0 before the installation.
    pub entries: u64,
    /// The maximum time for which the deployment waits for space on a full disk.
    pub space_timeout: Duration,
}

impl Deployment {
    /// Returns the project's settings for this environment, or the defaults before the recipe is read.
    pub fn settings(&self) -> Settings {
        self.facts.settings.clone().unwrap_or_default()
    }

    /// Returns the variables of the pillar and of the configuration, which takes precedence. The error is the reason why the configuration
    /// cannot be used; no process must be started then.
    pub fn configuration(&self) -> Result<&ConfigVariables, Failure> {
        self.memory.configuration.as_ref().map(|loaded| &loaded.variables).map_err(Clone::clone)
    }

    /// Returns the variables of processes and commands: without those that only builds get.
    pub fn run_configuration(&self) -> Result<ConfigVariables, Failure> {
        Ok(without_build_secrets(self.configuration()?, &self.settings()))
    }

    /// Returns the values of the pillar that processes get as files.
    pub fn secret_files(&self) -> Result<SecretFiles, Failure> {
        let loaded = self.memory.configuration.as_ref().map_err(Clone::clone)?;
        secret_files(&loaded.values, &self.settings()).map_err(|error| of_pillar(&error))
    }

    /// Returns the values that the release must not contain: those that only builds get, and the encrypted values of the pillar.
    pub fn searched_secrets(&self) -> Result<ConfigVariables, Failure> {
        let loaded = self.memory.configuration.as_ref().map_err(Clone::clone)?;
        Ok(loaded.searched(&self.settings(), self.deploy_key()?))
    }

    /// Returns the deploy key of the project; `None` without a key, and in a deployment that does not build.
    pub fn deploy_key(&self) -> Result<Option<&DeployKey>, Failure> {
        self.memory.deploy_key.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }

    /// Computes the values of the pillar after the sample of the project has become known.
    pub fn evaluate_pillar(&mut self) -> Result<(), Failure> {
        let key = || self.services.snapshots.project_key(self.environment.project_id);
        let sample = sample_level(self.facts.pillar_sample.as_deref(), key).map_err(|error| of_pillar(&error))?;
        let loaded = self.memory.configuration.clone()?.evaluated(sample)?;
        self.transcript.redact_with(loaded.redactor(self.memory.deploy_key.as_ref().ok().and_then(Option::as_ref)));
        self.memory.configuration = Ok(loaded);
        Ok(())
    }

    /// Returns the templates of the release with their values; `None` without templates.
    pub fn templates(&self) -> Result<Option<TemplateJob>, Failure> {
        let loaded = self.memory.configuration.as_ref().map_err(Clone::clone)?;
        Ok(template_job(&self.environment, self.services.config.domain.as_str(), &self.facts, loaded, &self.spec.live()))
    }

    /// Returns the settings of the previous release, or the defaults if no release was live or its settings cannot be read.
    pub fn previous_settings(&self) -> Settings {
        self.memory.previous_settings.clone().unwrap_or_default()
    }

    /// Returns the time limit of a step of `phase`.
    pub fn time_limit(&self, phase: Phase) -> Duration {
        self.facts.settings.as_ref().map_or(Duration::from_secs(600), |settings| settings.timeout(phase).get())
    }

    /// Returns the request to start a worker for this deployment. The worker is not restarted when it exits.
    pub fn worker(&self, role: Role, limits: LimitClass) -> Launch {
        Launch {
            role,
            project: self.environment.project_id,
            environment: Some(self.environment.id),
            release: Some(self.spec.release),
            slot: Some(self.spec.slot),
            limits,
            supervision: Supervision::Once,
        }
    }

    /// Returns an error if `current` names the release of this deployment, and this release was not live when the deployment began. The
    /// error means that the undo of the switch has failed. The caller must then not remove any part of the release.
    pub fn is_not_current(&self) -> Result<(), Failure> {
        let release = self.spec.release.to_string();
        match std::fs::read_link(self.paths.current()) {
            Ok(target) if self.previous_release() != Some(self.spec.release) && target.as_os_str() == release.as_str() => {
                Err(Failure::blameless(format!("cannot remove release {release}: `current` still names this release")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the release that was live when the deployment began.
    pub fn previous_release(&self) -> Option<ReleaseId> {
        self.spec.previous.as_ref().map(|live| live.release)
    }

    /// Returns an announcement about this deployment. `id` must be the same for every delivery of one event.
    pub fn announcement(&self, id: &str, news: News) -> Announcement {
        Announcement {
            id: format!("{}.{id}", self.spec.id),
            at: jiff::Timestamp::now(),
            environment: self.environment.title(),
            deployment: Some(self.spec.id),
            news,
        }
    }
}
