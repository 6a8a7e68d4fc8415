//! Where things are in the worker: the keeper says it in the environment.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The directories of a build, and the search path of its programs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The tree that is built.
    pub app: PathBuf,
    /// What survives builds.
    pub cache: PathBuf,
    /// Ours.
    pub buildpacks: PathBuf,
    /// The operator's; need not exist.
    pub operator: PathBuf,
    /// For programs.
    pub path: OsString,
    /// `HOME` of every child: as on Heroku, the tree.
    pub home: PathBuf,
}

const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Place {
    /// As the environment of this process says.
    pub fn from_environment() -> Place {
        let path = |name: &str, otherwise: &str| std::env::var_os(name).map_or_else(|| PathBuf::from(otherwise), PathBuf::from);
        let app = path("LARDER_APP", "/app");
        Place {
            cache: path("LARDER_CACHE", "/cache"),
            buildpacks: path("LARDER_BUILDPACKS", "/buildpacks"),
            operator: path("LARDER_ETC_BUILDPACKS", "/larder/etc/buildpacks"),
            path: search(std::env::var_os("PATH"), std::env::var_os("LARDER_BIN")),
            home: app.clone(),
            app,
        }
    }
}

/// The search path, with the directory of larder's own binary at its end.
fn search(path: Option<OsString>, binary: Option<OsString>) -> OsString {
    let mut path = path.filter(|path| !path.is_empty()).unwrap_or_else(|| OsString::from(SEARCH));
    if let Some(directory) = binary.as_deref().map(Path::new).and_then(Path::parent).filter(|path| path.is_absolute()) {
        path.push(":");
        path.push(directory);
    }
    path
}
