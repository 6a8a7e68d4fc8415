//! Pushes to a pillar: the check of the pushed values before git keeps them, and the change of the environments.
//!
//! The branch `main` of a pillar moves after all environments whose values differ run with the new values. If one environment fails, the
//! environments that were changed before get their earlier values back, and the push is refused.

use std::sync::{Arc, atomic::Ordering};

use super::{PushInFlight, Pushes, updates};
use crate::{
    control::{AuditEntry, AuditOutcome},
    git::{
        Expected, GitError, MoveRef, PillarFiles, RepositoryId,
        hook::{HookSession, RefVerdict},
    },
    model::{ConfigChange, Environment, Outcome, Project, Trigger},
    pipeline::{DeployRequest, Goal, PillarGoal, PillarProblem, PushRejection, Ticket, chain, intake::RefUpdate},
};

/// The only branch of a pillar.
const BRANCH: &str = "refs/heads/main";

/// The push option that stores the values for the next deployment of each environment, or, as `no-restart=ENVIRONMENT`, of one environment.
const NO_RESTART: &str = "no-restart";

fn waits(options: &[String], environment: &Environment) -> bool {
    let names = |option: &String| match option.strip_prefix(NO_RESTART).map(|rest| rest.strip_prefix('=').ok_or(rest)) {
        Some(Ok(name)) => name == environment.name.as_str(),
        Some(Err(rest)) => rest.is_empty(),
        None => false,
    };
    options.iter().any(names)
}

impl From<PillarProblem> for PushRejection {
    fn from(PillarProblem { reason, lines }: PillarProblem) -> PushRejection {
        PushRejection { lines, reason }
    }
}

impl Pushes {
    /// Checks the values of a push before git keeps its objects. Returns true if no ref can be accepted.
    pub(super) async fn check_pillar(&self, session: &HookSession<PushInFlight>, project: &Project) -> bool {
        let mut is_refused = true;
        for update in updates(session) {
            let checked = self.check_values(session, project, &update).await;
            let mut early = session.ticket.early.lock();
            match checked {
                Ok(files) => {
                    early.pillar = Some(files);
                    is_refused = false;
                }
                Err(rejection) => drop(early.objections.insert(update.name, rejection)),
            }
        }
        session.ticket.early.lock().discarded = is_refused;
        is_refused
    }

    async fn check_values(
        &self,
        session: &HookSession<PushInFlight>,
        project: &Project,
        update: &RefUpdate,
    ) -> Result<Arc<PillarFiles>, PushRejection> {
        let rejection = |reason: String, hint: String| PushRejection { lines: vec![hint], reason };
        if update.name != BRANCH {
            let hint = String::from("push the values to the branch main, as in `git push pillar HEAD:main`");
            return Err(rejection(String::from("a pillar has the branch main only"), hint));
        }
        if update.new.is_zero() {
            let hint = String::from("remove the values with a commit instead");
            return Err(rejection(String::from("the branch main of a pillar cannot be deleted"), hint));
        }
        let pipeline = self.control.pipeline();
        let after = Some(update.old.clone()).filter(|old| !old.is_zero());
        let quarantine = session.request.quarantine.clone();
        let read = pipeline.services().repositories.read_pillar(project.id, Some(update.new.clone()), after, quarantine);
        let files = match read.await {
            Ok(Some(files)) => Arc::new(files),
            Ok(None) => {
                return Err(rejection(String::from("the repository of the pillar is missing"), String::from("push again")));
            }
            Err(GitError::PillarRefused(refusal)) => return Err(rejection(refusal.to_string(), refusal.hint)),
            Err(error) => return Err(PushRejection { lines: Vec::new(), reason: chain(&error) }),
        };
        let known = |name: &str| name == "init" || project.environments.iter().any(|one| one.name.as_str() == name);
        if let Some(name) = files.files.iter().find_map(|(name, _)| name.strip_suffix(".yaml").filter(|stem| known(stem))) {
            let hint = format!("rename the file with `git mv {name}.yaml {name}.yml`");
            return Err(rejection(format!("{name}.yaml is not read; the name of the file is {name}.yml"), hint));
        }
        for environment in &project.environments {
            pipeline.check_pillar(environment, &files)?;
            if pipeline.live(environment.id).is_none() || !pipeline.pillar_differs(environment, &files)? {
                continue;
            }
            let trigger = Trigger::Pillar { by: session.ticket.caller.name() };
            if let Some(objection) = self.control.objection_to(environment, &update.new, &trigger) {
                return Err(rejection(objection.reason, objection.hint));
            }
            if let Some(frozen) = pipeline.reject_early(environment, None) {
                return Err(frozen);
            }
        }
        let others = files.files.iter().filter_map(|(name, _)| name.strip_suffix(".yml").filter(|stem| !known(stem)));
        for name in others {
            session.line(&format!("       {name}.yml is stored and not used: {} has no environment {name}", project.name));
        }
        Ok(files)
    }

    /// Answers proc-receive for a push to a pillar.
    pub(super) async fn proc_receive_pillar(&self, session: HookSession<PushInFlight>) {
        let mut verdicts = Vec::new();
        let updates = updates(&session);
        for update in &updates {
            let on = format!("{}/pillar", session.ticket.project.name);
            let entry = AuditEntry::new(&session.ticket.caller, "git push", on, Some(format!("{} {}", update.name, update.new)));
            self.control.audit(entry.clone()).await;
            // An atomic push of several refs has a ref that a pillar does not have.
            let verdict = match session.request.atomic && updates.len() > 1 {
                true => Err(String::from("another ref of this atomic push was refused")),
                false => self.apply_pillar(&session, update).await,
            };
            let verdict = match verdict {
                Ok(()) => RefVerdict::Ok,
                Err(reason) => {
                    self.control.audit(entry.ended(AuditOutcome::Failed, &reason)).await;
                    RefVerdict::Refused { reason }
                }
            };
            verdicts.push((update.name.clone(), verdict));
        }
        let by_git = session.request.refs.len() < session.ticket.refs.load(Ordering::Relaxed);
        let is_refused = verdicts.iter().any(|(_, verdict)| matches!(verdict, RefVerdict::Refused { .. }));
        session.ticket.failed.store(is_refused || by_git || session.request.bad_names > 0, Ordering::Relaxed);
        session.ticket.decided.store(true, Ordering::Relaxed);
        session.finish(verdicts).await;
    }

    /// Starts the environments with the pushed values, and moves the branch. The error is the reason of the refusal.
    async fn apply_pillar(&self, session: &HookSession<PushInFlight>, update: &RefUpdate) -> Result<(), String> {
        let (objection, discarded, files) = {
            let mut early = session.ticket.early.lock();
            (early.objections.remove(&update.name), early.discarded, early.pillar.clone())
        };
        if let Some(PushRejection { lines, reason }) = objection {
            lines.iter().for_each(|line| session.line(&format!(" !     {line}")));
            session.line(" !     Nothing was changed.");
            return Err(reason);
        }
        let files = files.filter(|files| files.commit == update.new && !discarded);
        let files = files.ok_or("another ref of this push was refused")?;
        let pipeline = self.control.pipeline();
        let id = session.ticket.project.id;
        let _one_at_a_time = pipeline.lock_pillar(id).await;
        let project = self.still(&session.ticket)?;
        let before = pipeline.pillar_head(id).await.map_err(|error| chain(&error))?;
        if before.as_ref().map_or(!update.old.is_zero(), |before| before.commit != update.old) {
            session.line(" !     Another person has pushed the pillar meanwhile. Fetch, merge, and push again.");
            return Err(String::from("another push has moved this ref; fetch first"));
        }
        let mut changed: Vec<Environment> = Vec::new();
        let outcome = self.change_environments(session, &project, &files, &mut changed).await;
        let moved = match outcome {
            Ok(()) => {
                let change = MoveRef {
                    refname: BRANCH.to_owned(),
                    expected: Expected::from(update.old.clone()),
                    new: Some(update.new.clone()),
                    keep: None,
                    forget: Vec::new(),
                };
                let moved = pipeline.services().repositories.move_ref(RepositoryId::pillar(id), change).await;
                moved.map_err(|error| chain(&error))
            }
            Err(why) => Err(why),
        };
        match moved {
            Ok(()) => {
                pipeline.set_pillar_head(id, files);
                Ok(())
            }
            Err(why) => Err(self.take_back(session, &changed, before, why).await),
        }
    }

    /// Starts each environment whose values differ with the values of `files`, one after the other, and adds it to `changed`.
    async fn change_environments(
        &self,
        session: &HookSession<PushInFlight>,
        project: &Project,
        files: &Arc<PillarFiles>,
        changed: &mut Vec<Environment>,
    ) -> Result<(), String> {
        let pipeline = self.control.pipeline();
        for environment in &project.environments {
            let title = environment.title();
            // The release that is live may have changed since pre-receive.
            pipeline.check_pillar(environment, files).map_err(|problem| problem.reason)?;
            if pipeline.live(environment.id).is_none() {
                session.line(&format!("       nothing is live in {title}: the first deployment uses these values"));
            } else if !pipeline.pillar_differs(environment, files).map_err(|problem| problem.reason)? {
                session.line(&format!("       the values of {title} are unchanged"));
            } else if waits(&session.request.options, environment) {
                session.line(&format!("       the next deployment of {title} uses these values"));
            } else {
                let goal = PillarGoal::Files(Some(files.clone()));
                self.reconfigure(session, environment, goal).await.map_err(|why| format!("{title}: {why}"))?;
                changed.push(environment.clone());
            }
        }
        Ok(())
    }

    /// Starts the environments in `changed` with the values before the push. Returns the reason of the refusal.
    async fn take_back(
        &self,
        session: &HookSession<PushInFlight>,
        changed: &[Environment],
        before: Option<Arc<PillarFiles>>,
        why: String,
    ) -> String {
        let mut left = Vec::new();
        for environment in changed {
            session.line(&format!("-----> Starting {} with the values before this push", environment.title()));
            if let Err(again) = self.reconfigure(session, environment, PillarGoal::Files(before.clone())).await {
                session.line(&format!(" !     {} keeps the values of this push: {again}", environment.title()));
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
        session: &HookSession<PushInFlight>,
        environment: &Environment,
        pillar: PillarGoal,
    ) -> Result<(), String> {
        let pipeline = self.control.pipeline();
        let live = pipeline.live(environment.id).ok_or("nothing is live any more")?;
        let request = DeployRequest {
            trigger: Trigger::Pillar { by: session.ticket.caller.name() },
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
        };
        let ticket = pipeline.submit(request).map_err(|error| chain(&error))?;
        let outcome = self.shown_to_the_end(session, ticket).await;
        let outcome = outcome.ok_or("the server stopped before the deployment had ended; push again")?;
        match pipeline.reason(&outcome, environment.id) {
            None => Ok(()),
            Some(reason) => Err(reason),
        }
    }

    /// Sends the output of a deployment to the client, and returns the outcome. The function waits for the outcome even if the client
    /// disconnects, because the other environments and the branch depend on the outcome.
    async fn shown_to_the_end(&self, session: &HookSession<PushInFlight>, mut ticket: Ticket) -> Option<Outcome> {
        let gone = session.gone();
        tokio::pin!(gone);
        match ticket.transcript.follow() {
            Ok(mut lines) => loop {
                let text = tokio::select! {
                    () = &mut gone => break,
                    text = lines.next() => text,
                };
                let Some(text) = text else { break };
                text.lines().for_each(|line| session.line(line));
            },
            Err(error) => session.line(&format!(" !     cannot show the output: {error}")),
        }
        ticket.outcome().await
    }
}
