//! From ids to a worker's user, directories and environment; the table of DESIGN "Processes" as code.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{
    layers::Layer,
    place::relative,
    registry::Registry,
    sandbox::{Bind, Source},
    users::{User, Users},
};
use crate::model::{Area, EnvId, Launch, ReleaseId, Role, Slot};

/// Where a worker finds something: a `LARDER_*` variable holds the place, in its view or in the keeper's.
#[derive(Debug, Clone)]
struct Spot {
    variable: &'static str,
    target: &'static str,
    path: PathBuf,
    writable: bool,
}

/// What a role comes to in one environment. All paths are relative to the root.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Whom it runs as.
    pub user: User,
    /// `/app`, for those who see it.
    pub layer: Option<Layer>,
    /// The name of the tree to unpack to, in `/deploy`.
    pub tree: Option<ReleaseId>,
    /// Whether it only looks at `/app`, through the layer that the application itself uses.
    looks: bool,
    /// Which project's parts it runs: what the project itself wrote needs the host's languages and settings.
    pub own_code: bool,
    spots: Vec<Spot>,
}

fn need<T>(value: Option<T>, what: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("this role needs {what}"))
}

impl Assignment {
    /// Looks everything up.
    pub fn of(launch: &Launch, registry: &Registry, users: &Users) -> Result<Assignment, String> {
        let root = relative();
        let spot = |variable, target, path: PathBuf, writable| Spot { variable, target, path, writable };
        if launch.role == Role::Git {
            let project = root.project(registry.project(launch.project)?);
            let spots = vec![
                spot("LARDER_REPO", "/repo", project.join("git"), true),
                spot("LARDER_HOOKS", "/hooks", root.lib().join("hooks"), false),
                spot("LARDER_HOOK_SOCKET", "/run/larder", "hooks".into(), false),
            ];
            return Ok(Assignment { user: User::Git, layer: None, tree: None, looks: false, own_code: false, spots });
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
        let mut assignment =
            Assignment { user: User::Build(env), layer: None, tree: None, looks: false, own_code: false, spots: Vec::new() };
        match launch.role {
            Role::Git => {}
            Role::Source => {
                assignment.user = User::Git;
                assignment.spots.push(spot("LARDER_REPO", "/repo", root.project(project_name).join("git"), false));
                assignment.spots.push(spot("LARDER_SOURCE", "/source", paths.source(), true));
            }
            Role::Build => {
                assignment.own_code = true;
                assignment.layer = Some(build(false));
                assignment.spots.push(spot("LARDER_CACHE", "/cache", paths.cache(), true));
                assignment.spots.push(spot("LARDER_SOURCE", "/source", paths.source(), false));
                assignment.spots.push(spot("LARDER_BUILDPACKS", "/buildpacks", root.lib().join("buildpacks"), false));
                assignment.spots.push(spot(
                    "LARDER_ETC_BUILDPACKS",
                    "/larder/etc/buildpacks",
                    root.etc().join("buildpacks"),
                    false,
                ));
            }
            Role::Bundle => {
                assignment.layer = Some(build(true));
                assignment.spots.push(spot("LARDER_UPPER", "/upper", paths.build().join("upper"), false));
                assignment.spots.push(spot("LARDER_SOURCE", "/source", paths.source(), false));
            }
            Role::Unpack => {
                assignment.user = User::Unpack(env);
                assignment.tree = Some(need(launch.release, "a release")?);
                assignment.spots.push(spot("LARDER_DEPLOY", "/deploy", paths.deploy(), true));
            }
            // An archive and its manifest, as descriptors, and nothing else.
            Role::Verify => assignment.user = User::Unpack(env),
            Role::Pack => {
                assignment.user = User::Unpack(env);
                assignment.spots.push(spot("LARDER_DEPLOY", "/deploy", paths.deploy(), false));
            }
            Role::Run | Role::Task => {
                let release = need(launch.release, "a release")?;
                let slot = paths.slot(need(launch.slot, "a slot")?);
                assignment.user = User::Run(env);
                assignment.own_code = true;
                assignment.layer = Some(layer(paths.tree(release), User::Unpack(env), slot, User::Run(env), false));
                assignment.spots.push(spot("LARDER_DATA", "/data", paths.data(), true));
            }
            Role::Drift | Role::Patch => {
                let release = need(launch.release, "a release")?;
                assignment.user = User::Run(env);
                assignment.looks = launch.role == Role::Drift;
                if assignment.looks {
                    assignment.spots.push(spot("LARDER_TREE", "/deploy", paths.tree(release), false));
                }
                match launch.slot {
                    None if !assignment.looks => return Err("this role needs a slot".to_owned()),
                    None => {}
                    Some(slot) => {
                        let slot = paths.slot(slot);
                        assignment.spots.push(spot("LARDER_UPPER", "/upper", slot.join("upper"), false));
                        assignment.layer = Some(layer(paths.tree(release), User::Unpack(env), slot, User::Run(env), false));
                    }
                }
            }
            Role::Sweep(area) => {
                let (path, user) = area_path(registry, env, area, launch.release, launch.slot)?;
                assignment.user = user;
                // Of a scratch layer, what its user left is in `upper`.
                let path = if matches!(area, Area::Build | Area::Slot) { path.join("upper") } else { path };
                assignment.spots.push(spot("LARDER_AREA", "/area", path, true));
            }
        }
        Ok(assignment)
    }

    /// Deleting what was put aside, as `user`.
    pub fn sweep_aside(name: &str, user: User) -> Assignment {
        let path = Path::new("trash").join(name);
        let spots = vec![Spot { variable: "LARDER_AREA", target: "/area", path, writable: true }];
        Assignment { user, layer: None, tree: None, looks: false, own_code: false, spots }
    }

    /// What to mount; `app` is where the overlay is. Without one the scratch layer is the application.
    pub fn binds(&self, root: &Path, app: Option<PathBuf>) -> Vec<Bind> {
        let mut binds: Vec<_> = self
            .spots
            .iter()
            // The operator's part may be missing.
            .filter(|spot| spot.variable != "LARDER_ETC_BUILDPACKS" || root.join(&spot.path).is_dir())
            .map(|spot| Bind {
                source: Source::Below(spot.path.clone()),
                target: spot.target,
                writable: spot.writable,
                // An operator may give uploads a disk of their own.
                recursive: spot.variable == "LARDER_DATA",
            })
            .collect();
        match (&self.layer, app) {
            (Some(layer), Some(path)) => {
                let writable = !layer.read_only && !self.looks;
                binds.push(Bind { source: Source::Own(path), target: "/app", writable, recursive: false });
            }
            (Some(layer), None) => {
                let below =
                    |path: PathBuf, target, writable| Bind { source: Source::Below(path), target, writable, recursive: false };
                binds.push(below(layer.lower.clone(), "/lower", false));
                binds.push(below(layer.scratch.join("upper"), "/app", !self.looks));
            }
            (None, _) => {}
        }
        binds
    }

    /// The `LARDER_*` variables: places in the worker's view, or real paths below `root` where it has no view of its own.
    /// Where there is no overlay, `LARDER_LOWER` is what [`super::fill`] copies to `LARDER_APP` first.
    pub fn variables(&self, root: Option<&Path>, overlay: bool) -> BTreeMap<&'static str, OsString> {
        let mut variables: BTreeMap<&'static str, OsString> = BTreeMap::new();
        let mut set = |name, value: PathBuf| drop(variables.insert(name, value.into_os_string()));
        for spot in &self.spots {
            let place = root.map_or_else(|| PathBuf::from(spot.target), |root| root.join(&spot.path));
            let place = if spot.variable == "LARDER_HOOK_SOCKET" { place.join("hook.sock") } else { place };
            if let ("LARDER_DEPLOY", Some(release)) = (spot.variable, self.tree) {
                set("LARDER_TREE", place.join(release.to_string()));
            }
            set(spot.variable, place);
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

/// An area's directory and owner.
pub fn area_path(
    registry: &Registry,
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
