//! The end of a deployment. [`Pipeline::conclude`] is the only function that ends a deployment, whatever its outcome.

use tokio::sync::{OwnedMutexGuard, watch};

use super::{
    context::Deployment,
    core::Pipeline,
    drift, fault, followups,
    history::Summary,
    journal::{self, Journal, JournalError},
    observe::{Announcement, News},
    queue::{Pending, Queue},
    reserve, runner,
    util::chain,
    verdict,
};
use crate::{
    model::{DeploymentId, Event, Fault, Outcome, UserName},
    proxy::RouteState,
};

/// The maximum age of an ending that a later server still announces to the observers.
const NEWS_AGE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// A deployment that is about to end. Each variant is a cause of the end.
#[allow(clippy::large_enum_variant)] // One value per deployment, never stored.
pub(super) enum Ended {
    /// The plan was executed to its end or unwound, or the journal failed during this work.
    Walked(Walk),
    /// The journal could not be created, so no step has run.
    Unopened { deployment: Deployment, fault: Fault, verdict: watch::Sender<Option<Outcome>> },
    /// The deployment was queued and never began: a newer deployment superseded it, or a check before its start failed.
    NeverBegan { pending: Pending, fault: Fault },
    /// A starting server cannot use the journal of the deployment. The environment is frozen.
    Unusable { id: DeploymentId, error: JournalError },
}

/// A deployment whose plan was executed to its end or unwound, or whose journal failed during this work.
pub(super) struct Walk {
    pub deployment: Deployment,
    pub journal: Journal,
    /// The outcome, or the journal error that stopped the execution.
    pub outcome: Result<Outcome, JournalError>,
    /// True if a later server or a person has taken over the deployment.
    pub recovered: bool,
    /// The channel to which the verdict is sent; `None` if the server that accepted the request has exited.
    pub verdict: Option<watch::Sender<Option<Outcome>>>,
    /// The guard of the queue's lock, which is released before the verdict is sent.
    pub work: Option<OwnedMutexGuard<()>>,
}

impl Pipeline {
    /// Ends a deployment. Records the outcome in the journal and the history, updates the live release, sends the verdict,
    /// notifies the observers and starts the follow-ups. Returns the outcome that was recorded or announced.
    pub(super) async fn conclude(&self, queue: &Queue, ended: Ended) -> Outcome {
        match ended {
            Ended::Walked(walk) => self.conclude_walk(queue, walk).await,
            Ended::Unopened { deployment, fault, verdict } => {
                verdict::print_fault(&deployment.transcript, &fault.to_string(), &fault);
                let outcome = Outcome::Refused { fault };
                verdict::print(&deployment, &outcome);
                deployment.transcript.close();
                verdict.send_replace(Some(outcome.clone()));
                // Readers would wait for the end of a deployment whose journal has no event.
                if let Err(error) = journal::remove_unopened(&deployment.paths.deployment(deployment.spec.id)) {
                    tracing::warn!(deployment = %deployment.spec.id, %error, "cannot remove the directory of a deployment that never began");
                }
                self.announce(queue, deployment.announcement("0", News::Ended(outcome.clone())), None);
                outcome
            }
            Ended::NeverBegan { pending, fault } => {
                let Pending { ticket, verdict } = pending;
                let environment = ticket.request.environment;
                let outcome = Outcome::Refused { fault: fault.clone() };
                verdict::print_fault(&ticket.transcript, &fault.why, &fault);
                ticket.transcript.close();
                verdict.send_replace(Some(outcome.clone()));
                let paths = self.services().root.environment(&environment.project, &environment.name);
                journal::remove(&paths.deployment(ticket.deployment));
                let announcement = Announcement {
                    id: format!("{}.0", ticket.deployment),
                    at: jiff::Timestamp::now(),
                    environment: environment.title(),
                    deployment: Some(ticket.deployment),
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
                self.announce_unusable(queue, id, outcome.clone());
                outcome
            }
        }
    }

    async fn conclude_walk(&self, queue: &Queue, walk: Walk) -> Outcome {
        let Walk { mut deployment, mut journal, outcome, recovered, verdict, work } = walk;
        let recorded = async {
            let outcome = outcome?;
            // The reserved space is released first, so that the file `due` can be written on a full disk.
            reserve::release(&deployment.paths.deployment(deployment.spec.id));
            // The file `due`, which marks pending follow-ups, is written before the end is recorded. If the server is killed in
            // between, the deployment has no recorded end, and the next server writes the file again.
            followups::are_due(&deployment);
            runner::record(&deployment, &mut journal, Event::Ended { outcome: outcome.clone() }, true).await?;
            Ok(outcome)
        };
        let recorded: Result<_, JournalError> = recorded.await;
        // The id of the announcement contains the number of the end, because a stuck deployment ends again when its environment
        // is unfrozen.
        let ending = recorded.is_ok().then_some(journal.state().endings);
        let id = ending.map_or_else(|| format!("{}.unrecorded", journal.state().endings), |ending| ending.to_string());
        let outcome = recorded.unwrap_or_else(|error| {
            if error.is_no_space() {
                self.0.disk.open.lock().insert(queue.id);
            }
            runner::lost_journal(&error)
        });
        self.remember(queue, &deployment, &journal, &outcome);
        // A step whose undo failed has not unlocked the restore points, and requests still wait. The follow-ups and an unfreeze lock the restore
        // points again.
        deployment.memory.live_app.unlock();
        if let Outcome::Stuck { .. } = outcome
            && let Some(why) = self.unfinished_restore(&deployment.environment, &queue.snapshot().1)
        {
            drop(deployment.services.route(&deployment.environment).set(RouteState::Failed(why)));
        }
        deployment.memory.hold = None;
        let live = queue.state.lock().live.clone().filter(|_| matches!(outcome, Outcome::Live { .. }));
        if let (false, Some(live)) = (recovered, &live) {
            // The scan runs before a person can know of the release and change a file by hand.
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
        // The follow-ups of a recovered deployment wait until the live state is known: see `take_up_followups`.
        if !recovered {
            self.follow_up(queue, deployment, live);
        }
        outcome
    }

    /// Records an end in the history, and updates the live release.
    fn remember(&self, queue: &Queue, deployment: &Deployment, journal: &Journal, outcome: &Outcome) {
        let state = journal.state();
        let mut queue = queue.state.lock();
        if let Some(mut summary) = Summary::of(state) {
            // If the journal failed, its state may have no end, or an end that is not on the disk. The outcome of the verdict is
            // recorded instead.
            summary.outcome = Some(outcome.clone());
            if summary.went_live() || state.is_committed() {
                queue.live = Some(deployment.spec.live());
                let directory = deployment.paths.configuration();
                if let Err(error) = self.services().snapshots.settle(&directory, deployment.spec.configuration.as_ref()) {
                    tracing::error!(error = chain(&error), "cannot remove the record of a staged configuration");
                }
            }
            queue.history.record(summary);
        }
        queue.in_progress = None;
    }

    /// Starts a background task that notifies the observers of an ending. If `recorded_in` is given, records the delivery in this
    /// journal. If the server is killed between the delivery and its record, the next server announces the ending again with the
    /// same id. Without `recorded_in`, the delivery is not recorded.
    pub(super) fn announce(&self, queue: &Queue, announcement: Announcement, recorded_in: Option<(Journal, u32)>) {
        let (services, announcing) = (self.services().clone(), queue.announcing.clone());
        self.0.tasks.spawn(async move {
            let _in_order = announcing.lock().await;
            let id = announcement.id.clone();
            let delivered = services.observers.ending(announcement).await;
            fault::delivered();
            if !delivered {
                return tracing::warn!(
                    id,
                    "observer did not accept an ending; the next server repeats the announcement if a journal has the ending"
                );
            }
            if let Some((mut journal, ending)) = recorded_in
                && let Err(error) = journal.note(Event::Announced { ending })
            {
                tracing::warn!(
                    error = chain(&error),
                    "cannot record an announcement; the next server may repeat the announcement"
                );
            }
        });
    }

    /// Announces each ending that an earlier server recorded in a journal without a record of the announcement. Endings older than
    /// `NEWS_AGE` are skipped, because otherwise the number of announcements to an observer that always fails would grow without limit. The
    /// deployments in `recovered` are skipped, because they ended on this server, which has announced their endings.
    pub(super) fn announce_missed(&self, queue: &Queue, recovered: &[DeploymentId]) {
        let environment = queue.environment();
        let paths = self.services().root.environment(&environment.project, &environment.name);
        let missed: Vec<_> = {
            let state = queue.state.lock();
            let recent = |summary: &&Summary| {
                summary.ended.is_none_or(|at| jiff::Timestamp::now().duration_since(at).unsigned_abs() < NEWS_AGE)
            };
            let missed = state.history.deployments.iter().filter(recent).filter_map(Summary::unannounced);
            missed.filter(|(deployment, ..)| !recovered.contains(deployment)).collect()
        };
        for (deployment, ending, outcome) in missed {
            let announcement = Announcement {
                id: format!("{deployment}.{ending}"),
                at: jiff::Timestamp::now(),
                environment: environment.title(),
                deployment: Some(deployment),
                news: News::Ended(outcome),
            };
            match Journal::open(&paths.deployment(deployment)) {
                Ok(journal) => self.announce(queue, announcement, Some((journal, ending))),
                Err(error) => tracing::warn!(error = chain(&error), "cannot announce an ending"),
            }
        }
    }

    /// Notifies the observers if the environment is frozen because a record on the disk cannot be used. The deployments in `recovered` are
    /// skipped, because this server has announced their ends. Each start repeats the announcement with the same id.
    pub(super) fn announce_unusable_record(&self, queue: &Queue, recovered: &[DeploymentId]) {
        let frozen = {
            let state = queue.state.lock();
            let is_stuck = |id| state.history.deployments.iter().any(|known| known.deployment == id && known.is_stuck());
            state.history.frozen().filter(|(id, _)| !recovered.contains(id) && !is_stuck(*id))
        };
        if let Some((deployment, why)) = frozen {
            self.announce_unusable(queue, deployment, runner::lost_record(why, false));
        }
    }

    fn announce_unusable(&self, queue: &Queue, deployment: DeploymentId, outcome: Outcome) {
        let announcement = Announcement {
            id: format!("{deployment}.unusable"),
            at: jiff::Timestamp::now(),
            environment: queue.environment().title(),
            deployment: Some(deployment),
            news: News::Ended(outcome),
        };
        self.announce(queue, announcement, None);
    }

    /// Notifies the observers that a person has unfrozen an environment. `ending` is the number of the deployment's last end; `None` if the
    /// record of the deployment could not be used.
    pub(super) fn announce_release(&self, queue: &Queue, deployment: DeploymentId, ending: Option<u32>, by: &UserName) {
        let announcement = Announcement {
            id: format!("{deployment}.{}.released", ending.unwrap_or_default()),
            at: jiff::Timestamp::now(),
            environment: queue.environment().title(),
            deployment: Some(deployment),
            news: News::Released { by: by.clone(), was_unusable: ending.is_none() },
        };
        self.announce(queue, announcement, None);
    }
}
