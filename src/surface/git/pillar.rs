//! Pushes to a pillar: the check of the pushed values before git keeps them, and the change of the environments.
//!
//! The branch `main` of a pillar moves after all environments whose values differ run with the new values. If one environment fails, the
//! environments that were changed before get their earlier values back, and the push is refused.

use std::sync::{Arc, atomic::Ordering};

use futures_util::future::BoxFuture;

use super::{PushInFlight, Pushes, updates};
use crate::{
    control::{AuditEntry, AuditOutcome, OutputClient, PILLAR_BRANCH, PillarChange},
    git::{
        GitError, PillarFiles,
        hook::{HookSession, RefVerdict},
    },
    model::{Environment, Project},
    pipeline::{PushRejection, chain, intake::RefUpdate},
    secret::SECRETS_SUFFIX,
};

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

impl OutputClient for HookSession<PushInFlight> {
    fn line(&self, line: &str) {
        HookSession::line(self, line);
    }

    fn gone(&self) -> BoxFuture<'static, ()> {
        Box::pin(HookSession::gone(self))
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
        if update.name != PILLAR_BRANCH {
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
        self.control.check_pillar_files(project, session.ticket.caller.name(), &files)?;
        for (file, _) in &files.files {
            let stem = file.strip_suffix(SECRETS_SUFFIX).or_else(|| file.strip_suffix(".yml"));
            if let Some(name) = stem.filter(|stem| !known(stem)) {
                session.line(&format!("       {file} is stored and not used: {} has no environment {name}", project.name));
            }
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
        let options = &session.request.options;
        let waits = |environment: &Environment| waits(options, environment);
        let by = session.ticket.caller.name();
        let change = PillarChange { project: &project, by, before, files, waits: &waits };
        self.control.change_pillar(&change, session).await
    }
}
