//! The only loop that executes a plan, and the only loop that reverts a plan.

use std::{any::Any, panic::AssertUnwindSafe, time::Instant};

use futures_util::FutureExt;

use super::{
    context::Deployment,
    failure::Failure,
    fault,
    journal::{Journal, JournalError, JournalState},
    observe::News,
    plan::Plan,
    space_wait::{self, SpaceWait, is_out_of_space},
    step::Step,
    util::{chain, run_blocking, seconds},
    verdict::{self, UNRESTORED},
};
use crate::{
    model::{Blame, Event, Fault, Outcome, Phase, StepStatus},
    proxy::RouteState,
};

/// Executes `plan` from the first step that is not done, and unwinds the deployment if a step fails. The journal records every event before
/// the next action begins. Returns the outcome, which the caller records.
pub async fn run(plan: &Plan, deployment: &mut Deployment, journal: &mut Journal) -> Result<Outcome, JournalError> {
    let mut clock = PhaseClock::default();
    for step in plan.steps() {
        if journal.state().status(step.name()) == StepStatus::Done {
            continue;
        }
        clock.enter(step.phase(), deployment);
        let started = Event::Started { step: step.name().to_owned() };
        let sync = step.is_durable(deployment);
        record(deployment, journal, started, sync).await?;
        let before = deployment.facts.clone();
        let done = attempt(step, deployment).await;
        match done.and_then(|()| deployment.facts.changed_facts(&before)) {
            Ok(facts) => {
                // The sync of the next durable step's start also writes this event to the disk. If the power fails before that sync, the
                // step is reverted or repeated, as if it had been interrupted.
                let succeeded = Event::Succeeded { step: step.name().to_owned(), facts };
                if step.name() == deployment.spec.commit_point.as_str() {
                    commit(deployment, journal, succeeded).await?;
                    step.committed(deployment);
                    deployment.services.observers.milestone(deployment.announcement("committed", News::Committed));
                } else {
                    record(deployment, journal, succeeded, false).await?;
                }
            }
            Err(mut failure) => {
                clock.leave(deployment);
                space_wait::explain(deployment, &mut failure);
                let fault = failure.redacted(|text| deployment.transcript.redacted(text)).in_phase(step.phase());
                verdict::print_fault(&deployment.transcript, &fault.to_string(), &fault);
                record(deployment, journal, Event::Failed { step: step.name().to_owned(), fault: fault.clone() }, true).await?;
                return unwind(plan, deployment, journal, fault).await;
            }
        }
    }
    clock.leave(deployment);
    let spec = &deployment.spec;
    if spec.dry_run.is_empty() {
        return Ok(Outcome::Live { release: spec.release, number: spec.number });
    }
    let (_, broken) = revert(plan, deployment, journal).await?;
    Ok(match broken {
        None => Outcome::Tried,
        Some(undo) => {
            let phase = plan.steps().last().map_or(Phase::Gather, Step::phase);
            Outcome::Stuck { fault: Failure::blameless("the dry run succeeded").in_phase(phase), undo }
        }
    })
}

/// Records an event, with a sync if `sync` is true. On a full disk, the deployment stays open and waits for space.
pub async fn record(deployment: &Deployment, journal: &mut Journal, event: Event, sync: bool) -> Result<(), JournalError> {
    let mut wait = SpaceWait::new();
    loop {
        let event = event.clone();
        // A write without a sync takes less time than the hand-over of this thread's other tasks to another thread.
        let recorded = if sync { run_blocking(|| journal.append(event)) } else { journal.note(event) };
        match recorded {
            Err(error) if error.is_no_space() && wait.goes_on(deployment, "write the journal").await => {}
            recorded => return recorded,
        }
    }
}

/// Records that the deployment has passed its commit point. If requests wait, the record is on the disk before they continue: a server that
/// does not find the record restores the data, and would lose the writes of these requests.
async fn commit(deployment: &mut Deployment, journal: &mut Journal, succeeded: Event) -> Result<(), JournalError> {
    let sync = deployment.memory.hold.is_some();
    let recorded = record(deployment, journal, succeeded, sync).await;
    match recorded {
        Ok(()) => deployment.memory.committed = true,
        Err(_) if deployment.memory.hold.is_some() => {
            let route = deployment.services.route(&deployment.environment);
            drop(route.set(RouteState::Failed(String::from("cannot write the journal of the deployment"))));
        }
        Err(_) => {}
    }
    recorded
}

async fn attempt(step: &dyn Step, deployment: &mut Deployment) -> Result<(), Failure> {
    if fault::step_fails(step.name()) {
        return Err(Failure::pusher("stopped by a failpoint before its work"));
    }
    let runs = if fault::everything_twice() { 2 } else { 1 };
    for _ in 0..runs {
        caught(step.name(), bounded(step, deployment)).await?;
    }
    if fault::step_fails(&format!("{}.late", step.name())) {
        return Err(Failure::pusher("stopped by a failpoint after its work"));
    }
    Ok(())
}

/// Turns a panic into a failure. The changes of the step in memory may be incomplete. The step is unwound nevertheless, so every undo must
/// handle a step that has done only a part of its work.
async fn caught(step: &str, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    ended.unwrap_or_else(|panic| {
        let why = message(&*panic);
        tracing::error!(step, why, "step panicked");
        Err(Failure::internal(format!("internal error in {step}: {why}"))
            .hint("report this defect of larder, with the server's log"))
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| String::from("panic without a message"))
}

/// Runs a step until the step ends, its time limit expires, or the deployment is cancelled. At the time limit or a cancel, the processes
/// that the step started are killed. The time limit does not include the wait for permits.
async fn bounded(step: &dyn Step, deployment: &mut Deployment) -> Result<(), Failure> {
    let cancelled = deployment.memory.cancelled.clone();
    let gone = || Err(Failure::blameless("cancelled"));
    let _acquired = tokio::select! {
        biased;
        () = cancelled.cancelled() => return gone(),
        acquired = step.acquire(deployment) => acquired?,
    };
    fault::step_panics(step.name());
    let (limit, late) = step.limit(deployment);
    tokio::select! {
        biased;
        () = cancelled.cancelled(), if step.interruptible() => gone(),
        () = tokio::time::sleep(limit), if step.interruptible() => Err(late),
        ended = step.run(deployment) => ended,
    }
}

/// Reverts a deployment that failed, and returns its outcome. A cancel does not stop the unwinding.
pub async fn unwind(
    plan: &Plan,
    deployment: &mut Deployment,
    journal: &mut Journal,
    mut fault: Fault,
) -> Result<Outcome, JournalError> {
    if let Some(point) = unrestored(deployment, journal.state()) {
        let target = deployment.environment.target();
        fault.hints.push(format!("{UNRESTORED}; to restore it as it was before: larder backup restore {target} {point} --yes"));
    }
    Ok(match revert(plan, deployment, journal).await? {
        (_, Some(undo)) => Outcome::Stuck { fault, undo },
        (true, None) => Outcome::RolledBack { fault },
        (false, None) => Outcome::Refused { fault },
    })
}

/// Reverts, in reverse order, every step that was begun and is not reverted yet. Returns two values: true if one of these steps is after
/// the phase pre_install, and the first step that could not be reverted, with the reason.
async fn revert(plan: &Plan, deployment: &mut Deployment, journal: &mut Journal) -> Result<(bool, Option<String>), JournalError> {
    let mut changed = false;
    let mut broken = None;
    let mut told = deployment.memory.cancelled.is_cancelled();
    let steps: Vec<_> = to_undo(plan, journal.state()).collect();
    for step in steps {
        changed |= step.phase() > Phase::PreInstall;
        if step.phase() > Phase::PreInstall {
            deployment.transcript.detail(&format!("reverting {}", step.name()));
        }
        record(deployment, journal, Event::UndoStarted { step: step.name().to_owned() }, true).await?;
        let mut undone = match still_done(step, journal.state()) {
            Some(later) => Err(Failure::blameless(format!("{later} is not reverted"))),
            None if fault::undo_fails(step.name()) => Err(Failure::blameless("stopped by a failpoint")),
            None => undo_with_space(step, deployment).await?,
        };
        if undone.is_ok() && fault::undo_fails(&format!("{}.late", step.name())) {
            undone = Err(Failure::blameless("stopped by a failpoint after its work"));
        }
        match undone {
            Ok(()) => record(deployment, journal, Event::UndoFinished { step: step.name().to_owned() }, true).await?,
            Err(failure) => {
                tracing::error!(step = step.name(), why = failure.why, "an undo failed");
                deployment.transcript.error(&format!("cannot revert {}: {}", step.name(), failure.why));
                broken.get_or_insert_with(|| format!("{}: {}", step.name(), failure.why));
                record(deployment, journal, Event::UndoFailed { step: step.name().to_owned(), why: failure.why }, true).await?;
            }
        }
        if deployment.memory.cancelled.is_cancelled() && !std::mem::replace(&mut told, true) {
            deployment.transcript.error("cannot cancel: the deployment is already being reverted");
        }
    }
    Ok((changed, broken))
}

/// Returns the steps that were begun and are not reverted yet, in reverse order.
pub(super) fn to_undo<'p>(plan: &'p Plan, state: &JournalState) -> impl Iterator<Item = &'p dyn Step> {
    plan.steps().rev().filter(|step| !matches!(state.status(step.name()), StepStatus::Waiting | StepStatus::Undone))
}

/// Returns the first step that must be reverted before `step` and is not reverted.
fn still_done(step: &dyn Step, state: &JournalState) -> Option<&'static str> {
    let is_reverted = |later: &&&str| matches!(state.status(later), StepStatus::Waiting | StepStatus::Undone);
    step.undone_after().iter().find(|later| !is_reverted(later)).copied()
}

/// Returns the restore point from before the upgrade, if the upgrade command was begun and the unwinding does not restore the data.
fn unrestored<'d>(deployment: &'d Deployment, state: &JournalState) -> Option<&'d str> {
    let upgrade = deployment.facts.upgrade.as_ref()?;
    let stays = deployment.memory.committed || !upgrade.is_held();
    upgrade.point.as_deref().filter(|_| stays && state.status("deploy.release") != StepStatus::Waiting)
}

/// Reverts a step. If the disk is full, waits for space and repeats the undo.
async fn undo_with_space(step: &dyn Step, deployment: &mut Deployment) -> Result<Result<(), Failure>, JournalError> {
    let mut wait = SpaceWait::new();
    loop {
        match undo(step, deployment).await {
            Err(failure) if is_out_of_space(deployment, &failure) => {
                tracing::warn!(step = step.name(), why = failure.why, "an undo failed on a full disk");
                if !wait.goes_on(deployment, &format!("revert {}", step.name())).await {
                    return Err(JournalError::NoSpace { step: step.name().to_owned(), why: failure.why });
                }
            }
            undone => return Ok(undone),
        }
    }
}

async fn undo(step: &dyn Step, deployment: &mut Deployment) -> Result<(), Failure> {
    let limit = step.undo_limit();
    let undoing = tokio::time::timeout(limit, step.undo(deployment));
    let late = || Failure::blameless(format!("the undo took longer than {}", seconds(limit)));
    caught(step.name(), async { undoing.await.unwrap_or_else(|_| Err(late())) }).await
}

/// Returns the fault of a deployment whose journal could not be created.
pub fn no_journal(deployment: &Deployment, error: &JournalError) -> Fault {
    let mut failure = Failure::host(error).hint("check the server's disk, then push again");
    space_wait::explain(deployment, &mut failure);
    failure.in_phase(Phase::Gather)
}

/// Returns the outcome of a deployment whose journal failed. This outcome freezes the environment until a person has inspected
/// the journal.
pub fn lost_journal(error: &JournalError) -> Outcome {
    lost_record(chain(error), error.is_no_space())
}

/// Returns the outcome of a deployment whose environment is frozen because a record cannot be used, for the reason `why`.
pub fn lost_record(why: String, is_no_space: bool) -> Outcome {
    let fault = Fault {
        phase: Phase::Gather,
        blame: Blame::Host,
        why: String::from("cannot use the journal of this deployment"),
        hints: vec![String::from(match is_no_space {
            true => "free space on the server's disk; larder then finishes or reverts the deployment by itself",
            false => {
                "check the server's disk, then run `larder deploy --unfreeze`, which reads the journal again and finishes or reverts the deployment"
            }
        })],
    };
    Outcome::Stuck { fault, undo: why }
}

/// The clock that prints each phase with its time.
#[derive(Default)]
struct PhaseClock(Option<(Phase, Instant)>);

impl PhaseClock {
    fn enter(&mut self, phase: Phase, deployment: &Deployment) {
        if self.0.is_none_or(|(current, _)| current != phase) {
            self.leave(deployment);
            self.0 = Some((phase, Instant::now()));
        }
    }

    fn leave(&mut self, deployment: &Deployment) {
        if let Some((phase, since)) = self.0.take() {
            deployment.transcript.title(&format!("{phase}: {}", seconds(since.elapsed())));
        }
    }
}
