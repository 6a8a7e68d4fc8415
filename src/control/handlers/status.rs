//! The request `status`, which shows the state of the server and of the environments that the caller may see.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::{backup_summary::BackupSummary, disk::limit_of, protect::FreezeStatus};
use crate::{
    control::{
        authz::Needs,
        error::CommandError,
        request::{Context, Reply, Request},
        state::Control,
    },
    host::{
        files,
        launch::{Capabilities, Cgroups},
    },
    model::{Access, CommitId, Environment, Live, Mode, Outcome, Project, ReleaseNumber, StorageKind, UserName},
    pipeline::{LastScan, LastUpgrade, Summary, unrestored},
};

/// The request for the state of the server and of the environments that the caller may see.
#[derive(Debug)]
pub struct Status;

/// The state of the server and of the environments that the caller may see.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// The version of larder.
    pub version: &'static str,
    /// The privileges of the keeper: `system` if the keeper is root, otherwise `rootless`.
    pub mode: String,
    /// Sentences about the isolation of projects on this machine.
    pub protection: Vec<String>,
    /// The fingerprint of the SSH host key.
    pub host_key: String,
    /// Free disk space below the root, in bytes.
    pub disk_free: u64,
    /// The environments, project by project.
    pub environments: Vec<EnvironmentStatus>,
}

/// The state of one environment.
#[derive(Debug, Clone, Serialize)]
pub struct EnvironmentStatus {
    /// The name, as `project/environment`.
    pub environment: String,
    /// The mode in which the environment deploys.
    pub mode: Mode,
    /// The branch that the environment deploys.
    pub branch: String,
    /// The live release.
    pub live: Option<Live>,
    /// The state: `live`, `empty`, `deploying`, `frozen`, or `unavailable` if the project's own file system cannot be used.
    pub state: &'static str,
    /// An explanation of the state, as text.
    pub note: Option<String>,
    /// The release freeze of the environment or of its project.
    pub freeze: Option<FreezeStatus>,
    /// The result of the last comparison of the live files with their release.
    pub drift: Option<LastScan>,
    /// The last deployment that was not a dry run.
    pub last: Option<LastDeployment>,
    /// The disk space of the project at its last daily measurement, in bytes; absent for a caller who may not see all environments of the
    /// project.
    pub disk: Option<u64>,
    /// The scheduled restore points.
    pub backup: BackupSummary,
    /// The last upgrade, if one of the last deployments had an upgrade and data.
    pub upgrade: Option<LastUpgrade>,
}

/// The last deployment of an environment.
#[derive(Debug, Clone, Serialize)]
pub struct LastDeployment {
    /// The number that the release has or would have.
    pub number: ReleaseNumber,
    /// The commit.
    pub commit: CommitId,
    /// The user who started the deployment.
    pub by: UserName,
    /// The outcome: `live`, `refused`, `rolled back`, `stuck`, or `in flight` before the end.
    pub outcome: &'static str,
    /// The moment at which the deployment began.
    pub began: Timestamp,
    /// The moment at which the deployment ended.
    pub ended: Option<Timestamp>,
}

impl LastDeployment {
    fn of(summary: &Summary) -> LastDeployment {
        let outcome = match &summary.outcome {
            None => "in flight",
            Some(Outcome::Live { .. } | Outcome::Tried) => "live",
            Some(Outcome::Refused { .. }) => "refused",
            Some(Outcome::RolledBack { .. }) => "rolled back",
            Some(Outcome::Stuck { .. }) => "stuck",
        };
        LastDeployment {
            number: summary.number,
            commit: summary.commit.clone(),
            by: summary.trigger.by().clone(),
            outcome,
            began: summary.opened,
            ended: summary.ended,
        }
    }
}

impl Request for Status {
    type View = StatusReport;
    const NAME: &'static str = "status";

    fn needs(&self) -> Needs {
        Needs::server(Access::View)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<StatusReport>, CommandError> {
        let services = control.pipeline().services();
        let capabilities = services.launcher.capabilities().await.map_err(|error| CommandError::internal(&error))?;
        let projects = control.visible(caller);
        let space = space_protection(control, &projects);
        let whole: BTreeSet<_> =
            projects.iter().filter(|project| control.sees_all(caller, &project.name)).map(|project| project.id).collect();
        let environments: Vec<_> = projects.into_iter().flat_map(|project| project.environments).collect();
        control.pipeline().refresh_drift(&environments).await;
        // A record that cannot be read is reported by `larder disk`.
        let totals = control.pipeline().disk_history().ok().and_then(|history| history.days().last().cloned());
        let used = |environment: &Environment| {
            let project = &environment.project_id;
            totals.as_ref()?.projects.get(project).copied().filter(|_| whole.contains(project))
        };
        let report = StatusReport {
            version: env!("CARGO_PKG_VERSION"),
            mode: String::from(if capabilities.system { "system" } else { "rootless" }),
            protection: protection(&capabilities, space),
            host_key: control.keys().fingerprint.clone(),
            disk_free: files::free_space(control.root().path()).map_or(0, |free| free.bytes),
            environments: environments
                .iter()
                .map(|environment| environment_status(control, environment, used(environment)))
                .collect(),
        };
        Ok(report.into())
    }
}

fn environment_status(control: &Control, environment: &Environment, disk: Option<u64>) -> EnvironmentStatus {
    let pipeline = control.pipeline();
    let live = pipeline.live(environment.id);
    let history = pipeline.history(environment.id);
    let (running, waiting) = pipeline.under_way(environment.id);
    let storage = control.unusable_storage(environment.project_id);
    let (state, note) = match (history.frozen(), &running, &live) {
        _ if storage.is_some() => ("unavailable", storage),
        (Some((deployment, _)), ..) => {
            let title = environment.title();
            let note =
                format!("deployment {deployment} got stuck; repair the cause, then run `larder deploy {title} --unfreeze`");
            ("frozen", Some(note))
        }
        (None, Some(ticket), _) => {
            let queue = if waiting.is_some() { ", another deployment waits" } else { "" };
            ("deploying", Some(format!("{}{queue}", ticket.request.commit.short())))
        }
        (None, None, Some(live)) => {
            let instances = pipeline.services().runtime.instances(environment.id, Some(live.slot));
            let restarted = instances.iter().map(|instance| (instance.label.name(), instance.exits.borrow().count));
            let restarted = restarted.into_iter().find(|(_, count)| *count > 0);
            let failed = history.last_failed();
            let stopped = pipeline.disk_offence(environment.id);
            let unwatched = pipeline.unwatched(environment.id).map(|why| format!("saved files have no effect: {why}"));
            let note = match (restarted, failed) {
                _ if stopped.is_some() => stopped,
                _ if unwatched.is_some() => unwatched,
                (Some((name, 1)), _) => Some(format!("{name} exited once and was restarted")),
                (Some((name, count)), _) => Some(format!("{name} exited {count} times and was restarted")),
                (None, Some(last)) => {
                    let data = last.outcome.as_ref().and_then(unrestored).map(|hint| format!("; {hint}")).unwrap_or_default();
                    Some(format!("the last deployment, of {}, failed{data}", last.commit.short()))
                }
                (None, None) => None,
            };
            ("live", note)
        }
        (None, None, None) if pipeline.is_recovering(environment.id) => {
            let note = "the server was restarted, and finishes or reverts what it had begun";
            ("recovering", Some(String::from(note)))
        }
        (None, None, None) => ("empty", None),
    };
    EnvironmentStatus {
        environment: environment.title(),
        mode: environment.mode,
        branch: environment.branch.to_string(),
        live,
        state,
        note,
        freeze: control.release_freeze(environment),
        drift: pipeline.last_drift(environment.id),
        last: history.deployments.iter().rev().find(|summary| !summary.dry_run).map(LastDeployment::of),
        disk,
        backup: BackupSummary::of(control, environment),
        upgrade: pipeline.last_upgrade(environment),
    }
}

/// Describes the isolation of projects on this machine.
fn protection(capabilities: &Capabilities, space: String) -> Vec<String> {
    let users = if capabilities.system {
        "every environment has its own users"
    } else {
        "projects are NOT isolated from each other or from your account: everything runs as one user"
    };
    let sandbox = match &capabilities.namespaces {
        Ok(()) => String::from("builds and processes run in namespaces, at /app"),
        Err(why) => {
            format!("no namespaces ({why}): builds and processes run at their real paths, and releases are not relocatable")
        }
    };
    let layers = match &capabilities.overlay {
        Ok(()) => String::from("/app is writable and ephemeral"),
        Err(why) => format!("no overlays ({why}): /app is a copy of the release, which the first process of a slot makes"),
    };
    let limits = match capabilities.cgroup {
        Cgroups::V2 => "cgroups (v2) limit memory and processes",
        Cgroups::V1 => "cgroups (v1) limit memory and processes",
        Cgroups::None => "no cgroups: memory is limited for each process of a build, and is not limited for applications",
    };
    vec![users.to_owned(), sandbox, layers, limits.to_owned(), space]
}

/// Describes the enforcement of the limits of disk space.
fn space_protection(control: &Control, projects: &[Project]) -> String {
    let mut text = String::from("limits of disk space are checked before each deployment (accounting)");
    let named = |is: fn(StorageKind) -> bool| {
        let all = projects.iter().filter_map(|project| Some((project, project.storage.filter(|kind| is(*kind))?)));
        let usable = all.filter(|(project, kind)| {
            let limited = kind.is_file_system() || limit_of(control, project).is_some();
            limited && control.storage_problem(project.id).is_none()
        });
        let all: Vec<_> = usable.map(|(project, kind)| format!("{} ({})", project.name, kind.as_str())).collect();
        (!all.is_empty()).then(|| all.join(", "))
    };
    if let Some(own) = named(StorageKind::is_file_system) {
        text.push_str(&format!("; {own} have a file system of their own"));
    }
    if let Some(quotas) = named(|kind| !kind.is_file_system()) {
        text.push_str(&format!("; the kernel enforces the limits of {quotas}"));
    }
    for project in projects {
        if let (Some(StorageKind::Quota), Some(why)) = (project.storage, control.storage_problem(project.id)) {
            text.push_str(&format!("; {} has no quota: {why}", project.name));
        }
    }
    text
}
