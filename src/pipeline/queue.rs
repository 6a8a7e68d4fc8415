//! The queue of one environment: one running deployment, at most one waiting deployment of a release, and waiting changes of the
//! configuration.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::{
    error::PipelineError,
    history::History,
    slots::Slots,
    spare::{RenewedTree, SpareTree},
    transcript::Transcript,
};
use crate::{
    git::{PillarFiles, source::RecipeFiles},
    model::{
        BranchName, CommitId, ConfigChange, DeploymentId, EnvId, Environment, Live, Origin, Outcome, Phase, ReleaseId,
        SnapshotRef, Trigger,
    },
};

/// The maximum number of changes of the configuration that wait.
const MAX_CHANGES: usize = 16;
/// The maximum time for which a request waits for the effect of a saved file.
const MAX_SAVE_WAIT: Duration = Duration::from_secs(10);
/// The time between two attempts of such a request.
const SAVE_PAUSE: Duration = Duration::from_millis(20);

/// A request to deploy.
#[derive(Debug, Clone)]
pub struct DeployRequest {
    /// The kind of request, and the user who made it.
    pub trigger: Trigger,
    /// The environment.
    pub environment: Environment,
    /// The deploy branch. If the request is a push, git accepts or rejects the ref of this branch with the outcome.
    pub branch: BranchName,
    /// The commit to deploy.
    pub commit: CommitId,
    /// The commit of the branch when the pusher's client read the branch; `None` if the request is not a push.
    pub seen: Option<CommitId>,
    /// The tags of the push that requests the deployment: name and object. Git stores these tags only after the deployment.
    pub tags: Vec<(String, CommitId)>,
    /// The release that becomes live.
    pub goal: Goal,
    /// The recipe of the commit, as the hook of the push has read it; `None` if it was not read. The recipe is read again, with all checks,
    /// by the deployment.
    pub recipe: Option<RecipeFiles>,
    /// The phases of a dry run; empty if the release shall go live.
    pub dry_run: Vec<Phase>,
    /// The id of the restore point whose data goes live together with the release; `None` if the data stays as it is.
    pub data: Option<String>,
    /// The earlier deployment whose settings and configuration go live again; `None` unless the request is a rollback.
    pub recorded: Option<DeploymentId>,
    /// True if files that were changed by hand in the checkout of an editable environment shall be put into git's stash.
    pub stash: bool,
}

impl DeployRequest {
    /// Returns true for a dry run, and for a rollback with data. A rollback with data must not wait, because its consequences were
    /// shown for the release that is live now.
    fn never_waits(&self) -> bool {
        !self.dry_run.is_empty() || self.data.is_some()
    }

    /// Returns true for a change of the configuration.
    fn is_change(&self) -> bool {
        matches!(self.goal, Goal::Configure { .. })
    }
}

/// The release that a request makes live.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // One value per request.
pub enum Goal {
    /// A release that is built from the commit.
    Cook,
    /// A release that exists.
    Release {
        /// The release.
        release: ReleaseId,
        /// The source of the release.
        origin: Origin,
        /// True if the request asked for the newest release, not for this release by name.
        newest: bool,
        /// The reason to override the promotion policy; `None` if the policy applies.
        overriding: Option<String>,
    },
    /// The live release, with a changed configuration.
    Configure {
        /// The change. It is applied to the configuration at the start of the deployment, so that no earlier change is lost.
        change: ConfigChange,
        /// The configuration when the change was requested.
        seen: Option<SnapshotRef>,
        /// The values of the pillar.
        pillar: PillarGoal,
    },
}

/// The values of the pillar in a changed configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PillarGoal {
    /// The values of any other deployment.
    Usual,
    /// The values of these files; with `None`, no values.
    Files(Option<Arc<PillarFiles>>),
}

/// The handle of a deployment for its clients; cheap to clone. Dropping a ticket has no effect on the deployment.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The request that was submitted.
    pub request: DeployRequest,
    /// The output of the deployment.
    pub transcript: Transcript,
    /// The outcome; `None` until the deployment has ended.
    pub outcome: watch::Receiver<Option<Outcome>>,
    /// The token that cancels the deployment, which is then unwound.
    pub cancel: CancellationToken,
}

impl Ticket {
    /// Waits for the outcome. Returns `None` if the server stops before the outcome is known; the next server then decides the outcome.
    pub async fn outcome(&mut self) -> Option<Outcome> {
        let ended = self.outcome.wait_for(Option::is_some).await.ok()?;
        ended.clone()
    }
}

/// A deployment in the queue, with the sender of its outcome.
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    pub(super) verdict: watch::Sender<Option<Outcome>>,
}

/// The state of an environment's queue.
pub(super) struct QueueState {
    /// The environment as registered last.
    pub(super) environment: Environment,
    pub(super) running: Option<Ticket>,
    /// The waiting deployments, in the order in which they run.
    pub(super) waiting: VecDeque<Pending>,
    pub(super) history: History,
    pub(super) live: Option<Live>,
    /// The release of the running deployment, which is never pruned.
    pub(super) in_progress: Option<ReleaseId>,
    /// True while the environment is being removed. No deployment enters then.
    pub(super) closed: bool,
}

/// The result of [`Queue::enter`].
pub(super) enum Entered {
    /// The deployment can start at once.
    First(Pending),
    /// The deployment waits. The value is the deployment that waited before and is now superseded, if there was such a deployment.
    Waits(Option<Pending>),
    /// The deployment never waits, or too many deployments wait, and another deployment is under way.
    Busy(DeploymentId),
    /// The environment is being removed.
    Closed,
}

/// The queue of one environment; cheap to clone.
#[derive(Clone)]
pub(super) struct Queue {
    /// The environment's number.
    pub(super) id: EnvId,
    pub(super) state: Arc<Mutex<QueueState>>,
    /// The lock of every operation that decides what runs in the environment: a deployment from its specification to its verdict, a
    /// restart, a restore of the data, an unfreeze, a removal. Each operation begins with the live release, and must not act on a release
    /// that is no longer live.
    pub(super) work: Arc<tokio::sync::Mutex<()>>,
    /// The lock of the copy of the data on which a single command works.
    pub(super) copy: Arc<tokio::sync::Mutex<()>>,
    /// The use of the two slots.
    pub(super) slots: Slots,
    /// The store of the spare tree, from which the next installation starts.
    pub(super) spare: SpareTree,
    /// The last renewal of the times of a release's files.
    pub(super) renewed: RenewedTree,
    /// The lock that is held while releases are removed, and while a request chooses a release.
    pub(super) store: Arc<tokio::sync::Mutex<()>>,
    /// The lock that is held while a restore point is taken or removed, and during a restore. Operations that need `work` and `points` take
    /// `work` first.
    pub(super) points: Arc<tokio::sync::Mutex<()>>,
    /// True while saved files restart processes or start a build, which hold `work`.
    pub(super) saving: Arc<AtomicBool>,
    /// True during a restore of the live data, which holds `work`.
    pub(super) restoring: Arc<AtomicBool>,
    /// The lock that is held while an ending is announced, so that the observers receive the endings in the order in which they happened.
    pub(super) announcing: Arc<tokio::sync::Mutex<()>>,
}

impl Queue {
    pub(super) fn new(environment: Environment, history: History, live: Option<Live>, slots: Slots) -> Queue {
        let id = environment.id;
        let state =
            QueueState { environment, running: None, waiting: VecDeque::new(), history, live, in_progress: None, closed: false };
        Queue {
            id,
            state: Arc::new(Mutex::new(state)),
            work: Arc::default(),
            copy: Arc::default(),
            slots,
            spare: SpareTree::default(),
            renewed: RenewedTree::default(),
            store: Arc::default(),
            points: Arc::default(),
            saving: Arc::default(),
            restoring: Arc::default(),
            announcing: Arc::default(),
        }
    }

    /// Takes the lock `work` for a request that does not wait for a deployment. The restart after a saved file takes a moment, so the request waits
    /// for it.
    pub(super) async fn work_now(&self) -> Result<OwnedMutexGuard<()>, PipelineError> {
        let deadline = tokio::time::Instant::now() + MAX_SAVE_WAIT;
        loop {
            if let Ok(work) = self.work.clone().try_lock_owned() {
                return Ok(work);
            }
            if !self.saving.load(Relaxed) || tokio::time::Instant::now() >= deadline {
                let running = self.state.lock().running.as_ref().map(|running| running.deployment);
                return Err(self.busy(running));
            }
            tokio::time::sleep(SAVE_PAUSE).await;
        }
    }

    /// Returns the environment as registered last.
    pub(super) fn environment(&self) -> Environment {
        self.state.lock().environment.clone()
    }

    /// Adopts a change of the environment's registration.
    pub(super) fn set_environment(&self, environment: Environment) {
        self.state.lock().environment = environment;
    }

    /// Returns the live release and the history.
    pub(super) fn snapshot(&self) -> (Option<Live>, History) {
        let state = self.state.lock();
        (state.live.clone(), state.history.clone())
    }

    /// Adds `pending` to the queue.
    pub(super) fn enter(&self, pending: Pending) -> Entered {
        let mut state = self.state.lock();
        if state.closed {
            return Entered::Closed;
        }
        match &state.running {
            None => {
                state.running = Some(pending.ticket.clone());
                return Entered::First(pending);
            }
            Some(running) if pending.ticket.request.never_waits() => return Entered::Busy(running.deployment),
            Some(running) if pending.ticket.request.is_change() && state.waiting.len() >= MAX_CHANGES => {
                return Entered::Busy(running.deployment);
            }
            Some(_) => {}
        }
        // A newer deployment of a release supersedes an older one. A change of the configuration supersedes nothing, and is never superseded,
        // because the changes of several people are combined.
        let older = |waiting: &Pending| !waiting.ticket.request.is_change();
        let superseded = match pending.ticket.request.is_change() {
            true => None,
            false => state.waiting.iter().position(older).and_then(|at| state.waiting.remove(at)),
        };
        state.waiting.push_back(pending);
        Entered::Waits(superseded)
    }

    /// Closes the queue for new deployments. If a deployment is under way, leaves the queue open and returns this deployment as
    /// the error.
    pub(super) fn close(&self) -> Result<(), DeploymentId> {
        let mut state = self.state.lock();
        match &state.running {
            Some(running) => Err(running.deployment),
            None => {
                state.closed = true;
                Ok(())
            }
        }
    }

    /// Reverts [`Queue::close`].
    pub(super) fn reopen(&self) {
        self.state.lock().closed = false;
    }

    /// Returns the error for a request that cannot be served while the deployment `running` is under way, or, without `running`, a restore
    /// or a restart.
    pub(super) fn busy(&self, running: Option<DeploymentId>) -> PipelineError {
        let doing = match running {
            Some(id) => format!("being deployed ({id})"),
            None if self.restoring.load(Relaxed) => String::from("having its data restored"),
            None if self.saving.load(Relaxed) => String::from("built again after a saved file"),
            // A restart, an unfreeze, or the removal of the environment.
            None => String::from("in use by another operation, such as a restart"),
        };
        PipelineError::Busy { environment: self.environment().title(), doing }
    }

    /// Returns an error if the environment is frozen.
    pub(super) fn is_thawed(&self) -> Result<(), PipelineError> {
        let state = self.state.lock();
        match state.history.frozen() {
            None => Ok(()),
            Some((deployment, why)) => Err(PipelineError::Frozen { environment: state.environment.title(), deployment, why }),
        }
    }

    /// Takes the next deployment from the queue, or marks the queue as idle.
    pub(super) fn advance(&self) -> Option<Pending> {
        let mut state = self.state.lock();
        let next = state.waiting.pop_front();
        state.running = next.as_ref().map(|pending| pending.ticket.clone());
        next
    }
}
