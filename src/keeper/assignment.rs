//! The assignment of a role in an environment: its user, directories and variables. ARCHITECTURE.md shows the same roles
//! as a table.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use larder_sandbox::{BindMount, BindSource, OverlaySpec};

use super::{
    config::ProjectUnit,
    directories::relative,
    registry::NameRegistry,
    users::{SystemUser, Users},
};
use crate::model::{Area, EditWork, EnvId, Launch, ReleaseId, Role, Slot};

/// A directory of a worker and the `LARDER_*` variable that holds its path.
#[derive(Debug, Clone)]
struct RoleDirectory {
    variable: &'static str,
    target: &'static str,
    path: PathBuf,
    writable: bool,
}

/// The assignment of a role in one environment. All paths are relative to the root.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub user: SystemUser,
    /// The layers of `/app`, for roles that use `/app`.
    pub layer: Option<OverlaySpec>,
    /// The tree in `/deploy` that an unpack worker writes.
    pub tree: Option<ReleaseId>,
    /// True if the worker cannot write `/app`, although the application writes the same layer.
    read_only_app: bool,
    /// True if the worker runs code of the project, which needs the host's language runtimes and settings.
    pub own_code: bool,
    directories: Vec<RoleDirectory>,
    /// The name of the unit of systemd that the process stops or starts.
    pub unit: Option<OsString>,
}

fn need<T>(value: Option<T>, what: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("this role needs {what}"))
}

impl Assignment {
    fn new(user: SystemUser) -> Assignment {
        Assignment { user, layer: None, tree: None, read_only_app: false, own_code: false, directories: Vec::new(), unit: None }
    }

    fn reads(mut self, variable: &'static str, target: &'static str, path: PathBuf) -> Assignment {
        self.directories.push(RoleDirectory { variable, target, path, writable: false });
        self
    }

    fn writes(mut self, variable: &'static str, target: &'static str, path: PathBuf) -> Assignment {
        self.directories.push(RoleDirectory { variable, target, path, writable: true });
        self
    }

    fn builds(self, cache: PathBuf) -> Assignment {
        let one = self.writes("LARDER_CACHE", "/cache", cache).reads("LARDER_BUILDPACKS", "/buildpacks", relative().buildpacks());
        one.reads("LARDER_ETC_BUILDPACKS", "/larder/etc/buildpacks", relative().etc().join("buildpacks"))
    }

    /// Returns the assignment of a launch request, or the reason why the request is refused.
    pub fn of(launch: &Launch, registry: &NameRegistry, users: &Users, units: &[ProjectUnit]) -> Result<Assignment, String> {
        let root = relative();
        if launch.role == Role::Git {
            let project = root.project(registry.project(launch.project)?);
            return Ok(Assignment::new(SystemUser::Git)
                .writes("LARDER_REPO", "/repo", project.join("git"))
                .reads("LARDER_HOOKS", "/hooks", root.lib().join("hooks"))
                .reads("LARDER_HOOK_SOCKET", "/run/larder", "hooks".into()));
        }
        let env = need(launch.environment, "an environment")?;
        let (project, project_name, name) = registry.environment(env)?;
        if project != launch.project {
            return Err(format!("environment {} belongs to another project", env.0));
        }
        let paths = root.environment(project_name, name);
        let layer = |lower: PathBuf, owner, scratch: PathBuf, worker| OverlaySpec {
            lower,
            owner: users.numbers(owner),
            scratch,
            worker: users.numbers(worker),
            read_only: false,
        };
        let (build, unpack, run) = (SystemUser::Build(env), SystemUser::Unpack(env), SystemUser::Run(env));
        let build_layer = || layer(paths.source().join("tree"), SystemUser::Git, paths.build(), build);
        let slot_layer = |release, slot| layer(paths.lower(release, slot), unpack, paths.slot(slot), run);
        Ok(match launch.role {
            Role::Git => return Err("the git role has no environment".to_owned()),
            Role::Source => Assignment::new(SystemUser::Git)
                .reads("LARDER_REPO", "/repo", root.project(project_name).join("git"))
                .writes("LARDER_SOURCE", "/source", paths.source()),
            Role::Build => Assignment { own_code: true, layer: Some(build_layer()), ..Assignment::new(build) }
                .builds(paths.cache())
                .reads("LARDER_SOURCE", "/source", paths.source()),
            Role::Bundle => {
                let layer = OverlaySpec { read_only: true, ..build_layer() };
                Assignment { layer: Some(layer), ..Assignment::new(build) }
                    .reads("LARDER_UPPER", "/upper", paths.build().join("upper"))
                    .reads("LARDER_SOURCE", "/source", paths.source())
            }
            Role::Unpack => {
                let tree = Some(need(launch.release, "a release")?);
                Assignment { tree, ..Assignment::new(unpack) }.writes("LARDER_DEPLOY", "/deploy", paths.deploy())
            }
            Role::Verify => Assignment::new(unpack),
            Role::Pack => Assignment::new(unpack).reads("LARDER_DEPLOY", "/deploy", paths.deploy()),
            Role::Run | Role::Task | Role::Probe | Role::Edit(_) => {
                let layer = Some(slot_layer(need(launch.release, "a release")?, need(launch.slot, "a slot")?));
                let read_only_app = matches!(launch.role, Role::Probe | Role::Edit(EditWork::Watch));
                let data = if launch.role == Role::Probe { paths.data_copy() } else { paths.data() };
                let assignment = Assignment { own_code: true, read_only_app, layer, ..Assignment::new(run) };
                let assignment = assignment.writes("LARDER_DATA", "/data", data);
                let assignment = if let Role::Edit(_) = launch.role { assignment.builds(paths.editing()) } else { assignment };
                if launch.role == Role::Run { assignment } else { assignment.writes("LARDER_CUSTOM", "/custom", paths.custom()) }
            }
            Role::Drift | Role::Patch => {
                let release = need(launch.release, "a release")?;
                let read_only_app = launch.role == Role::Drift;
                let new = Assignment { read_only_app, ..Assignment::new(run) };
                let assignment = if read_only_app { new.reads("LARDER_TREE", "/deploy", paths.tree(release)) } else { new };
                match launch.slot {
                    None if !read_only_app => return Err("this role needs a slot".to_owned()),
                    None => assignment,
                    Some(slot) => {
                        let upper = paths.slot(slot).join("upper");
                        Assignment { layer: Some(slot_layer(release, slot)), ..assignment }.reads("LARDER_UPPER", "/upper", upper)
                    }
                }
            }
            Role::Sync => Assignment::new(run)
                .reads("LARDER_TREE", "/deploy", paths.tree(need(launch.release, "a release")?))
                .writes("LARDER_TARGET", "/target", paths.slot(need(launch.slot, "a slot")?).join("upper")),
            // No process of an application has the role `Dump` or `Restore`, so no application reaches the restore points.
            Role::Dump => Assignment::new(run)
                .reads("LARDER_DATA", "/data", paths.data())
                .reads("LARDER_CUSTOM", "/custom", paths.custom())
                .writes("LARDER_POINTS", "/points", paths.points()),
            Role::Restore => Assignment::new(run)
                .reads("LARDER_POINTS", "/points", paths.points())
                .writes("LARDER_DATA", "/data", paths.data())
                .writes("LARDER_RESTORED", "/restored", paths.restored())
                .writes("LARDER_RESTORING", "/restoring", paths.restoring())
                .writes("LARDER_CUSTOM", "/custom", paths.custom())
                .writes("LARDER_DATA_COPY", "/copy", paths.data_copy()),
            Role::Unit(request) => {
                let is_unit = |(of, unit): &&ProjectUnit| of == project_name && unit.number() == request.unit;
                let unit = units.iter().find(is_unit).filter(|_| users.system());
                let unit =
                    unit.ok_or("the running keeper does not allow this unit; restart larder after a change of `services:`")?;
                Assignment { unit: Some(unit.1.as_str().into()), ..Assignment::new(SystemUser::Keeper) }
            }
            Role::Measure(user) => {
                let user = need([SystemUser::Git, build, unpack, run].get(user as usize).copied(), "a user")?;
                let repository = root.project(project_name).join("git");
                Assignment::new(user).reads("LARDER_AREA", "/area", paths.path().into()).reads("LARDER_REPO", "/repo", repository)
            }
            Role::Sweep(area) => {
                let (path, user) = area_path(registry, env, area, launch.release, launch.slot)?;
                let path = if matches!(area, Area::Build | Area::Slot | Area::Archive) { path.join("upper") } else { path };
                Assignment::new(user).writes("LARDER_AREA", "/area", path)
            }
        })
    }

    /// Returns the assignment of a worker that deletes `user`'s files in a discarded directory.
    pub fn cleanup(path: &Path, user: SystemUser) -> Assignment {
        Assignment::new(user).writes("LARDER_AREA", "/area", path.to_owned())
    }

    /// Returns the mounts of the worker. `app` is the mounted overlay. If `app` is `None`, the scratch layer is mounted at `/app`.
    pub fn binds(&self, root: &Path, app: Option<PathBuf>) -> Vec<BindMount> {
        let below =
            |path: PathBuf, target, writable| BindMount { source: BindSource::Below(path), target, writable, recursive: false };
        // The operator's own buildpacks are optional.
        let exists =
            |directory: &&RoleDirectory| directory.variable != "LARDER_ETC_BUILDPACKS" || root.join(&directory.path).is_dir();
        let binds = self.directories.iter().filter(exists).map(|directory| BindMount {
            // An operator may have mounted a separate disk inside the data directory.
            recursive: directory.variable == "LARDER_DATA",
            ..below(directory.path.clone(), directory.target, directory.writable)
        });
        let mut binds: Vec<_> = binds.collect();
        match (&self.layer, app) {
            (Some(layer), Some(path)) => {
                let writable = !layer.read_only && !self.read_only_app;
                binds.push(BindMount { source: BindSource::Own(path), target: "/app", writable, recursive: false });
            }
            (Some(layer), None) => {
                binds.push(below(layer.lower.clone(), "/lower", false));
                binds.push(below(layer.scratch.join("upper"), "/app", !self.read_only_app));
            }
            (None, _) => {}
        }
        binds
    }

    /// Returns the `LARDER_*` variables. The paths are those of the worker's view, or real paths below `root` for a worker without a
    /// view. Without an overlay, the worker first copies `LARDER_LOWER` to `LARDER_APP` (`workers::fill`).
    pub fn variables(&self, root: Option<&Path>, overlay: bool) -> BTreeMap<&'static str, OsString> {
        let mut variables: BTreeMap<&'static str, OsString> = BTreeMap::new();
        let mut set = |name, value: PathBuf| drop(variables.insert(name, value.into_os_string()));
        for directory in &self.directories {
            let place = root.map_or_else(|| PathBuf::from(directory.target), |root| root.join(&directory.path));
            let place = if directory.variable == "LARDER_HOOK_SOCKET" { place.join("hook.sock") } else { place };
            if let ("LARDER_DEPLOY", Some(release)) = (directory.variable, self.tree) {
                set("LARDER_TREE", place.join(release.to_string()));
            }
            set(directory.variable, place);
        }
        if let Some(layer) = &self.layer {
            match root {
                None => {
                    set("LARDER_APP", "/app".into());
                    if !overlay {
                        set("LARDER_LOWER", "/lower".into());
                    }
                }
                Some(root) => {
                    set("LARDER_APP", root.join(&layer.scratch).join("upper"));
                    set("LARDER_LOWER", root.join(&layer.lower));
                }
            }
        }
        variables
    }
}

/// Returns the directory and the owner of an area.
pub fn area_path(
    registry: &NameRegistry,
    env: EnvId,
    area: Area,
    release: Option<ReleaseId>,
    slot: Option<Slot>,
) -> Result<(PathBuf, SystemUser), String> {
    let (_, project, name) = registry.environment(env)?;
    let paths = relative().environment(project, name);
    Ok(match area {
        Area::Build => (paths.build(), SystemUser::Build(env)),
        Area::Cache => (paths.cache(), SystemUser::Build(env)),
        Area::Tree => (paths.tree(need(release, "a release")?), SystemUser::Unpack(env)),
        Area::Slot => (paths.slot(need(slot, "a slot")?), SystemUser::Run(env)),
        Area::Source => (paths.source(), SystemUser::Git),
        Area::Archive => (paths.archived_runs().join(need(release, "a release")?.to_string()), SystemUser::Run(env)),
    })
}
