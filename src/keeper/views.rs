//! The view of a worker, which is its root directory: the directories of the host that all workers see, and the files that a view replaces.

use std::io;

use larder_sandbox::{BaseSpec, BaseView, BindMount, RootView, UnixUser, user_database};

use super::config::KeeperConfig;

/// The path of larder's own binary in every view.
pub const BINARY: &str = "/larder/bin/larder";

/// Directories of the host that every worker sees, read-only.
const HOST: [&str; 11] =
    ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "var/lib/gems", "sys/devices/system/cpu"];

/// Directories of every view. A directory is empty if the role does not use it.
const MOUNT_POINTS: [&str; 12] =
    ["app", "lower", "cache", "source", "repo", "hooks", "deploy", "upper", "data", "area", "buildpacks", "target"];
/// Directories of every view for restore points, empty in a process of an application.
const POINT_MOUNT_POINTS: [&str; 5] = ["points", "restored", "restoring", "copy", "custom"];
/// Directories of every view for files of larder and its operator.
const OWN_MOUNT_POINTS: [&str; 2] = ["larder/etc/buildpacks", "larder/bin"];

/// Mounts the shared part of all views at `<root>/keeper/base`, and tests the result: a child process enters a view. The root of larder is
/// hidden even if it is below a directory that the view shows.
pub fn prepare(config: &KeeperConfig) -> io::Result<BaseView> {
    let path = config.root.join("keeper/base");
    let (base, skipped) = BaseView::prepare(&BaseSpec {
        path: &path,
        host: &HOST,
        additional: &config.host_paths,
        hidden: &config.root,
        mount_points: &[&MOUNT_POINTS[..], &POINT_MOUNT_POINTS, &OWN_MOUNT_POINTS].concat(),
        binary: BINARY,
    })?;
    // A skipped directory is not fatal: workers get a view without this directory.
    for directory in skipped {
        let path = directory.path.display();
        match directory.error {
            Some(error) => tracing::warn!(%path, %error, "cannot show this directory to builds and processes"),
            None => tracing::warn!(
                %path,
                hint = "choose another directory",
                "cannot show this directory to builds and processes: larder uses the same path in its sandboxes"
            ),
        }
    }
    view(&base, config, Vec::new(), UnixUser { uid: 0, gid: 0 }).probe()?;
    Ok(base)
}

/// Returns the view of a worker with the mounts `binds`.
pub fn view(base: &BaseView, config: &KeeperConfig, binds: Vec<BindMount>, worker: UnixUser) -> RootView {
    RootView {
        base: base.clone(),
        root: config.root.clone(),
        binds,
        etc: user_database(worker),
        binary: config.exe.clone(),
        temporary: config.temporary,
    }
}
