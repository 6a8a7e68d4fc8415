//! The paths of all files and directories below larder's root.

use std::path::{Path, PathBuf};

use crate::model::{DeploymentId, EnvironmentName, ProjectName, ReleaseId, Slot};

/// The root: larder's directory, `--root`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The root at `path`, which must be absolute, because processes with other working directories use it.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// The root directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The server file, written by the operator.
    pub fn server_file(&self) -> PathBuf {
        self.0.join("larder.yml")
    }

    /// The control socket of the command line.
    pub fn control_socket(&self) -> PathBuf {
        self.state().join("control.sock")
    }

    /// The socket that git hooks talk to; the git user may reach it.
    pub fn hook_socket(&self) -> PathBuf {
        self.0.join("hooks").join("hook.sock")
    }

    /// The server's own state: host key, users, keys, list of projects.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Users, keys, projects and environments.
    pub fn registry_file(&self) -> PathBuf {
        self.state().join("registry.json")
    }

    /// The last build number of each project.
    pub fn build_numbers(&self) -> PathBuf {
        self.state().join("builds.json")
    }

    /// The SSH host key, by which clients recognise this server.
    pub fn host_key(&self) -> PathBuf {
        self.state().join("ssh_host_ed25519_key")
    }

    /// The key with which this server signs its deliverables.
    pub fn signing_key(&self) -> PathBuf {
        self.state().join("signing_ed25519_key")
    }

    /// The SSH key with which this server pulls from other servers.
    pub fn pull_key(&self) -> PathBuf {
        self.state().join("pull_ed25519_key")
    }

    /// The keeper's own state; root alone.
    pub fn keeper(&self) -> PathBuf {
        self.0.join("keeper")
    }

    /// The files that are embedded in the binary: `hooks/` and `buildpacks/` of this version.
    pub fn lib(&self) -> PathBuf {
        self.0.join("lib").join(env!("CARGO_PKG_VERSION"))
    }

    /// The operator's overrides: `buildpacks/<name>` and `layouts/<name>.yaml`.
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }

    /// The directory of a project.
    pub fn project(&self, project: &ProjectName) -> PathBuf {
        self.0.join("projects").join(project.as_str())
    }

    /// The repository that is pushed to.
    pub fn repository(&self, project: &ProjectName) -> PathBuf {
        self.project(project).join("git").join("project.git")
    }

    /// The directory of an environment.
    pub fn environment(&self, project: &ProjectName, environment: &EnvironmentName) -> EnvironmentPaths {
        EnvironmentPaths(self.project(project).join(environment.as_str()))
    }
}

/// The paths of one environment; `layouts/standard.yaml` has their owners and modes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentPaths(PathBuf);

impl EnvironmentPaths {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The exported source of the last deployed commit.
    pub fn source(&self) -> PathBuf {
        self.0.join("project")
    }

    /// The scratch layer of a build: `upper/` and `work/` of the overlay over [`Self::source`].
    pub fn build(&self) -> PathBuf {
        self.0.join("build")
    }

    /// The caches of buildpacks.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// The release archives and their manifests.
    pub fn releases(&self) -> PathBuf {
        self.0.join("releases")
    }

    /// The archive of a release.
    pub fn archive(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.tar.zst"))
    }

    /// The manifest of a release.
    pub fn manifest(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.manifest.json"))
    }

    /// A copy of a release's manifest in a format that is read quickly; optional.
    pub fn index(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.index"))
    }

    /// The health record of a release on another server.
    pub fn health(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.health.json"))
    }

    /// The health record of a release in this environment, as last reported to another server.
    pub fn ran(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.ran.json"))
    }

    /// Deliverables that are being received, one directory for each release.
    pub fn incoming(&self) -> PathBuf {
        self.releases().join(".incoming")
    }

    /// The newest accepted build of each signer.
    pub fn accepted(&self) -> PathBuf {
        self.0.join("accepted.json")
    }

    /// The delta from an installed release to a release that has no archive here yet.
    pub fn delta(&self, release: ReleaseId) -> PathBuf {
        self.releases().join(format!("{release}.delta"))
    }

    /// Deltas for other servers, `<from>..<to>`. They can be recreated.
    pub fn deltas(&self) -> PathBuf {
        self.releases().join(".delta")
    }

    /// The installed trees.
    pub fn deploy(&self) -> PathBuf {
        self.0.join("deploy")
    }

    /// One installed tree.
    pub fn tree(&self, release: ReleaseId) -> PathBuf {
        self.deploy().join(release.to_string())
    }

    /// The link to the live release's tree.
    pub fn current(&self) -> PathBuf {
        self.deploy().join("current")
    }

    /// The link to the active slot.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// A slot: `upper/` and `work/` of the overlay over the release's tree.
    pub fn slot(&self, slot: Slot) -> PathBuf {
        self.0.join("slots").join(slot.as_str())
    }

    /// The persistent data; `/data` in the sandbox.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Kept patches; later restore points and failed trees.
    pub fn archives(&self) -> PathBuf {
        self.0.join("archives")
    }

    /// The records of all deployments.
    pub fn deployments(&self) -> PathBuf {
        self.0.join("deployments")
    }

    /// The record of one deployment: `journal.jsonl` and `log`.
    pub fn deployment(&self, deployment: DeploymentId) -> PathBuf {
        self.deployments().join(deployment.to_string())
    }

    /// Process logs.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The record of processes that exited by themselves.
    pub fn restarts(&self) -> PathBuf {
        self.0.join("restarts.jsonl")
    }

    /// Values that larder generated because `app.json` requests them.
    pub fn secrets(&self) -> PathBuf {
        self.0.join("generated.json")
    }

    /// The releases that are never pruned.
    pub fn pins(&self) -> PathBuf {
        self.0.join("pins.json")
    }

    /// The record of the postdeploy script.
    pub fn postdeploy(&self) -> PathBuf {
        self.0.join("postdeploy.json")
    }

    /// The files that the deployments of the last releases wrote into their slots.
    pub fn expected_drift(&self) -> PathBuf {
        self.0.join("expected-drift.json")
    }

    /// Project, environment, active slot and live release, for people and other tools.
    pub fn metadata(&self) -> PathBuf {
        self.0.join("metadata.yml")
    }
}
