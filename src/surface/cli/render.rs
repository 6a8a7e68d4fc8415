//! Answers as text for people and as JSON for scripts.

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::{Value, json};

use super::{render_drift, render_releases};

use crate::{
    control::{Check, Grade, ProcessRow, ProjectRow, Reply, ServerKeys, StatusReport, TrustRow, User},
    model::{CommitId, Environment, Live, Project, Remote},
    pipeline::Summary,
    remote::Offer,
};

/// The text of an answer that needs no streaming.
pub fn text(reply: &Reply) -> String {
    match reply {
        Reply::Done(what) => format!("{what}\n"),
        Reply::Whoami { name, access } => {
            let rights: Vec<_> = access.iter().map(|(project, access)| vec![project.to_string(), access.to_string()]).collect();
            format!("{name}\n{}", table(&["PROJECT", "RIGHT"], rights))
        }
        Reply::Users(users) => table(&["USER", "RIGHTS", "KEYS"], users.iter().map(user).collect()),
        Reply::Keys(keys) => server_keys(keys),
        Reply::Trusted(rows) => {
            let line = |row: &TrustRow| vec![row.on.clone(), row.name.clone(), row.key.to_string()];
            table(&["ACCEPTS FOR", "NAME", "KEY"], rows.iter().map(line).collect())
        }
        Reply::Created { project, ssh_port, url, unset } => created(project, *ssh_port, url, unset.as_ref()),
        Reply::Projects(rows) => projects(rows),
        Reply::Plan(plan) => plan.clone(),
        Reply::Releases(rows) => render_releases::list(rows),
        Reply::Release(detail) => render_releases::detail(detail),
        Reply::ReleaseDiff(diff) => render_releases::diff(diff),
        Reply::Drift(report) => render_drift::report(report),
        Reply::Patches(rows) => render_drift::patches(rows),
        Reply::Patch(detail) => render_drift::patch(detail),
        Reply::Processes(rows) => processes(rows),
        Reply::Logs { lines, .. } => lines.iter().map(|line| format!("{line}\n")).collect(),
        Reply::Past { transcript, .. } => transcript.clone(),
        Reply::Status(report) => status(report),
        Reply::Checks(checks) => checks.iter().map(check).collect(),
        Reply::Offers(rows) => offers(rows),
        Reply::Blob(blob) => format!("{} bytes, {}\n", blob.bytes, blob.digest),
        Reply::Remotes(rows) => remotes(rows),
        Reply::Ticket(_) | Reply::Cancelling(_) | Reply::Run(_) | Reply::Bytes(_) | Reply::Take(_) | Reply::Relay(_) => {
            String::new()
        }
    }
}

/// The JSON of an answer; one value, for `--json`.
pub fn value(reply: &Reply) -> Value {
    match reply {
        Reply::Done(what) => json!({ "done": what }),
        Reply::Whoami { name, access } => {
            let access: serde_json::Map<_, _> =
                access.iter().map(|(project, access)| (project.to_string(), json!(access))).collect();
            json!({ "name": name, "access": access })
        }
        Reply::Users(users) => json!(users),
        Reply::Created { project, ssh_port, url, unset } => {
            json!({ "project": project, "ssh_port": ssh_port, "url": url, "unset": unset })
        }
        Reply::Keys(keys) => json!(keys),
        Reply::Trusted(rows) => json!(rows),
        Reply::Projects(rows) => json!(rows),
        Reply::Plan(plan) => json!({ "plan": plan.lines().collect::<Vec<_>>() }),
        Reply::Releases(rows) => json!(rows),
        Reply::Release(detail) => json!(detail),
        Reply::ReleaseDiff(diff) => json!(diff),
        Reply::Drift(report) => json!(report),
        Reply::Patches(rows) => json!(rows),
        Reply::Patch(detail) => json!(detail),
        Reply::Processes(rows) => json!(rows),
        Reply::Logs { lines, .. } => json!(lines),
        Reply::Past { summary, transcript } => json!({ "deployment": summary.as_ref(), "transcript": transcript }),
        Reply::Status(report) => json!(report),
        Reply::Checks(checks) => json!(checks),
        Reply::Offers(rows) => json!(rows),
        Reply::Blob(blob) => json!(blob),
        Reply::Remotes(rows) => json!(rows),
        Reply::Ticket(_) | Reply::Cancelling(_) | Reply::Run(_) | Reply::Bytes(_) | Reply::Take(_) | Reply::Relay(_) => {
            Value::Null
        }
    }
}

pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::from("none\n");
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    let lines = table.to_string();
    lines.lines().map(|line| format!("{}\n", line.trim())).collect()
}

fn user(user: &User) -> Vec<String> {
    let rights = if user.admin {
        String::from("admin")
    } else {
        user.access.iter().map(|(project, access)| format!("{project}:{access}")).collect::<Vec<_>>().join(" ")
    };
    let keys: Vec<_> = user.keys.iter().map(|key| key.fingerprint.clone()).collect();
    vec![user.name.to_string(), rights, keys.join(" ")]
}

fn server_keys(keys: &ServerKeys) -> String {
    let mut text = format!("host key     {}\n             {}\nsigning key  {}\n", keys.host, keys.fingerprint, keys.signing);
    if let Some(pull) = &keys.pull {
        text.push_str(&format!("pull key     {pull}\n"));
    }
    text
}

fn created(project: &Project, port: u16, url: &str, unset: Option<&CommitId>) -> String {
    let Some(environment) = project.environments.last() else { return String::new() };
    let Environment { branch, mode, .. } = environment;
    let again = unset.map_or_else(String::new, |commit| {
        format!(
            "\n{branch} was stored here at {} and was never deployed. Push it again: it is deployed from now on.\n",
            commit.short()
        )
    });
    format!(
        "{} is ready ({mode}, deploys {branch}).\n\n  git remote add prod ssh://larder@HOST:{port}/{}\n  git push prod {branch}\n{again}\nIt will answer at {url}\n",
        environment.title(),
        project.name
    )
}

fn live(live: &Option<Live>) -> String {
    live.as_ref().map_or_else(|| String::from("-"), |live| format!("{} ({})", live.number, live.commit.short()))
}

fn projects(rows: &[ProjectRow]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        let places = row.project.environments.iter().zip(&row.live).zip(&row.urls).zip(&row.drift);
        for (((environment, serves), urls), drift) in places {
            lines.push(vec![
                environment.title(),
                environment.mode.to_string(),
                environment.branch.to_string(),
                live(serves),
                urls.join(" "),
                render_drift::brief(drift.as_ref()),
            ]);
        }
    }
    table(&["ENVIRONMENT", "MODE", "BRANCH", "LIVE", "ADDRESS", ""], lines)
}

fn offers(rows: &[Offer]) -> String {
    let line = |row: &Offer| {
        vec![
            row.environment.to_string(),
            format!("{}{}", row.number.map(|number| number.to_string()).unwrap_or_default(), if row.live { " *" } else { "" }),
            row.commit.short().to_owned(),
            row.tag.clone().unwrap_or_default(),
            row.created.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            format!("{} KiB", row.archive_bytes.div_ceil(1024)),
            row.release.to_string(),
        ]
    };
    let header = ["ENVIRONMENT", "RELEASE", "COMMIT", "TAG", "MADE (UTC)", "ARCHIVE", "ID"];
    table(&header, rows.iter().map(line).collect())
}

fn remotes(rows: &[Remote]) -> String {
    let line = |row: &Remote| {
        let trust: Vec<_> = row.trust.iter().map(ToString::to_string).collect();
        let host = row.host_key.as_deref().map(crate::remote::ssh::fingerprint).unwrap_or_default();
        vec![row.name.to_string(), row.url.clone(), trust.join(" "), host, String::from(if row.publish { "yes" } else { "" })]
    };
    table(&["REMOTE", "ADDRESS", "TRUSTS", "HOST KEY", "PUBLISHES"], rows.iter().map(line).collect())
}

fn processes(rows: &[ProcessRow]) -> String {
    let line = |row: &ProcessRow| {
        vec![
            row.process.clone(),
            row.number.map_or_else(|| String::from("?"), |number| number.to_string()),
            format!("{}{}", row.slot, if row.active { " *" } else { "" }),
            row.port.map(|port| port.to_string()).unwrap_or_default(),
            row.restarts.to_string(),
            row.last_exit.clone().unwrap_or_default(),
        ]
    };
    table(&["PROCESS", "RELEASE", "SLOT", "PORT", "RESTARTS", "LAST END"], rows.iter().map(line).collect())
}

fn status(report: &StatusReport) -> String {
    let mut text = format!("larder {} ({})\n", report.version, report.mode);
    for line in &report.protection {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&format!("  host key {}\n  {} MiB of disk free\n\n", report.host_key, report.disk_free >> 20));
    let rows = report.environments.iter().map(|one| {
        let drift = Some(render_drift::brief(one.drift.as_ref())).filter(|drift| !drift.is_empty());
        let notes: Vec<&str> = one.note.iter().chain(&drift).map(String::as_str).collect();
        let state = if notes.is_empty() { one.state.to_owned() } else { format!("{}: {}", one.state, notes.join("; ")) };
        vec![one.environment.clone(), one.mode.to_string(), one.branch.clone(), live(&one.live), state]
    });
    text.push_str(&table(&["ENVIRONMENT", "MODE", "BRANCH", "LIVE", "STATE"], rows.collect()));
    text
}

fn check(check: &Check) -> String {
    let mark = match check.grade {
        Grade::Good => "ok  ",
        Grade::Warning => "warn",
        Grade::Bad => "BAD ",
    };
    format!("{mark}  {}: {}\n", check.what, check.finding)
}

/// The last line of `deploy --follow` on a deployment that has ended.
pub fn past(summary: &Summary) -> String {
    match summary.ended {
        Some(ended) => format!("(this deployment ended at {} UTC)\n", ended.strftime("%Y-%m-%d %H:%M:%S")),
        None => String::new(),
    }
}
