//! The queue of one environment: one deployment at a time, and at most one that waits.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{PipelineError, history::History, transcript::Transcript};
use crate::model::{BranchName, CommitId, DeploymentId, Digest, Environment, Live, Origin, Outcome, Phase, ReleaseId, Trigger};

/// What somebody wants deployed.
#[derive(Debug, Clone)]
pub struct Request {
    /// Why.
    pub trigger: Trigger,
    /// Where.
    pub environment: Environment,
    /// The branch whose ref is the verdict.
    pub branch: BranchName,
    /// What.
    pub commit: CommitId,
    /// What the pusher saw the branch at, for a push.
    pub seen: Option<CommitId>,
    /// Tags that come in the same push: name and object. git stores them after the deployment only.
    pub tags: Vec<(String, CommitId)>,
    /// What becomes live.
    pub goal: Goal,
    /// The phases that are only tried, to be put back whatever comes of them; none for what shall go live.
    pub trial: Vec<Phase>,
}

/// What shall become live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// A release that is built from the commit.
    Cook,
    /// A release that exists.
    Release {
        /// Which.
        release: ReleaseId,
        /// Where it is.
        origin: Origin,
        /// Whether the newest that there is was asked for, and nobody has named this one.
        newest: bool,
        /// Why the promotion policy does not count this time.
        overriding: Option<String>,
    },
}

/// A deployment as others see it; cheap to clone. Dropping it does not stop anything.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Which.
    pub deployment: DeploymentId,
    /// What was asked for.
    pub request: Request,
    /// What it says.
    pub transcript: Transcript,
    /// How it ended, once it has.
    pub outcome: watch::Receiver<Option<Outcome>>,
    /// Ends it, and unwinds.
    pub cancel: CancellationToken,
}

impl Ticket {
    /// Waits for the end; nothing where the server stops first, and the next one decides.
    pub async fn outcome(&mut self) -> Option<Outcome> {
        let ended = self.outcome.wait_for(Option::is_some).await.ok()?;
        ended.clone()
    }
}

/// A deployment in the queue, with the sending end of its outcome.
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    pub(super) verdict: watch::Sender<Option<Outcome>>,
}

/// The state of an environment's queue.
#[derive(Default)]
pub(super) struct State {
    pub(super) running: Option<Ticket>,
    pub(super) waiting: Option<Pending>,
    pub(super) history: History,
    pub(super) live: Option<Live>,
    /// The release of the deployment under way; not to be pruned, whatever it looks like.
    pub(super) making: Option<ReleaseId>,
    /// Whether the environment is being removed: nothing enters any more.
    pub(super) closed: bool,
}

/// What became of a deployment that wanted to enter.
pub(super) enum Entered {
    /// It can start at once.
    First(Pending),
    /// It waits, and took the place of the one that waited before.
    Waits(Option<Pending>),
    /// It is a trial, which takes nobody's place, and another deployment is under way.
    Busy(DeploymentId),
    /// The environment is being removed.
    Closed,
}

/// The queue of one environment.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) environment: Environment,
    pub(super) state: Arc<Mutex<State>>,
    /// Held by whoever decides what runs here: a deployment from its order to its verdict, a restart, a removal. Each of them
    /// begins with what is live, and would otherwise act on what is not live any more.
    pub(super) work: Arc<tokio::sync::Mutex<()>>,
    /// Held while the slot that the last switch left is drained and emptied.
    pub(super) idle_slot: Arc<tokio::sync::Mutex<()>>,
    /// What the next installation begins with.
    pub(super) spare: Spare,
    /// Held while releases are removed, and while somebody makes up his mind about which one to use.
    pub(super) store: Arc<tokio::sync::Mutex<()>>,
}

/// A copy of an installed tree by hard links, made after a verdict, so that the next installation costs what changed. It stands in
/// `deploy/` under a name of its own, which the file `deploy/.spare` holds: what a dead server has left is found and removed.
#[derive(Debug, Clone, Default)]
pub(super) struct Spare {
    ready: Arc<Mutex<Option<TreeCopy>>>,
    /// Held by whoever makes one.
    pub(super) making: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TreeCopy {
    /// The name.
    pub(super) name: ReleaseId,
    /// What it is a copy of.
    pub(super) of: ReleaseId,
    /// Tells whether somebody has been in it.
    pub(super) seal: Digest,
}

impl Spare {
    /// Takes it; nobody else gets it then.
    pub(super) fn take(&self) -> Option<TreeCopy> {
        self.ready.lock().take()
    }

    /// Puts one in.
    pub(super) fn put(&self, copy: TreeCopy) {
        *self.ready.lock() = Some(copy);
    }
}

impl Lane {
    pub(super) fn new(environment: Environment, history: History, live: Option<Live>) -> Lane {
        let state = State { history, live, ..State::default() };
        Lane {
            environment,
            state: Arc::new(Mutex::new(state)),
            work: Arc::default(),
            idle_slot: Arc::default(),
            spare: Spare::default(),
            store: Arc::default(),
        }
    }

    /// Puts `pending` in the queue.
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
            Some(running) if !pending.ticket.request.trial.is_empty() => return Entered::Busy(running.deployment),
            Some(_) => {}
        }
        Entered::Waits(state.waiting.replace(pending))
    }

    /// Lets nothing in any more, unless a deployment is under way.
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

    /// Says that something else decides what runs here: the deployment `running`, or a restart.
    pub(super) fn busy(&self, running: Option<DeploymentId>) -> PipelineError {
        let doing = running.map_or_else(|| String::from("being restarted"), |id| format!("being deployed ({id})"));
        PipelineError::Busy { environment: self.environment.title(), doing }
    }

    /// Takes back what [`Lane::close`] did.
    pub(super) fn reopen(&self) {
        self.state.lock().closed = false;
    }

    /// Takes the next from the queue, or marks the lane as idle.
    pub(super) fn advance(&self) -> Option<Pending> {
        let mut state = self.state.lock();
        let next = state.waiting.take();
        state.running = next.as_ref().map(|pending| pending.ticket.clone());
        next
    }
}
