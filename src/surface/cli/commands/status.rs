//! The command `larder status`, which shows the state of the server and its environments.

use std::time::Duration;

use super::{
    super::{
        command::{Command, Shown},
        text,
    },
    backup_upkeep, drift,
};
use crate::{
    control::{self, CommandError, EnvironmentStatus, StatusReport},
    pipeline::{LastUpgrade, UpgradeCase, seconds},
};

/// Describes the last upgrade of an environment.
fn last_upgrade(environment: &str, upgrade: &LastUpgrade) -> String {
    let case = match upgrade.case {
        UpgradeCase::Online => "without a hold",
        UpgradeCase::InPlace => "in place",
        _ => "with a hold",
    };
    let time = |ms: u64| seconds(Duration::from_millis(ms));
    let mut text = format!("\n{environment}: the upgrade of {} ran {case}: {}\n", upgrade.number, upgrade.reason);
    match (upgrade.held_ms, upgrade.estimate_ms) {
        (Some(held), Some(estimate)) => {
            text.push_str(&format!("  requests waited for {} (estimate: {})\n", time(held), time(estimate)))
        }
        (None, Some(estimate)) => text.push_str(&format!("  estimate of a hold: {}\n", time(estimate))),
        _ => {}
    }
    for method in &upgrade.methods {
        let took = method.took_ms.map(|took| format!("; took {}", time(took))).unwrap_or_default();
        text.push_str(&format!("  restore point of {method}{took}\n"));
    }
    text
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "On a machine without a server, in a repository, the command shows the environments of the project on all servers that the repository names. A server that does not answer is a line of the table, and makes the exit status 1."
)]
/// Show how projects are isolated here, and the state of all environments
pub struct StatusArgs {
    /// Time limit for each of several servers, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub timeout: u16,
}

impl Command for StatusArgs {
    type Request = control::Status;

    fn request(self) -> Result<control::Status, CommandError> {
        Ok(control::Status)
    }

    fn show(report: &StatusReport) -> Shown {
        let mut text = format!("larder {} ({})\n", report.version, report.mode);
        for line in &report.protection {
            text.push_str(&format!("  {line}\n"));
        }
        text.push_str(&format!("  host key {}\n  {} MiB of disk free\n\n", report.host_key, report.disk_free >> 20));
        let row = |one: &EnvironmentStatus| {
            let drift = Some(drift::brief(one.drift.as_ref())).filter(|drift| !drift.is_empty());
            let failures = backup_upkeep::failures(&one.backup);
            let freeze = one.freeze.as_ref().map(|freeze| {
                let until = freeze.until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
                format!("release freeze{until}: {} ({})", freeze.why, freeze.by)
            });
            let notes: Vec<&str> = one.note.iter().chain(&freeze).chain(&drift).chain(&failures).map(String::as_str).collect();
            let state = if notes.is_empty() { one.state.to_owned() } else { format!("{}: {}", one.state, notes.join("; ")) };
            vec![
                one.environment.clone(),
                one.mode.to_string(),
                one.branch.clone(),
                text::live(one.live.as_ref()),
                backup_upkeep::brief(&one.backup),
                state,
            ]
        };
        let header = ["ENVIRONMENT", "MODE", "BRANCH", "LIVE", "RESTORE POINT", "STATE"];
        text.push_str(&text::table(&header, report.environments.iter().map(row).collect()));
        for one in &report.environments {
            if let Some(upgrade) = &one.upgrade {
                text.push_str(&last_upgrade(&one.environment, upgrade));
            }
        }
        Shown::Page(text)
    }
}
