//! The request `doctor`, which checks this machine's set-up.

use serde::Serialize;

use crate::{
    control::{
        authz::Needs,
        error::CommandError,
        request::{Context, Reply, Request},
        state::Control,
    },
    host::{files, launch::Cgroups},
    layout::{Layout, Viewer},
    model::Access,
};

/// The request to check this machine's set-up.
#[derive(Debug)]
pub struct Doctor;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// The check found no problem.
    Good,
    /// larder works with a restriction.
    Warning,
    /// larder, an environment or a remote cannot work.
    Bad,
}

/// The result of one check.
#[derive(Debug, Clone, Serialize)]
pub struct DoctorCheck {
    /// The subject of the check.
    pub what: String,
    /// The severity.
    pub grade: Grade,
    /// The finding and the remedy, as text.
    pub finding: String,
}

impl DoctorCheck {
    pub(super) fn new(grade: Grade, what: &str, finding: impl Into<String>) -> DoctorCheck {
        DoctorCheck { what: what.to_owned(), grade, finding: finding.into() }
    }
}

impl Request for Doctor {
    type View = Vec<DoctorCheck>;
    const NAME: &'static str = "doctor";

    fn needs(&self) -> Needs {
        Needs::server(Access::Admin)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<DoctorCheck>>, CommandError> {
        let services = control.pipeline().services();
        let capabilities = services.launcher.capabilities().await.map_err(|error| CommandError::internal(&error))?;
        let mut checks = vec![disk(control)];
        checks.push(if capabilities.system {
            DoctorCheck::new(Grade::Good, "users", "every environment has its own users")
        } else {
            let finding = "rootless: projects are not isolated from each other; run larder as root to isolate them";
            DoctorCheck::new(Grade::Warning, "users", finding)
        });
        checks.push(match capabilities.namespaces {
            Ok(()) => DoctorCheck::new(Grade::Good, "sandbox", "namespaces work"),
            Err(why) => {
                DoctorCheck::new(Grade::Warning, "sandbox", format!("{why}; allow user namespaces, or run larder as root"))
            }
        });
        checks.push(match capabilities.cgroup {
            Cgroups::V2 | Cgroups::V1 => DoctorCheck::new(Grade::Good, "limits", "cgroups work"),
            Cgroups::None => {
                DoctorCheck::new(Grade::Warning, "limits", "cannot create cgroups: a build can use all memory of this machine")
            }
        });
        checks.extend(PROGRAMS.map(program));
        checks.extend(layout(control, capabilities.system));
        for environment in control.registry().projects.iter().flat_map(|project| &project.environments) {
            if let Some((deployment, why)) = control.pipeline().history(environment.id).frozen() {
                let finding = format!("frozen by deployment {deployment}: {why}");
                checks.push(DoctorCheck::new(Grade::Bad, &environment.title(), finding));
            }
        }
        Ok(checks.into())
    }
}

/// The programs that builds use. Without git or bash, nothing can be deployed.
const PROGRAMS: [&str; 12] = ["git", "bash", "tar", "zstd", "node", "npm", "python3", "php", "ruby", "go", "cargo", "java"];

fn program(name: &str) -> DoctorCheck {
    let directories = ["/usr/local/bin", "/usr/bin", "/bin"];
    let mut paths = directories.iter().map(|directory| format!("{directory}/{name}"));
    match paths.find(|path| std::path::Path::new(path).exists()) {
        Some(path) => DoctorCheck::new(Grade::Good, name, path),
        None => {
            let grade = if matches!(name, "git" | "bash") { Grade::Bad } else { Grade::Warning };
            DoctorCheck::new(grade, name, format!("not installed; projects that need {name} cannot be built"))
        }
    }
}

/// Compares the directories of all environments with their layout.
fn layout(control: &Control, system: bool) -> Vec<DoctorCheck> {
    let layout = match Layout::standard() {
        Ok(layout) => layout,
        Err(error) => return vec![DoctorCheck::new(Grade::Bad, "layout", error.to_string())],
    };
    let viewer = Viewer { uid: rustix::process::geteuid().as_raw(), system };
    let projects = control.registry().projects.clone();
    let environments = projects.iter().flat_map(|project| &project.environments);
    let findings = environments.flat_map(|environment| {
        let paths = control.root().environment(&environment.project, &environment.name);
        layout.findings(paths.path(), viewer)
    });
    let bad: Vec<DoctorCheck> = findings.map(|finding| DoctorCheck::new(Grade::Bad, "layout", finding)).collect();
    if bad.is_empty() {
        return vec![DoctorCheck::new(Grade::Good, "layout", format!("all directories match the layout {}", layout.layout))];
    }
    bad
}

fn disk(control: &Control) -> DoctorCheck {
    let reserve = control.pipeline().services().config.limits.disk_reserve.bytes();
    match files::free_space(control.root().path()) {
        Ok(free) if free.bytes < reserve => {
            let finding = format!("{} MiB free; deployments are refused below {} MiB", free.bytes >> 20, reserve >> 20);
            DoctorCheck::new(Grade::Bad, "disk", finding)
        }
        Ok(free) => {
            let grade = if free.bytes < reserve.saturating_mul(4) { Grade::Warning } else { Grade::Good };
            DoctorCheck::new(grade, "disk", format!("{} MiB free", free.bytes >> 20))
        }
        Err(error) => DoctorCheck::new(Grade::Bad, "disk", error.to_string()),
    }
}
