//! What a step has at hand: the order, the trades, and what earlier steps found out.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{drift::DriftScans, facts::Facts, lane::Spare, state_files::BuildNumbers, step::Failure, transcript::Transcript};
use crate::{
    config::{ServerConfig, Settings},
    git::Repositories,
    host::{
        launch::Launcher,
        root::{EnvironmentPaths, Root},
    },
    model::{
        BranchName, CommitId, DeploymentId, EnvId, Environment, Event, HealthRecord, Launch, LimitClass, Live, Origin, Phase,
        ReleaseId, ReleaseNumber, Role, Slot, Supervision, Trigger, UserNumbers,
    },
    proxy::{Connector, Proxy, Retired, Route, State, Target, TcpConnector},
    release::{self, SigningKey},
    remote::DeliverableStores,
    runtime::Runtime,
};

/// The trades and limits that all deployments of this server share.
pub struct Services {
    /// The server's directory.
    pub root: Root,
    /// The server file.
    pub config: ServerConfig,
    /// Signs what is made here.
    pub signing: SigningKey,
    /// Starts workers.
    pub launcher: Launcher,
    /// Repositories.
    pub repositories: Repositories,
    /// Opens the places that deliverables are pulled from.
    pub places: DeliverableStores,
    /// Application processes.
    pub runtime: Runtime,
    /// The HTTP front door.
    pub proxy: Proxy,
    /// The numbers of environments' users, where each has users of its own.
    pub users: Option<UserNumbers>,
    /// Where pushes arrive.
    pub ssh: SocketAddr,
    /// Where the front door listens, for smoke checks.
    pub http: SocketAddr,
    /// One permit for each build that may run at a time on this machine.
    pub builds: Arc<Semaphore>,
    /// The last build number of each project.
    pub numbers: BuildNumbers,
    /// The scans for drift.
    pub drift: DriftScans,
    /// The way in to each environment.
    pub routes: Mutex<HashMap<EnvId, Arc<Route>>>,
}

/// How many threads a worker uses for the files of a release.
const THREADS: usize = 2;

impl Services {
    /// For whom and where a release is made, brought or installed.
    pub fn release_context<'s>(&'s self, environment: &Environment, paths: &'s EnvironmentPaths) -> release::Context<'s> {
        release::Context {
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

    /// The way in to an environment; made, and joined to its hosts, when it is first asked for.
    pub fn route(&self, environment: &Environment) -> Arc<Route> {
        let mut routes = self.routes.lock();
        let route = routes.entry(environment.id).or_insert_with(|| Route::new(&environment.title()));
        for host in environment.hosts(self.config.domain.as_str()) {
            if let Err(error) = self.proxy.set_route(&host, route.clone()) {
                tracing::error!(%host, %error, "a host does not lead anywhere");
            }
        }
        route.clone()
    }

    /// The web processes of an environment, as the front door sees them.
    pub fn target(&self, environment: &Environment, addresses: Vec<SocketAddr>) -> Target {
        Target::new(addresses, self.connector(environment))
    }

    /// Connects to the processes of an environment, and to no others.
    pub fn connector(&self, environment: &Environment) -> Arc<dyn Connector> {
        Arc::new(TcpConnector::new(self.users.map(|users| users.run(environment.id))))
    }

    /// Who has `host`, if it is another environment than this one.
    pub fn taken(&self, environment: &Environment, host: &str) -> Option<String> {
        let own = self.route(environment);
        self.proxy.route(host).filter(|route| !Arc::ptr_eq(route, &own)).map(|route| route.name().to_owned())
    }

    /// Forgets the way in to an environment, with every host that leads there.
    pub fn close_route(&self, environment: EnvId) {
        let Some(route) = self.routes.lock().remove(&environment) else { return };
        for (host, _) in self.proxy.routes().into_iter().filter(|(_, other)| Arc::ptr_eq(other, &route)) {
            self.proxy.remove_route(&host);
        }
        // Whoever has it still must not be led to a port that is given to somebody else.
        drop(route.set(State::Empty));
    }

    /// Lets the domains of a recipe lead to an environment, and no others but its own hosts. One that was taken meanwhile stays where
    /// it is.
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
                tracing::error!(%domain, other, "a domain leads to another environment already");
            } else if let Err(error) = self.proxy.set_route(domain.as_str(), route.clone()) {
                tracing::error!(%domain, %error, "a domain does not lead anywhere");
            }
        }
    }
}

/// What was asked for, with everything that is drawn at random or read from the outside. It is fixed, and journalled, before the
/// first step.
#[derive(Debug, Clone)]
pub struct Order {
    /// The deployment.
    pub id: DeploymentId,
    /// Why.
    pub trigger: Trigger,
    /// Where.
    pub environment: Environment,
    /// The branch whose ref is the verdict.
    pub branch: BranchName,
    /// What.
    pub commit: CommitId,
    /// The release to make or to bring.
    pub release: ReleaseId,
    /// Where it comes from.
    pub origin: Origin,
    /// Whether it was installed here before: then its tree, its files and its ref are not this deployment's to remove.
    pub again: bool,
    /// The deployment that made the release live before, if one did.
    pub recorded: Option<DeploymentId>,
    /// Why the promotion policy does not count this time.
    pub overriding: Option<String>,
    /// Its number.
    pub number: ReleaseNumber,
    /// Where it boots.
    pub slot: Slot,
    /// What serves meanwhile.
    pub previous: Option<Live>,
    /// The phases that are only tried; none for a deployment that shall go live.
    pub trial: Vec<Phase>,
}

impl Order {
    /// The phases that are only tried, in words; nothing for a deployment that shall go live.
    pub fn trial(&self) -> Option<String> {
        let phases: Vec<_> = self.trial.iter().map(|phase| phase.as_str()).collect();
        (!phases.is_empty()).then(|| phases.join(", "))
    }

    /// As the journal keeps it.
    pub fn opened(&self, plan: Vec<String>) -> Event {
        Event::Opened {
            deployment: self.id,
            trigger: self.trigger.clone(),
            branch: self.branch.clone(),
            commit: self.commit.clone(),
            release: self.release,
            number: self.number,
            slot: self.slot,
            previous: self.previous.clone(),
            plan,
            origin: self.origin.clone(),
            again: self.again,
            recorded: self.recorded,
            overriding: self.overriding.clone(),
            trial: self.trial.clone(),
        }
    }

    /// From the journal's first event.
    pub fn reopen(event: &Event, environment: Environment) -> Option<Order> {
        let Event::Opened {
            deployment,
            trigger,
            branch,
            commit,
            release,
            number,
            slot,
            previous,
            plan: _,
            origin,
            again,
            recorded,
            overriding,
            trial,
        } = event
        else {
            return None;
        };
        Some(Order {
            id: *deployment,
            trigger: trigger.clone(),
            environment,
            branch: branch.clone(),
            commit: commit.clone(),
            release: *release,
            origin: origin.clone(),
            again: *again,
            recorded: *recorded,
            overriding: overriding.clone(),
            number: *number,
            slot: *slot,
            previous: previous.clone(),
            trial: trial.clone(),
        })
    }
}

/// One journey, as its steps see it.
pub struct Deployment {
    /// What was asked for.
    pub order: Order,
    /// The trades.
    pub services: Arc<Services>,
    /// The environment's paths.
    pub paths: EnvironmentPaths,
    /// What is known so far.
    pub facts: Facts,
    /// What is said about it.
    pub transcript: Transcript,
    /// What the environment that cooked the release says about it, where that is one of this server. It is kept with the release.
    pub proof: Option<HealthRecord>,
    /// What is said about it to other places, signed.
    pub record: Option<Vec<u8>>,
    /// Whether somebody wants it to end.
    pub cancelled: CancellationToken,
    /// What the pusher saw the branch at. Not journalled: it only matters before anything is done.
    pub seen: Option<CommitId>,
    /// Whether the newest release was asked for, and not this one by name. Not journalled: it only matters before anything is done.
    pub newest: bool,
    /// The settings of what serves meanwhile.
    pub before: Option<Settings>,
    /// Tags that came in the same push. Not journalled: `gather.source` makes a fact of those that matter.
    pub tags: Vec<(String, CommitId)>,
    /// Held by whoever still empties the idle slot; the next release boots there.
    pub idle_slot: Arc<tokio::sync::Mutex<()>>,
    /// What the switch replaced, to be drained. It does not survive the server, and need not: neither do the requests.
    pub retired: Option<Retired>,
    /// What visitors read before the switch, where nothing answered them. As little as the above does it survive the server.
    pub read: Option<State>,
    /// A copy of a tree that the installation may begin with.
    pub(super) spare: Spare,
    /// How many entries the installed tree has, once it is installed.
    pub entries: u64,
}

impl Deployment {
    /// A deployment that has not begun.
    pub fn new(
        order: Order,
        services: Arc<Services>,
        transcript: Transcript,
        cancelled: CancellationToken,
        idle_slot: Arc<tokio::sync::Mutex<()>>,
    ) -> Deployment {
        let paths = services.root.environment(&order.environment.project, &order.environment.name);
        Deployment {
            order,
            services,
            paths,
            facts: Facts::default(),
            transcript,
            proof: None,
            record: None,
            cancelled,
            seen: None,
            newest: false,
            tags: Vec::new(),
            before: None,
            idle_slot,
            retired: None,
            read: None,
            spare: Spare::default(),
            entries: 0,
        }
    }

    /// The project's settings for this environment; its defaults before they are read.
    pub fn settings(&self) -> Settings {
        self.facts.settings.clone().unwrap_or_default()
    }

    /// How long a step of `phase` may take.
    pub fn time_limit(&self, phase: Phase) -> Duration {
        self.facts.settings.as_ref().map_or(Duration::from_secs(600), |settings| settings.timeout(phase).get())
    }

    /// A worker for this deployment that ends with its step.
    pub fn worker(&self, role: Role, limits: LimitClass) -> Launch {
        Launch {
            role,
            project: self.order.environment.project_id,
            environment: Some(self.order.environment.id),
            release: Some(self.order.release),
            slot: Some(self.order.slot),
            limits,
            supervision: Supervision::Once,
        }
    }

    /// Fails while `current` names the release that this deployment has brought: an undo of the switch did not get through, and what
    /// is named must stay complete.
    pub fn is_not_current(&self) -> Result<(), Failure> {
        let release = self.order.release.to_string();
        match std::fs::read_link(self.paths.current()) {
            Ok(target) if self.previous_release() != Some(self.order.release) && target.as_os_str() == release.as_str() => {
                Err(Failure::nobody(format!("`current` still names {release}, which therefore stays")))
            }
            _ => Ok(()),
        }
    }

    /// The directory of the release that serves now, if any.
    pub fn previous_release(&self) -> Option<ReleaseId> {
        self.order.previous.as_ref().map(|live| live.release)
    }
}
