//! The texts of notifications about events that are no deployments: restore points, drills, sites, the disk, new environments. Each function
//! also returns the settings that name the recipients.

use std::time::Duration;

use super::deployment_mail::{place, serves};
use crate::{
    config::Settings,
    model::{Environment, NotificationKind, UserName},
    notify::{Advice, DetailList, Notification},
    pipeline::{
        Pipeline,
        observe::{Announcement, BackupNews, DiskNews, SiteNews},
        seconds,
    },
};

type Event = (Notification, Option<Settings>);

fn new(announcement: &Announcement, kind: NotificationKind, subject: &str, headline: String) -> Notification {
    Notification::new(announcement.id.clone(), kind, announcement.at, subject.to_owned(), headline)
}

fn advice(text: &str, command: String) -> Advice {
    Advice { text: text.to_owned(), command: Some(command) }
}

/// Returns the notification of a result of the scheduled work on restore points.
pub(super) fn backup(pipeline: &Pipeline, environment: &Environment, announcement: &Announcement, news: &BackupNews) -> Event {
    let (title, target) = (environment.title(), environment.target());
    let new = |kind, subject: &str, headline| new(announcement, kind, subject, headline);
    let reason = |why: &String| DetailList { title: String::from("Reason"), lines: vec![why.clone()] };
    let mut notification = match news {
        BackupNews::Verified { point } => new(
            NotificationKind::BackupSucceeded,
            "restore points work again",
            format!("The restore point {point} of {title} was taken and read back."),
        ),
        BackupNews::Damaged { point, why } => {
            let headline = format!("The restore point {point} of {title} is damaged and cannot be trusted.");
            let mut notification = new(NotificationKind::BackupFailed, "a restore point is damaged", headline);
            notification.sections.push(reason(why));
            notification.advice.push(advice("To take a new restore point now, run", format!("larder backup take {target}")));
            notification
        }
        BackupNews::Failed { why } => {
            let headline = format!("A scheduled restore point of {title} failed. The newest data of {title} is not backed up.");
            let mut notification = new(NotificationKind::BackupFailed, "a restore point failed", headline);
            notification.sections.push(reason(why));
            notification.advice.push(advice("To try again now, run", format!("larder backup take {target}")));
            notification
        }
        BackupNews::Drilled { point, millis } => {
            let took = seconds(Duration::from_millis(*millis));
            let headline = format!("A drill restored the restore point {point} of {title} in {took}.");
            new(NotificationKind::DrillSucceeded, "drills work again", headline)
        }
        BackupNews::DrillFailed { point, why } => {
            let headline = format!("A drill could not restore the restore point {point} of {title}.");
            let mut notification = new(NotificationKind::DrillFailed, "a drill failed", headline);
            notification.sections.push(reason(why));
            notification.advice.push(advice("To repeat the drill now, run", format!("larder backup drill {target} {point}")));
            notification
        }
    };
    place(pipeline, environment, &mut notification);
    notification.serves = Some(format!("The application is not affected: {}", serves(pipeline, environment)));
    notification.facts.push((String::from("Started by"), String::from("the schedule of this server")));
    if !notification.kind.is_problem() {
        let text = String::from("To go back to the data of a restore point, choose one with");
        notification.advice.push(Advice { text, command: Some(format!("larder backup list {target}")) });
    }
    if let Ok(record) = pipeline.backup_overview(environment).record {
        let newest = record.verified.map_or_else(|| String::from("none"), |point| point.id);
        notification.facts.push((String::from("Newest verified restore point"), newest));
    }
    (notification, pipeline.live_settings(environment))
}

/// Returns the notification of a change of a running application.
pub(super) fn site(pipeline: &Pipeline, environment: &Environment, announcement: &Announcement, news: &SiteNews) -> Event {
    let (title, target) = (environment.title(), environment.target());
    let mut notification = match news {
        SiteNews::Down { why } => {
            let headline = format!("{title} is down: visitors may get errors.");
            let mut notification = new(announcement, NotificationKind::SiteDown, "down", headline);
            notification.sections.push(DetailList { title: String::from("Reason"), lines: vec![why.clone()] });
            notification.advice.push(advice("To see the output of the processes, run", format!("larder logs {target}")));
            notification.advice.push(advice("To go back to the release before, run", format!("larder rollback {target}")));
            notification
        }
        SiteNews::Up => {
            let headline = format!("{title} is up again: its web processes run without an unexpected exit.");
            let mut notification = new(announcement, NotificationKind::SiteUp, "up again", headline);
            let reason = String::from("The processes ran for some time without a failure. Nothing has to be done.");
            notification.sections.push(DetailList { title: String::from("Reason"), lines: vec![reason] });
            notification.advice.push(advice("To see the output of the processes, run", format!("larder logs {target}")));
            notification.advice.push(advice("To go back to the release before, run", format!("larder rollback {target}")));
            notification
        }
    };
    place(pipeline, environment, &mut notification);
    notification.serves =
        pipeline.live(environment.id).map(|live| format!("{} (commit {}) is live.", live.number, live.commit.short()));
    let history = pipeline.history(environment.id);
    let live = pipeline.live(environment.id).and_then(|live| history.of_release(live.release).cloned());
    notification.facts.extend(live.map(|live| (String::from("Deployed by"), live.trigger.by().to_string())));
    (notification, pipeline.live_settings(environment))
}

/// Returns the notification of a change of the free space of the server's disk.
pub(super) fn disk(announcement: &Announcement, news: DiskNews) -> Notification {
    let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
    match news {
        DiskNews::Low { free, reserve } => {
            let headline = format!(
                "The disk of this server is nearly full: {} are free, and {} must stay free. Pushes and deployments are refused.",
                mebibytes(free),
                mebibytes(reserve)
            );
            let mut notification = new(announcement, NotificationKind::DiskLow, "the disk is nearly full", headline);
            notification.serves = Some(String::from("The applications go on as long as they need no space."));
            notification.facts.push((String::from("Reported by"), String::from("larder, which watches the disk")));
            notification.advice.push(advice("To see what uses the space, run", String::from("larder disk")));
            let after = "Pushes and deployments are possible again as soon as enough space is free";
            notification.advice.push(Advice { text: after.to_owned(), command: None });
            notification
        }
        DiskNews::Normal { free } => {
            let headline = format!("The disk of this server has space again: {} are free.", mebibytes(free));
            let mut notification = new(announcement, NotificationKind::DiskNormal, "the disk has space again", headline);
            let now = "The applications went on, and pushes and deployments are possible again.";
            notification.serves = Some(now.to_owned());
            notification.facts.push((String::from("Reported by"), String::from("larder, which watches the disk")));
            notification.advice.push(advice("To see what uses the space, run", String::from("larder disk")));
            notification
        }
    }
}

/// Returns the notification of a new environment.
pub(super) fn created(pipeline: &Pipeline, environment: &Environment, announcement: &Announcement, by: &UserName) -> Event {
    let services = pipeline.services();
    let title = environment.title();
    let headline = format!("{by} created {title}. It deploys the branch {}.", environment.branch);
    let mut notification = new(announcement, NotificationKind::EnvironmentCreated, "created", headline);
    place(pipeline, environment, &mut notification);
    notification.serves = Some(String::from("Nothing is deployed yet: visitors get a page of larder."));
    let created = (String::from("Created by"), by.to_string());
    let host = services.config.domain.as_str();
    let push = format!("ssh://larder@{host}:{}/{}", services.ssh.port(), environment.project);
    let addresses = environment.hosts(host).iter().map(|host| services.config.http.url(host, services.http.port())).collect();
    let reason = vec![
        format!("{by} created the environment with `larder project create` or `larder init`."),
        String::from(
            "Administrators get this mail for each new environment, because the environment has public addresses and uses space of the server.",
        ),
    ];
    notification.sections.push(DetailList { title: String::from("Reason"), lines: reason });
    notification.sections.push(DetailList { title: String::from("Addresses"), lines: addresses });
    notification.facts = vec![
        created,
        (String::from("Push URL"), push.clone()),
        (String::from("Branch"), environment.branch.to_string()),
        (String::from("Mode"), environment.mode.to_string()),
    ];
    let name = &environment.name;
    notification.advice = vec![
        advice("To let a developer push, run", format!("larder user grant NAME {} push", environment.project)),
        advice("To add the remote in the repository, run", format!("git remote add {name} {push}")),
        advice("To deploy, run", format!("git push {name} {}", environment.branch)),
        Advice {
            text: String::from(
                "To undo the creation, an administrator of the server destroys the whole project with `larder project destroy`",
            ),
            command: None,
        },
    ];
    (notification, None)
}
