//! Changes of a pillar: the start of the environments whose values differ, and the move of the branch.
//!
//! A push and a command change a pillar in the same way. The branch `main` moves after all environments run with the new values. If one
//! environment fails, the environments that were changed before get their earlier values back, and the branch stays.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::state::Control;
use crate::{
    git::{Expected, MoveRef, PillarFiles, RepositoryId},
    model::{CommitId, ConfigChange, Environment, Outcome, Project, Trigger, UserName},
    pipeline::{DeployRequest, Goal, PillarGoal, PushRejection, Ticket, chain},
};

/// The only branch of a pillar.
pub const PILLAR_BRANCH: &str = "refs/heads/main";

/// The client of a push or of a command, which sees the output of the deployments.
pub trait OutputClient: Send + Sync {
    /// Shows a line to the client.
    fn line(&self, line: &str);

    /// Waits until the client has disconnected.
    fn gone(&self) -> BoxFuture<'static, ()>;
}

/// A change of a pillar whose values were checked.
pub struct PillarChange<'a> {
    pub project: &'a Project,
    /// The author.
    pub by: UserName,
    /// The files of the present commit; `None` if nothing was pushed yet.
    pub before: Option<Arc<PillarFiles>>,
    /// The new files.
    pub files: Arc<PillarFiles>,
    /// Returns true for an environment that uses the new values with its next deployment.
    pub waits: &'a (dyn Fn(&Environment) -> bool + Send + Sync),
}

impl Control {
    /// Checks the values that `files` give to all environments, before anything changes.
    pub fn check_pillar_files(&self, project: &Project, by: UserName, files: &PillarFiles) -> Result<(), PushRejection> {
        let pipeline = self.pipeline();
        for environment in &project.environments {
            pipeline.check_pillar(environment, files)?;
            if pipeline.live(environment.id).is_none() || !pipeline.pillar_differs(environment, files)? {
                continue;
            }
            let trigger = Trigger::Pillar { by: by.clone() };
            if let Some(objection) = self.objection_to(environment, &files.commit, &trigger) {
                return Err(PushRejection { lines: vec![objection.hint], reason: objection.reason });
            }
            if let Some(frozen) = pipeline.reject_early(environment, None) {
                return Err(frozen);
            }
        }
        Ok(())
    }

    /// Starts the environments with the new values, and moves the branch. The caller holds the lock of the pillar. The error is the reason.
    pub async fn change_pillar(&self, change: &PillarChange<'_>, audience: &dyn OutputClient) -> Result<(), String> {
        let mut changed: Vec<Environment> = Vec::new();
        let moved = match self.change_environments(change, audience, &mut changed).await {
            Ok(()) => self.move_pillar(change).await,
            Err(why) => Err(why),
        };
        match moved {
            Ok(()) => {
                self.pipeline().set_pillar_head(change.project.id, change.files.clone());
                Ok(())
            }
            Err(why) => Err(self.take_back(change, audience, &changed, why).await),
        }
    }

    async fn move_pillar(&self, change: &PillarChange<'_>) -> Result<(), String> {
        let old: Option<CommitId> = change.before.as_ref().map(|before| before.commit.clone());
        let moving = MoveRef {
            refname: PILLAR_BRANCH.to_owned(),
            expected: old.map_or(Expected::Missing, Expected::At),
            new: Some(change.files.commit.clone()),
            keep: None,
            forget: Vec::new(),
        };
        let repositories = &self.pipeline().services().repositories;
        let moved = repositories.move_ref(RepositoryId::pillar(change.project.id), moving).await;
        moved.map_err(|error| chain(&error))
    }

    /// Starts each environment whose values differ, one after the other, and adds it to `changed`.
    async fn change_environments(
        &self,
        change: &PillarChange<'_>,
        audience: &dyn OutputClient,
        changed: &mut Vec<Environment>,
    ) -> Result<(), String> {
        let (pipeline, files) = (self.pipeline(), &change.files);
        for environment in &change.project.environments {
            let title = environment.title();
            // The release that is live may have changed since the first check.
            pipeline.check_pillar(environment, files).map_err(|problem| problem.reason)?;
            if pipeline.live(environment.id).is_none() {
                audience.line(&format!("       nothing is live in {title}: the first deployment uses these values"));
            } else if !pipeline.pillar_differs(environment, files).map_err(|problem| problem.reason)? {
                audience.line(&format!("       the values of {title} are unchanged"));
            } else if (change.waits)(environment) {
                audience.line(&format!("       the next deployment of {title} uses these values"));
            } else {
                let goal = PillarGoal::Files(Some(files.clone()));
                let configured = self.reconfigure(change, audience, environment, goal).await;
                configured.map_err(|why| format!("{title}: {why}"))?;
                changed.push(environment.clone());
            }
        }
        Ok(())
    }

    /// Starts the environments in `changed` with the values before the change. Returns the reason of the refusal.
    async fn take_back(
        &self,
        change: &PillarChange<'_>,
        audience: &dyn OutputClient,
        changed: &[Environment],
        why: String,
    ) -> String {
        let mut left = Vec::new();
        for environment in changed {
            audience.line(&format!("-----> Starting {} with the values before this push", environment.title()));
            let goal = PillarGoal::Files(change.before.clone());
            if let Err(again) = self.reconfigure(change, audience, environment, goal).await {
                audience.line(&format!(" !     {} keeps the values of this push: {again}", environment.title()));
                left.push(environment.title());
            }
        }
        match left.is_empty() {
            true => why,
            false => format!("{why}; {} still runs with the values of this push", left.join(", ")),
        }
    }

    /// Deploys the live release of an environment with other values of the pillar. The error is the reason.
    async fn reconfigure(
        &self,
        change: &PillarChange<'_>,
        audience: &dyn OutputClient,
        environment: &Environment,
        pillar: PillarGoal,
    ) -> Result<(), String> {
        let pipeline = self.pipeline();
        let live = pipeline.live(environment.id).ok_or("nothing is live any more")?;
        let request = DeployRequest {
            trigger: Trigger::Pillar { by: change.by.clone() },
            environment: environment.clone(),
            branch: environment.branch.clone(),
            commit: live.commit,
            seen: None,
            tags: Vec::new(),
            goal: Goal::Configure { change: ConfigChange::default(), seen: None, pillar },
            recipe: None,
            dry_run: Vec::new(),
            data: None,
            recorded: None,
            stash: false,
        };
        let ticket = pipeline.submit(request).map_err(|error| chain(&error))?;
        let outcome = shown_to_the_end(audience, ticket).await;
        let outcome = outcome.ok_or("the server stopped before the deployment had ended; push again")?;
        match pipeline.reason(&outcome, environment.id) {
            None => Ok(()),
            Some(reason) => Err(reason),
        }
    }
}

/// Sends the output of a deployment to the client, and returns the outcome. The function waits for the outcome even if the client disconnects,
/// because the other environments and the branch depend on the outcome.
async fn shown_to_the_end(audience: &dyn OutputClient, mut ticket: Ticket) -> Option<Outcome> {
    show_output(audience, &ticket).await;
    ticket.outcome().await
}

/// Sends the output of a deployment to the client, until the output ends or the client disconnects.
pub async fn show_output(audience: &dyn OutputClient, ticket: &Ticket) {
    let mut gone = audience.gone();
    let mut lines = match ticket.transcript.follow() {
        Ok(lines) => lines,
        Err(error) => return audience.line(&format!(" !     cannot show the output: {error}")),
    };
    loop {
        let text = tokio::select! {
            () = &mut gone => return,
            text = lines.next() => text,
        };
        let Some(text) = text else { return };
        text.lines().for_each(|line| audience.line(line));
    }
}
