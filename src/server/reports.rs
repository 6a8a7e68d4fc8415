//! Scheduled reports: each week the state of the server to its administrators, and each month a summary of each project to its recipients.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::observers::recipients;
use crate::{
    config::Schedule,
    control::Control,
    host::files,
    model::{Environment, NotificationKind, Outcome, ProjectName, Trigger},
    notify::{Advice, DetailList, Notification},
    pipeline::{Pipeline, Summary, chain},
};

/// The times of the reports: Monday, and the first day of the month, at eight.
const WEEKLY: &str = "0 8 * * 1";
const MONTHLY: &str = "0 8 1 * *";
/// The time between two looks at the clock.
const INTERVAL: Duration = Duration::from_secs(60);
/// The time after the scheduled time within which a report is sent. A server that was off for longer skips the report.
const LATE: SignedDuration = SignedDuration::from_hours(24);
/// The time before the end of a login key or a certificate authority within which the weekly report names the end. Two reports name each end.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// A period that a report covers.
struct Period {
    begin: Timestamp,
    end: Timestamp,
}

/// Sends the reports until the server exits. A repeated report has the same id, so each report is sent once.
pub(super) async fn run(control: Control) {
    loop {
        for kind in [NotificationKind::Weekly, NotificationKind::Summary] {
            if let Some(period) = due(&control, kind, Timestamp::now()) {
                send(&control, kind, &period).await;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Returns the period of the report that is due; `None` if no report is due.
fn due(control: &Control, kind: NotificationKind, now: Timestamp) -> Option<Period> {
    fail::fail_point!("reports", |_| Some(Period { begin: Timestamp::UNIX_EPOCH, end: now }));
    let pattern = if kind == NotificationKind::Weekly { WEEKLY } else { MONTHLY };
    let schedule =
        Schedule::parse(pattern).inspect_err(|why| tracing::error!(why, "cannot parse the schedule of reports")).ok()?;
    let zone = &control.pipeline().services().config.backup.time_zone;
    let end = schedule.last_until(now, zone)?;
    let begin = schedule.last_until(end.saturating_sub(SignedDuration::from_secs(1)).ok()?, zone)?;
    (now.duration_since(end) <= LATE && existed(control, end)).then_some(Period { begin, end })
}

/// Returns true if this server existed at `moment`. A new server has nothing to report. The first start of a server creates the host key.
fn existed(control: &Control, moment: Timestamp) -> bool {
    let created = std::fs::metadata(control.pipeline().services().root.host_key()).and_then(|found| found.modified());
    created.ok().and_then(|created| Timestamp::try_from(created).ok()).is_none_or(|created| created < moment)
}

async fn send(control: &Control, kind: NotificationKind, period: &Period) {
    let pipeline = control.pipeline();
    let notifier = &pipeline.services().notifier;
    let environments = control.environments();
    let day = period.end.strftime("%Y-%m-%d").to_string();
    if kind == NotificationKind::Weekly {
        let expiring = control.expiring(period.end, period.end.saturating_add(EXPIRES_SOON).unwrap_or(period.end));
        let notification = weekly(pipeline, &environments, expiring, period, format!("weekly.{day}"));
        let recipients = recipients(notifier, kind, None);
        if let Err(error) = notifier.notify(notification, recipients).await {
            tracing::warn!(error = chain(&error), "cannot queue the weekly report");
        }
        return;
    }
    let mut projects: Vec<&ProjectName> = environments.iter().map(|environment| &environment.project).collect();
    projects.dedup();
    for project in projects {
        let own: Vec<_> = environments.iter().filter(|environment| environment.project == *project).collect();
        let settings = own.iter().find_map(|environment| pipeline.live_settings(environment));
        let notification = monthly(pipeline, project, &own, period, format!("summary.{day}"));
        if let Err(error) = notifier.notify(notification, recipients(notifier, kind, settings.as_ref())).await {
            tracing::warn!(error = chain(&error), %project, "cannot queue the monthly summary");
        }
    }
}

/// Returns the report about the server. Environments that need attention come first.
fn weekly(pipeline: &Pipeline, environments: &[Environment], expiring: Vec<String>, period: &Period, id: String) -> Notification {
    let services = pipeline.services();
    let (mut attention, mut normal) = (Vec::new(), Vec::new());
    for environment in environments {
        let lines = problems(pipeline, environment);
        let title = environment.title();
        match lines.as_slice() {
            [] => {
                let live =
                    pipeline.live(environment.id).map_or_else(|| String::from("nothing is live"), |live| live.number.to_string());
                normal.push(format!("{title}: {live}, {}", counts(pipeline, environment, period)));
            }
            lines => attention.extend(lines.iter().map(|line| format!("{title}: {line}"))),
        }
    }
    attention.extend(expiring);
    let free = files::free_space(services.root.path()).map(|free| free.bytes).unwrap_or_default();
    if free < services.config.limits.disk_reserve.bytes() {
        attention.insert(0, format!("the disk is nearly full: {} MiB are free", free >> 20));
    }
    let (subject, headline) = match attention.len() {
        0 => (String::from("weekly report: nothing needs attention"), String::from("Nothing on this server needs attention.")),
        1 => (String::from("weekly report: 1 point needs attention"), String::from("One point needs attention.")),
        count => (format!("weekly report: {count} points need attention"), format!("{count} points need attention.")),
    };
    let mut notification = Notification::new(id, NotificationKind::Weekly, period.end, subject, headline);
    for (title, lines) in [("Needs attention", attention), ("Normal", normal)] {
        if !lines.is_empty() {
            notification.sections.push(DetailList { title: title.to_owned(), lines });
        }
    }
    notification.facts = vec![
        (String::from("Free disk space"), format!("{} MiB", free >> 20)),
        (String::from("larder"), env!("CARGO_PKG_VERSION").to_owned()),
        (String::from("Sent by"), String::from("larder, each Monday")),
    ];
    let text = String::from("To see what is live in each environment, run");
    notification.advice.push(Advice { text, command: Some(String::from("larder status")) });
    notification
}

/// Returns the points of an environment that need attention.
fn problems(pipeline: &Pipeline, environment: &Environment) -> Vec<String> {
    let history = pipeline.history(environment.id);
    let mut lines = Vec::new();
    if let Some((_, why)) = history.frozen() {
        lines.push(format!("frozen: {why}"));
    }
    lines.extend(pipeline.disk_offence(environment.id));
    if let Some(last) = history.last_failed() {
        lines.push(format!("the last deployment, of {}, failed", last.commit.short()));
    }
    match pipeline.backup_overview(environment).record {
        Err(why) => lines.push(format!("no scheduled restore points: {}", why.lines().next().unwrap_or_default())),
        Ok(record) => {
            let is_old = |at: Timestamp| record.verified.as_ref().is_none_or(|point| point.verified < at);
            lines.extend(
                record.failure.filter(|failure| is_old(failure.at)).map(|failure| format!("restore point: {}", failure.why)),
            );
            if !record.damaged.is_empty() {
                lines.push(format!("damaged restore points: {}", record.damaged.len()));
            }
            lines.extend(record.drill.and_then(|drill| drill.failure).map(|why| format!("drill: {why}")));
        }
    }
    lines
}

/// Returns the summary of a project.
fn monthly(
    pipeline: &Pipeline,
    project: &ProjectName,
    environments: &[&Environment],
    period: &Period,
    id: String,
) -> Notification {
    let month = period.begin.strftime("%B %Y").to_string();
    let subject = format!("{project}: summary of {month}");
    let headline = format!("The summary of {project} for {month}.");
    let mut notification = Notification::new(id, NotificationKind::Summary, period.end, subject, headline);
    notification.project = Some(project.clone());
    for environment in environments {
        let mut lines = vec![counts(pipeline, environment, period)];
        lines.extend(pipeline.live(environment.id).map(|live| format!("live: {} (commit {})", live.number, live.commit.short())));
        if let Ok(record) = pipeline.backup_overview(environment).record {
            let newest = record
                .verified
                .map(|point| format!("newest verified restore point: {}", point.taken.strftime("%Y-%m-%d %H:%M UTC")));
            lines.push(newest.unwrap_or_else(|| String::from("no restore point was verified")));
        }
        lines.extend(problems(pipeline, environment).into_iter().map(|line| format!("needs attention: {line}")));
        notification.sections.push(DetailList { title: environment.title(), lines });
    }
    notification.facts.push((String::from("Sent by"), String::from("larder, on the first day of each month")));
    let text = String::from("To see all releases, and to go back to one of them, run");
    notification.advice.push(Advice { text, command: Some(format!("larder releases {project}")) });
    notification
}

/// Returns the numbers of deployments, failures and rollbacks within a period.
fn counts(pipeline: &Pipeline, environment: &Environment, period: &Period) -> String {
    let history = pipeline.history(environment.id);
    let inside = |summary: &&Summary| !summary.dry_run && summary.opened >= period.begin && summary.opened < period.end;
    let all: Vec<_> = history.deployments.iter().filter(inside).collect();
    let failed = all.iter().filter(|summary| !matches!(summary.outcome, Some(Outcome::Live { .. }) | None)).count();
    let back = all.iter().filter(|summary| matches!(summary.trigger, Trigger::Rollback { .. })).count();
    let count = |number: usize, noun: &str| format!("{number} {noun}{}", if number == 1 { "" } else { "s" });
    format!("{}, {} failed, {}", count(all.len(), "deployment"), failed, count(back, "rollback"))
}
