//! The only loop that walks a plan, and the only one that walks it back.

use std::time::{Duration, Instant};

use super::{
    context::Deployment,
    facts::Facts,
    fault,
    journal::{Journal, JournalError},
    plan::Plan,
    step::{Failure, Step, chain},
};
use crate::model::{Blame, Event, Fault, Outcome, Phase, Status};

/// The most bytes of what the steps of a deployment find out: with room for the rest of a line of the journal.
const FACTS_MAX: usize = 768 * 1024;

/// Walks `plan` from the first step that is not done, and unwinds if a step fails. The journal records every move before the
/// next one is made. Returns how the deployment ended; the caller records that.
pub async fn run(plan: &Plan, deployment: &mut Deployment, journal: &mut Journal) -> Result<Outcome, JournalError> {
    let mut clock = PhaseClock::default();
    for step in plan.steps() {
        if journal.story().status(step.name()) == Status::Done {
            continue;
        }
        clock.enter(step.phase(), deployment);
        let started = Event::Started { step: step.name().to_owned() };
        if step.lasts(deployment) {
            aside(|| journal.append(started))?
        } else {
            journal.note(started)?
        }
        let before = deployment.facts.clone();
        let done = attempt(step, deployment).await;
        match done.and_then(|()| news(&before, &deployment.facts)) {
            Ok(facts) => {
                // What follows from it is the next lasting step, whose start brings this to the disk, too. Should the power be cut
                // before that, the step is put back or done again, as if it had been cut half-way.
                journal.note(Event::Succeeded { step: step.name().to_owned(), facts })?;
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
    let order = &deployment.order;
    if order.trial.is_empty() {
        return Ok(Outcome::Live { release: order.release, number: order.number });
    }
    let (_, broken) = put_back(plan, deployment, journal).await?;
    Ok(match broken {
        None => Outcome::Tried,
        Some(undo) => {
            let phase = plan.steps().last().map_or(Phase::Gather, Step::phase);
            Outcome::Stuck { fault: Failure::nobody("it was only a trial").in_phase(phase), undo }
        }
    })
}

/// Runs what waits for the disk without keeping the tasks of this thread waiting.
pub(super) fn aside<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// What the journal keeps of a step besides that it succeeded.
fn news(before: &Facts, now: &Facts) -> Result<serde_json::Value, Failure> {
    if now == before {
        return Ok(serde_json::Value::Null);
    }
    let value = serde_json::to_value(now).map_err(|error| Failure::host(&error))?;
    let bytes = serde_json::to_vec(&value).map_or(0, |bytes| bytes.len());
    if bytes > FACTS_MAX {
        let why = format!("variables and settings take {} KiB in all, and {} are allowed", bytes >> 10, FACTS_MAX >> 10);
        return Err(Failure::pusher(why).hint("make `env:` smaller, and what phase scripts leave in $LARDER_VARIABLES"));
    }
    Ok(value)
}

async fn attempt(step: &dyn Step, deployment: &mut Deployment) -> Result<(), Failure> {
    if fault::step_fails(step.name()) {
        return Err(Failure::pusher("told to fail before its work"));
    }
    let runs = if fault::everything_twice() { 2 } else { 1 };
    for _ in 0..runs {
        bounded(step, deployment).await?;
    }
    if fault::step_fails(&format!("{}.late", step.name())) {
        return Err(Failure::pusher("told to fail after its work"));
    }
    Ok(())
}

/// A step ends by itself, at its time limit, or when somebody cancels; whatever it started dies with it. What it has to wait for
/// before it begins does not count.
async fn bounded(step: &dyn Step, deployment: &mut Deployment) -> Result<(), Failure> {
    let cancelled = deployment.cancelled.clone();
    let gone = || Err(Failure::nobody("cancelled"));
    let _admitted = tokio::select! {
        biased;
        () = cancelled.cancelled() => return gone(),
        admitted = step.admission(deployment) => admitted?,
    };
    let (limit, late) = step.limit(deployment);
    tokio::select! {
        biased;
        () = cancelled.cancelled(), if step.interruptible() => gone(),
        () = tokio::time::sleep(limit) => Err(late),
        ended = step.run(deployment) => ended,
    }
}

/// Puts back what a deployment that failed has done.
pub async fn unwind(
    plan: &Plan,
    deployment: &mut Deployment,
    journal: &mut Journal,
    fault: Fault,
) -> Result<Outcome, JournalError> {
    Ok(match put_back(plan, deployment, journal).await? {
        (_, Some(undo)) => Outcome::Stuck { fault, undo },
        (true, None) => Outcome::RolledBack { fault },
        (false, None) => Outcome::Refused { fault },
    })
}

/// Puts back, in reverse order, every step that was begun and not yet put back. Gives whether anything had been changed, and what
/// could not be put back.
async fn put_back(
    plan: &Plan,
    deployment: &mut Deployment,
    journal: &mut Journal,
) -> Result<(bool, Option<String>), JournalError> {
    let mut changed = false;
    let mut broken = None;
    for step in plan.steps().rev() {
        if matches!(journal.story().status(step.name()), Status::Waiting | Status::Undone) {
            continue;
        }
        changed |= step.phase() > Phase::PreInstall;
        journal.append(Event::UndoStarted { step: step.name().to_owned() })?;
        let undone = match fault::undo_fails(step.name()) {
            true => Err(Failure::nobody("told to fail")),
            false => step.undo(deployment).await,
        };
        match undone {
            Ok(()) => journal.append(Event::UndoFinished { step: step.name().to_owned() })?,
            Err(failure) => {
                tracing::error!(step = step.name(), why = failure.why, "an undo failed");
                deployment.transcript.error(&format!("putting back {} failed: {}", step.name(), failure.why));
                broken.get_or_insert_with(|| format!("{}: {}", step.name(), failure.why));
                journal.append(Event::UndoFailed { step: step.name().to_owned(), why: failure.why })?;
            }
        }
    }
    Ok((changed, broken))
}

/// Why a deployment was not even begun, whose record could not be.
pub fn no_journal(error: &JournalError) -> Fault {
    Failure::host(error).hint("look at the disk, then push again").in_phase(Phase::Gather)
}

/// The outcome of a deployment whose own record failed: nothing more may happen to the environment until a person has looked.
pub fn lost_journal(error: &JournalError) -> Outcome {
    let fault = Fault {
        phase: Phase::Gather,
        blame: Blame::Host,
        why: String::from("the record of this deployment could not be written"),
        hints: vec![String::from(
            "look at the disk, then run `larder deploy --unfreeze`, which reads the record again and puts things right",
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

/// A duration for people: `12 ms`, `3.4 s`, `2 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ ..1_000 => format!("{millis} ms"),
        _ if duration.as_secs() < 60 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_that_no_line_of_the_journal_can_hold_are_the_projects_to_mend() {
        let before = Facts::default();
        assert_eq!(news(&before, &before), Ok(serde_json::Value::Null));
        let mut now = Facts::default();
        now.env.insert(String::from("SMALL"), "x".repeat(500 * 1024));
        assert!(news(&before, &now).is_ok_and(|news| news["env"]["SMALL"].is_string()));
        now.env.insert(String::from("LARGE"), "x".repeat(300 * 1024));
        let failure = news(&before, &now).unwrap_err();
        assert!(failure.blame == Blame::Pusher && failure.why.contains("KiB"), "{failure:?}");
    }
}
