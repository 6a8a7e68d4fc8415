//! The context of a step: the deployment's specification, the subsystems, and what earlier steps found out.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    facts::Facts,
    failure::Failure,
    observe::{Announcement, News, Observers},
    permits::Permits,
    scans::DriftScans,
    slots::Slots,
    spare::SpareTree,
    state_files::BuildNumbers,
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
        DeploymentSpec, EnvId, Environment, HealthRecord, Launch, LimitClass, Phase, ReleaseId, Role, Supervision, UserNumbers,
    },
    proxy::{Connector, Proxy, Retired, Route, RouteState, RouteTarget, TcpConnector},
    release::{self, SigningKey},
    remote::DeliverableStores,
    runtime::Runtime,
};

/// The subsystems and limits that all deployments of this server share.
pub struct Services {
    /// The server's directory.
    pub root: Root,
    /// The server file.
    pub config: ServerConfig,
    /// The key that signs deliverables made here.
    pub signing: SigningKey,
    /// Starts workers through the keeper.
    pub launcher: Launcher,
    /// The git repositories.
    pub repositories: Repositories,
    /// Opens the remotes that deliverables are pulled from.
    pub places: DeliverableStores,
    /// The application processes.
    pub runtime: Runtime,
    /// The HTTP proxy.
    pub proxy: Proxy,
    /// The numbers of environments' users, if each environment has users of its own.
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
    /// Told of every ending and milestone.
    pub observers: Observers,
    /// The proxy's route to each environment.
    pub routes: Mutex<HashMap<EnvId, Arc<Route>>>,
}

/// The number of threads that a worker uses for the files of a release.
const THREADS: usize = 2;

impl Services {
    /// Returns the context in which a release of `environment` is made, brought or installed.
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

    /// Returns the route to an environment. The first call makes it and adds the environment's hosts.
    pub fn route(&self, environment: &Environment) -> Arc<Route> {
        let mut routes = self.routes.lock();
        let route = routes.entry(environment.id).or_insert_with(|| Route::new(&environment.title()));
        for host in environment.hosts(self.config.domain.as_str()) {
            if let Err(error) = self.proxy.set_route(&host, route.clone()) {
                tracing::error!(%host, %error, "failed to add route for host");
            }
        }
        route.clone()
    }

    /// Returns the web processes of an environment as an upstream of the proxy.
    pub fn target(&self, environment: &Environment, addresses: Vec<SocketAddr>) -> RouteTarget {
        RouteTarget::new(addresses, self.connector(environment))
    }

    /// Returns the connector to the processes of an environment, and to no others.
    pub fn connector(&self, environment: &Environment) -> Arc<dyn Connector> {
        Arc::new(TcpConnector::new(self.users.map(|users| users.run(environment.id))))
    }

    /// Returns the environment that has the host name, if it is not this one.
    pub fn taken(&self, environment: &Environment, host: &str) -> Option<String> {
        let own = self.route(environment);
        self.proxy.route(host).filter(|route| !Arc::ptr_eq(route, &own)).map(|route| route.name().to_owned())
    }

    /// Removes the route to an environment, with all its hosts.
    pub fn close_route(&self, environment: EnvId) {
        let Some(route) = self.routes.lock().remove(&environment) else { return };
        for (host, _) in self.proxy.routes().into_iter().filter(|(_, other)| Arc::ptr_eq(other, &route)) {
            self.proxy.remove_route(&host);
        }
        // A connection that still holds the route must not reach a port that is given to another environment.
        drop(route.set(RouteState::Empty));
    }

    /// Routes the domains of a recipe to an environment, and removes every other domain but its own hosts. A domain that another
    /// environment has taken meanwhile stays there.
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
                tracing::error!(%domain, %error, "failed to add route for domain");
            }
        }
    }
}

/// A deployment as its steps see it: specification, facts and memory. [`Pipeline::revive`](super::Pipeline) is the only place that
/// makes one, for a new deployment as well as for one that a journal describes.
pub struct Deployment {
    /// Everything that was decided before the first step.
    pub spec: DeploymentSpec,
    /// The results of the steps so far.
    pub facts: Facts,
    /// The environment as it is registered now, with the mode of the specification.
    pub environment: Environment,
    /// The subsystems.
    pub services: Arc<Services>,
    /// The environment's paths.
    pub paths: EnvironmentPaths,
    /// The output for the pusher.
    pub transcript: Transcript,
    /// The handles of this process.
    pub memory: Memory,
}

/// The state of a deployment in this process only. It is never journalled; a revived deployment gets a new one.
pub struct Memory {
    /// Cancelled when a person wants the deployment to end.
    pub cancelled: CancellationToken,
    /// The settings of the previous release.
    pub previous_settings: Option<Settings>,
    /// The health record of the release in the environment of this server that built it. It is kept with the release.
    pub sibling_record: Option<HealthRecord>,
    /// The use of the environment's slots.
    pub(super) slots: Slots,
    /// The upstream that the switch replaced, to be drained. Its requests do not survive the server either.
    pub retired: Option<Retired>,
    /// The route's state before the switch, if visitors were shown a page of larder's own.
    pub replaced_state: Option<RouteState>,
    /// A copy of a tree that the installation may begin with.
    pub(super) spare: SpareTree,
    /// The number of entries of the installed tree, once it is installed.
    pub entries: u64,
}

impl Deployment {
    /// Returns the project's settings for this environment; the defaults before they are read.
    pub fn settings(&self) -> Settings {
        self.facts.settings.clone().unwrap_or_default()
    }

    /// Returns the settings of the previous release; the defaults if nothing was live.
    pub fn previous_settings(&self) -> Settings {
        self.memory.previous_settings.clone().unwrap_or_default()
    }

    /// Returns the time limit of a step of `phase`.
    pub fn time_limit(&self, phase: Phase) -> Duration {
        self.facts.settings.as_ref().map_or(Duration::from_secs(600), |settings| settings.timeout(phase).get())
    }

    /// Returns a worker for this deployment that ends with its step.
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

    /// Fails while `current` names the release that this deployment has brought: the undo of the switch did not get through, and
    /// what `current` names must stay complete.
    pub fn is_not_current(&self) -> Result<(), Failure> {
        let release = self.spec.release.to_string();
        match std::fs::read_link(self.paths.current()) {
            Ok(target) if self.previous_release() != Some(self.spec.release) && target.as_os_str() == release.as_str() => {
                Err(Failure::blameless(format!("`current` still names {release}, which therefore stays")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the release that was live when the deployment began.
    pub fn previous_release(&self) -> Option<ReleaseId> {
        self.spec.previous.as_ref().map(|live| live.release)
    }

    /// Returns an announcement about this deployment. The id must be the same for every delivery of the same event.
    pub fn announcement(&self, id: &str, news: News) -> Announcement {
        Announcement {
            id: format!("{}.{id}", self.spec.id),
            at: jiff::Timestamp::now(),
            environment: self.environment.title(),
            deployment: self.spec.id,
            news,
        }
    }
}
