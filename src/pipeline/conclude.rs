//! The end of a deployment. [`Pipeline::conclude`] is the only place where one ends, whatever its outcome.

use tokio::sync::{OwnedMutexGuard, watch};

use super::{
    context::Deployment,
    core::Pipeline,
    drift, fault, followups,
    history::Summary,
    journal::{self, Journal, JournalError},
    observe::{Announcement, News},
    queue::{Pending, Queue},
    runner,
    util::{chain, run_blocking},
    verdict,
};
use crate::model::{DeploymentId, Event, Fault, Outcome, UserName};

/// The age up to which a later server tells observers of an ending.
const NEWS_AGE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// A deployment that is about to end, by the way it came to its end.
#[allow(clippy::large_enum_variant)] // One value per deployment, never stored.
pub(super) enum Ended {
    /// Its plan was walked to its end or unwound, or its journal failed on the way.
    Walked(Walk),
    /// Its journal could not be begun; nothing was done.
    Unopened { deployment: Deployment, fault: Fault, verdict: watch::Sender<Option<Outcome>> },
    /// It waited, and was superseded or may not start any more.
    NeverBegan { pending: Pending, fault: Fault },
    /// A server that started cannot use its journal. The environment is frozen.
    Unusable { id: DeploymentId, error: JournalError },
}

/// A deployment whose plan was walked to its end or unwound.
pub(super) struct Walk {
    pub deployment: Deployment,
    pub journal: Journal,
    /// The outcome, or the failure of the journal that ended the walk.
    pub outcome: Result<Outcome, JournalError>,
    /// True if a later server or a person has taken the deployment over.
    pub recovered: bool,
    /// The receiver of the verdict; `None` if the server that accepted the push has died.
    pub verdict: Option<watch::Sender<Option<Outcome>>>,
    /// The queue's lock, released when the verdict is given.
    pub work: Option<OwnedMutexGuard<()>>,
}

impl Pipeline {
    /// Ends a deployment: records the outcome in the journal, the history and what is live; gives the verdict; then starts the
    /// follow-ups and tells the observers. Returns the outcome that counts.
    pub(super) async fn conclude(&self, queue: &Queue, ended: Ended) -> Outcome {
        match ended {
            Ended::Walked(walk) => self.conclude_walk(queue, walk).await,
            Ended::Unopened { deployment, fault, verdict } => {
                let outcome = Outcome::Refused { fault };
                verdict::print(&deployment, &outcome);
                deployment.transcript.close();
                verdict.send_replace(Some(outcome.clone()));
                self.announce(queue, deployment.announcement("0", News::Ended(outcome.clone())), None);
                outcome
            }
            Ended::NeverBegan { pending, fault } => {
                let Pending { ticket, verdict } = pending;
                let environment = ticket.request.environment;
                let outcome = Outcome::Refused { fault: fault.clone() };
                ticket.transcript.error(&fault.why);
                ticket.transcript.close();
                verdict.send_replace(Some(outcome.clone()));
                let paths = self.services().root.environment(&environment.project, &environment.name);
                journal::remove(&paths.deployment(ticket.deployment));
                let announcement = Announcement {
                    id: format!("{}.0", ticket.deployment),
                    at: jiff::Timestamp::now(),
                    environment: environment.title(),
                    deployment: ticket.deployment,
                    news: News::Ended(outcome.clone()),
                };
                self.announce(queue, announcement, None);
                outcome
            }
            Ended::Unusable { id, error } => {
                let why = chain(&error);
                let title = queue.environment().title();
                tracing::error!(environment = title, deployment = %id, error = why, "deployment cannot be recovered");
                let outcome = runner::lost_journal(&error);
                queue.state.lock().history.cannot_use(id, why);
                let announcement = Announcement {
                    id: format!("{id}.unusable"),
                    at: jiff::Timestamp::now(),
                    environment: title,
                    deployment: id,
                    news: News::Ended(outcome.clone()),
                };
                self.announce(queue, announcement, None);
                outcome
            }
        }
    }

    async fn conclude_walk(&self, queue: &Queue, walk: Walk) -> Outcome {
        let Walk { deployment, mut journal, outcome, recovered, verdict, work } = walk;
        let recorded = outcome.and_then(|outcome| {
            // Before the end: a server that is killed in between leaves a deployment without an end, which has its follow-ups again.
            followups::are_due(&deployment);
            run_blocking(|| journal.append(Event::Ended { outcome: outcome.clone() }))?;
            Ok(outcome)
        });
        // The id of the announcement says which end it is: a stuck deployment ends again when its environment is released.
        let ending = recorded.is_ok().then_some(journal.state().endings);
        let id = ending.map_or_else(|| format!("{}.unrecorded", journal.state().endings), |ending| ending.to_string());
        let outcome = recorded.unwrap_or_else(|error| runner::lost_journal(&error));
        self.remember(queue, &deployment, &journal, &outcome);
        let live = queue.state.lock().live.clone().filter(|_| matches!(outcome, Outcome::Live { .. }));
        if let (false, Some(live)) = (recovered, &live) {
            // Before a person can know of the release and change a file by hand.
            drift::expect(&deployment, live).await;
        }
        verdict::print(&deployment, &outcome);
        deployment.transcript.close();
        drop(work);
        if let Some(verdict) = verdict {
            verdict.send_replace(Some(outcome.clone()));
        }
        let announcement = deployment.announcement(&id, News::Ended(outcome.clone()));
        self.announce(queue, announcement, ending.map(|ending| (journal, ending)));
        // A recovered deployment's follow-ups wait until the live state is known: see `take_up_followups`.
        if !recovered {
            self.follow_up(queue, deployment, live);
        }
        outcome
    }

    /// Enters an end into the history, and into what is live.
    fn remember(&self, queue: &Queue, deployment: &Deployment, journal: &Journal, outcome: &Outcome) {
        let state = journal.state();
        let mut queue = queue.state.lock();
        if let Some(mut summary) = Summary::of(state) {
            // If the journal failed, the state may have no end, or an end that is not on the disk. The verdict counts.
            summary.outcome = Some(outcome.clone());
            if summary.went_live() || state.is_committed() {
                queue.live = Some(deployment.spec.live());
            }
            queue.history.record(summary);
        }
        queue.in_progress = None;
    }

    /// Tells the observers of an ending in the background, and records in its journal that they know. A server that dies in
    /// between tells them again; the announcement has the same id then.
    pub(super) fn announce(&self, queue: &Queue, announcement: Announcement, recorded_in: Option<(Journal, u32)>) {
        let (services, announcing) = (self.services().clone(), queue.announcing.clone());
        self.0.tasks.spawn(async move {
            let _in_order = announcing.lock().await;
            let id = announcement.id.clone();
            let delivered = services.observers.ending(announcement).await;
            fault::delivered();
            if !delivered {
                return tracing::warn!(id, "an observer has not taken an ending; the next server tells it again");
            }
            if let Some((mut journal, ending)) = recorded_in
                && let Err(error) = journal.note(Event::Announced { ending })
            {
                tracing::warn!(error = chain(&error), "observers may be told of this ending again");
            }
        });
    }

    /// Tells the observers of the endings of earlier servers that they may not know of, unless these are too old to be news: an observer
    /// that always fails must not be asked about ever more endings.
    pub(super) fn announce_missed(&self, queue: &Queue) {
        let environment = queue.environment();
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let missed: Vec<_> = {
            let state = queue.state.lock();
            let recent = |summary: &&Summary| {
                summary.ended.is_none_or(|at| jiff::Timestamp::now().duration_since(at).unsigned_abs() < NEWS_AGE)
            };
            state.history.deployments.iter().filter(recent).filter_map(Summary::unannounced).collect()
        };
        for (deployment, ending, outcome) in missed {
            let announcement = Announcement {
                id: format!("{deployment}.{ending}"),
                at: jiff::Timestamp::now(),
                environment: environment.title(),
                deployment,
                news: News::Ended(outcome),
            };
            match Journal::open(&paths.deployment(deployment)) {
                Ok(journal) => self.announce(queue, announcement, Some((journal, ending))),
                Err(error) => tracing::warn!(error = chain(&error), "an ending is not announced"),
            }
        }
    }

    /// Tells the observers that a person has released an environment.
    pub(super) fn announce_release(&self, queue: &Queue, deployment: DeploymentId, ending: u32, by: &UserName) {
        let announcement = Announcement {
            id: format!("{deployment}.{ending}.released"),
            at: jiff::Timestamp::now(),
            environment: queue.environment().title(),
            deployment,
            news: News::Released(by.clone()),
        };
        self.announce(queue, announcement, None);
    }
}
