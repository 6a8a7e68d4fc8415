//! Requests that protect environments: release freezes, deploy windows, approvals.

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use crate::{
    control::{
        authz::Needs,
        error::{CommandError, no_environment, not_found, refused, usage},
        protect::{self, Approval, DeployWindow, Protection, ReleaseFreeze, moment, shown},
        registry::Registry,
        request::{Context, Reply, Request},
        state::Control,
    },
    git::LogEntry,
    model::{Access, CommitId, Environment, Target, Trigger, UserName},
    pipeline::{
        DeployRequest,
        observe::{ApprovalNews, FreezeTerms, News},
    },
};

/// The protection of a project or an environment, with times for people.
#[derive(Debug, Serialize)]
pub struct ProtectionView {
    /// The project or the environment.
    pub on: Target,
    /// The protection.
    #[serde(flatten)]
    pub protection: Protection,
    /// The end of the release freeze in the time zone of the server, as text; absent without a release freeze or without an end.
    pub until: Option<String>,
}

/// The release freeze of an environment, for lists.
#[derive(Debug, Clone, Serialize)]
pub struct FreezeStatus {
    /// The end in the time zone of the server, as text; absent if a person must end the release freeze.
    pub until: Option<String>,
    /// The reason.
    pub why: String,
    /// The user who has set the release freeze.
    pub by: UserName,
}

/// The request to set, end or show a release freeze.
#[derive(Debug)]
pub struct Freeze {
    /// The project, or one of its environments.
    pub target: Target,
    /// The action.
    pub action: FreezeAction,
}

/// An action of [`Freeze`].
#[derive(Debug)]
pub enum FreezeAction {
    /// Shows the release freeze.
    Show,
    /// Sets a release freeze, which replaces an earlier one.
    Set {
        /// The end, as text; absent if a person must end the release freeze.
        until: Option<String>,
        /// The reason, for the pusher.
        why: String,
    },
    /// Ends the release freeze.
    End,
}

impl Request for Freeze {
    type View = ProtectionView;
    const NAME: &'static str = "freeze";

    fn needs(&self) -> Needs {
        let right = match self.action {
            FreezeAction::Show => Access::View,
            FreezeAction::Set { .. } | FreezeAction::End => Access::Operate,
        };
        Needs::parts(&self.target, right)
    }

    fn detail(&self) -> Option<String> {
        match &self.action {
            FreezeAction::Show => None,
            FreezeAction::Set { until, why } => Some(format!("until {}: {why}", until.as_deref().unwrap_or("further notice"))),
            FreezeAction::End => Some(String::from("end")),
        }
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<ProtectionView>, CommandError> {
        let zone = zone(control);
        match self.action {
            FreezeAction::Show => {}
            FreezeAction::Set { until, why } => {
                let until = until.map(|text| moment(&text, Timestamp::now(), &zone)).transpose();
                let until = until.map_err(|error| usage(error.to_string()))?;
                let terms = FreezeTerms { until: until.map(|until| shown(until, &zone)), why: why.clone() };
                let freeze = ReleaseFreeze { until, why, by: caller.name() };
                change(control, &self.target, |protection| protection.freeze = Some(freeze)).await?;
                announce_freeze(control, &self.target, caller.name(), Some(terms));
            }
            FreezeAction::End => {
                let ended = change(control, &self.target, |protection| protection.freeze.take()).await?;
                if ended.is_none() {
                    return Err(not_found(format!("{} has no release freeze", self.target)).hint(
                        "a frozen environment, whose last deployment got stuck, is released with `larder deploy --unfreeze`",
                    ));
                }
                announce_freeze(control, &self.target, caller.name(), None);
            }
        }
        Ok(view(control, self.target, &zone).into())
    }
}

/// The request to change or show the approvals and deploy windows that an environment wants.
#[derive(Debug)]
pub struct Protect {
    /// The project, or one of its environments.
    pub target: Target,
    /// True if each deployment needs the approval of a second person; absent to leave the setting as it is.
    pub approval: Option<bool>,
    /// The new deploy windows; absent to leave the setting as it is.
    pub windows: Option<Vec<DeployWindow>>,
}

impl Request for Protect {
    type View = ProtectionView;
    const NAME: &'static str = "protect";
    const ANNOUNCED: bool = true;

    fn needs(&self) -> Needs {
        let shows = self.approval.is_none() && self.windows.is_none();
        Needs::parts(&self.target, if shows { Access::View } else { Access::Admin })
    }

    fn detail(&self) -> Option<String> {
        let windows = self.windows.as_ref().map(|windows| windows.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        let approval = self.approval.map(|approval| format!("approval {approval}"));
        let parts: Vec<_> = approval.into_iter().chain(windows.map(|windows| format!("windows [{windows}]"))).collect();
        Some(parts.join(", ")).filter(|text| !text.is_empty())
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<ProtectionView>, CommandError> {
        let Protect { target, approval, windows } = self;
        if approval.is_some() || windows.is_some() {
            let set = |protection: &mut Protection| {
                protection.approval = approval.unwrap_or(protection.approval);
                protection.windows = windows.unwrap_or_else(|| std::mem::take(&mut protection.windows));
            };
            change(control, &target, set).await?;
        }
        Ok(view(control, target, &zone(control)).into())
    }
}

/// The request to approve the deployment of a commit, or to permit a commit in spite of every protection.
#[derive(Debug)]
pub struct Approve {
    /// The environment.
    pub target: Target,
    /// The commit.
    pub commit: CommitId,
    /// The reason to permit the commit in spite of every protection; absent for an approval.
    pub overriding: Option<String>,
}

/// An approval that was given.
#[derive(Debug, Serialize)]
pub struct Approved {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The approval.
    #[serde(flatten)]
    pub approval: Approval,
}

impl Request for Approve {
    type View = Approved;
    const NAME: &'static str = "approve";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, if self.overriding.is_some() { Access::Admin } else { Access::Deploy })
    }

    fn detail(&self) -> Option<String> {
        let why = self.overriding.as_ref().map(|why| format!(", override: {why}")).unwrap_or_default();
        Some(format!("{}{why}", self.commit))
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<Approved>, CommandError> {
        let Approve { target, commit, overriding } = self;
        let environment = control.environment(&target)?;
        let approval = Approval { commit, by: caller.name(), at: Timestamp::now(), overriding };
        let given = approval.clone();
        change(control, &Target::from(&environment), |protection| protection.approve(given)).await?;
        let Approval { commit, by, at, overriding } = approval.clone();
        let id = format!("approved-{}", at.as_nanosecond());
        control.announce_news(id, environment.title(), News::Approval(ApprovalNews::Given { commit, by, overriding }));
        Ok(Approved { environment: environment.title(), approval }.into())
    }
}

/// Changes the protection of a project or an environment that exists.
async fn change<T>(control: &Control, target: &Target, change: impl FnOnce(&mut Protection) -> T) -> Result<T, CommandError> {
    let change = |registry: &mut Registry| {
        let project = registry.project(&target.project);
        let project = project.ok_or_else(|| not_found(format!("there is no project {}", target.project)))?;
        if registry.environment(target).is_none() {
            return Err(no_environment(project, target));
        }
        let protection = registry.protections.entry(target.clone()).or_default();
        let result = change(protection);
        if *protection == Protection::default() {
            registry.protections.remove(target);
        }
        Ok(result)
    };
    control.change(change).await
}

fn announce_freeze(control: &Control, target: &Target, by: UserName, set: Option<FreezeTerms>) {
    let id = format!("freeze-{}", Timestamp::now().as_nanosecond());
    control.announce_news(id, target.to_string(), News::ReleaseFreeze { by, set });
}

fn view(control: &Control, target: Target, zone: &TimeZone) -> ProtectionView {
    let protection = control.registry().protections.get(&target).cloned().unwrap_or_default();
    let until = protection.freeze.as_ref().and_then(|freeze| freeze.until).map(|until| shown(until, zone));
    ProtectionView { on: target, protection, until }
}

fn zone(control: &Control) -> TimeZone {
    control.pipeline().services().config.backup.time_zone.clone()
}

impl Control {
    /// Returns the reason why a deployment may not begin now because of a protection of its environment.
    pub fn objection(&self, request: &DeployRequest) -> Option<protect::Objection> {
        // A dry run changes nothing that is live.
        if !request.dry_run.is_empty() {
            return None;
        }
        self.objection_to(&request.environment, &request.commit, &request.trigger)
    }

    /// Returns the release freeze that concerns an environment now.
    pub(super) fn release_freeze(&self, environment: &Environment) -> Option<FreezeStatus> {
        let zone = zone(self);
        let registry = self.registry();
        let ReleaseFreeze { until, why, by } = protect::freeze(&registry.protections, environment, Timestamp::now())?.clone();
        Some(FreezeStatus { until: until.map(|until| shown(until, &zone)), why, by })
    }

    /// Returns the reason why a commit may not be deployed now because of a protection of its environment.
    pub fn objection_to(&self, environment: &Environment, commit: &CommitId, trigger: &Trigger) -> Option<protect::Objection> {
        let zone = zone(self);
        protect::objection(&self.registry().protections, environment, commit, trigger, (Timestamp::now(), &zone))
    }

    /// Notifies the observers of a refused deployment, if the approval of a second person is the remedy. Repeated refusals on one day have the
    /// same id. `pushed` has the commits of a refused push.
    pub fn announce_objection(
        &self,
        objection: &protect::Objection,
        environment: &Environment,
        (commit, trigger): (&CommitId, &Trigger),
        pushed: Option<(Vec<LogEntry>, bool)>,
    ) {
        if objection.wants_approval {
            let day = Timestamp::now().strftime("%Y-%m-%d");
            let id = format!("approval-{commit}-{}-{day}", trigger.by());
            let news = ApprovalNews::Wanted { commit: commit.clone(), trigger: trigger.clone(), pushed };
            self.announce_news(id, environment.title(), News::Approval(news));
        }
    }
}

/// Returns an error if a protection of its environment forbids the deployment.
pub(super) fn ensure_permitted(control: &Control, request: &DeployRequest) -> Result<(), CommandError> {
    match control.objection(request) {
        Some(objection) => {
            control.announce_objection(&objection, &request.environment, (&request.commit, &request.trigger), None);
            Err(refused(objection.reason).hint(objection.hint))
        }
        None => Ok(()),
    }
}
