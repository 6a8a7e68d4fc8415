//! The only loop that walks a plan, and the only one that reverts it.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures_util::FutureExt;

use super::{
    context::Deployment,
    failure::Failure,
    fault,
    journal::{Journal, JournalError, JournalState},
    observe::News,
    plan::Plan,
    step::Step,
    util::{chain, run_blocking, seconds},
};
use crate::model::{Blame, Event, Fault, Outcome, Phase, StepStatus};

/// The time limit of one undo. It is the server's: the recipe of a release that failed cannot stretch it. It leaves time to drain
/// and to stop processes that do not end by themselves.
const UNDO_TIMEOUT: Duration = Duration::from_secs(300);

/// Walks `plan` from the first step that is not done, and unwinds if a step fails. The journal records every move before the
/// next one is made. Returns the outcome, which the caller records.
pub async fn run(plan: &Plan, deployment: &mut Deployment, journal: &mut Journal) -> Result<Outcome, JournalError> {
    let mut clock = PhaseClock::default();
    for step in plan.steps() {
        if journal.state().status(step.name()) == StepStatus::Done {
            continue;
        }
        clock.enter(step.phase(), deployment);
        let started = Event::Started { step: step.name().to_owned() };
        if step.is_durable(deployment) {
            run_blocking(|| journal.append(started))?
        } else {
            journal.note(started)?
        }
        let before = deployment.facts.clone();
        let done = attempt(step, deployment).await;
        match done.and_then(|()| deployment.facts.changed_facts(&before)) {
            Ok(facts) => {
                // The start of the next durable step brings this event to the disk, too. Should the power be cut before that, the
                // step is reverted or done again, as if it had been cut half-way.
                journal.note(Event::Succeeded { step: step.name().to_owned(), facts })?;
                if step.name() == deployment.spec.commit_point.as_str() {
                    deployment.services.observers.milestone(deployment.announcement("committed", News::Committed));
                }
            }
            Err(failure) => {
                clock.leave(deployment);
                let fault = failure.in_phase(step.phase());
                deployment.transcript.error(&fault.to_string());
                for hint in &fault.hints {
                    deployment.transcript.error(&format!("hint: {hint}"));
                }
                journal.append(Event::Failed { step: step.name().to_owned(), fault: fault.clone() })?;
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

async fn attempt(step: &dyn Step, deployment: &mut Deployment) -> Result<(), Failure> {
    if fault::step_fails(step.name()) {
        return Err(Failure::pusher("told to fail before its work"));
    }
    let runs = if fault::everything_twice() { 2 } else { 1 };
    for _ in 0..runs {
        caught(step.name(), bounded(step, deployment)).await?;
    }
    if fault::step_fails(&format!("{}.late", step.name())) {
        return Err(Failure::pusher("told to fail after its work"));
    }
    Ok(())
}

/// Turns a panic into a failure. The changes of the step in memory may be incomplete; the step is unwound all the same, and an
/// undo must cope with a step that got nowhere.
async fn caught(step: &str, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    ended.unwrap_or_else(|panic| {
        let why = message(&*panic);
        tracing::error!(step, why, "step panicked");
        Err(Failure::internal(format!("internal error in {step}: {why}"))
            .hint("this is a defect of larder; the server's log has more"))
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| String::from("it panicked"))
}

/// Runs a step until it ends, or is ended by its time limit or a cancel; processes that it started die with it. The wait for its
/// permits does not count.
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

/// Reverts a deployment that failed, and returns its outcome. A cancel does not stop it.
pub async fn unwind(
    plan: &Plan,
    deployment: &mut Deployment,
    journal: &mut Journal,
    fault: Fault,
) -> Result<Outcome, JournalError> {
    Ok(match revert(plan, deployment, journal).await? {
        (_, Some(undo)) => Outcome::Stuck { fault, undo },
        (true, None) => Outcome::RolledBack { fault },
        (false, None) => Outcome::Refused { fault },
    })
}

/// Reverts, in reverse order, every step that was begun and not yet reverted. Returns whether anything had been changed, and the
/// first step that could not be reverted with the reason.
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
        journal.append(Event::UndoStarted { step: step.name().to_owned() })?;
        let undone = match fault::undo_fails(step.name()) {
            true => Err(Failure::blameless("told to fail")),
            false => undo(step, deployment).await,
        };
        match undone {
            Ok(()) => journal.append(Event::UndoFinished { step: step.name().to_owned() })?,
            Err(failure) => {
                tracing::error!(step = step.name(), why = failure.why, "an undo failed");
                deployment.transcript.error(&format!("reverting {} failed: {}", step.name(), failure.why));
                broken.get_or_insert_with(|| format!("{}: {}", step.name(), failure.why));
                journal.append(Event::UndoFailed { step: step.name().to_owned(), why: failure.why })?;
            }
        }
        if deployment.memory.cancelled.is_cancelled() && !std::mem::replace(&mut told, true) {
            deployment.transcript.error("cancelled: the deployment is being reverted already, and this goes on to its end");
        }
    }
    Ok((changed, broken))
}

/// Returns the steps that were begun and are not reverted yet, last one first.
pub(super) fn to_undo<'p>(plan: &'p Plan, state: &JournalState) -> impl Iterator<Item = &'p dyn Step> {
    plan.steps().rev().filter(|step| !matches!(state.status(step.name()), StepStatus::Waiting | StepStatus::Undone))
}

async fn undo(step: &dyn Step, deployment: &mut Deployment) -> Result<(), Failure> {
    let undoing = tokio::time::timeout(UNDO_TIMEOUT, step.undo(deployment));
    let late = || Failure::blameless(format!("took longer than {}", seconds(UNDO_TIMEOUT)));
    caught(step.name(), async { undoing.await.unwrap_or_else(|_| Err(late())) }).await
}

/// Returns the fault of a deployment whose journal could not be begun.
pub fn no_journal(error: &JournalError) -> Fault {
    Failure::host(error).hint("look at the disk, then push again").in_phase(Phase::Gather)
}

/// Returns the outcome of a deployment whose journal failed. It freezes the environment until a person has inspected it.
pub fn lost_journal(error: &JournalError) -> Outcome {
    let fault = Fault {
        phase: Phase::Gather,
        blame: Blame::Host,
        why: String::from("the record of this deployment could not be written"),
        hints: vec![String::from(
            "look at the disk, then run `larder deploy --unfreeze`, which reads the record again and finishes or reverts the deployment",
        )],
    };
    Outcome::Stuck { fault, undo: chain(error) }
}

/// Prints each phase with its time.
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
