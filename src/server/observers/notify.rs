//! The observer that turns events into notifications.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{
    access_mail::{self, PushedCommits},
    deployment_mail, event_mail,
};
use crate::{
    config::Settings,
    control::{Caller, Control, Needs},
    model::{Access, Blame, DeploymentId, Environment, Fault, NotificationKind, Outcome, Project},
    notify::{Notification, Notifier, Recipients},
    pipeline::{
        Pipeline,
        observe::{Announcement, News, Observer},
    },
};

/// The maximum time for which the observer waits until an environment has been recovered. The time limit of an observer is longer.
const RECOVERY_WAIT: Duration = Duration::from_secs(20);

/// The observer that turns events into notifications.
pub(super) struct Notifications {
    notifier: Notifier,
    control: Arc<OnceLock<Control>>,
    pushes: PushedCommits,
}

impl Notifications {
    pub fn new(notifier: Notifier, control: Arc<OnceLock<Control>>) -> Notifications {
        Notifications { notifier, control, pushes: PushedCommits::default() }
    }

    async fn handle(&self, announcement: &Announcement) -> Result<(), String> {
        let is_milestone = matches!(announcement.news, News::Began | News::Committed);
        if is_milestone && !self.is_for_a_forge(announcement) {
            return Ok(());
        }
        let control = self.control.get().ok_or("the server is starting")?;
        if let News::Disk(news) = &announcement.news {
            return self.send(event_mail::disk(announcement, *news), None).await;
        }
        if let News::AccessChanged { by, what, detail } = &announcement.news {
            return self.send(access_mail::changed(announcement, by, what, detail.as_deref()), None).await;
        }
        if let News::ReleaseFreeze { by, set } = &announcement.news {
            let Some((project, named)) = place(control, &announcement.environment) else { return Ok(()) };
            let notification = access_mail::freeze(control, project.name, named.as_ref(), announcement, (by, set.as_ref()));
            let pipeline = control.pipeline();
            let settings = match &named {
                Some(environment) => pipeline.live_settings(environment),
                None => project.environments.iter().find_map(|environment| pipeline.live_settings(environment)),
            };
            return self.send(notification, settings.as_ref()).await;
        }
        // An environment that was removed meanwhile has no recipients.
        let Some(environment) = environment(control, &announcement.environment) else { return Ok(()) };
        let pipeline = control.pipeline();
        if !pipeline.in_service(&environment, RECOVERY_WAIT).await {
            return Err(String::from("the environment is being recovered"));
        }
        let event = match (&announcement.news, announcement.deployment) {
            (News::Ended(_) | News::Released { .. }, Some(deployment)) => {
                of_deployment(pipeline, &environment, announcement, deployment).await
            }
            (News::Began, Some(deployment)) => {
                let report = tokio::task::block_in_place(|| pipeline.report(&environment, deployment));
                let report = report.filter(|report| report.spec.dry_run_phases().is_none());
                report.map(|report| (deployment_mail::began(pipeline, &environment, announcement, &report), None))
            }
            (News::Backup(news), _) => Some(event_mail::backup(pipeline, &environment, announcement, news)),
            (News::Site(news), _) => Some(event_mail::site(pipeline, &environment, announcement, news)),
            (News::Approval(news), _) => {
                let notification = access_mail::approval(pipeline, &environment, announcement, news, &self.pushes).await;
                Some((notification, pipeline.live_settings(&environment)))
            }
            (News::Created(by), _) => Some(event_mail::created(pipeline, &environment, announcement, by)),
            _ => None,
        };
        match event {
            Some((notification, settings)) => self.send(notification, settings.as_ref()).await,
            None => Ok(()),
        }
    }

    /// Returns true for the begin of a deployment of a project with a forge.
    fn is_for_a_forge(&self, announcement: &Announcement) -> bool {
        let project = announcement.environment.split('/').next().and_then(|project| project.parse().ok());
        announcement.news == News::Began && project.is_some_and(|project| self.notifier.forge(&project).is_some())
    }

    /// Queues a notification for the recipients in `settings` and, for some kinds, for the administrators.
    async fn send(&self, notification: Notification, settings: Option<&Settings>) -> Result<(), String> {
        let recipients = recipients(&self.notifier, notification.kind, settings);
        self.notifier.notify(notification, recipients).await.map(drop).map_err(|error| error.to_string())
    }
}

/// Returns the recipients of a notification: those of the recipe, and for some kinds the administrators.
pub(in crate::server) fn recipients(notifier: &Notifier, kind: NotificationKind, settings: Option<&Settings>) -> Recipients {
    let mut recipients = Recipients::default();
    let notify = settings.map(|settings| &settings.notify).filter(|notify| notify.wants(kind.topic()));
    if let Some(notify) = notify.filter(|_| kind.concerns_project()) {
        recipients.mail.extend(notify.mail.iter().cloned());
        recipients.webhooks.extend(notify.webhooks.iter().cloned());
    }
    if kind.concerns_administrators() {
        for admin in notifier.mail().map(|mail| mail.admins.as_slice()).unwrap_or_default() {
            if !recipients.mail.contains(admin) {
                recipients.mail.push(admin.clone());
            }
        }
    }
    recipients
}

impl Observer for Notifications {
    fn name(&self) -> &'static str {
        "notifications"
    }

    fn observe<'a>(&'a self, announcement: &'a Announcement) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.handle(announcement))
    }
}

/// Returns the environment with a title such as `shop/production`.
fn environment(control: &Control, title: &str) -> Option<Environment> {
    place(control, title)?.1
}

/// Returns the project of `title`, and the environment if `title` names one. Returns `None` if one of them was removed.
fn place(control: &Control, title: &str) -> Option<(Project, Option<Environment>)> {
    let (name, has_environment) = title.split_once('/').map_or((title, false), |(project, _)| (project, true));
    let name = name.parse().ok()?;
    let project = control.project(&Caller::Operator, &name, &Needs::project(&name, Access::View)).ok()?;
    let environment = project.environments.iter().find(|environment| environment.title() == title).cloned();
    (environment.is_some() == has_environment).then_some((project, environment))
}

/// Returns the notification of a deployment's end, or of an unfreeze, with the settings that name the recipients. Returns `None` for an
/// event that no reader must know: a dry run, and a deployment that a newer push superseded or a person cancelled before it began.
async fn of_deployment(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    deployment: DeploymentId,
) -> Option<(Notification, Option<Settings>)> {
    let report = tokio::task::block_in_place(|| pipeline.report(environment, deployment));
    let settings = || report.as_ref().and_then(|report| report.settings.clone()).or_else(|| pipeline.live_settings(environment));
    let notification = match (&announcement.news, &report) {
        (News::Ended(_), Some(report)) if report.spec.dry_run_phases().is_some() => return None,
        // A stuck deployment ends once more when a person unfreezes the environment. The notification of the unfreeze follows.
        (News::Ended(Outcome::Refused { .. } | Outcome::RolledBack { .. }), Some(_)) if is_repeated_end(&announcement.id) => {
            return None;
        }
        // The record that cannot be used may be another one than the journal of the deployment.
        (News::Ended(outcome), _) if announcement.id.ends_with(UNUSABLE) => {
            deployment_mail::unrecorded(pipeline, environment, announcement, outcome)
        }
        (News::Ended(outcome), Some(report)) => {
            deployment_mail::ended(pipeline, environment, announcement, outcome, report).await
        }
        // A deployment without a journal that was superseded or cancelled never began.
        (News::Ended(outcome), None) if fault(outcome).is_some_and(|fault| fault.blame == Blame::Nobody) => return None,
        (News::Ended(outcome), None) => deployment_mail::unrecorded(pipeline, environment, announcement, outcome),
        (News::Released { by, was_unusable }, report) => {
            let report = report.as_ref().filter(|_| !was_unusable);
            deployment_mail::unfrozen(pipeline, environment, announcement, by, report)
        }
        _ => return None,
    };
    Some((notification, settings()))
}

/// The end of the id of an announcement about a record that cannot be used.
const UNUSABLE: &str = ".unusable";

/// Returns true if the id of an announcement names the second or a later end of its deployment.
fn is_repeated_end(id: &str) -> bool {
    id.rsplit_once('.').and_then(|(_, number)| number.parse().ok()).is_some_and(|number: u32| number > 1)
}

fn fault(outcome: &Outcome) -> Option<&Fault> {
    match outcome {
        Outcome::Live { .. } | Outcome::Tried => None,
        Outcome::Refused { fault } | Outcome::RolledBack { fault } | Outcome::Stuck { fault, .. } => Some(fault),
    }
}
