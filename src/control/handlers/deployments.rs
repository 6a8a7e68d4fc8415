//! Deployments without a push, and plans.

use super::{not_found, refused};
use crate::{
    control::{Caller, CommandError, Control, DeployAction, Kind, Reply, Target},
    git::{GitError, GitFailure, Spec},
    model::{CommitId, Environment, Phase, Trigger},
    pipeline::{self, PipelineError},
};

pub(super) async fn deploy(
    control: &Control,
    caller: &Caller,
    target: &Target,
    action: DeployAction,
) -> Result<Reply, CommandError> {
    let environment = control.environment(target)?;
    match action {
        DeployAction::Start { reference } => {
            let commit = resolve(control, &environment, reference).await?;
            submit(control, caller, environment, commit)
        }
        DeployAction::Retry => {
            let history = control.pipeline().history(environment.id);
            let failed = history.deployments.last().filter(|summary| !summary.went_live());
            let failed = failed.ok_or_else(|| {
                refused(format!("the last deployment of {} did not fail", environment.title()))
                    .hint(format!("`larder deploy {target}` deploys the live commit again"))
            })?;
            submit(control, caller, environment, failed.commit.clone())
        }
        DeployAction::Follow => follow(control, &environment),
        DeployAction::Cancel => {
            let (running, waiting) = control.pipeline().under_way(environment.id);
            let ticket = waiting.or(running);
            let ticket = ticket.ok_or_else(|| not_found(format!("nothing is being deployed to {}", environment.title())))?;
            tracing::warn!(deployment = %ticket.deployment, by = %caller, "cancelled");
            ticket.cancel.cancel();
            Ok(Reply::Cancelling(Box::new(ticket)))
        }
        DeployAction::Unfreeze => {
            let cleared = control.pipeline().thaw(environment.id, caller.name());
            match cleared.map_err(|error| CommandError::internal(&error))? {
                0 => Err(not_found(format!("{} is not frozen", environment.title()))),
                _ => Ok(Reply::Done(format!("{} can be deployed again", environment.title()))),
            }
        }
    }
}

fn submit(control: &Control, caller: &Caller, environment: Environment, commit: CommitId) -> Result<Reply, CommandError> {
    let trigger = Trigger::Redeploy { by: caller.name() };
    let branch = environment.branch.clone();
    let ticket =
        control.pipeline().submit(pipeline::Request { trigger, environment, branch, commit, seen: None, tags: Vec::new() });
    ticket.map(|ticket| Reply::Ticket(Box::new(ticket))).map_err(|error| of_pipeline(&error))
}

/// The error of a request that was not even queued.
pub(super) fn of_pipeline(error: &PipelineError) -> CommandError {
    match error {
        PipelineError::NoEnvironment(_) => not_found(error.to_string()),
        PipelineError::Frozen { environment, .. } => refused(error.to_string())
            .hint(format!("look at the server, put right what is named, then run `larder deploy {environment} --unfreeze`")),
        PipelineError::Stopping => refused(error.to_string()),
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
