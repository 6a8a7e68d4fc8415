//! Requests for rollbacks: deployments of an older release, with or without the data of that time.

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    backup::{PointView, of_points, point_name},
    deployments::{deployment, id_of_tag, of_pipeline, of_supply},
};
use crate::{
    backup::DataDiff,
    control::{
        authz::Needs,
        error::{CommandError, refused, usage},
        request::{Confirmation, Context, Reply, Request, Stream},
        state::Control,
    },
    model::{Access, CommitId, Environment, Live, Origin, ReleaseNumber, Target, Trigger, UserName, sanitise_line},
    pipeline::{DeployRequest, Goal, PointChoiceError, Summary, Upgrade},
};

/// The request to deploy an older release again.
#[derive(Debug)]
pub struct Rollback {
    /// The environment.
    pub target: Target,
    /// The release. If absent, the release that was live before the live release first went live.
    pub release: Option<String>,
    /// The data that the rollback brings back; absent if the data stays as it is.
    pub data: Option<RollbackData>,
    /// True to show the consequences only.
    pub dry_run: bool,
}

/// The data that a rollback brings back.
#[derive(Debug)]
pub struct RollbackData {
    /// The restore point. If absent, the newest restore point that was taken while the release was live.
    pub point: Option<String>,
    /// The name of the project, typed again by the caller as a confirmation; absent if the caller has not confirmed yet.
    pub confirm: Option<String>,
}

/// The consequences of a rollback. Nothing was changed.
#[derive(Debug, Clone, Serialize)]
pub struct RollbackPreview {
    /// The environment, as `project/environment`.
    pub environment: String,
    /// The live release.
    pub live: ReleaseNumber,
    /// The release that would go live again.
    pub release: ReleaseNumber,
    /// The commit of the release that would go live again.
    pub commit: CommitId,
    /// True if the request was a dry run.
    pub dry_run: bool,
    /// The upgrade commands that ran since the release `release` was deployed, oldest first.
    pub upgrades: Vec<UpgradeView>,
    /// The data that would come back; absent if the data stays as it is.
    pub data: Option<DataPreview>,
}

/// An upgrade command that ran in a deployment: the command of the key `upgrade`, or else the release command.
#[derive(Debug, Clone, Serialize)]
pub struct UpgradeView {
    /// The number of the deployment's release.
    pub number: ReleaseNumber,
    /// The commit of the deployment.
    pub commit: CommitId,
    /// The moment at which the deployment began.
    pub at: Timestamp,
    /// The command.
    pub command: String,
    /// True if the deployment went live.
    pub went_live: bool,
}

impl From<Upgrade> for UpgradeView {
    fn from(upgrade: Upgrade) -> UpgradeView {
        let Upgrade { number, commit, at, command, went_live } = upgrade;
        UpgradeView { number, commit, at, command: sanitise_line(&command), went_live }
    }
}

/// The data that a rollback would bring back.
#[derive(Debug, Clone, Serialize)]
pub struct DataPreview {
    /// The restore point.
    pub point: PointView,
    /// The age of the restore point, in seconds.
    pub age_seconds: u64,
    /// The differences of the live data from the restore point.
    pub would_lose: DataDiff,
}

impl Request for Rollback {
    type View = RollbackPreview;
    const NAME: &'static str = "rollback";

    fn needs(&self) -> Needs {
        // A rollback with data loses data that users have written.
        let needed = if self.data.is_some() && !self.dry_run { Access::Operate } else { Access::Deploy };
        Needs::environment(&self.target, needed)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<RollbackPreview>, CommandError> {
        let Rollback { target, release, data, dry_run } = self;
        let environment = control.environment(&target)?;
        if let Some(confirm) = data.as_ref().and_then(|data| data.confirm.as_ref())
            && *confirm != environment.project.as_str()
        {
            let (seen, expected) = (sanitise_line(confirm), &environment.project);
            return Err(usage(format!("cannot confirm the rollback: --confirm names {seen:?} (expected {expected})")));
        }
        let release = id_of_tag(control, &environment, release).await;
        let made = control.pipeline().past(environment.id, release.as_deref()).map_err(|error| of_supply(&error))?;
        if data.is_none() && !dry_run {
            return start(control, environment, caller.name(), &made, None);
        }
        let confirmed = data.as_ref().is_some_and(|data| data.confirm.is_some());
        let chosen = match &data {
            None => None,
            Some(RollbackData { point, .. }) => {
                point.as_deref().map(point_name).transpose()?;
                let found = control.pipeline().point_of(&environment, &made, point.clone()).await;
                Some(found.map_err(|error| of_choice(&target, &error))?)
            }
        };
        if let Some(point) = chosen.as_ref().filter(|_| !dry_run) {
            // The release goes back together with its configuration, whose file may have been lost together with the data.
            let put_back = control.pipeline().put_back_configuration(&environment, point.id.clone()).await;
            put_back.map_err(|error| of_points(&error))?;
        }
        if let Some(point) = chosen.as_ref().filter(|_| confirmed && !dry_run) {
            return start(control, environment, caller.name(), &made, Some(point.id.clone()));
        }
        let live = control.pipeline().live(environment.id);
        let live = live.ok_or_else(|| refused(format!("cannot roll back {0}: nothing is live in {0}", environment.title())))?;
        let mut view = RollbackPreview {
            environment: environment.title(),
            live: live.number,
            release: made.number,
            commit: made.commit.clone(),
            dry_run,
            upgrades: control.pipeline().upgrades_since(&environment, &made).into_iter().map(UpgradeView::from).collect(),
            data: None,
        };
        let Some(point) = chosen else { return Ok(view.into()) };
        let id = point.id.clone();
        let diff = control.pipeline().diff_points(&environment, id.clone(), None).await;
        let age = point.taken.map_or(0, |taken| Timestamp::now().as_second().saturating_sub(taken));
        view.data = Some(DataPreview {
            point: PointView::new(&environment, point),
            age_seconds: u64::try_from(age).unwrap_or(0),
            would_lose: diff.map_err(|error| of_points(&error))?,
        });
        if dry_run {
            return Ok(view.into());
        }
        let (control, by, word) = (Control::clone(control), caller.name(), environment.project.to_string());
        let proceed = move || -> BoxFuture<'static, _> {
            Box::pin(async move {
                is_still_live(&control, &environment, &live)?;
                start(&control, environment, by, &made, Some(id))
            })
        };
        Ok(Reply::Confirm(Box::new(Confirmation { view, word, proceed: Box::new(proceed) })))
    }
}

/// Returns an error if another release went live after the consequences were shown.
fn is_still_live(control: &Control, environment: &Environment, shown: &Live) -> Result<(), CommandError> {
    match control.pipeline().live(environment.id) {
        Some(now) if now == *shown => Ok(()),
        now => {
            let now = now.map_or_else(|| String::from("no release"), |live| live.number.to_string());
            Err(refused(format!("nothing was changed: {now} is live now (expected {}, as shown above)", shown.number))
                .hint("run the command again to see the consequences for the live release"))
        }
    }
}

fn start(
    control: &Control,
    environment: Environment,
    by: UserName,
    made: &Summary,
    data: Option<String>,
) -> Result<Reply<RollbackPreview>, CommandError> {
    let goal = Goal::Release { release: made.release, origin: Origin::Previous, newest: false, overriding: None };
    let request = deployment(Trigger::Rollback { by }, environment, made.commit.clone(), goal);
    let upgrades = control.pipeline().upgrades_since(&request.environment, made);
    let recorded = Some(made.deployment);
    let ticket = control.pipeline().submit(DeployRequest { data, recorded, ..request }).map_err(|error| of_pipeline(&error))?;
    if !upgrades.is_empty() {
        let ran: Vec<_> =
            upgrades.iter().map(|upgrade| format!("{} ({})", upgrade.number, sanitise_line(&upgrade.command))).collect();
        ticket.transcript.error(&format!("upgrades ran since {}, and none is reverted: {}", made.number, ran.join(", ")));
    }
    Ok(Reply::Stream(Stream::deployment(ticket)))
}

fn of_choice(target: &Target, error: &PointChoiceError) -> CommandError {
    let (number, candidates) = match error {
        PointChoiceError::Points(error) => return of_points(error),
        PointChoiceError::None { number, candidates, .. } => (number, candidates),
    };
    let refusal = refused(error.to_string());
    let refusal = candidates.iter().fold(refusal, |refusal, point| {
        let at = point.taken.and_then(|taken| Timestamp::from_second(taken).ok());
        let at = at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default();
        let label = point.label.as_ref();
        let of = label.and_then(|label| label.number).map(|number| format!(" of {number}")).unwrap_or_default();
        let reason = label.map(|label| sanitise_line(&label.reason)).unwrap_or_default();
        refusal.hint(format!("candidate: {} ({at}{of}, {reason})", point.id))
    });
    match candidates.is_empty() {
        true => refusal.hint(format!("go back without data: larder rollback {target} {number}")),
        false => refusal.hint(format!("choose a candidate with `larder rollback {target} {number} --with-data --point ID`")),
    }
}
