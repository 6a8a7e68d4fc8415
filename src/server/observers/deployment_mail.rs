//! The texts of notifications about deployments. The reader finds five answers in each text: what happened, who caused it, why, what serves
//! visitors now, and how to go back.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    git::LogEntry,
    model::{CommitId, Environment, Fault, Live, NotificationKind, Outcome, ReleaseNumber, Trigger, UserName},
    notify::{Advice, CommitChange, DetailList, FailureReport, Notification},
    pipeline::{
        DeploymentReport, Pipeline,
        observe::{Announcement, MAX_COMMITS},
        seconds, unrestored,
    },
};

/// Returns the notification of the begin of a deployment.
pub(super) fn began(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    report: &DeploymentReport,
) -> Notification {
    let commit = report.spec.commit.short();
    let (subject, headline) =
        (format!("{commit} is being deployed"), format!("{commit} is being deployed to {}.", environment.title()));
    let mut notification =
        Notification::new(announcement.id.clone(), NotificationKind::Began, announcement.at, subject, headline);
    place(pipeline, environment, &mut notification);
    notification.commit = commit_of(report);
    notification
}

/// Returns the full id of the commit and the branch.
fn commit_of(report: &DeploymentReport) -> Option<(String, String)> {
    Some((report.spec.commit.to_string(), report.spec.branch.to_string()))
}

/// Returns the notification of the end of a deployment that has a journal.
pub(super) async fn ended(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    outcome: &Outcome,
    report: &DeploymentReport,
) -> Notification {
    let spec = &report.spec;
    let title = environment.title();
    let commit = spec.commit.short();
    let at = report.ended.unwrap_or(announcement.at);
    let new = |kind, subject, headline| Notification::new(announcement.id.clone(), kind, at, subject, headline);
    let mut commits = commits(pipeline, environment, report).await;
    if !matches!(outcome, Outcome::Live { .. }) && !commits.changes.is_empty() {
        commits.title = String::from("Changes in this deployment");
    }
    let newest = commits.changes.first().map(|change| change.title.clone());
    let mut notification = match outcome {
        Outcome::Live { number, .. } => match &spec.trigger {
            Trigger::Rollback { by } => {
                let older = report.recorded.as_ref().map(|summary| format!("{}, ", summary.number)).unwrap_or_default();
                new(
                    NotificationKind::RolledBack,
                    format!("{number} is live: rollback to {older}{commit}"),
                    format!("{by} rolled {title} back: {number} is live, which is an older release ({older}commit {commit})."),
                )
            }
            Trigger::Configure { by } => {
                let snapshot = spec.configuration.map(|snapshot| snapshot.number.to_string()).unwrap_or_default();
                new(
                    NotificationKind::Deployed,
                    format!("{number} is live: configuration {snapshot}"),
                    format!(
                        "{by} changed the configuration of {title}: {number} (commit {commit}) is live with configuration {snapshot}."
                    ),
                )
            }
            Trigger::Pillar { by } => {
                let pillar = spec.pillar.as_ref().map(|commit| commit.short().to_owned()).unwrap_or_default();
                new(
                    NotificationKind::Deployed,
                    format!("{number} is live: pillar {pillar}"),
                    format!(
                        "{by} pushed the pillar of {title}: {number} (commit {commit}) is live with the values of pillar {pillar}."
                    ),
                )
            }
            _ => {
                let subject = newest.map_or_else(|| format!("{number} is live"), |newest| format!("{number} is live: {newest}"));
                new(NotificationKind::Deployed, subject, format!("{number} (commit {commit}) is live in {title}."))
            }
        },
        Outcome::Tried => new(NotificationKind::Deployed, String::from("dry run"), format!("A dry run of {title} succeeded.")),
        Outcome::Refused { fault } | Outcome::RolledBack { fault } => new(
            NotificationKind::Failed,
            format!("deployment of {commit} failed: {fault}"),
            format!("The deployment of {commit} to {title} failed, and its changes were reverted."),
        ),
        Outcome::Stuck { fault, .. } => new(
            NotificationKind::Stuck,
            format!("frozen: deployment of {commit} failed: {fault}"),
            format!("The deployment of {commit} to {title} failed, and its changes could not be reverted. {title} is frozen."),
        ),
    };
    place(pipeline, environment, &mut notification);
    (notification.changes_title, notification.changes, notification.more_changes) =
        (commits.title, commits.changes, commits.more);
    verdict(environment, &mut notification, outcome, spec.previous.as_ref(), |fault| report.excerpt(fault));
    notification.facts = facts(report, at);
    notification.commit = commit_of(report);
    notification
}

/// Returns the notification of the end of a deployment that has no journal that can be read.
pub(super) fn unrecorded(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    outcome: &Outcome,
) -> Notification {
    let title = environment.title();
    let (kind, headline) = match outcome {
        Outcome::Stuck { .. } => {
            (NotificationKind::Stuck, format!("{title} is frozen: the record of a deployment cannot be used."))
        }
        _ => (NotificationKind::Failed, format!("A deployment to {title} failed before its first step.")),
    };
    let subject = match outcome {
        Outcome::Stuck { .. } => String::from("frozen: the record of a deployment cannot be used"),
        _ => String::from("a deployment failed before its first step"),
    };
    let mut notification = Notification::new(announcement.id.clone(), kind, announcement.at, subject, headline);
    place(pipeline, environment, &mut notification);
    verdict(environment, &mut notification, outcome, pipeline.live(environment.id).as_ref(), |_| Vec::new());
    notification
}

/// Returns the notification of an unfreeze. `report` is the report of the deployment that had frozen the environment; `None`
/// if the record of the deployment could not be used.
pub(super) fn unfrozen(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    by: &UserName,
    report: Option<&DeploymentReport>,
) -> Notification {
    let title = environment.title();
    let headline = format!("{by} unfroze {title}. Deployments are possible again.");
    let subject = String::from("back to normal: unfrozen");
    let mut notification =
        Notification::new(announcement.id.clone(), NotificationKind::Unfrozen, announcement.at, subject, headline);
    place(pipeline, environment, &mut notification);
    notification.serves = Some(serves(pipeline, environment));
    notification.facts.push((String::from("Unfrozen by"), by.to_string()));
    let target = environment.target();
    let lines = reasons(&target, by, report);
    notification.sections.push(DetailList { title: String::from("Reason"), lines });
    notification.advice.push(Advice {
        text: String::from("To see what failed, run"),
        command: Some(format!("larder deploy {target} --follow")),
    });
    notification.advice.push(Advice {
        text: String::from("To go back to the release before the live one, run"),
        command: Some(format!("larder rollback {target}")),
    });
    notification
}

/// Returns the reason of a frozen environment, and the end of the deployment that had frozen the environment.
fn reasons(target: &str, by: &UserName, report: Option<&DeploymentReport>) -> Vec<String> {
    let Some(report) = report else {
        let frozen = String::from("The environment was frozen, because the record of a deployment could not be used.");
        return vec![frozen, format!("{by} repaired or removed the record, and ran `larder deploy {target} --unfreeze`.")];
    };
    let commit = report.spec.commit.short();
    let mut lines = vec![match &report.fault {
        Some(fault) => format!("The environment was frozen, because the deployment of {commit} failed: {fault}"),
        None => format!("The environment was frozen, because the deployment of {commit} was interrupted."),
    }];
    lines.extend(report.undo_failed.as_ref().map(|undo| format!("Its changes could not be reverted: {undo}")));
    let end = match report.outcome {
        Some(Outcome::Live { .. }) => "finished the deployment",
        _ => "reverted the changes of the deployment",
    };
    lines.push(format!("{by} ran `larder deploy {target} --unfreeze`, which {end}."));
    lines
}

/// Returns the sentence that names the live release.
pub(super) fn serves(pipeline: &Pipeline, environment: &Environment) -> String {
    match pipeline.live(environment.id) {
        Some(live) => format!("{} (commit {}) serves visitors.", live.number, live.commit.short()),
        None => String::from("Nothing is live."),
    }
}

/// Sets the fields that name the environment.
pub(super) fn place(pipeline: &Pipeline, environment: &Environment, notification: &mut Notification) {
    let services = pipeline.services();
    let host = environment.hosts(services.config.domain.as_str()).into_iter().next().unwrap_or_default();
    notification.project = Some(environment.project.clone());
    notification.environment = Some(environment.title());
    notification.url = Some(services.config.http.url(&host, services.http.port()));
}

/// Sets the fields that depend on the outcome: the failure, the release that serves, and the next steps.
fn verdict(
    environment: &Environment,
    notification: &mut Notification,
    outcome: &Outcome,
    previous: Option<&Live>,
    excerpt: impl FnOnce(&Fault) -> Vec<String>,
) {
    let target = environment.target();
    let still = match previous {
        Some(live) => format!("{} (commit {}) still serves visitors", live.number, live.commit.short()),
        None => String::from("Nothing is live yet"),
    };
    let advice = |text: String, command: Option<String>| Advice { text, command };
    match outcome {
        Outcome::Live { number, .. } => {
            notification.serves = Some(format!("{number} serves visitors now."));
            notification.advice.push(match previous {
                Some(previous) => back(&target, previous.number),
                None => advice(String::from("This is the first release, so there is no release to go back to"), None),
            });
        }
        Outcome::Tried => notification.serves = Some(format!("{still}.")),
        Outcome::Refused { .. } | Outcome::RolledBack { .. } => {
            notification.serves = Some(match unrestored(outcome) {
                Some(unrestored) => format!("{still}, but {unrestored}."),
                None => format!("{still}. Nothing has to be undone."),
            });
            let again = format!("larder deploy {target} --retry");
            notification.advice.push(advice(String::from("To try the same commit again, push again, or run"), Some(again)));
        }
        Outcome::Stuck { undo, .. } => {
            notification.serves = Some(match previous {
                Some(live) => format!(
                    "The state of the application is uncertain; {} was live before. Reverting failed: {undo}",
                    live.number
                ),
                None => format!("The state of the application is uncertain. Reverting failed: {undo}"),
            });
            let unfreeze = format!("larder deploy {target} --unfreeze");
            notification
                .advice
                .push(advice(String::from("An operator of this server must correct the problem, and then run"), Some(unfreeze)));
        }
    }
    if let Outcome::Refused { fault } | Outcome::RolledBack { fault } | Outcome::Stuck { fault, .. } = outcome {
        notification.failure = Some(FailureReport {
            phase: fault.phase.to_string(),
            why: fault.why.clone(),
            hints: fault.hints.clone(),
            output: excerpt(fault),
        });
    }
}

fn back(target: &str, previous: ReleaseNumber) -> Advice {
    Advice { text: format!("To go back to {previous}, run"), command: Some(format!("larder rollback {target} {previous}")) }
}

fn facts(report: &DeploymentReport, at: Timestamp) -> Vec<(String, String)> {
    let spec = &report.spec;
    let request = match &spec.trigger {
        Trigger::Push { by } => format!("{by} (push to {})", spec.branch),
        Trigger::Redeploy { by } => format!("{by} (larder deploy)"),
        Trigger::Pull { by } => format!("{by} (release from {})", spec.origin),
        Trigger::Rollback { by } => format!("{by} (larder rollback)"),
        Trigger::Configure { by } => format!("{by} (larder config)"),
        Trigger::Pillar { by } => format!("{by} (push to the pillar)"),
    };
    let mut facts = vec![(String::from("Started by"), request)];
    facts.extend(report.tag.clone().map(|tag| (String::from("Version"), tag)));
    let took = at.duration_since(report.opened).unsigned_abs();
    facts.push((String::from("Duration"), seconds(took)));
    if let Some(millis) = report.interruption {
        facts.push((String::from("Maintenance page"), seconds(Duration::from_millis(millis))));
    }
    facts
}

/// The commits of a notification.
struct Commits {
    title: String,
    changes: Vec<CommitChange>,
    more: bool,
}

/// Returns the commits between the release that was live and the release of the deployment.
async fn commits(pipeline: &Pipeline, environment: &Environment, report: &DeploymentReport) -> Commits {
    let spec = &report.spec;
    let before = spec.previous.as_ref().map(|previous| &previous.commit);
    let read = async |from: Option<&CommitId>, to: &CommitId| {
        log(pipeline, environment, from, to).await.unwrap_or_else(|error| {
            tracing::warn!(environment = environment.title(), error, "cannot read the commits for a notification");
            (Vec::new(), false)
        })
    };
    let (changes, more) = read(before, &spec.commit).await;
    let title = |changes: &[CommitChange], text: &str| if changes.is_empty() { String::new() } else { text.to_owned() };
    match before {
        None => Commits { title: title(&changes, "The first release contains these commits"), changes, more },
        Some(before) if changes.is_empty() => {
            let (changes, more) = read(Some(&spec.commit), before).await;
            Commits { title: title(&changes, "These commits are taken back"), changes, more }
        }
        Some(_) => Commits { title: title(&changes, "Changes since the release that was live"), changes, more },
    }
}

/// Returns the commits after `from` up to `to`, newest first, and true if there are more commits.
pub(super) async fn log(
    pipeline: &Pipeline,
    environment: &Environment,
    from: Option<&CommitId>,
    to: &CommitId,
) -> Result<(Vec<CommitChange>, bool), String> {
    let log = pipeline.services().repositories.log(environment.project_id, from.cloned(), to.clone(), MAX_COMMITS).await;
    let (entries, more) = log.map_err(|error| error.to_string())?;
    Ok((entries.into_iter().map(change).collect(), more))
}

/// Returns a commit as a line of a notification.
pub(super) fn change(entry: LogEntry) -> CommitChange {
    CommitChange { commit: entry.commit.short().to_owned(), title: entry.subject, author: entry.author }
}
