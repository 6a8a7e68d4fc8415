//! The texts of notifications about access: changed rights, approvals of commits, and release freezes.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::deployment_mail::{change, log, place, serves};
use crate::{
    control::Control,
    model::{CommitId, Environment, NotificationKind, ProjectName, Trigger, UserName},
    notify::{Advice, CommitChange, DetailList, Notification},
    pipeline::{
        Pipeline,
        observe::{Announcement, ApprovalNews, FreezeTerms},
    },
};

/// The maximum number of refused pushes whose commits are remembered.
const MAX_PUSHES: usize = 64;

/// The commits of pushes that wait for an approval, for the notification of the approval: the server does not keep the objects of a refused
/// push. After a restart, the notification of the approval names the commit only.
#[derive(Default)]
pub(super) struct PushedCommits(Mutex<VecDeque<PushedCommit>>);

/// A commit that was pushed to an environment and refused, with the commits since the live release.
struct PushedCommit {
    environment: String,
    commit: CommitId,
    changes: Vec<CommitChange>,
    more: bool,
}

impl PushedCommits {
    fn remember(&self, push: PushedCommit) {
        let mut pushes = self.0.lock();
        pushes.retain(|known| known.environment != push.environment || known.commit != push.commit);
        pushes.push_back(push);
        let excess = pushes.len().saturating_sub(MAX_PUSHES);
        pushes.drain(..excess);
    }

    fn of(&self, environment: &str, commit: &CommitId) -> Option<(Vec<CommitChange>, bool)> {
        let pushes = self.0.lock();
        let found = pushes.iter().find(|push| push.environment == environment && push.commit == *commit)?;
        Some((found.changes.clone(), found.more))
    }
}

fn new(announcement: &Announcement, kind: NotificationKind, subject: String, headline: String) -> Notification {
    Notification::new(announcement.id.clone(), kind, announcement.at, subject, headline)
}

fn advice(text: impl Into<String>, command: String) -> Advice {
    Advice { text: text.into(), command: Some(command) }
}

fn reason(why: &str) -> DetailList {
    DetailList { title: String::from("Reason"), lines: vec![why.to_owned()] }
}

/// Returns the notification of a change of users, keys, rights, approvals or deploy windows. `what` is the request, such as `user grant`.
pub(super) fn changed(announcement: &Announcement, by: &UserName, what: &str, detail: Option<&str>) -> Notification {
    let on = if announcement.environment == "server" { "this server" } else { &announcement.environment };
    let subject = format!("access changed: {what}");
    let headline = format!("{by} changed the access to {on} with `larder {what}`.");
    let mut notification = new(announcement, NotificationKind::AccessChanged, subject, headline);
    notification.serves = Some(String::from("The applications go on unchanged."));
    notification.facts.push((String::from("Changed by"), by.to_string()));
    notification.facts.extend(detail.map(|detail| (String::from("Details"), detail.to_owned())));
    notification.advice.push(advice("To see all changes, run", String::from("larder audit")));
    notification
}

/// Returns the notification of a change of the approval of a commit.
pub(super) async fn approval(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    news: &ApprovalNews,
    pushes: &PushedCommits,
) -> Notification {
    let mut notification = match news {
        ApprovalNews::Wanted { commit, trigger, pushed } => {
            if let Some((entries, more)) = pushed {
                let changes = entries.iter().cloned().map(change).collect();
                pushes.remember(PushedCommit { environment: environment.title(), commit: commit.clone(), changes, more: *more });
            }
            wanted(pipeline, environment, announcement, commit, trigger)
        }
        ApprovalNews::Given { commit, by, overriding } => {
            given(pipeline, environment, announcement, (commit, by), overriding.as_deref())
        }
    };
    let (ApprovalNews::Wanted { commit, .. } | ApprovalNews::Given { commit, .. }) = news;
    changes(pipeline, environment, commit, pushes, &mut notification).await;
    notification
}

fn wanted(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    commit: &CommitId,
    trigger: &Trigger,
) -> Notification {
    let (title, short, by) = (environment.title(), commit.short(), trigger.by());
    let subject = format!("{short} waits for the approval of a second person");
    let headline = format!("{by} wants to deploy {short} to {title}. A second person must approve the commit first.");
    let mut notification = new(announcement, NotificationKind::ApprovalWanted, subject, headline);
    place(pipeline, environment, &mut notification);
    notification.serves = Some(still(pipeline, environment));
    let (request, again) = match trigger {
        Trigger::Push { .. } => (format!("{by} (push to {})", environment.branch), "pushes again"),
        _ => (by.to_string(), "repeats the command"),
    };
    notification.facts = vec![(String::from("Requested by"), request), (String::from("Commit"), commit.to_string())];
    let approve = format!("larder approve {title} {commit}");
    notification.advice.push(advice(format!("To approve the commit, a person other than {by} runs"), approve));
    notification.advice.push(Advice { text: format!("After the approval, {by} {again}"), command: None });
    notification
}

fn given(
    pipeline: &Pipeline,
    environment: &Environment,
    announcement: &Announcement,
    (commit, by): (&CommitId, &UserName),
    overriding: Option<&str>,
) -> Notification {
    let (title, short) = (environment.title(), commit.short());
    let (subject, headline, end) = match overriding {
        None => (
            format!("{short} is approved"),
            format!("{by} approved the deployment of {short} to {title}."),
            "The approval ends after one week",
        ),
        Some(_) => (
            format!("{short} is permitted in spite of every protection"),
            format!(
                "{by} permitted the deployment of {short} to {title} in spite of release freezes, deploy windows and approvals."
            ),
            "The permission ends after one day",
        ),
    };
    let mut notification = new(announcement, NotificationKind::Approved, subject, headline);
    place(pipeline, environment, &mut notification);
    notification.serves = Some(still(pipeline, environment));
    notification.sections.extend(overriding.map(reason));
    notification.facts = vec![(String::from("Approved by"), by.to_string()), (String::from("Commit"), commit.to_string())];
    let deploy = "The commit is not live yet: the person who wants to deploy the commit pushes again, or repeats the command";
    notification.advice.push(Advice { text: deploy.to_owned(), command: None });
    notification.advice.push(Advice { text: end.to_owned(), command: None });
    notification.advice.push(advice("To go back after the deployment, run", format!("larder rollback {}", environment.target())));
    notification
}

/// Returns the sentence that names the release that goes on serving.
fn still(pipeline: &Pipeline, environment: &Environment) -> String {
    match pipeline.live(environment.id) {
        Some(_) => format!("Nothing has changed for visitors: {}", serves(pipeline, environment)),
        None => String::from("Nothing is live yet."),
    }
}

/// Adds the commits between the live release and `commit`. `pushes` has the commits that the server does not have.
async fn changes(
    pipeline: &Pipeline,
    environment: &Environment,
    commit: &CommitId,
    pushes: &PushedCommits,
    notification: &mut Notification,
) {
    let live = pipeline.live(environment.id).map(|live| live.commit);
    let found = match pushes.of(&environment.title(), commit) {
        Some(found) => Ok(found),
        None => log(pipeline, environment, live.as_ref(), commit).await,
    };
    match found {
        Ok((changes, more)) if !changes.is_empty() => {
            notification.changes_title = String::from("Changes that the deployment would bring");
            (notification.changes, notification.more_changes) = (changes, more);
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(environment = environment.title(), error, "the commits of a notification are not known"),
    }
}

/// Returns the notification of a release freeze, or of its end. Without an environment, the release freeze concerns the whole project.
pub(super) fn freeze(
    control: &Control,
    project: ProjectName,
    environment: Option<&Environment>,
    announcement: &Announcement,
    (by, set): (&UserName, Option<&FreezeTerms>),
) -> Notification {
    let on = &announcement.environment;
    // The subject of a mail names the environment, but not the project.
    let named = |text: String| if environment.is_some() { text } else { format!("{project}: {text}") };
    let mut notification = match set {
        Some(FreezeTerms { until, why }) => {
            let end = until.as_deref().map_or_else(|| String::from("until a person ends it"), |until| format!("until {until}"));
            let headline = format!("{by} set a release freeze for {on} {end}: pushes and deployments are refused.");
            let mut notification =
                new(announcement, NotificationKind::FreezeBegan, named(format!("release freeze {end}")), headline);
            notification.sections.push(reason(why));
            notification.advice.push(advice("To end the release freeze, run", format!("larder freeze {on} --end")));
            let one = environment.map_or_else(|| format!("{project}/ENVIRONMENT"), Environment::title);
            let permit = format!("larder approve {one} COMMIT --override WHY");
            notification.advice.push(advice("To permit one commit in an emergency, an administrator runs", permit));
            notification
        }
        None => {
            let headline = format!("{by} ended the release freeze of {on}. Pushes and deployments are possible again.");
            let mut notification =
                new(announcement, NotificationKind::FreezeEnded, named(String::from("release freeze ended")), headline);
            notification
                .advice
                .push(advice("To set a release freeze again, run", format!("larder freeze {on} --until WHEN --why WHY")));
            notification
        }
    };
    notification.serves = Some(String::from("The application goes on unchanged, and rollbacks are possible."));
    if let Some(environment) = environment {
        place(control.pipeline(), environment, &mut notification);
        notification.serves = Some(format!("{} Rollbacks are possible.", still(control.pipeline(), environment)));
    }
    notification.project = Some(project);
    notification.facts.push((String::from(if set.is_some() { "Set by" } else { "Ended by" }), by.to_string()));
    notification
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_a_push_are_remembered_for_its_environment_and_its_newest_request() {
        let pushes = PushedCommits::default();
        let commit = |number: usize| format!("{number:040x}").parse::<CommitId>().unwrap();
        let push = |environment: &str, number: usize, title: &str| {
            let change = CommitChange { commit: String::from("1a2b3c"), title: title.to_owned(), author: String::from("Ann") };
            pushes.remember(PushedCommit {
                environment: environment.to_owned(),
                commit: commit(number),
                changes: vec![change],
                more: false,
            });
        };
        let title = |environment: &str, number: usize| Some(pushes.of(environment, &commit(number))?.0[0].title.clone());
        push("shop/production", 1, "since v1");
        push("shop/staging", 1, "since v7");
        push("shop/production", 1, "since v2");
        assert_eq!(title("shop/production", 1).as_deref(), Some("since v2"));
        assert_eq!(title("shop/staging", 1).as_deref(), Some("since v7"));
        assert_eq!((title("shop/other", 1), title("shop/production", 2)), (None, None));
        (10..10 + MAX_PUSHES - 1).for_each(|number| push("shop/production", number, "later"));
        assert_eq!((title("shop/staging", 1), title("shop/production", 1).as_deref()), (None, Some("since v2")));
    }
}
