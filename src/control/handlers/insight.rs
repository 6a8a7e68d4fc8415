//! The state of everything, and what is wrong with it.

use super::super::reply::EnvironmentStatus;
use crate::{
    control::{Caller, Check, CommandError, Control, Grade, Reply, StatusReport},
    host::{
        files,
        launch::{Capabilities, Cgroups},
    },
    layout::{Layout, Viewer},
    model::Environment,
};

pub(super) async fn status(control: &Control, caller: &Caller) -> Result<Reply, CommandError> {
    let services = control.pipeline().services();
    let standing = services.launcher.capabilities().await.map_err(|error| CommandError::internal(&error))?;
    let names = control.names(caller);
    let projects = control.0.registry.read().projects.clone();
    let visible = projects.into_iter().filter(|project| names.contains(&project.name));
    let environments: Vec<_> = visible.flat_map(|project| project.environments).collect();
    control.pipeline().freshen_drift(&environments).await;
    let environments = environments.iter().map(|environment| of(control, environment));
    Ok(Reply::Status(Box::new(StatusReport {
        version: env!("CARGO_PKG_VERSION"),
        mode: String::from(if standing.system { "system" } else { "rootless" }),
        protection: protection(&standing),
        host_key: control.0.keys.fingerprint.clone(),
        disk_free: files::free_space(control.0.root.path()).map_or(0, |free| free.bytes),
        environments: environments.collect(),
    })))
}

fn of(control: &Control, environment: &Environment) -> EnvironmentStatus {
    let pipeline = control.pipeline();
    let live = pipeline.live(environment.id);
    let history = pipeline.history(environment.id);
    let (running, waiting) = pipeline.under_way(environment.id);
    let (state, note) = match (history.frozen(), &running, &live) {
        (Some((deployment, _)), ..) => (
            "frozen",
            Some(format!("deployment {deployment} got stuck; `larder deploy {} --unfreeze` after looking", environment.title())),
        ),
        (None, Some(ticket), _) => {
            let queue = if waiting.is_some() { ", another waits" } else { "" };
            ("deploying", Some(format!("{}{queue}", ticket.request.commit.short())))
        }
        (None, None, Some(live)) => {
            let instances = pipeline.services().runtime.instances(environment.id, Some(live.slot));
            let ends = instances.iter().find(|instance| instance.exits.borrow().count > 0);
            let ends = ends.map(|instance| format!("{} ended {} times", instance.label.name(), instance.exits.borrow().count));
            let failed = history.last_failed();
            ("live", ends.or(failed.map(|last| format!("the last deployment, of {}, failed", last.commit.short()))))
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
        drift: pipeline.last_drift(environment.id),
    }
}

/// What protects projects from each other here.
fn protection(standing: &Capabilities) -> Vec<String> {
    let mut lines = Vec::new();
    if standing.system {
        lines.push(String::from("every environment has users of its own"));
    } else {
        lines.push(String::from("projects are NOT isolated from each other or from your account: everything runs as one user"));
    }
    match &standing.namespaces {
        Ok(()) => lines.push(String::from("builds and processes run in namespaces, at /app")),
        Err(why) => lines.push(format!(
            "no namespaces ({why}): builds and processes run at their real paths, and releases are not relocatable"
        )),
    }
    match &standing.overlay {
        Ok(()) => lines.push(String::from("/app is writable and ephemeral")),
        Err(why) => lines.push(format!("/app is a copy of the release, made at the first start in a slot ({why})")),
    }
    lines.push(String::from(match standing.cgroup {
        Cgroups::V2 => "limits by cgroup v2",
        Cgroups::V1 => "limits by cgroup v1",
        Cgroups::None => "no cgroups: a build's memory is limited for each of its processes, an application's is not",
    }));
    lines
}

pub(super) async fn doctor(control: &Control) -> Result<Reply, CommandError> {
    let services = control.pipeline().services();
    let standing = services.launcher.capabilities().await.map_err(|error| CommandError::internal(&error))?;
    let mut checks = vec![disk(control)];
    let good = |what: &str, finding: &str| Check { what: what.to_owned(), grade: Grade::Good, finding: finding.to_owned() };
    let warn = |what: &str, finding: String| Check { what: what.to_owned(), grade: Grade::Warning, finding };
    checks.push(if standing.system {
        good("users", "every environment has users of its own")
    } else {
        warn("users", String::from("rootless: projects are not isolated from each other; run larder as root to have that"))
    });
    checks.push(match standing.namespaces {
        Ok(()) => good("sandbox", "namespaces work"),
        Err(why) => warn("sandbox", format!("{why}; allow user namespaces, or run larder as root")),
    });
    checks.push(match standing.cgroup {
        Cgroups::V2 | Cgroups::V1 => good("limits", "cgroups work"),
        Cgroups::None => warn("limits", String::from("no cgroup can be made: a build can use all memory of this machine")),
    });
    checks.extend(["git", "bash", "tar", "zstd", "node", "npm", "python3", "php", "ruby", "go", "cargo", "java"].map(program));
    checks.extend(layout(control, standing.system));
    for environment in control.0.registry.read().projects.iter().flat_map(|project| &project.environments) {
        if let Some((deployment, why)) = control.pipeline().history(environment.id).frozen() {
            let finding = format!("frozen by deployment {deployment}: {why}");
            checks.push(Check { what: environment.title(), grade: Grade::Bad, finding });
        }
    }
    Ok(Reply::Checks(checks))
}

/// Whether the directories of all environments are as their layout says.
fn layout(control: &Control, system: bool) -> Vec<Check> {
    let check = |grade, finding| Check { what: String::from("layout"), grade, finding };
    let layout = match Layout::standard() {
        Ok(layout) => layout,
        Err(error) => return vec![check(Grade::Bad, error.to_string())],
    };
    let viewer = Viewer { uid: rustix::process::geteuid().as_raw(), system };
    let projects = control.0.registry.read().projects.clone();
    let environments = projects.iter().flat_map(|project| &project.environments);
    let findings = environments.flat_map(|environment| {
        let paths = control.0.root.environment(&environment.project, &environment.name);
        layout.findings(paths.path(), viewer)
    });
    let bad: Vec<Check> = findings.map(|finding| check(Grade::Bad, finding)).collect();
    if bad.is_empty() { vec![check(Grade::Good, format!("everything lies as {} says", layout.layout))] } else { bad }
}

fn disk(control: &Control) -> Check {
    let reserve = control.pipeline().services().config.limits.disk_reserve.bytes();
    let (grade, finding) = match files::free_space(control.0.root.path()) {
        Ok(free) if free.bytes < reserve => {
            (Grade::Bad, format!("{} MiB free; deployments are refused below {}", free.bytes >> 20, reserve >> 20))
        }
        Ok(free) if free.bytes < reserve.saturating_mul(4) => (Grade::Warning, format!("{} MiB free", free.bytes >> 20)),
        Ok(free) => (Grade::Good, format!("{} MiB free", free.bytes >> 20)),
        Err(error) => (Grade::Bad, error.to_string()),
    };
    Check { what: String::from("disk"), grade, finding }
}

/// Whether a program is where builds look for it. Only git cannot be missed.
fn program(name: &str) -> Check {
    let found = ["/usr/local/bin", "/usr/bin", "/bin"]
        .iter()
        .map(|path| format!("{path}/{name}"))
        .find(|path| std::path::Path::new(path).exists());
    let grade = match (&found, name) {
        (Some(_), _) => Grade::Good,
        (None, "git" | "bash") => Grade::Bad,
        (None, _) => Grade::Warning,
    };
    let finding = found.unwrap_or_else(|| String::from("not installed; projects that need it cannot be built"));
    Check { what: name.to_owned(), grade, finding }
}
