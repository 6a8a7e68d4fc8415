//! Deployments without a push, and plans.

use super::{not_found, refused};
use crate::{
    control::{Caller, CommandError, Control, DeployAction, Kind, Reply, Target},
    git::{GitError, GitFailure, Spec},
    model::{CommitId, Environment, Mode, Origin, Phase, Trigger},
    pipeline::{self, Goal, PipelineError, SupplyError, ThawError},
};

pub(super) async fn deploy(
    control: &Control,
    caller: &Caller,
    target: &Target,
    action: DeployAction,
) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    match action {
        DeployAction::Start { reference, trial } => {
            let trial = trial_of(trial)?;
            let live = control.pipeline().live(environment.id);
            let (commit, goal) = match (reference, live) {
                // What does not build deploys again the very release that is live.
                (None, Some(live)) if environment.mode == Mode::Final => {
                    let goal = Goal::Release { release: live.release, origin: Origin::Past, newest: false, overriding: None };
                    (live.commit, goal)
                }
                (reference, _) => {
                    let commit = resolve(control, &environment, reference).await?;
                    let goal = goal(control, &environment, &commit).await?;
                    (commit, goal)
                }
            };
            let request = wanted(Trigger::Redeploy { by: caller.name() }, environment, commit, goal);
            submit(control, pipeline::Request { trial, ..request })
        }
        DeployAction::Retry => {
            let history = control.pipeline().history(environment.id);
            let failed = history.last_failed().ok_or_else(|| {
                refused(format!("the last deployment of {} did not fail", environment.title()))
                    .hint(format!("`larder deploy {target}` deploys the live commit again"))
            })?;
            let goal = goal(control, &environment, &failed.commit).await?;
            let trigger = Trigger::Redeploy { by: caller.name() };
            submit(control, wanted(trigger, environment, failed.commit.clone(), goal))
        }
        DeployAction::Follow => follow(control, &environment),
        DeployAction::Cancel => {
            let (running, waiting) = control.pipeline().under_way(environment.id);
            // The one that waits only once the other one is on its way out.
            let stoppable = running.clone().filter(|ticket| !ticket.cancel.is_cancelled());
            let ticket = stoppable.or(waiting).or(running);
            let ticket = ticket.ok_or_else(|| not_found(format!("nothing is being deployed to {}", environment.title())))?;
            tracing::warn!(deployment = %ticket.deployment, by = %caller, "cancelled");
            ticket.cancel.cancel();
            Ok(Reply::Cancelling(Box::new(ticket)))
        }
        DeployAction::Unfreeze => {
            let cleared = control.pipeline().thaw(&environment, &caller.name()).await;
            let cleared = cleared.map_err(|error| match error {
                ThawError::NotNow(why) => of_pipeline(&why),
                ThawError::Record(why) => {
                    CommandError::internal(&why).hint("mend the record, or put its directory somewhere else; then run this again")
                }
                ThawError::Still(_) => refused(format!("{} stays frozen: {error}", environment.title())),
            })?;
            match cleared {
                0 => Err(not_found(format!("{} is not frozen", environment.title()))),
                _ => Ok(Reply::Done(format!("{} can be deployed again", environment.title()))),
            }
        }
    }
}

/// Back to an older release: a new deployment, through the same steps.
pub(super) async fn rollback(
    control: &Control,
    caller: &Caller,
    target: &Target,
    release: Option<String>,
) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    let release = tagged(control, &environment, release).await;
    let (release, commit) = control.pipeline().past(environment.id, release.as_deref()).map_err(|error| of_supply(&error))?;
    let goal = Goal::Release { release, origin: Origin::Past, newest: false, overriding: None };
    submit(control, wanted(Trigger::Rollback { by: caller.name() }, environment, commit, goal))
}

/// The id of the release that has this tag now; any other name stays as it is.
pub(super) async fn tagged(control: &Control, environment: &Environment, name: Option<String>) -> Option<String> {
    let name = name?;
    let known = control.pipeline().releases(environment).await.unwrap_or_default();
    let found = known.iter().find(|known| known.number.is_some() && known.tags.contains(&name));
    Some(found.map_or(name, |known| known.release.to_string()))
}

async fn goal(control: &Control, environment: &Environment, commit: &CommitId) -> Result<Goal, CommandError> {
    control.pipeline().goal(environment, commit).await.map_err(|error| of_supply(&error))
}

pub(super) fn of_supply(error: &SupplyError) -> CommandError {
    let shown = match error {
        SupplyError::None { .. } => not_found(error.to_string()),
        SupplyError::Named(_) => refused(error.to_string()).hint("`larder releases` lists what there is"),
        SupplyError::Host(_) => CommandError::internal(error),
    };
    error.hints().into_iter().fold(shown, CommandError::hint)
}

/// A deployment that nobody has pushed.
pub(super) fn wanted(trigger: Trigger, environment: Environment, commit: CommitId, goal: Goal) -> pipeline::Request {
    let branch = environment.branch.clone();
    pipeline::Request { trigger, environment, branch, commit, seen: None, tags: Vec::new(), goal, trial: Vec::new() }
}

/// The phases that are tried where `asked` are asked for: each with what it cannot do without. None for none.
fn trial_of(asked: Vec<Phase>) -> Result<Vec<Phase>, CommandError> {
    if let Some(late) = asked.iter().find(|phase| **phase >= Phase::Deploy) {
        return Err(CommandError::new(Kind::Usage, format!("{late} cannot be tried: it changes what is live"))
            .hint("--only takes phases from gather to bundle; without it, all are run and the release goes live"));
    }
    let needs = |phase: Phase| match phase {
        Phase::Gather => true,
        Phase::Build => asked.iter().any(|later| *later > Phase::Build),
        _ => false,
    };
    let wanted = |phase: &Phase| asked.contains(phase) || needs(*phase);
    Ok(if asked.is_empty() { asked } else { Phase::ALL.into_iter().filter(wanted).collect() })
}

pub(super) fn submit(control: &Control, request: pipeline::Request) -> Result<Reply, CommandError> {
    let ticket = control.pipeline().submit(request);
    ticket.map(|ticket| Reply::Ticket(Box::new(ticket))).map_err(|error| of_pipeline(&error))
}

/// The error of a request that was not even queued.
pub(super) fn of_pipeline(error: &PipelineError) -> CommandError {
    match error {
        PipelineError::NoEnvironment(_) => not_found(error.to_string()),
        PipelineError::Frozen { environment, .. } => refused(error.to_string())
            .hint(format!("look at the server, put right what is named, then run `larder deploy {environment} --unfreeze`")),
        PipelineError::Stopping | PipelineError::Recovering(_) | PipelineError::Busy { .. } => refused(error.to_string()),
        PipelineError::Record { .. } => CommandError::internal(error),
    }
}

async fn resolve(control: &Control, environment: &Environment, reference: Option<String>) -> Result<CommitId, CommandError> {
    let live = control.pipeline().live(environment.id).map(|live| live.commit);
    let spec = match (reference, live) {
        (Some(text), _) => Spec::Text(text),
        (None, Some(live)) => return Ok(live),
        (None, None) => {
            return Err(not_found(format!("nothing is live in {} yet", environment.title()))
                .hint(format!("push the branch {} first, or name a commit with --ref", environment.branch)));
        }
    };
    let found = control.pipeline().services().repositories.resolve(environment.project_id, spec).await;
    found.map_err(|error| match error {
        GitError::Failure(GitFailure::NotFound(_) | GitFailure::BadName(_) | GitFailure::Ambiguous(_)) => {
            not_found(error.to_string()).hint("name a branch, a tag or a commit that was pushed")
        }
        other => CommandError::internal(&other),
    })
}

fn follow(control: &Control, environment: &Environment) -> Result<Reply, CommandError> {
    let (running, waiting) = control.pipeline().under_way(environment.id);
    if let Some(ticket) = running.or(waiting) {
        return Ok(Reply::Ticket(Box::new(ticket)));
    }
    let history = control.pipeline().history(environment.id);
    let last = history.deployments.last().cloned();
    let summary = last.ok_or_else(|| not_found(format!("nothing was ever deployed to {}", environment.title())))?;
    let paths = control.0.root.environment(&environment.project, &environment.name);
    let transcript = std::fs::read(paths.deployment(summary.deployment).join("log")).unwrap_or_default();
    let transcript = String::from_utf8_lossy(&transcript).into_owned();
    Ok(Reply::Past { summary: Box::new(summary), transcript })
}

pub(super) async fn plan(
    control: &Control,
    target: &Target,
    reference: Option<String>,
    only: &[Phase],
) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    if reference.is_some() {
        // A plan for something that is not there would be a promise about nothing.
        resolve(control, &environment, reference).await?;
    }
    let plan = control.pipeline().plan(&environment, only);
    if plan.names().is_empty() {
        return Err(CommandError::new(Kind::Usage, format!("no step of {} is in these phases", environment.title())));
    }
    Ok(Reply::Plan(plan.to_string()))
}
