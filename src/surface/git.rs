//! The server's side of git: serves the two services of git, and answers git's hooks.
//!
//! This module handles a push in two functions. [`Pushes::serve`] connects the client with receive-pack. [`Pushes::answer_hooks`] answers
//! the requests of receive-pack's hooks: it starts deployments and returns the verdict on each ref.

mod advice;
mod pillar;
mod rights;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use self::advice::{SHALLOW, explain, refuse_client};
use crate::{
    control::{Caller, CommandError, Control, ErrorKind, Needs, Objection, show_output},
    git::{
        LogEntry, MAX_PILLAR_PACK, PillarFiles, PushCommands, RepositoryId, RepositoryKind, ServeLimits, Service,
        hook::{HookKind, HookSession, Listener, PushRegistry, RefChange, RefVerdict},
        source::RecipeFiles,
    },
    host::launch::Stdio,
    model::{Access, CommitId, Environment, Project, ProjectName, Trigger},
    pipeline::{
        DeployRequest, PushRejection, Ticket, chain,
        intake::{RefDecision, RefUpdate, unstorable},
        observe::MAX_COMMITS,
    },
};

/// The push option that puts files which were changed by hand in the checkout of an editable environment into git's stash.
const STASH: &str = "stash";

/// The time limit for reading the commits of a refused push for a notification.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a push in flight that its hooks share.
#[derive(Debug, Clone)]
pub struct PushInFlight {
    caller: Caller,
    project: Project,
    kind: RepositoryKind,
    /// True if pre-receive has accepted the push as a whole.
    asked: Arc<AtomicBool>,
    /// True if any ref was refused. The channel then has the exit status 1, although git exits with 0.
    failed: Arc<AtomicBool>,
    /// True if proc-receive has decided on the refs. Git can refuse the push between the two hooks.
    decided: Arc<AtomicBool>,
    /// The number of refs in the request of pre-receive, without refs with a refused name.
    refs: Arc<AtomicUsize>,
    /// The number of refs in the request of pre-receive, including refs with a refused name.
    seen: Arc<AtomicUsize>,
    early: Arc<Mutex<Early>>,
}

/// The findings of pre-receive. The hook proc-receive reports these findings, because only proc-receive can give a reason for each ref.
#[derive(Debug, Default)]
struct Early {
    /// The objections, by ref.
    objections: BTreeMap<String, PushRejection>,
    /// True if the objects of the push were deleted, so that no ref can be accepted any more.
    discarded: bool,
    /// The recipes of the pushed commits, as far as pre-receive has read them.
    recipes: Vec<(CommitId, RecipeFiles)>,
    /// The files of a pushed pillar.
    pillar: Option<Arc<PillarFiles>>,
}

impl Early {
    fn recipe_of(&self, commit: &CommitId) -> Option<RecipeFiles> {
        self.recipes.iter().find(|(known, _)| known == commit).map(|(_, files)| files.clone())
    }
}

/// All pushes in flight; cheap to clone.
#[derive(Clone)]
pub struct Pushes {
    control: Control,
    tokens: PushRegistry<PushInFlight>,
}

impl Pushes {
    /// Creates the state without a push in flight. `control` authorizes each push, and a hook names its push by a token in `tokens`.
    pub fn new(control: Control, tokens: PushRegistry<PushInFlight>) -> Pushes {
        Pushes { control, tokens }
    }

    /// Serves one client of git. `commands` counts the ref updates that the client has requested. Returns the exit status.
    pub async fn serve(
        &self,
        caller: Caller,
        (project, kind): (&ProjectName, RepositoryKind),
        service: Service,
        protocol: Option<String>,
        stdio: Stdio,
        commands: &PushCommands,
    ) -> Result<u32, CommandError> {
        let needs = rights::needs(project, kind, service);
        let project = self.authorized(&caller, project, service, &needs).await?;
        let served = self.serve_authorized(caller, (project, kind), service, protocol, stdio, commands, &needs).await;
        served.map_err(|error| self.control.with_free_space(&needs, error))
    }

    #[allow(clippy::too_many_arguments)]
    async fn serve_authorized(
        &self,
        caller: Caller,
        (project, kind): (Project, RepositoryKind),
        service: Service,
        protocol: Option<String>,
        stdio: Stdio,
        commands: &PushCommands,
        needs: &Needs,
    ) -> Result<u32, CommandError> {
        let services = self.control.pipeline().services();
        let flag = || Arc::new(AtomicBool::new(false));
        let (asked, failed, decided, seen) = (flag(), flag(), flag(), Arc::new(AtomicUsize::new(0)));
        let pushing = service == Service::ReceivePack;
        if pushing && let Some(why) = self.full_disk() {
            tracing::warn!(caller = %caller, project = %project.name, why, "push refused");
            refuse_client(stdio.stdout, &why).await;
            return Ok(1);
        }
        let pipeline = self.control.pipeline();
        let internal = |error: &(dyn std::error::Error + 'static)| CommandError::internal(error);
        // Projects that an earlier version created have no pillar yet.
        if kind == RepositoryKind::Pillar && pipeline.pillar_head(project.id).await.map_err(|error| internal(&error))?.is_none() {
            pipeline.make_pillar(project.id).await.map_err(|error| internal(&error))?;
        }
        let stderr = stdio.stderr.as_ref().and_then(|stderr| stderr.try_clone().ok());
        let (id, who, name) = (project.id, caller.clone(), project.name.clone());
        let token = match service {
            Service::ReceivePack => {
                let push = PushInFlight {
                    caller,
                    project,
                    kind,
                    asked: asked.clone(),
                    failed: failed.clone(),
                    decided: decided.clone(),
                    refs: Arc::default(),
                    seen: seen.clone(),
                    early: Arc::default(),
                };
                Some(self.tokens.issue(push).map_err(|error| CommandError::internal(&error))?)
            }
            Service::UploadPack => None,
        };
        let limit = services.config.limits.push_bytes.bytes();
        let limits = ServeLimits { pack_bytes: if kind == RepositoryKind::Pillar { limit.min(MAX_PILLAR_PACK) } else { limit } };
        let serving = services.repositories.serve(
            RepositoryId { project: id, kind },
            service,
            protocol.as_deref(),
            stdio,
            token.as_ref().map(|ticket| ticket.token()),
            limits,
        );
        let mut serving = serving.await.map_err(|error| CommandError::internal(&error))?;
        let exit = tokio::select! {
            exit = serving.child.wait() => exit.map_err(|error| CommandError::internal(&error))?,
            () = self.control.revoked(&who, needs) => {
                let _ = serving.child.kill().await;
                let _ = serving.child.wait().await;
                tracing::warn!(caller = %who, project = %name, "git was killed: the caller has lost the right to the project");
                let what = if pushing { "push to" } else { "read" };
                let of = if kind == RepositoryKind::Pillar { "the pillar of " } else { "" };
                return Err(CommandError::new(ErrorKind::Refused, format!("your right to {what} {of}{name} was taken away"))
                    .hint("ask an administrator for the right; a deployment that has begun continues"));
            }
        };
        let refused_by_git = asked.load(Ordering::Relaxed) && !decided.load(Ordering::Relaxed);
        if refused_by_git {
            explain(stderr, SHALLOW).await;
        } else if pushing
            && !exit.success()
            && let Some(why) = self.full_disk()
        {
            // Git itself reports only "unpacker error".
            explain(stderr, &format!(" !     {why}\n")).await;
        }
        let turned_away = token.as_ref().is_some_and(|ticket| ticket.turned_away());
        // Git runs no hook for a hidden ref, and no hook at all if it cannot read the pack.
        let unseen = commands.count() > seen.load(Ordering::Relaxed);
        let refused = refused_by_git || turned_away || unseen || failed.load(Ordering::Relaxed);
        let code = exit.code.and_then(|code| u32::try_from(code).ok()).unwrap_or(128);
        // git's receive-pack exits 0 even if refs were refused.
        Ok(if code == 0 && refused { 1 } else { code })
    }

    /// Answers hooks until the listener is closed.
    pub async fn answer_hooks(self, mut listener: Listener<PushInFlight>) {
        while let Some(session) = listener.accept().await {
            let pushes = self.clone();
            tokio::spawn(async move {
                match (session.request.kind, session.ticket.kind) {
                    (HookKind::PreReceive, _) => pushes.pre_receive(session).await,
                    (HookKind::ProcReceive, RepositoryKind::Code) => pushes.proc_receive(session).await,
                    (HookKind::ProcReceive, RepositoryKind::Pillar) => pushes.proc_receive_pillar(session).await,
                }
            });
        }
    }

    /// Returns the current state of the project if the user may still push to it. Rights and projects may have changed since the push
    /// began.
    fn still(&self, push: &PushInFlight) -> Result<Project, String> {
        let PushInFlight { caller, project, .. } = push;
        let needs = match push.kind {
            RepositoryKind::Code => Needs::repository(&project.name, Access::Push),
            RepositoryKind::Pillar => Needs::pillar(&project.name),
        };
        let now = self.control.project(caller, &project.name, &needs).map_err(|error| error.to_string())?;
        if now.id != project.id {
            return Err(format!("the project {} was created anew during this push; push again", project.name));
        }
        Ok(now)
    }

    /// Records objections that are known before git keeps the objects of a push. Returns true if no ref can be accepted.
    async fn look_early(&self, session: &HookSession<PushInFlight>, project: &Project) -> bool {
        let request = &session.request;
        let updates = updates(session);
        let (mut objections, mut accepted) = (BTreeMap::new(), 0_usize);
        for (update, fate) in updates.iter().zip(self.decide(&session.ticket, project, &updates, false)) {
            let objection = match fate {
                RefDecision::Refuse { .. } => continue,
                RefDecision::Store { .. } => None,
                RefDecision::Deploy { environment, commit, .. } => {
                    let recipe = request.recipes.iter().find(|(known, _)| *known == commit).map(|(_, files)| files.clone());
                    let trigger = Trigger::Push { by: session.ticket.caller.name() };
                    match self.control.objection_to(&environment, &commit, &trigger) {
                        Some(objection) => {
                            let pushed = if objection.wants_approval {
                                self.pushed_commits(session, &environment, &commit).await
                            } else {
                                None
                            };
                            self.control.announce_objection(&objection, &environment, (&commit, &trigger), pushed);
                            let Objection { reason, hint, .. } = objection;
                            Some(PushRejection { lines: vec![hint], reason })
                        }
                        None => self.control.pipeline().reject_early(&environment, recipe),
                    }
                }
            };
            match objection {
                Some(objection) => drop(objections.insert(update.name.clone(), objection)),
                None => accepted = accepted.saturating_add(1),
            }
        }
        let mut early = session.ticket.early.lock();
        // Only the request of proc-receive states if the push is atomic. If an atomic push has an objection, proc-receive refuses all of
        // its refs.
        early.discarded = accepted == 0;
        early.objections = objections;
        early.recipes.clone_from(&request.recipes);
        early.discarded
    }

    /// Returns the commits of a push since the live release, as long as git has the objects of the push in its quarantine. The result is for
    /// people only, so a failure has no effect on the push.
    async fn pushed_commits(
        &self,
        session: &HookSession<PushInFlight>,
        environment: &Environment,
        commit: &CommitId,
    ) -> Option<(Vec<LogEntry>, bool)> {
        let quarantine = session.request.quarantine.clone()?;
        let pipeline = self.control.pipeline();
        let live = pipeline.live(environment.id).map(|live| live.commit);
        let repositories = &pipeline.services().repositories;
        let log = repositories.log_of_push(environment.project_id, live, commit.clone(), MAX_COMMITS, quarantine);
        match tokio::time::timeout(LOG_TIMEOUT, log).await {
            Ok(Ok(log)) => Some(log),
            Ok(Err(error)) => {
                tracing::warn!(environment = environment.title(), error = chain(&error), "cannot read the commits of a push");
                None
            }
            Err(_) => {
                tracing::warn!(environment = environment.title(), "reading the commits of a push took too long");
                None
            }
        }
    }

    /// Refuses a push as a whole, before its objects are kept, for reasons that concern all of its refs.
    async fn pre_receive(&self, session: HookSession<PushInFlight>) {
        let config = &self.control.pipeline().services().config;
        let limit = config.limits.refs_per_push as usize;
        let count = session.request.refs.len().saturating_add(session.request.bad_names);
        session.ticket.seen.store(count, Ordering::Relaxed);
        let accepted = self.still(&session.ticket).and_then(|project| {
            if count > limit {
                return Err(format!("this push changes {count} refs; at most {limit} are allowed"));
            }
            self.full_disk().map_or(Ok(project), Err)
        });
        match accepted {
            Ok(project) => {
                session.ticket.asked.store(true, Ordering::Relaxed);
                session.ticket.refs.store(session.request.refs.len(), Ordering::Relaxed);
                let is_refused = match session.ticket.kind {
                    RepositoryKind::Code => self.look_early(&session, &project).await,
                    RepositoryKind::Pillar => self.check_pillar(&session, &project).await,
                };
                if is_refused { session.discard().await } else { session.accept().await }
            }
            Err(reason) => {
                session.ticket.failed.store(true, Ordering::Relaxed);
                session.refuse(&[format!(" !     {reason}")], &reason).await;
            }
        }
    }

    /// Decides on each ref. The verdict on a deploy branch is the outcome of its deployment.
    async fn proc_receive(&self, session: HookSession<PushInFlight>) {
        let updates = updates(&session);
        let atomic = session.request.atomic;
        let mut fates = match self.still(&session.ticket) {
            Ok(project) => self.decide(&session.ticket, &project, &updates, atomic),
            Err(why) => updates.iter().map(|_| refusal(&why)).collect(),
        };
        if atomic && updates.len() > 1 && fates.iter().any(|fate| matches!(fate, RefDecision::Deploy { .. })) {
            self.refuse_unstorable(&session, &updates, &mut fates).await;
        }
        if atomic && session.request.bad_names > 0 {
            fates.fill(refusal("another ref of this atomic push was refused"));
        }
        apply_early(&session, &updates, &mut fates);
        let mut verdicts = Vec::with_capacity(fates.len());
        for (update, fate) in updates.iter().zip(fates) {
            // The deployment of the previous ref may have taken long, so the right is checked again.
            let fate = match self.still(&session.ticket) {
                Ok(project) => self.still_may(&session.ticket, &project, update, fate),
                Err(why) => refusal(&why),
            };
            verdicts.push((update.name.clone(), self.recorded_verdict(&session, update, fate).await));
        }
        // git refuses some refs by itself, between the two hooks.
        let by_git = session.request.refs.len() < session.ticket.refs.load(Ordering::Relaxed);
        let by_name = session.request.bad_names > 0;
        let refused = by_git || by_name || verdicts.iter().any(|(_, verdict)| matches!(verdict, RefVerdict::Refused { .. }));
        if atomic && refused {
            for (_, verdict) in verdicts.iter_mut().filter(|(_, verdict)| matches!(verdict, RefVerdict::FallThrough)) {
                *verdict = RefVerdict::Refused { reason: String::from("another ref of this atomic push was refused") };
            }
        }
        session.ticket.failed.store(refused, Ordering::Relaxed);
        session.ticket.decided.store(true, Ordering::Relaxed);
        session.finish(verdicts).await;
    }

    /// Refuses all refs of an atomic push before its deployment, if git would refuse to store one of the refs afterwards.
    async fn refuse_unstorable(&self, session: &HookSession<PushInFlight>, updates: &[RefUpdate], fates: &mut [RefDecision]) {
        let repositories = &self.control.pipeline().services().repositories;
        let found = match repositories.read_refs(session.ticket.project.id, usize::MAX).await {
            Ok((refs, _)) => {
                let existing = refs.into_iter().map(|entry| (entry.refname, entry.id)).collect();
                unstorable(updates, &existing).map(|(update, why)| (update.name.clone(), why))
            }
            Err(error) => Some((String::new(), chain(&error))),
        };
        let Some((name, why)) = found else { return };
        for (update, fate) in updates.iter().zip(fates) {
            let reason = if update.name == name || name.is_empty() {
                why.clone()
            } else {
                String::from("another ref of this atomic push was refused")
            };
            *fate = RefDecision::Refuse { reason, hint: None };
        }
    }

    async fn verdict(&self, session: &HookSession<PushInFlight>, fate: RefDecision) -> RefVerdict {
        match fate {
            RefDecision::Store { note } => {
                if let Some(note) = note {
                    session.line(&format!("       {note}"));
                }
                RefVerdict::FallThrough
            }
            RefDecision::Refuse { reason, hint } => {
                if let Some(hint) = hint {
                    session.line(&format!(" !     {hint}"));
                }
                RefVerdict::Refused { reason }
            }
            RefDecision::Deploy { environment, branch, commit, seen } => {
                let trigger = Trigger::Push { by: session.ticket.caller.name() };
                let goal = match self.control.pipeline().goal(&environment, &commit).await {
                    Ok(goal) => goal,
                    Err(error) => {
                        for hint in error.hints() {
                            session.line(&format!(" !     {hint}"));
                        }
                        return RefVerdict::Refused { reason: chain(&error) };
                    }
                };
                let recipe = session.ticket.early.lock().recipe_of(&commit);
                // A tag that the pusher may not push names no release.
                let right = self.control.right_on_project(&session.ticket.caller, &session.ticket.project.name);
                let tags = if right >= Access::Push { coming(session) } else { Vec::new() };
                let request = DeployRequest {
                    trigger,
                    environment: *environment,
                    branch,
                    commit,
                    seen: Some(seen),
                    tags,
                    goal,
                    recipe,
                    dry_run: Vec::new(),
                    data: None,
                    recorded: None,
                    stash: session.request.options.iter().any(|option| option == STASH),
                };
                let environment = request.environment.id;
                match self.control.pipeline().submit(request) {
                    Ok(ticket) => self.follow(session, ticket, environment).await,
                    Err(error) => RefVerdict::Refused { reason: chain(&error) },
                }
            }
        }
    }

    /// Sends the output of a deployment to the client, and returns the verdict. The deployment continues if the client disconnects.
    async fn follow(
        &self,
        session: &HookSession<PushInFlight>,
        mut ticket: Ticket,
        environment: crate::model::EnvId,
    ) -> RefVerdict {
        show_output(session, &ticket).await;
        let outcome = tokio::select! {
            () = session.gone() => None,
            outcome = ticket.outcome() => outcome,
        };
        let Some(outcome) = outcome else {
            return RefVerdict::Refused { reason: String::from("the server stopped before the deployment had ended") };
        };
        match self.control.pipeline().reason(&outcome, environment) {
            None => RefVerdict::Ok,
            Some(reason) => RefVerdict::Refused { reason },
        }
    }
}

fn refusal(why: &str) -> RefDecision {
    RefDecision::Refuse { reason: why.to_owned(), hint: None }
}

/// Returns the tags that a push creates or moves.
fn coming(session: &HookSession<PushInFlight>) -> Vec<(String, CommitId)> {
    let tags = session.request.refs.iter().filter(|change| !change.new.is_zero());
    tags.filter_map(|change| Some((change.refname.strip_prefix("refs/tags/")?.to_owned(), change.new.clone()))).collect()
}

/// Returns the ref updates in the request of a hook.
fn updates(session: &HookSession<PushInFlight>) -> Vec<RefUpdate> {
    let updates = session.request.refs.iter();
    let update =
        |change: &RefChange| RefUpdate { name: change.refname.clone(), old: change.old.clone(), new: change.new.clone() };
    updates.map(update).collect()
}

/// Applies the findings of pre-receive.
fn apply_early(session: &HookSession<PushInFlight>, updates: &[RefUpdate], fates: &mut [RefDecision]) {
    let mut early = session.ticket.early.lock();
    for (update, fate) in updates.iter().zip(fates) {
        if matches!(fate, RefDecision::Refuse { .. }) {
            continue;
        }
        let reason = match early.objections.remove(&update.name) {
            Some(PushRejection { lines, reason }) => {
                lines.iter().for_each(|line| session.line(&format!(" !     {line}")));
                reason
            }
            None if early.discarded => String::from("another ref of this push was refused"),
            None => continue,
        };
        *fate = RefDecision::Refuse { reason, hint: None };
    }
}
