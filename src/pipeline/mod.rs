//! What happens to a push: intake, queue, plan, phases, the runner, the journal, recovery.
//!
//! The way of a push through this room: [`intake`] decides ref by ref; a deploy branch becomes a [`Request`]; its environment's
//! [`lane`] lets one deployment run at a time; [`modes`] makes the [`Plan`]; the [`runner`] walks it, journalling each move; and
//! the [`Ticket`]'s outcome is the verdict on the ref. After a crash [`recover`] does the rest without help.

mod chores;
mod context;
mod drift;
mod facts;
mod fault;
mod health;
mod history;
pub mod intake;
mod journal;
mod known;
mod lane;
mod modes;
mod output;
mod phases;
mod plan;
mod publish;
mod recover;
mod runner;
mod running;
mod state_files;
mod step;
mod supply;
mod transcript;
mod verdict;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    context::Services,
    drift::{DriftError, DriftScans, LastScan},
    facts::Facts,
    history::{History, Summary},
    intake::PushRejection,
    known::{KnownRelease, NameError, find},
    lane::{Goal, Request, Ticket},
    plan::Plan,
    recover::ThawError,
    runner::seconds,
    running::RestartError,
    state_files::{BuildNumbers, Pin, Pins},
    step::chain,
    supply::{Candidate, SupplyError},
    transcript::{Follower, Transcript},
};
use self::{
    context::{Deployment, Order},
    history::Summary as Deployed,
    journal::Journal,
    lane::{Entered, Lane, Pending},
};
use crate::model::{
    DeploymentId, EnvId, Environment, Event, HealthRecord, Live, Origin, Outcome, Phase, ReleaseId, Slot, Status,
};

/// Why a deployment was not even queued.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The environment is not served here (any more).
    #[error("there is no environment {0} on this server")]
    NoEnvironment(String),
    /// An earlier deployment could not be put back.
    #[error("{environment} is frozen since deployment {deployment} got stuck: {why}")]
    Frozen {
        /// Which environment.
        environment: String,
        /// Which deployment.
        deployment: DeploymentId,
        /// What could not be put back.
        why: String,
    },
    /// The server has been started a moment ago.
    #[error("{0} is still being put right after the last start of the server; try again in a moment")]
    Recovering(String),
    /// Something else decides what runs there.
    #[error("{environment} is {doing}")]
    Busy {
        /// Which environment.
        environment: String,
        /// What is done: "being deployed (ID)", "being restarted".
        doing: String,
    },
    /// The server is going down.
    #[error("the server is stopping; push again in a moment")]
    Stopping,
    /// The record could not be begun.
    #[error("the record of the deployment could not be begun at {path}")]
    Record {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

struct Shared {
    services: Arc<Services>,
    lanes: Mutex<HashMap<EnvId, Lane>>,
    /// What has still to be taken into service since the server started.
    awaited: Mutex<HashSet<EnvId>>,
    parallel: Arc<Semaphore>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// All deployments of this server; cheap to clone.
#[derive(Clone)]
pub struct Pipeline(Arc<Shared>);

impl Pipeline {
    /// A pipeline without environments; [`Pipeline::attach`] adds them.
    pub fn new(services: Arc<Services>) -> Pipeline {
        let parallel = Arc::new(Semaphore::new(services.config.deployments_parallel.into()));
        Pipeline(Arc::new(Shared {
            services,
            lanes: Mutex::default(),
            awaited: Mutex::default(),
            parallel,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// The trades.
    pub fn services(&self) -> &Arc<Services> {
        &self.0.services
    }

    fn lane(&self, environment: EnvId) -> Option<Lane> {
        self.0.lanes.lock().get(&environment).cloned()
    }

    /// Says which environments are going to be attached: until then they are not unknown, but not ready.
    pub fn await_all<'e>(&self, environments: impl IntoIterator<Item = &'e Environment>) {
        self.0.awaited.lock().extend(environments.into_iter().map(|environment| environment.id));
    }

    /// The lane of an environment, or why there is none.
    fn lane_of(&self, environment: &Environment) -> Result<Lane, PipelineError> {
        let missing = || match self.0.awaited.lock().contains(&environment.id) {
            true => PipelineError::Recovering(environment.title()),
            false => PipelineError::NoEnvironment(environment.title()),
        };
        self.lane(environment.id).ok_or_else(missing)
    }

    /// Waits until no release of an environment is being removed; none is while the answer is held.
    pub async fn settled(&self, environment: EnvId) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        Some(self.lane(environment)?.store.lock_owned().await)
    }

    /// What serves in an environment.
    pub fn live(&self, environment: EnvId) -> Option<Live> {
        self.lane(environment)?.state.lock().live.clone()
    }

    /// The deployments of an environment, oldest first.
    pub fn history(&self, environment: EnvId) -> History {
        self.lane(environment).map(|lane| lane.state.lock().history.clone()).unwrap_or_default()
    }

    /// The deployment that runs in an environment, and the one that waits.
    pub fn under_way(&self, environment: EnvId) -> (Option<Ticket>, Option<Ticket>) {
        let Some(lane) = self.lane(environment) else { return (None, None) };
        let state = lane.state.lock();
        (state.running.clone(), state.waiting.as_ref().map(|pending| pending.ticket.clone()))
    }

    /// What the deployment that made `release` found out.
    pub fn facts(&self, environment: &Environment, release: ReleaseId) -> Result<Facts, journal::JournalError> {
        let paths = self.0.services.root.environment(&environment.project, &environment.name);
        match self.history(environment.id).of_release(release) {
            Some(summary) => Ok(journal::Story::read(&paths.deployment(summary.deployment))?.facts),
            None => Ok(Facts::default()),
        }
    }

    /// The plan for a push to `environment`.
    pub fn plan(&self, environment: &Environment, only: &[Phase]) -> Plan {
        modes::plan(environment.mode, &modes::usual_origin(environment.mode)).only(only)
    }

    /// Queues a deployment. It runs whatever becomes of the caller.
    pub fn submit(&self, request: Request) -> Result<Ticket, PipelineError> {
        if self.0.stopping.is_cancelled() {
            return Err(PipelineError::Stopping);
        }
        let lane = self.lane_of(&request.environment)?;
        self.thawed(&lane)?;
        let deployment = DeploymentId::new(jiff::Timestamp::now());
        let paths = self.0.services.root.environment(&request.environment.project, &request.environment.name);
        let path = paths.deployment(deployment);
        let transcript = crate::host::files::ensure_dir(&path, 0o750).and_then(|()| Transcript::open(&path));
        let transcript = transcript.map_err(|source| PipelineError::Record { path, source })?;
        let (verdict, outcome) = watch::channel(None);
        let cancel = CancellationToken::new();
        let ticket = Ticket { deployment, request, transcript, outcome, cancel };
        let never_began = |deployment| {
            // There is no record to keep; whoever reads its transcript has it open.
            let _ = std::fs::remove_dir_all(paths.deployment(deployment));
        };
        match lane.enter(Pending { ticket: ticket.clone(), verdict }) {
            Entered::First(first) => {
                let this = self.clone();
                self.0.tasks.spawn(async move { this.work_off(lane, first).await });
            }
            Entered::Waits(superseded) => {
                if let Some(old) = superseded {
                    verdict::superseded(&old, &ticket);
                    never_began(old.ticket.deployment);
                }
                ticket.transcript.title("Another deployment is under way; this one waits for it");
            }
            Entered::Busy(running) => {
                never_began(deployment);
                return Err(lane.busy(Some(running)));
            }
            Entered::Closed => {
                never_began(deployment);
                return Err(PipelineError::NoEnvironment(ticket.request.environment.title()));
            }
        }
        Ok(ticket)
    }

    fn thawed(&self, lane: &Lane) -> Result<(), PipelineError> {
        match lane.state.lock().history.frozen() {
            None => Ok(()),
            Some((deployment, why)) => Err(PipelineError::Frozen { environment: lane.environment.title(), deployment, why }),
        }
    }

    async fn work_off(&self, lane: Lane, first: Pending) {
        let mut next = Some(first);
        while let Some(pending) = next {
            let _permit = self.0.parallel.clone().acquire_owned().await;
            self.deploy(&lane, pending).await;
            next = lane.advance();
        }
    }

    /// One deployment from its first event to its last.
    async fn deploy(&self, lane: &Lane, pending: Pending) {
        let Pending { ticket, verdict } = pending;
        let work = lane.work.clone().lock_owned().await;
        let order = self.order(lane, &ticket).await;
        let plan = modes::plan(order.environment.mode, &order.origin).only(&order.trial);
        let services = self.0.services.clone();
        let mut deployment =
            Deployment::new(order, services, ticket.transcript.clone(), ticket.cancel.clone(), lane.idle_slot.clone());
        deployment.proof = self.told_by_sibling(&deployment.order);
        deployment.seen = ticket.request.seen.clone();
        deployment.newest = matches!(ticket.request.goal, Goal::Release { newest: true, .. });
        deployment.tags = ticket.request.tags.clone();
        deployment.before = deployment.order.previous.as_ref().map(|live| self.settings_of(&deployment.order.environment, live));
        deployment.spare = lane.spare.clone();
        if let Some(phases) = deployment.order.trial() {
            ticket.transcript.title(&format!("A trial of {phases}: nothing goes live"));
        }
        let outcome = self.journey(&plan, &mut deployment, lane).await;
        let live = lane.state.lock().live.clone();
        if let (Outcome::Live { .. }, Some(live)) = (&outcome, live) {
            // Before anybody knows of it and can change something by hand.
            drift::expect(&deployment, &live).await;
        }
        // Taken before the next deployment or a restart can begin: neither must touch a slot where requests are still answered.
        let idle = match outcome {
            Outcome::Live { .. } => Some(lane.idle_slot.clone().lock_owned().await),
            _ => None,
        };
        verdict::print(&deployment, &outcome);
        ticket.transcript.close();
        drop(work);
        verdict.send_replace(Some(outcome));
        deployment.record = self.record(&deployment);
        chores::after(deployment, lane, idle);
    }

    /// What is said of a release to other places, where it is published at all.
    fn record(&self, deployment: &Deployment) -> Option<Vec<u8>> {
        let environment = &deployment.order.environment;
        let published = environment.remotes.iter().any(|remote| remote.publish);
        let record = published.then(|| runner::aside(|| self.health(environment, deployment.order.release)))??;
        serde_json::to_vec(&record).ok()
    }

    /// What another environment of the project says about the release that is taken over from it.
    fn told_by_sibling(&self, order: &Order) -> Option<HealthRecord> {
        let Origin::Environment(name) = &order.origin else { return None };
        let is_it = |other: &Environment| other.project_id == order.environment.project_id && other.name == *name;
        let sibling = self.0.lanes.lock().values().map(|lane| lane.environment.clone()).find(is_it)?;
        self.health(&sibling, order.release)
    }

    /// Fixes what a deployment means, at the moment at which it begins.
    async fn order(&self, lane: &Lane, ticket: &Ticket) -> Order {
        // Not while old releases are being removed: this may be about one of them.
        let _settled = lane.store.lock().await;
        let request = &ticket.request;
        let paths = self.0.services.root.environment(&request.environment.project, &request.environment.name);
        let mut state = lane.state.lock();
        let previous = state.live.clone();
        let (release, origin, overriding) = match request.goal.clone() {
            Goal::Cook => (ReleaseId::new(jiff::Timestamp::now()), Origin::Commit, None),
            Goal::Release { release, origin, overriding, .. } => (release, origin, overriding),
        };
        // A tree gets its name when it is complete, and loses it before anything of it goes; one that a failed or interrupted
        // deployment has left is put away by its own record.
        let recorded = state.history.of_release(release).map(|summary| summary.deployment);
        let again = recorded.is_some() && paths.tree(release).is_dir();
        state.making = Some(release);
        Order {
            id: ticket.deployment,
            trigger: request.trigger.clone(),
            environment: request.environment.clone(),
            branch: request.branch.clone(),
            commit: request.commit.clone(),
            release,
            origin,
            again,
            recorded,
            overriding,
            number: state.history.next_number(),
            slot: previous.as_ref().map_or(Slot::Blue, |live| live.slot.other()),
            previous,
            trial: request.trial.clone(),
        }
    }

    /// From the first event to the last, both in the journal.
    async fn journey(&self, plan: &Plan, deployment: &mut Deployment, lane: &Lane) -> Outcome {
        let opened = Journal::open(&deployment.paths.deployment(deployment.order.id)).and_then(|mut journal| {
            fault::record_fails("opened", &deployment.paths)?;
            journal.note(deployment.order.opened(plan.names()))?;
            Ok(journal)
        });
        let mut journal = match opened {
            Ok(journal) => journal,
            // Nothing was done yet, so there is nothing to put right.
            Err(error) => {
                lane.state.lock().making = None;
                return Outcome::Refused { fault: runner::no_journal(&error) };
            }
        };
        let ended = async {
            let outcome = runner::run(plan, deployment, &mut journal).await?;
            if matches!(outcome, Outcome::Live { .. }) {
                chores::are_due(deployment);
            }
            fault::record_fails("ended", &deployment.paths)?;
            runner::aside(|| journal.append(Event::Ended { outcome: outcome.clone() }))?;
            Ok(outcome)
        };
        let outcome = ended.await.unwrap_or_else(|error| runner::lost_journal(&error));
        self.note(lane, deployment, &journal, &outcome);
        outcome
    }

    /// Remembers how a deployment ended.
    fn note(&self, lane: &Lane, deployment: &Deployment, journal: &Journal, outcome: &Outcome) {
        let mut state = lane.state.lock();
        if let Some(mut summary) = Deployed::of(journal.story()) {
            // Where the journal failed, it may say an end that is not on the disk; what was told counts.
            summary.outcome = Some(outcome.clone());
            if summary.went_live() || journal.story().status(recover::POINT_OF_FINISHING) == Status::Done {
                state.live = Some(summary.live());
            }
            state.history.record(summary);
        }
        state.making = None;
        drop(state);
        tracing::info!(
            environment = deployment.order.environment.title(),
            deployment = %deployment.order.id,
            commit = %deployment.order.commit,
            ?outcome,
            "a deployment ended"
        );
    }

    /// The reason in git's own line for how a deployment ended; nothing for a success.
    pub fn reason(&self, outcome: &crate::model::Outcome, environment: EnvId) -> Option<String> {
        verdict::reason(outcome, self.live(environment).as_ref())
    }

    /// Accepts nothing more, and waits for what is under way, at most `limit`. What is not done by then is finished or unwound by
    /// the next server.
    pub async fn drain(&self, limit: Duration) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(limit, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("deployments are still under way; the next server takes them over");
        }
    }
}
