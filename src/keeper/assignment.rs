//! The assignment of a role in an environment: its user, directories and variables. ARCHITECTURE.md shows the same roles
//! as a table.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{
    directories::relative,
    layers::Layer,
    registry::NameRegistry,
    sandbox::{Bind, Source},
    users::{User, Users},
};
use crate::model::{Area, EnvId, Launch, ReleaseId, Role, Slot};

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
    /// Its user.
    pub user: User,
    /// The layers of `/app`, for roles that see it.
    pub layer: Option<Layer>,
    /// The tree in `/deploy` that an unpack worker writes.
    pub tree: Option<ReleaseId>,
    /// True if `/app` is read-only, mounted over the layer that the application itself writes.
    read_only_app: bool,
    /// True if the worker runs code of the project, which needs the host's language runtimes and settings.
    pub own_code: bool,
    directories: Vec<RoleDirectory>,
}

fn need<T>(value: Option<T>, what: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("this role needs {what}"))
}

impl Assignment {
    /// Looks up the assignment of a launch request.
    pub fn of(launch: &Launch, registry: &NameRegistry, users: &Users) -> Result<Assignment, String> {
        let root = relative();
        let directory = |variable, target, path: PathBuf, writable| RoleDirectory { variable, target, path, writable };
        if launch.role == Role::Git {
            let project = root.project(registry.project(launch.project)?);
            let directories = vec![
                directory("LARDER_REPO", "/repo", project.join("git"), true),
                directory("LARDER_HOOKS", "/hooks", root.lib().join("hooks"), false),
                directory("LARDER_HOOK_SOCKET", "/run/larder", "hooks".into(), false),
            ];
            return Ok(Assignment {
                user: User::Git,
                layer: None,
                tree: None,
                read_only_app: false,
                own_code: false,
                directories,
            });
        }
        let env = need(launch.environment, "an environment")?;
        let (project, project_name, name) = registry.environment(env)?;
        if project != launch.project {
            return Err(format!("environment {} belongs to another project", env.0));
        }
        let paths = root.environment(project_name, name);
        let layer = |lower: PathBuf, owner, scratch: PathBuf, worker, read_only| Layer {
            lower,
            owner: users.identity(owner),
            scratch,
            worker: users.identity(worker),
            read_only,
        };
        let build = |read_only| layer(paths.source().join("tree"), User::Git, paths.build(), User::Build(env), read_only);
        let mut assignment = Assignment {
            user: User::Build(env),
            layer: None,
            tree: None,
            read_only_app: false,
            own_code: false,
            directories: Vec::new(),
        };
        match launch.role {
            Role::Git => {}
            Role::Source => {
                assignment.user = User::Git;
                assignment.directories.push(directory("LARDER_REPO", "/repo", root.project(project_name).join("git"), false));
                assignment.directories.push(directory("LARDER_SOURCE", "/source", paths.source(), true));
            }
            Role::Build => {
                assignment.own_code = true;
                assignment.layer = Some(build(false));
                assignment.directories.push(directory("LARDER_CACHE", "/cache", paths.cache(), true));
                assignment.directories.push(directory("LARDER_SOURCE", "/source", paths.source(), false));
                assignment.directories.push(directory("LARDER_BUILDPACKS", "/buildpacks", root.lib().join("buildpacks"), false));
                assignment.directories.push(directory(
                    "LARDER_ETC_BUILDPACKS",
                    "/larder/etc/buildpacks",
                    root.etc().join("buildpacks"),
                    false,
                ));
            }
            Role::Bundle => {
                assignment.layer = Some(build(true));
                assignment.directories.push(directory("LARDER_UPPER", "/upper", paths.build().join("upper"), false));
                assignment.directories.push(directory("LARDER_SOURCE", "/source", paths.source(), false));
            }
            Role::Unpack => {
                assignment.user = User::Unpack(env);
                assignment.tree = Some(need(launch.release, "a release")?);
                assignment.directories.push(directory("LARDER_DEPLOY", "/deploy", paths.deploy(), true));
            }
            // The archive and its manifest are descriptors; the worker sees no directory.
            Role::Verify => assignment.user = User::Unpack(env),
            Role::Pack => {
                assignment.user = User::Unpack(env);
                assignment.directories.push(directory("LARDER_DEPLOY", "/deploy", paths.deploy(), false));
            }
            Role::Run | Role::Task => {
                let release = need(launch.release, "a release")?;
                let slot = paths.slot(need(launch.slot, "a slot")?);
                assignment.user = User::Run(env);
                assignment.own_code = true;
                assignment.layer = Some(layer(paths.tree(release), User::Unpack(env), slot, User::Run(env), false));
                assignment.directories.push(directory("LARDER_DATA", "/data", paths.data(), true));
            }
            Role::Drift | Role::Patch => {
                let release = need(launch.release, "a release")?;
                assignment.user = User::Run(env);
                assignment.read_only_app = launch.role == Role::Drift;
                if assignment.read_only_app {
                    assignment.directories.push(directory("LARDER_TREE", "/deploy", paths.tree(release), false));
                }
                match launch.slot {
                    None if !assignment.read_only_app => return Err("this role needs a slot".to_owned()),
                    None => {}
                    Some(slot) => {
                        let slot = paths.slot(slot);
                        assignment.directories.push(directory("LARDER_UPPER", "/upper", slot.join("upper"), false));
                        assignment.layer = Some(layer(paths.tree(release), User::Unpack(env), slot, User::Run(env), false));
                    }
                }
            }
            Role::Sweep(area) => {
                let (path, user) = area_path(registry, env, area, launch.release, launch.slot)?;
                assignment.user = user;
                // In a scratch layer, the files of its user are in `upper`.
                let path = if matches!(area, Area::Build | Area::Slot) { path.join("upper") } else { path };
                assignment.directories.push(directory("LARDER_AREA", "/area", path, true));
            }
        }
        Ok(assignment)
    }

    /// Returns the assignment of a worker that deletes `user`'s files in a discarded directory.
    pub fn cleanup(name: &str, user: User) -> Assignment {
        let path = Path::new("trash").join(name);
        let directories = vec![RoleDirectory { variable: "LARDER_AREA", target: "/area", path, writable: true }];
        Assignment { user, layer: None, tree: None, read_only_app: false, own_code: false, directories }
    }

    /// Returns the mounts of the worker. `app` is the mounted overlay. Without one, the scratch layer itself is mounted at `/app`.
    pub fn binds(&self, root: &Path, app: Option<PathBuf>) -> Vec<Bind> {
        let mut binds: Vec<_> = self
            .directories
            .iter()
            // The operator's own buildpacks are optional.
            .filter(|directory| directory.variable != "LARDER_ETC_BUILDPACKS" || root.join(&directory.path).is_dir())
            .map(|directory| Bind {
                source: Source::Below(directory.path.clone()),
                target: directory.target,
                writable: directory.writable,
                // An operator may have mounted another disk inside the data directory.
                recursive: directory.variable == "LARDER_DATA",
            })
            .collect();
        match (&self.layer, app) {
            (Some(layer), Some(path)) => {
                let writable = !layer.read_only && !self.read_only_app;
                binds.push(Bind { source: Source::Own(path), target: "/app", writable, recursive: false });
            }
            (Some(layer), None) => {
                let below =
                    |path: PathBuf, target, writable| Bind { source: Source::Below(path), target, writable, recursive: false };
                binds.push(below(layer.lower.clone(), "/lower", false));
                binds.push(below(layer.scratch.join("upper"), "/app", !self.read_only_app));
            }
            (None, _) => {}
        }
        binds
    }

    /// Returns the `LARDER_*` variables: paths in the worker's view, or real paths below `root` for a worker without a view of its own.
    /// Without an overlay, the worker first copies `LARDER_LOWER` to `LARDER_APP` (`workers::fill`).
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
) -> Result<(PathBuf, User), String> {
    let (_, project, name) = registry.environment(env)?;
    let paths = relative().environment(project, name);
    Ok(match area {
        Area::Build => (paths.build(), User::Build(env)),
        Area::Cache => (paths.cache(), User::Build(env)),
        Area::Tree => (paths.tree(need(release, "a release")?), User::Unpack(env)),
        Area::Slot => (paths.slot(need(slot, "a slot")?), User::Run(env)),
        Area::Source => (paths.source(), User::Git),
    })
}
