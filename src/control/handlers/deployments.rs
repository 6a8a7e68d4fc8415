//! Requests for deployments without a push, for rollbacks and for plans.

use serde::Serialize;

use super::protect::ensure_permitted;
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, not_found, refused, usage},
        request::{Context, DeploymentGoal, Reply, Request, Stream},
        state::Control,
    },
    git::{CommitSpec, GitError, GitFailure},
    model::{Access, CommitId, Environment, Mode, Origin, Phase, ReleaseNameForm, Target, Trigger},
    pipeline::{self, Goal, PipelineError, Summary, SupplyError, ThawError},
};

/// The request to start, retry, follow or cancel a deployment, or to unfreeze an environment.
#[derive(Debug)]
pub struct Deploy {
    /// The environment.
    pub target: Target,
    /// The action.
    pub action: DeployAction,
}

/// An action of [`Deploy`].
#[derive(Debug)]
pub enum DeployAction {
    /// Deploys a commit that the server has.
    Start {
        /// A branch, a tag or a commit; the live commit if absent.
        reference: Option<String>,
        /// The phases of a dry run; empty for a deployment that goes live.
        dry_run: Vec<Phase>,
    },
    /// Deploys the commit of the last deployment again, if that deployment failed.
    Retry,
    /// Follows the deployment in flight, or shows the last deployment if no deployment is in flight.
    Follow,
    /// Stops the deployment in flight and reverts its changes, or cancels the queued deployment if no deployment is in flight.
    Cancel,
    /// Allows deployments to a frozen environment again.
    Unfreeze,
}

/// The answer to [`Deploy`] if no deployment is followed.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum DeployView {
    /// The last deployment, which has ended.
    Past {
        /// The summary of the deployment.
        deployment: Box<Summary>,
        /// The output of the deployment.
        transcript: String,
    },
    /// An environment that can be deployed again.
    Unfrozen {
        /// The environment, as `project/environment`.
        environment: String,
    },
}

impl Request for Deploy {
    type View = DeployView;
    const NAME: &'static str = "deploy";

    fn needs(&self) -> Needs {
        let needed = match self.action {
            DeployAction::Follow => Access::View,
            DeployAction::Retry | DeployAction::Cancel => Access::Push,
            DeployAction::Start { .. } => Access::Deploy,
            DeployAction::Unfreeze => Access::Operate,
        };
        Needs::environment(&self.target, needed)
    }

    async fn handle(self, context: &Context<'_>) -> Result<Reply<DeployView>, CommandError> {
        let Context { control, caller } = context;
        let environment = control.environment(&self.target)?;
        match self.action {
            DeployAction::Start { reference, dry_run } => start(context, environment, reference, dry_run).await,
            DeployAction::Retry => {
                let history = control.pipeline().history(environment.id);
                let failed = history.last_failed().ok_or_else(|| {
                    refused(format!("the last deployment of {} did not fail", environment.title()))
                        .hint(format!("deploy the live commit again with `larder deploy {}`", self.target))
                })?;
                let goal = goal(control, &environment, &failed.commit).await?;
                let trigger = Trigger::Redeploy { by: caller.name() };
                submit(control, deployment(trigger, environment, failed.commit.clone(), goal))
            }
            DeployAction::Follow => follow(control, &environment),
            DeployAction::Cancel => cancel(context, &environment),
            DeployAction::Unfreeze => unfreeze(context, &environment).await,
        }
    }
}

async fn start(
    Context { control, caller }: &Context<'_>,
    environment: Environment,
    reference: Option<String>,
    dry_run: Vec<Phase>,
) -> Result<Reply<DeployView>, CommandError> {
    let phases = dry_run_phases(dry_run)?;
    let live = control.pipeline().live(environment.id);
    let (commit, goal) = match (reference, live) {
        // An environment that does not build deploys the live release again.
        (None, Some(live)) if environment.mode == Mode::Final => {
            let goal = Goal::Release { release: live.release, origin: Origin::Previous, newest: false, overriding: None };
            (live.commit, goal)
        }
        (reference, _) => {
            let commit = resolve(control, &environment, reference).await?;
            let goal = goal(control, &environment, &commit).await?;
            (commit, goal)
        }
    };
    let request = deployment(Trigger::Redeploy { by: caller.name() }, environment, commit, goal);
    submit(control, pipeline::DeployRequest { dry_run: phases, ..request })
}

fn follow(control: &Control, environment: &Environment) -> Result<Reply<DeployView>, CommandError> {
    let (running, waiting) = control.pipeline().under_way(environment.id);
    if let Some(ticket) = running.or(waiting) {
        return Ok(Reply::Stream(Stream::deployment(ticket)));
    }
    let history = control.pipeline().history(environment.id);
    let last = history.deployments.last().cloned();
    let deployment = last.ok_or_else(|| not_found(format!("nothing was ever deployed to {}", environment.title())))?;
    let paths = control.root().environment(&environment.project, &environment.name);
    let transcript = std::fs::read(paths.deployment(deployment.deployment).join("log")).unwrap_or_default();
    let transcript = String::from_utf8_lossy(&transcript).into_owned();
    Ok(DeployView::Past { deployment: Box::new(deployment), transcript }.into())
}

fn cancel(Context { control, caller }: &Context<'_>, environment: &Environment) -> Result<Reply<DeployView>, CommandError> {
    let (running, waiting) = control.pipeline().under_way(environment.id);
    // The queued deployment is cancelled only if no deployment is running, or if the running deployment is being cancelled already.
    let stoppable = running.clone().filter(|ticket| !ticket.cancel.is_cancelled());
    let ticket = stoppable.or(waiting).or(running);
    let ticket = ticket.ok_or_else(|| not_found(format!("nothing is being deployed to {}", environment.title())))?;
    tracing::warn!(deployment = %ticket.deployment, by = %caller, "deployment cancelled");
    ticket.cancel.cancel();
    Ok(Reply::Stream(Stream::Deployment { ticket: Box::new(ticket), goal: DeploymentGoal::Reverted }))
}

async fn unfreeze(
    Context { control, caller }: &Context<'_>,
    environment: &Environment,
) -> Result<Reply<DeployView>, CommandError> {
    let cleared = control.pipeline().thaw(environment, &caller.name()).await;
    let cleared = cleared.map_err(|error| match error {
        ThawError::NotNow(why) => of_pipeline(&why),
        ThawError::Record(why) => CommandError::internal(&why)
            .hint("repair the record of the deployment, or move its directory away; then run this command again"),
        ThawError::Slots(_) | ThawError::Restore(_) | ThawError::Still(_) => {
            refused(format!("{} stays frozen: {error}", environment.title()))
        }
    })?;
    match cleared {
        0 => Err(not_found(format!("{} is not frozen", environment.title()))),
        _ => Ok(DeployView::Unfrozen { environment: environment.title() }.into()),
    }
}

/// Returns the id of the release that has the tag `name` now. Returns `name` itself if no release has this tag, or if `name` has the form of
/// a number.
pub(super) async fn id_of_tag(control: &Control, environment: &Environment, name: Option<String>) -> Option<String> {
    let name = name?;
    let known = control.pipeline().releases(environment).await.unwrap_or_default();
    let tag = ReleaseNameForm::of(&name).tag();
    let found = known.iter().find(|known| known.number.is_some() && known.tags.iter().any(|other| Some(other.as_str()) == tag));
    Some(found.map_or(name, |known| known.release.to_string()))
}

async fn goal(control: &Control, environment: &Environment, commit: &CommitId) -> Result<Goal, CommandError> {
    control.pipeline().goal(environment, commit).await.map_err(|error| of_supply(&error))
}

pub(super) fn of_supply(error: &SupplyError) -> CommandError {
    let shown = match error {
        // An unreachable remote may have the release, so the release is not reported as missing.
        SupplyError::None { unreachable, .. } if !unreachable.is_empty() => refused(error.to_string()),
        SupplyError::None { .. } => not_found(error.to_string()),
        SupplyError::NoRemote { .. } => not_found(error.to_string()).hint("list the remotes with `larder remote list`"),
        SupplyError::NeverLive { .. } => not_found(error.to_string()).hint("list the releases with `larder releases`"),
        SupplyError::Ambiguous { .. } => {
            usage(error.to_string()).hint("give the number of the release, or more digits of its commit")
        }
        SupplyError::Named(_) => refused(error.to_string()).hint("list the releases with `larder releases`"),
        SupplyError::Host(_) => CommandError::internal(error),
    };
    error.hints().into_iter().fold(shown, CommandError::hint)
}

/// Returns a request to the pipeline for a deployment without a push.
pub(super) fn deployment(trigger: Trigger, environment: Environment, commit: CommitId, goal: Goal) -> pipeline::DeployRequest {
    let branch = environment.branch.clone();
    pipeline::DeployRequest {
        trigger,
        environment,
        branch,
        commit,
        seen: None,
        tags: Vec::new(),
        goal,
        recipe: None,
        dry_run: Vec::new(),
        data: None,
        recorded: None,
        stash: false,
    }
}

/// Returns the phases of a dry run: the phases `asked` and the phases that they depend on. Returns an empty list if `asked` is empty.
fn dry_run_phases(asked: Vec<Phase>) -> Result<Vec<Phase>, CommandError> {
    if let Some(late) = asked.iter().find(|phase| **phase >= Phase::Deploy) {
        return Err(usage(format!("cannot run {late} in a dry run: this phase changes the live release"))
            .hint("give phases from gather to bundle, or deploy without --only"));
    }
    let depended_on = |phase: Phase| match phase {
        Phase::Gather => true,
        Phase::Build => asked.iter().any(|later| *later > Phase::Build),
        _ => false,
    };
    let wanted = |phase: &Phase| asked.contains(phase) || depended_on(*phase);
    Ok(if asked.is_empty() { asked } else { Phase::ALL.into_iter().filter(wanted).collect() })
}

/// Submits a deployment. Returns a stream of the deployment's output.
pub(super) fn submit<V>(control: &Control, request: pipeline::DeployRequest) -> Result<Reply<V>, CommandError> {
    ensure_permitted(control, &request)?;
    let ticket = control.pipeline().submit(request).map_err(|error| of_pipeline(&error))?;
    Ok(Reply::Stream(Stream::deployment(ticket)))
}

/// Returns the error of a request that the pipeline refused.
pub(super) fn of_pipeline(error: &PipelineError) -> CommandError {
    match error {
        PipelineError::NoEnvironment(_) => not_found(error.to_string()),
        PipelineError::Frozen { environment, .. } => refused(error.to_string())
            .hint(format!("repair the cause on the server, then run `larder deploy {environment} --unfreeze`")),
        PipelineError::Stopping | PipelineError::Recovering(_) | PipelineError::Busy { .. } => refused(error.to_string()),
        PipelineError::NoSpace { .. } => refused(error.to_string()).hint("ask the server's operator to free space"),
        PipelineError::Record { .. } => CommandError::internal(error),
    }
}

async fn resolve(control: &Control, environment: &Environment, reference: Option<String>) -> Result<CommitId, CommandError> {
    let live = control.pipeline().live(environment.id).map(|live| live.commit);
    let spec = match (reference, live) {
        (Some(text), _) => CommitSpec::Text(text),
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

/// The request to show the steps of a push.
#[derive(Debug)]
pub struct PlanShow {
    /// The environment.
    pub target: Target,
    /// A branch, a tag or a commit. The request fails if this reference does not exist. The plan does not depend on the reference.
    pub reference: Option<String>,
    /// The phases to show; empty for all phases.
    pub only: Vec<Phase>,
}

/// The steps of a plan.
#[derive(Debug, Serialize)]
pub struct PlanView {
    /// One line for each phase, followed by an indented line for each of its steps.
    pub plan: Vec<String>,
    /// Lines about the upgrade: the case, the estimate and the reason; empty if the live release has no upgrade step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upgrade: Vec<String>,
}

impl Request for PlanShow {
    type View = PlanView;
    const NAME: &'static str = "plan";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<PlanView>, CommandError> {
        let environment = control.environment(&self.target)?;
        if self.reference.is_some() {
            resolve(control, &environment, self.reference).await?;
        }
        let plan = control.pipeline().plan(&environment, &self.only);
        if plan.names().is_empty() {
            return Err(usage(format!("cannot show the plan: no step of {} is in these phases", environment.title())));
        }
        let upgrade = match plan.names().iter().any(|name| name.as_str() == "deploy.hold") {
            true => control.pipeline().upgrade_forecast(&environment).await,
            false => Vec::new(),
        };
        Ok(PlanView { plan: plan.to_string().lines().map(str::to_owned).collect(), upgrade }.into())
    }
}
